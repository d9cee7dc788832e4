//! Results made up for tests.

use std::collections::BTreeMap;

use crate::measure::cpu::Cpu;
use crate::mode::Mode;
use crate::pods::Series;
use crate::results::{Metric, Results, Sample, WorkResult};
use crate::tools::{Latency, Outcome};

/// A sample of so many requests in a second, and µs of the proxies' CPU for each.
fn sample(round: u32, requests: u64, proxies: f64) -> Sample {
    let latency = Latency { p50: 100.0, p90: 200.0, p99: 300.0, max: 400.0 };
    Sample {
        round,
        outcome: Outcome { requests, bytes: 0, errors: 0, seconds: 1.0, latency: Some(latency) },
        machine: Cpu { user: 1.0, system: 0.5, softirq: 0.5 },
        proxies: Cpu { user: proxies * requests as f64 / 1e6, system: 0.0, softirq: 0.0 },
        proxies_pss: 16 << 20,
        overflows: Vec::new(),
        extra: BTreeMap::new(),
    }
}

/// Three modes, one work: 40 000, 15 000 and 10 000 requests a second.
pub(crate) fn results() -> Results {
    let rounds = |requests: u64, proxies: f64| -> Vec<Sample> {
        (0..3).map(|round| sample(round, requests - 100 + 100 * u64::from(round), proxies)).collect()
    };
    let samples = BTreeMap::from([
        (Mode::None, rounds(40_000, 0.0)),
        (Mode::Ambient, rounds(15_000, 30.0)),
        (Mode::SidecarTcp, rounds(10_000, 40.0)),
    ]);
    let title = "HTTP/1.1 keep-alive, 32 connections";
    let work = WorkResult { id: "http32", title, primary: Metric::Rate, samples };
    Results {
        command: "aquifer bench <all>".into(),
        modes: vec![Mode::None, Mode::Ambient, Mode::SidecarTcp],
        not_available: BTreeMap::from([(Mode::Waypoint, crate::bed::NO_WAYPOINT.into())]),
        works: vec![work],
        pods: vec![
            Series { mode: Mode::Ambient, what: "ztunnel", points: vec![(2.0, 10.2), (12.0, 11.2)] },
            Series { mode: Mode::SidecarTcp, what: "all sidecars", points: vec![(2.0, 100.0), (12.0, 600.0)] },
        ],
        seconds: 12.0,
        ..Results::default()
    }
}
