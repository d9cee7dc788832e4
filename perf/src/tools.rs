//! The programs that make load, and what they report. Parsing is pure.

pub(crate) mod iperf3;
pub(crate) mod load;
pub(crate) mod wrk;

use serde::{Deserialize, Serialize};

/// What a program that made load reports.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Outcome {
    /// Requests answered (connections, streams); 0 for bulk.
    pub(crate) requests: u64,
    /// Bytes received.
    pub(crate) bytes: u64,
    /// What failed.
    pub(crate) errors: u64,
    /// How long it took.
    pub(crate) seconds: f64,
    /// How long requests took.
    pub(crate) latency: Option<Latency>,
}

/// Latencies in microseconds.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub(crate) struct Latency {
    /// Half are faster.
    pub(crate) p50: f64,
    /// Nine of ten are faster.
    pub(crate) p90: f64,
    /// 99 of 100 are faster.
    pub(crate) p99: f64,
    /// The slowest.
    pub(crate) max: f64,
}
