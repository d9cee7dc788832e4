//! The process: what runs, in which order it starts, and how it ends.
//!
//! Start: workers → ports → xDS → (both types answered) → node agent. The agent is dialled last, since a pod that is
//! handed over before the mesh is known would be refused everything.
//! End: SIGTERM → no new pods → listeners close once their queues are empty → GOAWAY → connections end, until the
//! deadline → the rest is cut. xDS, certificates and admin go on to the last.

mod settings;

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use aquifer_core::store;
use aquifer_runtime::cancel::{Drained, shutdown};
use aquifer_runtime::http::Server;
use aquifer_runtime::metrics::Registry;
use aquifer_runtime::readiness::Readiness;
use aquifer_runtime::signals::Signals;
use aquifer_runtime::telemetry::LogLevel;
use aquifer_runtime::{Cancel, Tracker};
use aquifer_tls::{CertManager, CrlFiles, IstioCaClient, Revocations, TlsOptions};
use aquifer_xds::client::metrics::ClientMetrics;
use aquifer_xds::client::{demand, driver as xds_driver};
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc, watch};

use crate::admin;
use crate::certs::Identities;
use crate::config::{self, Config};
use crate::footprint;
use crate::inpod::driver::{Manager, PodView, Proxies};
use crate::inpod::handover::{self, Predecessor};
use crate::inpod::netns::Netns;
use crate::inpod::packet::PacketListener;
use crate::inpod::state::Pod;
use crate::inpod::zds::PodUid;
use crate::mesh::{Change, MeshSink};
use crate::metrics::{InpodMetrics, ProxyMetrics, register_build};
use crate::on_demand::OnDemand;
use crate::proxy::pod::Shared;
use crate::proxy::worker::Workers;

