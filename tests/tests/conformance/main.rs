//! Conformance: the contract with Istio's peers, statement by statement (`tests/conformance.toml`), tried against the
//! real binaries by peers that share no code with them.
//!
//! `CONFORMANCE_ZTUNNEL=/path/to/ztunnel` puts another proxy to the same tests.

// Not every test needs every part of the peer.
#![allow(dead_code)]

mod admin;
mod agent;
mod balancing;
mod bootstrap;
mod ca;
mod cluster;
mod control;
mod inbound;
mod outbound;
mod rbac;
mod peer;
mod telemetry;
mod zds;
