//! What a lab says of itself.

use std::net::IpAddr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::options::Component;

/// A lab as it stands.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// The lab's name.
    pub name: String,
    /// Since when it is up.
    pub uptime: Duration,
    /// How long its start took.
    pub start_took: Duration,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
    /// The pods, system pods included.
    pub pods: Vec<PodInfo>,
    /// The processes of the mesh.
    pub components: Vec<ComponentStatus>,
}

/// A node.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct NodeStatus {
    /// `node1`, …
    pub name: String,
    /// Its addresses, IPv4 first.
    pub ips: Vec<IpAddr>,
}

/// A pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PodInfo {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// The Deployment that it belongs to.
    pub deployment: Option<String>,
    /// Its service account.
    pub service_account: String,
    /// Its node.
    pub node: String,
    /// Its addresses, IPv4 first; empty until the sandbox is up.
    pub ips: Vec<IpAddr>,
    /// Pending, Running, Succeeded or Failed.
    pub phase: String,
    /// Whether its containers run and its readiness probes pass.
    pub ready: bool,
    /// Whether it is being deleted.
    pub terminating: bool,
    /// How often a container was started again.
    pub restarts: u32,
    /// `ambient.istio.io/redirection`: `enabled`, `pending`, or nothing.
    pub redirection: Option<String>,
    /// Why it isn't running, if it isn't.
    pub message: String,
}

impl PodInfo {
    /// The pod's IPv4 address.
    ///
    /// # Panics
    /// If the pod has no address yet; a ready pod has.
    pub fn ipv4(&self) -> IpAddr {
        *self.ips.iter().find(|ip| ip.is_ipv4()).unwrap_or_else(|| panic!("pod {} has no IPv4 address", self.name))
    }

    /// The pod's IPv6 address, if it has one.
    pub fn ipv6(&self) -> Option<IpAddr> {
        self.ips.iter().copied().find(IpAddr::is_ipv6)
    }
}

/// A process of the mesh.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ComponentStatus {
    /// Which.
    pub component: Component,
    /// Its pod.
    pub pod: String,
    /// Its process id inside the lab, if it runs.
    pub pid: Option<i32>,
    /// Whether its readiness probe passes.
    pub ready: bool,
    /// Its addresses.
    pub ips: Vec<IpAddr>,
}

/// What a process has used.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct ProcessStats {
    /// Process id inside the lab.
    pub pid: i32,
    /// Resident memory in bytes.
    pub rss_bytes: u64,
    /// The peak of it.
    pub peak_rss_bytes: u64,
    /// CPU time since its start.
    pub cpu: Duration,
    /// Threads.
    pub threads: u64,
    /// Open descriptors.
    pub fds: u64,
}
