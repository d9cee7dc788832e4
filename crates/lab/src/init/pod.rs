//! One pod's life, one task: sandbox, agent, containers, and the way down.
//!
//! ```text
//!   sandbox ─▶ status.podIP ─▶ /cmdadd ─▶ init containers ─▶ containers + probes ─┐
//!   deleted: deletionTimestamp ─▶ endpoints withdrawn ─▶ preStop ─▶ stop signal ◀─┘
//!            ─▶ grace period ─▶ SIGKILL ─▶ sandbox gone ─▶ object gone
//! ```

mod status;
mod supervise;

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_objects::{Kind, ObjectKey};
use k8s_openapi::api::core::v1::Pod;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::spawn_blocking;
use tokio::time::Instant;

use self::status::ContainerState;
use super::cluster::Event;
use super::container::Facts;
use super::net::{self, PodLink};
use super::sandbox::{self, Mount, Namespaces, SandboxPlan};
use super::shared::Shared;
use super::{cni, hosts, procfs};
use crate::error::{During, Result};
use crate::options::Component;

/// Annotations that take IPv6 away, for tests.
const NO_IPV6_LOOPBACK: &str = "lab.aquifer.io/no-ipv6-loopback";
const NO_IPV6: &str = "lab.aquifer.io/no-ipv6";
/// The address that the pod asks for, as a StatefulSet's pod on some networks gets its old one again.
const IPV4: &str = "lab.aquifer.io/ipv4";

const DEFAULT_GRACE: u64 = 30;

/// Between the last container's end and the sandbox's: what is in flight still leaves, as while a real runtime works.
const LINGER: Duration = Duration::from_millis(250);

const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(5);

/// A pod as the rest of pid 1 sees it.
#[derive(Debug)]
pub(super) struct PodState {
    pub(super) namespace: String,
    pub(super) name: String,
    pub(super) uid: String,
    /// The name of its own folder, which may be older than its uid.
    pub(super) folder: String,
    pub(super) node: u8,
    /// Its number on the node; none with host network.
    pub(super) number: Option<u8>,
    pub(super) ips: Vec<IpAddr>,
    pub(super) deployment: Option<String>,
    pub(super) service_account: String,
    pub(super) pod: Arc<Pod>,
    pub(super) extra: Extra,
    pub(super) live: Mutex<Live>,
    /// Set once: when the pod is to go, and how long it may take.
    delete: watch::Sender<Option<Deletion>>,
    /// Whether its object says so too. Nobody may see it stop before.
    marked: watch::Sender<bool>,
    pub(super) orders: mpsc::UnboundedSender<Order>,
}

/// What a component's pod has beyond its spec.
#[derive(Debug, Clone, Default)]
pub(super) struct Extra {
    pub(super) component: Option<Component>,
    pub(super) mounts: Vec<Mount>,
    /// Part of the cluster itself: starts without the node agent's consent.
    pub(super) system: bool,
    /// Containers see the lab's own mounts: the agent must see the namespaces that are bound while it runs.
    pub(super) lab_mounts: bool,
    /// A file that must be there before a container starts, and where its copy is wanted.
    pub(super) copy: Option<(PathBuf, PathBuf)>,
}

/// What changes while the pod lives.
#[derive(Debug, Default)]
pub(super) struct Live {
    pub(super) namespaces: Option<Namespaces>,
    pub(super) containers: BTreeMap<String, ContainerState>,
    pub(super) ready: bool,
    pub(super) phase: &'static str,
    pub(super) message: String,
    pub(super) published: serde_json::Value,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Deletion {
    deadline: Instant,
}

/// What a component's process is told.
#[derive(Debug)]
pub(super) enum Order {
    Signal(i32),
    Start(Vec<(String, String)>),
}

/// What the cluster decided about a new pod.
#[derive(Debug)]
pub(super) struct Placement {
    pub(super) node: u8,
    pub(super) number: Option<u8>,
    pub(super) ips: Vec<IpAddr>,
    pub(super) deployment: Option<String>,
}

impl PodState {
    pub(super) fn key(&self) -> ObjectKey {
        ObjectKey::new(Kind::Pod, &self.namespace, &self.name)
    }

    pub(super) fn is_terminating(&self) -> bool {
        self.delete.borrow().is_some()
    }

    pub(super) fn annotated(&self, name: &str) -> bool {
        annotated(&self.pod, name)
    }

    /// Begins the pod's end, once; later calls may only shorten it.
    pub(super) fn delete(&self, grace_seconds: Option<u64>) {
        let own = self.pod.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds);
        let grace = grace_seconds.or(own.and_then(|own| u64::try_from(own).ok())).unwrap_or(DEFAULT_GRACE);
        let deadline = Instant::now() + Duration::from_secs(grace);
        self.delete.send_if_modified(|deletion| {
            let sooner = deletion.is_none_or(|deletion| deadline < deletion.deadline);
            if sooner {
                *deletion = Some(Deletion { deadline });
            }
            sooner
        });
    }

