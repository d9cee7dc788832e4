//! The DNS proxy in each pod: names of the mesh are answered here, all others by the node's name servers.
//!
//! ```text
//!   application ── port 53, redirected ──► server (127.0.0.1:15053, [::1]:15053; UDP and TCP)
//!                                            │ message: is it a question?
//!                                            │ names, resolve: does the mesh know the name? ──► answer
//!                                            └ no, or another record type ──► upstream ── the pod's own sockets,
//!                                                                               marked ──► name servers of resolv.conf
//! ```
//!
//! Invariants:
//! - What decides is pure: `names`, `resolve`, `message`. A query is answered from one snapshot.
//! - What is forwarded, and its answer, pass byte for byte but for the id.
//! - A known name without an address of the asked family is an empty answer, not NXDOMAIN: a client that is told that
//!   the name doesn't exist doesn't ask for the other family.
//! - Queries in work, connections and questions on their way upstream are bounded per pod.

pub mod lookup;
pub mod message;
pub mod metrics;
pub mod names;
pub mod resolv_conf;
pub mod resolve;
pub mod server;
pub mod upstream;

use std::net::SocketAddr;

use self::metrics::Metrics;
use self::resolve::Zone;

/// Where the proxy listens in each pod unless told otherwise.
pub const PORT: u16 = 15053;

/// Questions of one pod that are on their way upstream at once.
pub const UPSTREAM_LIMIT: usize = 256;

/// Where queries are taken (`ISTIO_META_DNS_PROXY_ADDR`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Listen {
    /// On the loopback addresses that the pod has.
    Localhost {
        /// The port.
        port: u16,
        /// `IPV6_ENABLED`: on `::1` too.
        ipv6: bool,
    },
    /// Exactly here.
    Address(SocketAddr),
}

/// What all pods' proxies share.
#[derive(Clone, Debug)]
pub struct Dns {
    /// Where they listen.
    pub listen: Listen,
    /// How names are made.
    pub zone: Zone,
    /// Whom they ask.
    pub servers: Vec<SocketAddr>,
    /// What they count.
    pub metrics: Metrics,
}
