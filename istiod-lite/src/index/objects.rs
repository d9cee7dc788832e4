//! The objects, where they are found by what depends on them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;

use aquifer_objects::crds::{AuthorizationPolicy, PeerAuthentication};
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::translate::workload::slice_service;

/// The name of a namespaced object of a known kind.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Name {
    pub(super) namespace: Arc<str>,
    pub(super) name: Arc<str>,
}

impl Name {
    pub(super) fn new(namespace: &Arc<str>, name: &Arc<str>) -> Self {
        Self { namespace: namespace.clone(), name: name.clone() }
    }

    pub(super) fn of(meta: &ObjectMeta) -> Self {
        Self {
            namespace: meta.namespace.as_deref().unwrap_or_default().into(),
            name: meta.name.as_deref().unwrap_or_default().into(),
        }
    }
}

/// Objects of one kind in one namespace, by name.
type ByName<T> = BTreeMap<Arc<str>, Arc<T>>;

/// What lies in one namespace.
#[derive(Debug, Default)]
pub(super) struct InNamespace {
    pub(super) object: Option<Arc<Namespace>>,
    pub(super) pods: ByName<Pod>,
    pub(super) services: ByName<Service>,
    pub(super) slices: ByName<EndpointSlice>,
    /// The slices of each service.
    slices_by_service: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    pub(super) policies: ByName<AuthorizationPolicy>,
    pub(super) peer_authentications: ByName<PeerAuthentication>,
    pub(super) network_policies: ByName<NetworkPolicy>,
}

impl InNamespace {
    fn is_empty(&self) -> bool {
        self.object.is_none()
            && self.pods.is_empty()
            && self.services.is_empty()
            && self.slices.is_empty()
            && self.policies.is_empty()
            && self.peer_authentications.is_empty()
            && self.network_policies.is_empty()
    }
}

/// All objects.
#[derive(Debug, Default)]
pub(super) struct Objects {
    namespaces: BTreeMap<Arc<str>, InNamespace>,
    pub(super) nodes: HashMap<Arc<str>, Arc<Node>>,
    pods_by_node: HashMap<Arc<str>, BTreeSet<Name>>,
    peer_authentication_count: usize,
}

/// What a namespace holds that nobody has named yet.
static NOTHING: InNamespaceRef = InNamespaceRef {
    pods: &BTreeMap::new(),
    services: &BTreeMap::new(),
    slices: &BTreeMap::new(),
    policies: &BTreeMap::new(),
    peer_authentications: &BTreeMap::new(),
    network_policies: &BTreeMap::new(),
};

struct InNamespaceRef {
    pods: &'static ByName<Pod>,
    services: &'static ByName<Service>,
    slices: &'static ByName<EndpointSlice>,
    policies: &'static ByName<AuthorizationPolicy>,
    peer_authentications: &'static ByName<PeerAuthentication>,
    network_policies: &'static ByName<NetworkPolicy>,
}

impl Objects {
    pub(super) fn namespaces(&self) -> impl Iterator<Item = (&Arc<str>, &InNamespace)> {
        self.namespaces.iter()
    }

    pub(super) fn namespace(&self, name: &str) -> Option<&Namespace> {
        self.namespaces.get(name)?.object.as_deref()
    }

    pub(super) fn namespace_mut(&mut self, name: &Arc<str>) -> &mut InNamespace {
        self.namespaces.entry(name.clone()).or_default()
    }

    /// Forgets a namespace that holds nothing any more.
    pub(super) fn tidy(&mut self, name: &str) {
        if self.namespaces.get(name).is_some_and(InNamespace::is_empty) {
            self.namespaces.remove(name);
        }
    }

    pub(super) fn pods(&self, namespace: &str) -> &ByName<Pod> {
        self.namespaces.get(namespace).map_or(NOTHING.pods, |entry| &entry.pods)
    }

    pub(super) fn services(&self, namespace: &str) -> &ByName<Service> {
        self.namespaces.get(namespace).map_or(NOTHING.services, |entry| &entry.services)
    }

