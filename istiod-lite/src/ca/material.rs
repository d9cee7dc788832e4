//! A signer as it is kept, in files or Secrets: PEM texts in, a checked signer out.
//!
//! The names are Istio's (`cacerts`, `istio-ca-secret`) or cert-manager's (`tls.crt`); keys are RSA, ECDSA or Ed25519 in
//! PKCS#8, PKCS#1 or SEC1.

use std::collections::BTreeMap;
use std::fmt;

use rcgen::{KeyPair, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use zeroize::{Zeroize as _, Zeroizing};

use super::fingerprint::{Fingerprint, pem_of};

/// The signer's certificate.
pub const CA_CERT: &str = "ca-cert.pem";
/// Its private key.
pub const CA_KEY: &str = "ca-key.pem";
/// The roots that everybody shall trust.
pub const ROOT_CERT: &str = "root-cert.pem";
/// From the signer's certificate up to the root, for a signer that is not itself a root.
pub const CERT_CHAIN: &str = "cert-chain.pem";

/// RSA keys below this are no longer considered safe (NIST SP 800-57).
const MIN_RSA_BITS: usize = 2048;
/// Longer chains than this are a mistake, and clients give up on them.
const MAX_INTERMEDIATES: usize = 8;

/// The texts of a signer. The key is wiped when this goes, and is never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Material {
    /// PEM of the private key.
    pub key: Zeroizing<String>,
    /// PEM of the signer's certificate.
    pub cert: String,
    /// PEM of the intermediates, the signer's own among them or not; empty for a root.
    pub chain: String,
    /// PEM of the roots; empty means the signer's own certificate.
    pub roots: String,
}

impl fmt::Debug for Material {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Material").field("cert", &self.cert).field("key", &"<secret>").finish_non_exhaustive()
    }
}

/// What is wrong with a signer. `part` is the file or the Secret's key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MaterialError {
    /// It is needed and not there.
    #[error("{part} is missing")]
    Missing {
        /// Which.
        part: &'static str,
    },
    /// It does not hold what it should.
    #[error("{part}: {reason}")]
    Invalid {
        /// Which.
        part: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// Key and certificate do not belong together.
    #[error("{CA_CERT} does not belong to {CA_KEY}: the public keys differ")]
    Mismatch,
}

