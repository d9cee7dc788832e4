//! Load for measuring: clients that cost little beside what they measure, and the server that they talk to.
//!
//! ```text
//!  connect_rate ─┐                        ┌─ sniff ── http, echo, sink, source
//!  open_loop ────┤                        │
//!  idle ─────────┼── TCP ──▶  serve ──────┤
//!  grpc ─────────┤                        └─ grpc (h2)
//!  mice (open_loop beside bulk or neighbour)
//!  control_plane: an API server of made-up objects, and proxies (delta discovery)
//!      └── tally: histograms, errors by kind, spread ──▶ one JSON object
//! ```
//!
//! Invariants:
//! - Nothing of the product is linked in: what is measured cannot make its own measure look better.
//! - The clients of HTTP/1.1 are one event loop per thread with one buffer, and make no system call that they could do
//!   without.
//! - A latency is counted from the moment at which the work was due, not from the one at which there was time for it.
//! - Standard output carries JSON only, one object a line.

pub mod bulk;
pub mod connect_rate;
pub mod control_plane;
pub mod grpc;
mod http1;
pub mod idle;
pub mod mice;
pub mod neighbour;
pub mod open_loop;
pub mod serve;
mod socket;
pub mod tally;

pub use socket::{raise_descriptor_limit, resolve};
