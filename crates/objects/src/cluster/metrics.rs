//! How old what we know is.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use parking_lot::Mutex;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

/// What stands between us and each kind's objects.
#[derive(Debug, Default)]
pub(super) struct Freshness {
    kinds: Mutex<BTreeMap<&'static str, State>>,
}

#[derive(Debug, Default)]
struct State {
    /// Being watched; otherwise, since when not.
    stale_since: Option<Instant>,
    /// What was said of the trouble last.
    told: Option<String>,
    errors: BTreeMap<&'static str, u64>,
    objects: usize,
}

impl Freshness {
    /// The kind is wanted; nothing is known yet.
    pub(super) fn begin(&self, kind: &'static str) {
        self.kinds.lock().entry(kind).or_default().stale_since = Some(Instant::now());
    }

    /// The kind is being watched. True if that was in trouble before.
    pub(super) fn live(&self, kind: &'static str) -> bool {
        let mut kinds = self.kinds.lock();
        let state = kinds.entry(kind).or_default();
        state.stale_since = None;
        state.told.take().is_some()
    }

    /// It is not being watched. True if nobody was told so yet: the same trouble of several kinds is one.
    pub(super) fn failed(&self, kind: &'static str, reason: &'static str, message: &str, shared: bool) -> bool {
        let mut kinds = self.kinds.lock();
        let known = shared && kinds.values().any(|state| state.told.as_deref() == Some(message));
        let state = kinds.entry(kind).or_default();
        *state.errors.entry(reason).or_default() += 1;
        state.stale_since.get_or_insert_with(Instant::now);
        let new = state.told.as_deref() != Some(message);
        state.told = Some(message.to_owned());
        new && !known
    }

    /// The kind has so many objects.
    pub(super) fn objects(&self, kind: &'static str, count: usize) {
        self.kinds.lock().entry(kind).or_default().objects = count;
    }

    /// The kind is not served: there is nothing to be stale.
    pub(super) fn absent(&self, kind: &'static str) {
        let mut kinds = self.kinds.lock();
        let state = kinds.entry(kind).or_default();
        (state.stale_since, state.told, state.objects) = (None, None, 0);
    }

    /// For how long the kind has not been watched, in seconds.
    pub(super) fn staleness(&self, kind: &'static str) -> f64 {
        let since = self.kinds.lock().get(kind).and_then(|state| state.stale_since);
        since.map_or(0.0, |since| since.elapsed().as_secs_f64())
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
        let kinds: Vec<&'static str> = self.0.kinds.lock().keys().copied().collect();
        let gauge = ConstGauge::new(0.0);
        let help = "Seconds since the kind's objects were last known to be current; 0 while they are watched";
        let mut family =
            encoder.encode_descriptor("aquifer_source_staleness_seconds", help, None, gauge.metric_type())?;
        for kind in &kinds {
            let gauge = ConstGauge::new(self.0.staleness(kind));
            gauge.encode(family.encode_family(&[("kind", *kind)])?)?;
        }
        let help = "Objects of the kind";
        let gauge = ConstGauge::new(0_i64);
        let mut family = encoder.encode_descriptor("aquifer_source_objects", help, None, gauge.metric_type())?;
        let states = self.0.kinds.lock();
        for (kind, state) in &*states {
            ConstGauge::new(state.objects as i64).encode(family.encode_family(&[("kind", *kind)])?)?;
        }
        let help = "Lists and watches of the API server that failed";
        let counter = ConstCounter::new(0_u64);
        let mut family = encoder.encode_descriptor("aquifer_source_watch_errors", help, None, counter.metric_type())?;
        for (kind, state) in &*states {
            for (reason, count) in &state.errors {
                let labels = [("kind", *kind), ("reason", *reason)];
                ConstCounter::new(*count).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}
