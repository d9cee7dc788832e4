//! What stands, what is wanted, and when to write it. Pure; time passed in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_objects::{Kind, Object, ObjectKey};
use tokio::time::Instant;

use super::shape;
use super::{Condition, Wanted, Write};
use crate::revision::Revision;

/// An own write takes so long at most to come back to us as an event. What is written again before is a fight.
const ECHO: Duration = Duration::from_secs(2);
/// Nobody is fought more often than this.
const LONGEST: Duration = Duration::from_secs(300);
/// What stood so long is won.
const SETTLED: Duration = Duration::from_secs(600);
/// So many times the same is written before it is called a fight.
const CONTESTED: u32 = 3;

/// All statuses that we have to do with.
#[derive(Debug, Default)]
pub(super) struct Board {
    entries: BTreeMap<ObjectKey, Entry>,
    /// To be looked at now.
    due: BTreeSet<ObjectKey>,
    /// To be looked at later.
    timers: BTreeSet<(Instant, ObjectKey)>,
    /// Whether the store merges conditions by type.
    by_type: bool,
    /// Whose objects are ours to speak of.
    revision: Revision,
    /// The revision that a namespace's label names.
    namespaces: BTreeMap<Arc<str>, String>,
}

#[derive(Debug, Default)]
struct Entry {
    object: Option<Object>,
    wanted: Option<Wanted>,
    addresses: Option<Vec<(String, String)>>,
    attempt: Option<Attempt>,
}

/// The last thing that we wrote.
#[derive(Debug)]
struct Attempt {
    content: u64,
    at: Instant,
    /// How often the same was written in a row.
    times: u32,
    /// Whether the store refused it: then nobody fights us.
    failed: bool,
}

/// One object's turn.
#[derive(Debug, PartialEq)]
pub(super) struct Turn {
    /// The object.
    pub(super) key: ObjectKey,
    /// What is to be written.
    pub(super) writes: Vec<Write>,
    /// Somebody else writes the same fields: how long until we try again. Given once per fight.
    pub(super) contested: Option<Duration>,
}

impl Board {
    /// An empty board.
    pub(super) fn new(by_type: bool, revision: Revision) -> Self {
        Self { by_type, revision, ..Self::default() }
    }

    /// The namespace is there, with or without a revision. Its objects are looked at again if that is another now.
    pub(super) fn namespace(&mut self, name: &str, revision: Option<&str>) {
        let before = match revision {
            Some(revision) => self.namespaces.insert(name.into(), revision.to_owned()),
            None => self.namespaces.remove(name),
        };
        if before.as_deref() != revision {
            self.due.extend(self.entries.keys().filter(|key| *key.namespace == *name).cloned());
        }
    }

    /// The object as it stands.
    pub(super) fn observed(&mut self, object: &Object) {
        let key = object.key();
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.object.as_ref() == Some(object) {
            return;
        }
        entry.object = Some(object.clone());
        if entry.wanted.is_some() || entry.addresses.is_some() {
            self.due.insert(key);
        }
    }

    /// The object is gone.
    pub(super) fn forget(&mut self, key: &ObjectKey) {
        self.entries.remove(key);
        self.due.remove(key);
    }

    /// Conditions that shall stand in the object; those of a route in each of its parents that is ours.
    pub(super) fn want_conditions(&mut self, key: &ObjectKey, conditions: Vec<Condition>) {
        self.want(key, Wanted::Conditions(conditions));
    }

    /// What shall stand in the object.
    pub(super) fn want(&mut self, key: &ObjectKey, wanted: Wanted) {
        let entry = self.entries.entry(key.clone()).or_default();
        if entry.wanted.as_ref() == Some(&wanted) {
            return;
        }
        let new_parent = key.kind == Kind::Gateway && entry.wanted.is_none();
        entry.wanted = Some(wanted);
        self.due.insert(key.clone());
        if new_parent {
            // A route speaks of the Gateways that are ours, and here is another.
            let routes = self.entries.keys().filter(|key| is_route(key.kind)).cloned();
            self.due.extend(routes);
        }
    }

    /// The addresses that a ServiceEntry shall have.
    pub(super) fn want_addresses(&mut self, key: &ObjectKey, addresses: Vec<(String, String)>) {
        self.entries.entry(key.clone()).or_default().addresses = Some(addresses);
        self.due.insert(key.clone());
    }

