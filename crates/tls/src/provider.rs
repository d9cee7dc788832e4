//! What cryptography we speak, and whose.
//!
//! The library behind it is chosen when the program is built: feature `aws-lc` (the default) or `boring`. Everything
//! else of this crate is the same for both; what differs is in the two modules here.

use rustls::CipherSuite::{
    self, TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256,
    TLS13_AES_256_GCM_SHA384,
};
use rustls::crypto::CryptoProvider;
use rustls::version::{TLS12, TLS13};
use rustls::{NamedGroup, SupportedProtocolVersion};
use std::sync::{Arc, LazyLock};

#[cfg(not(feature = "boring"))]
mod aws_lc;
#[cfg(not(feature = "boring"))]
use aws_lc as library;
#[cfg(feature = "boring")]
mod boringssl;
#[cfg(feature = "boring")]
use boringssl as library;
#[cfg(not(any(feature = "aws-lc", feature = "boring")))]
compile_error!("aquifer-tls needs a crypto library: feature aws-lc or boring");
#[cfg(test)]
mod tests;

pub use library::NAME;
pub(crate) use library::{certificate_request, signing_key};

/// What the mesh's other proxies offer, in their order; no ChaCha20.
const SUITES: [CipherSuite; 2] = [TLS13_AES_256_GCM_SHA384, TLS13_AES_128_GCM_SHA256];
/// After those, for peers that stop at TLS 1.2.
const SUITES_TLS12: [CipherSuite; 4] = [
    TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
    TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
    TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
];
/// The hybrid first: it protects recorded traffic from a later quantum computer.
const GROUPS: [NamedGroup; 4] =
    [NamedGroup::X25519MLKEM768, NamedGroup::X25519, NamedGroup::secp256r1, NamedGroup::secp384r1];

/// Which versions and key exchanges are allowed. One for the whole process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum TlsPolicy {
    /// TLS 1.3; X25519MLKEM768 first, the classical groups for peers without it.
    #[default]
    Tls13,
    /// TLS 1.2 as well, for peers that have no other (TLS12_ENABLED).
    Tls12,
    /// TLS 1.3 with X25519MLKEM768 and nothing else (COMPLIANCE_POLICY=pqc).
    PostQuantum,
}

/// Settings that name no policy.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PolicyError {
    /// Not a policy that we know: to go on without it would be to promise what we don't keep.
    #[error("unknown compliance policy {0:?}: known is \"pqc\"; leave it empty for none")]
    Unknown(String),
    /// One asks for what the other forbids.
    #[error("\"pqc\" needs TLS 1.3, which has the only post-quantum key exchange: it cannot be had with TLS12_ENABLED")]
    Tls12WithPostQuantum,
}

impl TlsPolicy {
    /// From COMPLIANCE_POLICY and TLS12_ENABLED.
    pub fn from_settings(compliance: &str, tls12: bool) -> Result<Self, PolicyError> {
        match (compliance, tls12) {
            ("", false) => Ok(Self::Tls13),
            ("", true) => Ok(Self::Tls12),
            ("pqc", false) => Ok(Self::PostQuantum),
            ("pqc", true) => Err(PolicyError::Tls12WithPostQuantum),
            (other, _) => Err(PolicyError::Unknown(other.to_owned())),
        }
    }

    pub(crate) fn versions(self) -> &'static [&'static SupportedProtocolVersion] {
        static MODERN: [&SupportedProtocolVersion; 1] = [&TLS13];
        static BOTH: [&SupportedProtocolVersion; 2] = [&TLS13, &TLS12];
        match self {
            Self::Tls12 => &BOTH,
            Self::Tls13 | Self::PostQuantum => &MODERN,
        }
    }
}

/// The provider of every configuration under `policy`. Made once.
pub fn provider(policy: TlsPolicy) -> Arc<CryptoProvider> {
    static MODERN: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| build(&SUITES, &GROUPS));
    static BOTH: LazyLock<Arc<CryptoProvider>> =
        LazyLock::new(|| build(&[&SUITES[..], &SUITES_TLS12].concat(), &GROUPS));
    static POST_QUANTUM: LazyLock<Arc<CryptoProvider>> = LazyLock::new(|| build(&SUITES, &GROUPS[..1]));
    match policy {
        TlsPolicy::Tls13 => MODERN.clone(),
        TlsPolicy::Tls12 => BOTH.clone(),
        TlsPolicy::PostQuantum => POST_QUANTUM.clone(),
    }
}

/// Makes it the provider of those parts of the process that don't ask for one: the gRPC channels to the control
/// plane. Once, first thing; later calls change nothing.
pub fn install(policy: TlsPolicy) {
    let _ = (*provider(policy)).clone().install_default();
}

/// The library's own provider, with what we list and in our order.
fn build(suites: &[CipherSuite], groups: &[NamedGroup]) -> Arc<CryptoProvider> {
    let all = library::everything();
    let suite = |name: &CipherSuite| all.cipher_suites.iter().find(|s| s.suite() == *name).copied();
    let group = |name: &NamedGroup| all.kx_groups.iter().find(|g| g.name() == *name).copied();
    Arc::new(CryptoProvider {
        cipher_suites: suites.iter().filter_map(suite).collect(),
        kx_groups: groups.iter().filter_map(group).collect(),
        ..all
    })
}
