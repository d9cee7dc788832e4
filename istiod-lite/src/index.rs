//! All objects and the resources made from them.
//!
//! ```text
//!   Event ──take──▶ facts (by namespace, by node) ──dirty──▶ what may have changed
//!                                                                  │ flush: translate each once
//!   Changes ◀── only what differs from the published bytes ◀───────┘
//! ```
//!
//! Invariants:
//! * After `flush` the published resources and conditions are those that a new index would make of the same objects,
//!   whatever the order of events.
//! * A change of one pod costs its own translation, not the mesh's: everything wider is found by an index.
//! * Equal bytes are not published twice, and an event that changes none of an object's facts does nothing.
//! * Of an object only its facts are kept, and of strings and label sets one copy.

mod addresses;
mod config;
mod dirty;
pub mod findings;
mod found;
mod make;
mod objects;
mod restricted;
mod selectors;
mod table;
mod take;

#[cfg(test)]
mod cost;
#[cfg(test)]
mod golden;
#[cfg(test)]
mod property;
#[cfg(test)]
mod tables;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use aquifer_objects::crds::{PolicyCondition, ServiceAddress};
use aquifer_objects::{Event, Kind, ObjectKey, Selection};
use bytes::Bytes;

pub use self::config::MeshChange;
pub use self::findings::{Finding, Level};

use self::addresses::Addresses;
use self::objects::Objects;
use crate::translate::labels::Interner;
use crate::translate::waypoint::Key;
use crate::translate::{Labels, Mesh};

/// The kinds that the index reads.
pub const KINDS: &[Kind] = &[
    Kind::Namespace,
    Kind::Node,
    Kind::ConfigMap,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
    Kind::NetworkPolicy,
    Kind::ServiceEntry,
    Kind::WorkloadEntry,
    Kind::WorkloadGroup,
    Kind::GatewayClass,
    Kind::Gateway,
    Kind::RequestAuthentication,
    Kind::VirtualService,
    Kind::DestinationRule,
    Kind::Telemetry,
    Kind::HTTPRoute,
    Kind::GRPCRoute,
    Kind::TCPRoute,
    Kind::TLSRoute,
    Kind::IstioGateway,
    Kind::Sidecar,
    Kind::EnvoyFilter,
    Kind::ProxyConfig,
    Kind::WasmPlugin,
    Kind::TrafficExtension,
];

/// What is to be watched for it: its kinds, and of ConfigMaps the one that holds the MeshConfig.
pub fn watched(system_namespace: &str, config_map: &str) -> Vec<Selection> {
    let narrowed = |kind: &Kind| match kind {
        Kind::ConfigMap => Selection::from(*kind).in_namespace(system_namespace).named(config_map),
        _ => Selection::from(*kind),
    };
    KINDS.iter().map(narrowed).collect()
}

/// The single owner of all objects. Synchronous.
#[derive(Debug)]
pub struct Index {
    /// As the process was told, before the MeshConfig.
    base: Mesh,
    mesh: Mesh,
    mesh_changed: bool,
    config: MeshChange,
    interner: Interner,
    objects: Objects,
    automatic: Addresses,
    dirty: BTreeSet<Item>,
    translated: u64,
    addresses: Table,
    authorizations: Table,
    /// What each item has published.
    made: HashMap<Item, Made>,
    statuses: BTreeMap<ObjectKey, Vec<PolicyCondition>>,
    /// What was told of each NetworkPolicy.
    told: BTreeMap<Key, BTreeSet<restricted::Matter>>,
}

/// The published resources of a type: name → encoded message.
pub type Table = BTreeMap<Arc<str>, Bytes>;

/// A resource as it is published.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Published {
    /// The encoded message (Address or Authorization). Shared, not copied.
    pub body: Bytes,
    /// What it is.
    pub kind: ResourceKind,
    /// Other names under which it may be asked for: `<network>/<ip>`.
    pub aliases: Vec<String>,
    /// The services that it belongs to, whose askers get it as well.
    pub follows: Vec<Arc<str>>,
    /// The node whose proxy gets it unasked; empty if none does.
    pub node: Arc<str>,
}

