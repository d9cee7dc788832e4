//! ServiceEntry → a service for each of its hosts, and a workload for each of its endpoints.
//!
//! ```text
//!   hosts, ports, addresses ─▶ Service per host that the entry wins
//!   endpoints ─▶ Workload each; none with DNS: one for each host, which is looked up
//!   workloadSelector ─▶ pods and WorkloadEntries of the namespace, see `workload`, `workload_entry`
//!   no addresses ─▶ automatic ones: those that stand in its status, and no others
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::sync::Arc;

use aquifer_objects::crds::service_entry::{Resolution, ServicePort};
use aquifer_objects::crds::{ServiceEntry, WorkloadEntrySpec};
use aquifer_proto::workload::load_balancing::{HealthPolicy, Mode};
use aquifer_proto::workload::{self as proto, LoadBalancing, NetworkAddress, Workload};
use k8s_openapi::jiff::Timestamp;

use super::labels::{Interner, LabelSet, Labels};
use super::namespace::NamespaceFacts;
use super::pod::{Tunnel, canonical_service, tunnel};
use super::service::{BackendPort, Distribution, Target, declared_protocol};
use super::status::is_ours;
use super::visibility::Visibility;
use super::waypoint::{Binding, Wish};
use super::workload::{Backend, Standing, set_tunnel};
use super::workload_entry::endpoint;
use super::{Mesh, address_bytes};

const AUTO_ALLOCATE: &str = "networking.istio.io/enable-autoallocate-ip";
const CONNECT_STRATEGY: &str = "istio.io/connect-strategy";
/// 240.240.0.0/16 and 2001:2::/48.
const AUTOMATIC_V4: [u8; 2] = [240, 240];
const AUTOMATIC_V6: [u16; 3] = [0x2001, 0x2, 0];

/// The facts of a ServiceEntry.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceEntryFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// When it was made; `None` sorts before all times.
    pub created: Option<Timestamp>,
    /// Its hosts, each once.
    pub hosts: Box<[Arc<str>]>,
    /// Its ports.
    pub ports: Arc<[BackendPort]>,
    /// The labels of the pods and WorkloadEntries behind it.
    pub selector: Option<Labels>,
    /// Which waypoint it wishes.
    pub wish: Wish,
    /// Its labels.
    pub labels: Arc<LabelSet>,
    /// Automatic addresses as they stand in its status, by host.
    pub allocated: BTreeMap<Arc<str>, Vec<IpAddr>>,
    /// Whether it is to have automatic addresses.
    pub wants_addresses: bool,
    /// Whether connections are to race each other, which only a waypoint can do.
    pub races: bool,
    /// Whether conditions of ours stand in its status.
    pub has_conditions: bool,
    /// Whether it says to whom it is exported, which counts for nothing here.
    pub exports: bool,
    resolution: Resolution,
    addresses: Box<[(IpAddr, Option<u32>)]>,
    endpoints: Arc<[WorkloadEntrySpec]>,
    subject_alt_names: Vec<String>,
    distribution: Option<Distribution>,
    tunnel: Tunnel,
}

