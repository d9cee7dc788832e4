//! From the wire to valid values. Each refusal names the field; a refused resource is refused whole, so that nothing
//! half-understood ever widens a policy.

mod policy;
mod service;
#[cfg(test)]
mod tests;
mod workload;

use std::{fmt, net::IpAddr, sync::Arc};

use aquifer_proto::{security, workload as wire};
use ipnet::IpNet;

use crate::{
    address::{
        AppProtocol, GatewayAddress, GatewayDestination, NamespacedHostname, NetworkAddress, NotNamespaced, Port,
        PortList, split_namespaced,
    },
    intern::intern,
    policy::Policy,
    service::Service,
    state::Update,
    workload::Workload,
};

/// A workload or a service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Address {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
}

/// A field that cannot be used, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{field}: {problem}")]
pub struct ConversionError {
    /// As in the .proto file, with indexes: `rules[0].clauses[1].matches[0].source_ips[2]`.
    pub field: String,
    pub problem: Problem,
}

/// What is wrong with a field.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Problem {
    #[error("missing")]
    Missing,
    #[error("an address has 4 or 16 bytes, not {0}")]
    AddressBytes(usize),
    #[error("prefix length {length} of {address}")]
    PrefixLength { address: IpAddr, length: u32 },
    #[error("{0} is not a port")]
    Port(u32),
    #[error("unknown value {0}")]
    UnknownValue(i32),
    #[error("the protocol LEGACY_ISTIO_MTLS is not supported")]
    LegacyIstioMtls,
    #[error("{0:?} cannot be part of an identity")]
    NotAName(String),
    #[error(transparent)]
    NotNamespaced(#[from] NotNamespaced),
    #[error("no kind of match is set")]
    NoMatchKind,
    #[error("extension {0:?} is not known, so the match cannot be judged")]
    UnknownExtension(String),
}

/// Converts a discovery resource of type Address.
pub fn address(address: &wire::Address) -> Result<Address, ConversionError> {
    match &address.r#type {
        Some(wire::address::Type::Workload(workload)) => {
            workload::workload(workload).map(Arc::new).map(Address::Workload)
        }
        Some(wire::address::Type::Service(service)) => service::service(service).map(Arc::new).map(Address::Service),
        None => Err(error("type", Problem::Missing)),
    }
}

/// Converts a discovery resource of type Authorization.
pub fn authorization(authorization: &security::Authorization) -> Result<Policy, ConversionError> {
    policy::policy(authorization)
}

/// Converts a workload, as a resource of its own type or as part of an Address.
pub fn workload(workload: &wire::Workload) -> Result<Workload, ConversionError> {
    workload::workload(workload)
}

/// Converts a service.
pub fn service(service: &wire::Service) -> Result<Service, ConversionError> {
    service::service(service)
}

impl Address {
    /// Its resource name.
    pub fn name(&self) -> String {
        match self {
            Self::Workload(workload) => workload.uid.to_string(),
            Self::Service(service) => service.key.to_string(),
        }
    }
}

impl From<Address> for Update {
    fn from(address: Address) -> Self {
        match address {
            Address::Workload(workload) => Self::Workload(workload),
            Address::Service(service) => Self::Service(service),
        }
    }
}

impl ConversionError {
    /// The same error seen from one message further out.
    fn within(mut self, outer: impl fmt::Display) -> Self {
        self.field = format!("{outer}.{}", self.field);
        self
    }
}

fn error(field: impl fmt::Display, problem: Problem) -> ConversionError {
    ConversionError { field: field.to_string(), problem }
}

/// Converts each element, naming the index of one that fails.
fn each<T, U>(
    field: &'static str,
    values: &[T],
    convert: impl Fn(&T, &dyn fmt::Display) -> Result<U, ConversionError>,
) -> Result<Vec<U>, ConversionError> {
    values.iter().enumerate().map(|(index, value)| convert(value, &format_args!("{field}[{index}]"))).collect()
}

fn required(field: &str, text: &str) -> Result<Arc<str>, ConversionError> {
    if text.is_empty() { Err(error(field, Problem::Missing)) } else { Ok(intern(text)) }
}

fn or_default(text: &str, default: &str) -> Arc<str> {
    intern(if text.is_empty() { default } else { text })
}

