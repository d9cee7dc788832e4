//! What a CONNECT, or a captured plaintext connection, into a pod may reach.

#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    address::{GatewayAddress, GatewayDestination, NetworkAddress, canonical},
    hbone::Authority,
    lb::{self, Purpose},
    reason::Reason,
    service::Service,
    state::{MeshState, View},
    workload::{ApplicationTunnel, Workload},
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
}

/// Checks the authority of a CONNECT that reached `local` (the socket's own address), and chooses the port.
pub fn route(
    state: &MeshState,
    workload: &Arc<Workload>,
    local: SocketAddr,
    authority: &Authority,
    preferred_service_namespace: Option<&str>,
) -> Result<InboundRoute, Reason> {
    let ip = local.ip().to_canonical();
    let view = View { namespace: &workload.namespace, preferred_namespace: preferred_service_namespace };
    let (service, port) = match authority {
        Authority::Ip(target) => {
            let target = canonical(*target);
            let address = NetworkAddress { network: workload.network.clone(), address: target.ip() };
            let service = state.service_by_vip(&address, &view);
            let ours = target.ip() == ip
                || workload.application_tunnel.is_some()
                || is_waypoint_of(state, workload, &address, &view);
            if !ours {
                return Err(Reason::DestinationMismatch);
            }
            (service, Some(target.port()))
        }
        Authority::Hostname { host, port } => {
            let service = state.service_by_hostname(host, &view).ok_or(Reason::ServiceUnknown)?;
            (Some(service), lb::target_port(service, workload, *port, Purpose::Client))
        }
    };
    let port = workload.application_tunnel.and_then(|tunnel| tunnel.port).or(port).ok_or(Reason::PortUnknown)?;
    if is_illegal_port(port) {
        return Err(Reason::IllegalPort);
    }
    Ok(InboundRoute {
        upstream: SocketAddr::new(ip, port),
        service: service.cloned(),
        application_tunnel: workload.application_tunnel,
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
fn is_waypoint_of(state: &MeshState, workload: &Arc<Workload>, target: &NetworkAddress, view: &View<'_>) -> bool {
    if let Some(addressed) = state.workload_by_addr(target) {
        return addressed.waypoint.as_ref().is_some_and(|gateway| is_gateway(state, workload, gateway, view));
    }
    let Some(service) = state.service_by_vip(target, view) else { return false };
    let weighted = service.weighted_waypoints.iter().filter(|waypoint| waypoint.weight > 0);
    service
        .waypoint
        .iter()
        .chain(weighted.map(|waypoint| &waypoint.destination))
        .any(|gateway| is_gateway(state, workload, gateway, view))
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
