//! Workloads: pods, external endpoints, gateways of other networks.

mod addresses;
mod uid;

use std::{
    collections::BTreeMap,
    ops::{Deref, DerefMut},
    sync::Arc,
};

pub(crate) use self::uid::Key;
pub use self::{
    addresses::Addresses,
    uid::{Text, Uid},
};
pub use crate::address::{
    AppProtocol, GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress, Port, PortList,
};
use crate::{identity::Identity, policy::PolicyKey};

/// The name of the entry in a workload's `extensions` that permits [`Common::same_node`]. It has no content.
pub const SAME_NODE_EXTENSION: &str = "aquifer.dev/same-node";

/// What can be connected to, and can connect. Valid by construction: see `from_proto`.
///
/// A cluster has few kinds of pods and many of each kind: what replicas have in common is held once, and read and
/// changed as if it were here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Workload {
    /// Its name among all resources.
    pub uid: Uid,
    pub addresses: Addresses,
    pub node: Arc<str>,
    pub common: Arc<Common>,
}

/// What the replicas of a workload have in common.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Common {
    /// Its name, see [`Workload::name`]; None = what follows the last slash of the uid.
    pub own_name: Option<Arc<str>>,
    /// Its weight among a service's endpoints.
    pub capacity: u32,
    pub status: HealthStatus,
    pub namespace: Arc<str>,
    /// Resolved by DNS when there are no addresses.
    pub hostname: Option<Arc<str>>,
    pub network: Arc<str>,
    pub network_mode: NetworkMode,
    pub network_gateway: Option<GatewayAddress>,
    pub tunnel_protocol: TunnelProtocol,
    pub native_tunnel: bool,
    /// The control plane permits that the proxy of its node connects it with pods of that node by itself, with nothing on
    /// the wire in between. Only ours says so.
    pub same_node: bool,
    pub application_tunnel: Option<ApplicationTunnel>,
    pub trust_domain: Arc<str>,
    pub service_account: Arc<str>,
    pub waypoint: Option<GatewayAddress>,
    pub cluster_id: Arc<str>,
    pub locality: Locality,
    pub canonical_name: Arc<str>,
    pub canonical_revision: Arc<str>,
    pub workload_type: WorkloadType,
    pub workload_name: Arc<str>,
    /// Policies that select this workload.
    pub authorization_policies: Vec<PolicyKey>,
    /// The services that it is an endpoint of, with its ports there.
    pub services: ServicePorts,
}

impl Deref for Workload {
    type Target = Common;

    fn deref(&self) -> &Common {
        &self.common
    }
}

impl DerefMut for Workload {
    fn deref_mut(&mut self) -> &mut Common {
        Arc::make_mut(&mut self.common)
    }
}

/// Services and a workload's ports there, by name. Nearly always it is one: a list of just so many.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct ServicePorts(Box<[(NamespacedHostname, PortList)]>);

/// How a workload takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub enum TunnelProtocol {
    #[default]
    None,
    Hbone,
}

/// Whose address a workload has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NetworkMode {
    #[default]
    Standard,
    /// The address is the node's: it names no single workload.
    HostNetwork,
}

/// Whether it takes connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum HealthStatus {
    #[default]
    Healthy,
    Unhealthy,
}

/// The kind of object it comes from; telemetry only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum WorkloadType {
    Deployment,
    CronJob,
    #[default]
    Pod,
    Job,
}

/// Where it runs.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Locality {
    pub region: Arc<str>,
    pub zone: Arc<str>,
    pub subzone: Arc<str>,
}

/// A proxy in front of which the node proxy terminates HBONE ("sandwich").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ApplicationTunnel {
    pub protocol: ApplicationTunnelProtocol,
    /// Where it listens; None = the port that was asked for.
    pub port: Option<u16>,
}

/// What is spoken to the proxy behind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ApplicationTunnelProtocol {
    None,
    /// A PROXY v2 header comes first.
    Proxy,
}

impl Workload {
    /// Its name in its namespace.
    pub fn name(&self) -> Text<'_> {
        match &self.own_name {
            Some(name) => (&**name).into(),
            None => self.uid.last_segment(),
        }
    }

    /// Whom its certificate names.
    pub fn identity(&self) -> Identity {
        Identity {
            trust_domain: self.trust_domain.clone(),
            namespace: self.namespace.clone(),
            service_account: self.service_account.clone(),
        }
    }

    /// Whether `identity` is its own; compares without building one.
    pub fn has_identity(&self, identity: &Identity) -> bool {
        identity.namespace == self.namespace
            && identity.service_account == self.service_account
            && identity.trust_domain == self.trust_domain
    }

    /// Whether this is a pod, rather than an entry somebody wrote for it.
    pub fn is_pod(&self) -> bool {
        self.uid.is_pod()
    }
}

impl ServicePorts {
    /// The ports at this service, if it is an endpoint of it.
    pub fn get(&self, service: &NamespacedHostname) -> Option<&PortList> {
        let at = self.0.binary_search_by(|(key, _)| key.cmp(service)).ok()?;
        Some(&self.0[at].1)
    }

    /// Each service with its ports.
    pub fn iter(&self) -> impl Iterator<Item = (&NamespacedHostname, &PortList)> {
        self.0.iter().map(|(key, ports)| (key, ports))
    }

    /// The services.
    pub fn keys(&self) -> impl Iterator<Item = &NamespacedHostname> {
        self.iter().map(|(key, _)| key)
    }

    /// The ports.
    pub fn values(&self) -> impl Iterator<Item = &PortList> {
        self.iter().map(|(_, ports)| ports)
    }
}

impl FromIterator<(NamespacedHostname, PortList)> for ServicePorts {
    /// Of two entries for one service the last one stays.
    fn from_iter<I: IntoIterator<Item = (NamespacedHostname, PortList)>>(entries: I) -> Self {
        Self(BTreeMap::from_iter(entries).into_iter().collect())
    }
}

impl WorkloadType {
    /// As in baggage and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Deployment => "deployment",
            Self::CronJob => "cronjob",
            Self::Pod => "pod",
            Self::Job => "job",
        }
    }
}
