//! Service → istio.workload.Service.

use std::net::IpAddr;
use std::sync::Arc;

use aquifer_proto::workload::load_balancing::{HealthPolicy, Mode, Scope};
use aquifer_proto::workload::{self as proto, AppProtocol, IpFamilies, LoadBalancing, NetworkAddress, Port};
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels::{Interner, Labels};
use super::namespace::NamespaceFacts;
use super::waypoint::{Binding, Wish, never_bound};
use super::{Mesh, address_bytes};

/// The annotation for clusters whose Service has no `trafficDistribution` yet, and for its further values.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// The facts of a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFacts {
    /// Its name.
    pub name: Arc<str>,
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Whether it is a service of the mesh: ExternalName is not, nor one with an address that is none.
    pub published: bool,
    /// Which waypoint it wishes.
    pub wish: Wish,
    /// Whether it belongs to a gateway, so that it is bound to no waypoint.
    pub never_bound: bool,
    /// Its ports.
    pub ports: Arc<[BackendPort]>,
    /// The labels of the pods behind it; `None` if its endpoints are somebody else's to say.
    pub selector: Option<Labels>,
    /// Whether conditions of ours stand in its status.
    pub has_conditions: bool,
    addresses: Box<[IpAddr]>,
    families: IpFamilies,
    node_local: bool,
    distribution: Option<Distribution>,
    not_ready_too: bool,
}

/// A port of a service, and where it leads.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendPort {
    /// The number.
    pub number: u32,
    /// The name; may be empty.
    pub name: Arc<str>,
    /// Where it leads.
    pub target: Target,
    /// What is spoken.
    pub app_protocol: AppProtocol,
}

/// Where a port leads: a number, or a name that each pod resolves for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// This port.
    Number(u32),
    /// The port of that name.
    Name(Arc<str>),
}

impl BackendPort {
    /// As it stands in a Service.
    pub fn message(&self) -> Port {
        Port {
            service_port: self.number,
            // 0 says: by name, see the workload.
            target_port: match self.target {
                Target::Number(number) => number,
                Target::Name(_) => 0,
            },
            app_protocol: self.app_protocol.into(),
        }
    }
}

impl ServiceFacts {
    /// The facts of a Service.
    pub fn of(service: &Service, interner: &mut Interner) -> Self {
        let default = ServiceSpec::default();
        let spec = service.spec.as_ref().unwrap_or(&default);
        let labels = interner.labels(service.metadata.labels.as_ref());
        let annotations = service.metadata.annotations.as_ref();
        let namespace = interner.string(service.metadata.namespace.as_deref().unwrap_or_default());
        let addresses: Option<Box<[IpAddr]>> = vips(service, spec).into_iter().map(|vip| vip.parse().ok()).collect();
        let published = service.spec.is_some() && addresses.is_some() && spec.type_.as_deref() != Some("ExternalName");
        let addresses = addresses.unwrap_or_default();
        let conditions = service.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        Self {
            name: interner.string(service.metadata.name.as_deref().unwrap_or_default()),
            wish: Wish::of(&labels, annotations, &namespace),
            never_bound: never_bound(&labels),
            namespace,
            published,
            ports: spec.ports.iter().flatten().map(|port| backend_port(port, interner)).collect(),
            selector: spec.selector.clone().filter(|selector| published && !selector.is_empty()),
            has_conditions: conditions.iter().any(|condition| super::status::is_ours(&condition.type_)),
            families: ip_families(spec, &addresses),
            addresses,
            node_local: spec.internal_traffic_policy.as_deref() == Some("Local"),
            distribution: Distribution::of(spec.traffic_distribution.as_deref(), annotations),
            not_ready_too: spec.publish_not_ready_addresses == Some(true),
        }
    }

    /// The resource; `None` if it is no service of the mesh.
    pub fn message(&self, namespace: &NamespaceFacts, binding: &Binding, mesh: &Mesh) -> Option<proto::Service> {
        if !self.published {
            return None;
        }
        let address =
            |ip: &IpAddr| NetworkAddress { network: mesh.network.clone(), address: address_bytes(*ip), length: None };
        Some(proto::Service {
            name: (*self.name).to_owned(),
            namespace: (*self.namespace).to_owned(),
            hostname: mesh.service_hostname(&self.namespace, &self.name),
            addresses: self.addresses.iter().map(address).collect(),
            ports: self.ports.iter().map(BackendPort::message).collect(),
            ip_families: self.families.into(),
            load_balancing: self.load_balancing(namespace),
            waypoint: binding.address(),
            weighted_waypoints: binding.weighted(),
            ingress_use_waypoint: binding.ingress_too(),
            canonical: true,
            ..Default::default()
        })
    }

    fn load_balancing(&self, namespace: &NamespaceFacts) -> Option<LoadBalancing> {
        let mut made = if self.node_local {
            Some(LoadBalancing {
                routing_preference: vec![Scope::Node.into()],
                mode: Mode::Strict.into(),
                ..Default::default()
            })
        } else {
            self.distribution.or(namespace.distribution).and_then(Distribution::message)
        };
        if self.not_ready_too {
            made.get_or_insert_default().health_policy = HealthPolicy::AllowAll.into();
        }
        made
    }
}

