//! Pod and EndpointSlice → istio.workload.Workload.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use aquifer_core::workload::SAME_NODE_EXTENSION;
use aquifer_proto::workload::{
    Extension, Locality, NetworkMode, Port, PortList, TunnelProtocol, Workload, WorkloadStatus, WorkloadType,
};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::service::{Target, ports, target};
use super::{Labels, Mesh, address_bytes, selects};

/// The resource of a pod; `None` for one that has ended or has no address yet.
///
/// `services` are those of its namespace, `policies` the names that it must list.
pub fn pod<'a>(
    pod: &Pod,
    node: Option<&Node>,
    services: impl IntoIterator<Item = &'a Service>,
    policies: Vec<String>,
    mesh: &Mesh,
) -> Option<Workload> {
    let spec = pod.spec.as_ref()?;
    let status = pod.status.as_ref()?;
    if matches!(status.phase.as_deref(), Some("Succeeded" | "Failed")) {
        return None;
    }
    let addresses = pod_addresses(pod)?;
    let name = pod.metadata.name.clone()?;
    let namespace = pod.metadata.namespace.clone()?;
    let labels = pod.metadata.labels.as_ref();
    let (workload_name, workload_type) = (workload_name(pod), WorkloadType::Pod);
    let (canonical_name, canonical_revision) = canonical_service(labels, &workload_name);
    let tunnel = tunnel(pod);
    let account =
        spec.service_account_name.as_deref().or(spec.service_account.as_deref()).filter(|name| !name.is_empty());
    Some(Workload {
        uid: pod_uid(mesh, &namespace, &name),
        network: mesh.network.clone(),
        cluster_id: mesh.cluster_id.clone(),
        trust_domain: mesh.sent_trust_domain(),
        addresses: addresses.into_iter().map(address_bytes).collect(),
        service_account: account.unwrap_or("default").to_owned(),
        node: spec.node_name.clone().unwrap_or_default(),
        locality: node.and_then(locality),
        services: pod_services(pod, services, mesh),
        authorization_policies: policies,
        status: if healthy(pod) { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }.into(),
        network_mode: if spec.host_network == Some(true) { NetworkMode::HostNetwork } else { NetworkMode::Standard }
            .into(),
        tunnel_protocol: if tunnel == Tunnel::None { TunnelProtocol::None } else { TunnelProtocol::Hbone }.into(),
        native_tunnel: tunnel == Tunnel::Native,
        workload_name,
        workload_type: workload_type.into(),
        canonical_name,
        canonical_revision,
        name,
        namespace,
        ..Default::default()
    })
}

/// Whether the node proxy takes the pod's connections, both ways.
pub fn is_redirected(pod: &Pod) -> bool {
    tunnel(pod) == Tunnel::Redirected && pod.spec.as_ref().is_none_or(|spec| spec.host_network != Some(true))
}

/// Says that the node proxy may connect the pod with others of its node by itself.
pub fn same_node() -> Extension {
    Extension { name: SAME_NODE_EXTENSION.to_owned(), config: None }
}

