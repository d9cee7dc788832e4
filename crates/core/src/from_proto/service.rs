//! Services.

use std::fmt;

use aquifer_proto::workload as wire;

use super::{ConversionError, Problem, each, error, gateway, ip, net, ports, required};
use crate::{
    address::{NamespacedHostname, NetworkCidr},
    intern::intern,
    service::{HealthPolicy, IpFamilies, LoadBalancing, Mode, Scope, Service, Visibility, WeightedWaypoint},
};

pub(super) fn service(s: &wire::Service) -> Result<Service, ConversionError> {
    let namespace = required("namespace", &s.namespace)?;
    let hostname = required("hostname", &s.hostname)?;
    let weighted = |w: &wire::WeightedWaypoint, at: &dyn fmt::Display| {
        let field = format!("{at}.destination");
        let destination = w.destination.as_ref().ok_or_else(|| error(&field, Problem::Missing))?;
        Ok(WeightedWaypoint { destination: gateway(&field, destination)?, weight: w.weight })
    };
    Ok(Service {
        name: s.name.as_str().into(),
        key: NamespacedHostname { namespace, hostname },
        addresses: each("addresses", &s.addresses, vip)?,
        ports: ports("ports", &s.ports)?,
        subject_alt_names: s.subject_alt_names.iter().filter_map(|san| san.parse().ok()).collect(),
        waypoint: s.waypoint.as_ref().map(|g| gateway(&"waypoint", g)).transpose()?,
        weighted_waypoints: each("weighted_waypoints", &s.weighted_waypoints, weighted)?,
        load_balancing: s.load_balancing.as_ref().map(load_balancing).transpose()?.unwrap_or_default(),
        ip_families: ip_families(s.ip_families)?,
        canonical: s.canonical,
        ingress_use_waypoint: s.ingress_use_waypoint,
        visibility: visibility(s.visibility),
    })
}

fn vip(address: &wire::NetworkAddress, at: &dyn fmt::Display) -> Result<NetworkCidr, ConversionError> {
    let field = format_args!("{at}.address");
    let cidr = match address.length {
        Some(length) => net(&field, &address.address, length)?,
        None => ip(&field, &address.address)?.into(),
    };
    Ok(NetworkCidr { network: intern(&address.network), cidr })
}

fn load_balancing(lb: &wire::LoadBalancing) -> Result<LoadBalancing, ConversionError> {
    use wire::load_balancing as enums;
    let scope = |value: &i32, at: &dyn fmt::Display| match enums::Scope::try_from(*value) {
        Ok(enums::Scope::Region) => Ok(Scope::Region),
        Ok(enums::Scope::Zone) => Ok(Scope::Zone),
        Ok(enums::Scope::Subzone) => Ok(Scope::Subzone),
        Ok(enums::Scope::Node) => Ok(Scope::Node),
        Ok(enums::Scope::Cluster) => Ok(Scope::Cluster),
        Ok(enums::Scope::Network) => Ok(Scope::Network),
        Ok(enums::Scope::UnspecifiedScope) | Err(_) => Err(error(at, Problem::UnknownValue(*value))),
    };
    let mode = match enums::Mode::try_from(lb.mode) {
        Ok(enums::Mode::UnspecifiedMode) => Mode::Unspecified,
        Ok(enums::Mode::Strict) => Mode::Strict,
        Ok(enums::Mode::Failover) => Mode::Failover,
        Ok(enums::Mode::Passthrough) => Mode::Passthrough,
        Err(_) => return Err(error("load_balancing.mode", Problem::UnknownValue(lb.mode))),
    };
    let health_policy = match enums::HealthPolicy::try_from(lb.health_policy) {
        Ok(enums::HealthPolicy::OnlyHealthy) => HealthPolicy::OnlyHealthy,
        Ok(enums::HealthPolicy::AllowAll) => HealthPolicy::AllowAll,
        Err(_) => return Err(error("load_balancing.health_policy", Problem::UnknownValue(lb.health_policy))),
    };
    let routing_preference = each("load_balancing.routing_preference", &lb.routing_preference, scope)?;
    Ok(LoadBalancing { routing_preference, mode, health_policy })
}

fn ip_families(value: i32) -> Result<IpFamilies, ConversionError> {
    match wire::IpFamilies::try_from(value) {
        Ok(wire::IpFamilies::Automatic) => Ok(IpFamilies::Automatic),
        Ok(wire::IpFamilies::Ipv4Only) => Ok(IpFamilies::Ipv4Only),
        Ok(wire::IpFamilies::Ipv6Only) => Ok(IpFamilies::Ipv6Only),
        Ok(wire::IpFamilies::Dual) => Ok(IpFamilies::Dual),
        Err(_) => Err(error("ip_families", Problem::UnknownValue(value))),
    }
}

/// Istio reads a value that it does not know as PUBLIC.
fn visibility(value: i32) -> Visibility {
    match wire::service::Visibility::try_from(value) {
        Ok(wire::service::Visibility::Namespace) => Visibility::Namespace,
        Ok(wire::service::Visibility::Public) | Err(_) => Visibility::Public,
    }
}
