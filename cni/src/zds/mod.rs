//! The node's side of ZDS: pods' network namespaces, handed to the node's proxies.
//!
//! ```text
//!   agent ── add, del ──► Zds (which pods, which connections) ──► connection ──SOCK_SEQPACKET──► ztunnel
//!                             └─ a new connection: every pod, then SnapshotSent, then what follows
//! ```
//!
//! Invariants:
//! - Strict lockstep: one packet out, one packet in. Anything that a proxy says unasked ends its connection.
//! - A pod is in the snapshot of a new connection or comes after it; it is never between the two.
//! - Add goes to the newest connection only (an older proxy is on its way out), Del to all.

pub mod connection;
pub mod packet;
pub mod server;

#[cfg(test)]
mod tests;

pub use server::{Timing, Zds, ZdsError, ZdsPod};