impl ServiceEntryFacts {
    /// The facts of a ServiceEntry.
    pub fn of(entry: &ServiceEntry, interner: &mut Interner) -> Self {
        let (spec, meta) = (&entry.spec, &entry.metadata);
        let labels = interner.labels(meta.labels.as_ref());
        let namespace = interner.string(meta.namespace.as_deref().unwrap_or_default());
        let annotation = |key: &str| meta.annotations.as_ref().and_then(|all| all.get(key)).map(String::as_str);
        let mut seen = BTreeSet::new();
        let hosts = spec.hosts.iter().filter(|host| seen.insert(host.as_str()));
        let status = entry.status.as_ref();
        let mut allocated: BTreeMap<Arc<str>, Vec<IpAddr>> = BTreeMap::new();
        for address in status.iter().flat_map(|status| &status.addresses) {
            // One that cannot be read was not written by us, and is of no use.
            if let Ok(ip) = address.value.parse() {
                allocated.entry(interner.string(&address.host)).or_default().push(ip);
            }
        }
        let resolution = spec.resolution.unwrap_or(Resolution::None);
        let opted_out = labels.get(AUTO_ALLOCATE).is_some_and(|value| value.eq_ignore_ascii_case("false"));
        Self {
            name: interner.string(meta.name.as_deref().unwrap_or_default()),
            created: meta.creation_timestamp.as_ref().map(|time| time.0),
            hosts: hosts.map(|host| interner.string(host)).collect(),
            ports: spec.ports.iter().map(|port| backend_port(port, interner)).collect(),
            selector: spec.workload_selector.as_ref().map(|selector| selector.labels.clone()),
            wish: Wish::of(&labels, meta.annotations.as_ref(), &namespace),
            namespace,
            allocated,
            wants_addresses: spec.addresses.is_empty() && resolution != Resolution::None && !opted_out,
            races: annotation(CONNECT_STRATEGY) == Some("RACE_FIRST_TCP_CONNECT"),
            has_conditions: status
                .is_some_and(|status| status.conditions.iter().any(|condition| is_ours(&condition.type_))),
            exports: !spec.export_to.is_empty(),
            resolution,
            addresses: spec.addresses.iter().filter_map(|address| network(address)).collect(),
            endpoints: spec.endpoints.iter().cloned().collect(),
            subject_alt_names: spec.subject_alt_names.clone(),
            distribution: Distribution::of(None, meta.annotations.as_ref()),
            tunnel: tunnel(&labels, meta.annotations.as_ref()),
            labels,
        }
    }

    /// The hosts that are to have automatic addresses.
    pub fn hosts_without_addresses(&self) -> impl Iterator<Item = &Arc<str>> {
        self.hosts.iter().filter(|host| self.wants_addresses && self.may_have_automatic(host))
    }

    /// What a wildcard stands for is not known, unless it is looked up for each connection.
    fn may_have_automatic(&self, host: &str) -> bool {
        !is_wildcard(host) || self.resolution == Resolution::DynamicDns
    }

    /// Whether one of its hosts stands for many.
    pub fn has_wildcard(&self) -> bool {
        self.hosts.iter().any(|host| is_wildcard(host))
    }

    /// The service of one host, as those behind it see it.
    pub fn backend(&self, host: &str) -> Backend {
        Backend { resource: format!("{}/{host}", self.namespace), of_entry: true, ports: self.ports.clone() }
    }

    /// The resource of one host.
    pub fn message(
        &self,
        host: &str,
        canonical: bool,
        visibility: Visibility,
        namespace: &NamespaceFacts,
        binding: &Binding,
        mesh: &Mesh,
    ) -> proto::Service {
        let at =
            |ip: IpAddr, length| NetworkAddress { network: mesh.network.clone(), address: address_bytes(ip), length };
        let mut addresses: Vec<NetworkAddress> = self.addresses.iter().map(|(ip, length)| at(*ip, *length)).collect();
        if self.wants_addresses && self.may_have_automatic(host) {
            addresses.extend(self.allocated.get(host).into_iter().flatten().map(|ip| at(*ip, None)));
        }
        let load_balancing = if self.resolution == Resolution::None {
            Some(LoadBalancing {
                mode: Mode::Passthrough.into(),
                health_policy: HealthPolicy::AllowAll.into(),
                ..Default::default()
            })
        } else {
            self.distribution.or(namespace.distribution).and_then(Distribution::message)
        };
        proto::Service {
            name: (*self.name).to_owned(),
            namespace: (*self.namespace).to_owned(),
            hostname: host.to_owned(),
            addresses,
            ports: self.ports.iter().map(BackendPort::message).collect(),
            subject_alt_names: self.subject_alt_names.clone(),
            load_balancing,
            canonical,
            visibility: visibility.message(),
            waypoint: binding.address(),
            weighted_waypoints: binding.weighted(),
            ingress_use_waypoint: binding.ingress_too(),
            ..Default::default()
        }
    }

    /// The labels of each endpoint, in which a waypoint may be named.
    pub fn endpoint_labels(&self) -> impl Iterator<Item = &Labels> {
        self.endpoints.iter().map(|endpoint| &endpoint.labels)
    }

