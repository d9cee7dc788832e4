//! A map whose copies are one pointer, and share all that neither has changed since.
//!
//! ```text
//!   root ─▶ branch of 16 ─▶ branch of 16 ─▶ leaf of at most 32, sorted by key
//! ```
//!
//! Keys are spread by their hash, so a tree of 50 000 is four levels high: a change copies as many small nodes, and a
//! comparison with an older copy looks at the changed ones alone.

use std::sync::Arc;

/// Branches have as many children.
const WIDTH: usize = 1 << BITS;
const BITS: u32 = 4;
/// A leaf with more becomes a branch; a branch with a quarter of it becomes a leaf again.
const FULL: usize = 32;
const FEW: usize = FULL / 4;

/// What a tree may hold.
pub(crate) trait Keyed: Clone {
    type Key: Ord + ?Sized;
    fn key(&self) -> &Self::Key;
    /// Spread well over all 64 bits.
    fn hash(key: &Self::Key) -> u64;
}

/// The map.
#[derive(Clone, Debug)]
pub(crate) struct Tree<V> {
    root: Arc<Node<V>>,
    len: usize,
}

#[derive(Clone, Debug)]
enum Node<V> {
    Leaf(Vec<V>),
    Branch(Box<[Arc<Self>; WIDTH]>),
}

/// What became of one key: before, and now.
pub(crate) type Change<'a, V> = (Option<&'a V>, Option<&'a V>);

impl<V> Default for Tree<V> {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

impl<V: Keyed> Tree<V> {
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn get(&self, key: &V::Key) -> Option<&V> {
        let (mut node, mut hash) = (&self.root, V::hash(key));
        loop {
            match &**node {
                Node::Branch(children) => node = &children[child(hash)],
                Node::Leaf(values) => return values.binary_search_by(|v| v.key().cmp(key)).ok().map(|at| &values[at]),
            }
            hash >>= BITS;
        }
    }

    /// Puts a value in, and gives the one that it replaces.
    pub(crate) fn insert(&mut self, value: V) -> Option<V> {
        let hash = V::hash(value.key());
        let old = insert(&mut self.root, hash, 0, value);
        self.len += usize::from(old.is_none());
        old
    }

    pub(crate) fn remove(&mut self, key: &V::Key) -> Option<V> {
        // Looked for first: what isn't there must not copy the way to it.
        self.get(key)?;
        let old = remove(&mut self.root, V::hash(key), key);
        self.len -= usize::from(old.is_some());
        old
    }

    /// All values, in no order that means anything.
    pub(crate) fn iter(&self) -> Iter<'_, V> {
        Iter { nodes: vec![&self.root], values: [].iter() }
    }

    /// All values, one after the other, while the tree may go on changing: the walk has its own copy.
    pub(crate) fn walk(&self) -> Walk<V> {
        Walk { stack: vec![(Arc::clone(&self.root), 0)] }
    }

    /// Keys that the two don't share: values that are not the same in both, equal ones among them.
    pub(crate) fn changes_since<'a>(&'a self, older: &'a Self) -> Vec<Change<'a, V>> {
        let mut changes = Vec::new();
        compare(&older.root, &self.root, &mut changes);
        changes
    }
}

fn child(hash: u64) -> usize {
    (hash % WIDTH as u64) as usize
}

fn insert<V: Keyed>(node: &mut Arc<Node<V>>, hash: u64, depth: u32, value: V) -> Option<V> {
    match Arc::make_mut(node) {
        Node::Branch(children) => insert(&mut children[child(hash)], hash >> BITS, depth + 1, value),
        Node::Leaf(values) => match values.binary_search_by(|v| v.key().cmp(value.key())) {
            Ok(at) => Some(std::mem::replace(&mut values[at], value)),
            Err(at) => {
                values.insert(at, value);
                // The hash's bits are used up: what is left are keys with one hash.
                if values.len() > FULL && depth < u64::BITS / BITS {
                    let values = std::mem::take(values);
                    *node = Arc::new(split(values, depth));
                }
                None
            }
        },
    }
}