/// The aliases of a service: its addresses.
pub fn aliases(service: &proto::Service) -> Vec<String> {
    service.addresses.iter().filter_map(|at| super::alias(&at.network, &at.address, at.length)).collect()
}

/// Which endpoints are preferred.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Distribution {
    /// None.
    Any,
    /// Those of the caller's zone.
    Zone,
    /// Those of the caller's node, then of its zone.
    Node,
}

impl Distribution {
    /// What a field says, else an annotation; `None` if both are silent. Who says something unknown asks for none.
    pub fn of(field: Option<&str>, annotations: Option<&Labels>) -> Option<Self> {
        let annotation = || annotations.and_then(|all| all.get(TRAFFIC_DISTRIBUTION)).map(String::as_str);
        Some(match field.or_else(annotation)?.to_ascii_lowercase().as_str() {
            "preferclose" | "prefersamezone" => Self::Zone,
            "prefersamenode" => Self::Node,
            _ => Self::Any,
        })
    }

    /// As it stands in a Service.
    pub fn message(self) -> Option<LoadBalancing> {
        let scopes: &[Scope] = match self {
            Self::Any => return None,
            Self::Zone => &[Scope::Network, Scope::Region, Scope::Zone],
            Self::Node => &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node],
        };
        Some(LoadBalancing {
            routing_preference: scopes.iter().map(|scope| i32::from(*scope)).collect(),
            mode: Mode::Failover.into(),
            ..Default::default()
        })
    }
}

fn backend_port(port: &ServicePort, interner: &mut Interner) -> BackendPort {
    let target = match &port.target_port {
        Some(IntOrString::String(name)) => match name.parse() {
            Ok(number) => Target::Number(number),
            Err(_) => Target::Name(interner.string(name)),
        },
        Some(IntOrString::Int(number)) if *number > 0 => Target::Number(number.unsigned_abs()),
        // The API server fills in the port itself.
        _ => Target::Number(port.port.unsigned_abs()),
    };
    BackendPort {
        number: port.port.unsigned_abs(),
        name: interner.string(port.name.as_deref().unwrap_or_default()),
        target,
        app_protocol: app_protocol(port),
    }
}

/// `appProtocol`, else the first part of the port's name, else what everybody knows of the number.
fn app_protocol(port: &ServicePort) -> AppProtocol {
    if port.protocol.as_deref() == Some("UDP") {
        return AppProtocol::Unknown;
    }
    let declared = match port.app_protocol.as_deref() {
        Some("kubernetes.io/h2c") => return AppProtocol::Http2,
        Some("kubernetes.io/ws") => return AppProtocol::Http11,
        Some("kubernetes.io/wss") => return AppProtocol::Tls,
        Some(declared) => declared,
        None => port.name.as_deref().unwrap_or_default(),
    };
    match declared_protocol(declared) {
        // SMTP, DNS, MySQL, MongoDB.
        AppProtocol::Unknown
            if !declared.to_ascii_lowercase().starts_with("grpc-web") && [25, 53, 3306, 27017].contains(&port.port) =>
        {
            AppProtocol::Tcp
        }
        known => known,
    }
}

/// The protocol that a name or a declaration begins with.
pub(super) fn declared_protocol(declared: &str) -> AppProtocol {
    let declared = declared.to_ascii_lowercase();
    if declared.starts_with("grpc-web") {
        // It is spoken over HTTP/1.1 and HTTP/2 alike, so nothing can be presumed.
        return AppProtocol::Unknown;
    }
    match declared.split('-').next().unwrap_or_default() {
        "http" => AppProtocol::Http11,
        "http2" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" => AppProtocol::Tls,
        "tcp" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

/// Cluster addresses, then those of the load balancer before it.
fn vips<'a>(service: &'a Service, spec: &'a ServiceSpec) -> Vec<&'a str> {
    let many = spec.cluster_ips.as_deref().unwrap_or_default();
    let cluster: Vec<&str> = match many {
        [] => spec.cluster_ip.iter().map(String::as_str).collect(),
        many => many.iter().map(String::as_str).collect(),
    };
    let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress =
        status.iter().flat_map(|status| status.ingress.iter().flatten()).filter_map(|ingress| ingress.ip.as_deref());
    cluster.into_iter().chain(ingress).filter(|ip| !ip.is_empty() && *ip != "None").collect()
}

fn ip_families(spec: &ServiceSpec, addresses: &[IpAddr]) -> IpFamilies {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    // A manifest that no API server has seen may lack the families; the addresses tell them.
    let has = |family: &str, of_family: fn(&IpAddr) -> bool| {
        families.iter().any(|held| held == family) || (families.is_empty() && addresses.iter().any(of_family))
    };
    match (has("IPv4", IpAddr::is_ipv4), has("IPv6", IpAddr::is_ipv6)) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}