impl Material {
    /// From the entries of a Secret or the files of a folder.
    pub fn from_entries(entries: &BTreeMap<String, Vec<u8>>) -> Result<Self, MaterialError> {
        let text = |part: &'static str| match entries.get(part) {
            None => Ok(None),
            Some(bytes) if bytes.is_empty() => Ok(None),
            Some(bytes) => std::str::from_utf8(bytes)
                .map(|text| Some(text.to_owned()))
                .map_err(|_| MaterialError::Invalid { part, reason: "is not text".into() }),
        };
        let need = |part| text(part)?.ok_or(MaterialError::Missing { part });
        // cert-manager's form: the chain begins with the signer's certificate, the root is apart.
        if !entries.contains_key(CA_CERT) && entries.contains_key("tls.crt") {
            let chain = need("tls.crt")?;
            let (key, roots) = (Zeroizing::new(need("tls.key")?), need("ca.crt")?);
            let cert = chain.split_inclusive(END).next().unwrap_or_default().to_owned();
            return Ok(Self { key, cert, chain, roots });
        }
        Ok(Self {
            key: Zeroizing::new(need(CA_KEY)?),
            cert: need(CA_CERT)?,
            chain: text(CERT_CHAIN)?.unwrap_or_default(),
            roots: text(ROOT_CERT)?.unwrap_or_default(),
        })
    }

    /// As the entries of a Secret, under Istio's names.
    pub fn entries(&self) -> BTreeMap<String, Vec<u8>> {
        let entry = |name: &str, text: &str| (name.to_owned(), text.as_bytes().to_vec());
        let mut all = BTreeMap::from([entry(CA_CERT, &self.cert), entry(CA_KEY, &self.key)]);
        all.extend([entry(CERT_CHAIN, &self.chain), entry(ROOT_CERT, &self.roots)]);
        all
    }

    /// A new self-signed root, valid for `lifetime`.
    pub fn self_signed(
        trust_domain: &str,
        lifetime: time::Duration,
        now: OffsetDateTime,
    ) -> Result<Self, rcgen::Error> {
        let key = Key(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)?);
        let pem = Zeroizing::new(key.0.serialize_pem());
        Self::self_signed_with(&pem, trust_domain, lifetime, now)
    }

    /// The same with a key that is there already, in PEM.
    pub fn self_signed_with(
        key: &str,
        trust_domain: &str,
        lifetime: time::Duration,
        now: OffsetDateTime,
    ) -> Result<Self, rcgen::Error> {
        use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyUsagePurpose};
        let signing = Key::parse(key).map_err(|_| rcgen::Error::CouldNotParseKeyPair)?;
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, trust_domain);
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // The second so that the revocation lists that it signs count everywhere (RFC 5280, 4.2.1.3).
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.not_before = now - super::root::BACKDATE;
        params.not_after = now + lifetime;
        params.serial_number = Some(super::issuer::random_serial());
        let cert = params.self_signed(&signing)?.pem();
        Ok(Self { key: Zeroizing::new(key.to_owned()), roots: cert.clone(), cert, chain: String::new() })
    }

    /// Checks everything and makes the signer.
    pub fn signer(&self, now: OffsetDateTime) -> Result<Signer, MaterialError> {
        let key = Key::parse(&self.key).map_err(|reason| MaterialError::Invalid { part: CA_KEY, reason })?;
        let cert = one(CA_CERT, &self.cert)?;
        let roots = certificates(ROOT_CERT, if self.roots.is_empty() { &self.cert } else { &self.roots })?;
        let roots = if roots.is_empty() { vec![cert.clone()] } else { roots };
        check_signer(&cert, &key, now)?;
        let path = path(&cert, &certificates(CERT_CHAIN, &self.chain)?, &roots, now)?;
        Ok(Signer { key, cert, path, roots })
    }
}

const END: &str = "-----END CERTIFICATE-----";

/// The private key. Wiped when it goes; shown as nothing but its algorithm.
pub struct Key(KeyPair);

impl Key {
    fn parse(pem: &str) -> Result<Self, String> {
        let der = PrivateKeyDer::from_pem_slice(pem.as_bytes()).map_err(|e| format!("not a PEM private key: {e}"))?;
        let der = Zeroizing::new(der);
        let key = KeyPair::try_from(&*der).map_err(|_| "not an RSA, ECDSA or Ed25519 private key".to_owned())?;
        Ok(Self(key))
    }
}

impl Drop for Key {
    fn drop(&mut self) {
        // The library's own form of it is wiped by the library.
        self.0.zeroize();
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Key(<secret>, {:?})", self.0.algorithm())
    }
}

impl PublicKeyData for Key {
    fn der_bytes(&self) -> &[u8] {
        self.0.der_bytes()
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        self.0.algorithm()
    }
}

impl SigningKey for Key {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.0.sign(message)
    }
}

/// A signing key with its certificate, the way from it to a root, and the roots.
#[derive(Debug)]
pub struct Signer {
    /// The private key.
    pub(super) key: Key,
    /// The signer's certificate.
    pub(super) cert: CertificateDer<'static>,
    /// What peers need beside the leaf: the signer's certificate and what is between it and its root; empty for a root.
    pub(super) path: Vec<CertificateDer<'static>>,
    /// Whom everybody shall trust.
    pub(super) roots: Vec<CertificateDer<'static>>,
}

impl Signer {
    /// What names it.
    pub fn id(&self) -> Fingerprint {
        Fingerprint::of(&self.cert)
    }

