//! Kubernetes objects to mesh resources, as istiod makes them. Pure functions, no state.
//!
//! ```text
//!   object ─▶ facts (what its resources are made of, nothing else) ─▶ resources, conditions
//!
//!   Pod ─▶ pod ─────────────────────▶ workload ──────────▶ istio.workload.Workload
//!   EndpointSlice ─▶ endpoint_slice ──────────────────────▶ Workload for what is no pod
//!   WorkloadEntry ─▶ workload_entry ──────────────────────▶ Workload
//!   Service ─▶ service ───────────────────────────────────▶ istio.workload.Service
//!   ServiceEntry ─▶ service_entry ────────────────────────▶ Service per host, Workload per endpoint
//!   Gateway, GatewayClass ─▶ gateway ─▶ waypoint ─────────▶ who is bound to it
//!   AuthorizationPolicy ─▶ policy ────────────────────────▶ istio.security.Authorization + what was left out
//!   PeerAuthentication ─▶ peer_authentication ────────────▶ the DENY policies that stand for it
//!   NetworkPolicy ─▶ network_policy ──────────────────────▶ which pods must be seen on the wire, and what it stops
//!   all others that users write ─▶ l7, status ────────────▶ conditions
//! ```
//!
//! Resources are those of the reference control plane, byte for byte; where we mean to differ, the table in
//! `index/golden.rs` says so.

pub mod endpoint_slice;
pub mod gateway;
pub mod l7;
pub mod labels;
pub mod mesh;
pub mod namespace;
pub mod network_policy;
pub mod peer_authentication;
pub mod pod;
pub mod policy;
pub mod service;
pub mod service_entry;
pub mod status;
pub mod visibility;
pub mod waypoint;
pub mod workload;
pub mod workload_entry;

#[cfg(test)]
mod tests;

use std::net::IpAddr;

use bytes::Bytes;

pub use self::labels::Labels;
pub use self::mesh::Mesh;

/// An address as it stands on the wire.
fn address_bytes(ip: IpAddr) -> Bytes {
    match ip {
        IpAddr::V4(ip) => Bytes::copy_from_slice(&ip.octets()),
        IpAddr::V6(ip) => Bytes::copy_from_slice(&ip.octets()),
    }
}

/// The alias under which an address may be asked for.
fn alias(network: &str, address: &[u8], length: Option<u32>) -> Option<String> {
    let ip = match address.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(address).ok()?),
        16 => IpAddr::from(<[u8; 16]>::try_from(address).ok()?),
        _ => return None,
    };
    Some(match length {
        Some(length) => format!("{network}/{ip}/{length}"),
        None => format!("{network}/{ip}"),
    })
}
