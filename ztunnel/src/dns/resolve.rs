//! What the mesh knows of a name. Pure.

use std::net::IpAddr;
use std::sync::Arc;

use aquifer_core::service::{HealthPolicy, Service};
use aquifer_core::state::{MeshState, View};
use aquifer_core::workload::{HealthStatus, Workload};
use rand::Rng;
use rand::seq::SliceRandom;

use super::names;

/// Addresses that one answer holds at most: 2000 of IPv6 fit into the 64 KiB of a message.
const MOST_ADDRESSES: usize = 2000;

/// How names are made in this cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Zone {
    /// `CLUSTER_DOMAIN`, lower case.
    pub domain: Arc<str>,
    /// `PREFERED_SERVICE_NAMESPACE`.
    pub preferred_namespace: Option<Arc<str>>,
    /// `IPV6_ENABLED`: without it no name has IPv6 addresses.
    pub ipv6: bool,
}

/// Which addresses were asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Family {
    /// A records.
    V4,
    /// AAAA records.
    V6,
}

impl Family {
    fn has(self, ip: IpAddr) -> bool {
        ip.is_ipv4() == (self == Self::V4)
    }
}

/// A name that is the mesh's to answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Found as this, a search domain taken off: the answer says so by a CNAME.
    pub canonical: Option<String>,
    /// In random order. None: there is no record of this family.
    pub addresses: Vec<IpAddr>,
}

/// Looks `name` (lower case, no final dot) up as `client` sees the mesh. `None`: not the mesh's to answer.
pub fn resolve(
    state: &MeshState,
    zone: &Zone,
    client: &Workload,
    (name, family): (&str, Family),
    rng: &mut impl Rng,
) -> Option<Known> {
    let view = View { namespace: &client.namespace, preferred_namespace: zone.preferred_namespace.as_deref() };
    let suffix = format!(".svc.{}", zone.domain);
    // A name without address of its own is the upstream's to answer, unless it is a headless Service's.
    let ours = |service: &Service| vips(service).next().is_some() || is_headless(service, &suffix);
    for candidate in names::candidates(name, &client.namespace, &zone.domain) {
        for hostname in names::hostnames(&candidate.name) {
            let Some(service) = state.service_by_hostname_where(&hostname, &view, ours) else { continue };
            let mut addresses = addresses(state, zone, client, service, family);
            addresses.shuffle(rng);
            addresses.truncate(MOST_ADDRESSES);
            let canonical = candidate.stripped.filter(|_| !hostname.starts_with("*.") && !addresses.is_empty());
            return Some(Known { canonical, addresses });
        }
    }
    None
}

fn addresses(state: &MeshState, zone: &Zone, client: &Workload, service: &Service, family: Family) -> Vec<IpAddr> {
    let wanted = |ip: IpAddr| family.has(ip) && (zone.ipv6 || ip.is_ipv4()) && service.ip_families.accepts(ip);
    if vips(service).next().is_some() {
        return vips(service)
            .filter(|(network, ip)| **network == client.network && wanted(*ip))
            .map(|(_, ip)| ip)
            .collect();
    }
    let usable = |workload: &&Arc<Workload>| {
        workload.network == client.network
            && (workload.status == HealthStatus::Healthy
                || service.load_balancing.health_policy == HealthPolicy::AllowAll)
    };
    let endpoints = state.endpoints(&service.key).iter().filter(usable);
    endpoints.filter_map(|workload| workload.addresses.iter().copied().find(|ip| wanted(*ip))).collect()
}

/// Single addresses; a range is reached by number, not by name.
fn vips(service: &Service) -> impl Iterator<Item = (&Arc<str>, IpAddr)> {
    service.addresses.iter().filter(|vip| vip.is_single()).map(|vip| (&vip.network, vip.cidr.addr().to_canonical()))
}

fn is_headless(service: &Service, suffix: &str) -> bool {
    service.addresses.is_empty() && service.key.hostname.ends_with(suffix)
}

#[cfg(test)]
#[path = "resolve/tests.rs"]
mod tests;
