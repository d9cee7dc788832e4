//! What one client may cost, so that whoever is slow, refuses everything or asks without end harms itself alone.

use std::time::Duration;

use tokio::time::Instant;

/// Bounds for each stream.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// A client that takes nothing of what was asked for in so long is disconnected.
    pub write_timeout: Duration,
    /// A stream on which nothing is asked in so long ends.
    pub first_request_timeout: Duration,
    /// Requests a second that are read in the long run; an answer counts once more for each 64 KiB of it.
    pub requests_per_second: u32,
    /// Requests that are read at once after a pause.
    pub request_burst: u32,
    /// Bytes of a request with which a client may tell all that it holds.
    pub first_request_bytes: usize,
    /// Bytes of any other.
    pub request_bytes: usize,
    /// The first push after a refusal waits this long, doubled with each further one.
    pub nack_backoff: Duration,
    /// It never waits longer.
    pub nack_backoff_max: Duration,
    /// When the server is drained its streams end spread over this time, so that the others don't get all at once.
    pub drain_spread: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            write_timeout: Duration::from_secs(30),
            first_request_timeout: Duration::from_secs(30),
            requests_per_second: 1000,
            request_burst: 2000,
            // Some 100 bytes for each of 100 000 resources and more.
            first_request_bytes: 64 * 1024 * 1024,
            request_bytes: 4 * 1024 * 1024,
            nack_backoff: Duration::from_millis(50),
            // Policies of this client wait, too.
            nack_backoff_max: Duration::from_secs(1),
            drain_spread: Duration::from_millis(250),
        }
    }
}

/// Tokens for requests, refilled with time.
#[derive(Debug)]
pub(super) struct Bucket {
    per_second: f64,
    most: f64,
    left: f64,
    at: Instant,
}

impl Bucket {
    pub(super) fn new(limits: &Limits, now: Instant) -> Self {
        let most = f64::from(limits.request_burst.max(1));
        Self { per_second: f64::from(limits.requests_per_second.max(1)), most, left: most, at: now }
    }

    /// Takes as many, even if there aren't any.
    pub(super) fn take(&mut self, tokens: f64, now: Instant) {
        let refill = (now - self.at).as_secs_f64() * self.per_second;
        self.left = (self.left + refill).min(self.most) - tokens;
        self.at = now;
    }

    /// When there is one; `None` if there is now.
    pub(super) fn ready_at(&self, now: Instant) -> Option<Instant> {
        let missing = 1.0 - self.left;
        let ready = self.at + Duration::from_secs_f64((missing / self.per_second).max(0.0));
        (ready > now).then_some(ready)
    }
}

/// How long pushes wait for a client that refuses them.
#[derive(Debug, Default)]
pub(super) struct NackBackoff {
    /// In a row, of any type.
    count: u32,
    until: Option<Instant>,
}

impl NackBackoff {
    pub(super) fn nacked(&mut self, limits: &Limits, now: Instant) {
        let delay = limits.nack_backoff.saturating_mul(1 << self.count.min(16)).min(limits.nack_backoff_max);
        self.count += 1;
        self.until = Some(now + delay);
    }

    /// A type whose last response was refused was taken again.
    pub(super) fn recovered(&mut self) {
        *self = Self::default();
    }

    /// Until when, if that is still to come.
    pub(super) fn until(&self, now: Instant) -> Option<Instant> {
        self.until.filter(|until| *until > now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_with_time() {
        let (limits, start) =
            (Limits { requests_per_second: 10, request_burst: 3, ..Limits::default() }, Instant::now());
        let mut bucket = Bucket::new(&limits, start);
        for _ in 0..3 {
            assert_eq!(bucket.ready_at(start), None);
            bucket.take(1.0, start);
        }
        let ready = bucket.ready_at(start).unwrap() - start;
        assert!((ready.as_secs_f64() - 0.1).abs() < 1e-6, "{ready:?}");
        let later = start + Duration::from_secs(100);
        bucket.take(2.0, later);
        assert_eq!(bucket.ready_at(later), None, "no more than the burst was saved");
        bucket.take(1.0, later);
        assert!(bucket.ready_at(later).is_some());
    }

    #[test]
    fn refusals_in_a_row_wait_longer_each() {
        let (limits, now) = (Limits::default(), Instant::now());
        let mut backoff = NackBackoff::default();
        assert_eq!(backoff.until(now), None);
        let waits: Vec<u128> = (0..8)
            .map(|_| {
                backoff.nacked(&limits, now);
                (backoff.until(now).unwrap() - now).as_millis()
            })
            .collect();
        assert_eq!(waits, [50, 100, 200, 400, 800, 1000, 1000, 1000]);
        assert_eq!(backoff.until(now + Duration::from_secs(2)), None);
        backoff.recovered();
        assert_eq!(backoff.until(now), None);
    }
}
