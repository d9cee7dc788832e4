//! EndpointSlice → the workloads that are not pods, and the pods that a Service without a selector stands for.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use aquifer_proto::workload::{NetworkMode, Port, PortList, Workload, WorkloadStatus};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::labels::Interner;
use super::service::ServiceFacts;
use super::{Mesh, address_bytes};

/// The facts of an EndpointSlice that belongs to a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SliceFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// The Service that it belongs to.
    pub service: Arc<str>,
    /// The pods that it names, sorted.
    pub pods: Box<[Arc<str>]>,
    /// The addresses of which nothing else is known.
    endpoints: Box<[Endpoint]>,
    /// TCP ports: name and number.
    ports: Box<[(Arc<str>, u32)]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Endpoint {
    /// The first address as it is written.
    first: Box<str>,
    addresses: Box<[IpAddr]>,
    ready: bool,
}

impl SliceFacts {
    /// The facts of a slice; `None` for one that belongs to no Service, or whose endpoints are names.
    pub fn of(slice: &EndpointSlice, interner: &mut Interner) -> Option<Self> {
        let service = slice.metadata.labels.as_ref()?.get("kubernetes.io/service-name")?;
        if slice.address_type == "FQDN" {
            return None;
        }
        let mut pods = BTreeSet::new();
        let mut seen = BTreeSet::new();
        let mut endpoints = Vec::new();
        for endpoint in slice.endpoints.iter().flatten() {
            if let Some(target) = endpoint.target_ref.as_ref().filter(|target| target.kind.as_deref() == Some("Pod")) {
                pods.extend(target.name.as_deref().map(|name| interner.string(name)));
                continue;
            }
            let Some(first) = endpoint.addresses.first() else { continue };
            let addresses: Option<Box<[IpAddr]>> = endpoint.addresses.iter().map(|ip| ip.parse().ok()).collect();
            let Some(addresses) = addresses else { continue };
            if seen.insert(first) {
                // An absent condition means ready (EndpointConditions).
                let ready = endpoint.conditions.as_ref().and_then(|conditions| conditions.ready).unwrap_or(true);
                endpoints.push(Endpoint { first: first.as_str().into(), addresses, ready });
            }
        }
        let ports = slice.ports.iter().flatten().filter(|port| port.protocol.as_deref().unwrap_or("TCP") == "TCP");
        Some(Self {
            name: interner.string(slice.metadata.name.as_deref()?),
            namespace: interner.string(slice.metadata.namespace.as_deref()?),
            service: interner.string(service),
            pods: pods.into_iter().collect(),
            endpoints: endpoints.into(),
            ports: ports
                .filter_map(|port| {
                    let name = interner.string(port.name.as_deref().unwrap_or_default());
                    Some((name, port.port?.unsigned_abs()))
                })
                .collect(),
        })
    }

    /// Whether all its endpoints are pods, which speak for themselves.
    pub fn is_of_pods(&self) -> bool {
        self.endpoints.is_empty()
    }

    /// The resources of the endpoints that are not pods.
    pub fn workloads(&self, service: &ServiceFacts, mesh: &Mesh) -> Vec<Workload> {
        if !service.published {
            return Vec::new();
        }
        let resource = mesh.service_resource(&self.namespace, &self.service);
        let services = BTreeMap::from([(resource, self.service_ports(service))]);
        let workload = |endpoint: &Endpoint| Workload {
            uid: format!(
                "{}/discovery.k8s.io/EndpointSlice/{}/{}/{}",
                mesh.cluster_id, self.namespace, self.name, endpoint.first
            ),
            name: (*self.name).to_owned(),
            namespace: (*self.namespace).to_owned(),
            network: mesh.network.clone(),
            cluster_id: mesh.cluster_id.clone(),
            trust_domain: mesh.sent_trust_domain(),
            addresses: endpoint.addresses.iter().map(|ip| address_bytes(*ip)).collect(),
            services: services.clone(),
            status: if endpoint.ready { WorkloadStatus::Healthy } else { WorkloadStatus::Unhealthy }.into(),
            // The address may be anybody's, so nobody is looked up by it.
            network_mode: NetworkMode::HostNetwork.into(),
            ..Default::default()
        };
        self.endpoints.iter().map(workload).collect()
    }

    /// The slice's ports, joined with the Service's by name.
    fn service_ports(&self, service: &ServiceFacts) -> PortList {
        let joined = self.ports.iter().filter_map(|(name, target_port)| {
            let of_service = service.ports.iter().find(|port| port.name == *name)?;
            Some(Port { service_port: of_service.number, target_port: *target_port, app_protocol: 0 })
        });
        PortList { ports: joined.collect() }
    }
}
