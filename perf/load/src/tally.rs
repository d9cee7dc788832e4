//! What a run counted: requests, errors by kind, latencies, how even the rate was.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use nix::sys::resource::{Usage, UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use serde::Serialize;
use serde_json::{Map, Value};

/// Finished requests are counted in steps of this, from which [`Report::spread`] is made.
const STEP: Duration = Duration::from_millis(10);
/// The rate is compared between this many parts of the run.
const PARTS: usize = 10;
/// Latencies above this count as this.
const LONGEST: Duration = Duration::from_secs(100);

/// Why a request failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Failure {
    /// Nobody listens, or a proxy refused.
    Refused,
    /// The connection was reset.
    Reset,
    /// The peer ended the connection before its answer was whole.
    Closed,
    /// No answer in time.
    TimedOut,
    /// No route to the target.
    Unreachable,
    /// No local port is free: widen `net.ipv4.ip_local_port_range` or name more `--source` addresses.
    NoPort,
    /// Too many descriptors are open.
    NoDescriptor,
    /// An answer with another status than a good one.
    Status,
    /// What came is not what was asked for.
    Protocol,
    /// Anything else.
    Other,
}

impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Self {
        use io::ErrorKind as K;
        match error.kind() {
            K::ConnectionRefused => Self::Refused,
            K::ConnectionReset | K::ConnectionAborted | K::BrokenPipe => Self::Reset,
            K::UnexpectedEof | K::NotConnected => Self::Closed,
            K::TimedOut => Self::TimedOut,
            K::HostUnreachable | K::NetworkUnreachable => Self::Unreachable,
            K::AddrNotAvailable | K::AddrInUse => Self::NoPort,
            _ if error.raw_os_error() == Some(nix::errno::Errno::EMFILE as i32) => Self::NoDescriptor,
            _ => Self::Other,
        }
    }
}

/// The time in which a run counts: what ends before it belongs to the warm-up, nothing is begun after it.
#[derive(Debug, Clone, Copy)]
pub struct Window {
    /// The load begins.
    pub start: Instant,
    /// Counting begins.
    pub from: Instant,
    /// Nothing is begun any more.
    pub until: Instant,
}

impl Window {
    /// Counts for `seconds` after `warmup` seconds that are not counted.
    pub fn new(warmup: f64, seconds: f64) -> Self {
        let start = Instant::now();
        let from = start + Duration::from_secs_f64(warmup);
        Self { start, from, until: from + Duration::from_secs_f64(seconds) }
    }
}

/// Counts of one thread. Those of several are merged.
#[derive(Debug)]
pub struct Tally {
    from: Instant,
    latencies: Histogram<u64>,
    errors: BTreeMap<Failure, u64>,
    steps: Steps,
}

impl Tally {
    /// Counts what ends from then on.
    pub fn new(from: Instant) -> Self {
        let latencies = Histogram::new_with_max(LONGEST.as_nanos() as u64, 3).expect("these bounds are allowed");
        Self { from, latencies, errors: BTreeMap::new(), steps: Steps::default() }
    }

    /// One request that was due at `due` and done at `done`.
    pub fn done(&mut self, due: Instant, done: Instant) {
        let Some(into) = done.checked_duration_since(self.from) else { return };
        self.latencies.saturating_record(done.saturating_duration_since(due).as_nanos() as u64);
        self.steps.add(into, 1);
    }

    /// One request that failed at `at`.
    pub fn failed(&mut self, failure: Failure, at: Instant) {
        if at >= self.from {
            *self.errors.entry(failure).or_default() += 1;
        }
    }

    /// Requests that were done.
    pub fn requests(&self) -> u64 {
        self.latencies.len()
    }

    /// Requests that failed.
    pub fn errors(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Takes another thread's counts in, which began to count at the same time.
    pub fn merge(&mut self, other: &Self) {
        self.latencies.add(&other.latencies).expect("the same bounds");
        for (failure, count) in &other.errors {
            *self.errors.entry(*failure).or_default() += count;
        }
        self.steps.merge(&other.steps);
    }

    /// The report of a run whose counted part took `seconds`.
    pub fn report(&self, work: &'static str, seconds: f64, cpu: &CpuClock) -> Report {
        let micros = |nanos: u64| (nanos as f64 / 100.0).round() / 10.0;
        let at = |quantile: f64| micros(self.latencies.value_at_quantile(quantile));
        Report {
            work,
            requests: self.requests(),
            errors: self.errors(),
            errors_by_kind: self.errors.clone(),
            seconds,
            rate: if seconds > 0.0 { self.requests() as f64 / seconds } else { 0.0 },
            latency_us: Latency {
                mean: (self.latencies.mean() / 100.0).round() / 10.0,
                p50: at(0.5),
                p90: at(0.9),
                p99: at(0.99),
                p999: at(0.999),
                max: micros(self.latencies.max()),
            },
            spread: self.steps.spread(seconds),
            cpu_seconds: cpu.used(),
            more: Map::new(),
        }
    }
}

/// How much was done in each step of a run.
#[derive(Debug, Default)]
pub(crate) struct Steps(Vec<u64>);

impl Steps {
    /// So much, that long after counting began.
    pub(crate) fn add(&mut self, into: Duration, much: u64) {
        let step = (into.as_micros() / STEP.as_micros()) as usize;
        if step >= self.0.len() {
            self.0.resize(step + 1, 0);
        }
        self.0[step] += much;
    }

