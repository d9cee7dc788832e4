//! All objects and the resources made from them.
//!
//! ```text
//!   Event ──apply──▶ objects (by namespace, by node) ──▶ what may have changed (dirty)
//!                                                              │ flush: translate each once
//!   Changes ◀── only what differs from the published bytes ◀───┘
//! ```
//!
//! Invariants:
//! * After `flush` the published resources are those that a new index would make of the same objects, whatever the
//!   order of events.
//! * A change of one pod costs its own translation, not the mesh's: everything wider is found by an index.
//! * Equal bytes are not published twice.

mod dirty;
mod make;
mod objects;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aquifer_objects::crds::PolicyCondition;
use aquifer_objects::{Event, Kind, ObjectKey};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;

use self::objects::{Name, Objects};
use crate::translate::Mesh;

/// The kinds that the index reads.
pub const KINDS: &[Kind] = &[
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::NetworkPolicy,
];

/// The single owner of all objects. Synchronous.
#[derive(Debug)]
pub struct Index {
    mesh: Mesh,
    objects: Objects,
    dirty: BTreeSet<Item>,
    addresses: BTreeMap<Arc<str>, Published>,
    authorizations: BTreeMap<Arc<str>, Published>,
    /// What each item has published: a slice makes several resources.
    made: HashMap<Item, Vec<Arc<str>>>,
    statuses: BTreeMap<ObjectKey, Vec<PolicyCondition>>,
}

/// A resource as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The encoded message (Address or Authorization).
    pub body: Bytes,
    /// Other names under which it may be asked for: `<network>/<ip>`.
    pub aliases: Vec<String>,
    /// A hash of the body, as istiod makes it.
    pub version: String,
}

/// Whether anything waits for a [`Index::flush`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use]
pub enum Dirty {
    /// Nothing that is published depends on the event.
    No,
    /// Something may.
    Yes,
}

/// What a flush changed. Push added policies before the addresses that name them, and removals after.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Changes {
    /// Workloads and services.
    pub addresses: Vec<Change>,
    /// Policies.
    pub authorizations: Vec<Change>,
    /// Conditions of AuthorizationPolicies; none for one that is gone.
    pub statuses: Vec<(ObjectKey, Vec<PolicyCondition>)>,
}

/// One changed resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// New, or other bytes than before.
    Upsert(Arc<str>, Published),
    /// Gone.
    Remove(Arc<str>),
}

impl Changes {
    /// Whether nothing changed.
    pub fn is_empty(&self) -> bool {
        self.addresses.is_empty() && self.authorizations.is_empty() && self.statuses.is_empty()
    }
}

/// What is translated in one step.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Item {
    StaticStrict,
    Policy(Name),
    PeerAuthentication(Name),
    Service(Name),
    Pod(Name),
    Slice(Name),
}

impl Index {
    /// An empty index. The mesh's network is overruled by the root namespace's label.
    pub fn new(mesh: Mesh) -> Self {
        Self {
            mesh,
            objects: Objects::default(),
            dirty: BTreeSet::new(),
            addresses: BTreeMap::new(),
            authorizations: BTreeMap::new(),
            made: HashMap::new(),
            statuses: BTreeMap::new(),
        }
    }

    /// What holds for the whole mesh.
    pub fn mesh(&self) -> &Mesh {
        &self.mesh
    }

    /// Takes an event in. Nothing is translated before [`Index::flush`].
    pub fn apply(&mut self, event: Event) -> Dirty {
        match event {
            Event::Applied(object) => self.applied(object),
            Event::Deleted(key) => self.deleted(&key),
            Event::Synced => {}
        }
        if self.dirty.is_empty() { Dirty::No } else { Dirty::Yes }
    }

    /// Translates what may have changed and publishes what did.
    pub fn flush(&mut self) -> Changes {
        let mut changes = Changes::default();
        for item in std::mem::take(&mut self.dirty) {
            self.translate(item, &mut changes);
        }
        changes
    }

    /// The published workloads and services by resource name.
    pub fn addresses(&self) -> &BTreeMap<Arc<str>, Published> {
        &self.addresses
    }

    /// The published policies by resource name.
    pub fn authorizations(&self) -> &BTreeMap<Arc<str>, Published> {
        &self.authorizations
    }

    /// The conditions of each AuthorizationPolicy.
    pub fn statuses(&self) -> &BTreeMap<ObjectKey, Vec<PolicyCondition>> {
        &self.statuses
    }

    /// A pod by name.
    pub fn pod(&self, namespace: &str, name: &str) -> Option<&Arc<Pod>> {
        self.objects.pods(namespace).get(name)
    }

    /// The pods that are bound to a node.
    pub fn pods_on_node<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Arc<Pod>> + use<'a> {
        self.objects.pods_on(node).filter_map(|name| self.objects.pod(name))
    }
}