/// Runs the proxy until it is told to end.
pub async fn run(config: Config, level: LogLevel) -> anyhow::Result<()> {
    // First of all: a signal that comes while we start isn't lost.
    let mut signals = Signals::new()?;
    let quit = Arc::new(Notify::new());
    let config = Arc::new(config);
    let readiness = Readiness::new();
    let mut registry = Registry::default();

    // Two trees: what carries data ends first, what informs it ends last.
    let (data, control) = (Cancel::new(), Cancel::new());
    let (data_tasks, control_tasks) = (Tracker::new(), Tracker::new());
    data_tasks.register(&mut registry);
    control_tasks.register(registry.sub_registry_with_prefix("control"));

    let revocations = Revocations::new();
    if let Some(path) = &config.tls.crl {
        let mut files = CrlFiles::new(path, revocations.clone());
        // Before anybody shakes hands.
        files.poll();
        control_tasks.spawn("revocation-lists", files.run(control.clone()));
    }
    let options = TlsOptions { policy: config.tls.policy, revocations: revocations.clone() };
    let certs = match config.ca {
        Some(_) => CertManager::with_options(options),
        None => CertManager::without_authority(options),
    };
    let identities = Identities::new(&config.node.name, certs.clone());
    let (writer, state) = store::store();
    let (published, published_rx) = watch::channel(0);
    let (changes, changes_rx) = mpsc::unbounded_channel();
    let sink = MeshSink::new(writer, identities.clone(), published, changes).with_grace(config.proxy.unknown_policies);
    let (giving_up, cancel) = (sink.clone().give_up_policies(), control.clone());
    control_tasks.spawn("policy-grace", async move {
        tokio::select! {
            () = cancel.drained() => {}
            () = giving_up => {}
        }
    });
    control_tasks.spawn("footprint", footprint::give_back_text(control.clone()));
    control_tasks.spawn("heap-footprint", footprint::give_back_cache(published_rx.clone(), control.clone()));
    let (demander, demands) = demand::channel();

    let metrics = Arc::new(ProxyMetrics::default());
    metrics.register(&mut registry);
    let inpod_metrics = InpodMetrics::default();
    inpod_metrics.register(&mut registry);
    aquifer_runtime::process::register(&mut registry);
    register_build(&mut registry, config.node.istio_version.as_deref().unwrap_or("unknown"));
    let xds_metrics = ClientMetrics::register(&mut registry);

    // All that there is to wait for is named before the first of it is there: "ready" is said once.
    let state_block = readiness.register("state manager");
    let dns_block = config.dns.is_some().then(|| readiness.register("dns proxy"));
    let shared = Arc::new(Shared {
        config: config.proxy.clone(),
        state: state.clone(),
        published: published_rx,
        certs: certs.clone(),
        tracker: data_tasks.clone(),
        server: settings::server_config(&config.proxy),
        pool: settings::pool_config(&config.proxy),
        warned_unspoofed: AtomicBool::new(false),
        dns: settings::dns(&config, &mut registry),
        names: settings::names(&config)?,
        on_demand: config.xds.on_demand.then(|| Arc::new(OnDemand::new(demander, control_tasks.clone()))),
    });
    let workers = Workers::start(config.workers, shared, metrics, data.clone())?;
    // The data threads first, so that they have the numbers that their names say; control is the last.
    let runtimes = workers.runtimes().chain([tokio::runtime::Handle::current()]);
    aquifer_runtime::process::register_runtimes(&mut registry, runtimes);
    workers.spread().register(&mut registry);
    judge_again(changes_rx, workers.clone(), &control_tasks);
    cut_the_revoked(&revocations, workers.clone(), &control_tasks);
    let pods = PodView::default();
    let proxies = WorkerProxies {
        workers: workers.clone(),
        identities: identities.clone(),
        state: state.clone(),
        predecessor: Predecessor::find(&handover::path(&config.inpod_uds)),
        heirs: Mutex::new(Some(Heirs {
            path: handover::path(&config.inpod_uds),
            tasks: control_tasks.clone(),
            cancel: control.clone(),
        })),
    };
    let manager = Manager::new(proxies, inpod_metrics, pods.clone(), &readiness);
    // From here on each pod that is added gets its listeners before it is acknowledged.
    drop(dns_block);

    let pages = admin::Pages {
        state: state.clone(),
        pods: pods.clone(),
        workers: workers.clone(),
        certs: certs.clone(),
        config: config.clone(),
    };
    let admin = Server::bind_loopback("admin", config.ports.admin, config.ports.ipv6).await?;
    let stats = wildcard("stats", &config.ports, config.ports.stats).await?;
    let health = wildcard("readiness", &config.ports, config.ports.readiness).await?;
    admin::routes(pages, level, quit.clone()).serve(admin, &control_tasks, control.clone());
    aquifer_runtime::metrics::serve(stats, Arc::new(registry), &control_tasks, control.clone());
    health.serve(readiness.handler(), &control_tasks, control.clone());

    match settings::ca_config(&config) {
        Some(ca) => {
            let (certs, cancel) = (certs.clone(), control.clone());
            control_tasks.spawn("certificates", async move { certs.run(IstioCaClient::new(ca), cancel).await });
        }
        None => tracing::warn!("CA_ADDRESS is empty: there will be no certificates, and no HBONE"),
    }

    let synced = Arc::new(Notify::new());
    let (xds, cancel, on_synced) = (settings::xds_config(&config), control.clone(), synced.clone());
    control_tasks.spawn("xds", async move {
        let tell = move || {
            tracing::info!("the mesh is known");
            drop(state_block);
            on_synced.notify_one();
        };
        xds_driver::run_on_demand(xds, sink, xds_metrics, tell, demands, cancel).await;
    });

    let agent = Cancel::new();
    let (path, cancel, own) = (config.inpod_uds.clone(), agent.clone(), config.node.own.clone());
    control_tasks.spawn("node-agent", async move {
        tokio::select! {
            biased;
            () = cancel.drained() => return,
            () = synced.notified() => {}
        }
        // Nothing is served by half a mesh: neither pods nor ourselves.
        if let Some(own) = &own {
            serve_own_pod(&workers, &identities, own, &state).await;
        }
        manager.run(&path, &cancel).await;
    });

    let why = tokio::select! {
        signal = signals.next() => signal?,
        () = quit.notified() => "/quitquitquit",
    };
    tracing::info!(why, deadline = ?config.termination_deadline, "draining");
    // For the rest of the process.
    std::mem::forget(readiness.register("draining"));
    agent.drain();
    let drained = tokio::select! {
        drained = shutdown(&data, &data_tasks, config.termination_deadline) => Some(drained),
        // A second signal doesn't wait any longer.
        _ = signals.next() => None,
    };
    match drained {
        Some(Drained::InTime) => tracing::info!("all connections have ended"),
        Some(Drained::Forced(tasks)) => tracing::warn!(tasks, "the deadline passed, the rest was cut"),
        None => tracing::warn!("told twice: the rest is cut"),
    }
    data.force();
    shutdown(&control, &control_tasks, std::time::Duration::from_millis(500)).await;
    Ok(())
}