    /// The resources of the endpoints, or of the hosts themselves where they are looked up. `hosts` are those that the
    /// entry wins, `policies` the names that each must list, by labels.
    pub fn workloads(
        &self,
        hosts: &[Arc<str>],
        policies: &dyn Fn(&LabelSet) -> Vec<String>,
        standing: &dyn Fn(&Labels) -> Standing,
        mesh: &Mesh,
    ) -> Vec<Workload> {
        if hosts.is_empty() {
            return Vec::new();
        }
        if self.endpoints.is_empty() {
            let looked_up =
                matches!(self.resolution, Resolution::Dns | Resolution::DnsRoundRobin | Resolution::DynamicDns);
            if !looked_up || self.selector.is_some() {
                return Vec::new();
            }
            let of_host = |host: &Arc<str>| {
                let spec = WorkloadEntrySpec { address: Some((**host).to_owned()), ..Default::default() };
                self.workload(&spec, &[self.backend(host)], policies(&self.labels), &Standing::Plain, mesh)
            };
            return hosts.iter().filter_map(of_host).collect();
        }
        let services: Vec<Backend> = hosts.iter().map(|host| self.backend(host)).collect();
        let mut seen = BTreeSet::new();
        let of_endpoint = |spec: &WorkloadEntrySpec| {
            // Of two endpoints with one address, the first.
            if !seen.insert(spec.address.clone()) {
                return None;
            }
            // Its own labels, or the entry's where it has none.
            let labels = if spec.labels.is_empty() { &*self.labels } else { &LabelSet::from(&spec.labels) };
            self.workload(spec, &services, policies(labels), &standing(&spec.labels), mesh)
        };
        self.endpoints.iter().filter_map(of_endpoint).collect()
    }

    fn workload(
        &self,
        spec: &WorkloadEntrySpec,
        services: &[Backend],
        policies: Vec<String>,
        standing: &Standing,
        mesh: &Mesh,
    ) -> Option<Workload> {
        let mut made = endpoint(spec, &mesh.network, services, mesh)?;
        (made.canonical_name, made.canonical_revision) = canonical_service(&self.labels, &self.name);
        made.uid = format!(
            "{}/networking.istio.io/ServiceEntry/{}/{}/{}",
            mesh.cluster_id,
            self.namespace,
            self.name,
            spec.address.as_deref().unwrap_or_default()
        );
        made.name = (*self.name).to_owned();
        made.namespace = (*self.namespace).to_owned();
        made.workload_name = (*self.name).to_owned();
        made.authorization_policies = policies;
        set_tunnel(&mut made, self.tunnel);
        standing.apply(&mut made);
        Some(made)
    }
}

/// The automatic address of a number between 1 and 65534.
pub fn automatic(number: u16) -> [IpAddr; 2] {
    let [high, low] = number.to_be_bytes();
    let [a, b, c] = AUTOMATIC_V6;
    [
        Ipv4Addr::new(AUTOMATIC_V4[0], AUTOMATIC_V4[1], high, low).into(),
        Ipv6Addr::new(a, b, c, 0, 0, 0, 0, number).into(),
    ]
}

fn is_wildcard(host: &str) -> bool {
    host.starts_with('*')
}

fn backend_port(port: &ServicePort, interner: &mut Interner) -> BackendPort {
    BackendPort {
        number: port.number,
        name: interner.string(&port.name),
        target: Target::Number(port.target_port.filter(|target| *target > 0).unwrap_or(port.number)),
        app_protocol: declared_protocol(port.protocol.as_deref().unwrap_or_default()),
    }
}

/// An address, or a network with the length of its prefix. A prefix as long as the address is an address.
fn network(text: &str) -> Option<(IpAddr, Option<u32>)> {
    let Some((ip, length)) = text.split_once('/') else { return Some((text.parse().ok()?, None)) };
    let ip: IpAddr = ip.parse().ok()?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    let length: u32 = length.parse().ok().filter(|length| *length <= longest)?;
    Some((masked(ip, length), (length < longest).then_some(length)))
}

fn masked(ip: IpAddr, length: u32) -> IpAddr {
    match ip {
        IpAddr::V4(ip) => Ipv4Addr::from_bits(ip.to_bits() & u32::MAX.checked_shl(32 - length).unwrap_or(0)).into(),
        IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() & u128::MAX.checked_shl(128 - length).unwrap_or(0)).into(),
    }
}
