//! Which worker serves a connection.
//!
//! Each worker accepts on sockets of its own. The kernel chooses among these by a hash that knows nothing of their load:
//! of four connections all may come to one worker. So whoever accepts one asks [`choose`], and hands it to another worker
//! before its first byte is read, if that one has clearly less to do. From then on it stays where it is.
//!
//! What workers know of each other is counted once per connection, and how busy they are is asked of their runtimes when
//! there is something to place: nothing here is on the byte path, and nothing wakes a worker that sleeps.

use std::cell::RefCell;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use aquifer_runtime::metrics::Registry;
use aquifer_runtime::{OnItsWay, Tracker};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::net::TcpStream;
use tokio::runtime::RuntimeMetrics;
use tokio::sync::mpsc;

use crate::inpod::handover::Kind;
use crate::inpod::netns::NetnsId;
use crate::inpod::zds::PodUid;
use crate::socket;

/// By how much of a worker's fair share another one must have less to do, to be handed a connection. Up to 15 connections
/// on two workers any difference is more than that.
pub const OF_A_CONNECTION: f32 = 1.0 / 8.0;
/// The same for a tunnel, which may come to carry many connections.
pub const OF_A_TUNNEL: f32 = 0.0;
/// Differences in time spent that say nothing.
const NOISE: f32 = 0.25;
/// How old the last look at the others' time may be.
const LOOK: Duration = Duration::from_millis(20);

/// What a worker has to do.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Load {
    /// Connections accepted, and streams of tunnels.
    pub open: usize,
    /// The part of the last while that it was busy, 0 to 1.
    pub busy: f32,
}

/// The worker that serves a connection which `own` has accepted: `own`, unless another has less to do by more than
/// `margin` of a fair share.
#[must_use]
pub fn choose(own: usize, loads: &[Load], margin: f32) -> usize {
    let total = loads.iter().map(|load| load.open).sum::<usize>().max(1) as f32;
    let margin = margin / loads.len() as f32;
    let gain = |other: Load| {
        let open = (loads[own].open as f32 - other.open as f32) / total;
        let busy = loads[own].busy - other.busy;
        open + busy.signum() * (busy.abs() - NOISE).max(0.0)
    };
    let mut best = (own, 0.0);
    // Each begins behind itself, so that not all choose the same one.
    for other in (1..loads.len()).map(|step| (own + step) % loads.len()) {
        let enough = if loads[other].open == 0 { 0.0 } else { margin };
        let gain = gain(loads[other]);
        if gain > enough.max(best.1) {
            best = (other, gain);
        }
    }
    best.0
}

/// The workers' counts. Clones are the same.
#[derive(Clone, Debug)]
pub struct Spread {
    workers: Arc<[Counts]>,
}

/// On a cache line of its own: each is written by its worker with every connection.
#[repr(align(128))]
#[derive(Debug, Default)]
struct Counts {
    open: AtomicUsize,
    handed: AtomicU64,
}

impl Spread {
    /// Over so many workers.
    #[must_use]
    pub fn over(workers: usize) -> Self {
        Self { workers: (0..workers).map(|_| Counts::default()).collect() }
    }

    /// Counts something that `worker` has to do.
    #[must_use]
    pub fn count(&self, worker: usize) -> Place {
        self.workers[worker].open.fetch_add(1, Relaxed);
        Place { spread: self.clone(), worker }
    }

    /// How much each worker has to do.
    pub fn open(&self) -> impl Iterator<Item = usize> + '_ {
        self.workers.iter().map(|counts| counts.open.load(Relaxed))
    }

    /// Registers what is open on each worker, and how many connections each has handed over.
    pub fn register(&self, registry: &mut Registry) {
        registry.register_collector(Box::new(self.clone()));
    }
}

impl Collector for Spread {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let label = |worker: usize| [("worker", worker.to_string())];
        let help = "Connections accepted and tunnels' streams that a worker serves now";
        let mut family = encoder.encode_descriptor("aquifer_worker_open", help, None, MetricType::Gauge)?;
        for (worker, open) in self.open().enumerate() {
            ConstGauge::new(open as i64).encode(family.encode_family(&label(worker))?)?;
        }
        let help = "Connections that a worker has accepted and another one serves";
        let mut family = encoder.encode_descriptor("aquifer_worker_handed_over", help, None, MetricType::Counter)?;
        for (worker, counts) in self.workers.iter().enumerate() {
            ConstCounter::new(counts.handed.load(Relaxed)).encode(family.encode_family(&label(worker))?)?;
        }
        Ok(())
    }
}

/// Something that a worker has to do, as counted.
#[derive(Debug)]
pub struct Place {
    spread: Spread,
    worker: usize,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.spread.workers[self.worker].open.fetch_sub(1, Relaxed);
    }
}

