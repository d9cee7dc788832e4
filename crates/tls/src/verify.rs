//! Who the peer is, and whether it may be.

use crate::config::TlsOptions;
use crate::crl::Revocations;
use crate::provider::provider;
use aquifer_core::identity::Identity;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::verify_server_cert_signed_by_trust_anchor;
use rustls::crypto::{WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ParsedCertificate, VerifierBuilderError, WebPkiClientVerifier};
use rustls::{
    CertificateError, CommonState, DigitallySignedStruct, DistinguishedName, Error, OtherError, RootCertStore,
    SignatureScheme,
};
use std::sync::Arc;

#[cfg(test)]
mod tests;

/// Why a certificate with a good chain is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// None of its URI SANs is a SPIFFE identity.
    #[error("the peer's certificate holds no SPIFFE identity")]
    NoIdentity,
    /// The client is from elsewhere.
    #[error("the peer {peer} is not of trust domain {own}")]
    ForeignTrustDomain {
        /// Who it is.
        peer: Identity,
        /// Where we are.
        own: Arc<str>,
    },
    /// The server is somebody else than the one we meant to reach.
    #[error("the peer is {found:?}, expected one of {expected:?}")]
    UnexpectedIdentity {
        /// Its URI SANs.
        found: Vec<String>,
        /// Whom we meant.
        expected: Vec<Identity>,
    },
}

impl VerifyError {
    /// The error inside a certificate error, if it is ours.
    pub fn of(error: &CertificateError) -> Option<&Self> {
        match error {
            CertificateError::Other(other) => other.0.downcast_ref(),
            _ => None,
        }
    }
}

impl From<VerifyError> for Error {
    fn from(e: VerifyError) -> Self {
        Self::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(e))))
    }
}

/// The peer's identity on an established connection: the first SPIFFE URI SAN of its certificate. Its chain was
/// verified by the handshake.
pub fn peer_identity(connection: &CommonState) -> Option<Identity> {
    identity_of(connection.peer_certificates()?.first()?)
}

/// The first SPIFFE URI SAN of a certificate.
pub fn identity_of(cert: &CertificateDer<'_>) -> Option<Identity> {
    let cert = webpki::EndEntityCert::try_from(cert).ok()?;
    cert.valid_uri_names().find_map(|uri| uri.parse().ok())
}

/// The server's view: the client's chain leads to the roots, and its identity is of our own trust domain.
#[derive(Debug)]
pub(crate) struct ClientVerifier {
    chain: Arc<dyn ClientCertVerifier>,
    roots: Arc<RootCertStore>,
    revocations: Revocations,
    trust_domain: Arc<str>,
}

impl ClientVerifier {
    pub(crate) fn new(
        roots: Arc<RootCertStore>,
        trust_domain: Arc<str>,
        options: &TlsOptions,
    ) -> Result<Self, VerifierBuilderError> {
        let chain = WebPkiClientVerifier::builder_with_provider(roots.clone(), provider(options.policy))
            // Peers have one certificate and need no hint which one to show.
            .clear_root_hint_subjects()
            .build()?;
        Ok(Self { chain, roots, revocations: options.revocations.clone(), trust_domain })
    }
}

impl ClientCertVerifier for ClientVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.chain.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.chain.verify_client_cert(end_entity, intermediates, now)?;
        self.revocations.check((end_entity, intermediates), &self.roots)?;
        // Stricter than "any SAN of our domain": the one that becomes the identity must be of it.
        let peer = identity_of(end_entity).ok_or(VerifyError::NoIdentity)?;
        if peer.trust_domain != self.trust_domain {
            let own = self.trust_domain.clone();
            return Err(VerifyError::ForeignTrustDomain { peer, own }.into());
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls12_signature(message, cert, dss)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.chain.verify_tls13_signature(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}

/// The client's view: the server's chain leads to the roots, and one of its URI SANs is exactly one of the
/// identities that we expect. An empty set is met by nobody.
#[derive(Debug)]
pub(crate) struct ServerVerifier {
    roots: Arc<RootCertStore>,
    revocations: Revocations,
    algorithms: WebPkiSupportedAlgorithms,
    expected: Vec<Identity>,
}

impl ServerVerifier {
    pub(crate) fn new(roots: Arc<RootCertStore>, expected: Vec<Identity>, options: &TlsOptions) -> Self {
        let algorithms = provider(options.policy).signature_verification_algorithms;
        Self { roots, revocations: options.revocations.clone(), algorithms, expected }
    }
}

impl ServerCertVerifier for ServerVerifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let parsed = ParsedCertificate::try_from(end_entity)?;
        verify_server_cert_signed_by_trust_anchor(&parsed, &self.roots, intermediates, now, self.algorithms.all)?;
        self.revocations.check((end_entity, intermediates), &self.roots)?;
        let cert = webpki::EndEntityCert::try_from(end_entity)
            .map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))?;
        let met = |uri: &str| uri.parse::<Identity>().is_ok_and(|id| self.expected.contains(&id));
        if cert.valid_uri_names().any(met) {
            return Ok(ServerCertVerified::assertion());
        }
        Err(VerifyError::UnexpectedIdentity {
            found: cert.valid_uri_names().map(str::to_owned).collect(),
            expected: self.expected.clone(),
        }
        .into())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, cert, dss, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