    pub(super) fn slices(&self, namespace: &str) -> &ByName<EndpointSlice> {
        self.namespaces.get(namespace).map_or(NOTHING.slices, |entry| &entry.slices)
    }

    pub(super) fn policies(&self, namespace: &str) -> &ByName<AuthorizationPolicy> {
        self.namespaces.get(namespace).map_or(NOTHING.policies, |entry| &entry.policies)
    }

    pub(super) fn peer_authentications(&self, namespace: &str) -> &ByName<PeerAuthentication> {
        self.namespaces.get(namespace).map_or(NOTHING.peer_authentications, |entry| &entry.peer_authentications)
    }

    pub(super) fn network_policies(&self, namespace: &str) -> &ByName<NetworkPolicy> {
        self.namespaces.get(namespace).map_or(NOTHING.network_policies, |entry| &entry.network_policies)
    }

    pub(super) fn has_peer_authentications(&self) -> bool {
        self.peer_authentication_count > 0
    }

    pub(super) fn pod(&self, name: &Name) -> Option<&Arc<Pod>> {
        self.pods(&name.namespace).get(&name.name)
    }

    pub(super) fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Name> + use<'a> {
        self.pods_by_node.get(node).into_iter().flatten()
    }

    pub(super) fn slices_of<'a>(&'a self, service: &Name) -> impl Iterator<Item = &'a Arc<str>> + use<'a> {
        let of_namespace = self.namespaces.get(&service.namespace);
        of_namespace.and_then(|entry| entry.slices_by_service.get(&service.name)).into_iter().flatten()
    }

    pub(super) fn insert_pod(&mut self, name: &Name, pod: Arc<Pod>) {
        let node = node_of(&pod).map(Arc::from);
        let old = self.namespace_mut(&name.namespace).pods.insert(name.name.clone(), pod);
        self.leave_node(name, old.as_deref());
        if let Some(node) = node {
            self.pods_by_node.entry(node).or_default().insert(name.clone());
        }
    }

    pub(super) fn remove_pod(&mut self, name: &Name) {
        let old = self.namespace_mut(&name.namespace).pods.remove(&name.name);
        self.leave_node(name, old.as_deref());
    }

    fn leave_node(&mut self, name: &Name, pod: Option<&Pod>) {
        let Some(node) = pod.and_then(node_of) else { return };
        if let Some(pods) = self.pods_by_node.get_mut(node) {
            pods.remove(name);
            if pods.is_empty() {
                self.pods_by_node.remove(node);
            }
        }
    }

    pub(super) fn insert_slice(&mut self, name: &Name, slice: Arc<EndpointSlice>) {
        self.remove_slice(name);
        let entry = self.namespace_mut(&name.namespace);
        if let Some(service) = slice_service(&slice) {
            entry.slices_by_service.entry(service.into()).or_default().insert(name.name.clone());
        }
        entry.slices.insert(name.name.clone(), slice);
    }

    pub(super) fn remove_slice(&mut self, name: &Name) {
        let entry = self.namespace_mut(&name.namespace);
        let Some(old) = entry.slices.remove(&name.name) else { return };
        let Some(service) = slice_service(&old) else { return };
        if let Some(slices) = entry.slices_by_service.get_mut(service) {
            slices.remove(&name.name);
            if slices.is_empty() {
                entry.slices_by_service.remove(service);
            }
        }
    }

    pub(super) fn insert_peer_authentication(
        &mut self,
        name: &Name,
        policy: Arc<PeerAuthentication>,
    ) -> Option<Arc<PeerAuthentication>> {
        let old = self.namespace_mut(&name.namespace).peer_authentications.insert(name.name.clone(), policy);
        self.peer_authentication_count += usize::from(old.is_none());
        old
    }

    pub(super) fn remove_peer_authentication(&mut self, name: &Name) -> Option<Arc<PeerAuthentication>> {
        let old = self.namespace_mut(&name.namespace).peer_authentications.remove(&name.name);
        self.peer_authentication_count -= usize::from(old.is_some());
        old
    }
}

fn node_of(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|node| !node.is_empty())
}