/// The workers as the node agent's manager sees them.
struct WorkerProxies {
    workers: Workers,
    identities: Identities,
    state: store::Reader,
    predecessor: Predecessor,
    heirs: Mutex<Option<Heirs>>,
}

/// Where those who come after us will find us.
struct Heirs {
    path: PathBuf,
    tasks: Tracker,
    cancel: Cancel,
}

impl Proxies for WorkerProxies {
    async fn start(&self, pod: &Pod<Netns>) -> Result<(), String> {
        let added = self.workers.add(&pod.uid, &pod.info, &pod.netns, &self.predecessor).await;
        added.map_err(|e| e.to_string())?;
        self.identities.add(&pod.uid, &pod.info, &self.state.load());
        Ok(())
    }

    async fn stop(&self, uid: &PodUid) {
        self.workers.remove(uid).await;
        self.identities.remove(uid, &self.state.load());
    }

    fn complete(&self) {
        // Not before: until we have all pods, whoever starts finds the process that has.
        let Some(Heirs { path, tasks, cancel }) = self.heirs.lock().take() else { return };
        match PacketListener::bind(&path) {
            Ok(listener) => {
                let answers = handover::serve(listener, self.workers.clone(), tasks.clone(), cancel);
                tasks.spawn("hand-over", answers);
            }
            Err(error) => {
                tracing::warn!(path = %path.display(), %error, "the next proxy cannot take sockets over from this one");
            }
        }
    }
}

/// So that our own metrics can be scraped over mTLS. Nothing else depends on it.
async fn serve_own_pod(
    workers: &Workers,
    identities: &Identities,
    own: &crate::inpod::zds::WorkloadInfo,
    state: &store::Reader,
) {
    match workers.add_own(own).await {
        Ok(uid) => identities.add(&uid, own, &state.load()),
        Err(error) => tracing::warn!(%error, "no HBONE for our own pod"),
    }
}

/// Judges connections again after each publication; several that wait are one.
fn judge_again(mut changes: mpsc::UnboundedReceiver<Change>, workers: Workers, tasks: &Tracker) {
    tasks.spawn("judge-again", async move {
        while let Some(mut change) = changes.recv().await {
            while let Ok(next) = changes.try_recv() {
                change.policies |= next.policies;
            }
            let cut = workers.mesh_changed(change.policies).await;
            if cut > 0 {
                tracing::info!(connections = cut, "cut by a change of policy");
            }
        }
    });
}

/// Asks about the peers of all open connections whenever the revocation lists change.
fn cut_the_revoked(revocations: &Revocations, workers: Workers, tasks: &Tracker) {
    let mut changes = revocations.subscribe();
    tasks.spawn("cut-the-revoked", async move {
        while changes.changed().await.is_ok() {
            let cut = workers.revocations_changed().await;
            if cut > 0 {
                tracing::info!(connections = cut, "cut: their peers' certificates are revoked");
            }
        }
    });
}

async fn wildcard(name: &'static str, ports: &config::Ports, port: u16) -> io::Result<Server> {
    let address = ports.wildcard(port);
    match Server::bind(name, address).await {
        // A kernel without IPv6.
        Err(_) if address.ip() == Ipv6Addr::UNSPECIFIED && !has_ipv6() => {
            Server::bind(name, SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))).await
        }
        bound => bound,
    }
}

fn has_ipv6() -> bool {
    socket2::Socket::new(socket2::Domain::IPV6, socket2::Type::STREAM, None).is_ok()
}
