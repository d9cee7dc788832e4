//! Who signed a certificate or a list: X.509 frames both alike, as the message, the algorithm and the signature.

use crate::peer::PeerCertificate;
use crate::provider::{TlsPolicy, provider};
use rustls::pki_types::SubjectPublicKeyInfoDer;
use webpki::{EndEntityCert, RawPublicKeyEntity};
use x509_parser::asn1_rs::{Any, BitString, FromDer, Header, Tag, ToDer};

/// What was signed, and how.
pub(super) struct Signed<'a> {
    message: &'a [u8],
    /// The content of its AlgorithmIdentifier.
    algorithm: &'a [u8],
    signature: Vec<u8>,
}

/// What a key says of a signature.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It made it.
    Good,
    /// It did not.
    Bad,
    /// Nobody here can tell: the algorithm is unknown.
    Unsupported,
}

/// An authority's public key.
pub(super) struct Key(SubjectPublicKeyInfoDer<'static>);

impl Key {
    /// The keys of all authorities of this name (the DER content of a Name) that the peer's chain could lead to: the
    /// roots, and what it presented itself.
    pub(super) fn of_issuer(name: &[u8], peer: &PeerCertificate) -> Vec<Self> {
        let anchors = peer.roots.roots.iter().filter(|anchor| &*anchor.subject == name);
        let presented = peer.chain.iter().filter_map(|cert| EndEntityCert::try_from(cert).ok());
        let presented = presented.filter(|cert| cert.subject() == name).map(|cert| cert.subject_public_key_info());
        let anchors = anchors.filter_map(|anchor| sequence(&anchor.subject_public_key_info));
        anchors.chain(presented).map(Self).collect()
    }
}

/// A trust anchor keeps the content only.
fn sequence(content: &[u8]) -> Option<SubjectPublicKeyInfoDer<'static>> {
    let header = Header::new(x509_parser::asn1_rs::Class::Universal, true, Tag::Sequence, content.len().into());
    let mut der = header.to_der_vec().ok()?;
    der.extend_from_slice(content);
    Some(der.into())
}

impl<'a> Signed<'a> {
    /// Of a whole certificate or list. `None` for what is neither.
    pub(super) fn read(der: &'a [u8]) -> Option<Self> {
        let (_, outer) = Any::from_der(der).ok()?;
        let content = outer.data;
        let (rest, _) = Any::from_der(content).ok()?;
        let message = &content[..content.len() - rest.len()];
        let (rest, algorithm) = Any::from_der(rest).ok()?;
        let (_, signature) = BitString::from_der(rest).ok()?;
        Some(Self { message, algorithm: algorithm.data, signature: signature.data.into_owned() })
    }

    pub(super) fn verify(&self, key: &Key) -> Verdict {
        // What can be verified doesn't depend on the policy.
        let all = provider(TlsPolicy::default()).signature_verification_algorithms.all;
        let mut algorithms = all.iter().filter(|a| *a.signature_alg_id() == *self.algorithm).peekable();
        if algorithms.peek().is_none() {
            return Verdict::Unsupported;
        }
        let Ok(key) = RawPublicKeyEntity::try_from(&key.0) else { return Verdict::Unsupported };
        if algorithms.any(|a| key.verify_signature(*a, self.message, &self.signature).is_ok()) {
            Verdict::Good
        } else {
            Verdict::Bad
        }
    }
}
