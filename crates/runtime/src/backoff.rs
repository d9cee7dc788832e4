//! How long to wait before the next try.

use std::time::Duration;

use rand::{Rng, RngExt};

/// Growing delays: `initial`, then times `factor` up to `max`, each spread by `jitter`.
#[derive(Clone, Debug, PartialEq)]
pub struct Backoff {
    /// The first delay.
    pub initial: Duration,
    /// No delay is longer, jitter aside.
    pub max: Duration,
    /// What each delay is multiplied by.
    pub factor: f64,
    /// The share by which a delay may be shorter or longer: 0.2 is plus or minus 20 %.
    pub jitter: f64,
    next: Option<Duration>,
}

impl Backoff {
    /// A doubling without jitter.
    pub const fn doubling(initial: Duration, max: Duration) -> Self {
        Self::new(initial, max, 2.0, 0.0)
    }

    /// All of it chosen.
    pub const fn new(initial: Duration, max: Duration, factor: f64, jitter: f64) -> Self {
        Self { initial, max, factor, jitter, next: None }
    }

    /// The delay before the next try.
    pub fn next<R: Rng + ?Sized>(&mut self, rng: &mut R) -> Duration {
        let delay = self.next.unwrap_or(self.initial).min(self.max);
        self.next =
            Some(Duration::try_from_secs_f64(delay.as_secs_f64() * self.factor).unwrap_or(self.max).min(self.max));
        if self.jitter <= 0.0 {
            return delay;
        }
        let spread = rng.random_range(-self.jitter..=self.jitter);
        Duration::try_from_secs_f64(delay.as_secs_f64() * (1.0 + spread)).unwrap_or(delay)
    }

    /// Starts over at `initial`, after a success.
    pub fn reset(&mut self) {
        self.next = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rand::SeedableRng;
    use rand::rngs::StdRng;

    #[test]
    fn doubles_up_to_the_cap_and_starts_over() {
        let mut rng = StdRng::seed_from_u64(1);
        let mut backoff = Backoff::doubling(Duration::from_millis(10), Duration::from_millis(50));
        let delays: Vec<_> = (0..5).map(|_| backoff.next(&mut rng).as_millis()).collect();
        assert_eq!(delays, [10, 20, 40, 50, 50]);
        backoff.reset();
        assert_eq!(backoff.next(&mut rng), Duration::from_millis(10));
    }

    proptest::proptest! {
        #[test]
        fn jitter_stays_in_its_share(seed: u64, tries in 1..200_usize) {
            let mut rng = StdRng::seed_from_u64(seed);
            let (initial, max) = (Duration::from_secs(1), Duration::from_secs(150));
            let mut jittered = Backoff::new(initial, max, 2.0, 0.2);
            let mut plain = Backoff::new(initial, max, 2.0, 0.0);
            for _ in 0..tries {
                let (got, base) = (jittered.next(&mut rng), plain.next(&mut rng));
                let ratio = got.as_secs_f64() / base.as_secs_f64();
                proptest::prop_assert!((0.799..=1.201).contains(&ratio), "{ratio}");
            }
        }
    }
}
