//! What was issued since the present step of a rotation began: the proof that an identity no longer depends on what was
//! before. Kept as hashes, so that ten thousand identities take 80 KiB and fit into one object of the API server.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use parking_lot::Mutex;
use xxhash_rust::xxh64::xxh64;

use super::authn::Caller;
use super::rotation::Step;

/// Seconds after which an answer has surely arrived. Who lost one asks again within a second or two, which begins
/// the time anew.
pub const CONFIRMED_AFTER: i64 = 10;
/// More is not kept; who is missing then is told of, and waits for the end of its old certificate.
const MAX_ENTRIES: usize = 60_000;

/// Issued certificates. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Ledger(Arc<Mutex<Inner>>);

#[derive(Debug, Default)]
struct Inner {
    step: Option<Step>,
    /// Holder to the Unix second of its certificate; of the last one, as long as none is confirmed.
    issued: HashMap<u64, i64>,
}

/// Names one identity with one holder.
pub fn holder(pod_uid: &str, identity: &str) -> u64 {
    xxh64(format!("{pod_uid} {identity}").as_bytes(), 0)
}

/// By what a caller is named in [`holder`]: its pod, or its account where its token names no pod.
pub fn caller_name(caller: &Caller) -> String {
    match &caller.pod {
        Some(pod) => pod.uid.clone(),
        None => format!("{}/{}", caller.namespace, caller.service_account),
    }
}

impl Ledger {
    /// Only what is issued from now on counts. Call it before the state of `step` is what signs.
    pub fn begin(&self, step: Option<Step>) {
        let mut inner = self.0.lock();
        if inner.step != step {
            *inner = Inner { step, issued: HashMap::new() };
        }
    }

    /// A certificate was issued under `step`.
    pub fn record(&self, step: Option<&Step>, holder: u64, now: i64) {
        let mut inner = self.0.lock();
        // Without a rotation nobody asks.
        if step.is_none() || inner.step.as_ref() != step {
            return;
        }
        let room = inner.issued.len() < MAX_ENTRIES;
        match inner.issued.entry(holder) {
            // Once it surely has one it has one: a renewal is no doubt.
            Entry::Occupied(entry) if now - entry.get() >= CONFIRMED_AFTER => {}
            Entry::Occupied(mut entry) => {
                entry.insert(now);
            }
            Entry::Vacant(entry) if room => {
                entry.insert(now);
            }
            Entry::Vacant(_) => {}
        }
    }

    /// Takes over what another life of this process has reported for the same step.
    pub fn restore(&self, step: &Step, holders: impl IntoIterator<Item = u64>) {
        let mut inner = self.0.lock();
        if inner.step.as_ref() == Some(step) {
            for holder in holders {
                inner.issued.entry(holder).or_insert(0);
            }
        }
    }

    /// Who has surely got a new certificate by now.
    pub fn confirmed(&self, now: i64) -> HashSet<u64> {
        let inner = self.0.lock();
        inner.issued.iter().filter(|(_, at)| now - **at >= CONFIRMED_AFTER).map(|(holder, _)| *holder).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn step(seq: u64) -> Step {
        Step { id: "r".into(), seq }
    }

    #[test]
    fn only_the_present_step_counts_and_only_once_it_is_certain() {
        let ledger = Ledger::default();
        ledger.record(None, 1, 0);
        ledger.begin(Some(step(1)));
        ledger.record(Some(&step(1)), 1, 100);
        ledger.record(Some(&step(0)), 2, 100);
        ledger.record(None, 3, 100);
        assert!(ledger.confirmed(109).is_empty());
        assert_eq!(ledger.confirmed(110), [1].into());
        // Asked again: the first answer may have been lost.
        ledger.record(Some(&step(1)), 1, 105);
        assert!(ledger.confirmed(110).is_empty());
        ledger.begin(Some(step(1)));
        assert_eq!(ledger.confirmed(115), [1].into());
        // A renewal takes nothing back.
        ledger.record(Some(&step(1)), 1, 120);
        assert_eq!(ledger.confirmed(120), [1].into());
        ledger.restore(&step(1), [7]);
        ledger.restore(&step(0), [8]);
        assert_eq!(ledger.confirmed(115), [1, 7].into());
        ledger.begin(Some(step(2)));
        assert!(ledger.confirmed(1000).is_empty());
    }

    #[test]
    fn holders_differ() {
        assert_ne!(holder("a", "b"), holder("b", "a"));
        assert_ne!(holder("a", "b"), holder("a", "c"));
    }

    #[test]
    fn memory_is_bounded() {
        let ledger = Ledger::default();
        ledger.begin(Some(step(1)));
        for n in 0..MAX_ENTRIES as u64 + 10 {
            ledger.record(Some(&step(1)), n, 0);
        }
        assert_eq!(ledger.confirmed(100).len(), MAX_ENTRIES);
    }
}
