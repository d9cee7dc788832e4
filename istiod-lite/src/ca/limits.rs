//! Bounds on what one caller may ask for: token buckets by key, in bounded memory.

use std::collections::HashMap;
use std::hash::Hash;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// Keys that are remembered. A full bucket is as good as none, so most are forgotten long before.
const MAX_KEYS: usize = 10_000;

/// A token bucket for each key.
#[derive(Debug)]
pub struct RateLimit<K> {
    per_second: f64,
    burst: f64,
    buckets: Mutex<HashMap<K, Bucket>>,
}

#[derive(Debug, Clone, Copy)]
struct Bucket {
    left: f64,
    at: Instant,
}

impl<K: Eq + Hash + Clone> RateLimit<K> {
    /// So many at once, and so many a second from then on.
    pub fn new(burst: f64, per_second: f64) -> Self {
        Self { per_second, burst, buckets: Mutex::default() }
    }

    /// Takes one of `key`'s; false if there is none left.
    pub fn take(&self, key: &K, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        let bucket = self.bucket(&mut buckets, key, now);
        let has = bucket.left >= 1.0;
        if has {
            bucket.left -= 1.0;
        }
        has
    }

    /// Whether `key` has one left, without taking it.
    pub fn has(&self, key: &K, now: Instant) -> bool {
        let mut buckets = self.buckets.lock();
        self.bucket(&mut buckets, key, now).left >= 1.0
    }

    fn bucket<'a>(&self, buckets: &'a mut HashMap<K, Bucket>, key: &K, now: Instant) -> &'a mut Bucket {
        if buckets.len() >= MAX_KEYS && !buckets.contains_key(key) {
            buckets.retain(|_, bucket| self.filled(*bucket, now) < self.burst);
            // All of them in use: whoever floods with new keys gains a full bucket, and loses nobody else's.
            if buckets.len() >= MAX_KEYS
                && let Some(any) = buckets.keys().next().cloned()
            {
                buckets.remove(&any);
            }
        }
        let bucket = buckets.entry(key.clone()).or_insert(Bucket { left: self.burst, at: now });
        *bucket = Bucket { left: self.filled(*bucket, now), at: now };
        bucket
    }

    fn filled(&self, bucket: Bucket, now: Instant) -> f64 {
        let passed: Duration = now.saturating_duration_since(bucket.at);
        (bucket.left + passed.as_secs_f64() * self.per_second).min(self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_its_own_bucket() {
        let limit = RateLimit::new(2.0, 1.0);
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert!(limit.take(&1, at(0)) && limit.take(&1, at(0)));
        assert!(!limit.take(&1, at(0)) && !limit.has(&1, at(0)));
        assert!(limit.take(&2, at(0)));
        assert!(limit.has(&1, at(1)) && limit.take(&1, at(1)) && !limit.take(&1, at(1)));
        // It fills up to the burst and no further.
        assert!(limit.take(&1, at(100)) && limit.take(&1, at(100)) && !limit.take(&1, at(100)));
    }

    #[test]
    fn memory_is_bounded() {
        let limit = RateLimit::new(1.0, 1.0);
        let start = Instant::now();
        for key in 0..MAX_KEYS + 100 {
            assert!(limit.take(&key, start));
        }
        assert!(limit.buckets.lock().len() <= MAX_KEYS);
        // Full ones are forgotten together.
        assert!(limit.take(&usize::MAX, start + Duration::from_secs(10)));
        assert_eq!(limit.buckets.lock().len(), 1);
    }
}
