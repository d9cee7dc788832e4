//! The set of resources that a server offers: cheap to snapshot, cheap to compare with an older snapshot.

mod delta;
mod tree;
pub(crate) mod wire;
mod workloads;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh64::xxh64;

pub use self::delta::Delta;
use self::delta::Deltas;
pub(crate) use self::tree::Walk;
use self::tree::{Keyed, Tree};
use self::wire::Entry;

/// One resource, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// The type of its message.
    pub type_url: Arc<str>,
    /// Its name, unique in its type.
    pub name: Arc<str>,
    /// What changes when the resource does.
    pub version: Version,
    /// Other names by which an on-demand client may ask for it, such as `<network>/<ip>`.
    pub aliases: Box<[Box<str>]>,
    /// Names whose on-demand subscribers get this one as well: a workload follows its services.
    pub follows: Box<[Arc<str>]>,
    /// The node whose on-demand clients get it unasked.
    pub node: Option<Arc<str>>,
    /// The serialized message.
    pub body: Bytes,
}

/// The version of a resource: the xxhash64 of its serialized form, in hex, as istiod has it. The same after a restart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Version(u64);

impl Version {
    /// That of these bytes.
    pub fn of(serialized: &[u8]) -> Self {
        Self(xxh64(serialized, 0))
    }

    /// Reads what [`fmt::Display`] writes; `None` for anything else, which is then no version of ours.
    pub fn parse(text: &str) -> Option<Self> {
        let is_hex = text.bytes().all(|c| matches!(c, b'0'..=b'9' | b'a'..=b'f'));
        let is_bare = text.len() == 1 || !text.starts_with('0');
        (is_hex && is_bare).then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl Resource {
    /// A resource of `type_url` that carries `message`.
    pub fn new(type_url: impl Into<Arc<str>>, name: impl Into<Arc<str>>, message: &impl Message) -> Self {
        Self::from_bytes(type_url, name, message.encode_to_vec())
    }

    /// A resource of `type_url` whose message is already serialized.
    pub fn from_bytes(type_url: impl Into<Arc<str>>, name: impl Into<Arc<str>>, body: impl Into<Bytes>) -> Self {
        let body = body.into();
        Self {
            type_url: type_url.into(),
            name: name.into(),
            version: Version::of(&body),
            aliases: Box::default(),
            follows: Box::default(),
            node: None,
            body,
        }
    }

    /// With other names for on-demand clients.
    #[must_use]
    pub fn with_aliases(mut self, aliases: Vec<String>) -> Self {
        self.aliases = aliases.into_iter().map(String::into_boxed_str).collect();
        self
    }

    /// With names whose on-demand subscribers get it as well.
    #[must_use]
    pub fn with_follows(mut self, follows: Vec<Arc<str>>) -> Self {
        self.follows = follows.into();
        self
    }

    /// With the node whose on-demand clients get it unasked.
    #[must_use]
    pub fn with_node(mut self, node: impl Into<Arc<str>>) -> Self {
        self.node = Some(node.into());
        self
    }

    fn marks(&self) -> impl Iterator<Item = Mark> {
        let aliases = self.aliases.iter().map(|alias| Mark::alias(alias));
        let follows = self.follows.iter().map(|name| Mark::follows(name));
        aliases.chain(follows).chain(self.node.iter().map(|node| Mark::node(node)))
    }
}

impl Keyed for Arc<Resource> {
    type Key = str;

    fn key(&self) -> &str {
        &self.name
    }

    fn hash(key: &str) -> u64 {
        xxh64(key.as_bytes(), 0)
    }
}

/// All resources, by type and name. Clones are cheap and share what neither has changed since.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSet {
    types: BTreeMap<Arc<str>, TypeSet>,
    /// Whether workloads are made of the addresses.
    unwraps: bool,
}

impl ResourceSet {
    /// An empty set that serves these types. A request for any other type is refused.
    pub fn of_types<'a>(types: impl IntoIterator<Item = &'a str>) -> Self {
        let named = |t: &str| (Arc::<str>::from(t), TypeSet::new(t.into()));
        Self { types: types.into_iter().map(named).collect(), unwraps: false }
    }

