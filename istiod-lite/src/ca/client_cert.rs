//! Callers that show a certificate of our own CA: the chain is checked in the handshake, against the roots of the moment.

use std::sync::Arc;

use aquifer_core::identity::Identity;
use parking_lot::Mutex;
use rustls::client::danger::HandshakeSignatureValid;
use rustls::crypto::aws_lc_rs;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{DigitallySignedStruct, DistinguishedName, Error, RootCertStore, SignatureScheme};
use rustls_pki_types::{CertificateDer, UnixTime};
use x509_parser::extensions::GeneralName;

use super::authority::{Active, Authority};
use super::trust_domain::TrustDomains;

/// Takes clients without a certificate, and those with one that leads to a root of the mesh.
#[derive(Debug)]
pub struct MeshClients {
    authority: Authority,
    made: Mutex<Option<Made>>,
    /// Of what does not depend on roots.
    algorithms: rustls::crypto::WebPkiSupportedAlgorithms,
}

/// A verifier and the state whose roots it has.
#[derive(Debug, Clone)]
struct Made {
    of: Arc<Active>,
    verifier: Arc<dyn ClientCertVerifier>,
}

impl MeshClients {
    /// Follows `authority`'s roots.
    pub fn new(authority: Authority) -> Self {
        let algorithms = aws_lc_rs::default_provider().signature_verification_algorithms;
        Self { authority, made: Mutex::default(), algorithms }
    }

    fn verifier(&self) -> Result<Arc<dyn ClientCertVerifier>, Error> {
        let active = self.authority.load();
        let mut made = self.made.lock();
        if let Some(made) = made.as_ref().filter(|made| Arc::ptr_eq(&made.of, &active)) {
            return Ok(Arc::clone(&made.verifier));
        }
        let mut roots = RootCertStore::empty();
        for root in &active.roots {
            roots.add(root.clone())?;
        }
        let provider = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
            .allow_unauthenticated()
            .build()
            .map_err(|e| Error::General(e.to_string()))?;
        *made = Some(Made { of: active, verifier: Arc::clone(&verifier) });
        Ok(verifier)
    }
}

impl ClientCertVerifier for MeshClients {
    fn offer_client_auth(&self) -> bool {
        true
    }

    fn client_auth_mandatory(&self) -> bool {
        false
    }

    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verifier()?.verify_client_cert(end_entity, intermediates, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

/// The one SPIFFE identity of `leaf`, if it is of one of `trust_domains`; else its URIs.
pub fn identity(leaf: &CertificateDer<'_>, trust_domains: &TrustDomains) -> Result<Identity, Vec<String>> {
    let uris = uris(leaf);
    match uris.as_slice() {
        [uri] => match uri.parse::<Identity>() {
            Ok(identity) if trust_domains.know(&identity.trust_domain) => Ok(identity),
            _ => Err(uris),
        },
        _ => Err(uris),
    }
}

fn uris(leaf: &CertificateDer<'_>) -> Vec<String> {
    let Ok((_, parsed)) = x509_parser::parse_x509_certificate(leaf) else { return Vec::new() };
    let Ok(Some(names)) = parsed.subject_alternative_name() else { return Vec::new() };
    let uri = |name: &GeneralName<'_>| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    };
    names.value.general_names.iter().filter_map(uri).collect()
}
