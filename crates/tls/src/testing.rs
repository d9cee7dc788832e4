//! A certificate authority and handshakes in memory, for this crate's tests.

use crate::bundle::CertBundle;
use crate::config::{IdentityConfigs, TlsOptions};
use aquifer_core::identity::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertificateSigningRequestParams,
    CertifiedIssuer, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair,
    KeyUsagePurpose, PublicKeyData, RevokedCertParams, SanType, SerialNumber,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::{ClientConfig, ServerConfig};
use std::io;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

pub(crate) fn id(text: &str) -> Identity {
    text.parse().unwrap()
}

pub(crate) fn server_id() -> Identity {
    id("spiffe://cluster.local/ns/shop/sa/payments")
}

pub(crate) fn client_id() -> Identity {
    id("spiffe://cluster.local/ns/shop/sa/orders")
}

pub(crate) struct TestCa {
    issuer: CertifiedIssuer<'static, KeyPair>,
    name: String,
    /// An intermediate's certificate and the root that signed it.
    root: Option<String>,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(Ia5String::try_from(text).unwrap())
}

impl TestCa {
    pub(crate) fn new() -> Self {
        Self::named("cluster.local")
    }

    pub(crate) fn named(name: &str) -> Self {
        let issuer = CertifiedIssuer::self_signed(ca_params(name), KeyPair::generate().unwrap()).unwrap();
        Self { issuer, name: name.to_owned(), root: None }
    }

    pub(crate) fn intermediate(&self) -> Self {
        self.intermediate_of(|_| ())
    }

    /// Its KeyUsage names certificates only.
    pub(crate) fn intermediate_without_crl_sign(&self) -> Self {
        self.intermediate_of(|params| params.key_usages = vec![KeyUsagePurpose::KeyCertSign])
    }

    pub(crate) fn expired_intermediate(&self) -> Self {
        self.intermediate_of(|params| params.not_after = OffsetDateTime::now_utc() - Duration::hours(1))
    }

    fn intermediate_of(&self, change: impl FnOnce(&mut CertificateParams)) -> Self {
        let mut params = ca_params("intermediate");
        change(&mut params);
        let issuer = CertifiedIssuer::signed_by(params, KeyPair::generate().unwrap(), &self.issuer).unwrap();
        Self { issuer, name: "intermediate".to_owned(), root: Some(self.pem()) }
    }

    pub(crate) fn pem(&self) -> String {
        self.issuer.as_ref().pem()
    }

    /// As the CA answers: leaf, intermediates, roots.
    pub(crate) fn chain(&self, leaf: String) -> Vec<String> {
        match &self.root {
            Some(root) => vec![leaf, self.pem(), root.clone()],
            None => vec![leaf, self.pem()],
        }
    }

    pub(crate) fn leaf(&self, key: &impl PublicKeyData, sans: Vec<SanType>, from: i64, to: i64) -> String {
        let now = OffsetDateTime::now_utc();
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans;
        params.not_before = now + Duration::seconds(from);
        params.not_after = now + Duration::seconds(to);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(key, &self.issuer).unwrap().pem()
    }

    /// Signs a request for `identity`, as istiod does: the request's own SANs don't count.
    pub(crate) fn sign(&self, csr: &str, identity: &str, ttl: i64) -> Vec<String> {
        let csr = CertificateSigningRequestParams::from_pem(csr).unwrap();
        self.chain(self.leaf(&csr.public_key, vec![uri(identity)], -120, ttl))
    }

    pub(crate) fn bundle(&self, identity: &Identity, ttl: i64) -> CertBundle {
        let key = KeyPair::generate().unwrap();
        let leaf = self.leaf(&key, vec![uri(&identity.to_string())], -120, ttl);
        let now = OffsetDateTime::now_utc() - Duration::days(1);
        CertBundle::from_chain(identity, private(&key), &self.chain(leaf), now).unwrap()
    }

    /// Signed by this one, to trust all of `roots`: in the last element of the answer, as istiod sends them.
    pub(crate) fn bundle_trusting(&self, identity: &Identity, ttl: i64, roots: &[&Self]) -> CertBundle {
        let key = KeyPair::generate().unwrap();
        let leaf = self.leaf(&key, vec![uri(&identity.to_string())], -120, ttl);
        let roots: String = roots.iter().map(|root| root.pem()).collect();
        CertBundle::from_chain(identity, private(&key), &[leaf, roots], OffsetDateTime::now_utc()).unwrap()
    }

    /// Valid for a day; expired if `ttl` is negative.
    pub(crate) fn configs(&self, identity: &Identity, ttl: i64) -> IdentityConfigs {
        self.configs_with(identity, ttl, &TlsOptions::default())
    }

    pub(crate) fn configs_with(&self, identity: &Identity, ttl: i64, options: &TlsOptions) -> IdentityConfigs {
        IdentityConfigs::new(identity.clone(), self.bundle(identity, ttl), 1, options).unwrap()
    }

    /// A list that names these certificates, whoever issued them.
    pub(crate) fn crl(&self, revoked: &[&str]) -> Vec<u8> {
        self.crl_until(revoked, Duration::days(1))
    }

    pub(crate) fn crl_until(&self, revoked_certs: &[&str], next_update: Duration) -> Vec<u8> {
        let now = OffsetDateTime::now_utc();
        let revoked = |pem: &&str| RevokedCertParams {
            serial_number: SerialNumber::from(crate::peer::id(&der(pem)).unwrap().serial),
            revocation_time: now,
            reason_code: None,
            invalidity_date: None,
        };
        let params = CertificateRevocationListParams {
            this_update: now - Duration::days(2),
            next_update: now + next_update,
            crl_number: SerialNumber::from(1),
            issuing_distribution_point: None,
            revoked_certs: revoked_certs.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        // rcgen minds the issuer's KeyUsage; whoever holds the key needn't.
        let signer = Issuer::new(ca_params(&self.name), self.issuer.key());
        params.signed_by(&signer).unwrap().der().to_vec()
    }
}

pub(crate) fn der(pem: &str) -> CertificateDer<'static> {
    CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
}

/// What a proxy connects to: an address.
pub(crate) fn peer_name() -> ServerName<'static> {
    ServerName::IpAddress(std::net::IpAddr::from([10, 0, 0, 1]).into())
}

pub(crate) fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

pub(crate) type Client = client::TlsStream<tokio::io::DuplexStream>;
pub(crate) type Server = server::TlsStream<tokio::io::DuplexStream>;

/// Shakes hands and passes a byte each way: in TLS 1.3 a client learns only then that it was refused.
pub(crate) async fn shake(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (io::Result<Client>, io::Result<Server>) {
    let (near, far) = duplex(1 << 16);
    let near = async {
        let mut tls = TlsConnector::from(client).connect(peer_name(), near).await?;
        tls.write_all(b"x").await?;
        tls.flush().await?;
        tls.read_u8().await?;
        Ok(tls)
    };
    let far = async {
        let mut tls = TlsAcceptor::from(server).accept(far).await?;
        tls.read_u8().await?;
        tls.write_all(b"y").await?;
        tls.flush().await?;
        Ok(tls)
    };
    tokio::join!(near, far)
}