/// What a resource is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResourceKind {
    /// A workload.
    Workload,
    /// A service.
    Service,
    /// A policy.
    Policy,
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
    /// All conditions of ours on an object, of each object where they changed; none where they are to go. Of a route
    /// they are those of each parent of ours.
    pub statuses: Vec<(ObjectKey, Vec<PolicyCondition>)>,
    /// Automatic addresses to be written into the status of ServiceEntries. They count once they stand there.
    pub allocations: Vec<Allocation>,
    /// What users should know of NetworkPolicies, and was not told before.
    pub restrictions: Vec<Finding>,
    /// What holds for the whole mesh and what came of the MeshConfig, if that changed.
    pub mesh: Option<MeshChange>,
}

/// The automatic addresses that a ServiceEntry is to have: the whole list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Allocation {
    /// The ServiceEntry.
    pub entry: ObjectKey,
    /// `status.addresses`.
    pub addresses: Vec<ServiceAddress>,
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
        *self == Self::default()
    }
}

/// What is translated in one step.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Item {
    StaticStrict,
    /// The policy that lets a waypoint's pods in.
    AllowWaypoint(Key),
    Policy(Key),
    PeerAuthentication(Key),
    Service(Key),
    ServiceEntry(Key),
    WorkloadEntry(Key),
    Pod(Key),
    Slice(Key),
    /// An object that has a status and no resources.
    Other(ObjectKey),
}

/// The resources of an item by name. Most have one.
#[derive(Debug)]
enum Made {
    One(Arc<str>),
    Many(Box<[Arc<str>]>),
}

/// What a flush has done so far.
#[derive(Debug, Default)]
struct Batch {
    changes: Changes,
    /// Services that some item has made anew: another item may have made them before.
    claimed: HashSet<Arc<str>>,
    /// What items do not make any more.
    gone_addresses: Vec<Arc<str>>,
    gone_authorizations: Vec<Arc<str>>,
}

impl Index {
    /// An empty index. The MeshConfig and the labels of the control plane's namespace overrule parts of the mesh.
    pub fn new(mesh: Mesh) -> Self {
        Self {
            base: mesh.clone(),
            mesh,
            mesh_changed: false,
            config: MeshChange::default(),
            interner: Interner::default(),
            objects: Objects::default(),
            automatic: Addresses::default(),
            dirty: BTreeSet::new(),
            translated: 0,
            addresses: Table::new(),
            authorizations: Table::new(),
            made: HashMap::new(),
            statuses: BTreeMap::new(),
            told: BTreeMap::new(),
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
        if self.dirty.is_empty() && !self.mesh_changed { Dirty::No } else { Dirty::Yes }
    }

    /// Translates what may have changed and publishes what did.
    pub fn flush(&mut self) -> Changes {
        let mut batch = Batch::default();
        for item in std::mem::take(&mut self.dirty) {
            self.translated += 1;
            self.translate(item, &mut batch);
        }
        self.settle(&mut batch);
        if std::mem::take(&mut self.mesh_changed) {
            batch.changes.mesh = Some(self.mesh_config());
        }
        batch.changes
    }

    /// The published workloads and services.
    pub fn addresses(&self) -> &Table {
        &self.addresses
    }

    /// The published policies.
    pub fn authorizations(&self) -> &Table {
        &self.authorizations
    }

    /// The conditions of each object that has any, or that is to lose them.
    pub fn statuses(&self) -> &BTreeMap<ObjectKey, Vec<PolicyCondition>> {
        &self.statuses
    }

    /// The automatic addresses that wait for being written.
    pub fn allocations(&self) -> Vec<Allocation> {
        self.automatic.proposed()
    }

    /// What users should know and no status can say.
    pub fn findings(&self) -> Vec<Finding> {
        findings::findings(self)
    }

    /// How many items have been translated since the start: what the work has cost.
    pub fn translated(&self) -> u64 {
        self.translated
    }

    fn is_root(&self, namespace: &str) -> bool {
        namespace == self.mesh.root_namespace
    }

    fn discovers(&self, namespace: &str) -> bool {
        // Without selectors there is nothing to look up.
        self.mesh.discovery.is_empty() || self.mesh.discovers(namespace, &self.objects.space(namespace).facts().labels)
    }

    fn key(&mut self, namespace: &str, name: &str) -> Key {
        (self.interner.string(namespace), self.interner.string(name))
    }

    fn selected_by<'a>(labels: Option<&'a Labels>) -> impl Fn(&crate::translate::labels::LabelSet) -> bool + use<'a> {
        move |set| labels.is_none_or(|labels| set.has(labels))
    }
}
