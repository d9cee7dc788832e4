//! A busy neighbour: what else goes on while the requests of somebody else are measured.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Result;
use serde_json::{Value, json};

use crate::tally::Window;
use crate::{bulk, connect_rate};

/// Connections that may be on their way at a time: as fast as possible, and no flood of the listener's queue.
pub const OPENING: usize = 512;

/// What the neighbour does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing: the measure without it.
    None,
    /// One bulk transfer.
    Bulk,
    /// So many connections opened as fast as possible, a request on each; when all are open they are closed and
    /// opened anew.
    Connections(usize),
}

/// The neighbour of one run.
#[derive(Debug, Clone)]
pub struct Neighbour {
    /// What it does.
    pub kind: Kind,
    /// To whom: a port of kind auto, or a sink or HTTP server as the kind needs.
    pub target: SocketAddr,
    /// Seconds that are counted.
    pub seconds: f64,
    /// A connection that takes longer has failed.
    pub timeout: Duration,
    /// Draws what is sent.
    pub seed: u64,
}

impl Neighbour {
    /// Is busy for that time: the key under which it is reported, and what.
    pub(crate) fn run(&self, window: Window) -> Result<Option<(&'static str, Value)>> {
        match self.kind {
            Kind::None => Ok(None),
            Kind::Bulk => {
                let options = bulk::Options {
                    target: self.target,
                    streams: 1,
                    receive: false,
                    seconds: self.seconds,
                    warmup: 0.0,
                    timeout: self.timeout,
                    seed: self.seed,
                };
                let (tally, steps) = bulk::run_within(&options, window);
                let mut flow = bulk::flow(&options, &steps);
                flow["errors"] = tally.errors().into();
                Ok(Some(("elephant", flow)))
            }
            Kind::Connections(connections) => {
                let report = connect_rate::run_within(&self.connections(connections), window)?;
                let told = json!({
                    "connections": connections,
                    "opened": report.requests,
                    "rate": report.rate,
                    "rounds": report.more.get("rounds"),
                    "errors": report.errors,
                    "errors_by_kind": report.errors_by_kind,
                });
                Ok(Some(("neighbour", told)))
            }
        }
    }

    fn connections(&self, connections: usize) -> connect_rate::Options {
        connect_rate::Options {
            target: self.target,
            sources: Vec::new(),
            path: "/".into(),
            connections,
            threads: 1,
            seconds: self.seconds,
            warmup: 0.0,
            count: None,
            timeout: self.timeout,
            hold: Some(OPENING),
        }
    }
}
