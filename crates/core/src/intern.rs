//! One copy of each text that many resources share: namespaces, nodes, service accounts, zones, hostnames.
//!
//! A hundred thousand workloads name a few hundred such texts a dozen times each. Copies that are one also compare
//! without being read.

use std::{collections::HashSet, sync::Arc, sync::LazyLock};

use parking_lot::Mutex;

/// Below this there is nothing worth sweeping.
const SWEEP_AT_LEAST: usize = 1024;

struct Pool {
    texts: HashSet<Arc<str>>,
    /// Sweep when this full: twice what the last sweep left, so that sweeping costs a constant share.
    sweep_at: usize,
}

static POOL: LazyLock<Mutex<Pool>> =
    LazyLock::new(|| Mutex::new(Pool { texts: HashSet::new(), sweep_at: SWEEP_AT_LEAST }));

/// The shared copy of a text. Only the writer's side calls this, so the lock is not contended.
pub(crate) fn intern(text: &str) -> Arc<str> {
    POOL.lock().intern(text)
}

impl Pool {
    fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(held) = self.texts.get(text) {
            return held.clone();
        }
        if self.texts.len() >= self.sweep_at {
            // What only the pool still holds, nobody names any more.
            self.texts.retain(|held| Arc::strong_count(held) > 1);
            self.sweep_at = SWEEP_AT_LEAST.max(2 * self.texts.len());
        }
        let text: Arc<str> = text.into();
        self.texts.insert(text.clone());
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_shared_while_used_and_swept_afterwards() {
        let mut pool = Pool { texts: HashSet::new(), sweep_at: 4 };
        let kept = pool.intern("kept");
        assert!(Arc::ptr_eq(&kept, &pool.intern("kept")));
        for index in 0..10 * SWEEP_AT_LEAST {
            pool.intern(&format!("passing-{index}"));
        }
        assert!(pool.texts.len() <= SWEEP_AT_LEAST + 1);
        assert!(Arc::ptr_eq(&kept, &pool.intern("kept")));
    }
}