    /// Adds or replaces a resource; says whether anything changed.
    pub fn upsert(&mut self, resource: Resource) -> bool {
        let type_url = Arc::clone(&resource.type_url);
        let set = self.types.entry(type_url).or_insert_with_key(|type_url| TypeSet::new(Arc::clone(type_url)));
        set.upsert(resource)
    }

    /// Removes a resource; says whether it was there.
    pub fn remove(&mut self, type_url: &str, name: &str) -> bool {
        self.types.get_mut(type_url).is_some_and(|set| set.remove(name))
    }

    /// The resources of a type; `None` if the set doesn't serve it.
    pub fn of_type(&self, type_url: &str) -> Option<&TypeSet> {
        self.types.get(type_url)
    }

    /// One resource.
    pub fn get(&self, type_url: &str, name: &str) -> Option<&Arc<Resource>> {
        self.of_type(type_url)?.get(name)
    }

    /// The types that it serves.
    pub fn types(&self) -> impl Iterator<Item = &str> {
        self.types.keys().map(|t| &**t)
    }
}

/// The resources of one type. A clone is a few pointers.
#[derive(Clone, Debug)]
pub struct TypeSet {
    type_url: Arc<str>,
    /// Another for each content; clones have the same.
    id: u64,
    by_name: Tree<Arc<Resource>>,
    by_mark: Tree<Marked>,
    /// Bytes that all of it takes in a response.
    encoded_len: usize,
    deltas: Arc<Deltas>,
}

/// No two contents have one id, in whatever set they are.
static NEXT_ID: AtomicU64 = AtomicU64::new(0);

fn next_id() -> u64 {
    NEXT_ID.fetch_add(1, Ordering::Relaxed)
}

/// By what else a resource is found, as a hash: what is found is looked at again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Mark(u64);

impl Mark {
    fn alias(text: &str) -> Self {
        Self(xxh64(text.as_bytes(), 1))
    }

    fn follows(text: &str) -> Self {
        Self(xxh64(text.as_bytes(), 2))
    }

    fn node(text: &str) -> Self {
        Self(xxh64(text.as_bytes(), 3))
    }
}

#[derive(Clone, Debug)]
struct Marked {
    mark: Mark,
    resources: Members,
}

/// Most aliases have one resource; a node or a service may have thousands.
#[derive(Clone, Debug)]
enum Members {
    One(Arc<Resource>),
    Many(Tree<Arc<Resource>>),
}

impl Keyed for Marked {
    type Key = Mark;

    fn key(&self) -> &Mark {
        &self.mark
    }

    fn hash(key: &Mark) -> u64 {
        key.0
    }
}

impl PartialEq for TypeSet {
    fn eq(&self, other: &Self) -> bool {
        let equals = |r: &Arc<Resource>| other.get(&r.name).is_some_and(|o| o == r);
        self.same(other) || (self.len() == other.len() && self.iter().all(equals))
    }
}

impl TypeSet {
    fn new(type_url: Arc<str>) -> Self {
        Self {
            type_url,
            id: next_id(),
            by_name: Tree::default(),
            by_mark: Tree::default(),
            encoded_len: 0,
            deltas: Arc::default(),
        }
    }

    /// The type.
    pub fn type_url(&self) -> &Arc<str> {
        &self.type_url
    }

