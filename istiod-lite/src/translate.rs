//! Kubernetes objects to mesh resources, as istiod makes them. Pure functions, no state.
//!
//! ```text
//!   Pod, EndpointSlice ─▶ workload ─▶ istio.workload.Workload
//!   Service            ─▶ service  ─▶ istio.workload.Service
//!   AuthorizationPolicy ─▶ policy  ─▶ istio.security.Authorization + what was left out
//!   PeerAuthentication ─▶ peer_authentication ─▶ the DENY policies that stand for it
//!   NetworkPolicy ─▶ network_policy ─▶ which pods must be seen on the wire
//! ```
//!
//! Resources are those of the reference control plane, byte for byte; where we mean to differ, the table in
//! `index/golden.rs` says so.

pub mod network_policy;
pub mod peer_authentication;
pub mod policy;
pub mod service;
pub mod status;
pub mod workload;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::IpAddr;

use bytes::Bytes;

/// What holds for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mesh {
    /// This cluster's id.
    pub cluster_id: String,
    /// The trust domain of all identities.
    pub trust_domain: String,
    /// The namespace whose policies hold for the whole mesh, which is the control plane's own.
    pub root_namespace: String,
    /// The DNS suffix of service names.
    pub domain: String,
    /// The network of all pods; empty for the default one.
    pub network: String,
    /// Whether pods of one node that no NetworkPolicy selects may be connected within their node proxy.
    pub same_node: bool,
}

impl Default for Mesh {
    fn default() -> Self {
        Self {
            cluster_id: "Kubernetes".to_owned(),
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            domain: "cluster.local".to_owned(),
            network: String::new(),
            same_node: true,
        }
    }
}

impl Mesh {
    /// The trust domain as resources carry it: left out when it is the default.
    fn sent_trust_domain(&self) -> String {
        if self.trust_domain == "cluster.local" { String::new() } else { self.trust_domain.clone() }
    }

    /// A Service's host name.
    pub fn service_hostname(&self, namespace: &str, name: &str) -> String {
        format!("{name}.{namespace}.svc.{}", self.domain)
    }

    /// The name of a Service's resource.
    pub fn service_resource(&self, namespace: &str, name: &str) -> String {
        format!("{namespace}/{}", self.service_hostname(namespace, name))
    }
}

/// Labels or annotations as Kubernetes types carry them.
pub type Labels = BTreeMap<String, String>;

/// Whether `labels` hold all of `selector`.
pub fn selects(selector: &Labels, labels: Option<&Labels>) -> bool {
    selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
}

/// An address as it stands on the wire.
fn address_bytes(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

/// The alias under which an address may be asked for.
fn alias(network: &str, address: &[u8], length: Option<u32>) -> Option<String> {
    let ip = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    Some(match length {
        Some(length) => format!("{network}/{ip}/{length}"),
        None => format!("{network}/{ip}"),
    })
}
