//! Pod → istio.workload.Workload, and what all kinds of workloads have in common.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_core::workload::SAME_NODE_EXTENSION;
use aquifer_proto::workload::{
    Extension, GatewayAddress, Locality, NetworkMode, Port, PortList, TunnelProtocol, Workload, WorkloadStatus,
    WorkloadType,
};
use k8s_openapi::api::core::v1::Node;

use super::pod::{PodFacts, Tunnel, canonical_service};
use super::service::{BackendPort, Target};
use super::waypoint::Waypoint;
use super::{Mesh, address_bytes};

/// A service as those behind it see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Backend {
    /// The service's resource name, `<namespace>/<host>`.
    pub resource: String,
    /// Whether it is a ServiceEntry's. Names of ports mean something else there.
    pub of_entry: bool,
    /// Its ports.
    pub ports: Arc<[BackendPort]>,
}

/// How a workload stands to waypoints.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum Standing {
    /// Reached directly.
    #[default]
    Plain,
    /// Reached through one.
    Behind(Arc<Waypoint>),
    /// A part of one, or of another gateway that has no waypoint before it.
    Gateway(Option<Arc<Waypoint>>),
}

impl Standing {
    fn waypoint(&self) -> Option<GatewayAddress> {
        match self {
            Self::Behind(waypoint) => Some(waypoint.address.clone()),
            Self::Plain | Self::Gateway(_) => None,
        }
    }

    pub(super) fn apply(&self, workload: &mut Workload) {
        workload.waypoint = self.waypoint();
        if let Self::Gateway(Some(waypoint)) = self {
            workload.application_tunnel = waypoint.tunnel;
        }
    }
}

/// The resource of a pod; `None` for one that has ended or has no address yet.
///
/// `services` are those that it is behind, `policies` the names that it must list.
pub fn pod(
    pod: &PodFacts,
    locality: Option<&Locality>,
    services: &[Backend],
    policies: Vec<String>,
    standing: &Standing,
    mesh: &Mesh,
) -> Option<Workload> {
    if pod.addresses.is_empty() {
        return None;
    }
    let (canonical_name, canonical_revision) = canonical_service(&pod.labels, &pod.workload_name);
    let mut made = Workload {
        uid: pod_uid(mesh, &pod.namespace, &pod.name),
        name: (*pod.name).to_owned(),
        namespace: (*pod.namespace).to_owned(),
        network: mesh.network.clone(),
        cluster_id: mesh.cluster_id.clone(),
        trust_domain: mesh.sent_trust_domain(),
        addresses: pod.addresses.iter().map(|ip| address_bytes(*ip)).collect(),
        service_account: (*pod.service_account).to_owned(),
        node: (*pod.node).to_owned(),
        locality: locality.cloned(),
        services: joined(services, |backend, port| of_pod(pod, backend, port)),
        authorization_policies: policies,
        status: if pod.healthy { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }.into(),
        network_mode: if pod.host_network { NetworkMode::HostNetwork } else { NetworkMode::Standard }.into(),
        workload_name: (*pod.workload_name).to_owned(),
        workload_type: WorkloadType::Pod.into(),
        canonical_name,
        canonical_revision,
        ..Default::default()
    };
    set_tunnel(&mut made, pod.tunnel);
    standing.apply(&mut made);
    Some(made)
}

pub(super) fn set_tunnel(workload: &mut Workload, tunnel: Tunnel) {
    workload.tunnel_protocol = if tunnel == Tunnel::None { TunnelProtocol::None } else { TunnelProtocol::Hbone }.into();
    workload.native_tunnel = tunnel == Tunnel::Native;
}

/// The ports of each service as they are at one workload. A port that it lacks is left out; a service without any is
/// still the workload's.
pub(super) fn joined(
    services: &[Backend],
    target: impl Fn(&Backend, &BackendPort) -> Option<u32>,
) -> BTreeMap<String, PortList> {
    let list = |backend: &Backend| {
        let ports = backend.ports.iter().filter_map(|port| {
            Some(Port { service_port: port.number, target_port: target(backend, port)?, app_protocol: 0 })
        });
        (backend.resource.clone(), PortList { ports: ports.collect() })
    };
    services.iter().map(list).collect()
}

fn of_pod(pod: &PodFacts, backend: &Backend, port: &BackendPort) -> Option<u32> {
    match &port.target {
        Target::Name(name) => pod.port(name),
        // A ServiceEntry has no named targets: the name of its port is looked for instead.
        Target::Number(number) if backend.of_entry => Some(pod.port(&port.name).unwrap_or(*number)),
        Target::Number(number) => Some(*number),
    }
}

/// Says that the node proxy may connect the pod with others of its node by itself.
pub fn same_node() -> Extension {
    Extension { name: SAME_NODE_EXTENSION.to_owned(), config: None }
}

/// The name of a pod's resource.
pub fn pod_uid(mesh: &Mesh, namespace: &str, name: &str) -> String {
    format!("{}//Pod/{namespace}/{name}", mesh.cluster_id)
}

/// The aliases of a workload: its addresses, unless they are its host's.
pub fn aliases(workload: &Workload) -> Vec<String> {
    if workload.network_mode == i32::from(NetworkMode::HostNetwork) {
        return Vec::new();
    }
    workload.addresses.iter().filter_map(|address| super::alias(&workload.network, address, None)).collect()
}

/// Where a node is.
pub fn node_locality(node: &Node) -> Option<Locality> {
    let labels = node.metadata.labels.as_ref()?;
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let locality = Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    };
    (locality != Locality::default()).then_some(locality)
}

/// `region/zone/subzone`, of which the end may be left out.
pub(super) fn written_locality(text: &str) -> Option<Locality> {
    let mut parts = text.splitn(3, '/').map(str::to_owned);
    let mut next = || parts.next().unwrap_or_default();
    let locality = Locality { region: next(), zone: next(), subzone: next() };
    (locality != Locality::default()).then_some(locality)
}
