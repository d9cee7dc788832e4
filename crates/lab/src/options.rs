//! What a caller chooses about a lab, and the names of its parts.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Settings of a lab; `LabOptions::default()` is two nodes, dual stack, with the mesh.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct LabOptions {
    /// The lab's name; `None` makes a unique one.
    pub name: Option<String>,
    /// How many nodes, `node1` and up (at most 9).
    pub nodes: u8,
    /// IPv6 beside IPv4.
    pub ipv6: bool,
    /// Run istiod-lite, the node agents and the ztunnels.
    pub mesh: bool,
    /// Names are resolved by DNS, by a resolver in the cluster. Without it they stand in each pod's /etc/hosts.
    pub dns: bool,
    /// Lines for the resolver's configuration, in dnsmasq's words: names outside the cluster, other record types.
    pub dns_records: Vec<String>,
    /// Objects lie in a real Kubernetes API server instead of a folder of manifests.
    pub api_server: bool,
    /// The lab outlives its starter (until `down`).
    pub keep: bool,
    /// `ZTUNNEL_WORKER_THREADS` of each ztunnel.
    pub workers: Option<usize>,
    /// Environment added to istiod-lite's.
    pub istiod_env: Vec<(String, String)>,
    /// Environment added to every ztunnel's.
    pub ztunnel_env: Vec<(String, String)>,
    /// Environment added to every node agent's.
    pub agent_env: Vec<(String, String)>,
    /// The folder of the binaries; `None` means beside the running one, or AQUIFER_BIN's.
    pub bin: Option<PathBuf>,
    /// Lifetime of the tokens in ztunnel pods, in seconds; they are renewed at four fifths of it.
    pub token_ttl_seconds: u64,
}

impl Default for LabOptions {
    fn default() -> Self {
        Self {
            name: None,
            nodes: 2,
            ipv6: true,
            mesh: true,
            dns: true,
            dns_records: Vec::new(),
            api_server: false,
            keep: false,
            workers: None,
            istiod_env: Vec::new(),
            ztunnel_env: Vec::new(),
            agent_env: Vec::new(),
            bin: None,
            token_ttl_seconds: 43_200,
        }
    }
}

impl LabOptions {
    /// Options without the mesh: plain nodes, pods and services.
    pub fn plain() -> Self {
        Self { mesh: false, ..Self::default() }
    }

    /// Adds a line to the resolver's configuration.
    #[must_use]
    pub fn dns_record(mut self, line: impl Into<String>) -> Self {
        self.dns_records.push(line.into());
        self
    }

    /// Adds a variable to each ztunnel's environment.
    #[must_use]
    pub fn ztunnel_var(mut self, name: &str, value: impl Into<String>) -> Self {
        self.ztunnel_env.push((name.to_owned(), value.into()));
        self
    }

    /// Adds a variable to istiod-lite's environment.
    #[must_use]
    pub fn istiod_var(mut self, name: &str, value: impl Into<String>) -> Self {
        self.istiod_env.push((name.to_owned(), value.into()));
        self
    }

    /// Adds a variable to each node agent's environment.
    #[must_use]
    pub fn agent_var(mut self, name: &str, value: impl Into<String>) -> Self {
        self.agent_env.push((name.to_owned(), value.into()));
        self
    }
}

/// A process of the mesh itself.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Component {
    /// The control plane, on node1.
    Istiod,
    /// The node agent (`istio-cni-node`) of a node.
    Agent(String),
    /// The node proxy of a node; after a replacement the newest one.
    Ztunnel(String),
}

impl Component {
    /// The ztunnel of a node.
    pub fn ztunnel(node: &str) -> Self {
        Self::Ztunnel(node.to_owned())
    }

    /// The agent of a node.
    pub fn agent(node: &str) -> Self {
        Self::Agent(node.to_owned())
    }
}

impl fmt::Display for Component {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Istiod => write!(f, "istiod"),
            Self::Agent(node) => write!(f, "istio-cni-node-{node}"),
            Self::Ztunnel(node) => write!(f, "ztunnel-{node}"),
        }
    }
}

impl FromStr for Component {
    type Err = String;

    fn from_str(text: &str) -> std::result::Result<Self, String> {
        if text == "istiod" || text == "istiod-lite" {
            return Ok(Self::Istiod);
        }
        if let Some(node) = text.strip_prefix("ztunnel-") {
            return Ok(Self::Ztunnel(node.to_owned()));
        }
        if let Some(node) = text.strip_prefix("istio-cni-node-").or_else(|| text.strip_prefix("agent-")) {
            return Ok(Self::Agent(node.to_owned()));
        }
        Err(format!("`{text}` is no component: istiod, ztunnel-<node> or istio-cni-node-<node>"))
    }
}

/// Whose network namespace something happens in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Netns {
    /// The wire between the nodes: interfaces `node1`, `node2`, …
    Wire,
    /// A node's own: `eth0` to the wire, one `veth…` a pod.
    Node(String),
    /// A pod's: `eth0` and `lo`.
    Pod {
        /// The pod's namespace.
        namespace: String,
        /// The pod, or a Deployment (its first running pod).
        name: String,
    },
    /// A mesh component's.
    Component(Component),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_print_and_parse() {
        for component in [Component::Istiod, Component::ztunnel("node1"), Component::agent("node2")] {
            assert_eq!(component.to_string().parse(), Ok(component));
        }
        assert!("proxy".parse::<Component>().is_err());
    }
}
