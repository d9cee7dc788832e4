//! The wiring: from settings to listening ports, and back down.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aquifer_proto::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION, ROOT_BUNDLE};
use aquifer_runtime::http::Server as HttpServer;
use aquifer_runtime::metrics::Registry;
use aquifer_runtime::readiness::Readiness;
use aquifer_runtime::signals::Signals;
use aquifer_runtime::{Cancel, Tracker, cancel, metrics as metrics_page, process};
use aquifer_xds::resource::ResourceSet;
use aquifer_xds::server::{Publisher, Server as XdsServer, ServerMetrics};
use tokio::net::TcpListener;
use tokio::sync::watch;

use crate::ca::{pods, start};
use crate::config::{Config, ListenConfig, MeshConfig};
use crate::debug::{self, istioctl::Istioctl};
use crate::gateway::{self, Waypoints};
use crate::index::watched;
use crate::leader;
use crate::metrics::Metrics;
use crate::publish::Publish;
use crate::serve::{self, Services};
use crate::status::StatusQueue;
use crate::xds::XdsAuthenticator;

/// How long open streams may take to end.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(5);
/// And pages that somebody still reads.
const PAGES_DEADLINE: Duration = Duration::from_secs(1);

/// A running control plane.
pub struct App {
    addresses: Addresses,
    tracker: Tracker,
    cancel: Cancel,
    pages: OpenPages,
}

/// The HTTP port outlives everything else: it says that the rest is ending.
struct OpenPages {
    readiness: Readiness,
    tracker: Tracker,
    cancel: Cancel,
}

/// Where it listens.
#[derive(Debug, Clone)]
pub struct Addresses {
    /// xDS without TLS.
    pub plaintext: SocketAddr,
    /// xDS and CA with TLS.
    pub secure: SocketAddr,
    /// Metrics.
    pub monitoring: SocketAddr,
    /// Readiness and debug pages.
    pub http: SocketAddr,
}

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Config) -> anyhow::Result<()> {
    let mut signals = Signals::new().context("cannot catch signals")?;
    let app = App::start(config).await?;
    let signal = signals.next().await.context("cannot catch signals")?;
    tracing::info!(signal, "shutting down");
    app.shutdown().await;
    Ok(())
}

struct Listeners {
    plaintext: TcpListener,
    secure: TcpListener,
    monitoring: TcpListener,
    http: TcpListener,
}

impl Listeners {
    async fn bind(config: &ListenConfig) -> anyhow::Result<Self> {
        Ok(Self {
            plaintext: serve::bind("GRPC_ADDR", config.plaintext).await?,
            secure: serve::bind("SECURE_GRPC_ADDR", config.secure).await?,
            monitoring: serve::bind("MONITORING_ADDR", config.monitoring).await?,
            http: serve::bind("HTTP_ADDR", config.http).await?,
        })
    }

    fn addresses(&self) -> std::io::Result<Addresses> {
        Ok(Addresses {
            plaintext: self.plaintext.local_addr()?,
            secure: self.secure.local_addr()?,
            monitoring: self.monitoring.local_addr()?,
            http: self.http.local_addr()?,
        })
    }
}

