//! The current snapshot: one writer, many readers.

use std::sync::Arc;

use arc_swap::ArcSwap;

use crate::state::MeshState;

/// The one that may change the state.
#[derive(Debug)]
pub struct Writer {
    current: Arc<ArcSwap<MeshState>>,
}

/// Sees the last published state.
#[derive(Debug, Clone)]
pub struct Reader {
    current: Arc<ArcSwap<MeshState>>,
}

/// An empty state and its two ends.
pub fn store() -> (Writer, Reader) {
    let current = Arc::new(ArcSwap::from_pointee(MeshState::default()));
    (Writer { current: current.clone() }, Reader { current })
}

impl Writer {
    /// Lets `change` work on a copy, then publishes it at once: no reader sees half of a change.
    /// `&mut self` keeps writers from losing each other's work; the copy is cheap, see `MeshState`.
    pub fn update<T>(&mut self, change: impl FnOnce(&mut MeshState) -> T) -> T {
        let mut next = MeshState::clone(&self.current.load());
        let result = change(&mut next);
        self.current.store(Arc::new(next));
        result
    }

    /// The state as last published.
    pub fn reader(&self) -> Reader {
        Reader { current: self.current.clone() }
    }
}

impl Reader {
    /// One snapshot. A decision takes one and keeps to it.
    pub fn load(&self) -> Arc<MeshState> {
        self.current.load_full()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        fixtures::{at, pod},
        state::Update,
    };

    #[test]
    fn readers_see_whole_updates_and_keep_their_snapshot() {
        let (mut writer, reader) = store();
        let before = reader.load();
        writer.update(|state| {
            state.apply(Update::Workload(Arc::new(pod("a", &["10.0.0.1"]))));
            assert!(reader.load().workload_by_addr(&at("10.0.0.1")).is_none(), "not published yet");
        });
        assert!(before.workload_by_addr(&at("10.0.0.1")).is_none());
        assert!(reader.load().workload_by_addr(&at("10.0.0.1")).is_some());
        assert!(writer.reader().load().workload_by_addr(&at("10.0.0.1")).is_some());
    }
}
