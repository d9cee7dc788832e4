//! Where an outbound connection goes.
//!
//! ```text
//!  destination ip ── workload? ─ service? ── waypoint ──────────> HBONE to the waypoint, authority as asked
//!                                   │ endpoint (lb)
//!                                   ├── speaks HBONE ───────────> HBONE to pod:15008
//!                                   ├── does not ───────────────> plain TCP to the pod
//!                                   └── none usable ────────────> Reject
//!                     nothing known ───────────────────────────> plain TCP, as asked
//! ```

#[cfg(test)]
mod tests;

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use rand::{Rng, RngExt};

use crate::{
    address::{GatewayAddress, GatewayDestination, NetworkAddress, canonical},
    demand::{self, Key, Known},
    hbone::Authority,
    identity::Identity,
    inbound::{HBONE_PORT, is_gateway, is_illegal_port},
    lb::{self, Purpose, Reach},
    reason::Reason,
    service::{IpFamilies, Mode, Service},
    state::{MeshState, View},
    workload::{TunnelProtocol, Workload},
};

/// A connection that a pod opened.
#[derive(Debug, Clone)]
pub struct OutboundConn {
    /// The pod.
    pub source: Arc<Workload>,
    /// The proxy's own network: destinations are looked up there.
    pub network: Arc<str>,
    /// Where the pod meant to go.
    pub destination: SocketAddr,
    /// `PREFERED_SERVICE_NAMESPACE`.
    pub preferred_service_namespace: Option<Arc<str>>,
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resolution {
    Route(Route),
    Need(Need),
    Reject(Reject),
}

/// How to connect.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    pub next_hop: SocketAddr,
    pub tunnel: Tunnel,
    pub source: Arc<Workload>,
    /// Who takes the connection: the chosen endpoint, or the waypoint.
    pub destination: Option<Arc<Workload>>,
    /// What was addressed.
    pub service: Option<Arc<Service>>,
}

/// What carries the bytes to the next hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Tunnel {
    /// Plain TCP.
    Passthrough,
    /// CONNECT `authority` over mTLS with a peer that must be one of `expect`.
    Hbone { authority: String, expect: Vec<Identity> },
}

/// What is missing for an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Need {
    /// The addresses of `hostname()`, to be given to `complete`.
    Dns(Box<PendingDns>),
    /// The control plane's answer for this key; then ask again with a new snapshot.
    Resource(Key),
}

/// A route that lacks the address of its hop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PendingDns {
    hop: Hop,
    hostname: Arc<str>,
}

/// Why there is no answer, and about what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reject {
    pub reason: Reason,
    pub destination: Option<Arc<Workload>>,
    pub service: Option<Arc<Service>>,
}

/// A hop to one workload, before its address is chosen.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hop {
    source: Arc<Workload>,
    /// What the pod asked for.
    asked: SocketAddr,
    workload: Arc<Workload>,
    /// On the workload.
    port: u16,
    families: IpFamilies,
    through: Through,
    expect: Vec<Identity>,
    service: Option<Arc<Service>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Through {
    /// As the workload's tunnel protocol says.
    Direct,
    /// Always by HBONE, whatever the waypoint's own protocol says, and for what the pod asked for.
    Waypoint,
}

/// Decides where a connection goes.
pub fn resolve(state: &MeshState, conn: &OutboundConn, rng: &mut impl Rng) -> Resolution {
    resolve_on_demand(state, conn, demand::ALL, rng)
}

/// Decides where a connection goes, or says what has to be asked first.
pub fn resolve_on_demand(state: &MeshState, conn: &OutboundConn, known: Known<'_>, rng: &mut impl Rng) -> Resolution {
    let asked = canonical(conn.destination);
    if is_own_listener(&conn.source, asked) {
        return reject(Reason::IllegalPort, None, None);
    }
    let view =
        View { namespace: &conn.source.namespace, preferred_namespace: conn.preferred_service_namespace.as_deref() };
    let address = NetworkAddress { network: conn.network.clone(), address: asked.ip() };
    let workload = state.workload_by_addr(&address);
    let service = state.service_by_vip(&address, &view);
    if workload.is_none() && service.is_none() {
        let key = Key::Address(address);
        if !known(&key) {
            return Resolution::Need(Need::Resource(key));
        }
    }
    let query = Query { state, source: &conn.source, asked, view, known };

    // An address that is a workload's counts as the workload's for waypoints, and as the service's for endpoints.
    if let (None, Some(service)) = (workload, service)
        && let Some(gateway) = sample_waypoint(service, rng)
        && !query.is_source(gateway)
    {
        return query.to_waypoint(gateway, Some(service), rng);
    }
    match (service, workload) {
        (Some(service), _) if service.load_balancing.mode == Mode::Passthrough => Resolution::Route(Route {
            next_hop: asked,
            tunnel: Tunnel::Passthrough,
            source: conn.source.clone(),
            destination: workload.cloned(),
            service: Some(service.clone()),
        }),
        (Some(service), _) => query.to_service(service, rng),
        (None, Some(workload)) => query.to_workload(workload, rng),
        (None, None) => Resolution::Route(Route {
            next_hop: asked,
            tunnel: Tunnel::Passthrough,
            source: conn.source.clone(),
            destination: None,
            service: None,
        }),
    }
}