    /// Where its containers write to. A component keeps one file over all its pods.
    pub(super) fn log(&self, shared: &Shared) -> PathBuf {
        match &self.extra.component {
            Some(component) => shared.paths.log(&self.namespace, &component.to_string()),
            None => shared.paths.log(&self.namespace, &self.name),
        }
    }

    fn facts(&self, shared: &Shared) -> Facts {
        let node = shared.node(self.node);
        let text = |ips: &[IpAddr]| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(",");
        Facts {
            name: self.name.clone(),
            namespace: self.namespace.clone(),
            uid: self.uid.clone(),
            node: node.name.clone(),
            service_account: self.service_account.clone(),
            pod_ip: text(self.ips.get(..1).unwrap_or_default()),
            pod_ips: text(&self.ips),
            host_ip: text(node.ips.get(..1).unwrap_or_default()),
        }
    }
}

/// Whether a pod is annotated with something that is not `false`.
pub(super) fn annotated(pod: &Pod, name: &str) -> bool {
    let value = pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(name));
    value.is_some_and(|value| value != "false")
}

/// Whether the pod is to have no IPv6 address.
pub(super) fn without_ipv6(pod: &Pod) -> bool {
    annotated(pod, NO_IPV6)
}

/// The IPv4 address that the pod asks for.
pub(super) fn wanted_ipv4(pod: &Pod) -> Option<std::net::Ipv4Addr> {
    pod.metadata.annotations.as_ref()?.get(IPV4)?.parse().ok()
}

/// Starts a pod's life.
pub(super) fn start(
    shared: &Arc<Shared>,
    pod: Arc<Pod>,
    (uid, folder): (String, String),
    placement: Placement,
    extra: Extra,
) -> Arc<PodState> {
    let (orders, received) = mpsc::unbounded_channel();
    let spec = pod.spec.as_ref();
    let state = Arc::new(PodState {
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        uid,
        folder,
        node: placement.node,
        number: placement.number,
        ips: placement.ips,
        deployment: placement.deployment,
        service_account: spec
            .and_then(|spec| spec.service_account_name.clone())
            .unwrap_or_else(|| "default".to_owned()),
        pod,
        extra,
        live: Mutex::new(Live { phase: "Pending", ..Live::default() }),
        delete: watch::channel(None).0,
        marked: watch::channel(false).0,
        orders,
    });
    shared.pods.lock().insert((state.namespace.clone(), state.name.clone()), Arc::clone(&state));
    if let Some(component) = &state.extra.component {
        shared.components.lock().insert(component.clone(), Arc::clone(&state));
    }
    let life = Life { shared: Arc::clone(shared), state: Arc::clone(&state) };
    shared.tracker.spawn("pod", life.run(received));
    state
}

/// Returns when the pod is deleted.
async fn deleted(deletion: &mut watch::Receiver<Option<Deletion>>) {
    // An error would mean that the sender is gone: the pod with it.
    let _ = deletion.wait_for(Option::is_some).await;
}

/// The task's own view.
#[derive(Debug, Clone)]
struct Life {
    shared: Arc<Shared>,
    state: Arc<PodState>,
}

impl Life {
    async fn run(self, orders: mpsc::UnboundedReceiver<Order>) {
        let mut deletion = self.state.delete.subscribe();
        // Not cut short: a half-made sandbox could not be taken down again.
        let mut retry = FIRST_RETRY;
        while let Err(error) = self.make_sandbox().await {
            tracing::warn!(pod = %self.state.key(), %error, "no sandbox");
            self.take_down_sandbox().await;
            self.message(&error.to_string());
            if tokio::time::timeout(retry, deleted(&mut deletion)).await.is_ok() {
                break;
            }
            retry = (retry * 2).min(LONGEST_RETRY);
        }
        let serve = async {
            self.enrol().await;
            supervise::containers(&self, orders).await;
            std::future::pending::<()>().await;
        };
        let told = async {
            deleted(&mut deletion).await;
            self.mark_deleted().await;
            self.wait_containers().await;
        };
        tokio::select! {
            biased;
            () = told => {}
            () = serve => {}
        }
        if !self.state.live.lock().containers.is_empty() {
            tokio::time::sleep(LINGER).await;
        }
        self.take_down_sandbox().await;
        self.forget().await;
    }

    async fn make_sandbox(&self) -> Result<()> {
        let (shared, state) = (Arc::clone(&self.shared), Arc::clone(&self.state));
        let _slot = self.shared.sandbox_slots.acquire().await;
        let made = spawn_blocking(move || sandbox_of(&shared, &state)).await;
        let namespaces = match made {
            Ok(made) => made?,
            Err(panic) => std::panic::resume_unwind(panic.into_panic()),
        };
        self.state.live.lock().namespaces = Some(namespaces);
        self.publish();
        Ok(())
    }

