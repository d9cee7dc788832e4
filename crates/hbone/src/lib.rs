//! HBONE: TCP streams inside HTTP/2 CONNECT, both ends, and the byte copy between any two streams.
//!
//! ```text
//!   pool ──▶ client ──┐                       ┌── server ──▶ handler per stream
//!    │                ▼                       ▼
//!    │            stream::H2Stream ── transport::Transport ── TcpTransport / IoTransport
//!    ▼                   │            │
//!  admission (pure)      ▼            ▼
//!         tuning ── credit (pure)   copy_bidirectional
//!         guard ─── flood (pure)
//! ```
//! `credit` decides how wide windows are and `tuning` tells the peer; `guard` is the byte stream below HTTP/2, where
//! `flood` counts frames.
//!
//! Invariants:
//! - This crate knows nothing of TLS, of identities or of the mesh: the pool is generic over [`pool::Connect`],
//!   which hands back a byte stream that is already authenticated.
//! - A pool and all its streams belong to one worker thread; nothing that bytes pass is shared between workers, which
//!   their types say ([`OwnThread`](aquifer_runtime::OwnThread)): run them on a local runtime.
//! - Bytes received over HTTP/2 give their flow-control credit back only when they have left on the other side.
//! - Stalled streams never use up the credit of their connection: the others go on at full speed. What a connection
//!   holds received and not passed on is at most [`Windows::connection`], what a pod's hold together at most
//!   [`Budget`], with 64 KiB for each connection above it.
//! - Frames that cost us more than their sender end the connection, with GOAWAY ENHANCE_YOUR_CALM.
//! - Half-close is kept: END_STREAM is FIN and FIN is END_STREAM, each direction on its own.

pub mod client;
mod config;
pub mod copy;
mod credit;
mod error;
mod flood;
mod guard;
mod keepalive;
mod late_flush;
pub mod pool;
#[cfg(test)]
mod raw;
pub mod server;
pub mod stream;
pub mod transport;
mod tuning;

pub use client::{Client, HboneRequest};
pub use config::{ClientConfig, Keepalive, POD_BUDGET, ServerConfig, Windows};
pub use copy::{CopyError, Counters, Op, Side, copy_bidirectional};
pub use credit::Budget;
pub use error::ConnectError;
pub use flood::Flood;
pub use pool::{Connect, Key, Pool, PoolConfig, PoolError};
pub use server::{ConnectRequest, ServeError, Unfit, serve, serve_within};
pub use stream::H2Stream;
pub use transport::{BufList, IoTransport, TcpTransport, Transport};

// All that bytes pass, and what is counted of them.
aquifer_runtime::stays_on_its_thread!(
    BufList,
    Client,
    client::Driver<tokio::net::TcpStream>,
    ConnectRequest,
    Counters,
    guard::Guard<tokio::net::TcpStream>,
    H2Stream,
    IoTransport<tokio::net::TcpStream>,
    late_flush::Flusher<tokio::net::TcpStream>,
    late_flush::LateFlush<tokio::net::TcpStream>,
    TcpTransport,
    tuning::Tuning,
);
