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
    issued: HashMap<u64, Issued>,
}

/// What one holder was given within the step, in Unix seconds.
#[derive(Debug, Clone, Copy)]
struct Issued {
    first: i64,
    /// The last one, as long as none is confirmed.
    last: i64,
    /// How long its certificates live, at most.
    ttl: i64,
}

impl Issued {
    /// Whether it surely depends on nothing that is older than the step: it has been silent for long enough, or else
    /// whatever it had before is over. Who renews within ten seconds is never silent.
    fn is_confirmed(self, now: i64) -> bool {
        now - self.last >= CONFIRMED_AFTER || now - self.first > self.ttl
    }
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

    /// A certificate of `ttl` seconds was issued under `step`. A holder asks for the same each time.
    pub fn record(&self, step: Option<&Step>, holder: u64, ttl: i64, now: i64) {
        let mut inner = self.0.lock();
        // Without a rotation nobody asks.
        if step.is_none() || inner.step.as_ref() != step {
            return;
        }
        let room = inner.issued.len() < MAX_ENTRIES;
        match inner.issued.entry(holder) {
            // Once it surely has one it has one: a renewal is no doubt.
            Entry::Occupied(entry) if entry.get().is_confirmed(now) => {}
            Entry::Occupied(mut entry) => {
                let known = entry.get_mut();
                (known.last, known.ttl) = (now, known.ttl.max(ttl));
            }
            Entry::Vacant(entry) if room => {
                entry.insert(Issued { first: now, last: now, ttl });
            }
            Entry::Vacant(_) => {}
        }
    }

    /// Takes over what another life of this process has reported for the same step.
    pub fn restore(&self, step: &Step, holders: impl IntoIterator<Item = u64>) {
        let mut inner = self.0.lock();
        if inner.step.as_ref() == Some(step) {
            for holder in holders {
                inner.issued.entry(holder).or_insert(Issued { first: 0, last: 0, ttl: 0 });
            }
        }
    }

    /// Who has surely got a new certificate by now.
    pub fn confirmed(&self, now: i64) -> HashSet<u64> {
        let inner = self.0.lock();
        inner.issued.iter().filter(|(_, issued)| issued.is_confirmed(now)).map(|(holder, _)| *holder).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DAY: i64 = 86_400;

    fn step(seq: u64) -> Step {
        Step { id: "r".into(), seq }
    }

    #[test]
    fn only_the_present_step_counts_and_only_once_it_is_certain() {
        let ledger = Ledger::default();
        ledger.record(None, 1, DAY, 0);
        ledger.begin(Some(step(1)));
        ledger.record(Some(&step(1)), 1, DAY, 100);
        ledger.record(Some(&step(0)), 2, DAY, 100);
        ledger.record(None, 3, DAY, 100);
        assert!(ledger.confirmed(109).is_empty());
        assert_eq!(ledger.confirmed(110), [1].into());
        // Asked again: the first answer may have been lost.
        ledger.record(Some(&step(1)), 1, DAY, 105);
        assert!(ledger.confirmed(110).is_empty());
        ledger.begin(Some(step(1)));
        assert_eq!(ledger.confirmed(115), [1].into());
        // A renewal takes nothing back.
        ledger.record(Some(&step(1)), 1, DAY, 120);
        assert_eq!(ledger.confirmed(120), [1].into());
        ledger.restore(&step(1), [7]);
        ledger.restore(&step(0), [8]);
        assert_eq!(ledger.confirmed(115), [1, 7].into());
        ledger.begin(Some(step(2)));
        assert!(ledger.confirmed(1000).is_empty());
    }

    /// With a TTL below twenty seconds a holder asks again before its last answer has surely arrived.
    #[test]
    fn who_is_never_silent_counts_once_what_it_had_before_is_over() {
        let ledger = Ledger::default();
        ledger.begin(Some(step(1)));
        for now in (100..=121).step_by(7) {
            ledger.record(Some(&step(1)), 1, 15, now);
            ledger.record(Some(&step(1)), 2, 15, now);
            assert_eq!(ledger.confirmed(now + 1).len(), if now + 1 > 115 { 2 } else { 0 }, "{now}");
        }
        // As long as the longest that it asked for.
        ledger.record(Some(&step(1)), 3, 15, 200);
        ledger.record(Some(&step(1)), 3, 30, 207);
        for now in [214, 221, 228] {
            ledger.record(Some(&step(1)), 3, 15, now);
            assert!(!ledger.confirmed(now).contains(&3));
        }
        assert!(ledger.confirmed(231).contains(&3));
        // A short life is no reason to wait longer.
        ledger.record(Some(&step(1)), 4, 15, 300);
        assert!(ledger.confirmed(310).contains(&4));
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
            ledger.record(Some(&step(1)), n, DAY, 0);
        }
        assert_eq!(ledger.confirmed(100).len(), MAX_ENTRIES);
    }
}
