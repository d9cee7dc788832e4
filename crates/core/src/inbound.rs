//! What a CONNECT, or a captured plaintext connection, into a pod may reach.

#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use crate::{
    address::{GatewayAddress, GatewayDestination, NetworkAddress, canonical},
    demand::{self, Key, Known},
    hbone::Authority,
    lb::{self, Purpose},
    reason::Reason,
    service::Service,
    state::{MeshState, View},
    workload::{ApplicationTunnel, ApplicationTunnelProtocol, Workload},
};

/// Outbound capture.
pub const OUTBOUND_PORT: u16 = 15001;
/// Plaintext inbound capture.
pub const INBOUND_PLAINTEXT_PORT: u16 = 15006;
/// HBONE.
pub const HBONE_PORT: u16 = 15008;

/// Whether a port is the proxy's own: a connection to it would come back to the proxy.
pub fn is_illegal_port(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | INBOUND_PLAINTEXT_PORT | HBONE_PORT)
}

/// Where an accepted CONNECT goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InboundRoute {
    /// In the pod. Its port is the one that policies judge.
    pub upstream: SocketAddr,
    /// The service that the authority names, by hostname or VIP.
    pub service: Option<Arc<Service>>,
    /// What the proxy there expects before the client's bytes.
    pub application_tunnel: Option<ApplicationTunnel>,
    /// What the client asked for, a hostname as the VIP of its service: what that proxy is told.
    pub asked: SocketAddr,
}

/// Where to connect to in the pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hop {
    pub address: SocketAddr,
    /// Whether to connect from the client's address.
    pub as_client: bool,
    /// Whether a PROXY header comes first.
    pub proxy_header: bool,
}

/// Why a CONNECT has no route yet, or none at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unroutable {
    /// The control plane's answer for this key is missing.
    Need(Key),
    Reject(Reason),
}

impl From<Reason> for Unroutable {
    fn from(reason: Reason) -> Self {
        Self::Reject(reason)
    }
}

impl InboundRoute {
    /// Where to connect. A proxy that takes PROXY headers is reached on loopback if `localhost`
    /// (`LOCALHOST_APP_TUNNEL`), where nobody else gets past us; there a client's address would have no way back, and
    /// the header tells it.
    pub fn hop(&self, localhost: bool) -> Hop {
        let protocol = self.application_tunnel.map(|tunnel| tunnel.protocol);
        let proxy_header = protocol == Some(ApplicationTunnelProtocol::Proxy);
        if !(proxy_header && localhost) {
            return Hop { address: self.upstream, as_client: true, proxy_header };
        }
        let loopback: IpAddr =
            if self.upstream.is_ipv4() { Ipv4Addr::LOCALHOST.into() } else { Ipv6Addr::LOCALHOST.into() };
        Hop { address: SocketAddr::new(loopback, self.upstream.port()), as_client: false, proxy_header }
    }
}

/// Checks the authority of a CONNECT that reached `local` (the socket's own address), and chooses the port.
pub fn route(
    state: &MeshState,
    workload: &Arc<Workload>,
    local: SocketAddr,
    authority: &Authority,
    preferred_service_namespace: Option<&str>,
) -> Result<InboundRoute, Reason> {
    let found = route_on_demand(state, workload, local, authority, preferred_service_namespace, demand::ALL);
    found.map_err(|refused| match refused {
        Unroutable::Reject(reason) => reason,
        // Not where all is known.
        Unroutable::Need(_) => Reason::ServiceUnknown,
    })
}

/// The same, where the control plane is asked for what is not known.
pub fn route_on_demand(
    state: &MeshState,
    workload: &Arc<Workload>,
    local: SocketAddr,
    authority: &Authority,
    preferred_service_namespace: Option<&str>,
    known: Known<'_>,
) -> Result<InboundRoute, Unroutable> {
    let ip = local.ip().to_canonical();
    let view = View { namespace: &workload.namespace, preferred_namespace: preferred_service_namespace };
    let (service, port, asked) = match authority {
        Authority::Ip(target) => {
            let target = canonical(*target);
            let address = NetworkAddress { network: workload.network.clone(), address: target.ip() };
            let service = state.service_by_vip(&address, &view);
            let ours = target.ip() == ip
                || workload.application_tunnel.is_some()
                || is_waypoint_of(state, workload, &address, &view, known)?;
            if !ours {
                return Err(Reason::DestinationMismatch.into());
            }
            (service, Some(target.port()), target)
        }
        Authority::Hostname { host, port } => {
            let Some(service) = state.service_by_hostname(host, &view) else {
                // A hostname alone is no resource's name; one that this workload serves is.
                let own = workload.services.keys().find(|key| *key.hostname == **host);
                let key = own.map(|own| Key::Hostname(own.clone())).filter(|key| !known(key));
                return Err(key.map_or(Unroutable::Reject(Reason::ServiceUnknown), Unroutable::Need));
            };
            let asked = vip(service, workload).unwrap_or(ip);
            (Some(service), lb::target_port(service, workload, *port, Purpose::Client), SocketAddr::new(asked, *port))
        }
    };
    let port = workload.application_tunnel.and_then(|tunnel| tunnel.port).or(port).ok_or(Reason::PortUnknown)?;
    if is_illegal_port(port) {
        return Err(Reason::IllegalPort.into());
    }
    Ok(InboundRoute {
        upstream: SocketAddr::new(ip, port),
        service: service.cloned(),
        application_tunnel: workload.application_tunnel,
        asked,
    })
}

