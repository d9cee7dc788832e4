//! On-demand: a client that asks for single resources, by name or by alias.
//!
//! What such a client is sent is a function of what it asked for and of the set: the resources of those names, those
//! that follow them (a service's pods), and those of its own node. It is computed anew when something of it changed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::WILDCARD;
use crate::resource::{Delta, Resource, TypeSet, Version};
use crate::server::answer::Own;

/// A client's questions and what it was sent.
#[derive(Debug)]
pub(super) struct OnDemand {
    node_name: Option<String>,
    /// Every name asked for, whether it exists or not: one that comes into being later is sent then.
    names: BTreeSet<String>,
    /// Name to version of what the client holds; none if it isn't one of ours.
    held: BTreeMap<Arc<str>, Option<Version>>,
    /// The snapshot that `held` is complete for.
    seen: Option<TypeSet>,
}

/// A client that scans addresses is not remembered without end.
const MAX_UNKNOWN_NAMES: usize = 4096;

impl OnDemand {
    /// A client that holds these versions. Having held something counts as having asked for it.
    pub(super) fn new(node_name: Option<String>, held: BTreeMap<String, String>) -> Self {
        let names = held.keys().cloned().collect();
        let held = held.into_iter().map(|(name, version)| (name.into(), Version::parse(&version))).collect();
        Self { node_name, names, held, seen: None }
    }

    /// What the client holds.
    pub(super) fn held(&self) -> &BTreeMap<Arc<str>, Option<Version>> {
        &self.held
    }

    /// Adds questions. Each of them gets an answer, even if the client holds it: it may be waiting for one.
    pub(super) fn subscribe(&mut self, names: Vec<String>, current: &TypeSet) -> Own {
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
        if self.is_up_to_date(current) {
            // The rest is as it should be, so a question costs what it brings, however many came before.
            self.held.extend(found.iter().map(|(name, r)| (name.clone(), Some(r.version))));
            self.seen = Some(current.clone());
            return own(found.into_iter().collect(), unknown);
        }
        // What was answered is sent again, by not being held.
        self.held.retain(|name, _| !found.contains_key(name));
        let mut own = self.renew(current, true);
        unknown.retain(|name| !own.removed.contains(name));
        own.removed.extend(unknown);
        own
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
    pub(super) fn diff(&mut self, current: &TypeSet, commit: bool) -> Own {
        if self.is_up_to_date(current) {
            if commit {
                self.seen = Some(current.clone());
            }
            return own(Vec::new(), Vec::new());
        }
        self.renew(current, commit)
    }

    fn renew(&mut self, current: &TypeSet, commit: bool) -> Own {
        let wanted = self.wanted(current);
        let removed = self.held.keys().filter(|name| !wanted.contains_key(*name));
        let removed = removed.map(|name| name.to_string()).collect();
        let changed = |(name, resource): &(&Arc<str>, &Arc<Resource>)| {
            self.held.get(*name).is_none_or(|version| *version != Some(resource.version))
        };
        let upserts = wanted.iter().filter(changed).map(|(n, r)| (n.clone(), r.clone())).collect();
        if commit {
            self.held = wanted.into_iter().map(|(name, r)| (name, Some(r.version))).collect();
            self.seen = Some(current.clone());
        }
        own(upserts, removed)
    }

    /// Whether nothing of what the client has to do with has changed since it was last answered. What did change is
    /// worked out once for all clients, so that a change costs those little whom it doesn't concern.
    fn is_up_to_date(&self, current: &TypeSet) -> bool {
        let Some(seen) = &self.seen else { return false };
        seen.same(current) || !self.is_concerned(&current.since(seen))
    }

    fn is_concerned(&self, delta: &Delta) -> bool {
        delta.touched().any(|r| {
            let is_here = self.node_name.is_some() && self.node_name.as_deref() == r.node.as_deref();
            let is_asked = |name: &str| self.names.contains(name) || self.held.contains_key(name);
            is_here
                || is_asked(&r.name)
                || r.aliases.iter().any(|a| is_asked(a))
                || r.follows.iter().any(|f| is_asked(f))
        })
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
        let is_known = |name: &String| current.get(name).is_some() || !current.by_alias(name).is_empty();
        let unknown: Vec<_> = self.names.iter().filter(|name| !is_known(name)).cloned().collect();
        for name in unknown.iter().skip(MAX_UNKNOWN_NAMES / 2) {
            self.names.remove(name);
        }
    }
}

/// On-demand clients get aliases; the others have no use for them, and istiod sends them none.
fn own(upserts: Vec<(Arc<str>, Arc<Resource>)>, removed: Vec<String>) -> Own {
    Own { upserts, removed, with_aliases: true }
}

/// What one question brings: the resource, those that follow it, and, if it was asked for by an alias, the same
/// resource under that alias too. The last is for clients that wait for the very name that they asked for and don't
/// look at aliases, as Istio's ztunnel does.
fn resolve(name: &str, current: &TypeSet) -> BTreeMap<Arc<str>, Arc<Resource>> {
    let mut found = BTreeMap::new();
    let mut direct: Vec<&Arc<Resource>> = current.get(name).into_iter().collect();
    if direct.is_empty() {
        direct = current.by_alias(name);
        if let Some(first) = direct.first() {
            found.insert(name.into(), (*first).clone());
        }
    }
    for resource in direct {
        found.insert(resource.name.clone(), resource.clone());
        found.extend(current.followers(&resource.name).into_iter().map(|r| (r.name.clone(), r.clone())));
    }
    found
}
