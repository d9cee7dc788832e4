//! What a run found out, as it goes into results.json.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::measure::cpu::Cpu;
use crate::mode::Mode;
use crate::options::BenchOptions;
use crate::pods::Series;
use crate::stats::Summary;
use crate::tools::Outcome;

const GIB: f64 = (1u64 << 30) as f64;
const MIB: f64 = (1u64 << 20) as f64;

/// One run of one work in one mode.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Sample {
    /// Which turn.
    pub(crate) round: u32,
    /// What the load's program reported.
    pub(crate) outcome: Outcome,
    /// CPU of the whole machine meanwhile: client, server, proxies, kernel.
    pub(crate) machine: Cpu,
    /// CPU of the proxies' processes meanwhile, both sides.
    pub(crate) proxies: Cpu,
    /// Memory of the proxies' processes right after, both sides, in bytes.
    pub(crate) proxies_pss: u64,
    /// Overflow counters that grew: the run counts as failed.
    pub(crate) overflows: Vec<String>,
    /// Figures of this kind of work alone.
    pub(crate) extra: BTreeMap<String, f64>,
}

/// Something that is read off a sample.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Metric {
    /// Gbit/s received.
    Gbits,
    /// Requests (connections, streams) a second.
    Rate,
    /// Median latency, µs.
    P50,
    /// Latency that nine of ten stay below, µs.
    P90,
    /// Latency that 99 of 100 stay below, µs.
    P99,
    /// CPU of the machine for each request, µs.
    MachinePerRequest,
    /// CPU of the proxies' processes for each request, µs.
    ProxiesPerRequest,
    /// CPU of the machine for each GiB, seconds.
    MachinePerGib,
    /// CPU of the proxies' processes for each GiB, seconds.
    ProxiesPerGib,
    /// Memory of the proxies right after the run, MiB.
    ProxiesPss,
    /// A figure of this kind of work.
    Extra(&'static str),
}

impl Metric {
    /// Its value, where the sample has one.
    pub(crate) fn of(self, sample: &Sample) -> Option<f64> {
        let Sample { outcome, machine, proxies, .. } = sample;
        let per = |cpu: &Cpu, count: f64, scale: f64| (count > 0.0).then(|| cpu.total() * scale / count);
        let (requests, gib) = (outcome.requests as f64, outcome.bytes as f64 / GIB);
        let latency = outcome.latency;
        match self {
            Self::Gbits => (outcome.seconds > 0.0).then(|| outcome.bytes as f64 * 8.0 / 1e9 / outcome.seconds),
            Self::Rate => (outcome.seconds > 0.0).then(|| requests / outcome.seconds),
            Self::P50 => latency.map(|latency| latency.p50),
            Self::P90 => latency.map(|latency| latency.p90),
            Self::P99 => latency.map(|latency| latency.p99),
            Self::MachinePerRequest => per(machine, requests, 1e6),
            Self::ProxiesPerRequest => per(proxies, requests, 1e6),
            Self::MachinePerGib => per(machine, gib, 1.0),
            Self::ProxiesPerGib => per(proxies, gib, 1.0),
            Self::ProxiesPss => Some(sample.proxies_pss as f64 / MIB),
            Self::Extra(name) => sample.extra.get(name).copied(),
        }
    }

    /// Its unit.
    pub(crate) fn unit(self) -> &'static str {
        match self {
            Self::Gbits => "Gbit/s",
            Self::Rate => "/s",
            Self::P50 | Self::P90 | Self::P99 | Self::MachinePerRequest | Self::ProxiesPerRequest => "µs",
            Self::MachinePerGib | Self::ProxiesPerGib => "s",
            Self::ProxiesPss => "MiB",
            Self::Extra(_) => "",
        }
    }
}

/// A work with all its samples.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct WorkResult {
    /// As options name it.
    pub(crate) id: &'static str,
    /// As a person reads it.
    pub(crate) title: &'static str,
    /// The figure that it is about.
    pub(crate) primary: Metric,
    /// The runs, by mode.
    pub(crate) samples: BTreeMap<Mode, Vec<Sample>>,
}

impl WorkResult {
    /// What the rounds of a mode came to. Runs that overflowed something do not count.
    pub(crate) fn summary(&self, mode: Mode, metric: Metric) -> Option<Summary> {
        let good = self.samples.get(&mode)?.iter().filter(|sample| sample.overflows.is_empty());
        Summary::of(good.filter_map(|sample| metric.of(sample)))
    }
}

/// Everything.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Results {
    /// The command that was run.
    pub(crate) command: String,
    /// The modes that were measured.
    pub(crate) modes: Vec<Mode>,
    /// Modes that were asked for but not measured, with the reason.
    pub(crate) not_available: BTreeMap<Mode, String>,
    /// The works.
    pub(crate) works: Vec<WorkResult>,
    /// Memory by the number of pods on a node.
    pub(crate) pods: Vec<Series>,
    /// What went wrong.
    pub(crate) failures: Vec<String>,
    /// How long all of it took.
    pub(crate) seconds: f64,
}

impl Results {
    /// Nothing yet.
    pub(crate) fn begin(_options: &BenchOptions) -> Self {
        Self { command: std::env::args().collect::<Vec<_>>().join(" "), ..Self::default() }
    }
}