/// Checks a captured plaintext connection by its original destination, which is where it goes on to.
pub fn passthrough(original_destination: SocketAddr) -> Result<SocketAddr, Reason> {
    let destination = canonical(original_destination);
    if is_illegal_port(destination.port()) {
        return Err(Reason::IllegalPort);
    }
    Ok(destination)
}

/// Whether what the authority addresses is served through this workload as its waypoint.
fn is_waypoint_of(
    state: &MeshState,
    workload: &Arc<Workload>,
    target: &NetworkAddress,
    view: &View<'_>,
    known: Known<'_>,
) -> Result<bool, Unroutable> {
    let ask = |key: Key| if known(&key) { Ok(false) } else { Err(Unroutable::Need(key)) };
    let gateways: Vec<&GatewayAddress> = match (state.workload_by_addr(target), state.service_by_vip(target, view)) {
        (Some(addressed), _) => addressed.waypoint.iter().collect(),
        (None, Some(service)) => {
            let weighted = service.weighted_waypoints.iter().filter(|waypoint| waypoint.weight > 0);
            service.waypoint.iter().chain(weighted.map(|waypoint| &waypoint.destination)).collect()
        }
        (None, None) => return ask(Key::Address(target.clone())),
    };
    if gateways.iter().any(|gateway| is_gateway(state, workload, gateway, view)) {
        return Ok(true);
    }
    for gateway in gateways.into_iter().filter(|gateway| !is_here(state, gateway, view)) {
        ask(gateway.key())?;
    }
    Ok(false)
}

/// Whether what a gateway's address names is in the state.
fn is_here(state: &MeshState, gateway: &GatewayAddress, view: &View<'_>) -> bool {
    match &gateway.destination {
        GatewayDestination::Hostname(key) => state.service(key).is_some(),
        GatewayDestination::Address(address) => {
            state.workload_by_addr(address).is_some() || state.service_by_vip(address, view).is_some()
        }
    }
}

/// A service's address on the workload's network, IPv4 rather than IPv6.
fn vip(service: &Service, workload: &Workload) -> Option<IpAddr> {
    let own = service.addresses.iter().filter(|vip| vip.is_single() && vip.network == workload.network);
    own.map(|vip| vip.cidr.addr().to_canonical()).min_by_key(IpAddr::is_ipv6)
}

/// Whether a gateway's address leads to this workload.
pub(crate) fn is_gateway(state: &MeshState, workload: &Workload, gateway: &GatewayAddress, view: &View<'_>) -> bool {
    let is_endpoint =
        |service: &Service| state.endpoints(&service.key).iter().any(|endpoint| same_workload(endpoint, workload));
    match &gateway.destination {
        GatewayDestination::Hostname(key) => state.service(key).is_some_and(|service| is_endpoint(service)),
        GatewayDestination::Address(address) => match state.workload_by_addr(address) {
            Some(found) => same_workload(found, workload),
            None => state.service_by_vip(address, view).is_some_and(|service| is_endpoint(service)),
        },
    }
}

/// One identity and one address in common: two resources may describe one pod.
fn same_workload(a: &Workload, b: &Workload) -> bool {
    let shares = |ip: &IpAddr| b.addresses.contains(ip);
    a.uid == b.uid || (same_identity(a, b) && a.network == b.network && a.addresses.iter().any(shares))
}

fn same_identity(a: &Workload, b: &Workload) -> bool {
    (&a.service_account, &a.namespace, &a.trust_domain) == (&b.service_account, &b.namespace, &b.trust_domain)
}
