//! The certificate of our own TLS listener: from the same CA, renewed at half of its life without
//! a restart. A handshake only clones an `Arc`.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;
use time::OffsetDateTime;

use super::issuer::{Issuer, ServingCertificate};

/// At least this often the wall clock is asked again: timers stop while a machine sleeps.
const LONGEST_NAP: Duration = Duration::from_secs(60);
/// After a failed renewal.
const RETRY: Duration = Duration::from_secs(10);

/// The current certificate of the listener, and how to make the next.
pub struct ServingCert {
    issuer: Issuer,
    names: Vec<String>,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(ArcSwap<Generation>);

#[derive(Debug)]
struct Generation {
    key: Arc<CertifiedKey>,
    renew_at: OffsetDateTime,
    not_after: OffsetDateTime,
}

impl ResolvesServerCert for Current {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(Arc::clone(&self.0.load().key))
    }
}

impl ServingCert {
    /// Makes the first certificate, valid for `names`.
    pub fn new(issuer: Issuer, names: Vec<String>, now: OffsetDateTime) -> anyhow::Result<Self> {
        let first = generation(&issuer, &names, now)?;
        Ok(Self { issuer, names, current: Arc::new(Current(ArcSwap::from_pointee(first))) })
    }

    /// TLS 1.3 only; clients are known by their tokens, not by certificates.
    pub fn server_config(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("TLS 1.3 is not available")?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&self.current) as Arc<dyn ResolvesServerCert>);
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(config))
    }

    /// When the certificate in use ends.
    pub fn not_after(&self) -> OffsetDateTime {
        self.current.0.load().not_after
    }

    /// Makes the next certificate if half of the current one's life is over. Returns how long
    /// nothing is to be done.
    pub fn renew_if_due(&self, now: OffsetDateTime) -> Duration {
        let due = self.current.0.load().renew_at;
        if let Ok(left) = Duration::try_from(due - now)
            && !left.is_zero()
        {
            return left.min(LONGEST_NAP);
        }
        match generation(&self.issuer, &self.names, now) {
            Ok(next) => {
                tracing::info!(not_after = %next.not_after, "serving certificate renewed");
                self.current.0.store(Arc::new(next));
                Duration::ZERO
            }
            Err(error) => {
                tracing::error!(error = %format_args!("{error:#}"), "serving certificate not renewed");
                RETRY
            }
        }
    }
}

fn generation(issuer: &Issuer, names: &[String], now: OffsetDateTime) -> anyhow::Result<Generation> {
    let ServingCertificate { chain, key, not_before: _, not_after } =
        issuer.serving(names, now).context("serving certificate")?;
    let key = aws_lc_rs::sign::any_supported_type(&PrivateKeyDer::Pkcs8(key)).context("serving certificate's key")?;
    let renew_at = now + (not_after - now) / 2;
    Ok(Generation { key: Arc::new(CertifiedKey::new(chain, key)), renew_at, not_after })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::issuer::Lifetimes;
    use crate::ca::root::Root;

    const HOUR: Duration = Duration::from_secs(3600);

    #[test]
    fn renewed_at_half_life_and_kept_when_that_fails() {
        let now = OffsetDateTime::now_utc();
        let dir = tempfile::tempdir().unwrap();
        let root = Root::open(dir.path(), "cluster.local", now).unwrap();
        let lifetimes = Lifetimes { default: HOUR * 24, max: HOUR * 24 };
        let issuer = Issuer::new(root, lifetimes).unwrap();
        let end_of_root = issuer.root_not_after();
        let cert = ServingCert::new(issuer, vec!["localhost".into()], now).unwrap();
        let first = cert.not_after();
        assert_eq!(cert.renew_if_due(now), LONGEST_NAP);
        assert_eq!(cert.renew_if_due(now + HOUR * 12 - Duration::from_secs(20)), Duration::from_secs(20));
        assert_eq!(cert.not_after(), first);

        let half = now + HOUR * 12;
        assert_eq!(cert.renew_if_due(half), Duration::ZERO);
        assert_eq!(cert.not_after(), half + HOUR * 24);
        assert_eq!(cert.renew_if_due(half), LONGEST_NAP);

        // With the root's end nothing can be renewed; what is there stays.
        assert_eq!(cert.renew_if_due(end_of_root), RETRY);
        assert_eq!(cert.not_after(), half + HOUR * 24);
    }
}
