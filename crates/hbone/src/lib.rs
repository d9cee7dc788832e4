//! HBONE: TCP streams inside HTTP/2 CONNECT, both ends, and the byte copy between any two streams.
//!
//! ```text
//!   pool ──▶ client ──┐                       ┌── server ──▶ handler per stream
//!    │                ▼                       ▼
//!    │            stream::H2Stream ── transport::Transport ── TcpTransport / IoTransport
//!    ▼                                │
//!  admission (pure)                   ▼
//!                               copy_bidirectional
//! ```
//!
//! Invariants:
//! - This crate knows nothing of TLS, of identities or of the mesh: the pool is generic over [`pool::Connect`],
//!   which hands back a byte stream that is already authenticated.
//! - A pool and all its streams belong to one worker thread; nothing here is shared between workers, and most
//!   futures are `!Send`: run them on a `LocalSet`.
//! - Bytes received over HTTP/2 give their flow-control credit back only when they have left on the other side.
//! - Half-close is kept: END_STREAM is FIN and FIN is END_STREAM, each direction on its own.

pub mod client;
mod config;
pub mod copy;
mod error;
mod keepalive;
pub mod pool;
#[cfg(test)]
mod raw;
pub mod server;
pub mod stream;
pub mod transport;

pub use client::{Client, HboneRequest};
pub use config::{ClientConfig, Keepalive, ServerConfig, Windows};
pub use copy::{CopyError, Counters, Op, Side, copy_bidirectional};
pub use error::ConnectError;
pub use pool::{Connect, Key, Pool, PoolConfig, PoolError};
pub use server::{ConnectRequest, ServeError, serve};
pub use stream::H2Stream;
pub use transport::{BufList, IoTransport, TcpTransport, Transport};