    /// Tells the node's agent, as often as it takes: a pod without its agent's consent does not start.
    async fn enrol(&self) {
        let host_network = self.state.number.is_none();
        let extra = &self.state.extra;
        if !self.shared.options.mesh || host_network || extra.component.is_some() || extra.system {
            return;
        }
        let node = &self.shared.node(self.state.node).name;
        let (socket, netns) =
            (self.shared.paths.plugin_socket(node), self.shared.paths.netns(node).join(&self.state.uid));
        let mut retry = FIRST_RETRY;
        loop {
            let added = cni::add(&socket, &netns, &self.state.namespace, &self.state.name, &self.state.ips).await;
            let Err(error) = added else { break };
            tracing::info!(pod = %self.state.key(), error, "not enrolled yet");
            self.message(&error);
            tokio::time::sleep(retry).await;
            retry = (retry * 2).min(LONGEST_RETRY / 5);
        }
        self.message("");
    }

    async fn mark_deleted(&self) {
        let deletion = *self.state.delete.borrow();
        let left =
            deletion.map_or(Duration::ZERO, |deletion| deletion.deadline.saturating_duration_since(Instant::now()));
        let seconds = left.as_secs_f64().round() as u64;
        self.write(self.shared.store().begin_pods_end(&self.state.key(), &self.state.uid, seconds).await);
        self.state.marked.send_replace(true);
        self.shared.send(Event::PodChanged);
    }

    /// Returns when all containers have stopped.
    async fn wait_containers(&self) {
        let stopped = || self.state.live.lock().containers.values().all(|container| container.stopped);
        while !stopped() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    async fn take_down_sandbox(&self) {
        let (shared, state) = (Arc::clone(&self.shared), Arc::clone(&self.state));
        // A panic in there was reported; the pod goes all the same.
        let _ = spawn_blocking(move || {
            let node = shared.node(state.node);
            if let Some(number) = state.number {
                if let Some(net) = state.live.lock().namespaces.take().and_then(|namespaces| namespaces.net) {
                    procfs::kill_in_netns(&net);
                }
                if let Err(error) = net::disconnect_pod(&shared.reaper, number, &node.net) {
                    tracing::debug!(pod = %state.key(), %error, "no link to remove");
                }
                sandbox::unbind_netns(&shared.paths.netns(&node.name).join(&state.uid));
            }
        })
        .await;
    }

    async fn forget(&self) {
        let state = &self.state;
        let _ = fs::remove_dir_all(self.shared.paths.pod(&state.folder));
        self.shared.pods.lock().remove(&(state.namespace.clone(), state.name.clone()));
        self.shared.components.lock().retain(|_, pod| pod.uid != state.uid);
        if let Err(error) = self.shared.store().end_pod(&state.key(), &state.uid).await {
            tracing::debug!(pod = %state.key(), %error, "the object was gone already");
        }
        self.shared.send(Event::PodGone(Arc::clone(state)));
    }

    fn write(&self, result: Result<()>) {
        if let Err(error) = result {
            // Somebody removed the object under us: its deletion is on the way.
            tracing::debug!(pod = %self.state.key(), %error, "writing the pod's status");
        }
    }
}

/// Makes namespaces and mounts of a pod, and connects it. Blocks.
fn sandbox_of(shared: &Shared, state: &PodState) -> Result<Namespaces> {
    let own = shared.paths.pod(&state.folder);
    fs::create_dir_all(&own).during(|| format!("making {}", own.display()))?;
    let file = |name: &str, target: &str| Mount { source: own.join(name), target: target.into() };
    let write = |name: &str, text: &str| fs::write(own.join(name), text).during(|| format!("writing a pod's {name}"));
    write("resolv.conf", &hosts::resolv_conf(&state.namespace, shared.options.dns))?;
    write("gai.conf", hosts::GAI_CONF)?;
    let mut mounts =
        vec![file("hosts", "/etc/hosts"), file("resolv.conf", "/etc/resolv.conf"), file("gai.conf", "/etc/gai.conf")];
    mounts.extend(state.extra.mounts.iter().cloned());
    let node = shared.node(state.node);
    let mut sysctls = net::POD_SYSCTLS.to_vec();
    if without_ipv6(&state.pod) {
        sysctls.extend(net::NO_IPV6);
    } else if state.annotated(NO_IPV6_LOOPBACK) {
        sysctls.push(net::NO_IPV6_LOOPBACK);
    }
    if state.extra.lab_mounts {
        return Ok(Namespaces::net_only(Arc::clone(&node.net)));
    }
    let namespaces = sandbox::new_sandbox(SandboxPlan {
        hostname: state.name.clone(),
        net: state.number.is_none().then(|| Arc::clone(&node.net)),
        netns_folders: shared.netns_folders(),
        mounts,
        sysctls,
    })?;
    if let (Some(number), Some(net)) = (state.number, &namespaces.net) {
        sandbox::bind_netns(net, &shared.paths.netns(&node.name).join(&state.uid))?;
        let link = PodLink { number, pod: &state.ips, node: &node.ips };
        net::connect_pod(&shared.reaper, &link, &node.net, net)?;
    }
    Ok(namespaces)
}
