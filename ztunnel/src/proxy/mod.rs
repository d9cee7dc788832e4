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
//! Invariants: a connection lives and dies on the worker that accepted it, or on the one that it was handed to before its
//! first byte was read ([`spread`]); nothing on the byte path is shared between
//! threads, which the types say; an inbound connection is registered before it is authorized; sockets of a pod are made inside its
//! namespace, by a plain function between two awaits.

mod admit;
pub mod conn_table;
pub mod connector;
pub mod inbound;
pub mod listeners;
pub mod outbound;
pub mod passthrough;
pub mod pod;
pub mod same_node;
pub mod spread;
pub mod verdict;
pub mod worker;

aquifer_runtime::stays_on_its_thread!(
    conn_table::ConnTable,
    conn_table::Guard,
    crate::metrics::TcpSeries,
    crate::metrics::WorkerMetrics,
    crate::records::Record,
    crate::records::Traffic,
    pod::Pod,
    same_node::Neighbours,
);

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use tokio::net::TcpStream;

    use super::pod::Pod;
    use super::{inbound, outbound, passthrough};

    fn size<A, B, F: Future>(_: fn(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// What each open connection's task holds of its own; there may be ten thousands.
    #[test]
    fn an_open_connections_task_is_small() {
        let outbound = size::<Rc<Pod>, TcpStream, _>(outbound::serve);
        let stream = inbound::stream_task_size();
        let plaintext = size::<Rc<Pod>, TcpStream, _>(passthrough::serve);
        println!("outbound {outbound}, stream {stream}, plaintext {plaintext}");
        assert!(outbound <= 832, "{outbound}");
        assert!(stream <= 864, "{stream}");
        assert!(plaintext <= 896, "{plaintext}");
    }
}
