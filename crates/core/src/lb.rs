//! Which endpoint of a service a connection goes to.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use rand::{Rng, RngExt};

use crate::{
    service::{HealthPolicy, LoadBalancing, Mode, Scope, Service},
    state::MeshState,
    workload::{HealthStatus, Workload},
};

/// What the service is chosen for, which decides the port that an endpoint must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A client addressed the service's port.
    Client,
    /// The service is a waypoint's, and its HBONE port is meant. An endpoint with an application tunnel needs no such
    /// port: what terminates HBONE in front of it takes it.
    Waypoint,
}

/// Where among the networks to look.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    Everywhere,
    /// Only endpoints on the client's own network.
    OwnNetwork,
}

/// A choice, with the port behind the service's port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Endpoint<'a> {
    pub workload: &'a Arc<Workload>,
    pub port: u16,
}

/// Chooses an endpoint: the eligible ones, as the service's mode filters and ranks them, at random by capacity.
pub fn pick<'a>(
    state: &'a MeshState,
    service: &Service,
    source: &Workload,
    service_port: u16,
    purpose: Purpose,
    reach: Reach,
    rng: &mut impl Rng,
) -> Option<Endpoint<'a>> {
    // Most services name a port number, which every endpoint has: only named ports are looked up one by one.
    let numbered = service.ports.port(service_port).is_some_and(|port| port.target_port.is_some());
    let ranked = |workload: &Workload| {
        let usable = (reach == Reach::Everywhere || workload.network == source.network)
            && (workload.status == HealthStatus::Healthy
                || service.load_balancing.health_policy == HealthPolicy::AllowAll)
            && reachable(service, workload, source)
            && (numbered || target_port(service, workload, service_port, purpose).is_some());
        if usable { rank(&service.load_balancing, source, workload) } else { None }
    };
    let endpoints = state.endpoints(&service.key);
    let drawn = match endpoints.len() < MANY {
        true => None,
        false => draw(endpoints, best_rank(&service.load_balancing), state.most_capacity(), ranked, rng),
    };
    let workload = drawn.or_else(|| choose(endpoints, ranked, rng))?;
    Some(Endpoint { workload, port: target_port(service, workload, service_port, purpose)? })
}

/// From so many endpoints on it is worth drawing some before looking at all.
const MANY: usize = 32;
/// How many are drawn.
const DRAWS: usize = 8;

/// Draws endpoints until one is as near as can be, and takes it with the odds of its capacity: as good a choice as
/// [`choose`] makes, for the price of few endpoints. None: nothing came of it, which says nothing of the endpoints.
fn draw<'a>(
    endpoints: &'a [Arc<Workload>],
    best: usize,
    most: u32,
    ranked: impl Fn(&Workload) -> Option<usize>,
    rng: &mut impl Rng,
) -> Option<&'a Arc<Workload>> {
    (0..DRAWS).find_map(|_| {
        let workload = &endpoints[rng.random_range(0..endpoints.len())];
        let taken = ranked(workload) == Some(best)
            && workload.capacity > 0
            && (workload.capacity == most || rng.random_range(0..most) < workload.capacity);
        taken.then_some(workload)
    })
}

/// Looks at all endpoints: one of the nearest, at random by capacity.
fn choose<'a>(
    endpoints: &'a [Arc<Workload>],
    ranked: impl Fn(&Workload) -> Option<usize>,
    rng: &mut impl Rng,
) -> Option<&'a Arc<Workload>> {
    let candidates = || endpoints.iter().filter_map(|workload| Some((ranked(workload)?, workload)));
    // Twice over the list rather than once into a new one: this runs for every connection.
    let mut best = 0;
    let mut total = 0u64;
    for (rank, workload) in candidates() {
        if rank > best {
            (best, total) = (rank, 0);
        }
        if rank == best {
            total += u64::from(workload.capacity);
        }
    }
    if total == 0 {
        return None;
    }
    let mut at = rng.random_range(0..total);
    candidates().filter(|(rank, _)| *rank == best).find_map(|(_, workload)| {
        let capacity = u64::from(workload.capacity);
        if at < capacity {
            return Some(workload);
        }
        at -= capacity;
        None
    })
}

/// The endpoint's port behind a service's port: its own list first (named ports differ from pod to pod), else the
/// service's. Never 0.
pub fn target_port(service: &Service, workload: &Workload, service_port: u16, purpose: Purpose) -> Option<u16> {
    let Some(port) = service.ports.port(service_port) else {
        return (purpose == Purpose::Waypoint && workload.application_tunnel.is_some()).then_some(service_port);
    };
    let own = workload.services.get(&service.key).and_then(|ports| ports.target_port(service_port));
    own.or(port.target_port)
}

/// An address of a family that the service has, or a name to look one up by; on another network, a gateway does.
fn reachable(service: &Service, workload: &Workload, source: &Workload) -> bool {
    let own_network = workload.network == source.network;
    workload.addresses.iter().any(|ip| service.ip_families.accepts(*ip))
        || (workload.addresses.is_empty() && workload.hostname.is_some())
        || (!own_network && workload.network_gateway.is_some())
}

/// How near an endpoint is, higher is better; None = not to be used.
fn rank(load_balancing: &LoadBalancing, source: &Workload, workload: &Workload) -> Option<usize> {
    let preferences = &load_balancing.routing_preference[..];
    let leading = |scopes: &[Scope]| scopes.iter().take_while(|scope| shared(**scope, source, workload)).count();
    match load_balancing.mode {
        Mode::Unspecified | Mode::Passthrough => Some(0),
        Mode::Strict => (leading(preferences) == preferences.len()).then_some(0),
        Mode::Failover => Some(match preferences {
            // Another network is the last resort: whatever else it shares, it ranks below every local endpoint.
            [Scope::Network, rest @ ..] => {
                let local = shared(Scope::Network, source, workload);
                leading(rest) + if local { 1 + rest.len() } else { 0 }
            }
            _ => leading(preferences),
        }),
    }
}

/// The rank of an endpoint that shares all that counts.
fn best_rank(load_balancing: &LoadBalancing) -> usize {
    match load_balancing.mode {
        Mode::Unspecified | Mode::Passthrough | Mode::Strict => 0,
        Mode::Failover => match &load_balancing.routing_preference[..] {
            [Scope::Network, rest @ ..] => rest.len() + 1 + rest.len(),
            all => all.len(),
        },
    }
}

/// Each scope is compared by its own value alone.
fn shared(scope: Scope, a: &Workload, b: &Workload) -> bool {
    match scope {
        Scope::Region => a.locality.region == b.locality.region,
        Scope::Zone => a.locality.zone == b.locality.zone,
        Scope::Subzone => a.locality.subzone == b.locality.subzone,
        Scope::Node => a.node == b.node,
        Scope::Cluster => a.cluster_id == b.cluster_id,
        Scope::Network => a.network == b.network,
    }
}
