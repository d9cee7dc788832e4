//! When to fetch which certificate: decisions only, the clock and the jitter are passed in.

use aquifer_core::identity::Identity;
use std::collections::{HashMap, HashSet};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// Fetches on their way at once.
pub const CONCURRENT: usize = 8;
/// Wait before the first retry: the CA may learn of a new pod a moment after us.
pub const QUICK_RETRY: Duration = Duration::from_millis(100);
/// Wait before the second retry; doubles from there.
pub const BACKOFF: Duration = Duration::from_secs(1);
/// Longest wait between retries.
pub const BACKOFF_MAX: Duration = Duration::from_secs(150);
/// Share of a wait that `jitter` moves it by, either way.
const BACKOFF_JITTER: f64 = 0.2;
/// The same for renewals, so that a node's certificates don't all fall due together.
const RENEWAL_JITTER: f64 = 0.1;

/// What is fetched first when several are due.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Priority {
    /// A renewal; the present certificate is good for a while.
    Background,
    /// A pod has come, no connection waits yet.
    Warmup,
    /// A connection waits.
    RealTime,
}

/// What to do now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Start a fetch; report it by `fetched` or `failed`.
    Fetch(Identity),
    /// Nothing before then.
    SleepUntil(Instant),
    /// Nothing until something is wanted or reported.
    Idle,
}

struct Entry {
    wants: usize,
    priority: Priority,
    /// When to fetch. Not looked at while a fetch is on its way.
    due: Instant,
    failures: u32,
    /// What is on its way is old already: fetch once more when it has come.
    again: bool,
}

/// The plan for all identities of a node.
#[derive(Default)]
pub struct Schedule {
    entries: HashMap<Identity, Entry>,
    in_flight: HashSet<Identity>,
}

impl Schedule {
    /// An empty plan.
    pub fn new() -> Self {
        Self::default()
    }

    /// One more user of `identity`. True for the first.
    pub fn want(&mut self, identity: &Identity, now: Instant) -> bool {
        if let Some(entry) = self.entries.get_mut(identity) {
            entry.wants += 1;
            return false;
        }
        let entry = Entry { wants: 1, priority: Priority::Warmup, due: now, failures: 0, again: false };
        self.entries.insert(identity.clone(), entry);
        true
    }

    /// One user less. True when it was the last: the certificate is of no more use.
    pub fn forget(&mut self, identity: &Identity) -> bool {
        let Some(entry) = self.entries.get_mut(identity) else {
            return false;
        };
        entry.wants -= 1;
        let last = entry.wants == 0;
        if last {
            self.entries.remove(identity);
        }
        last
    }

    /// A connection waits for this one. It goes to the front, but does not cut a backoff short.
    pub fn urge(&mut self, identity: &Identity) {
        if let Some(entry) = self.entries.get_mut(identity) {
            entry.priority = Priority::RealTime;
        }
    }

    /// The next step. Ask again after each step, report and want.
    pub fn poll(&mut self, now: Instant) -> Step {
        if self.in_flight.len() >= CONCURRENT {
            return Step::Idle;
        }
        let waiting = || self.entries.iter().filter(|(id, _)| !self.in_flight.contains(*id));
        let first = waiting().filter(|(_, e)| e.due <= now).max_by(|(_, a), (_, b)| {
            // Equal priorities: who is overdue longest.
            a.priority.cmp(&b.priority).then(b.due.cmp(&a.due))
        });
        if let Some((identity, _)) = first {
            let identity = identity.clone();
            self.in_flight.insert(identity.clone());
            return Step::Fetch(identity);
        }
        match waiting().map(|(_, e)| e.due).min() {
            Some(due) => Step::SleepUntil(due),
            None => Step::Idle,
        }
    }

    /// A fetch gave a certificate that is valid for `remaining` from now. `jitter` is in `-1.0 ..= 1.0`. False if
    /// nobody wants it any more.
    ///
    /// The half of what remains, not of the whole window: authorities date certificates back, and with a short
    /// TTL the middle of the window may have passed before the certificate arrives.
    pub fn fetched(&mut self, identity: &Identity, remaining: Duration, now: Instant, jitter: f64) -> bool {
        self.in_flight.remove(identity);
        let Some(entry) = self.entries.get_mut(identity) else {
            return false;
        };
        entry.failures = 0;
        entry.priority = Priority::Background;
        let renewal = spread(remaining / 2, RENEWAL_JITTER, jitter);
        entry.due = if std::mem::take(&mut entry.again) { now } else { now + renewal };
        true
    }

    /// Every certificate is to be renewed soon, each after a `delay` of its own; what is due earlier stays so.
    pub fn renew_all(&mut self, now: Instant, mut delay: impl FnMut() -> Duration) {
        for (identity, entry) in &mut self.entries {
            if self.in_flight.contains(identity) {
                entry.again = true;
            } else {
                entry.due = entry.due.min(now + delay());
            }
        }
    }

    /// A fetch failed. `jitter` is in `-1.0 ..= 1.0`. False if nobody wants it any more.
    pub fn failed(&mut self, identity: &Identity, now: Instant, jitter: f64) -> bool {
        self.in_flight.remove(identity);
        let Some(entry) = self.entries.get_mut(identity) else {
            return false;
        };
        let delay = match entry.failures {
            0 => QUICK_RETRY,
            n => BACKOFF.saturating_mul(1 << (n - 1).min(16)).min(BACKOFF_MAX),
        };
        entry.failures = entry.failures.saturating_add(1);
        // The retry is new enough.
        entry.again = false;
        entry.due = now + spread(delay, BACKOFF_JITTER, jitter);
        true
    }

    /// Whether anybody wants it.
    pub fn is_wanted(&self, identity: &Identity) -> bool {
        self.entries.contains_key(identity)
    }
}

fn spread(delay: Duration, share: f64, jitter: f64) -> Duration {
    delay.mul_f64(1.0 + share * jitter.clamp(-1.0, 1.0))
}
