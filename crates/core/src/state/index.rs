//! A map from a key to the values that have it, each list sorted, sharing structure between copies.

use std::{borrow::Borrow, cmp::Ordering, hash::Hash, sync::Arc};

use rpds::HashTrieMapSync;

/// A total order among the values of one list; equal means the same entry.
pub(super) type Order<V> = fn(&V, &V) -> Ordering;

#[derive(Debug)]
pub(super) struct Index<K: Eq + Hash, V> {
    lists: HashTrieMapSync<K, List<V>>,
}

/// Most lists have one value, which then needs no memory of its own.
#[derive(Debug)]
enum List<V> {
    One(Arc<V>),
    Many(Arc<Vec<Arc<V>>>),
}

impl<K: Eq + Hash + Clone, V> Index<K, V> {
    pub(super) fn get<Q>(&self, key: &Q) -> &[Arc<V>]
    where
        K: Borrow<Q>,
        Q: Eq + Hash + ?Sized,
    {
        match self.lists.get(key) {
            None => &[],
            Some(List::One(value)) => std::slice::from_ref(value),
            Some(List::Many(values)) => values,
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.lists.size()
    }

    /// Whether the key is new.
    pub(super) fn insert(&mut self, key: K, value: Arc<V>, order: Order<V>) -> bool {
        match self.lists.get_mut(&key) {
            None => {
                self.lists.insert_mut(key, List::One(value));
                return true;
            }
            Some(List::Many(values)) => insert_sorted(Arc::make_mut(values), value, order),
            Some(list @ List::One(_)) => {
                let List::One(held) = &*list else { return false };
                let mut values = vec![held.clone()];
                insert_sorted(&mut values, value, order);
                *list = if let [only] = &values[..] { List::One(only.clone()) } else { List::Many(Arc::new(values)) };
            }
        }
        false
    }

    /// Whether the key is gone with its last value.
    pub(super) fn remove(&mut self, key: &K, value: &V, order: Order<V>) -> bool {
        let empty = match self.lists.get_mut(key) {
            None => return false,
            Some(List::One(held)) => order(held, value).is_eq(),
            Some(list @ List::Many(_)) => {
                let List::Many(values) = list else { return false };
                let values = Arc::make_mut(values);
                remove_sorted(values, value, order);
                if let [only] = &values[..] {
                    *list = List::One(only.clone());
                }
                false
            }
        };
        if empty {
            self.lists.remove_mut(key);
        }
        empty
    }
}

impl<V> Clone for List<V> {
    fn clone(&self) -> Self {
        match self {
            Self::One(value) => Self::One(value.clone()),
            Self::Many(values) => Self::Many(values.clone()),
        }
    }
}

pub(super) fn insert_sorted<V>(list: &mut Vec<Arc<V>>, value: Arc<V>, order: Order<V>) {
    match list.binary_search_by(|held| order(held, &value)) {
        Ok(at) => list[at] = value,
        Err(at) => {
            // Lists are long and many, and seldom grow: room for an eighth more, not for as many again.
            if list.len() == list.capacity() {
                list.reserve_exact(1 + list.len() / 8);
            }
            list.insert(at, value);
        }
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
