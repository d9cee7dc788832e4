//! Service → istio.workload.Service.

use aquifer_proto::workload::load_balancing::{HealthPolicy, Mode, Scope};
use aquifer_proto::workload::{self as proto, AppProtocol, IpFamilies, LoadBalancing, NetworkAddress, Port};
use k8s_openapi::api::core::v1::{Namespace, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::{Labels, Mesh, address_bytes};

/// The annotation for clusters whose Service has no `trafficDistribution` yet, and for its further values.
const TRAFFIC_DISTRIBUTION: &str = "networking.istio.io/traffic-distribution";

/// The resource of a Service; `None` if it has none (ExternalName, or an address that is none).
pub fn service(service: &Service, namespace: Option<&Namespace>, mesh: &Mesh) -> Option<proto::Service> {
    let spec = service.spec.as_ref()?;
    if spec.type_.as_deref() == Some("ExternalName") {
        return None;
    }
    let name = service.metadata.name.clone()?;
    let in_namespace = service.metadata.namespace.clone()?;
    let mut addresses = Vec::new();
    for vip in vips(service) {
        let address = address_bytes(vip.parse().ok()?);
        addresses.push(NetworkAddress { network: mesh.network.clone(), address, length: None });
    }
    Some(proto::Service {
        hostname: mesh.service_hostname(&in_namespace, &name),
        ip_families: ip_families(spec, &addresses).into(),
        ports: ports(spec).iter().map(port).collect(),
        load_balancing: load_balancing(service, namespace),
        canonical: true,
        name,
        namespace: in_namespace,
        addresses,
        ..Default::default()
    })
}

/// The aliases of a service: its addresses.
pub fn aliases(service: &proto::Service) -> Vec<String> {
    service.addresses.iter().filter_map(|at| super::alias(&at.network, &at.address, at.length)).collect()
}

/// A Service's ports.
pub(super) fn ports(spec: &ServiceSpec) -> &[ServicePort] {
    spec.ports.as_deref().unwrap_or_default()
}

/// Where a Service port leads: a number, or a name that each pod resolves for itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target<'a> {
    Number(u32),
    Name(&'a str),
}

/// The target of a Service port.
pub(super) fn target(port: &ServicePort) -> Target<'_> {
    match &port.target_port {
        Some(IntOrString::String(name)) => match name.parse() {
            Ok(number) => Target::Number(number),
            Err(_) => Target::Name(name),
        },
        Some(IntOrString::Int(number)) if *number > 0 => Target::Number(number.unsigned_abs()),
        // The API server fills in the port itself.
        _ => Target::Number(port.port.unsigned_abs()),
    }
}

fn port(port: &ServicePort) -> Port {
    Port {
        service_port: port.port.unsigned_abs(),
        // 0 says: by name, see the workload.
        target_port: match target(port) {
            Target::Number(number) => number,
            Target::Name(_) => 0,
        },
        app_protocol: app_protocol(port).into(),
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
        // SMTP, DNS, MySQL, MongoDB.
        _ if [25, 53, 3306, 27017].contains(&port.port) => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

/// Cluster addresses, then those of the load balancer before it.
fn vips(service: &Service) -> Vec<&str> {
    let Some(spec) = &service.spec else { return Vec::new() };
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

fn ip_families(spec: &ServiceSpec, addresses: &[NetworkAddress]) -> IpFamilies {
    let families = spec.ip_families.as_deref().unwrap_or_default();
    // A manifest that no API server has seen may lack the families; the addresses tell them.
    let v4 = families.iter().any(|family| family == "IPv4")
        || (families.is_empty() && addresses.iter().any(|at| at.address.len() == 4));
    let v6 = families.iter().any(|family| family == "IPv6")
        || (families.is_empty() && addresses.iter().any(|at| at.address.len() == 16));
    match (v4, v6) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

fn load_balancing(service: &Service, namespace: Option<&Namespace>) -> Option<LoadBalancing> {
    let spec = service.spec.as_ref()?;
    let (scopes, mode): (&[Scope], Mode) = if spec.internal_traffic_policy.as_deref() == Some("Local") {
        (&[Scope::Node], Mode::Strict)
    } else {
        match distribution(service, namespace) {
            Distribution::Any => (&[], Mode::UnspecifiedMode),
            Distribution::Zone => (&[Scope::Network, Scope::Region, Scope::Zone], Mode::Failover),
            Distribution::Node => {
                (&[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node], Mode::Failover)
            }
        }
    };
    let not_ready_too = spec.publish_not_ready_addresses == Some(true);
    if scopes.is_empty() && !not_ready_too {
        return None;
    }
    let health_policy = if not_ready_too { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    Some(LoadBalancing {
        routing_preference: scopes.iter().map(|scope| i32::from(*scope)).collect(),
        mode: mode.into(),
        health_policy: health_policy.into(),
    })
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Distribution {
    Any,
    Zone,
    Node,
}

/// The Service's field, else its annotation, else its namespace's.
fn distribution(service: &Service, namespace: Option<&Namespace>) -> Distribution {
    let field = service.spec.as_ref().and_then(|spec| spec.traffic_distribution.as_deref());
    let annotated = |annotations: Option<&Labels>| annotations.and_then(|all| all.get(TRAFFIC_DISTRIBUTION)).cloned();
    let value = field
        .map(str::to_owned)
        .or_else(|| annotated(service.metadata.annotations.as_ref()))
        .or_else(|| annotated(namespace.and_then(|namespace| namespace.metadata.annotations.as_ref())));
    match value.unwrap_or_default().to_ascii_lowercase().as_str() {
        "preferclose" | "prefersamezone" => Distribution::Zone,
        "prefersamenode" => Distribution::Node,
        _ => Distribution::Any,
    }
}