    /// One resource, by its name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.by_name.get(name)
    }

    /// All resources, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_name.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Resources that have `alias`, sorted by name.
    pub fn by_alias(&self, alias: &str) -> Vec<&Arc<Resource>> {
        self.marked(Mark::alias(alias), |r| r.aliases.iter().any(|a| **a == *alias))
    }

    /// Resources that follow `name`, sorted by name.
    pub fn followers(&self, name: &str) -> Vec<&Arc<Resource>> {
        self.marked(Mark::follows(name), |r| r.follows.iter().any(|f| **f == *name))
    }

    /// Resources of `node`, sorted by name.
    pub fn on_node(&self, node: &str) -> Vec<&Arc<Resource>> {
        self.marked(Mark::node(node), |r| r.node.as_deref() == Some(node))
    }

    /// Whether both are the same snapshot; equal sets that were built apart may say no.
    pub fn same(&self, other: &Self) -> bool {
        self.id == other.id
    }

    /// What leads from `older` to this set. Parts that the two share are not looked at, and whoever asks after the
    /// first gets what was found then.
    pub fn since(&self, older: &Self) -> Arc<Delta> {
        if self.same(older) {
            return Arc::default();
        }
        self.deltas.from(older.id, || Delta::between(older, self))
    }

    pub(crate) fn encoded_len(&self) -> usize {
        self.encoded_len
    }

    pub(crate) fn walk(&self) -> Walk<Arc<Resource>> {
        self.by_name.walk()
    }

    fn marked(&self, mark: Mark, is_meant: impl Fn(&Resource) -> bool) -> Vec<&Arc<Resource>> {
        let mut found: Vec<&Arc<Resource>> = match self.by_mark.get(&mark).map(|m| &m.resources) {
            None => Vec::new(),
            Some(Members::One(one)) => vec![one],
            Some(Members::Many(many)) => many.iter().collect(),
        };
        found.retain(|r| is_meant(r));
        found.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        found
    }

    fn upsert(&mut self, resource: Resource) -> bool {
        if self.get(&resource.name).is_some_and(|old| **old == resource) {
            return false;
        }
        let resource = Arc::new(resource);
        self.changed();
        self.encoded_len += Entry::plain(&resource).len();
        let old = self.by_name.insert(Arc::clone(&resource));
        if let Some(old) = &old {
            self.encoded_len -= Entry::plain(old).len();
        }
        for mark in old.iter().flat_map(|old| old.marks()) {
            if resource.marks().all(|new| new != mark) {
                self.unmark(mark, &resource.name);
            }
        }
        resource.marks().for_each(|mark| self.mark(mark, &resource));
        true
    }

    fn remove(&mut self, name: &str) -> bool {
        let Some(old) = self.by_name.remove(name) else {
            return false;
        };
        self.changed();
        self.encoded_len -= Entry::plain(&old).len();
        old.marks().for_each(|mark| self.unmark(mark, name));
        true
    }

    fn changed(&mut self) {
        self.id = next_id();
        // A snapshot may have the same; what was found for it is of no use here.
        match Arc::get_mut(&mut self.deltas) {
            Some(own) => *own = Deltas::default(),
            None => self.deltas = Arc::default(),
        }
    }

    fn mark(&mut self, mark: Mark, resource: &Arc<Resource>) {
        let one = Members::One(Arc::clone(resource));
        let resources = match self.by_mark.get(&mark).map(|m| m.resources.clone()) {
            None => one,
            Some(Members::One(old)) if old.name == resource.name => one,
            Some(Members::One(old)) => {
                let mut many = Tree::default();
                many.insert(old);
                many.insert(Arc::clone(resource));
                Members::Many(many)
            }
            Some(Members::Many(mut many)) => {
                many.insert(Arc::clone(resource));
                Members::Many(many)
            }
        };
        self.by_mark.insert(Marked { mark, resources });
    }

    fn unmark(&mut self, mark: Mark, name: &str) {
        match self.by_mark.get(&mark).map(|m| m.resources.clone()) {
            Some(Members::One(one)) if *one.name == *name => drop(self.by_mark.remove(&mark)),
            Some(Members::Many(mut many)) => {
                many.remove(name);
                let only = (many.len() == 1).then(|| many.iter().next().cloned()).flatten();
                let resources = only.map_or(Members::Many(many), Members::One);
                self.by_mark.insert(Marked { mark, resources });
            }
            Some(Members::One(_)) | None => {}
        }
    }
}

#[cfg(test)]
mod tests;