fn split<V: Keyed>(values: Vec<V>, depth: u32) -> Node<V> {
    let mut parts: [Vec<V>; WIDTH] = Default::default();
    for value in values {
        parts[child(V::hash(value.key()) >> (BITS * depth))].push(value);
    }
    Node::Branch(Box::new(parts.map(|mut part| {
        part.shrink_to_fit();
        Arc::new(Node::Leaf(part))
    })))
}

fn remove<V: Keyed>(node: &mut Arc<Node<V>>, hash: u64, key: &V::Key) -> Option<V> {
    let old = match Arc::make_mut(node) {
        Node::Branch(children) => remove(&mut children[child(hash)], hash >> BITS, key),
        Node::Leaf(values) => {
            let at = values.binary_search_by(|v| v.key().cmp(key)).ok()?;
            return Some(values.remove(at));
        }
    };
    if let Some(few) = few(node) {
        *node = Arc::new(Node::Leaf(few));
    }
    old
}

/// The values of a branch with hardly any.
fn few<V: Keyed>(node: &Node<V>) -> Option<Vec<V>> {
    let Node::Branch(children) = node else { return None };
    let mut count = 0;
    for child in children.iter() {
        let Node::Leaf(values) = &**child else { return None };
        count += values.len();
        if count > FEW {
            return None;
        }
    }
    let leaves = children.iter().filter_map(|child| match &**child {
        Node::Leaf(values) => Some(values),
        Node::Branch(_) => None,
    });
    let mut all: Vec<V> = leaves.flatten().cloned().collect();
    all.sort_by(|a, b| a.key().cmp(b.key()));
    Some(all)
}

fn compare<'a, V: Keyed>(old: &'a Arc<Node<V>>, new: &'a Arc<Node<V>>, changes: &mut Vec<Change<'a, V>>) {
    if Arc::ptr_eq(old, new) {
        return;
    }
    match (&**old, &**new) {
        (Node::Branch(old), Node::Branch(new)) => {
            for (old, new) in old.iter().zip(new.iter()) {
                compare(old, new, changes);
            }
        }
        (Node::Leaf(old), Node::Leaf(new)) => merge(old.iter(), new.iter(), changes),
        // One of them has been split or joined: few values either way.
        _ => {
            let (old, new) = (sorted(old), sorted(new));
            merge(old.into_iter(), new.into_iter(), changes);
        }
    }
}

fn sorted<V: Keyed>(node: &Arc<Node<V>>) -> Vec<&V> {
    let mut values: Vec<&V> = Iter { nodes: vec![node], values: [].iter() }.collect();
    values.sort_by(|a, b| a.key().cmp(b.key()));
    values
}

/// Both are sorted.
fn merge<'a, V: Keyed>(
    old: impl Iterator<Item = &'a V>,
    new: impl Iterator<Item = &'a V>,
    changes: &mut Vec<Change<'a, V>>,
) {
    let (mut old, mut new) = (old.peekable(), new.peekable());
    loop {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return,
            (Some(_), None) => std::cmp::Ordering::Less,
            (None, Some(_)) => std::cmp::Ordering::Greater,
            (Some(old), Some(new)) => old.key().cmp(new.key()),
        };
        changes.push(match order {
            std::cmp::Ordering::Less => (old.next(), None),
            std::cmp::Ordering::Equal => (old.next(), new.next()),
            std::cmp::Ordering::Greater => (None, new.next()),
        });
    }
}

/// See [`Tree::iter`].
pub(crate) struct Iter<'a, V> {
    nodes: Vec<&'a Arc<Node<V>>>,
    values: std::slice::Iter<'a, V>,
}

impl<'a, V> Iterator for Iter<'a, V> {
    type Item = &'a V;

    fn next(&mut self) -> Option<&'a V> {
        loop {
            if let Some(value) = self.values.next() {
                return Some(value);
            }
            match &**self.nodes.pop()? {
                Node::Leaf(values) => self.values = values.iter(),
                Node::Branch(children) => self.nodes.extend(children.iter().rev()),
            }
        }
    }
}

