//! What a run found out, as it goes into results.json.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::control_plane;
use crate::machine::Machine;
use crate::measure::cpu::Cpu;
use crate::mode::Mode;
use crate::options::BenchOptions;
use crate::pods::Series;
use crate::report::document::Section;
use crate::stats::Summary;
use crate::tools::Outcome;
use crate::tuning;
use crate::work::extra;

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
    /// User mode of it, µs.
    UserPerRequest,
    /// System calls of it, µs.
    SystemPerRequest,
    /// The network stack's interrupts of it, µs.
    SoftirqPerRequest,
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
    /// Those that every kind of work may have, then those of single kinds.
    pub(crate) const ALL: [Self; 21] = [
        Self::Gbits,
        Self::Rate,
        Self::P50,
        Self::P90,
        Self::P99,
        Self::MachinePerRequest,
        Self::ProxiesPerRequest,
        Self::UserPerRequest,
        Self::SystemPerRequest,
        Self::SoftirqPerRequest,
        Self::MachinePerGib,
        Self::ProxiesPerGib,
        Self::ProxiesPss,
        extra::IDLE,
        extra::PEAK,
        extra::AFTER,
        extra::PER_CONNECTION,
        extra::SOCKETS_PER_CONNECTION,
        extra::PER_WORKLOADS,
        extra::ALONE,
        extra::MOVED,
    ];

    /// As results.json names it.
    pub(crate) fn name(self) -> String {
        match self {
            Self::Gbits => "gbits",
            Self::Rate => "rate",
            Self::P50 => "p50_us",
            Self::P90 => "p90_us",
            Self::P99 => "p99_us",
            Self::MachinePerRequest => "machine_us_per_request",
            Self::ProxiesPerRequest => "proxies_us_per_request",
            Self::UserPerRequest => "user_us_per_request",
            Self::SystemPerRequest => "system_us_per_request",
            Self::SoftirqPerRequest => "softirq_us_per_request",
            Self::MachinePerGib => "machine_s_per_gib",
            Self::ProxiesPerGib => "proxies_s_per_gib",
            Self::ProxiesPss => "proxies_pss_mib",
            Self::Extra(name) => name,
        }
        .to_owned()
    }

    /// Its value, where the sample has one.
    pub(crate) fn of(self, sample: &Sample) -> Option<f64> {
        let Sample { outcome, machine, proxies, .. } = sample;
        let share = |seconds: f64, count: f64, scale: f64| (count > 0.0).then(|| seconds * scale / count);
        let per = |cpu: &Cpu, count: f64, scale: f64| share(cpu.total(), count, scale);
        let (requests, gib) = (outcome.requests as f64, outcome.bytes as f64 / GIB);
        let latency = outcome.latency;
        match self {
            Self::Gbits => {
                (outcome.seconds > 0.0 && outcome.bytes > 0).then(|| outcome.bytes as f64 * 8.0 / 1e9 / outcome.seconds)
            }
            Self::Rate => (outcome.seconds > 0.0 && outcome.requests > 0).then(|| requests / outcome.seconds),
            Self::P50 => latency.map(|latency| latency.p50),
            Self::P90 => latency.map(|latency| latency.p90),
            Self::P99 => latency.map(|latency| latency.p99),
            Self::MachinePerRequest => per(machine, requests, 1e6),
            Self::ProxiesPerRequest => per(proxies, requests, 1e6),
            Self::UserPerRequest => share(machine.user, requests, 1e6),
            Self::SystemPerRequest => share(machine.system, requests, 1e6),
            Self::SoftirqPerRequest => share(machine.softirq, requests, 1e6),
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
            Self::UserPerRequest | Self::SystemPerRequest | Self::SoftirqPerRequest => "µs",
            Self::MachinePerGib | Self::ProxiesPerGib => "s",
            Self::ProxiesPss => "MiB",
            Self::Extra(name) => match name.rsplit_once('_').map(|(_, unit)| unit) {
                Some("mib") => "MiB",
                Some("kib") => "KiB",
                Some("us") => "µs",
                Some("times") => "times",
                _ => "",
            },
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
    /// What it ran on.
    pub(crate) machine: Machine,
    /// Kernel settings, alike in all modes.
    pub(crate) settings: Vec<String>,
    /// The modes that were measured.
    pub(crate) modes: Vec<Mode>,
    /// Modes that were asked for but not measured, with the reason.
    pub(crate) not_available: BTreeMap<Mode, String>,
    /// Cores in use while all labs were up and nothing was done.
    pub(crate) background_cores: f64,
    /// The works.
    pub(crate) works: Vec<WorkResult>,
    /// Memory by the number of pods on a node.
    pub(crate) pods: Vec<Series>,
    /// What other parts of the harness found, by their names.
    pub(crate) more: BTreeMap<&'static str, serde_json::Value>,
    /// What they want the report to say.
    #[serde(skip)]
    pub(crate) sections: Vec<Section>,
    /// What went wrong.
    pub(crate) failures: Vec<String>,
    /// How long all of it took.
    pub(crate) seconds: f64,
}

impl Results {
    /// Nothing yet.
    pub(crate) fn begin(options: &BenchOptions) -> Self {
        let mut settings = tuning::described();
        settings.push(format!(
            "{} s a run, {} threads each for client and server, seed {}",
            options.seconds(),
            options.threads(),
            options.seed
        ));
        let command = std::env::args().collect::<Vec<_>>().join(" ");
        Self { command, machine: Machine::this(), settings, ..Self::default() }
    }

    /// Adds what the control plane costs.
    pub(crate) fn add_control_plane(&mut self, mode: Mode, found: &control_plane::Found) {
        let all = self.more.entry("control_plane").or_insert_with(|| serde_json::json!({}));
        all[mode.name()] = serde_json::json!(found);
        self.sections.push(control_plane::section(found));
    }

    /// Adds what the control plane costs in a large mesh.
    pub(crate) fn add_scale(&mut self, found: &control_plane::scale::Found) {
        self.more.insert("control_plane_scale", serde_json::json!(found));
        self.sections.push(control_plane::scale::section(found));
    }

    /// The work of that name.
    pub(crate) fn work(&self, id: &str) -> Option<&WorkResult> {
        self.works.iter().find(|work| work.id == id)
    }
}
