//! The authority's parts, put together from the settings.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aquifer_objects::Source;
use aquifer_runtime::{Cancel, Tracker};
use aquifer_xds::server::{Clients, Publisher};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::authn::{Authenticator, Authenticators};
use super::jwt::JwtAuthenticator;
use super::keeper::{Opened, Parts, Settings};
use super::node_auth::NodeAuthorizer;
use super::pods::Pods;
use super::root_config_map;
use super::rotation::reports::Reports;
use super::service::CertificateService;
use super::serving::ServingCert;
use super::store::{FolderStore, SecretStore, Store};
use super::token_review::{ApiServer, TokenReviewer};
use super::trust_domain::TrustDomains;
use crate::config::Config;
use crate::metrics::CaMetrics;

/// An API server that is away at our start is waited for this long. Then the kubelet may start us anew.
const PATIENCE: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

/// The authority, ready to serve.
pub struct Ca {
    /// Who calls, for discovery as well.
    pub authenticators: Arc<Authenticators>,
    /// The one call.
    pub service: CertificateService,
    /// The domain of what is issued; whoever reads the MeshConfig sets it.
    pub trust_domains: TrustDomains,
    /// Our own certificate.
    pub serving: ServingCert,
    opened: Opened,
    source: Source,
    pods: Pods,
}

/// Reads or makes the signer, and puts everything together.
pub async fn open(config: &Config, source: &Source, pods: Pods, metrics: CaMetrics) -> anyhow::Result<Ca> {
    let (ca, mesh) = (&config.ca, &config.mesh);
    let (store, reports) = match source {
        Source::Folder(_) => {
            let dir = ca.data_dir.clone().context("AQUIFER_DATA_DIR: must be set")?;
            (Store::Folder(FolderStore::new(dir.clone())), Reports::folder(&dir))
        }
        Source::Cluster(cluster) => {
            let namespace = mesh.root_namespace.clone();
            let store = SecretStore::new(cluster.client(), &namespace);
            (Store::Secrets(Box::new(store)), Reports::Cluster { source: source.clone(), namespace })
        }
    };
    let trust_domains = TrustDomains::from(mesh.trust_domain.as_str());
    let settings = Settings {
        replica: mesh.pod_name.clone(),
        root_namespace: mesh.root_namespace.clone(),
        trust_domains: trust_domains.clone(),
        node_accounts: ca.trusted_node_accounts.clone(),
        lifetimes: ca.lifetimes,
        min_overlap: i64::try_from(ca.min_overlap.as_secs()).unwrap_or(i64::MAX),
    };
    let parts = Parts { settings, store, reports, source: source.clone(), metrics: metrics.clone() };
    let context = match source {
        Source::Folder(_) => "AQUIFER_DATA_DIR",
        Source::Cluster(_) => "the mesh's root",
    };
    let opened = patiently(parts).await.context(context)?;
    let authority = opened.authority();
    let now = OffsetDateTime::now_utc();
    let serving = ServingCert::new(authority.clone(), ca.serving_names.clone(), now)?;
    let authenticators = Arc::new(authenticators(config, source, pods.clone(), trust_domains.clone()));
    let nodes = NodeAuthorizer::new(ca.trusted_node_accounts.clone(), trust_domains.clone(), pods.clone());
    let (ledger, callers) = (opened.ledger(), Arc::clone(&authenticators));
    let service = CertificateService::new(authority, ledger, callers, nodes, trust_domains.clone(), metrics);
    Ok(Ca { authenticators, service, trust_domains, serving, opened, source: source.clone(), pods })
}

async fn patiently(parts: Parts) -> anyhow::Result<Opened> {
    let started = tokio::time::Instant::now();
    loop {
        match parts.clone().open().await {
            Ok(opened) => return Ok(opened),
            Err(error) if error.is_passing() && started.elapsed() < PATIENCE => {
                tracing::warn!(%error, "CA: the signer cannot be read yet");
                tokio::time::sleep(RETRY).await;
            }
            Err(error) => return Err(error.into()),
        }
    }
}

fn authenticators(config: &Config, source: &Source, pods: Pods, trust_domains: TrustDomains) -> Authenticators {
    let authn = &config.authn;
    let mut list = Vec::new();
    if let Some((issuer, jwks)) = &authn.jwt {
        let jwt = JwtAuthenticator::new(issuer.clone(), authn.audiences.clone(), jwks.clone());
        if let Err(error) = jwt.check_keys() {
            tracing::warn!(%error, "JWKS_FILE: its tokens are refused until it can be read");
        }
        list.push(Authenticator::Jwt(jwt));
    }
    if let Source::Cluster(cluster) = source {
        let reviewer = TokenReviewer::new(ApiServer(cluster.client()), authn.audiences.clone());
        list.push(Authenticator::TokenReview(reviewer));
    }
    Authenticators::new(list, pods, config.mesh.cluster_id.clone(), trust_domains)
}

impl Ca {
    /// Follows the signers, tells proxies whom to trust, renews our own certificate, and leads rotations where `leader`
    /// says so. Returns when other replicas know of this one: to serve before would be to serve unseen.
    pub async fn run(
        self,
        publisher: Publisher,
        clients: Clients,
        leader: watch::Receiver<bool>,
        tracker: &Tracker,
        cancel: &Cancel,
    ) -> anyhow::Result<()> {
        let authority = self.opened.authority();
        renew(self.serving, tracker, cancel);
        if let Source::Cluster(_) = self.source {
            root_config_map::start(&self.source, authority, leader.clone(), tracker, cancel)?;
        }
        let mut keeper = self.opened.keeper(publisher, clients, self.pods, leader);
        let started = tokio::time::Instant::now();
        while let Err(error) = keeper.announce().await {
            anyhow::ensure!(started.elapsed() < PATIENCE, "other replicas cannot be told of this one: {error}");
            tokio::time::sleep(RETRY).await;
        }
        let cancel = cancel.clone();
        tracker.spawn("signers", async move { keeper.run(&cancel).await });
        Ok(())
    }
}

fn renew(serving: ServingCert, tracker: &Tracker, cancel: &Cancel) {
    let cancel = cancel.clone();
    let mut changes = serving.changes();
    tracker.spawn("serving certificate", async move {
        loop {
            changes.mark_unchanged();
            let nap = serving.renew_if_due(OffsetDateTime::now_utc());
            tokio::select! {
                biased;
                () = cancel.drained() => return,
                _ = changes.changed() => {}
                () = tokio::time::sleep(nap) => {}
            }
        }
    });
}
