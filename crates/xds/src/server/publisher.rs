//! A [`Source`] in memory: one writer publishes, every stream follows.

use std::sync::Arc;

use arc_swap::ArcSwap;
use tokio::sync::watch;

use super::Source;
use crate::resource::ResourceSet;

/// The current set and the news that there is another. Clones are the same publisher.
#[derive(Clone, Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<ResourceSet>>,
    generation: Arc<watch::Sender<u64>>,
}

impl Publisher {
    /// Begins with `set`.
    pub fn new(set: ResourceSet) -> Self {
        Self { current: Arc::new(ArcSwap::from_pointee(set)), generation: Arc::new(watch::Sender::new(0)) }
    }

    /// Makes `set` the current one and wakes all streams.
    pub fn publish(&self, set: ResourceSet) {
        self.current.store(Arc::new(set));
        self.generation.send_modify(|generation| *generation += 1);
    }
}

impl Source for Publisher {
    fn snapshot(&self) -> Arc<ResourceSet> {
        self.current.load_full()
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }
}
