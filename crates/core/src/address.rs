//! How things in the mesh are named and reached: addresses on a network, hostnames in a namespace, gateways, ports.

use std::{
    fmt,
    net::{IpAddr, SocketAddr},
    str::FromStr,
    sync::Arc,
};

use ipnet::IpNet;

use crate::demand::Key;

/// One IP address on one network. Addresses of different networks may coincide.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkAddress {
    pub network: Arc<str>,
    pub address: IpAddr,
}

/// A range of IP addresses on one network; a single address is a range of full length.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NetworkCidr {
    pub network: Arc<str>,
    pub cidr: IpNet,
}

/// A hostname as a namespace defines it; several namespaces may define one hostname.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NamespacedHostname {
    pub namespace: Arc<str>,
    pub hostname: Arc<str>,
}

/// Where a waypoint or network gateway is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct GatewayAddress {
    pub destination: GatewayDestination,
    pub hbone_mtls_port: u16,
}

/// A gateway is named by its service or by an address.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum GatewayDestination {
    Hostname(NamespacedHostname),
    Address(NetworkAddress),
}

/// What is spoken on a port, as far as known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AppProtocol {
    #[default]
    Unknown,
    Http11,
    Http2,
    Grpc,
    Tcp,
    Tls,
}

/// A service's port and the port of the endpoint behind it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Port {
    pub service_port: u16,
    /// None for a named port, whose number each endpoint has for itself.
    pub target_port: Option<u16>,
    pub app_protocol: AppProtocol,
}

/// The ports of a service, or of an endpoint for one service.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct PortList {
    pub ports: Vec<Port>,
}

impl GatewayAddress {
    /// What it is asked for by.
    pub fn key(&self) -> Key {
        match &self.destination {
            GatewayDestination::Hostname(name) => Key::Hostname(name.clone()),
            GatewayDestination::Address(address) => Key::Address(address.clone()),
        }
    }
}

impl NetworkAddress {
    /// An address on a network, an IPv4-mapped one as plain IPv4.
    pub fn new(network: impl Into<Arc<str>>, address: IpAddr) -> Self {
        Self { network: network.into(), address: address.to_canonical() }
    }
}

impl fmt::Display for NetworkAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.address)
    }
}

impl NetworkCidr {
    /// Whether the range is one address.
    pub fn is_single(&self) -> bool {
        self.cidr.prefix_len() == self.cidr.max_prefix_len()
    }
}

/// `<network>/<ip>`, with `/<length>` if it is more than one address.
impl fmt::Display for NetworkCidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network, self.cidr.addr())?;
        if !self.is_single() {
            write!(f, "/{}", self.cidr.prefix_len())?;
        }
        Ok(())
    }
}

impl NamespacedHostname {
    /// A name of two parts.
    pub fn new(namespace: impl Into<Arc<str>>, hostname: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), hostname: hostname.into() }
    }
}

/// `<namespace>/<hostname>`.
impl fmt::Display for NamespacedHostname {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.hostname)
    }
}

/// The text is not `<namespace>/<name>`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("not of the form <namespace>/<name>: {0:?}")]
pub struct NotNamespaced(pub String);

impl FromStr for NamespacedHostname {
    type Err = NotNamespaced;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (namespace, hostname) = split_namespaced(text)?;
        Ok(Self::new(namespace, hostname))
    }
}

/// Splits `<namespace>/<name>`, neither of which may be empty or hold a slash.
pub(crate) fn split_namespaced(text: &str) -> Result<(&str, &str), NotNamespaced> {
    match text.split_once('/') {
        Some((namespace, name)) if !namespace.is_empty() && !name.is_empty() && !name.contains('/') => {
            Ok((namespace, name))
        }
        _ => Err(NotNamespaced(text.to_owned())),
    }
}

impl PortList {
    /// The port behind `service_port`, if it is listed with a number.
    pub fn target_port(&self, service_port: u16) -> Option<u16> {
        self.port(service_port)?.target_port
    }

    /// The entry of `service_port`.
    pub fn port(&self, service_port: u16) -> Option<&Port> {
        self.ports.iter().find(|port| port.service_port == service_port)
    }
}

/// The same address, an IPv4-mapped one as plain IPv4.
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}
