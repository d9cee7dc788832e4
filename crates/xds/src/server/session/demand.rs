//! On-demand: a client that asks for single resources, by name or by alias.
//!
//! What such a client is sent is a function of what it asked for and of the set: the resources of those names, those
//! that follow them (a service's pods), and those of its own node. It is computed anew for each change of the set.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use crate::resource::{Resource, TypeSet};

use super::WILDCARD;

/// What to send.
#[derive(Debug, Default)]
pub(super) struct Delta {
    /// Under which name, and what.
    pub(super) upserts: Vec<(Arc<str>, Arc<Resource>)>,
    pub(super) removed: Vec<String>,
}

impl Delta {
    pub(super) fn of(changed: Vec<&Arc<Resource>>, removed: Vec<String>) -> Self {
        let upserts = changed.into_iter().map(|r| (r.name.clone(), r.clone())).collect();
        Self { upserts, removed }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removed.is_empty()
    }
}

/// A client's questions and what it was sent.
#[derive(Debug)]
pub(super) struct OnDemand {
    node_name: Option<String>,
    /// Every name asked for, whether it exists or not: one that comes into being later is sent then.
    names: BTreeSet<String>,
    /// Name to version of what the client holds.
    held: BTreeMap<Arc<str>, Arc<str>>,
    /// The snapshot that `held` is complete for.
    seen: Option<TypeSet>,
}

/// A client that scans addresses is not remembered without end.
const MAX_UNKNOWN_NAMES: usize = 4096;

impl OnDemand {
    /// A client that holds these versions. Having held something counts as having asked for it.
    pub(super) fn new(node_name: Option<String>, held: BTreeMap<String, String>) -> Self {
        let names = held.keys().cloned().collect();
        let held = held.into_iter().map(|(name, version)| (name.into(), version.into())).collect();
        Self { node_name, names, held, seen: None }
    }

    /// What the client holds.
    pub(super) fn held(&self) -> BTreeMap<String, String> {
        self.held.iter().map(|(name, version)| (name.to_string(), version.to_string())).collect()
    }

    /// Adds questions. Each of them gets an answer, even if the client holds it: it may be waiting for one.
    pub(super) fn subscribe(&mut self, names: Vec<String>, current: &TypeSet) -> Delta {
        let asked: BTreeSet<String> = names.into_iter().filter(|name| name != WILDCARD).collect();
        let (mut found, mut unknown) = (BTreeMap::new(), Vec::new());
        for name in &asked {
            let brought = resolve(name, current);
            if brought.is_empty() {
                unknown.push(name.clone());
            }
            found.extend(brought);
        }
        self.names.extend(asked);
        self.forget_surplus(current);
        if self.seen.as_ref().is_some_and(|seen| seen.same(current)) {
            // The rest is up to date, so a question costs what it brings, however many came before.
            self.held.extend(found.iter().map(|(name, r)| (name.clone(), r.version.clone())));
            return Delta { upserts: found.into_iter().collect(), removed: unknown };
        }
        // What was answered is sent again, by not being held.
        self.held.retain(|name, _| !found.contains_key(name));
        let mut delta = self.diff(current, true);
        unknown.retain(|name| !delta.removed.contains(name));
        delta.removed.extend(unknown);
        delta
    }

    /// Takes questions back. The client forgets by itself what they brought.
    pub(super) fn unsubscribe(&mut self, names: &[String], current: &TypeSet) {
        if names.is_empty() {
            return;
        }
        for name in names {
            self.names.remove(name);
        }
        let wanted = self.wanted(current);
        self.held.retain(|name, _| wanted.contains_key(name));
        self.seen = None;
    }

    /// What leads from what the client holds to what it should hold. With `commit` the client is taken to have it.
    pub(super) fn diff(&mut self, current: &TypeSet, commit: bool) -> Delta {
        if self.seen.as_ref().is_some_and(|seen| seen.same(current)) {
            return Delta::default();
        }
        let wanted = self.wanted(current);
        let removed = self.held.keys().filter(|name| !wanted.contains_key(*name));
        let removed = removed.map(|name| name.to_string()).collect();
        let changed = |(name, resource): &(&Arc<str>, &Arc<Resource>)| {
            self.held.get(*name).is_none_or(|version| *version != resource.version)
        };
        let upserts = wanted.iter().filter(changed).map(|(n, r)| (n.clone(), r.clone())).collect();
        if commit {
            self.held = wanted.into_iter().map(|(name, r)| (name, r.version.clone())).collect();
            self.seen = Some(current.clone());
        }
        Delta { upserts, removed }
    }

    /// Everything that the client should hold.
    fn wanted(&self, current: &TypeSet) -> BTreeMap<Arc<str>, Arc<Resource>> {
        let mut wanted = BTreeMap::new();
        for resource in self.node_name.iter().flat_map(|node| current.on_node(node)) {
            wanted.insert(resource.name.clone(), resource.clone());
        }
        for name in &self.names {
            wanted.extend(resolve(name, current));
        }
        wanted
    }

    #[cfg(test)]
    pub(super) fn remembered(&self) -> usize {
        self.names.len()
    }

    fn forget_surplus(&mut self, current: &TypeSet) {
        if self.names.len() <= MAX_UNKNOWN_NAMES {
            return;
        }
        let is_known = |name: &String| current.get(name).is_some() || current.by_alias(name).next().is_some();
        let unknown: Vec<_> = self.names.iter().filter(|name| !is_known(name)).cloned().collect();
        for name in unknown.iter().skip(MAX_UNKNOWN_NAMES / 2) {
            self.names.remove(name);
        }
    }
}

/// What one question brings: the resource, those that follow it, and, if it was asked for by an alias, the same
/// resource under that alias too. The last is for clients that wait for the very name that they asked for and don't
/// look at aliases, as Istio's ztunnel does.
fn resolve(name: &str, current: &TypeSet) -> BTreeMap<Arc<str>, Arc<Resource>> {
    let mut found = BTreeMap::new();
    let mut direct: Vec<&Arc<Resource>> = current.get(name).into_iter().collect();
    if direct.is_empty() {
        direct.extend(current.by_alias(name));
        if let Some(first) = direct.first() {
            found.insert(name.into(), (*first).clone());
        }
    }
    for resource in direct {
        found.insert(resource.name.clone(), resource.clone());
        let followers = current.followers(&resource.name);
        found.extend(followers.map(|r| (r.name.clone(), r.clone())));
    }
    found
}
