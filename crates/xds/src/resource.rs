//! The set of resources that a server offers: cheap to snapshot, cheap to compare with an older snapshot.

use std::collections::BTreeMap;
use std::sync::Arc;

use prost::Message;
use prost_types::Any;
use xxhash_rust::xxh64::xxh64;

/// One resource, ready to be sent.
#[derive(Clone, Debug, PartialEq)]
pub struct Resource {
    /// Its name, unique in its type.
    pub name: Arc<str>,
    /// What changes when the resource does: the xxhash64 of its serialized form, in hex, as istiod has it.
    pub version: Arc<str>,
    /// Other names by which an on-demand client may ask for it, such as `<network>/<ip>`.
    pub aliases: Vec<String>,
    /// Names whose on-demand subscribers get this one as well: a workload follows its services.
    pub follows: Vec<String>,
    /// The node whose on-demand clients get it unasked.
    pub node: Option<String>,
    /// The serialized message and its type.
    pub body: Any,
}

impl Resource {
    /// A resource of `type_url` that carries `message`.
    pub fn new(type_url: &str, name: impl Into<Arc<str>>, message: &impl Message) -> Self {
        Self::from_bytes(type_url, name, message.encode_to_vec())
    }

    /// A resource of `type_url` whose message is already serialized.
    pub fn from_bytes(type_url: &str, name: impl Into<Arc<str>>, value: Vec<u8>) -> Self {
        Self {
            name: name.into(),
            version: version(&value),
            aliases: Vec::new(),
            follows: Vec::new(),
            node: None,
            body: Any { type_url: type_url.to_owned(), value },
        }
    }

    /// With a version of its own, such as that of the Address which a Workload is part of.
    #[must_use]
    pub fn with_version(mut self, version: impl Into<Arc<str>>) -> Self {
        self.version = version.into();
        self
    }

    /// With other names for on-demand clients.
    #[must_use]
    pub fn with_aliases(mut self, aliases: Vec<String>) -> Self {
        self.aliases = aliases;
        self
    }

    /// With names whose on-demand subscribers get it as well.
    #[must_use]
    pub fn with_follows(mut self, follows: Vec<String>) -> Self {
        self.follows = follows;
        self
    }

    /// With the node whose on-demand clients get it unasked.
    #[must_use]
    pub fn with_node(mut self, node: impl Into<String>) -> Self {
        self.node = Some(node.into());
        self
    }

    fn index_keys(&self) -> impl Iterator<Item = IndexKey> {
        let aliases = self.aliases.iter().map(|a| IndexKey::Alias(a.as_str().into()));
        let follows = self.follows.iter().map(|f| IndexKey::Follows(f.as_str().into()));
        let node = self.node.iter().map(|n| IndexKey::Node(n.as_str().into()));
        aliases.chain(follows).chain(node)
    }
}

/// The version of a serialized resource.
pub fn version(serialized: &[u8]) -> Arc<str> {
    format!("{:x}", xxh64(serialized, 0)).into()
}

/// All resources, by type and name. Clones are cheap and share what neither has changed since.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResourceSet {
    types: BTreeMap<Arc<str>, TypeSet>,
}

