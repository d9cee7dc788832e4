//! A [`Source`] in memory: one writer publishes, every stream follows.

use std::sync::Arc;

use aquifer_proto::type_url::WORKLOAD;
use arc_swap::ArcSwap;
use parking_lot::Mutex;
use tokio::sync::watch;

use super::Source;
use crate::resource::ResourceSet;

/// The current set and the news that there is another. Clones are the same publisher.
#[derive(Clone, Debug)]
pub struct Publisher {
    current: Arc<ArcSwap<ResourceSet>>,
    /// Whoever makes the next set from the present one holds it, so that no change is lost.
    writing: Arc<Mutex<()>>,
    generation: Arc<watch::Sender<u64>>,
}

impl Publisher {
    /// Begins with `set`.
    pub fn new(set: ResourceSet) -> Self {
        let current = Arc::new(ArcSwap::from_pointee(set));
        Self { current, writing: Arc::default(), generation: Arc::new(watch::Sender::new(0)) }
    }

    /// Makes `set` the current one and wakes all streams. For a source that has one writer.
    pub fn publish(&self, set: ResourceSet) {
        self.update(|current| {
            *current = set;
            true
        });
    }

    /// Changes the current set and wakes all streams, unless `change` says that it is as it was. Several writers may
    /// share a publisher this way. Gives the generation in which the change is.
    pub fn update(&self, change: impl FnOnce(&mut ResourceSet) -> bool) -> u64 {
        let _one = self.writing.lock();
        let before = self.current.load_full();
        let mut set = (*before).clone();
        if change(&mut set) {
            set.follow_addresses(&before);
            self.current.store(Arc::new(set));
            self.generation.send_modify(|generation| *generation += 1);
        }
        *self.generation.borrow()
    }
}

impl Source for Publisher {
    fn snapshot(&self) -> Arc<ResourceSet> {
        self.current.load_full()
    }

    fn subscribe(&self) -> watch::Receiver<u64> {
        self.generation.subscribe()
    }

    fn want(&self, type_url: &str) {
        if type_url == WORKLOAD {
            self.update(ResourceSet::serve_workloads);
        }
    }
}