    pub(crate) fn merge(&mut self, other: &Self) {
        if self.0.len() < other.0.len() {
            self.0.resize(other.0.len(), 0);
        }
        self.0.iter_mut().zip(&other.0).for_each(|(mine, theirs)| *mine += theirs);
    }

    pub(crate) fn sum(&self) -> u64 {
        self.0.iter().sum()
    }

    /// The widest difference of rate between parts of the run, as a share of the median part.
    pub(crate) fn spread(&self, seconds: f64) -> f64 {
        // A step that was cut off by the end would look slow.
        let whole = ((seconds / STEP.as_secs_f64()) as usize).max(1);
        let parts = PARTS.min(whole);
        let mut rates: Vec<f64> = (0..parts)
            .map(|part| {
                let (from, to) = (part * whole / parts, (part + 1) * whole / parts);
                let sum: u64 = self.0.iter().skip(from).take(to - from).sum();
                sum as f64 / (to - from) as f64
            })
            .collect();
        rates.sort_by(f64::total_cmp);
        let median = rates[parts / 2];
        if median > 0.0 { ((rates[parts - 1] - rates[0]) / median * 1e4).round() / 1e4 } else { 0.0 }
    }
}

/// What one run prints.
#[derive(Debug, Serialize)]
pub struct Report {
    /// The subcommand.
    pub work: &'static str,
    /// Requests done within the counted time.
    pub requests: u64,
    /// Requests that failed within it.
    pub errors: u64,
    /// The same by kind.
    pub errors_by_kind: BTreeMap<Failure, u64>,
    /// The counted time.
    pub seconds: f64,
    /// Requests per second.
    pub rate: f64,
    /// Of the requests done.
    pub latency_us: Latency,
    /// (fastest − slowest) / median of ten equal parts of the counted time.
    pub spread: f64,
    /// What this process itself used, warm-up included.
    pub cpu_seconds: Cpu,
    /// What only this work has.
    #[serde(flatten)]
    pub more: Map<String, Value>,
}

impl Report {
    /// Adds what only this work has.
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.more.insert(key.to_owned(), value.into());
        self
    }
}

/// Microseconds.
#[derive(Debug, Serialize)]
pub struct Latency {
    /// Mean.
    pub mean: f64,
    /// Median.
    pub p50: f64,
    /// Nine of ten are below.
    pub p90: f64,
    /// 99 of 100 are below.
    pub p99: f64,
    /// 999 of 1 000 are below.
    #[serde(rename = "p99.9")]
    pub p999: f64,
    /// The longest.
    pub max: f64,
}

/// Seconds of CPU.
#[derive(Debug, Serialize)]
pub struct Cpu {
    /// In user space.
    pub user: f64,
    /// In the kernel, as far as it is charged to the process.
    pub system: f64,
}

/// What the process had used when its run began.
#[derive(Debug)]
pub struct CpuClock(Option<Usage>);

impl CpuClock {
    /// From now on.
    pub fn start() -> Self {
        Self(getrusage(UsageWho::RUSAGE_SELF).ok())
    }

    fn used(&self) -> Cpu {
        let now = getrusage(UsageWho::RUSAGE_SELF).ok();
        let seconds = |read: fn(&Usage) -> nix::sys::time::TimeVal| match (&self.0, &now) {
            (Some(then), Some(now)) => (read(now).num_microseconds() - read(then).num_microseconds()) as f64 / 1e6,
            _ => 0.0,
        };
        Cpu { user: seconds(Usage::user_time), system: seconds(Usage::system_time) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_spread_is_that_of_tenths_of_the_run() {
        let from = Instant::now();
        let mut tally = Tally::new(from);
        // One request in each 10 ms of a second, and ten more in its first tenth.
        for step in 0..100u32 {
            let at = from + STEP * step;
            tally.done(at, at + Duration::from_micros(50));
        }
        (0..10).for_each(|_| tally.done(from, from + Duration::from_micros(50)));
        let report = tally.report("test", 1.0, &CpuClock::start());
        assert_eq!((report.requests, report.rate, report.spread), (110, 110.0, 1.0));
        assert_eq!(report.latency_us.p50, 50.0);
    }

    #[test]
    fn what_ends_in_the_warmup_is_not_counted() {
        let now = Instant::now();
        let mut tally = Tally::new(now + Duration::from_secs(1));
        tally.done(now, now);
        tally.failed(Failure::Reset, now);
        assert_eq!((tally.requests(), tally.errors()), (0, 0));
    }

    #[test]
    fn threads_add_up() {
        let from = Instant::now();
        let (mut one, mut two) = (Tally::new(from), Tally::new(from));
        one.done(from, from + Duration::from_millis(1));
        two.done(from, from + Duration::from_millis(30));
        two.failed(Failure::Refused, from);
        one.merge(&two);
        let report = serde_json::to_value(one.report("test", 1.0, &CpuClock::start()).with("streams", 3)).unwrap();
        assert_eq!((&report["requests"], &report["errors"], &report["streams"]), (&2.into(), &1.into(), &3.into()));
        assert_eq!(report["errors_by_kind"]["refused"], 1);
        assert!(report["latency_us"]["p99.9"].as_f64().unwrap() >= 29_000.0);
    }
}