/// The resources of a slice's endpoints that are not pods: addresses of which nothing else is known.
pub fn endpoint_slice(slice: &EndpointSlice, service: &Service, mesh: &Mesh) -> Vec<Workload> {
    let (Some(name), Some(namespace)) = (&slice.metadata.name, &slice.metadata.namespace) else {
        return Vec::new();
    };
    let Some(service_name) = service.metadata.name.as_deref() else {
        return Vec::new();
    };
    if slice.address_type == "FQDN"
        || service.spec.as_ref().is_none_or(|spec| spec.type_.as_deref() == Some("ExternalName"))
    {
        return Vec::new();
    }
    let services = BTreeMap::from([(mesh.service_resource(namespace, service_name), slice_ports(slice, service))]);
    let mut workloads = Vec::new();
    let mut seen = BTreeSet::new();
    for endpoint in slice.endpoints.iter().flatten() {
        let is_pod = endpoint.target_ref.as_ref().is_some_and(|target| target.kind.as_deref() == Some("Pod"));
        let Some(first) = endpoint.addresses.first() else { continue };
        let parsed: Result<Vec<IpAddr>, _> = endpoint.addresses.iter().map(|ip| ip.parse()).collect();
        let Ok(addresses) = parsed else { continue };
        if is_pod || !seen.insert(first) {
            continue;
        }
        // An absent condition means ready (EndpointConditions).
        let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
        workloads.push(Workload {
            uid: format!("{}/discovery.k8s.io/EndpointSlice/{namespace}/{name}/{first}", mesh.cluster_id),
            name: name.clone(),
            namespace: namespace.clone(),
            network: mesh.network.clone(),
            cluster_id: mesh.cluster_id.clone(),
            trust_domain: mesh.sent_trust_domain(),
            addresses: addresses.into_iter().map(address_bytes).collect(),
            services: services.clone(),
            status: if ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }.into(),
            // The address may be anybody's, so nobody is looked up by it.
            network_mode: NetworkMode::HostNetwork.into(),
            ..Default::default()
        });
    }
    workloads
}