/// A connection on its way from the worker that accepted it to the one that will serve it.
#[derive(Debug)]
pub struct Moved {
    /// The pod that it came to.
    pub uid: PodUid,
    /// And that pod's namespace.
    pub netns: NetnsId,
    /// The listener.
    pub kind: Kind,
    /// Nothing was read from it yet.
    pub stream: std::net::TcpStream,
    /// Where it is counted.
    pub place: Place,
    /// Who has accepted it, if it may go back there.
    pub from: Option<usize>,
    /// The drain waits for it.
    pub on_its_way: OnItsWay,
}

/// A worker's ways to the others.
#[derive(Debug)]
pub struct Crew {
    own: usize,
    spread: Spread,
    clocks: RefCell<Clocks>,
    mates: Vec<mpsc::UnboundedSender<Moved>>,
    tracker: Tracker,
}

impl Crew {
    /// Worker `own` of those that these runtimes and channels belong to.
    #[must_use]
    pub fn new(
        own: usize,
        spread: Spread,
        runtimes: Vec<RuntimeMetrics>,
        mates: Vec<mpsc::UnboundedSender<Moved>>,
        tracker: Tracker,
    ) -> Self {
        Self { own, spread, clocks: RefCell::new(Clocks::new(runtimes)), mates, tracker }
    }

    /// The only worker.
    #[cfg(test)]
    pub(crate) fn alone(tracker: Tracker) -> Self {
        let metrics = tokio::runtime::Handle::current().metrics();
        Self::new(0, Spread::over(1), vec![metrics], vec![mpsc::unbounded_channel().0], tracker)
    }

    /// The number of this worker.
    #[must_use]
    pub fn own(&self) -> usize {
        self.own
    }

    /// Counts something that this worker serves.
    #[must_use]
    pub fn keep(&self) -> Place {
        self.spread.count(self.own)
    }

    /// Counts a connection just accepted where it shall be served, and takes it there unless that is here.
    pub fn place(&self, (uid, netns): (&PodUid, NetnsId), kind: Kind, stream: TcpStream) -> Option<(TcpStream, Place)> {
        let worker = self.choose(if kind == Kind::Hbone { OF_A_TUNNEL } else { OF_A_CONNECTION });
        let place = self.spread.count(worker);
        if worker == self.own {
            return Some((stream, place));
        }
        match stream.into_std() {
            Ok(stream) => {
                self.spread.workers[self.own].handed.fetch_add(1, Relaxed);
                let (uid, from, on_its_way) = (uid.clone(), Some(self.own), self.tracker.on_its_way());
                self.send(worker, Moved { uid, netns, kind, stream, place, from, on_its_way });
            }
            Err(error) => tracing::debug!(%error, "connection lost before it was served"),
        }
        None
    }

    /// Returns a connection whose pod isn't served here (yet) to whoever accepted it. One that comes back from there
    /// belongs to a pod that is gone; it is closed.
    pub fn give_back(&self, mut moved: Moved) {
        if let Some(from) = moved.from.take() {
            moved.place = self.spread.count(from);
            self.send(from, moved);
        } else if let Ok(stream) = TcpStream::from_std(moved.stream) {
            socket::reset_on_close(&stream);
        }
    }

    fn send(&self, worker: usize, moved: Moved) {
        // A worker that is gone has ended with the process's data path: closed like everything else there.
        let _ = self.mates[worker].send(moved);
    }

    fn choose(&self, margin: f32) -> usize {
        if self.mates.len() == 1 {
            return self.own;
        }
        let mut clocks = self.clocks.borrow_mut();
        clocks.look(Instant::now());
        let Clocks { loads, .. } = &mut *clocks;
        loads.iter_mut().zip(self.spread.open()).for_each(|(load, open)| load.open = open);
        choose(self.own, loads, margin)
    }
}

/// What the workers' runtimes say of their time.
#[derive(Debug)]
struct Clocks {
    runtimes: Vec<RuntimeMetrics>,
    at: Instant,
    before: Vec<Duration>,
    loads: Vec<Load>,
}

impl Clocks {
    fn new(runtimes: Vec<RuntimeMetrics>) -> Self {
        let count = runtimes.len();
        Self { runtimes, at: Instant::now(), before: vec![Duration::ZERO; count], loads: vec![Load::default(); count] }
    }

    fn look(&mut self, now: Instant) {
        let passed = now.saturating_duration_since(self.at);
        if passed < LOOK {
            return;
        }
        self.at = now;
        for ((runtime, before), load) in self.runtimes.iter().zip(&mut self.before).zip(&mut self.loads) {
            let busy = runtime.worker_total_busy_duration(0);
            load.busy = (busy.saturating_sub(*before).as_secs_f32() / passed.as_secs_f32()).min(1.0);
            *before = busy;
        }
    }
}

#[cfg(test)]
mod tests;