    /// End of its own certificate's validity; no leaf outlives it.
    pub fn not_after(&self) -> OffsetDateTime {
        self.path.iter().chain([&self.cert]).map(not_after).min().unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// End of the validity of the root that lasts longest.
    pub fn root_not_after(&self) -> OffsetDateTime {
        self.roots.iter().map(not_after).max().unwrap_or(OffsetDateTime::UNIX_EPOCH)
    }

    /// PEM of all roots.
    pub fn bundle(&self) -> String {
        self.roots.iter().map(|c| pem_of(c)).collect()
    }
}

fn not_after(cert: &CertificateDer<'static>) -> OffsetDateTime {
    match x509_parser::parse_x509_certificate(cert) {
        Ok((_, parsed)) => parsed.validity().not_after.to_datetime(),
        Err(_) => OffsetDateTime::UNIX_EPOCH,
    }
}

fn invalid(part: &'static str, reason: impl Into<String>) -> MaterialError {
    MaterialError::Invalid { part, reason: reason.into() }
}

fn certificates(part: &'static str, pem: &str) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let certs = CertificateDer::pem_slice_iter(pem.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| invalid(part, format!("not PEM certificates: {e}")))?;
    for cert in &certs {
        parse(part, cert)?;
    }
    Ok(certs)
}

fn one(part: &'static str, pem: &str) -> Result<CertificateDer<'static>, MaterialError> {
    certificates(part, pem)?.into_iter().next().ok_or_else(|| invalid(part, "holds no certificate"))
}

fn parse<'a>(part: &'static str, cert: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, MaterialError> {
    let parsed = x509_parser::parse_x509_certificate(cert);
    parsed.map(|(_, cert)| cert).map_err(|e| invalid(part, format!("not a certificate: {e}")))
}

fn check_signer(cert: &CertificateDer<'_>, key: &Key, now: OffsetDateTime) -> Result<(), MaterialError> {
    let parsed = parse(CA_CERT, cert)?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.der_bytes() {
        return Err(MaterialError::Mismatch);
    }
    if let Ok(x509_parser::public_key::PublicKey::RSA(rsa)) = parsed.public_key().parsed()
        && rsa.key_size() < MIN_RSA_BITS
    {
        return Err(invalid(CA_KEY, format!("an RSA key of {} bits is too short: use 2048 or more", rsa.key_size())));
    }
    may_sign(CA_CERT, &parsed, now)
}

fn may_sign(part: &'static str, cert: &X509Certificate<'_>, now: OffsetDateTime) -> Result<(), MaterialError> {
    if !cert.is_ca() {
        return Err(invalid(part, "is not a CA certificate (basicConstraints CA is not set)"));
    }
    if let Ok(Some(usage)) = cert.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err(invalid(part, "may not sign certificates (keyUsage lacks keyCertSign)"));
    }
    let not_after = cert.validity().not_after.to_datetime();
    if not_after <= now {
        return Err(invalid(part, format!("expired at {not_after}: replace it and its key")));
    }
    Ok(())
}

/// From the signer to a certificate that one of `roots` has signed. Empty if the signer is one of them.
fn path(
    signer: &CertificateDer<'static>,
    chain: &[CertificateDer<'static>],
    roots: &[CertificateDer<'static>],
    now: OffsetDateTime,
) -> Result<Vec<CertificateDer<'static>>, MaterialError> {
    let mut path: Vec<CertificateDer<'static>> = Vec::new();
    let mut last = signer.clone();
    while !roots.contains(&last) {
        path.push(last.clone());
        if path.len() > MAX_INTERMEDIATES {
            return Err(invalid(CERT_CHAIN, "does not lead to a root"));
        }
        let child = parse(CERT_CHAIN, &last)?;
        if find_issuer(&child, roots).is_some() {
            return Ok(path);
        }
        let Some(next) = find_issuer(&child, chain).filter(|next| !path.contains(next)) else {
            let name = child.issuer();
            return Err(invalid(CERT_CHAIN, format!("leads to no certificate of {ROOT_CERT}: {name:?} is not there")));
        };
        may_sign(CERT_CHAIN, &parse(CERT_CHAIN, next)?, now)?;
        last = next.clone();
    }
    Ok(path)
}

fn find_issuer<'a>(
    child: &X509Certificate<'_>,
    among: &'a [CertificateDer<'static>],
) -> Option<&'a CertificateDer<'static>> {
    among.iter().find(|cert| {
        x509_parser::parse_x509_certificate(cert).is_ok_and(|(_, parent)| {
            parent.subject() == child.issuer() && child.verify_signature(Some(parent.public_key())).is_ok()
        })
    })
}

#[cfg(test)]
mod tests;
