//! The data path.
//!
//! ```text
//!   control thread                         worker thread (each: own runtime, listeners, pool, connections)
//!   Workers ── Command over a channel ───► Worker ── Pod ─┬─ 15001 outbound ─── connector/pool ──► peers
//!      ▲                                      │           ├─ 15008 inbound ────┐
//!      └──────────── acknowledgements ────────┘           └─ 15006 passthrough ┴─ authorize ─────► application
//!                                              conn_table: who is connected, judged again on each change
//! ```
//!
//! Invariants: a connection lives and dies on the worker that accepted it; nothing on the byte path is shared between
//! threads; an inbound connection is registered before it is authorized; sockets of a pod are made inside its
//! namespace, by a plain function between two awaits.

mod admit;
pub mod conn_table;
pub mod connector;
pub mod inbound;
pub mod listeners;
pub mod outbound;
pub mod passthrough;
pub mod pod;
pub mod verdict;
pub mod worker;
