//! The agent's life: take stock, serve, and leave the pods as they are.
//!
//! ```text
//!   privileges → node rules → sockets (bound) → objects → every pod's rules → ZDS (served) → ready
//! ```

use crate::agent::cmdadd::CmdAddServer;
use crate::agent::effects::{Effects, Node, PodId};
use crate::agent::reconciler::{CmdAdd, Reconciler};
use crate::config::Config;
use crate::finder::OnNode;
use crate::keeper::{Keeper, Layout};
use crate::metrics::Metrics;
use crate::netns::{NetNs, missing_capabilities};
use crate::probes::Probes;
use crate::state::{Record, StateDir};
use crate::zds::packet::Listener;
use crate::zds::{Timing, Zds};
use anyhow::{Context, bail};
use aquifer_objects::{Event, Kind, Selection, Watch};
use aquifer_runtime::http::Server;
use aquifer_runtime::readiness::Readiness;
use aquifer_runtime::{Cancel, Tracker, metrics, process};
use parking_lot::Mutex;
use prometheus_client::registry::Registry;
use std::io;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// A pod that cannot be taken stock of (its namespace is stuck, say) must not keep the others from the proxy.
const STOCKTAKING: Duration = Duration::from_secs(10);
/// Who writes our annotations.
pub(crate) const MANAGER: &str = "istio-cni";

/// Starts everything; returns when all is being served. The end is `cancel`'s, and `tracker` tells when it is over.
pub async fn start(config: Config, tracker: &Tracker, cancel: &Cancel) -> anyhow::Result<()> {
    check_privileges()?;
    let metrics = Metrics::default();
    let mut registry = Registry::default();
    metrics.register(&mut registry);
    tracker.register(&mut registry);
    process::register(&mut registry);
    let readiness = Readiness::new();
    let block = readiness.register("pods");

    let state = StateDir::open(&config.state_folder)
        .with_context(|| format!("state folder {}", config.state_folder.display()))?;
    let records = state.load().context("read the state folder")?;
    let host = NetNs::current().context("open the node's network namespace")?;
    let probes = Arc::new(node_probes(&config, &records));
    let host_keeper = keep_node_rules(&host, &probes, &metrics, tracker).await?;

    let zds = Zds::new(Timing::default(), metrics.zds.clone());
    let proxies = Listener::bind(&config.ztunnel_socket).context("ZTUNNEL_UDS")?;
    let plugin = CmdAddServer::bind(&config.event_socket).context("CNI_EVENT_SOCKET")?;
    let source = config.source.open().await.context(config.source.variable())?;
    source.register(&mut registry);
    let watch = source.watch_selected(watched(&config.node)).context(config.source.variable())?;
    listen("readiness", config.ready).await?.serve(readiness.handler(), tracker, cancel.child());
    metrics::serve(listen("metrics", config.metrics).await?, Arc::new(registry), tracker, cancel.child());

    let node = Arc::new(Node {
        finder: Box::new(OnNode::new(&config)),
        state,
        zds: zds.clone(),
        probes,
        host,
        writer: source.writer(MANAGER),
        metrics: metrics.clone(),
        tracker: tracker.clone(),
        kept: Mutex::default(),
    });
    let (stocktaking, mut stock) = mpsc::channel(1);
    let reconciler = Reconciler::new(node.clone(), config.node, config.defaults, metrics, tracker.clone(), stocktaking);
    let (calls, received) = mpsc::unbounded_channel();
    let end = cancel.child();
    tracker.spawn("reconciler", async move {
        let _host_keeper = host_keeper;
        tokio::select! {
            biased;
            () = end.drained() => {}
            () = reconcile(reconciler, watch, received, node, records) => {}
        }
    });
    let server = CmdAddServer { calls, patience: config.patience };
    let (connections, end) = (tracker.clone(), cancel.child());
    tracker.spawn("plugin server", async move {
        if let Err(error) = server.serve(plugin, connections, end).await {
            tracing::error!(%error, "the plugin's socket died");
        }
    });

    // All that was enrolled is known when every holder of the other end has let go.
    if tokio::time::timeout(STOCKTAKING, stock.recv()).await.is_err() {
        tracing::warn!("not every pod could be taken stock of in time; serving the others");
    }
    let (connections, end) = (tracker.clone(), cancel.child());
    tracker.spawn("zds server", async move { zds.serve(proxies, connections, end).await });
    drop(block);
    tracing::info!("ready");
    Ok(())
}

/// The wildcard takes both families, where the machine has both.
async fn listen(name: &'static str, address: SocketAddr) -> io::Result<Server> {
    match address.ip() == Ipv6Addr::UNSPECIFIED {
        true => Server::bind_wildcard(name, address.port()).await,
        false => Server::bind(name, address).await,
    }
}

/// What an agent reads: the pods of its node, and the labels of namespaces.
pub(crate) fn watched(node: &str) -> Vec<Selection> {
    vec![Kind::Namespace.into(), Selection::from(Kind::Pod).on_node(node)]
}

/// One line that says what is missing and what to do about it.
pub fn check_privileges() -> anyhow::Result<()> {
    let status = std::fs::read_to_string("/proc/self/status").context("read /proc/self/status")?;
    let missing = missing_capabilities(&status);
    if missing.is_empty() {
        return Ok(());
    }
    let short: Vec<&str> = missing.iter().map(|name| name.trim_start_matches("CAP_")).collect();
    bail!(
        "missing privilege {}: run as root, or add {} to the container's securityContext.capabilities.add",
        missing.join(", "),
        short.join(", ")
    )
}

fn node_probes(config: &Config, records: &[Record]) -> Probes {
    let enrolled = records.iter().map(|record| (record.uid.clone(), record.ips.clone()));
    Probes::new(config.defaults.probe_addresses, nix::unistd::geteuid().as_raw(), enrolled)
}

async fn keep_node_rules(
    host: &NetNs,
    probes: &Arc<Probes>,
    metrics: &Metrics,
    tracker: &Tracker,
) -> anyhow::Result<Keeper> {
    let laid = probes.clone();
    host.enter(move || laid.lay()).await?.context("lay the node's rules")?;
    let layout: Arc<dyn Layout> = probes.clone();
    let keeper = Keeper::start("node".into(), host.clone(), layout, metrics.repairs.clone(), tracker);
    keeper.await.context("watch the node's rules")
}

async fn reconcile(
    mut reconciler: Reconciler<Node>,
    mut watch: Watch,
    mut calls: mpsc::UnboundedReceiver<CmdAdd>,
    node: Arc<Node>,
    records: Vec<Record>,
) {
    let mut records = Some(records);
    loop {
        tokio::select! {
            event = watch.next() => match event {
                Some(event) => {
                    let synced = event == Event::Synced;
                    if synced && let Some(records) = records.take() {
                        forget_departed(&reconciler.uids(), records, &node).await;
                    }
                    reconciler.event(event);
                }
                None => {
                    tracing::error!("the watch of objects ended; pods stay as they are");
                    return;
                }
            },
            Some(call) = calls.recv() => reconciler.created(call),
        }
    }
}

/// Pods that went while no agent ran.
async fn forget_departed(present: &[String], records: Vec<Record>, node: &Node) {
    for record in records.into_iter().filter(|record| !present.contains(&record.uid)) {
        let pod =
            PodId { uid: record.uid, namespace: record.namespace, name: record.name, service_account: String::new() };
        if let Err(error) = node.forget(&pod).await {
            tracing::warn!(pod = %pod.name, %error, "could not forget a pod that is gone");
        }
    }
}
