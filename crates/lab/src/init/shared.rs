//! What all parts of pid 1 know.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use aquifer_runtime::Tracker;
use parking_lot::Mutex;
use tokio::sync::{Semaphore, mpsc};

use super::cluster::Event;
use super::kubelet::Kubelet;
use super::pod::PodState;
use super::reaper::Reaper;
use super::store::Store;
use super::tokens::Tokens;
use crate::addresses::Plan;
use crate::api_server::ApiServerPlan;
use crate::error::{LabError, Result};
use crate::options::{Component, LabOptions};
use crate::paths::Paths;

/// Pods whose sandboxes are made at the same time: more only wait for the kernel's one lock on interfaces.
const SANDBOXES_AT_ONCE: usize = 8;

#[derive(Debug)]
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) paths: Paths,
    pub(super) options: LabOptions,
    pub(super) plan: Plan,
    pub(super) tracker: Tracker,
    pub(super) reaper: Arc<Reaper>,
    /// Set once, before any object.
    pub(super) store: OnceLock<Store>,
    /// Set once if there is an API server, before any pod.
    pub(super) api_server: OnceLock<ApiServerPlan>,
    pub(super) sandbox_slots: Arc<Semaphore>,
    /// Set once, before any pod.
    pub(super) nodes: OnceLock<Vec<Node>>,
    /// Set once if there is a mesh, before any of its pods.
    pub(super) tokens: OnceLock<Tokens>,
    pub(super) pods: Mutex<HashMap<(String, String), Arc<PodState>>>,
    /// The pod that each component runs in; for a ztunnel the newest.
    pub(super) components: Mutex<BTreeMap<Component, Arc<PodState>>>,
    pub(super) events: mpsc::UnboundedSender<Event>,
    receiver: Mutex<Option<mpsc::UnboundedReceiver<Event>>>,
    begin: Instant,
    start_took: OnceLock<Duration>,
}

/// A node.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) name: String,
    pub(super) number: u8,
    pub(super) ips: Vec<IpAddr>,
    pub(super) net: Arc<OwnedFd>,
    pub(super) kubelet: Kubelet,
}

impl Shared {
    pub(super) fn new(name: String, paths: Paths, options: LabOptions, begin: Instant) -> Result<Arc<Self>> {
        let (events, receiver) = mpsc::unbounded_channel();
        Ok(Arc::new(Self {
            name,
            plan: Plan::new(options.ipv6),
            tracker: Tracker::new(),
            reaper: Arc::default(),
            store: OnceLock::new(),
            api_server: OnceLock::new(),
            sandbox_slots: Arc::new(Semaphore::new(SANDBOXES_AT_ONCE)),
            nodes: OnceLock::new(),
            tokens: OnceLock::new(),
            pods: Mutex::default(),
            components: Mutex::default(),
            events,
            receiver: Mutex::new(Some(receiver)),
            begin,
            start_took: OnceLock::new(),
            paths,
            options,
        }))
    }

    /// The cluster's end of the events; there is one cluster.
    pub(super) fn take_events(&self) -> mpsc::UnboundedReceiver<Event> {
        self.receiver.lock().take().expect("the cluster starts once")
    }

    /// Where the objects lie. Nothing asks before it is known.
    pub(super) fn store(&self) -> &Store {
        self.store.get().expect("the store is there before anything that uses it")
    }

    pub(super) fn nodes(&self) -> &[Node] {
        self.nodes.get().map_or(&[], Vec::as_slice)
    }

    /// A node by its number.
    pub(super) fn node(&self, number: u8) -> &Node {
        &self.nodes()[usize::from(number) - 1]
    }

    pub(super) fn node_named(&self, name: &str) -> Option<&Node> {
        self.nodes().iter().find(|node| node.name == name)
    }

    /// A pod by its name, or a Deployment's first that isn't on its way out.
    pub(super) fn find_pod(&self, namespace: &str, name: &str) -> Result<Arc<PodState>> {
        let pods = self.pods.lock();
        if let Some(pod) = pods.get(&(namespace.to_owned(), name.to_owned())) {
            return Ok(Arc::clone(pod));
        }
        let mut of_deployment: Vec<_> = pods
            .values()
            .filter(|pod| {
                pod.namespace == namespace && pod.deployment.as_deref() == Some(name) && !pod.is_terminating()
            })
            .collect();
        of_deployment.sort_by_key(|pod| (!pod.live.lock().ready, pod.name.clone()));
        let found = of_deployment.first().map(|pod| Arc::clone(pod));
        found.ok_or_else(|| LabError::Refused(format!("no pod or deployment `{name}` in namespace `{namespace}`")))
    }

    pub(super) fn component(&self, component: &Component) -> Result<Arc<PodState>> {
        let found = self.components.lock().get(component).cloned();
        found.ok_or_else(|| LabError::Refused(format!("this lab has no {component}")))
    }

    /// Folders of bound network namespaces, one a node.
    pub(super) fn netns_folders(&self) -> Vec<PathBuf> {
        self.nodes().iter().map(|node| self.paths.netns(&node.name)).collect()
    }

    pub(super) fn send(&self, event: Event) {
        // The cluster ends with the process only.
        let _ = self.events.send(event);
    }

    pub(super) fn set_started(&self) {
        let _ = self.start_took.set(self.begin.elapsed());
    }

    pub(super) fn start_took(&self) -> Duration {
        self.start_took.get().copied().unwrap_or_default()
    }

    pub(super) fn uptime(&self) -> Duration {
        self.begin.elapsed()
    }
}

/// A random uid.
pub(super) fn new_uid() -> String {
    let hex = format!("{:032x}", rand::random::<u128>());
    // Version 4, variant 1 (RFC 9562).
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}