impl PendingDns {
    /// What to resolve.
    pub fn hostname(&self) -> &str {
        &self.hostname
    }

    /// Whose name it is.
    pub fn destination(&self) -> &Arc<Workload> {
        &self.hop.workload
    }

    /// The answer, with the addresses that the hostname has; none = it does not resolve.
    pub fn complete(self, addresses: &[IpAddr]) -> Resolution {
        match choose_address(addresses, self.hop.asked.ip(), self.hop.families) {
            Some(ip) => self.hop.at(ip),
            None => reject(Reason::DnsFailed, Some(self.hop.workload), self.hop.service),
        }
    }
}

/// The snapshot and who asks it what.
struct Query<'a> {
    state: &'a MeshState,
    source: &'a Arc<Workload>,
    asked: SocketAddr,
    view: View<'a>,
    known: Known<'a>,
}

impl Query<'_> {
    fn to_service(&self, service: &Arc<Service>, rng: &mut impl Rng) -> Resolution {
        let pick = |reach, rng: &mut _| {
            lb::pick(self.state, service, self.source, self.asked.port(), Purpose::Client, reach, rng)
        };
        let Some(mut endpoint) = pick(Reach::Everywhere, rng) else {
            return reject(Reason::NoHealthyUpstream, None, Some(service.clone()));
        };
        if self.is_remote(endpoint.workload) {
            // We cannot cross networks: stay on our own if that is possible at all.
            match pick(Reach::OwnNetwork, rng) {
                Some(local) => endpoint = local,
                None => {
                    return reject(Reason::RemoteNetwork, Some(endpoint.workload.clone()), Some(service.clone()));
                }
            }
        }
        let mut expect = vec![endpoint.workload.identity()];
        expect.extend(service.subject_alt_names.iter().cloned());
        self.hop(endpoint.workload, endpoint.port, Through::Direct, service.ip_families, expect, Some(service))
    }

    fn to_workload(&self, workload: &Arc<Workload>, rng: &mut impl Rng) -> Resolution {
        if self.is_remote(workload) {
            return reject(Reason::RemoteNetwork, Some(workload.clone()), None);
        }
        if let Some(gateway) = &workload.waypoint
            && !self.is_source(gateway)
        {
            return self.to_waypoint(gateway, None, rng);
        }
        let expect = vec![workload.identity()];
        self.hop(workload, self.asked.port(), Through::Direct, IpFamilies::Automatic, expect, None)
    }

    fn to_waypoint(
        &self,
        gateway: &GatewayAddress,
        addressed: Option<&Arc<Service>>,
        rng: &mut impl Rng,
    ) -> Resolution {
        let unavailable = || reject(Reason::WaypointUnavailable, None, addressed.cloned());
        let waypoint = match &gateway.destination {
            GatewayDestination::Hostname(key) => self.state.service(key),
            GatewayDestination::Address(address) => match self.state.workload_by_addr(address) {
                Some(workload) if self.is_remote(workload) => {
                    return reject(Reason::RemoteNetwork, Some(workload.clone()), addressed.cloned());
                }
                Some(workload) => {
                    let expect = vec![workload.identity()];
                    let families = IpFamilies::Automatic;
                    return self.hop(workload, gateway.hbone_mtls_port, Through::Waypoint, families, expect, addressed);
                }
                None => self.state.service_by_vip(address, &self.view),
            },
        };
        let Some(waypoint) = waypoint else {
            let key = gateway.key();
            return if (self.known)(&key) { unavailable() } else { Resolution::Need(Need::Resource(key)) };
        };
        let pick = |reach, rng: &mut _| {
            lb::pick(self.state, waypoint, self.source, gateway.hbone_mtls_port, Purpose::Waypoint, reach, rng)
        };
        let Some(mut endpoint) = pick(Reach::Everywhere, rng) else { return unavailable() };
        if self.is_remote(endpoint.workload) {
            match pick(Reach::OwnNetwork, rng) {
                Some(local) => endpoint = local,
                None => return reject(Reason::RemoteNetwork, Some(endpoint.workload.clone()), addressed.cloned()),
            }
        }
        let mut expect = vec![endpoint.workload.identity()];
        expect.extend(waypoint.subject_alt_names.iter().cloned());
        self.hop(endpoint.workload, endpoint.port, Through::Waypoint, waypoint.ip_families, expect, addressed)
    }

    fn hop(
        &self,
        workload: &Arc<Workload>,
        port: u16,
        through: Through,
        families: IpFamilies,
        expect: Vec<Identity>,
        service: Option<&Arc<Service>>,
    ) -> Resolution {
        let hop = Hop {
            source: self.source.clone(),
            asked: self.asked,
            workload: workload.clone(),
            port,
            families,
            through,
            expect,
            service: service.cloned(),
        };
        if let Some(ip) = choose_address(&workload.addresses, self.asked.ip(), families) {
            return hop.at(ip);
        }
        match &workload.hostname {
            Some(hostname) if workload.addresses.is_empty() => {
                Resolution::Need(Need::Dns(Box::new(PendingDns { hostname: hostname.clone(), hop })))
            }
            _ => reject(Reason::NoAddress, Some(hop.workload), hop.service),
        }
    }

    fn is_remote(&self, workload: &Workload) -> bool {
        workload.network != self.source.network
    }

    /// Whether the pod is that gateway itself: what comes from the waypoint has been through it.
    fn is_source(&self, gateway: &GatewayAddress) -> bool {
        is_gateway(self.state, self.source, gateway, &self.view)
    }
}

