//! From a SPIFFE identity to finished TLS configurations, kept fresh.
//!
//! ```text
//!  want/forget ──▶ schedule (pure) ──▶ cert_manager ──▶ csr ──▶ ca_client (IstioCertificateService)
//!                                          ▲                        │
//!                                          └──── bundle ◀───────────┘   leaf, intermediates, roots
//!                                                  │
//!                 get ◀── IdentityConfigs ◀── config + verify + provider (AWS-LC or BoringSSL)
//!                                                        ▲
//!                      CRL files ──▶ crl::Revocations ───┴──▶ is_revoked(PeerCertificate), for open connections
//! ```
//!
//! Invariants:
//! - TLS 1.3 only (1.2 if a setting asks for it), ALPN `h2`, no SNI, no resumption; both ends show a certificate, and a peer is who its first
//!   SPIFFE URI SAN says, after its chain was verified. DNS names and IP addresses never count.
//! - A handshake only clones an `Arc`: configurations are built once per certificate. What a CRL says is looked up.
//! - A certificate that is valid stays in use through any number of failed renewals.
//! - Private keys live in [`bundle::CertBundle`] and in rustls, are never printed and never leave the process.
//! - This crate opens one kind of connection, to the CA; it accepts none and knows nothing of HTTP/2 or HBONE.

pub mod bundle;
pub mod ca_client;
pub mod cert_manager;
pub mod config;
pub mod crl;
pub mod csr;
mod error;
mod meet;
pub mod peer;
pub mod provider;
pub mod schedule;
pub mod stream;
#[cfg(test)]
mod testing;
mod trust;
pub mod verify;

pub use bundle::{CertBundle, CertInfo};
pub use ca_client::{CaClient, CaConfig, CaError, IstioCaClient};
pub use cert_manager::{CertManager, CertState, CertStatus};
pub use config::{IdentityConfigs, TlsOptions};
pub use crl::{CrlFiles, Revocations};
pub use error::{CertError, explain, reason_of};
pub use meet::{Met, meet};
pub use peer::PeerCertificate;
pub use provider::TlsPolicy;
pub use stream::TlsStream;
pub use trust::TrustBundle;
pub use verify::{VerifyError, peer_identity};
