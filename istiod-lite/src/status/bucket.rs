//! How fast may be written. Pure; time passed in.

use std::time::Duration;

use tokio::time::Instant;

/// So many writes a second in the long run.
pub(super) const PER_SECOND: f64 = 25.0;
/// So many at once after a rest.
pub(super) const BURST: f64 = 100.0;

/// A bucket of permissions to write.
#[derive(Debug)]
pub(super) struct TokenBucket {
    tokens: f64,
    filled: Instant,
}

impl TokenBucket {
    /// A full one.
    pub(super) fn new(now: Instant) -> Self {
        Self { tokens: BURST, filled: now }
    }

    /// Takes one permission, or says how long until there is one.
    pub(super) fn take(&mut self, now: Instant) -> Result<(), Duration> {
        let rested = now.saturating_duration_since(self.filled).as_secs_f64();
        self.tokens = (self.tokens + rested * PER_SECOND).min(BURST);
        self.filled = now;
        if self.tokens >= 1.0 {
            self.tokens -= 1.0;
            return Ok(());
        }
        Err(Duration::from_secs_f64((1.0 - self.tokens) / PER_SECOND))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_a_steady_rate() {
        let start = Instant::now();
        let mut bucket = TokenBucket::new(start);
        let burst = (0..1000).take_while(|_| bucket.take(start).is_ok()).count();
        assert_eq!(burst, 100);
        let wait = bucket.take(start).unwrap_err();
        assert_eq!(wait, Duration::from_millis(40));
        assert_eq!(bucket.take(start + wait), Ok(()));
        // Ten seconds of asking every millisecond give the rate, not more.
        let granted = (40..10_040).filter(|ms| bucket.take(start + Duration::from_millis(*ms)).is_ok()).count();
        assert!((248..=251).contains(&granted), "{granted}");
        // A long rest fills it no further than the burst.
        let later = start + Duration::from_secs(3600);
        assert_eq!((0..1000).take_while(|_| bucket.take(later).is_ok()).count(), 100);
    }
}
