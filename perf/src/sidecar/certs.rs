//! A certificate authority for the sidecars' lives, and what it issues.

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PKCS_RSA_SHA256, RsaKeySize, SanType,
};

use super::error::Result;

/// The sidecars' keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Keys {
    /// Elliptic curve P-256, a certificate that the root signs with P-256: an option of Istio's, and what ztunnels
    /// have. The kinder choice: its signatures cost a tenth.
    #[default]
    P256,
    /// RSA of 2048 bits under a root of the same, which is Istio's own default.
    Rsa2048,
}

impl Keys {
    fn generate(self) -> Result<KeyPair> {
        Ok(match self {
            Self::P256 => KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            Self::Rsa2048 => KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048)?,
        })
    }
}

/// What a sidecar holds, all PEM.
#[derive(Debug)]
pub(super) struct Issued {
    pub(super) root: String,
    pub(super) chain: String,
    pub(super) key: String,
}

/// The root that all sidecars of a lab trust.
pub(super) struct Authority {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    pub(super) fn new(keys: Keys) -> Result<Self> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::OrganizationName, "sidecar baseline");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        Ok(Self { issuer: CertifiedIssuer::self_signed(params, keys.generate()?)? })
    }

    /// A certificate for both directions whose only name is the SPIFFE identity, as Istio's workloads have.
    pub(super) fn issue(&self, identity: &str, keys: Keys) -> Result<Issued> {
        let key = keys.generate()?;
        let mut params = CertificateParams::default();
        params.distinguished_name = rcgen::DistinguishedName::new();
        params.subject_alt_names = vec![SanType::URI(identity.try_into()?)];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let cert = params.signed_by(&key, &self.issuer)?;
        Ok(Issued { root: self.issuer.pem(), chain: cert.pem(), key: key.serialize_pem() })
    }
}
