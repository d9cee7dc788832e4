//! One copy of what many resources share: namespaces, nodes, service accounts, zones, hostnames, and all that the
//! replicas of a workload have in common.
//!
//! A hundred thousand workloads name a few hundred such texts a dozen times each. Copies that are one also compare
//! without being read.

use std::{collections::HashSet, hash::Hash, sync::Arc, sync::LazyLock};

use parking_lot::Mutex;

use crate::workload::Common;

/// Below this there is nothing worth sweeping.
const SWEEP_AT_LEAST: usize = 1024;

struct Pool<T: ?Sized> {
    values: HashSet<Arc<T>>,
    /// Sweep when this full: an eighth more than the last sweep left, so that sweeping costs a constant share.
    sweep_at: usize,
}

static TEXTS: LazyLock<Mutex<Pool<str>>> = LazyLock::new(Mutex::default);
static COMMONS: LazyLock<Mutex<Pool<Common>>> = LazyLock::new(Mutex::default);

/// The shared copy of a text. Only the writer's side calls this, so the lock is not contended.
pub(crate) fn intern(text: &str) -> Arc<str> {
    let mut pool = TEXTS.lock();
    match pool.values.get(text) {
        Some(held) => held.clone(),
        None => pool.insert(text.into()),
    }
}

/// The same for what replicas have in common.
pub(crate) fn intern_common(common: Common) -> Arc<Common> {
    let mut pool = COMMONS.lock();
    match pool.values.get(&common) {
        Some(held) => held.clone(),
        None => pool.insert(Arc::new(common)),
    }
}

impl<T: Hash + Eq + ?Sized> Pool<T> {
    fn insert(&mut self, value: Arc<T>) -> Arc<T> {
        if self.values.len() >= self.sweep_at {
            // What only the pool still holds, nobody names any more.
            self.values.retain(|held| Arc::strong_count(held) > 1);
            self.sweep_at = SWEEP_AT_LEAST.max(self.values.len() * 9 / 8);
        }
        self.values.insert(value.clone());
        value
    }
}

impl<T: ?Sized> Default for Pool<T> {
    fn default() -> Self {
        Self { values: HashSet::new(), sweep_at: SWEEP_AT_LEAST }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shared_while_used_and_swept_afterwards() {
        let mut pool = Pool::<str> { values: HashSet::new(), sweep_at: 4 };
        let kept = pool.insert("kept".into());
        for index in 0..10 * SWEEP_AT_LEAST {
            pool.insert(format!("passing-{index}").into());
        }
        assert!(pool.values.len() <= SWEEP_AT_LEAST + 1);
        assert!(Arc::ptr_eq(&kept, pool.values.get("kept").unwrap()));
        assert!(Arc::ptr_eq(&intern("one"), &intern("one")));
    }
}
