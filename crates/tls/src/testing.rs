//! A certificate authority for this crate's tests.

use crate::bundle::CertBundle;
use crate::config::IdentityConfigs;
use aquifer_core::identity::Identity;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use time::{Duration, OffsetDateTime};

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
    /// An intermediate's certificate and the root that signed it.
    root: Option<String>,
}

fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
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
        Self { issuer, root: None }
    }

    pub(crate) fn intermediate(&self) -> Self {
        let key = KeyPair::generate().unwrap();
        let issuer = CertifiedIssuer::signed_by(ca_params("intermediate"), key, &self.issuer).unwrap();
        Self { issuer, root: Some(self.pem()) }
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

    /// Valid for a day; expired if `ttl` is negative.
    pub(crate) fn configs(&self, identity: &Identity, ttl: i64) -> IdentityConfigs {
        IdentityConfigs::new(identity.clone(), self.bundle(identity, ttl), 1).unwrap()
    }
}

pub(crate) fn private(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}
