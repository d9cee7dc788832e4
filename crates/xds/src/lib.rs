//! Delta aggregated discovery (xDS), both ends.
//!
//! ```text
//!   istiod-lite                                              ztunnel
//!   Publisher ──► server::driver ══ gRPC stream ══ client::driver ──► ResourceSink
//!  (ResourceSet)       │                                 │
//!               server::session                   client::session
//!               pure: request or new              pure: response in,
//!               snapshot in, responses out        updates and ACK out
//! ```
//!
//! Invariants:
//! - The sessions are pure: no clock, no IO. Whatever order of changes, ACKs, NACKs and reconnects they see, a client
//!   that the server has answered holds what the server's set says it should.
//! - A whole response reaches the sink at once; what it refuses is NACKed by name and the rest counts as held.
//! - The server keeps no queue for a client: it remembers which snapshot the client has, and a slow client gets the
//!   difference to the newest one when it reads again.
//! - A policy is sent before the workloads that name it and taken away after them.
//! - This crate doesn't know what a resource means: bodies are opaque, names and aliases are compared as text.

pub mod client;
pub mod resource;
pub mod server;
