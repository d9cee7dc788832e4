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

mod objects;

#[cfg(test)]
mod golden;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aquifer_objects::crds::{AuthorizationPolicy, PeerAuthentication, PolicyCondition};
use aquifer_objects::{Event, Kind, Object, ObjectKey};
use bytes::Bytes;
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use prost::Message;
use xxhash_rust::xxh64::xxh64;

use self::objects::{Name, Objects};
use crate::translate::{self, Mesh, peer_authentication, policy, selects, service, status, workload};

/// The kinds that the index reads.
pub const KINDS: &[Kind] = &[
    Kind::Namespace,
    Kind::Node,
    Kind::Pod,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::AuthorizationPolicy,
    Kind::PeerAuthentication,
];

/// The label of the root namespace that names the network of all pods.
const NETWORK_LABEL: &str = "topology.istio.io/network";

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

    fn applied(&mut self, object: Object) {
        match object {
            Object::Namespace(namespace) => {
                let name: Arc<str> = namespace.metadata.name.as_deref().unwrap_or_default().into();
                self.namespace_changed(&name, Some(namespace));
            }
            Object::Node(node) => {
                let name: Arc<str> = node.metadata.name.as_deref().unwrap_or_default().into();
                let old = self.objects.nodes.insert(name.clone(), node.clone());
                // The kubelet reports all the time; only labels count.
                if old.is_none_or(|old| old.metadata.labels != node.metadata.labels) {
                    self.node_changed(&name);
                }
            }
            Object::Pod(pod) => {
                let name = Name::of(&pod.metadata);
                self.objects.insert_pod(&name, pod);
                self.dirty.insert(Item::Pod(name));
            }
            Object::Service(service) => {
                let name = Name::of(&service.metadata);
                let old = self.objects.namespace_mut(&name.namespace).services.insert(name.name.clone(), service.clone());
                self.service_changed(&name, [old, Some(service)]);
            }
            Object::EndpointSlice(slice) => {
                let name = Name::of(&slice.metadata);
                self.objects.insert_slice(&name, slice);
                self.dirty.insert(Item::Slice(name));
            }
            Object::AuthorizationPolicy(policy) => {
                let name = Name::of(&policy.metadata);
                let old = self.objects.namespace_mut(&name.namespace).policies.insert(name.name.clone(), policy.clone());
                self.policy_changed(&name, [old, Some(policy)]);
            }
            Object::PeerAuthentication(policy) => {
                let name = Name::of(&policy.metadata);
                let old = self.objects.insert_peer_authentication(&name, policy.clone());
                self.peer_authentication_changed(&name, [old, Some(policy)]);
            }
            Object::ServiceAccount(_) | Object::Deployment(_) => {}
        }
    }

    fn deleted(&mut self, key: &ObjectKey) {
        let name = Name { namespace: key.namespace.clone(), name: key.name.clone() };
        match key.kind {
            Kind::Namespace => self.namespace_changed(&key.name, None),
            Kind::Node => {
                self.objects.nodes.remove(&key.name);
                self.node_changed(&key.name);
            }
            Kind::Pod => {
                self.objects.remove_pod(&name);
                self.dirty.insert(Item::Pod(name));
            }
            Kind::Service => {
                let old = self.objects.namespace_mut(&name.namespace).services.remove(&name.name);
                self.service_changed(&name, [old, None]);
            }
            Kind::EndpointSlice => {
                self.objects.remove_slice(&name);
                self.dirty.insert(Item::Slice(name));
            }
            Kind::AuthorizationPolicy => {
                let old = self.objects.namespace_mut(&name.namespace).policies.remove(&name.name);
                self.policy_changed(&name, [old, None]);
            }
            Kind::PeerAuthentication => {
                let old = self.objects.remove_peer_authentication(&name);
                self.peer_authentication_changed(&name, [old, None]);
            }
            Kind::ServiceAccount | Kind::Deployment => {}
        }
        self.objects.tidy(&key.namespace);
    }

    fn namespace_changed(&mut self, name: &Arc<str>, namespace: Option<Arc<Namespace>>) {
        let network = namespace.as_ref().and_then(|namespace| namespace.metadata.labels.as_ref()?.get(NETWORK_LABEL).cloned());
        let entry = self.objects.namespace_mut(name);
        entry.object = namespace;
        // Its annotation decides on the traffic distribution of its services.
        let services: Vec<Item> = entry.services.keys().map(|service| Item::Service(Name::new(name, service))).collect();
        self.dirty.extend(services);
        self.objects.tidy(name);
        if **name == *self.mesh.root_namespace && network.clone().unwrap_or_default() != self.mesh.network {
            self.mesh.network = network.unwrap_or_default();
            self.everything_changed();
        }
    }

    fn everything_changed(&mut self) {
        for (namespace, entry) in self.objects.namespaces() {
            self.dirty.extend(entry.pods.keys().map(|name| Item::Pod(Name::new(namespace, name))));
            self.dirty.extend(entry.services.keys().map(|name| Item::Service(Name::new(namespace, name))));
            self.dirty.extend(entry.slices.keys().map(|name| Item::Slice(Name::new(namespace, name))));
        }
    }

    fn node_changed(&mut self, node: &str) {
        self.dirty.extend(self.objects.pods_on(node).cloned().map(Item::Pod));
    }

    fn service_changed(&mut self, name: &Name, versions: [Option<Arc<Service>>; 2]) {
        self.dirty.insert(Item::Service(name.clone()));
        for service in versions.iter().flatten() {
            let behind = self.objects.pods(&name.namespace).iter().filter(|(_, pod)| workload::service_selects(service, pod));
            self.dirty.extend(behind.map(|(pod, _)| Item::Pod(Name::new(&name.namespace, pod))));
        }
        self.dirty.extend(self.objects.slices_of(name).map(|slice| Item::Slice(Name::new(&name.namespace, slice))));
        let policies = self.objects.policies(&name.namespace).iter().filter(|(_, policy)| policy::has_targets(policy));
        self.dirty.extend(policies.map(|(policy, _)| Item::Policy(Name::new(&name.namespace, policy))));
    }

    fn policy_changed(&mut self, name: &Name, versions: [Option<Arc<AuthorizationPolicy>>; 2]) {
        self.dirty.insert(Item::Policy(name.clone()));
        for labels in versions.iter().flatten().filter_map(|policy| policy::selector(policy)) {
            let reach = self.reach(&name.namespace);
            let selected = reach.filter(|(_, pod)| selects(labels, pod.metadata.labels.as_ref()));
            let pods: Vec<Item> = selected.map(|(name, _)| Item::Pod(name)).collect();
            self.dirty.extend(pods);
        }
    }

    fn peer_authentication_changed(&mut self, name: &Name, versions: [Option<Arc<PeerAuthentication>>; 2]) {
        self.dirty.insert(Item::StaticStrict);
        self.dirty.insert(Item::PeerAuthentication(name.clone()));
        for policy in versions.iter().flatten() {
            let labels = peer_authentication::selector(policy);
            let selected = self.reach(&name.namespace).filter(|(_, pod)| labels.is_none_or(|labels| selects(labels, pod.metadata.labels.as_ref())));
            let pods: Vec<Item> = selected.map(|(name, _)| Item::Pod(name)).collect();
            self.dirty.extend(pods);
            if labels.is_none() {
                // What others inherit changed.
                let below = self.objects.namespaces().filter(|(namespace, _)| self.is_root(&name.namespace) || **namespace == name.namespace);
                let heirs: Vec<Item> = below
                    .flat_map(|(namespace, entry)| {
                        entry.peer_authentications.keys().map(|policy| Item::PeerAuthentication(Name::new(namespace, policy)))
                    })
                    .collect();
                self.dirty.extend(heirs);
            }
        }
    }

    /// The pods that a policy of a namespace may be for: its own, or all for the root namespace.
    fn reach<'a>(&'a self, namespace: &'a Arc<str>) -> impl Iterator<Item = (Name, &'a Arc<Pod>)> {
        let all = self.is_root(namespace);
        let namespaces = self.objects.namespaces().filter(move |(name, _)| all || *name == namespace);
        namespaces.flat_map(|(namespace, entry)| entry.pods.iter().map(|(pod, object)| (Name::new(namespace, pod), object)))
    }

    fn is_root(&self, namespace: &str) -> bool {
        namespace == self.mesh.root_namespace
    }

    fn translate(&mut self, item: Item, changes: &mut Changes) {
        match &item {
            Item::StaticStrict => {
                let sent = self.objects.has_peer_authentications().then(|| peer_authentication::static_strict(&self.mesh));
                self.publish_policy(item, sent, changes);
            }
            Item::Policy(name) => {
                let object = self.objects.policies(&name.namespace).get(&name.name).cloned();
                let key = ObjectKey::new(Kind::AuthorizationPolicy, &name.namespace, &name.name);
                let conditions = object.as_ref().map(|policy| self.conditions(policy));
                let sent = object.and_then(|policy| policy::translate(&policy, &self.mesh).authorization());
                if self.statuses.get(&key) != conditions.as_ref() {
                    match &conditions {
                        Some(conditions) => self.statuses.insert(key.clone(), conditions.clone()),
                        None => self.statuses.remove(&key),
                    };
                    changes.statuses.push((key, conditions.unwrap_or_default()));
                }
                self.publish_policy(item, sent, changes);
            }
            Item::PeerAuthentication(name) => {
                let object = self.objects.peer_authentications(&name.namespace).get(&name.name);
                let sent = object.and_then(|policy| peer_authentication::converted(policy, self.relevant(&name.namespace), &self.mesh));
                self.publish_policy(item, sent, changes);
            }
            Item::Service(name) => {
                let object = self.objects.services(&name.namespace).get(&name.name);
                let resource = object.and_then(|object| service::service(object, self.objects.namespace(&name.namespace), &self.mesh));
                let sent = resource.map(|resource| {
                    let name = self.mesh.service_resource(&name.namespace, &name.name);
                    let aliases = service::aliases(&resource);
                    let address = aquifer_proto::workload::Address {
                        r#type: Some(aquifer_proto::workload::address::Type::Service(resource)),
                    };
                    (name, published(&address, aliases))
                });
                publish(&mut self.addresses, &mut self.made, item, sent.into_iter().collect(), &mut changes.addresses);
            }
            Item::Pod(name) => {
                let sent = self.objects.pod(name).and_then(|pod| self.pod_workload(name, pod)).map(workload_resource);
                publish(&mut self.addresses, &mut self.made, item, sent.into_iter().collect(), &mut changes.addresses);
            }
            Item::Slice(name) => {
                let slice = self.objects.slices(&name.namespace).get(&name.name);
                let service = slice
                    .and_then(|slice| self.objects.services(&name.namespace).get(workload::slice_service(slice)?));
                let sent = match (slice, service) {
                    (Some(slice), Some(service)) => workload::endpoint_slice(slice, service, &self.mesh),
                    _ => Vec::new(),
                };
                let sent = sent.into_iter().map(workload_resource).collect();
                publish(&mut self.addresses, &mut self.made, item, sent, &mut changes.addresses);
            }
        }
    }

    fn pod_workload(&self, name: &Name, pod: &Pod) -> Option<aquifer_proto::workload::Workload> {
        let node = pod.spec.as_ref().and_then(|spec| self.objects.nodes.get(spec.node_name.as_deref()?));
        let services = self.objects.services(&name.namespace).values().map(|service| &**service);
        workload::pod(pod, node.map(|node| &**node), services, self.policies_of(name, pod), &self.mesh)
    }

    /// The names of the policies that a pod must list: those that select it, sorted, then mutual TLS.
    fn policies_of(&self, name: &Name, pod: &Pod) -> Vec<String> {
        let labels = pod.metadata.labels.as_ref();
        let mut names = Vec::new();
        let root: &str = &self.mesh.root_namespace;
        let mut namespaces = vec![&*name.namespace];
        if !self.is_root(&name.namespace) {
            namespaces.push(root);
        }
        for namespace in namespaces {
            for (policy_name, policy) in self.objects.policies(namespace) {
                let selected = policy::selector(policy).is_some_and(|selector| selects(selector, labels));
                let resource = format!("{namespace}/{policy_name}");
                // Only what is sent may be named: a name that never comes denies.
                if selected && policy::translate(policy, &self.mesh).authorization().is_some() {
                    names.push(resource);
                }
            }
        }
        names.sort_unstable();
        names.extend(peer_authentication::required(&name.namespace, labels, self.relevant(&name.namespace), &self.mesh));
        names
    }

    /// The PeerAuthentications that may count in a namespace: its own and the root namespace's.
    fn relevant<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a PeerAuthentication> + use<'a> {
        let own = self.objects.peer_authentications(namespace).values();
        let root = (!self.is_root(namespace)).then(|| self.objects.peer_authentications(&self.mesh.root_namespace).values());
        own.chain(root.into_iter().flatten()).map(|policy| &**policy)
    }

    fn conditions(&self, policy: &AuthorizationPolicy) -> Vec<PolicyCondition> {
        let exists = |kind: &str, namespace: &str, name: &str| kind == "Service" && self.objects.services(namespace).contains_key(name);
        status::conditions(policy, &self.mesh, &exists)
    }

    fn publish_policy(&mut self, item: Item, sent: Option<aquifer_proto::security::Authorization>, changes: &mut Changes) {
        let sent = sent.map(|policy| (format!("{}/{}", policy.namespace, policy.name), published(&policy, Vec::new())));
        publish(&mut self.authorizations, &mut self.made, item, sent.into_iter().collect(), &mut changes.authorizations);
    }
}

