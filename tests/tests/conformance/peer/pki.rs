//! A certificate authority of the test's own, and TLS configurations that look instead of judging.

use std::sync::Arc;

use anyhow::{Context, Result};
use parking_lot::Mutex;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme};
use time::{Duration, OffsetDateTime};

/// A root.
#[derive(Debug)]
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    pub(crate) pem: String,
}

/// A chain with its key.
#[derive(Debug)]
pub(crate) struct Certified {
    pub(crate) chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
}

impl Clone for Certified {
    fn clone(&self) -> Self {
        Self { chain: self.chain.clone(), key: self.key.clone_key() }
    }
}

impl Ca {
    pub(crate) fn new() -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "a scripted control plane");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let certificate = params.self_signed(&key)?;
        let pem = certificate.pem();
        Ok(Self { issuer: Issuer::new(params, key), pem })
    }

    /// A certificate with these names.
    pub(crate) fn certify(&self, names: Vec<SanType>) -> Result<Certified> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::default();
        usual(&mut params, names, lifetime(3600));
        let certificate = params.signed_by(&key, &self.issuer)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
        Ok(Certified { chain: vec![certificate.der().clone()], key })
    }

    /// A workload's certificate.
    pub(crate) fn workload(&self, identity: &str) -> Result<Certified> {
        self.certify(vec![uri(identity)?])
    }

    /// Signs a request as `identity`; the leaf's PEM.
    pub(crate) fn sign(&self, csr: &str, identity: &str, seconds: i64) -> Result<String> {
        let mut csr = CertificateSigningRequestParams::from_pem(csr).context("the CSR")?;
        usual(&mut csr.params, vec![uri(identity)?], lifetime(seconds));
        Ok(csr.signed_by(&self.issuer)?.pem())
    }
}

fn usual(params: &mut CertificateParams, names: Vec<SanType>, (from, to): (OffsetDateTime, OffsetDateTime)) {
    params.subject_alt_names = names;
    params.not_before = from;
    params.not_after = to;
    params.is_ca = IsCa::NoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
}

fn lifetime(seconds: i64) -> (OffsetDateTime, OffsetDateTime) {
    let now = OffsetDateTime::now_utc();
    (now - Duration::seconds(2), now + Duration::seconds(seconds))
}

pub(crate) fn uri(text: &str) -> Result<SanType> {
    Ok(SanType::URI(Ia5String::try_from(text)?))
}

pub(crate) fn dns(text: &str) -> Result<SanType> {
    Ok(SanType::DnsName(Ia5String::try_from(text)?))
}

/// The URI names of a certificate.
pub(crate) fn uris(certificate: &CertificateDer<'_>) -> Result<Vec<String>> {
    use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};
    let (_, parsed) = X509Certificate::from_der(certificate)?;
    let names = parsed.subject_alternative_name()?.map(|ext| ext.value.general_names.clone()).unwrap_or_default();
    let uris = names.iter().filter_map(|name| match name {
        GeneralName::URI(uri) => Some((*uri).to_owned()),
        _ => None,
    });
    Ok(uris.collect())
}

/// Takes any certificate and remembers the last chain.
#[derive(Debug, Default)]
pub(crate) struct Looking {
    pub(crate) seen: Mutex<Vec<CertificateDer<'static>>>,
}

fn schemes() -> Vec<SignatureScheme> {
    rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
}

impl Looking {
    fn look(&self, leaf: &CertificateDer<'_>, rest: &[CertificateDer<'_>]) {
        let chain = std::iter::once(leaf).chain(rest).map(|der| der.clone().into_owned());
        *self.seen.lock() = chain.collect();
    }
}

impl ServerCertVerifier for Looking {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.look(leaf, rest);
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

impl ClientCertVerifier for Looking {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        rest: &[CertificateDer<'_>],
        _: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        self.look(leaf, rest);
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        schemes()
    }
}

/// What a scripted peer varies of its TLS.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    pub(crate) versions: Vec<&'static rustls::SupportedProtocolVersion>,
    pub(crate) suites: Option<Vec<rustls::CipherSuite>>,
    pub(crate) groups: Option<Vec<rustls::NamedGroup>>,
    pub(crate) alpn: Vec<Vec<u8>>,
}

impl Default for Tls {
    fn default() -> Self {
        Self { versions: vec![&rustls::version::TLS13], suites: None, groups: None, alpn: vec![b"h2".to_vec()] }
    }
}

impl Tls {
    fn provider(&self) -> Arc<rustls::crypto::CryptoProvider> {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        if let Some(suites) = &self.suites {
            provider.cipher_suites.retain(|suite| suites.contains(&suite.suite()));
        }
        if let Some(groups) = &self.groups {
            provider.kx_groups.retain(|group| groups.contains(&group.name()));
        }
        Arc::new(provider)
    }

    pub(crate) fn client(&self, own: Option<Certified>) -> Result<(ClientConfig, Arc<Looking>)> {
        let looking = Arc::new(Looking::default());
        let builder = ClientConfig::builder_with_provider(self.provider())
            .with_protocol_versions(&self.versions)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::clone(&looking) as Arc<_>);
        let mut config = match own {
            Some(own) => builder.with_client_auth_cert(own.chain, own.key)?,
            None => builder.with_no_client_auth(),
        };
        config.alpn_protocols.clone_from(&self.alpn);
        config.enable_sni = false;
        Ok((config, looking))
    }

    /// A server that asks for a client certificate, or one that does not.
    pub(crate) fn server(&self, own: Certified, ask: bool) -> Result<(ServerConfig, Arc<Looking>)> {
        let looking = Arc::new(Looking::default());
        let builder = ServerConfig::builder_with_provider(self.provider()).with_protocol_versions(&self.versions)?;
        let builder = match ask {
            true => builder.with_client_cert_verifier(Arc::clone(&looking) as Arc<_>),
            false => builder.with_no_client_auth(),
        };
        let mut config = builder.with_single_cert(own.chain, own.key)?;
        config.alpn_protocols.clone_from(&self.alpn);
        Ok((config, looking))
    }
}
