//! Certificates as an attacker would like to have them, and TLS clients that show them to anybody.

use std::fs;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aquifer_lab::Lab;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, Issuer,
    KeyPair, KeyUsagePurpose, SanType,
};
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme, SupportedProtocolVersion};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;

use crate::harness::connect_from;

/// A signer.
pub(crate) struct Ca {
    issuer: Issuer<'static, KeyPair>,
    /// What it shows besides a leaf, where it isn't a root.
    chain: Vec<CertificateDer<'static>>,
}

/// A certificate and its key.
pub(crate) struct Minted {
    cert: Certificate,
    /// What else it shows.
    above: Vec<CertificateDer<'static>>,
    key: KeyPair,
}

impl Minted {
    /// Its private key.
    fn key(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(self.key.serialize_der()))
    }

    /// Leaf and key as PEM.
    pub(crate) fn pem(&self) -> (String, String) {
        (self.cert.pem(), self.key.serialize_pem())
    }

    fn chain(&self) -> Vec<CertificateDer<'static>> {
        std::iter::once(self.cert.der()).chain(&self.above).cloned().collect()
    }

    /// Whoever holds a leaf may try to sign with it.
    pub(crate) fn into_ca(self) -> Result<Ca> {
        let chain = self.chain();
        Ok(Ca { issuer: Issuer::from_ca_cert_der(&chain[0], self.key)?, chain })
    }
}

impl Ca {
    /// The mesh's own, with the key that lies in istiod-lite's data.
    pub(crate) fn of(lab: &Lab) -> Result<Self> {
        let folder = lab.state_dir().join("istiod");
        let read = |name: &str| fs::read_to_string(folder.join(name)).with_context(|| format!("reading {name}"));
        let key = KeyPair::from_pem(&read("root-key.pem")?)?;
        Ok(Self { issuer: Issuer::from_ca_cert_pem(&read("root-cert.pem")?, key)?, chain: Vec::new() })
    }

    /// One that the mesh knows nothing of, under the same name.
    pub(crate) fn stranger() -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, "cluster.local");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        Ok(Self { issuer: Issuer::new(params, KeyPair::generate()?), chain: Vec::new() })
    }

    /// A certificate with these URIs, as a workload has them.
    pub(crate) fn workload(&self, uris: &[&str]) -> Result<Minted> {
        self.sign(leaf(uris)?)
    }

    /// A certificate as the parameters say.
    pub(crate) fn sign(&self, params: CertificateParams) -> Result<Minted> {
        let key = KeyPair::generate()?;
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Minted { cert, above: self.chain.clone(), key })
    }
}

/// What a workload's certificate holds.
pub(crate) fn leaf(uris: &[&str]) -> Result<CertificateParams> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = uris.iter().map(|uri| Ok(SanType::URI((*uri).try_into()?))).collect::<Result<_>>()?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.not_before = rcgen::date_time_ymd(2020, 1, 1);
    params.not_after = rcgen::date_time_ymd(2090, 1, 1);
    Ok(params)
}

/// A certificate that vouches for itself.
pub(crate) fn self_signed(uris: &[&str]) -> Result<Minted> {
    let key = KeyPair::generate()?;
    let cert = leaf(uris)?.self_signed(&key)?;
    Ok(Minted { cert, above: Vec::new(), key })
}

/// A client that shows this certificate, or none, and believes any server.
pub(crate) fn client(
    shows: Option<&Minted>,
    versions: &[&'static SupportedProtocolVersion],
) -> Result<Arc<ClientConfig>> {
    let provider = Arc::new(aws_lc_rs::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(versions)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Credulous(provider)));
    let mut config = match shows {
        Some(minted) => builder.with_client_auth_cert(minted.chain(), minted.key())?,
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.enable_sni = false;
    config.resumption = Resumption::disabled();
    Ok(Arc::new(config))
}

/// The refusal that the client sees, and from which port it came; an error if it was let in.
pub(crate) async fn refusal(netns: &Path, to: SocketAddr, config: &Arc<ClientConfig>) -> Result<(String, u16)> {
    let tcp = connect_from(netns, to)?;
    let port = tcp.local_addr()?.port();
    let handshake = async {
        let mut tls = TlsConnector::from(config.clone()).connect(to.ip().into(), tcp).await?;
        // In TLS 1.3 the client is through before the server has judged its certificate (RFC 8446, 4.4): the
        // verdict comes where the server's first bytes would.
        let mut first = [0];
        tls.read(&mut first).await
    };
    match tokio::time::timeout(Duration::from_secs(25), handshake).await.context("neither in nor out after 25 s")? {
        Ok(0) => bail!("closed without an alert"),
        Ok(_) => bail!("let in"),
        Err(error) => Ok((error.to_string(), port)),
    }
}

/// Here the server is under test, and it is where we connected to.
#[derive(Debug)]
struct Credulous(Arc<CryptoProvider>);

impl ServerCertVerifier for Credulous {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, cert, dss, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}
