//! Services to EndpointSlices, rules and names. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};

use k8s_openapi::api::core::v1::{ObjectReference, Pod, Service, ServicePort as PortSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::hosts::HostEntry;
use super::rules::ServicePort;

#[cfg(test)]
mod tests;

/// A pod as Services see it.
#[derive(Debug, Clone)]
pub(super) struct PodView<'a> {
    pub(super) pod: &'a Pod,
    pub(super) ips: &'a [IpAddr],
    pub(super) node: &'a str,
    pub(super) uid: &'a str,
    /// Its readiness alone; being deleted is told apart.
    pub(super) ready: bool,
    pub(super) terminating: bool,
}

/// The slices of a Service: one for each address family and set of resolved ports. None for one without selector.
pub(super) fn slices(service: &Service, pods: &[PodView<'_>]) -> Vec<EndpointSlice> {
    let Some(backends) = selected(service, pods) else { return Vec::new() };
    let mut groups: BTreeMap<(bool, Vec<Option<u16>>), Vec<Endpoint>> = BTreeMap::new();
    let ports = ports(service);
    let always_ready = service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true);
    let families = families(service);
    for view in backends {
        let resolved: Vec<Option<u16>> = ports.iter().map(|port| target_port(port, view.pod)).collect();
        for ip in view.ips.iter().filter(|ip| families.contains(&ip.is_ipv6())) {
            let endpoint = endpoint(view, *ip, always_ready);
            groups.entry((ip.is_ipv6(), resolved.clone())).or_default().push(endpoint);
        }
    }
    // A Service without backends has a slice all the same, as in a cluster.
    for v6 in families {
        if !groups.keys().any(|(family, _)| *family == v6) {
            groups.insert((v6, ports.iter().map(number_target).collect()), Vec::new());
        }
    }
    let mut counts = BTreeMap::<bool, usize>::new();
    groups
        .into_iter()
        .map(|((v6, resolved), endpoints)| {
            let count = counts.entry(v6).or_default();
            *count += 1;
            slice(service, v6, *count, &ports, &resolved, endpoints)
        })
        .collect()
}

/// What nodes do with the Service's addresses.
pub(super) fn service_ports(service: &Service, pods: &[PodView<'_>]) -> Vec<ServicePort> {
    let mut list = Vec::new();
    let Some(backends) = selected(service, pods) else { return list };
    for address in cluster_ips(service) {
        for port in ports(service) {
            let to = |view: &PodView<'_>| {
                let target = target_port(port, view.pod)?;
                let ip = view.ips.iter().find(|ip| ip.is_ipv6() == address.is_ipv6())?;
                Some(SocketAddr::new(*ip, target))
            };
            let mut targets: Vec<SocketAddr> =
                backends.iter().filter(|view| view.ready && !view.terminating).filter_map(|view| to(view)).collect();
            if targets.is_empty() {
                // As kube-proxy: rather one that is on its way out and still serves than none.
                targets = backends.iter().filter(|view| view.ready).filter_map(|view| to(view)).collect();
            }
            targets.sort_unstable();
            let udp = port.protocol.as_deref() == Some("UDP");
            list.push(ServicePort { address, port: port_number(port.port), udp, backends: targets });
        }
    }
    list
}

/// The addresses that the Service's name stands for: its own, or its ready pods' if it has none.
pub(super) fn host_entry(service: &Service, pods: &[PodView<'_>]) -> HostEntry {
    let mut addresses = cluster_ips(service);
    if addresses.is_empty()
        && let Some(backends) = selected(service, pods)
    {
        let ready = backends.iter().filter(|view| view.ready && !view.terminating);
        addresses = ready.flat_map(|view| view.ips.iter().copied()).collect();
        addresses.sort_unstable();
    }
    HostEntry { namespace: namespace(service).to_owned(), service: name(service).to_owned(), addresses }
}

/// The Service's own addresses, as they stand in its spec.
pub(super) fn cluster_ips(service: &Service) -> Vec<IpAddr> {
    let Some(spec) = &service.spec else { return Vec::new() };
    let listed = spec.cluster_ips.as_deref().unwrap_or_default().iter();
    let all: BTreeSet<IpAddr> = listed.chain(&spec.cluster_ip).filter_map(|ip| ip.parse().ok()).collect();
    all.into_iter().collect()
}

fn selected<'a>(service: &Service, pods: &'a [PodView<'a>]) -> Option<Vec<&'a PodView<'a>>> {
    let selector = service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())?;
    let matches = |view: &&PodView<'_>| {
        let labels = view.pod.metadata.labels.as_ref();
        view.pod.metadata.namespace == service.metadata.namespace
            && !view.ips.is_empty()
            && selector.iter().all(|(key, value)| labels.and_then(|labels| labels.get(key)) == Some(value))
    };
    let mut found: Vec<_> = pods.iter().filter(matches).collect();
    found.sort_by_key(|view| view.ips);
    Some(found)
}