impl Hop {
    fn at(self, ip: IpAddr) -> Resolution {
        let target = SocketAddr::new(ip, self.port);
        // A service's port may lead there as well.
        if self.through == Through::Direct && is_own_listener(&self.source, target) {
            return reject(Reason::IllegalPort, Some(self.workload), self.service);
        }
        let (next_hop, tunnel) = match (self.through, self.workload.tunnel_protocol) {
            (Through::Waypoint, _) => {
                let authority = Authority::Ip(self.asked).to_string();
                (target, Tunnel::Hbone { authority, expect: self.expect })
            }
            (Through::Direct, TunnelProtocol::Hbone) => {
                let authority = Authority::Ip(target).to_string();
                (SocketAddr::new(ip, HBONE_PORT), Tunnel::Hbone { authority, expect: self.expect })
            }
            (Through::Direct, TunnelProtocol::None) => (target, Tunnel::Passthrough),
        };
        Resolution::Route(Route {
            next_hop,
            tunnel,
            source: self.source,
            destination: Some(self.workload),
            service: self.service,
        })
    }
}

/// Whether the proxy itself listens there for this pod: what is connected would come in again.
fn is_own_listener(source: &Workload, target: SocketAddr) -> bool {
    is_illegal_port(target.port()) && (target.ip().is_loopback() || source.addresses.contains(&target.ip()))
}

/// The address that was asked for if it is among them; else one that the service's families allow, rather of the
/// client's family.
fn choose_address(addresses: &[IpAddr], asked: IpAddr, families: IpFamilies) -> Option<IpAddr> {
    if addresses.contains(&asked) {
        return Some(asked);
    }
    let allowed = || addresses.iter().copied().filter(|ip| families.accepts(*ip));
    allowed().find(|ip| ip.is_ipv6() == asked.is_ipv6()).or_else(|| allowed().next())
}

/// A service's waypoint: one of the weighted ones by weight, if they have any, else the one.
fn sample_waypoint<'a>(service: &'a Service, rng: &mut impl Rng) -> Option<&'a GatewayAddress> {
    let total: u64 = service.weighted_waypoints.iter().map(|waypoint| u64::from(waypoint.weight)).sum();
    if total == 0 {
        return service.waypoint.as_ref();
    }
    let mut at = rng.random_range(0..total);
    service.weighted_waypoints.iter().find_map(|waypoint| {
        let weight = u64::from(waypoint.weight);
        if at < weight {
            return Some(&waypoint.destination);
        }
        at -= weight;
        None
    })
}

fn reject(reason: Reason, destination: Option<Arc<Workload>>, service: Option<Arc<Service>>) -> Resolution {
    Resolution::Reject(Reject { reason, destination, service })
}