impl App {
    /// Binds, adopts the root, and starts everything. Clients are served after the first full read
    /// of the manifests.
    pub async fn start(config: Config) -> anyhow::Result<Self> {
        let (tracker, cancel) = (Tracker::new(), Cancel::new());
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        let xds_metrics = ServerMetrics::register(&mut registry);
        process::register(&mut registry);
        tracker.register(&mut registry);

        // Whatever can fail does so here, before anything runs.
        let listeners = Listeners::bind(&config.listen).await?;
        let addresses = listeners.addresses().context("cannot tell the listening addresses")?;
        let source = config.source.open().await.context(config.source.variable())?;
        source.register(&mut registry);
        let watch = source
            .watch_selected(watched(&config.mesh.root_namespace, &config.mesh.revision.config_map()))
            .context(config.source.variable())?;
        let (pod_writer, pods) = pods::table();
        let ca = start::open(&config, &source, pods, metrics.ca).await?;
        let tls = ca.serving.server_config()?;

        let publisher = Publisher::new(ResourceSet::of_types([ADDRESS, AUTHORIZATION, ROOT_BUNDLE]));
        let leader = leader::follow(&source, &config.mesh, &tracker, &cancel);
        let status = StatusQueue::new(&source, &config.mesh.revision);
        let readiness = Readiness::new();
        let unready = readiness.register("objects");

        let monitoring = HttpServer::on("monitoring", listeners.monitoring);
        metrics_page::serve(monitoring, Arc::new(registry), &tracker, cancel.clone());

        status.start(&source, leader.clone(), &tracker, &cancel);
        let (tell, told) = watch::channel(None);
        let (settings, revision) = (gateway_settings(&config.mesh), config.mesh.revision.clone());
        gateway::start(
            &source,
            Waypoints { settings, told, revision },
            status.clone(),
            leader.clone(),
            &tracker,
            &cancel,
        );
        let authenticate = Arc::new(XdsAuthenticator(Arc::clone(&ca.authenticators)));
        let xds = XdsServer::new(publisher.clone(), authenticate.clone(), xds_metrics, tracker.clone(), cancel.clone());
        let (configs, questions) = debug::configs();
        let pages = debug::Pages {
            publisher: publisher.clone(),
            clients: xds.clients(),
            authenticate: Some(authenticate),
            configs: Some(configs),
            expiries: ca.service.expiries(),
        };
        let (pod, revision) = (&config.mesh.pod_name, config.mesh.revision.name());
        let inspect = Arc::new(Istioctl::new(pages.clone(), &config.mesh.root_namespace, pod, revision));
        let open = OpenPages { readiness: readiness.clone(), tracker: Tracker::new(), cancel: Cancel::new() };
        let http = HttpServer::on("http", listeners.http);
        pages.into_server(&readiness).serve(http, &open.tracker, open.cancel.clone());
        let (clients, trust_domains) = (xds.clients(), ca.trust_domains.clone());
        let certificates = IstioCertificateServiceServer::new(ca.service.clone());
        let services = Services { xds: xds.with_inspect(inspect).into_service(), ca: Some(certificates) };
        ca.run(publisher.clone(), clients, leader, &tracker, &cancel).await?;
        let (serve, when_synced) = (tracker.clone(), cancel.clone());
        let synced = move || {
            let discovery_only = Services { ca: None, ..services.clone() };
            serve::grpc("xds plaintext", listeners.plaintext, None, discovery_only, &serve, &when_synced);
            serve::grpc("xds and ca", listeners.secure, Some(tls), services, &serve, &when_synced);
            drop(unready);
        };
        let publish = Publish::new(&config.mesh, trust_domains, pod_writer, publisher, status, metrics.push);
        let publish = publish.with_questions(questions).telling(tell);
        let until = cancel.clone();
        tracker.spawn("publish", async move { publish.run(watch, synced, &until).await });
        tracing::info!(?addresses, version = env!("CARGO_PKG_VERSION"), "istiod-lite started");
        Ok(Self { addresses, tracker, cancel, pages: open })
    }

    /// Where it listens.
    pub fn addresses(&self) -> &Addresses {
        &self.addresses
    }

    /// Ends streams and listeners in good order, or at the deadline. From its beginning on it is not ready, so that
    /// proxies that come back find another.
    pub async fn shutdown(self) {
        let _unready = self.pages.readiness.register("draining");
        let ended = cancel::shutdown(&self.cancel, &self.tracker, SHUTDOWN_DEADLINE).await;
        cancel::shutdown(&self.pages.cancel, &self.pages.tracker, PAGES_DEADLINE).await;
        tracing::info!(?ended, "istiod-lite stopped");
    }
}

fn gateway_settings(mesh: &MeshConfig) -> gateway::Settings {
    gateway::Settings {
        waypoint_image: mesh.waypoint_image.clone(),
        revision: mesh.revision.name().to_owned(),
        root_namespace: mesh.root_namespace.clone(),
        cluster_domain: mesh.cluster_domain.clone(),
        cluster_id: mesh.cluster_id.clone(),
    }
}

#[cfg(test)]
mod tests;