fn workload_resource(workload: aquifer_proto::workload::Workload) -> (String, Published) {
    let aliases = workload::aliases(&workload);
    let name = workload.uid.clone();
    (name, published(&translate::workload::address(workload), aliases))
}

fn published(message: &impl Message, aliases: Vec<String>) -> Published {
    let body = Bytes::from(message.encode_to_vec());
    let version = format!("{:x}", xxh64(&body, 0));
    Published { body, aliases, version }
}

/// Puts what an item makes now in the place of what it made before.
fn publish(
    table: &mut BTreeMap<Arc<str>, Published>,
    made: &mut HashMap<Item, Vec<Arc<str>>>,
    item: Item,
    resources: Vec<(String, Published)>,
    changes: &mut Vec<Change>,
) {
    let before = made.remove(&item).unwrap_or_default();
    let mut now = Vec::with_capacity(resources.len());
    for (name, resource) in resources {
        let name: Arc<str> = name.into();
        if table.get(&name) != Some(&resource) {
            table.insert(name.clone(), resource.clone());
            changes.push(Change::Upsert(name.clone(), resource));
        }
        now.push(name);
    }
    for name in before.into_iter().filter(|name| !now.contains(name)) {
        table.remove(&name);
        changes.push(Change::Remove(name));
    }
    if !now.is_empty() {
        made.insert(item, now);
    }
}
