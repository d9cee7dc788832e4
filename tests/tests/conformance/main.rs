//! Conformance: the contract with Istio's peers, statement by statement (`tests/conformance.toml`), tried against the
//! real binaries by peers that share no code with them.
//!
//! `CONFORMANCE_ZTUNNEL=/path/to/ztunnel` puts another proxy to the same tests.

mod admin;
mod agent;
mod balancing;
mod bootstrap;
mod ca;
mod caller;
mod cluster;
mod control;
mod dns;
mod handshake;
mod inbound;
mod outbound;
mod peer;
mod rbac;
mod table;
mod telemetry;
mod waypoints;
mod zds;
