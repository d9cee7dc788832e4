//! How much a peer may send us: the receive windows of one connection, and what all connections of a pod share.
//!
//! ```text
//!   opened / consumed / closed ──▶ Ledger ──▶ window_due:  SETTINGS_INITIAL_WINDOW_SIZE, for every stream
//!                                     │  └──▶ target_due:  window of the connection
//!                                     ▼
//!                                  Budget: of the pod
//! ```
//!
//! HTTP/2 gives back the credit of a stream and that of its connection in one go, so a stalled stream keeps as
//! much of the connection's credit as its own window is wide. The connection therefore always has credit for all
//! that its streams may hold, and one window more: nobody's stall is another's. What must be limited is the
//! width of the windows:
//! - With few streams each has the start window; with more they share an eighth of the connection's limit. The
//!   i-th oldest stream was never alive with fewer than i, so all of them together stay below a fixed sum.
//! - What the limit leaves above that sum is for growth: a stream that moves four windows within a second, with a
//!   reader that keeps up, or within 50 ms, doubles the window of all.
//! - What a peer may have under way is taken from the pod's budget, and stays taken while the peer has it: HTTP/2 takes
//!   no credit back. When half of the budget is gone, windows start at a quarter, and grow with use up to three quarters
//!   of it; when all is gone, a connection keeps what it has, at least the 65,535 bytes that HTTP/2 cannot go below.

use crate::config::Windows;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// A connection's window before any WINDOW_UPDATE (RFC 9113, 6.9.2).
pub(crate) const FLOOR: u32 = 65_535;
/// No stream's window is narrower, however many they are.
const NARROWEST: u32 = 1 << 10;
/// Streams that the shares are reckoned for; above, the connection's limit itself is the bound.
const STREAMS: u32 = 256;
/// Windows that a stream must move within [`BULK_TIME`] for its window to grow.
const BULK_WINDOWS: u64 = 4;
const BULK_TIME: Duration = Duration::from_secs(1);
/// A reader that moves as many within this keeps up, whatever it holds.
const RUSH_TIME: Duration = Duration::from_millis(50);
/// Between two steps of growth.
const GROWTH_INTERVAL: Duration = Duration::from_millis(100);
/// Between two changes that could as well wait.
const CALM_INTERVAL: Duration = Duration::from_secs(1);

/// Receive credit that the connections of a pod may give out together, on whichever thread. Clones share it.
#[derive(Clone, Debug)]
pub struct Budget(Arc<Purse>);

#[derive(Debug)]
struct Purse {
    limit: u64,
    used: AtomicU64,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(crate::config::POD_BUDGET)
    }
}

impl Budget {
    /// A budget of this many bytes.
    pub fn new(limit: u64) -> Self {
        Self(Arc::new(Purse { limit, used: AtomicU64::new(0) }))
    }

    /// Bytes given out.
    pub fn used(&self) -> u64 {
        self.0.used.load(Relaxed)
    }

    fn pressed(&self) -> bool {
        self.used() > self.0.limit / 2
    }

    /// Whether a window may grow by this much.
    fn can_spare(&self, bytes: u64) -> bool {
        self.used() + bytes <= self.0.limit / 4 * 3
    }

    /// Takes what is left, up to `wanted`.
    fn take(&self, wanted: u64) -> u64 {
        let mut taken = 0;
        let take = |used| {
            taken = wanted.min(self.0.limit.saturating_sub(used));
            Some(used + taken)
        };
        // The closure never refuses.
        let _ = self.0.used.fetch_update(Relaxed, Relaxed, take);
        taken
    }

    fn force(&self, bytes: u64) {
        self.0.used.fetch_add(bytes, Relaxed);
    }

    fn give(&self, bytes: u64) {
        self.0.used.fetch_sub(bytes, Relaxed);
    }
}

/// The windows of one connection.
#[derive(Debug)]
pub(crate) struct Ledger {
    windows: Windows,
    budget: Budget,
    streams: HashMap<u32, Allowance>,
    /// What streams have, as last told to the peer, and before that: the peer goes by it until it has heard.
    window: u32,
    previous: u32,
    /// Wider than everybody's share, for those who make use of it. Zero if not.
    grown: u32,
    changed: Instant,
    target: u32,
    /// What the peer may have under way and we may hold: the target, or more after it was lowered.
    granted: u64,
}

#[derive(Debug)]
struct Allowance {
    /// The widest window it has had.
    widest: u32,
    moved: u64,
    since: Instant,
}

impl Ledger {
    pub(crate) fn new(windows: Windows, budget: Budget, now: Instant) -> Self {
        let mut ledger = Self {
            windows,
            budget,
            streams: HashMap::new(),
            window: 0,
            previous: 0,
            grown: 0,
            changed: now,
            target: FLOOR,
            granted: u64::from(FLOOR),
        };
        ledger.budget.force(ledger.granted);
        ledger.window = ledger.share(1);
        ledger.previous = ledger.window;
        ledger.retarget();
        ledger
    }

    /// What streams have, for the first SETTINGS.
    pub(crate) fn window(&self) -> u32 {
        self.window
    }

    /// What the connection has at first.
    pub(crate) fn target(&self) -> u32 {
        self.target
    }

