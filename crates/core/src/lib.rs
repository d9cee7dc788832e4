//! Every question about the mesh that needs no IO: who is it, where does this connection go, may it.
//!
//! ```text
//!  wire ──from_proto──> Workload, Service, Policy ──state::apply──> MeshState
//!                                                                      │ store (one writer, many readers)
//!            ┌────────────────────┬────────────────────┬───────────────┘
//!      resolve (outbound)   inbound (CONNECT)     authz (both ways in)
//!            └── lb ──┘           hbone: authority, baggage, traceparent, forwarded
//!                        every refusal is one Reason
//! ```
//!
//! Invariants:
//! - Nothing here awaits, opens a socket, reads a clock or draws randomness of its own.
//! - Values are valid once they are inside: `from_proto` is the only door from the wire, and names the field it refuses.
//! - One decision reads one snapshot. A snapshot never changes; the writer publishes the next one.
//! - What the mesh cannot judge it refuses, with a `Reason` of its own.

pub mod address;
pub mod authz;
pub mod demand;
pub mod dump;
pub mod from_proto;
pub mod hbone;
pub mod identity;
pub mod inbound;
mod intern;
pub mod lb;
pub mod policy;
pub mod proxy_protocol;
pub mod reason;
pub mod resolve;
pub mod service;
pub mod state;
pub mod store;
pub mod workload;

#[cfg(test)]
mod fixtures;