/// A part of an identity: a slash in it would make another identity of it.
fn name(field: &str, text: &str) -> Result<(), ConversionError> {
    if text.contains('/') { Err(error(field, Problem::NotAName(text.to_owned()))) } else { Ok(()) }
}

fn namespaced_hostname(field: &dyn fmt::Display, text: &str) -> Result<NamespacedHostname, ConversionError> {
    let (namespace, hostname) =
        split_namespaced(text).map_err(|problem| error(field, Problem::NotNamespaced(problem)))?;
    Ok(NamespacedHostname { namespace: intern(namespace), hostname: intern(hostname) })
}

fn ip(field: &dyn fmt::Display, bytes: &[u8]) -> Result<IpAddr, ConversionError> {
    if let Ok(v4) = <[u8; 4]>::try_from(bytes) {
        return Ok(v4.into());
    }
    match <[u8; 16]>::try_from(bytes) {
        Ok(v6) => Ok(IpAddr::from(v6).to_canonical()),
        Err(_) => Err(error(field, Problem::AddressBytes(bytes.len()))),
    }
}

/// A range, IPv4-mapped ones as IPv4: addresses are canonical everywhere, so nothing would match them else.
fn net(field: &dyn fmt::Display, bytes: &[u8], length: u32) -> Result<IpNet, ConversionError> {
    let address = ip(field, bytes)?;
    let bad_length = || error(field, Problem::PrefixLength { address, length });
    let length_here =
        if address.is_ipv4() && bytes.len() == 16 { length.checked_sub(96).ok_or_else(bad_length)? } else { length };
    let length_here = u8::try_from(length_here).map_err(|_| bad_length())?;
    IpNet::new(address, length_here).map(|net| net.trunc()).map_err(|_| bad_length())
}

fn port(field: &dyn fmt::Display, port: u32) -> Result<u16, ConversionError> {
    u16::try_from(port).map_err(|_| error(field, Problem::Port(port)))
}

fn nonzero_port(field: &dyn fmt::Display, number: u32) -> Result<u16, ConversionError> {
    match port(field, number)? {
        0 => Err(error(field, Problem::Port(number))),
        number => Ok(number),
    }
}

fn ports(field: &'static str, ports: &[wire::Port]) -> Result<PortList, ConversionError> {
    let convert = |p: &wire::Port, at: &dyn fmt::Display| {
        Ok(Port {
            service_port: nonzero_port(&format_args!("{at}.service_port"), p.service_port)?,
            target_port: Some(port(&format_args!("{at}.target_port"), p.target_port)?).filter(|port| *port != 0),
            app_protocol: app_protocol(p.app_protocol),
        })
    };
    Ok(PortList { ports: each(field, ports, convert)? })
}

/// Only a hint: one that is not known here is as good as none.
fn app_protocol(value: i32) -> AppProtocol {
    match wire::AppProtocol::try_from(value) {
        Ok(wire::AppProtocol::Http11) => AppProtocol::Http11,
        Ok(wire::AppProtocol::Http2) => AppProtocol::Http2,
        Ok(wire::AppProtocol::Grpc) => AppProtocol::Grpc,
        Ok(wire::AppProtocol::Tcp) => AppProtocol::Tcp,
        Ok(wire::AppProtocol::Tls) => AppProtocol::Tls,
        Ok(wire::AppProtocol::Unknown) | Err(_) => AppProtocol::Unknown,
    }
}

fn gateway(field: &dyn fmt::Display, gateway: &wire::GatewayAddress) -> Result<GatewayAddress, ConversionError> {
    let destination = match &gateway.destination {
        None => return Err(error(format_args!("{field}.destination"), Problem::Missing)),
        Some(wire::gateway_address::Destination::Hostname(name)) => GatewayDestination::Hostname(NamespacedHostname {
            namespace: required(&format!("{field}.hostname.namespace"), &name.namespace)?,
            hostname: required(&format!("{field}.hostname.hostname"), &name.hostname)?,
        }),
        Some(wire::gateway_address::Destination::Address(at)) => GatewayDestination::Address(NetworkAddress {
            network: intern(&at.network),
            address: ip(&format_args!("{field}.address.address"), &at.address)?,
        }),
    };
    let hbone_mtls_port = nonzero_port(&format_args!("{field}.hbone_mtls_port"), gateway.hbone_mtls_port)?;
    Ok(GatewayAddress { destination, hbone_mtls_port })
}
