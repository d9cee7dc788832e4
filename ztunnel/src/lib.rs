//! The node proxy of an ambient mesh: it carries the TCP of its node's pods in mutual TLS.
//!
//! ```text
//!   node agent ── ZDS: pods, namespaces ──► inpod ──┐
//!   control plane ── xDS ──► mesh (state) ──────────┼──► proxy::Workers ── threads ── pods ── connections
//!   CA ── certificates ──► certs ───────────────────┘          │
//!                                                   records, metrics ──► :15020, access lines
//!   app wires it all; config is the only reader of the environment; admin :15000; readiness :15021
//! ```
//!
//! Invariants:
//! - Every socket of a pod is made inside the pod's network namespace and carries the mark that its rules look for.
//! - What decides is core's; this crate waits, moves bytes and reports.
//! - A decision reads one snapshot. An inbound connection is in the table before it is judged.
//! - One pod's trouble is its own: it is refused, reported and tried again, and the others don't notice.

#![recursion_limit = "256"] // the long list of settings in admin

pub mod admin;
pub mod app;
pub mod certs;
pub mod config;
pub mod descriptors;
pub mod dns;
pub mod footprint;
pub mod inpod;
pub mod mesh;
pub mod metrics;
pub mod on_demand;
pub mod proxy;
pub mod records;
pub mod socket;
#[cfg(test)]
mod testing;
