//! Gateway → the waypoint that it is.

use std::collections::BTreeSet;
use std::net::IpAddr;
use std::sync::Arc;

use aquifer_objects::crds::gateway_api::gateway::{FromNamespaces, GatewayStatusAddress, Listener};
use aquifer_objects::crds::{Gateway, GatewayClass};
use aquifer_proto::workload::application_tunnel::Protocol;
use aquifer_proto::workload::gateway_address::Destination;
use aquifer_proto::workload::{ApplicationTunnel, GatewayAddress, NamespacedHostname, NetworkAddress};

use super::labels::Selector;
use super::waypoint::{Allowed, Key, Waypoint};
use super::{Mesh, address_bytes};

const WAYPOINT_FOR: &str = "istio.io/waypoint-for";
const INBOUND_BINDING: &str = "ambient.istio.io/waypoint-inbound-binding";
const HBONE_PORT: u16 = 15008;
/// The protocol of a listener that takes connections with a PROXY header.
const PROXY_PROTOCOL: &str = "istio.io/PROXY";

/// The controller of waypoints.
pub const MESH_CONTROLLER: &str = "istio.io/mesh-controller";

/// The waypoint that a Gateway is; `None` as long as it has no address.
pub fn waypoint(
    key: &Key,
    gateway: &Gateway,
    class: Option<&GatewayClass>,
    accounts: BTreeSet<Arc<str>>,
    mesh: &Mesh,
) -> Option<Waypoint> {
    let addresses = gateway.status.as_ref().map(|status| status.addresses.as_slice()).unwrap_or_default();
    let label = |labels: Option<&super::Labels>| labels.and_then(|labels| labels.get(WAYPOINT_FOR)).cloned();
    let traffic = label(gateway.metadata.labels.as_ref())
        .or_else(|| label(class.and_then(|class| class.metadata.labels.as_ref())))
        .unwrap_or_else(|| "service".to_owned());
    let tunnel = tunnel(gateway, class);
    Some(Waypoint {
        key: key.clone(),
        address: address(&key.0, addresses, mesh)?,
        traffic,
        allowed: allowed(listener(&gateway.spec.listeners, tunnel)),
        tunnel,
        accounts,
    })
}

/// A name says more than an address: it stays when the address changes, and it is one where addresses are two.
fn address(namespace: &str, addresses: &[GatewayStatusAddress], mesh: &Mesh) -> Option<GatewayAddress> {
    // The API's default is an address.
    let is = |address: &GatewayStatusAddress, wanted| address.type_.as_deref().unwrap_or("IPAddress") == wanted;
    let hostname = addresses.iter().find(|address| is(address, "Hostname")).map(|address| {
        Destination::Hostname(NamespacedHostname { namespace: namespace.to_owned(), hostname: address.value.clone() })
    });
    let ip = || {
        let mut addresses = addresses.iter().filter(|address| is(address, "IPAddress"));
        let ip: IpAddr = addresses.find_map(|address| address.value.parse().ok())?;
        Some(Destination::Address(NetworkAddress {
            network: mesh.network.clone(),
            address: address_bytes(ip),
            length: None,
        }))
    };
    let destination = hostname.or_else(ip)?;
    Some(GatewayAddress { destination: Some(destination), hbone_mtls_port: u32::from(HBONE_PORT) })
}

/// `<protocol>` or `<protocol>/<port>`; what cannot be read says nothing.
fn tunnel(gateway: &Gateway, class: Option<&GatewayClass>) -> Option<ApplicationTunnel> {
    let annotation =
        |annotations: Option<&super::Labels>| annotations.and_then(|all| all.get(INBOUND_BINDING)).cloned();
    let written = annotation(gateway.metadata.annotations.as_ref())
        .or_else(|| annotation(class.and_then(|class| class.metadata.annotations.as_ref())))?;
    let (protocol, port) = written.split_once('/').map_or((written.as_str(), None), |(a, b)| (a, Some(b)));
    let protocol = match protocol {
        "NONE" => Protocol::None,
        "PROXY" => Protocol::Proxy,
        _ => return None,
    };
    let port = port.map_or(Some(0), |port| port.parse::<u16>().ok())?;
    Some(ApplicationTunnel { protocol: protocol.into(), port: u32::from(port) })
}

/// The listener that the node proxy hands connections to, else the HBONE one.
fn listener(listeners: &[Listener], tunnel: Option<ApplicationTunnel>) -> Option<&Listener> {
    let handed = tunnel.and_then(|tunnel| {
        listeners.iter().find(|listener| match tunnel.port {
            0 => tunnel.protocol == i32::from(Protocol::Proxy) && listener.protocol == PROXY_PROTOCOL,
            port => i64::from(listener.port) == i64::from(port),
        })
    });
    let hbone =
        || listeners.iter().find(|listener| listener.protocol == "HBONE" && listener.port == i32::from(HBONE_PORT));
    handed.or_else(hbone)
}

fn allowed(listener: Option<&Listener>) -> Allowed {
    let namespaces =
        listener.and_then(|listener| listener.allowed_routes.as_ref()).and_then(|routes| routes.namespaces.as_ref());
    let Some(namespaces) = namespaces else { return Allowed::Same };
    match namespaces.from {
        Some(FromNamespaces::All) => Allowed::All,
        // A selector that is missing selects nothing.
        Some(FromNamespaces::Selector) => namespaces.selector.as_ref().map_or_else(
            || Allowed::Selected(Selector::default().and("", "Unknown", &[])),
            |selector| Allowed::Selected(Selector::from(selector)),
        ),
        Some(FromNamespaces::Same) | None => Allowed::Same,
    }
}
