//! A dense hash table that shares structure between copies: the entries alone, in pieces of which a change copies one.
//!
//! Made for what there are many of. An entry costs about one and a half of its own size, against some hundred bytes in
//! a tree of hashes; a change that follows a copy costs a piece, which is a 256th of the table.

use std::{
    fmt,
    hash::{BuildHasher, Hash, Hasher, RandomState},
    sync::Arc,
};

use hashbrown::{HashTable, hash_table::Entry as Slot};

/// How many pieces there are.
const PIECES: usize = 256;

/// What a table holds: something that knows its own key.
pub(super) trait Entry<K: ?Sized>: Clone {
    /// Hashes the key as it hashes itself.
    fn hash_key(&self, hasher: &mut impl Hasher);

    /// Whether this is its key.
    fn has_key(&self, key: &K) -> bool;
}

pub(super) struct Table<T> {
    /// None until there is something.
    pieces: Option<Arc<[Piece<T>; PIECES]>>,
    hasher: RandomState,
}

type Piece<T> = Option<Arc<HashTable<T>>>;

impl<T: Clone> Table<T> {
    pub(super) fn get<K: Hash + ?Sized>(&self, key: &K) -> Option<&T>
    where
        T: Entry<K>,
    {
        let hash = self.hasher.hash_one(key);
        let piece = self.pieces.as_ref()?[number(hash)].as_ref()?;
        piece.find(hash, |entry| entry.has_key(key))
    }

    /// Gives what is held at `key` to `change`, and holds what that returns, which must be of the same key.
    pub(super) fn change<K: Hash + ?Sized>(&mut self, key: &K, change: impl FnOnce(Option<T>) -> Option<T>)
    where
        T: Entry<K>,
    {
        let hash = self.hasher.hash_one(key);
        let pieces = self.pieces.get_or_insert_with(|| Arc::new([const { None }; PIECES]));
        let piece = &mut Arc::make_mut(pieces)[number(hash)];
        let entries = Arc::make_mut(piece.get_or_insert_default());
        let rehash = |entry: &T| hash_of(entry, &self.hasher);
        match entries.entry(hash, |entry| entry.has_key(key), rehash) {
            Slot::Occupied(slot) => {
                let (held, slot) = slot.remove();
                if let Some(next) = change(Some(held)) {
                    slot.insert(next);
                    return;
                }
            }
            Slot::Vacant(slot) => {
                if let Some(next) = change(None) {
                    slot.insert(next);
                    return;
                }
            }
        }
        // Something was taken out: what many have left, few need not pay for.
        if entries.is_empty() {
            *piece = None;
        } else if entries.len() < entries.capacity() / 4 {
            entries.shrink_to_fit(rehash);
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        self.pieces.iter().flat_map(|pieces| pieces.iter().flatten().flat_map(|piece| piece.iter()))
    }
}

fn hash_of<T: Entry<K>, K: ?Sized>(entry: &T, hasher: &RandomState) -> u64 {
    let mut hasher = hasher.build_hasher();
    entry.hash_key(&mut hasher);
    hasher.finish()
}

/// The piece of a hash: from bits that the tables inside do not look at first.
fn number(hash: u64) -> usize {
    (hash >> 40) as usize % PIECES
}

impl<T> Clone for Table<T> {
    fn clone(&self) -> Self {
        Self { pieces: self.pieces.clone(), hasher: self.hasher.clone() }
    }
}

impl<T> Default for Table<T> {
    fn default() -> Self {
        Self { pieces: None, hasher: RandomState::new() }
    }
}

impl<T> fmt::Debug for Table<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pieces = self.pieces.iter().flat_map(|pieces| pieces.iter().flatten());
        f.debug_struct("Table").field("entries", &pieces.map(|piece| piece.len()).sum::<usize>()).finish()
    }
}
