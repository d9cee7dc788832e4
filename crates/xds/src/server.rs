//! The server's end: [`session`] decides, [`driver`] talks gRPC.
//!
//! ```text
//!   Source ──newer──► stream (a task a client) ──Answer──► body ──16 KiB at a time──► the client's window
//!                        ▲   Session, Limits                                            │
//!                        └────────────────── requests ◀─────────────────────────────────┘
//! ```

pub mod answer;
mod body;
pub mod clients;
pub mod driver;
pub mod limits;
pub mod metrics;
pub mod node;
pub mod publisher;
mod requests;
pub mod session;
mod sotw;
mod stream;

pub use clients::{ClientInfo, Clients, Nack, Stamp, TypeInfo};
pub use driver::{Authenticate, Caller, Discovery, Hangup, PeerCerts, Server, Source};
pub use limits::Limits;
pub use metrics::ServerMetrics;
pub use publisher::Publisher;
pub use sotw::Inspect;
