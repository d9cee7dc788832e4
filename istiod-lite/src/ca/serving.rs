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

use super::authority::Authority;
use super::client_cert::MeshClients;
use super::fingerprint::Fingerprint;
use super::issuer::{Issuer, ServingCertificate};

/// At least this often the wall clock is asked again: timers stop while a machine sleeps.
const LONGEST_NAP: Duration = Duration::from_secs(60);
/// After a failed renewal.
const RETRY: Duration = Duration::from_secs(10);

/// The current certificate of the listener, and how to make the next.
pub struct ServingCert {
    authority: Authority,
    names: Vec<String>,
    current: Arc<Current>,
}

#[derive(Debug)]
struct Current(ArcSwap<Generation>);

#[derive(Debug)]
struct Generation {
    signer: Fingerprint,
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
    pub fn new(authority: Authority, names: Vec<String>, now: OffsetDateTime) -> anyhow::Result<Self> {
        let first = generation(&authority.load().serving, &names, now)?;
        Ok(Self { authority, names, current: Arc::new(Current(ArcSwap::from_pointee(first))) })
    }

    /// Ticks when the signer may have changed.
    pub fn changes(&self) -> tokio::sync::watch::Receiver<u64> {
        self.authority.subscribe()
    }

    /// TLS 1.3 only; clients are known by their tokens, or by a certificate of the mesh.
    pub fn server_config(&self) -> anyhow::Result<Arc<ServerConfig>> {
        let mut config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .context("TLS 1.3 is not available")?
            .with_client_cert_verifier(Arc::new(MeshClients::new(self.authority.clone())))
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
        let issuer = self.authority.load().serving.clone();
        let current = self.current.0.load();
        if let Ok(left) = Duration::try_from(current.renew_at - now)
            && !left.is_zero()
            && current.signer == *issuer.id()
        {
            return left.min(LONGEST_NAP);
        }
        match generation(&issuer, &self.names, now) {
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
    Ok(Generation { signer: issuer.id().clone(), key: Arc::new(CertifiedKey::new(chain, key)), renew_at, not_after })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::authority::Active;
    use crate::ca::issuer::Lifetimes;
    use crate::ca::material::Material;
    use crate::ca::root::LIFETIME;

    const HOUR: Duration = Duration::from_secs(3600);

    fn active(now: OffsetDateTime) -> Active {
        let material = Material::self_signed("cluster.local", LIFETIME, now).unwrap();
        Active::plain(&material, Lifetimes { default: HOUR * 24, max: HOUR * 24 }, now).unwrap()
    }

    #[test]
    fn renewed_at_half_life_and_kept_when_that_fails() {
        let now = OffsetDateTime::now_utc();
        let authority = Authority::new(active(now));
        let end_of_root = authority.load().serving.root_not_after();
        let cert = ServingCert::new(authority, vec!["localhost".into()], now).unwrap();
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

    #[test]
    fn renewed_at_once_when_another_signer_serves() {
        let now = OffsetDateTime::now_utc();
        let authority = Authority::new(active(now));
        let cert = ServingCert::new(authority.clone(), vec!["localhost".into()], now).unwrap();
        let first = cert.current.0.load().signer.clone();
        authority.swap(active(now));
        assert!(cert.changes().borrow().eq(&1));
        assert_eq!(cert.renew_if_due(now), Duration::ZERO);
        assert_ne!(cert.current.0.load().signer, first);
        assert_eq!(cert.renew_if_due(now), LONGEST_NAP);
    }
}