/// The name of the Service that a slice belongs to.
pub fn slice_service(slice: &EndpointSlice) -> Option<&str> {
    slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name").map(String::as_str)
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

/// All addresses; `None` if there is none or one that cannot be read.
fn pod_addresses(pod: &Pod) -> Option<Vec<IpAddr>> {
    let status = pod.status.as_ref()?;
    let many: Vec<&str> = status.pod_ips.iter().flatten().map(|ip| ip.ip.as_str()).collect();
    let texts = if many.is_empty() {
        status.pod_ip.iter().map(String::as_str).filter(|ip| !ip.is_empty()).collect()
    } else {
        many
    };
    let addresses: Option<Vec<IpAddr>> = texts.into_iter().map(|ip| ip.parse().ok()).collect();
    addresses.filter(|addresses| !addresses.is_empty())
}

fn healthy(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    ready && pod.metadata.deletion_timestamp.is_none()
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tunnel {
    None,
    /// The node proxy takes HBONE for the pod.
    Redirected,
    /// The pod takes it itself.
    Native,
}

/// Exactly `enabled`: a redirection that is still `pending` would lose what is sent to it.
fn tunnel(pod: &Pod) -> Tunnel {
    let value = |map: Option<&Labels>, key: &str| map.and_then(|map| map.get(key)).cloned().unwrap_or_default();
    let native = value(pod.metadata.labels.as_ref(), "networking.istio.io/tunnel");
    if native.split(',').any(|protocol| protocol == "http") {
        Tunnel::Native
    } else if value(pod.metadata.annotations.as_ref(), "ambient.istio.io/redirection") == "enabled" {
        Tunnel::Redirected
    } else {
        Tunnel::None
    }
}

fn locality(node: &Node) -> Option<Locality> {
    let labels = node.metadata.labels.as_ref()?;
    let label = |key: &str| labels.get(key).cloned().unwrap_or_default();
    let locality = Locality {
        region: label("topology.kubernetes.io/region"),
        zone: label("topology.kubernetes.io/zone"),
        subzone: label("topology.istio.io/subzone"),
    };
    (locality != Locality::default()).then_some(locality)
}

/// The name of what the pod is one of: its label says, else its owner, else it stands for itself.
fn workload_name(pod: &Pod) -> String {
    let labels = pod.metadata.labels.as_ref();
    let label =
        |key: &str| labels.and_then(|labels| labels.get(key)).map(String::as_str).filter(|value| !value.is_empty());
    if let Some(name) = label("service.istio.io/workload-name") {
        return name.to_owned();
    }
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.controller == Some(true));
    let Some(owner) = owner else {
        return pod.metadata.name.clone().unwrap_or_default();
    };
    let shorter = match owner.kind.as_str() {
        // Deployment → ReplicaSet `<deployment>-<hash>` → pod.
        "ReplicaSet" => ["pod-template-hash", "rollouts-pod-template-hash"]
            .into_iter()
            .filter_map(label)
            .find_map(|hash| owner.name.strip_suffix(hash)?.strip_suffix('-')),
        // CronJob → Job `<cron job>-<minutes since 1970>` → pod.
        "Job" => owner.name.rsplit_once('-').and_then(|(name, minutes)| {
            ((8..=10).contains(&minutes.len()) && minutes.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
        }),
        "ReplicationController" => label("deploymentconfig"),
        _ => None,
    };
    shorter.filter(|name| !name.is_empty()).unwrap_or(&owner.name).to_owned()
}

/// The service that the pod belongs to by its labels, and which revision of it.
fn canonical_service(labels: Option<&Labels>, workload_name: &str) -> (String, String) {
    let first = |keys: &[&str], or: &str| {
        let mut values = keys.iter().filter_map(|key| labels?.get(*key)).filter(|value| !value.is_empty());
        values.next().map_or_else(|| or.to_owned(), Clone::clone)
    };
    (
        first(&["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"], workload_name),
        first(&["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"], "latest"),
    )
}

fn pod_services<'a>(
    pod: &Pod,
    services: impl IntoIterator<Item = &'a Service>,
    mesh: &Mesh,
) -> BTreeMap<String, PortList> {
    let mut lists = BTreeMap::new();
    for service in services {
        let (Some(spec), Some(name), Some(namespace)) =
            (&service.spec, &service.metadata.name, &service.metadata.namespace)
        else {
            continue;
        };
        if !service_selects(service, pod) {
            continue;
        }
        // A port that the pod lacks is left out; a service without any is still the pod's.
        let resolved = ports(spec).iter().filter_map(|port| {
            let target_port = match target(port) {
                Target::Number(number) => number,
                Target::Name(name) => named_port(pod, name)?,
            };
            Some(Port { service_port: port.port.unsigned_abs(), target_port, app_protocol: 0 })
        });
        lists.insert(mesh.service_resource(namespace, name), PortList { ports: resolved.collect() });
    }
    lists
}

/// Whether the pod is behind the Service. One without a selector has endpoints of its own.
pub fn service_selects(service: &Service, pod: &Pod) -> bool {
    let Some(spec) = &service.spec else { return false };
    let selector = spec.selector.as_ref().filter(|selector| !selector.is_empty());
    spec.type_.as_deref() != Some("ExternalName")
        && service.metadata.namespace == pod.metadata.namespace
        && selector.is_some_and(|selector| selects(selector, pod.metadata.labels.as_ref()))
}

fn named_port(pod: &Pod, name: &str) -> Option<u32> {
    let spec = pod.spec.as_ref()?;
    // Native sidecars (restartable init containers) serve ports as well.
    let sidecars =
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let mut named =
        ports.filter(|port| port.name.as_deref() == Some(name) && port.protocol.as_deref().unwrap_or("TCP") == "TCP");
    named.next().map(|port| port.container_port.unsigned_abs())
}

/// The slice's TCP ports, joined with the Service's by name.
fn slice_ports(slice: &EndpointSlice, service: &Service) -> PortList {
    let service_ports = service.spec.as_ref().map(ports).unwrap_or_default();
    let joined =
        slice.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP").filter_map(
            |port| {
                let name = port.name.as_deref().unwrap_or_default();
                let of_service = service_ports.iter().find(|candidate| {
                    candidate.name.as_deref().unwrap_or_default() == name
                        && candidate.protocol.as_deref() != Some("UDP")
                })?;
                Some(Port {
                    service_port: of_service.port.unsigned_abs(),
                    target_port: port.port?.unsigned_abs(),
                    app_protocol: 0,
                })
            },
        );
    PortList { ports: joined.collect() }
}
