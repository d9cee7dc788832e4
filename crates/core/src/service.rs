//! Services: a hostname, addresses of its own, and how to choose among the endpoints behind them.

use std::{net::IpAddr, sync::Arc};

pub use crate::address::{
    AppProtocol, GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress, NetworkCidr, Port, PortList,
};
use crate::identity::Identity;

/// A service. Its endpoints are the workloads that name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Service {
    pub name: Arc<str>,
    /// Namespace and hostname, which together are its name among all resources.
    pub key: NamespacedHostname,
    /// Its VIPs.
    pub addresses: Vec<NetworkCidr>,
    pub ports: PortList,
    /// Who may answer besides the endpoint's own identity. Names that are not SPIFFE are left out: no peer can show them.
    pub subject_alt_names: Vec<Identity>,
    pub waypoint: Option<GatewayAddress>,
    pub weighted_waypoints: Vec<WeightedWaypoint>,
    pub load_balancing: LoadBalancing,
    pub ip_families: IpFamilies,
    /// Kubernetes' own, among several of one hostname or address.
    pub canonical: bool,
    pub ingress_use_waypoint: bool,
    pub visibility: Visibility,
}

/// One of several waypoints that share a service's connections.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WeightedWaypoint {
    pub destination: GatewayAddress,
    pub weight: u32,
}

/// How endpoints are chosen.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LoadBalancing {
    pub routing_preference: Vec<Scope>,
    pub mode: Mode,
    pub health_policy: HealthPolicy,
}

/// What client and endpoint may have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scope {
    Region,
    Zone,
    Subzone,
    Node,
    Cluster,
    Network,
}

/// What preferences mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Mode {
    /// Preferences do not matter.
    #[default]
    Unspecified,
    /// Every preference must hold.
    Strict,
    /// The endpoints that most preferences hold for, in order.
    Failover,
    /// No choice: the connection goes to the address that was asked for.
    Passthrough,
}

/// Which endpoints count as usable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HealthPolicy {
    #[default]
    OnlyHealthy,
    AllowAll,
}

/// Which addresses of endpoints are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum IpFamilies {
    #[default]
    Automatic,
    Ipv4Only,
    Ipv6Only,
    Dual,
}

/// Which clients see a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Visibility {
    #[default]
    Public,
    /// Only the service's own namespace sees it.
    Namespace,
}

impl Service {
    /// The namespace that defines it.
    pub fn namespace(&self) -> &Arc<str> {
        &self.key.namespace
    }

    /// The hostname that clients use.
    pub fn hostname(&self) -> &Arc<str> {
        &self.key.hostname
    }

    /// Whether clients in `namespace` may use it.
    pub fn visible_to(&self, namespace: &str) -> bool {
        match self.visibility {
            Visibility::Public => true,
            Visibility::Namespace => &*self.key.namespace == namespace,
        }
    }
}

impl IpFamilies {
    /// Whether an endpoint's address may be used.
    pub fn accepts(self, ip: IpAddr) -> bool {
        match self {
            Self::Automatic | Self::Dual => true,
            Self::Ipv4Only => ip.is_ipv4(),
            Self::Ipv6Only => ip.is_ipv6(),
        }
    }
}