fn families(service: &Service) -> BTreeSet<bool> {
    let Some(spec) = &service.spec else { return BTreeSet::new() };
    match spec.ip_families.as_deref() {
        Some(families) if !families.is_empty() => families.iter().map(|family| family == "IPv6").collect(),
        _ => {
            let own: BTreeSet<bool> = cluster_ips(service).iter().map(IpAddr::is_ipv6).collect();
            if own.is_empty() { BTreeSet::from([false]) } else { own }
        }
    }
}

fn ports(service: &Service) -> Vec<&PortSpec> {
    service.spec.as_ref().and_then(|spec| spec.ports.as_ref()).into_iter().flatten().collect()
}

fn number_target(port: &&PortSpec) -> Option<u16> {
    match &port.target_port {
        None => Some(port_number(port.port)),
        Some(IntOrString::Int(number)) => Some(port_number(*number)),
        Some(IntOrString::String(_)) => None,
    }
}

/// The pod's port that the Service's port leads to; `None` if it names one that the pod lacks.
fn target_port(port: &PortSpec, pod: &Pod) -> Option<u16> {
    let Some(IntOrString::String(name)) = &port.target_port else { return number_target(&port) };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let mut ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let protocol = |protocol: &Option<String>| protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let found =
        ports.find(|found| found.name.as_ref() == Some(name) && protocol(&found.protocol) == protocol(&port.protocol));
    found.map(|found| port_number(found.container_port))
}

fn port_number(number: i32) -> u16 {
    u16::try_from(number).unwrap_or_default()
}

fn endpoint(view: &PodView<'_>, ip: IpAddr, always_ready: bool) -> Endpoint {
    let ready = always_ready || (view.ready && !view.terminating);
    Endpoint {
        addresses: vec![ip.to_string()],
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(always_ready || view.ready),
            terminating: Some(view.terminating),
        }),
        node_name: Some(view.node.to_owned()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: view.pod.metadata.namespace.clone(),
            name: view.pod.metadata.name.clone(),
            uid: Some(view.uid.to_owned()),
            ..ObjectReference::default()
        }),
        ..Endpoint::default()
    }
}

fn slice(
    service: &Service,
    v6: bool,
    count: usize,
    ports: &[&PortSpec],
    resolved: &[Option<u16>],
    endpoints: Vec<Endpoint>,
) -> EndpointSlice {
    let family = if v6 { "ipv6" } else { "ipv4" };
    let suffix = if count == 1 { String::new() } else { format!("-{count}") };
    let labels = BTreeMap::from([
        ("kubernetes.io/service-name".to_owned(), name(service).to_owned()),
        ("endpointslice.kubernetes.io/managed-by".to_owned(), "endpointslice-controller.k8s.io".to_owned()),
    ]);
    let ports = ports.iter().zip(resolved).filter_map(|(port, number)| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some((*number)?.into()),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    EndpointSlice {
        metadata: ObjectMeta {
            name: Some(format!("{}-{family}{suffix}", name(service))),
            namespace: service.metadata.namespace.clone(),
            labels: Some(labels),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".to_owned(),
                kind: "Service".to_owned(),
                name: name(service).to_owned(),
                uid: service.metadata.uid.clone().unwrap_or_default(),
                controller: Some(true),
                block_owner_deletion: Some(true),
            }]),
            ..ObjectMeta::default()
        },
        address_type: if v6 { "IPv6" } else { "IPv4" }.to_owned(),
        endpoints: Some(endpoints),
        ports: Some(ports.collect()),
    }
}

fn name(service: &Service) -> &str {
    service.metadata.name.as_deref().unwrap_or_default()
}

fn namespace(service: &Service) -> &str {
    service.metadata.namespace.as_deref().unwrap_or_default()
}
