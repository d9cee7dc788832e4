//! Signing: a verified public key and an identity in, a certificate chain out. No IO, time passed in.

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::identity::Identity;
use rcgen::{
    CertificateParams, DistinguishedName, ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, SanType,
    SerialNumber, SubjectPublicKeyInfo,
};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use time::OffsetDateTime;

use super::csr::{self, CsrError};
use super::fingerprint::{Fingerprint, pem_of};
use super::material::{Key, Signer};
use super::root::BACKDATE;

/// How long workload certificates live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// For requests that name none.
    pub default: Duration,
    /// Requests above this are refused.
    pub max: Duration,
}

/// Why a certificate was not issued. The texts are those that Istio's clients know.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssueError {
    /// The request is at fault.
    #[error("CSR signing error ({0})")]
    Csr(#[from] CsrError),
    /// Longer than the maximum; not shortened in silence, since the client schedules by it.
    #[error("CSR signing error (requested TTL {} is greater than the max allowed TTL {})", GoDuration(*requested), GoDuration(*max))]
    Ttl {
        /// What was asked for.
        requested: Duration,
        /// What is allowed.
        max: Duration,
    },
    /// The signer's own certificate is not valid now.
    #[error("CSR signing error (the root certificate has expired)")]
    RootExpired,
    /// The signing itself failed.
    #[error("CSR signing error ({0})")]
    Signing(String),
}

/// A certificate for this process's own listener.
pub struct ServingCertificate {
    /// The chain to present.
    pub chain: Vec<CertificateDer<'static>>,
    /// Its private key.
    pub key: PrivatePkcs8KeyDer<'static>,
    /// When it begins to be valid.
    pub not_before: OffsetDateTime,
    /// When it ceases to be valid.
    pub not_after: OffsetDateTime,
}

/// The signer.
#[derive(Clone)]
pub struct Issuer(Arc<Inner>);

struct Inner {
    id: Fingerprint,
    signer: rcgen::Issuer<'static, Key>,
    /// What peers need between the leaf and a root.
    path: Vec<CertificateDer<'static>>,
    bundle: String,
    not_after: OffsetDateTime,
    root_not_after: OffsetDateTime,
    lifetimes: Lifetimes,
}

impl std::fmt::Debug for Issuer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Issuer").field(&self.0.id.short()).finish()
    }
}

impl Issuer {
    /// Signs as `signer`; clients are told to trust its roots.
    pub fn new(signer: Signer, lifetimes: Lifetimes) -> Result<Self, IssueError> {
        let bundle = signer.bundle();
        Self::with_bundle(signer, bundle, lifetimes)
    }

    /// Signs as `signer`; clients are told to trust `bundle`, which holds a root of its.
    pub fn with_bundle(signer: Signer, bundle: String, lifetimes: Lifetimes) -> Result<Self, IssueError> {
        let (id, not_after, root_not_after) = (signer.id(), signer.not_after(), signer.root_not_after());
        let Signer { key, cert, path, .. } = signer;
        let signer = rcgen::Issuer::from_ca_cert_der(&cert, key).map_err(signing)?;
        Ok(Self(Arc::new(Inner { id, signer, path, bundle, not_after, root_not_after, lifetimes })))
    }

    /// What names the signer.
    pub fn id(&self) -> &Fingerprint {
        &self.0.id
    }

    /// PEM of all roots that clients shall trust.
    pub fn root_bundle(&self) -> &str {
        &self.0.bundle
    }

    /// When the signer's certificate, or one between it and its root, expires.
    pub fn not_after(&self) -> OffsetDateTime {
        self.0.not_after
    }

    /// When the root expires.
    pub fn root_not_after(&self) -> OffsetDateTime {
        self.0.root_not_after
    }

    /// Signs `csr` for `identity`: `[leaf, intermediates one each, root bundle]`, the layout that
    /// clients rely on.
    pub fn issue(
        &self,
        csr: &str,
        identity: &Identity,
        ttl_seconds: i64,
        now: OffsetDateTime,
    ) -> Result<Vec<String>, IssueError> {
        let ttl = self.lifetime(ttl_seconds)?;
        let key = csr::verified_key(csr)?;
        let uri = identity.to_string().try_into().map_err(signing)?;
        // The recorded certificates have an empty subject, which makes the SAN critical (RFC 5280
        // section 4.2.1.6).
        let params = self.leaf(vec![SanType::URI(uri)], ttl, now)?;
        let leaf = params.signed_by(&key, &self.0.signer).map_err(signing)?;
        let path = self.0.path.iter().map(|cert| pem_of(cert));
        Ok([leaf.pem()].into_iter().chain(path).chain([self.0.bundle.clone()]).collect())
    }

    /// A certificate and a fresh key for this process's own listener, valid for `names`.
    pub fn serving(&self, names: &[String], now: OffsetDateTime) -> Result<ServingCertificate, IssueError> {
        let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(signing)?;
        let sans = names
            .iter()
            .map(|name| match name.parse() {
                Ok(ip) => Ok(SanType::IpAddress(ip)),
                Err(_) => name.as_str().try_into().map(SanType::DnsName).map_err(signing),
            })
            .collect::<Result<_, _>>()?;
        let params = self.leaf(sans, self.0.lifetimes.default, now)?;
        let spki =
            SubjectPublicKeyInfo::from_der(&rcgen::PublicKeyData::subject_public_key_info(&key)).map_err(signing)?;
        let cert = params.signed_by(&spki, &self.0.signer).map_err(signing)?;
        Ok(ServingCertificate {
            chain: [cert.der().clone()].into_iter().chain(self.0.path.iter().cloned()).collect(),
            key: PrivatePkcs8KeyDer::from(key.serialize_der()),
            not_before: params.not_before,
            not_after: params.not_after,
        })
    }

    fn lifetime(&self, seconds: i64) -> Result<Duration, IssueError> {
        let Lifetimes { default, max } = self.0.lifetimes;
        let requested = match u64::try_from(seconds) {
            Ok(0) | Err(_) => default,
            Ok(seconds) => Duration::from_secs(seconds),
        };
        if requested > max { Err(IssueError::Ttl { requested, max }) } else { Ok(requested) }
    }

    fn leaf(&self, sans: Vec<SanType>, ttl: Duration, now: OffsetDateTime) -> Result<CertificateParams, IssueError> {
        if self.0.not_after <= now {
            return Err(IssueError::RootExpired);
        }
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = sans;
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        params.serial_number = Some(random_serial());
        params.not_before = now - BACKDATE;
        params.not_after = (now + ttl).min(self.0.not_after);
        Ok(params)
    }
}

fn signing(error: rcgen::Error) -> IssueError {
    IssueError::Signing(error.to_string())
}

/// 128 random bits, positive: unique without a register (CA/Browser Forum asks for 64 at least).
pub(super) fn random_serial() -> SerialNumber {
    let mut bytes: [u8; 16] = rand::random();
    bytes[0] = (bytes[0] & 0x7f) | 0x40;
    SerialNumber::from_slice(&bytes)
}

/// A duration as Go prints it ("2160h0m0s"): clients and operators compare these texts.
struct GoDuration(Duration);

impl std::fmt::Display for GoDuration {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let seconds = self.0.as_secs();
        let (h, m, s) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
        match (h, m) {
            (0, 0) => write!(f, "{s}s"),
            (0, _) => write!(f, "{m}m{s}s"),
            _ => write!(f, "{h}h{m}m{s}s"),
        }
    }
}

#[cfg(test)]
mod tests;
