//! How old what we know is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

/// Who asks the API server's store every two seconds may go without an answer for so long, as the holder of a Lease may.
const DOUBT: Duration = Duration::from_secs(15);

/// What stands between us and the objects, for all that is being watched.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    watched: Mutex<BTreeMap<(&'static str, u64), State>>,
    /// Failures by kind and reason, those of watches that are over too.
    errors: Mutex<BTreeMap<(&'static str, &'static str), u64>>,
    next: AtomicU64,
    /// When the store last answered, if somebody asks it regularly.
    answered: Mutex<Option<Instant>>,
}

/// Somebody who asks the store itself, at short intervals: an API server that has lost its store keeps watches open and
/// tells nothing.
#[derive(Debug)]
pub(crate) struct Asking(Arc<Freshness>);

impl Asking {
    pub(super) fn new(table: &Arc<Freshness>) -> Self {
        Self(Arc::clone(table))
    }

    /// The store has answered what was asked at `asked`.
    pub(crate) fn answered(&self, asked: Instant) {
        *self.0.answered.lock() = Some(asked);
    }

    /// The API server keeps us from asking: nothing is known of the store.
    pub(crate) fn refused(&self) {
        *self.0.answered.lock() = None;
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.refused();
    }
}

#[derive(Debug, Default)]
struct State {
    /// Since when it is not being watched; `None` while it is.
    stale_since: Option<Instant>,
    /// What was said of the trouble last.
    told: Option<String>,
    /// When something was last heard of its objects.
    heard: Option<Instant>,
    objects: usize,
}

impl State {
    /// Since when it may be old, given since when the store is silent.
    fn stale_since(&self, silent: Option<Instant>) -> Option<Instant> {
        // What came since came from the store. Of a kind that is not served nothing is ever heard.
        let doubted = silent.zip(self.heard).map(|(silent, heard)| silent.max(heard));
        match (self.stale_since, doubted) {
            (Some(stale), Some(doubted)) => Some(stale.min(doubted)),
            (stale, doubted) => stale.or(doubted),
        }
    }
}

/// One collection that is being watched; dropped, it is nothing to measure any more.
#[derive(Debug)]
pub(super) struct Fresh {
    table: Arc<Freshness>,
    key: (&'static str, u64),
}

impl Fresh {
    /// Nothing is known yet.
    pub(super) fn begin(table: &Arc<Freshness>, kind: &'static str) -> Self {
        let key = (kind, table.next.fetch_add(1, Ordering::Relaxed));
        let state = State { stale_since: Some(Instant::now()), ..State::default() };
        table.watched.lock().insert(key, state);
        Self { table: Arc::clone(table), key }
    }

    fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(self.table.watched.lock().entry(self.key).or_default())
    }

    /// It is being watched. True if there was trouble before.
    pub(super) fn live(&self) -> bool {
        self.change(|state| {
            state.stale_since = None;
            state.told.take().is_some()
        })
    }

    /// It is not being watched. True if nobody was told so yet; trouble that is `shared` is told once for all.
    pub(super) fn failed(&self, reason: &'static str, message: &str, shared: bool) -> bool {
        *self.table.errors.lock().entry((self.key.0, reason)).or_default() += 1;
        let known = |state: &State| state.told.as_deref() == Some(message);
        let said = shared && self.table.watched.lock().values().any(known);
        self.change(|state| {
            state.stale_since.get_or_insert_with(Instant::now);
            let new = !known(state);
            state.told = Some(message.to_owned());
            new && !said
        })
    }

    /// It has so many objects.
    pub(super) fn objects(&self, count: usize) {
        self.change(|state| (state.objects, state.heard) = (count, Some(Instant::now())));
    }

    /// It is not served: there is nothing to be stale.
    pub(super) fn absent(&self) {
        self.change(|state| *state = State::default());
    }
}

impl Drop for Fresh {
    fn drop(&mut self) {
        self.table.watched.lock().remove(&self.key);
    }
}