    pub(crate) fn opened(&mut self, stream: u32, now: Instant) {
        let widest = self.window.max(self.previous);
        self.streams.insert(stream, Allowance { widest, moved: 0, since: now });
        while self.grown > 0 && !self.fits(self.grown) {
            self.grown = if self.grown > self.start() { self.grown / 2 } else { 0 };
        }
    }

    pub(crate) fn closed(&mut self, stream: u32) {
        self.streams.remove(&stream);
        if self.streams.is_empty() {
            self.grown = 0;
        }
    }

    /// `bytes` of the stream have left us. `held`: how many of it have not; asked for rarely.
    pub(crate) fn consumed(
        &mut self,
        stream: u32,
        bytes: usize,
        held: impl FnOnce() -> usize,
        now: impl Fn() -> Instant,
    ) {
        let bytes = bytes as u64;
        let excess = self.granted.saturating_sub(u64::from(self.target)).min(bytes);
        self.granted -= excess;
        self.budget.give(excess);
        let window = self.window;
        let Some(allowance) = self.streams.get_mut(&stream) else { return };
        allowance.moved += bytes;
        if allowance.moved < BULK_WINDOWS * u64::from(window) {
            return;
        }
        let now = now();
        let took = now.duration_since(allowance.since);
        let fast = took <= BULK_TIME;
        (allowance.moved, allowance.since) = (0, now);
        // A wider window would only fill up when it is the reader that limits. One as quick as this doesn't: what it
        // has not read yet is what waits for its turn on the processor.
        let keeps_up = took <= RUSH_TIME || held() <= window as usize / 2;
        let wider = window.saturating_mul(2).min(self.windows.stream_max);
        let calm = now.duration_since(self.changed) >= GROWTH_INTERVAL;
        if fast && keeps_up && calm && wider > window && self.budget.can_spare(u64::from(wider)) && self.fits(wider) {
            self.grown = wider;
        }
    }

    /// The window that the peer should hear of, if it is another than before. When the SETTINGS can be sent, say so by
    /// [`window_told`](Self::window_told).
    pub(crate) fn window_due(&self, now: Instant) -> Option<u32> {
        let due = self.share(self.streams.len()).max(self.grown);
        let waited = now.duration_since(self.changed);
        let ripe = if due < self.window {
            // Streams that came late must find room; an idle connection is in no hurry.
            self.streams.len() > 1 || waited >= CALM_INTERVAL
        } else if due == self.grown {
            waited >= GROWTH_INTERVAL
        } else {
            waited >= CALM_INTERVAL
        };
        (due != self.window && ripe).then_some(due)
    }

    /// The peer has acknowledged the last SETTINGS.
    pub(crate) fn window_heard(&mut self) {
        self.previous = self.window;
    }

    /// The SETTINGS are under way.
    pub(crate) fn window_told(&mut self, window: u32, now: Instant) {
        (self.previous, self.window, self.changed) = (self.window, window, now);
        for allowance in self.streams.values_mut() {
            allowance.widest = allowance.widest.max(window);
        }
    }

    /// The connection's window, if it is to change.
    pub(crate) fn target_due(&mut self) -> Option<u32> {
        let before = self.target;
        self.retarget();
        (self.target != before).then_some(self.target)
    }

    fn retarget(&mut self) {
        let wanted = self.allowed().saturating_add(u64::from(self.window.max(self.start())));
        let least = FLOOR.max(self.start().saturating_mul(2));
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).max(least).min(self.windows.connection);
        if wanted <= self.target {
            // Going down a little and up again is not worth a frame.
            if wanted <= self.target / 2 {
                self.target = wanted;
            }
            return;
        }
        let missing = u64::from(wanted).saturating_sub(self.granted);
        self.granted += self.budget.take(missing);
        self.target = wanted.min(u32::try_from(self.granted).unwrap_or(u32::MAX)).max(self.target);
    }

    /// What all streams may hold together.
    fn allowed(&self) -> u64 {
        self.streams.values().map(|s| u64::from(s.widest)).sum()
    }

    fn start(&self) -> u32 {
        if self.budget.pressed() { self.windows.stream / 4 } else { self.windows.stream }
    }

    /// A stream's part when there are this many.
    fn share(&self, streams: usize) -> u32 {
        let streams = u32::try_from(streams).unwrap_or(u32::MAX).clamp(1, 1 << 30).next_power_of_two();
        (self.windows.connection / 8 / streams).min(self.start()).max(NARROWEST)
    }

    /// The most that the shares of all streams add up to, in whichever order they come and go.
    fn shares(&self) -> u64 {
        let steps = (0..=STREAMS.ilog2()).map(|step| 1_u32 << step);
        steps.map(|n| u64::from(n.div_ceil(2)) * u64::from(self.share(n as usize))).sum()
    }

    /// Whether this window leaves the shares untouched: for the streams that are there, and one more.
    fn fits(&self, window: u32) -> bool {
        let window = u64::from(window);
        let taken: u64 = self.streams.values().map(|s| u64::from(s.widest).max(window)).sum();
        taken + window + self.shares() <= u64::from(self.windows.connection)
    }
}

impl Drop for Ledger {
    fn drop(&mut self) {
        self.budget.give(self.granted);
    }
}

/// Now, by the clock that tests can stop.
pub(crate) fn now() -> Instant {
    tokio::time::Instant::now().into_std()
}
