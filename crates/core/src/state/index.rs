//! A map from a key to the values that have it, each list sorted, sharing structure between copies.

use std::{borrow::Borrow, cmp::Ordering, hash::Hash, sync::Arc};

use rpds::HashTrieMapSync;

/// A total order among the values of one list; equal means the same entry.
pub(super) type Order<V> = fn(&V, &V) -> Ordering;

#[derive(Debug)]
pub(super) struct Index<K: Eq + Hash, V> {
    lists: HashTrieMapSync<K, Arc<Vec<Arc<V>>>>,
}

impl<K: Eq + Hash + Clone, V> Index<K, V> {
    pub(super) fn get<Q>(&self, key: &Q) -> &[Arc<V>]
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        self.lists.get(key).map_or(&[], |list| list)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lists.size()
    }

    /// Whether the key is new.
    pub(super) fn insert(&mut self, key: K, value: Arc<V>, order: Order<V>) -> bool {
        if let Some(list) = self.lists.get_mut(&key) {
            insert_sorted(Arc::make_mut(list), value, order);
            return false;
        }
        self.lists.insert_mut(key, Arc::new(vec![value]));
        true
    }

    /// Whether the key is gone with its last value.
    pub(super) fn remove(&mut self, key: &K, value: &V, order: Order<V>) -> bool {
        let Some(list) = self.lists.get_mut(key) else { return false };
        let list = Arc::make_mut(list);
        remove_sorted(list, value, order);
        let empty = list.is_empty();
        if empty {
            self.lists.remove_mut(key);
        }
        empty
    }
}

pub(super) fn insert_sorted<V>(list: &mut Vec<Arc<V>>, value: Arc<V>, order: Order<V>) {
    match list.binary_search_by(|held| order(held, &value)) {
        Ok(at) => list[at] = value,
        Err(at) => list.insert(at, value),
    }
}

pub(super) fn remove_sorted<V>(list: &mut Vec<Arc<V>>, value: &V, order: Order<V>) {
    if let Ok(at) = list.binary_search_by(|held| order(held, value)) {
        list.remove(at);
    }
}

impl<K: Eq + Hash, V> Clone for Index<K, V> {
    fn clone(&self) -> Self {
        Self { lists: self.lists.clone() }
    }
}

impl<K: Eq + Hash, V> Default for Index<K, V> {
    fn default() -> Self {
        Self { lists: HashTrieMapSync::default() }
    }
}