    /// Nothing of ours is to stand there any more, as far as we know it.
    pub(super) fn release(&mut self, key: &ObjectKey) {
        if let Some(entry) = self.entries.get_mut(key) {
            entry.wanted = None;
            self.due.remove(key);
        }
    }

    /// Everything is to be looked at again: the leader before may have died over it.
    pub(super) fn examine_all(&mut self) {
        for entry in self.entries.values_mut() {
            entry.attempt = None;
        }
        self.due.extend(self.entries.keys().cloned());
    }

    /// When there is something to look at.
    pub(super) fn next_due(&self, now: Instant) -> Option<Instant> {
        if self.due.is_empty() { self.timers.first().map(|(at, _)| *at) } else { Some(now) }
    }

    /// The next object that needs a write, if any. `wall` is the time to write, RFC 3339.
    pub(super) fn next(&mut self, now: Instant, wall: &str) -> Option<Turn> {
        while let Some((at, _)) = self.timers.first()
            && *at <= now
        {
            let (_, key) = self.timers.pop_first()?;
            self.due.insert(key);
        }
        while let Some(key) = self.due.pop_first() {
            if let Some(turn) = self.turn(key, now, wall) {
                return Some(turn);
            }
        }
        None
    }

    /// It could not be written; the timer that was set with the turn brings it back.
    pub(super) fn failed(&mut self, key: &ObjectKey) {
        if let Some(attempt) = self.entries.get_mut(key).and_then(|entry| entry.attempt.as_mut()) {
            attempt.failed = true;
        }
    }

    fn turn(&mut self, key: ObjectKey, now: Instant, wall: &str) -> Option<Turn> {
        let writes = self.writes(&key, wall);
        let entry = self.entries.get_mut(&key)?;
        if writes.is_empty() {
            if entry.attempt.as_ref().is_some_and(|last| now - last.at > SETTLED) {
                entry.attempt = None;
            }
            return None;
        }
        let content = shape::content(&writes);
        let (times, failed) = match &entry.attempt {
            Some(last) if last.content == content => {
                let ready = last.at + pause(last.times);
                if ready > now {
                    self.timers.insert((ready, key));
                    return None;
                }
                (last.times + 1, last.failed)
            }
            _ => (1, false),
        };
        entry.attempt = Some(Attempt { content, at: now, times, failed: false });
        // If nothing comes back, it is looked at again.
        self.timers.insert((now + pause(times), key.clone()));
        Some(Turn { key, writes, contested: (times == CONTESTED && !failed).then(|| pause(times)) })
    }

    fn writes(&self, key: &ObjectKey, wall: &str) -> Vec<Write> {
        let Some(entry) = self.entries.get(key) else { return Vec::new() };
        let Some(object) = &entry.object else { return Vec::new() };
        let of_namespace = self.namespaces.get(&key.namespace).map(String::as_str);
        if !self.revision.owns(object.meta().labels.as_ref(), of_namespace) {
            return Vec::new();
        }
        let mut writes = Vec::new();
        if let Some(wanted) = &entry.wanted {
            let of_route;
            let wanted = match wanted {
                Wanted::Conditions(conditions) if is_route(key.kind) => {
                    of_route = Wanted::Parents(self.parents(object, conditions));
                    &of_route
                }
                other => other,
            };
            writes.extend(shape::writes(object, wanted, self.by_type, wall));
        }
        if let Some(addresses) = &entry.addresses {
            writes.extend(shape::addresses(object, addresses));
        }
        writes
    }

    /// The parents of a route of which we have something to say: services, and the Gateways that are ours.
    fn parents(&self, route: &Object, conditions: &[Condition]) -> Vec<(serde_json::Value, Vec<Condition>)> {
        let ours = |reference: &serde_json::Value| match shape::gateway_of(reference, route.namespace()) {
            None => true,
            Some((namespace, name)) => {
                let key = ObjectKey::new(Kind::Gateway, &namespace, &name);
                self.entries.get(&key).is_some_and(|entry| entry.wanted.is_some())
            }
        };
        shape::parent_refs(route).into_iter().filter(ours).map(|one| (one, conditions.to_vec())).collect()
    }
}

fn is_route(kind: Kind) -> bool {
    matches!(kind, Kind::HTTPRoute | Kind::GRPCRoute | Kind::TCPRoute | Kind::TLSRoute)
}

fn pause(times: u32) -> Duration {
    (ECHO * 2u32.saturating_pow(times.saturating_sub(1).min(16))).min(LONGEST)
}
