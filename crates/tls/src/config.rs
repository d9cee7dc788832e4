//! Finished TLS configurations of one certificate.

use crate::bundle::{CertBundle, CertInfo};
use crate::crl::Revocations;
use crate::peer::PeerCertificate;
use crate::provider::{TlsPolicy, provider};
use crate::verify::{ClientVerifier, ServerVerifier};
use aquifer_core::identity::Identity;
use parking_lot::Mutex;
use rustls::client::Resumption;
use rustls::pki_types::CertificateDer;
use rustls::server::NoServerSessionStorage;
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, CommonState, RootCertStore, ServerConfig};
use std::collections::HashMap;
use std::sync::Arc;
use time::OffsetDateTime;

/// Expected sets whose client configuration is kept. A pod talks to fewer services than this, as a rule.
const CACHED_CLIENTS: usize = 256;

/// What all configurations of a process have in common.
#[derive(Clone, Debug, Default)]
pub struct TlsOptions {
    /// Versions and key exchanges.
    pub policy: TlsPolicy,
    /// Whom not to trust in spite of a good chain.
    pub revocations: Revocations,
}

/// Both ends' configurations for one identity's current certificate. The next certificate makes another.
pub struct IdentityConfigs {
    /// For what is accepted on port 15008 in the identity's pods.
    pub server: Arc<ServerConfig>,
    /// Counts the certificates that the manager has published.
    pub generation: u64,
    identity: Identity,
    bundle: CertBundle,
    options: TlsOptions,
    clients: Mutex<ClientCache>,
}

#[derive(Default)]
struct ClientCache {
    by_expected: HashMap<Vec<Identity>, (Arc<ClientConfig>, u64)>,
    uses: u64,
}

/// No verifier can be made of the roots.
#[derive(Debug, thiserror::Error)]
#[error("cannot use the CA's certificates: {0}")]
pub struct ConfigError(String);

impl IdentityConfigs {
    /// Builds the configurations of a certificate.
    pub fn new(
        identity: Identity,
        bundle: CertBundle,
        generation: u64,
        options: &TlsOptions,
    ) -> Result<Self, ConfigError> {
        let verifier = ClientVerifier::new(bundle.roots.clone(), identity.trust_domain.clone(), options)
            .map_err(|e| ConfigError(e.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(provider(options.policy))
            .with_protocol_versions(options.policy.versions())
            .map_err(|e| ConfigError(e.to_string()))?
            .with_client_cert_verifier(Arc::new(verifier))
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(bundle.key.clone())));
        server.alpn_protocols = vec![b"h2".to_vec()];
        // Every connection shows its certificate anew: a resumed one would outlive a revoked or expired one.
        server.session_storage = Arc::new(NoServerSessionStorage {});
        server.send_tls13_tickets = 0;
        // For our own record layer, which see (`stream`).
        server.enable_secret_extraction = true;
        let (server, options) = (Arc::new(server), options.clone());
        Ok(Self { server, generation, identity, bundle, options, clients: Mutex::default() })
    }

    /// For connecting to a server that must be one of `expected`.
    pub fn client_config(&self, expected: &[Identity]) -> Arc<ClientConfig> {
        let mut clients = self.clients.lock();
        clients.uses += 1;
        let now = clients.uses;
        if let Some((config, used)) = clients.by_expected.get_mut(expected) {
            *used = now;
            return config.clone();
        }
        if clients.by_expected.len() >= CACHED_CLIENTS {
            let oldest = clients.by_expected.iter().min_by_key(|(_, (_, used))| *used).map(|(k, _)| k.clone());
            oldest.map(|key| clients.by_expected.remove(&key));
        }
        let config = Arc::new(self.build_client(expected));
        clients.by_expected.insert(expected.to_vec(), (config.clone(), now));
        config
    }

    fn build_client(&self, expected: &[Identity]) -> ClientConfig {
        let policy = self.options.policy;
        let verifier = ServerVerifier::new(self.bundle.roots.clone(), expected.to_vec(), &self.options);
        let mut client = ClientConfig::builder_with_provider(provider(policy))
            .with_protocol_versions(policy.versions())
            .expect("new() made a server configuration of the same provider and versions")
            .dangerous() // means: our own verifier
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_client_cert_resolver(Arc::new(SingleCertAndKey::from(self.bundle.key.clone())));
        client.alpn_protocols = vec![b"h2".to_vec()];
        client.enable_sni = false;
        client.resumption = Resumption::disabled();
        client.enable_secret_extraction = true;
        client
    }

    /// The certificate of the client at the other end of a connection that [`server`](Self::server) accepted.
    pub fn client_of(&self, connection: &CommonState) -> Option<Arc<PeerCertificate>> {
        PeerCertificate::of(connection, &self.bundle.roots)
    }

    /// The certificate of the server that a [`client_config`](Self::client_config) reached.
    pub fn server_of(&self, connection: &CommonState) -> Option<Arc<PeerCertificate>> {
        PeerCertificate::of(connection, &self.bundle.roots)
    }

    /// The answer that they were made of.
    pub(crate) fn bundle(&self) -> &CertBundle {
        &self.bundle
    }

    pub(crate) fn certificates(&self) -> &[CertificateDer<'static>] {
        &self.bundle.key.cert
    }

    pub(crate) fn root_store(&self) -> &Arc<RootCertStore> {
        &self.bundle.roots
    }

    pub(crate) fn options(&self) -> &TlsOptions {
        &self.options
    }

    /// Whose they are.
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// The leaf and its intermediates.
    pub fn chain(&self) -> &[CertInfo] {
        &self.bundle.chain_info
    }

    /// The roots that peers are verified against.
    pub fn roots(&self) -> &[CertInfo] {
        &self.bundle.root_info
    }

    /// The leaf.
    pub fn leaf(&self) -> &CertInfo {
        &self.bundle.chain_info[0]
    }

    /// Whether the leaf is still valid.
    pub fn is_valid(&self, now: OffsetDateTime) -> bool {
        now < self.bundle.not_after()
    }
}