/// Adds the metrics to the registry.
pub(super) fn register(freshness: &Arc<Freshness>, registry: &mut Registry) {
    registry.register_collector(Box::new(Pages(Arc::clone(freshness))));
}

struct Pages(Arc<Freshness>);

impl fmt::Debug for Pages {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pages")
    }
}

impl Collector for Pages {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        // Several may watch a kind, or parts of it: the oldest counts, and the largest.
        let mut kinds: BTreeMap<&'static str, (f64, usize)> = BTreeMap::new();
        let silent = self.0.answered.lock().filter(|at| at.elapsed() > DOUBT);
        for ((kind, _), state) in &*self.0.watched.lock() {
            let (stale, objects) = kinds.entry(kind).or_default();
            let since = state.stale_since(silent);
            *stale = since.map_or(0.0, |since| since.elapsed().as_secs_f64()).max(*stale);
            *objects = state.objects.max(*objects);
        }
        let help = "Seconds since the kind's objects were last known to be current; 0 while they are watched";
        let gauge = ConstGauge::new(0.0);
        let mut family =
            encoder.encode_descriptor("aquifer_source_staleness_seconds", help, None, gauge.metric_type())?;
        for (kind, (stale, _)) in &kinds {
            ConstGauge::new(*stale).encode(family.encode_family(&[("kind", *kind)])?)?;
        }
        let mut family =
            encoder.encode_descriptor("aquifer_source_objects", "Objects of the kind", None, gauge.metric_type())?;
        for (kind, (_, objects)) in &kinds {
            ConstGauge::new(*objects as i64).encode(family.encode_family(&[("kind", *kind)])?)?;
        }
        let help = "Lists and watches of the API server that failed";
        let counter = ConstCounter::new(0_u64);
        let mut family = encoder.encode_descriptor("aquifer_source_watch_errors", help, None, counter.metric_type())?;
        for ((kind, reason), count) in &*self.0.errors.lock() {
            let labels = [("kind", *kind), ("reason", *reason)];
            ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn staleness(registry: &Registry) -> BTreeMap<String, u64> {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
        let lines = text.lines().filter_map(|line| line.strip_prefix("aquifer_source_staleness_seconds{kind=\""));
        let of = |line: &str| {
            let (kind, seconds) = line.split_once("\"} ").unwrap();
            (kind.to_owned(), seconds.parse::<f64>().unwrap() as u64)
        };
        lines.map(of).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn a_store_that_is_silent_makes_old_what_is_watched() {
        let (table, mut registry) = (Arc::new(Freshness::default()), Registry::default());
        register(&table, &mut registry);
        let [quiet, busy, absent, away] = ["quiet", "busy", "absent", "away"].map(|kind| Fresh::begin(&table, kind));
        let expect = |seconds: [u64; 4]| {
            let found = staleness(&registry);
            assert_eq!(["quiet", "busy", "absent", "away"].map(|kind| found[kind]), seconds);
        };
        for watched in [&quiet, &busy, &away] {
            watched.objects(1);
            watched.live();
        }
        absent.absent();
        tokio::time::advance(Duration::from_secs(100)).await;
        expect([0, 0, 0, 0]);
        let asking = Asking::new(&table);
        asking.answered(Instant::now());
        tokio::time::advance(Duration::from_secs(15)).await;
        expect([0, 0, 0, 0]);
        away.failed("unreachable", "nobody answers", true);
        tokio::time::advance(Duration::from_secs(1)).await;
        expect([16, 16, 0, 16]);
        busy.objects(2);
        tokio::time::advance(Duration::from_secs(4)).await;
        expect([20, 4, 0, 20]);
        // Whether the store answers is not known: what the watches say counts.
        asking.refused();
        expect([0, 0, 0, 5]);
        asking.answered(Instant::now());
        tokio::time::advance(Duration::from_secs(20)).await;
        expect([20, 20, 0, 25]);
        drop(asking);
        expect([0, 0, 0, 25]);
    }
}
