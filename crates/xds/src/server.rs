//! The server's end: [`session`] decides, [`driver`] talks gRPC.

pub mod clients;
pub mod driver;
pub mod metrics;
pub mod node;
pub mod publisher;
pub mod session;

pub use clients::{ClientInfo, Clients, TypeInfo};
pub use driver::{Authenticate, Caller, Server, Source};
pub use metrics::ServerMetrics;
pub use publisher::Publisher;