/// See [`Tree::walk`].
#[derive(Clone, Debug)]
pub(crate) struct Walk<V> {
    /// The way from the root, and where it goes on in each node.
    stack: Vec<(Arc<Node<V>>, usize)>,
}

impl<V: Clone> Iterator for Walk<V> {
    type Item = V;

    fn next(&mut self) -> Option<V> {
        loop {
            let (node, at) = self.stack.last_mut()?;
            let here = *at;
            *at += 1;
            let below = match &**node {
                Node::Leaf(values) => match values.get(here) {
                    Some(value) => return Some(value.clone()),
                    None => None,
                },
                Node::Branch(children) => children.get(here).cloned(),
            };
            match below {
                Some(below) => self.stack.push((below, 0)),
                None => drop(self.stack.pop()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug, PartialEq)]
    struct Entry(u32, u32);

    impl Keyed for Entry {
        type Key = u32;

        fn key(&self) -> &u32 {
            &self.0
        }

        /// Some keys have one hash, and all leave bits unused.
        fn hash(key: &u32) -> u64 {
            u64::from(*key / 3).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 7
        }
    }

    fn model(tree: &Tree<Entry>) -> BTreeMap<u32, u32> {
        let all: BTreeMap<u32, u32> = tree.iter().map(|e| (e.0, e.1)).collect();
        assert_eq!(all.len(), tree.len());
        assert_eq!(tree.walk().count(), tree.len());
        assert!(tree.walk().all(|e| all[&e.0] == e.1));
        all
    }

    proptest! {
        #[test]
        fn is_a_map_and_tells_what_changed(
            steps in proptest::collection::vec(
                proptest::collection::vec((0..400_u32, proptest::option::weighted(0.6, 0..4_u32)), 0..200), 1..6,
            ),
        ) {
            let (mut tree, mut expect) = (Tree::default(), BTreeMap::new());
            for step in steps {
                let (older, before) = (tree.clone(), expect.clone());
                for (key, value) in step {
                    match value {
                        Some(value) => {
                            prop_assert_eq!(tree.insert(Entry(key, value)).map(|e| e.1), expect.insert(key, value));
                        }
                        None => prop_assert_eq!(tree.remove(&key).map(|e| e.1), expect.remove(&key)),
                    }
                }
                prop_assert_eq!(model(&tree), expect.clone());
                prop_assert_eq!(model(&older), before.clone());
                prop_assert!((0..400).all(|key| tree.get(&key).map(|e| e.1) == expect.get(&key).copied()));
                // Applied to the older one, the changes lead here.
                let mut replayed = before;
                for (old, new) in tree.changes_since(&older) {
                    match (old, new) {
                        (_, Some(new)) => drop(replayed.insert(new.0, new.1)),
                        (Some(old), None) => drop(replayed.remove(&old.0)),
                        (None, None) => prop_assert!(false),
                    }
                }
                prop_assert_eq!(replayed, expect.clone());
            }
        }
    }

    #[test]
    fn one_change_among_many_is_found_in_few_steps() {
        let mut tree = Tree::default();
        for key in 0..50_000 {
            tree.insert(Entry(key, 0));
        }
        let older = tree.clone();
        tree.insert(Entry(7, 1));
        let changes = tree.changes_since(&older);
        assert!(changes.len() <= FULL, "{} values looked at", changes.len());
        let differ: Vec<_> = changes.into_iter().filter(|(old, new)| old != new).collect();
        assert_eq!(differ, [(Some(&Entry(7, 0)), Some(&Entry(7, 1)))]);
        assert!(tree.changes_since(&tree.clone()).is_empty());
    }

    #[test]
    fn what_is_taken_away_leaves_no_empty_branches() {
        let mut tree = Tree::default();
        for key in 0..5000 {
            tree.insert(Entry(key, 0));
        }
        for key in 3..5000 {
            tree.remove(&key);
        }
        assert!(matches!(&*tree.root, Node::Leaf(values) if values.len() == 3));
    }
}
