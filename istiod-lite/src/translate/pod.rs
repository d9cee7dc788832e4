//! What is kept of a pod: what its resource is made of, and nothing else. A cluster has many pods.

use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;

use super::labels::{Interner, LabelSet, Labels};

/// The facts of a pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its labels.
    pub labels: Arc<LabelSet>,
    /// Its addresses; empty as long as it has none, when it has ended, and when one of them cannot be read.
    pub addresses: Box<[IpAddr]>,
    /// Whether it is ready and stays.
    pub healthy: bool,
    /// Where it runs; empty as long as that is not decided.
    pub node: Arc<str>,
    /// Its service account.
    pub service_account: Arc<str>,
    /// Whether its addresses are its host's.
    pub host_network: bool,
    /// Who takes HBONE for it.
    pub tunnel: Tunnel,
    /// The name of what the pod is one of.
    pub workload_name: Arc<str>,
    /// Its TCP ports that have names.
    pub ports: Arc<[(Arc<str>, u16)]>,
}

/// Who takes HBONE for a workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Tunnel {
    /// Nobody.
    None,
    /// The node proxy.
    Redirected,
    /// The workload itself.
    Native,
}

impl PodFacts {
    /// The facts of a pod.
    pub fn of(pod: &Pod, interner: &mut Interner) -> Self {
        let spec = pod.spec.as_ref();
        let account = spec
            .and_then(|spec| spec.service_account_name.as_deref().or(spec.service_account.as_deref()))
            .filter(|name| !name.is_empty());
        let ended =
            pod.status.as_ref().is_some_and(|status| matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")));
        let labels = interner.labels(pod.metadata.labels.as_ref());
        let workload_name = workload_name(pod, &labels);
        Self {
            name: interner.string(pod.metadata.name.as_deref().unwrap_or_default()),
            namespace: interner.string(pod.metadata.namespace.as_deref().unwrap_or_default()),
            addresses: if ended || spec.is_none() { Box::default() } else { addresses(pod) },
            healthy: healthy(pod),
            node: interner.string(spec.and_then(|spec| spec.node_name.as_deref()).unwrap_or_default()),
            service_account: interner.string(account.unwrap_or("default")),
            host_network: spec.is_some_and(|spec| spec.host_network == Some(true)),
            tunnel: tunnel(&labels, pod.metadata.annotations.as_ref()),
            workload_name: interner.string(workload_name),
            ports: named_ports(pod, interner),
            labels,
        }
    }

    /// Whether the node proxy takes the pod's connections, both ways.
    pub fn is_redirected(&self) -> bool {
        self.tunnel == Tunnel::Redirected && !self.host_network
    }

    /// The number of a port that has a name.
    pub fn port(&self, name: &str) -> Option<u32> {
        self.ports.iter().find(|(held, _)| **held == *name).map(|(_, port)| u32::from(*port))
    }
}

/// Exactly `enabled`: a redirection that is still `pending` would lose what is sent to it.
pub(super) fn tunnel(labels: &LabelSet, annotations: Option<&Labels>) -> Tunnel {
    let native = labels.get("networking.istio.io/tunnel").map_or("", |value| value);
    let redirection = annotations.and_then(|all| all.get("ambient.istio.io/redirection")).map_or("", String::as_str);
    if native.split(',').any(|protocol| protocol == "http") {
        Tunnel::Native
    } else if redirection == "enabled" {
        Tunnel::Redirected
    } else {
        Tunnel::None
    }
}

/// The service that a workload belongs to by its labels, and which revision of it.
pub(super) fn canonical_service(labels: &LabelSet, workload_name: &str) -> (String, String) {
    let first =
        |keys: &[&str], or: &str| keys.iter().find_map(|key| labels.said(key)).map_or(or, |value| value).to_owned();
    (
        first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"], workload_name),
        first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"], "latest"),
    )
}

fn addresses(pod: &Pod) -> Box<[IpAddr]> {
    let Some(status) = &pod.status else { return Box::default() };
    let mut texts: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    if texts.is_empty() {
        texts.extend(status.pod_ip.as_deref().filter(|ip| !ip.is_empty()));
    }
    let addresses: Option<Box<[IpAddr]>> = texts.into_iter().map(|ip| ip.parse().ok()).collect();
    addresses.unwrap_or_default()
}

fn healthy(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

/// The name of what the pod is one of: its label says, else its owner, else it stands for itself.
fn workload_name<'a>(pod: &'a Pod, labels: &'a LabelSet) -> &'a str {
    if let Some(name) = labels.said("service.istio.io/workload-name") {
        return name;
    }
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let Some(owner) = owner else {
        return pod.metadata.name.as_deref().unwrap_or_default();
    };
    let shorter = match owner.kind.as_str() {
        // Deployment → ReplicaSet `<deployment>-<hash>` → pod.
        "ReplicaSet" => ["pod-template-hash", "rollouts-pod-template-hash"]
            .into_iter()
            .filter_map(|key| labels.said(key))
            .find_map(|hash| owner.name.strip_suffix(&**hash)?.strip_suffix('-')),
        // CronJob → Job `<cron job>-<minutes since 1970>` → pod.
        "Job" => owner.name.rsplit_once('-').and_then(|(name, minutes)| {
            ((8..=10).contains(&minutes.len()) && minutes.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
        }),
        "ReplicationController" => labels.said("deploymentconfig").map(|name| &**name),
        _ => None,
    };
    shorter.filter(|name| !name.is_empty()).unwrap_or(&owner.name)
}

/// The first of each name counts. Native sidecars (restartable init containers) serve ports as well.
fn named_ports(pod: &Pod, interner: &mut Interner) -> Arc<[(Arc<str>, u16)]> {
    let Some(spec) = &pod.spec else { return Arc::default() };
    let sidecars =
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let tcp = ports.filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    tcp.filter_map(|port| {
        let name = port.name.as_deref().filter(|name| !name.is_empty())?;
        Some((interner.string(name), u16::try_from(port.container_port).ok()?))
    })
    .collect()
}
