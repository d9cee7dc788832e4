//! What leads from one snapshot to another, worked out once for all clients that go that way.

use std::sync::{Arc, OnceLock};

use bytes::{Bytes, BytesMut};
use parking_lot::Mutex;

use super::wire::Entry;
use super::{Resource, TypeSet};

/// The difference between two snapshots of a type.
#[derive(Debug, Default)]
pub struct Delta {
    /// New or changed, sorted by name.
    pub upserts: Vec<Arc<Resource>>,
    /// What is gone, sorted by name.
    pub removed: Vec<Arc<Resource>>,
    /// What the changed ones were before, and whatever changed in nothing that is sent.
    pub(crate) replaced: Vec<Arc<Resource>>,
    /// Bytes of the upserts in a response.
    pub(crate) upserts_len: usize,
    encoded: OnceLock<Bytes>,
}

/// More than this is written for each client anew, piece by piece: kept, it would cost its size.
const KEPT: usize = 256 * 1024;

impl Delta {
    pub(super) fn between(older: &TypeSet, newer: &TypeSet) -> Self {
        let mut delta = Self::default();
        for change in newer.by_name.changes_since(&older.by_name) {
            match change {
                (Some(old), Some(new)) if Arc::ptr_eq(old, new) => {}
                // Found by other names than before, or nothing but a copy.
                (Some(old), Some(new)) if old.version == new.version => {
                    delta.replaced.extend([Arc::clone(old), Arc::clone(new)].into_iter().filter(|_| old != new));
                }
                (old, Some(new)) => {
                    delta.upserts.push(Arc::clone(new));
                    delta.replaced.extend(old.cloned());
                }
                (old, None) => delta.removed.extend(old.cloned()),
            }
        }
        delta.upserts.sort_by(|a, b| a.name.cmp(&b.name));
        delta.removed.sort_by(|a, b| a.name.cmp(&b.name));
        delta.upserts_len = delta.upserts.iter().map(|r| Entry::plain(r).len()).sum();
        delta
    }

    /// Whether nothing differs.
    pub fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removed.is_empty()
    }

    /// All resources that it is about, as they were and as they are.
    pub(crate) fn touched(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.upserts.iter().chain(&self.removed).chain(&self.replaced)
    }

    /// The upserts as they stand in a response, if they are few: made once, shared by all.
    pub(crate) fn encoded(&self) -> Option<&Bytes> {
        (self.upserts_len <= KEPT).then(|| {
            self.encoded.get_or_init(|| {
                let mut buf = BytesMut::with_capacity(self.upserts_len);
                self.upserts.iter().for_each(|r| Entry::plain(r).put(&mut buf));
                buf.freeze()
            })
        })
    }
}

/// Differences that were asked for, from older snapshots to one; forgotten with it.
#[derive(Debug, Default)]
pub(super) struct Deltas(Mutex<Vec<(u64, Arc<Delta>)>>);

/// Most clients come from the snapshot before, stragglers from a few others.
const REMEMBERED: usize = 8;

impl Deltas {
    /// The difference from the snapshot of that id. Whoever asks at the same time waits and gets the same.
    pub(super) fn from(&self, older: u64, make: impl FnOnce() -> Delta) -> Arc<Delta> {
        let mut known = self.0.lock();
        if let Some((_, delta)) = known.iter().find(|(id, _)| *id == older) {
            return Arc::clone(delta);
        }
        let delta = Arc::new(make());
        if known.len() == REMEMBERED {
            known.remove(0);
        }
        known.push((older, Arc::clone(&delta)));
        delta
    }
}