impl ResourceSet {
    /// An empty set that serves these types. A request for any other type is refused.
    pub fn of_types<'a>(types: impl IntoIterator<Item = &'a str>) -> Self {
        Self { types: types.into_iter().map(|t| (t.into(), TypeSet::default())).collect() }
    }

    /// Adds or replaces a resource; says whether anything changed. Its type is its body's.
    pub fn upsert(&mut self, resource: Resource) -> bool {
        let type_url = resource.body.type_url.as_str();
        if !self.types.contains_key(type_url) {
            self.types.insert(type_url.into(), TypeSet::default());
        }
        self.types.get_mut(type_url).is_some_and(|set| set.upsert(Arc::new(resource)))
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

// 256 parts: a change among 100 000 resources copies some 400 pointers, and a comparison of snapshots looks at 256.
const SHARDS: usize = 256;

type Shards<K, V> = Arc<Vec<Arc<BTreeMap<K, V>>>>;

/// The resources of one type. A clone is one pointer.
#[derive(Clone, Debug)]
pub struct TypeSet {
    by_name: Shards<Arc<str>, Arc<Resource>>,
    index: Shards<IndexKey, Vec<Arc<str>>>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum IndexKey {
    Alias(Box<str>),
    Follows(Box<str>),
    Node(Box<str>),
}

impl Default for TypeSet {
    fn default() -> Self {
        Self { by_name: empty_shards(), index: empty_shards() }
    }
}

impl PartialEq for TypeSet {
    fn eq(&self, other: &Self) -> bool {
        self.same(other) || self.by_name == other.by_name
    }
}

impl TypeSet {
    /// One resource, by its name.
    pub fn get(&self, name: &str) -> Option<&Arc<Resource>> {
        self.by_name[shard(name)].get(name)
    }

    /// All resources, in no order that means anything.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Resource>> {
        self.by_name.iter().flat_map(|shard| shard.values())
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.by_name.iter().map(|shard| shard.len()).sum()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.by_name.iter().all(|shard| shard.is_empty())
    }

    /// Resources that have `alias`, sorted by name.
    pub fn by_alias<'a>(&'a self, alias: &str) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.indexed(IndexKey::Alias(alias.into()))
    }

    /// Resources that follow `name`, sorted by name.
    pub fn followers<'a>(&'a self, name: &str) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.indexed(IndexKey::Follows(name.into()))
    }

    /// Resources of `node`, sorted by name.
    pub fn on_node<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Resource>> {
        self.indexed(IndexKey::Node(node.into()))
    }

    /// Whether both are the same snapshot; equal sets that were built apart may say no.
    pub fn same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.by_name, &other.by_name)
    }

    /// What leads from `older` to this set: resources new or changed, and names that are gone; both sorted.
    /// Parts that the two share are not looked at.
    pub fn since<'a>(&'a self, older: &'a Self) -> (Vec<&'a Arc<Resource>>, Vec<&'a str>) {
        let (mut changed, mut gone) = (Vec::new(), Vec::new());
        for (new, old) in self.by_name.iter().zip(older.by_name.iter()) {
            if Arc::ptr_eq(new, old) {
                continue;
            }
            let is_new = |r: &&Arc<Resource>| old.get(&r.name).is_none_or(|o| o.version != r.version);
            changed.extend(new.values().filter(is_new));
            gone.extend(old.keys().filter(|name| !new.contains_key(*name)).map(|n| &**n));
        }
        changed.sort_by(|a, b| a.name.cmp(&b.name));
        gone.sort_unstable();
        (changed, gone)
    }

    fn indexed(&self, key: IndexKey) -> impl Iterator<Item = &Arc<Resource>> {
        let names = self.index[index_shard(&key)].get(&key);
        names.into_iter().flatten().filter_map(|name| self.get(name))
    }

    fn upsert(&mut self, resource: Arc<Resource>) -> bool {
        let old = self.get(&resource.name);
        if old.is_some_and(|old| **old == *resource) {
            return false;
        }
        if let Some(old) = old.cloned() {
            self.unindex(&old);
        }
        for key in resource.index_keys() {
            let part = part_mut(&mut self.index, index_shard(&key));
            let names = part.entry(key).or_default();
            if let Err(at) = names.binary_search(&resource.name) {
                names.insert(at, resource.name.clone());
            }
        }
        part_mut(&mut self.by_name, shard(&resource.name)).insert(resource.name.clone(), resource);
        true
    }

    fn remove(&mut self, name: &str) -> bool {
        let Some(old) = self.get(name).cloned() else {
            return false;
        };
        self.unindex(&old);
        part_mut(&mut self.by_name, shard(name)).remove(name);
        true
    }

    fn unindex(&mut self, resource: &Resource) {
        for key in resource.index_keys() {
            let part = part_mut(&mut self.index, index_shard(&key));
            if let Some(names) = part.get_mut(&key) {
                names.retain(|name| *name != resource.name);
                if names.is_empty() {
                    part.remove(&key);
                }
            }
        }
    }
}

fn empty_shards<K, V>() -> Shards<K, V> {
    let empty = Arc::new(BTreeMap::new());
    Arc::new((0..SHARDS).map(|_| Arc::clone(&empty)).collect())
}

fn part_mut<K: Clone + Ord, V: Clone>(shards: &mut Shards<K, V>, at: usize) -> &mut BTreeMap<K, V> {
    Arc::make_mut(&mut Arc::make_mut(shards)[at])
}

fn shard(name: &str) -> usize {
    (xxh64(name.as_bytes(), 0) % SHARDS as u64) as usize
}

fn index_shard(key: &IndexKey) -> usize {
    let (IndexKey::Alias(text) | IndexKey::Follows(text) | IndexKey::Node(text)) = key;
    shard(text)
}

#[cfg(test)]
mod tests;
