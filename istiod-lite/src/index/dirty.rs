//! Which resources an event may change.

use std::sync::Arc;

use aquifer_objects::crds::{AuthorizationPolicy, PeerAuthentication};
use aquifer_objects::{Kind, Object, ObjectKey};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::networking::v1::NetworkPolicy;

use super::objects::Name;
use super::{Index, Item};
use crate::translate::{network_policy, peer_authentication, policy, selects, workload};

/// The label of the root namespace that names the network of all pods.
const NETWORK_LABEL: &str = "topology.istio.io/network";

impl Index {
    /// Takes an object in.
    pub(super) fn applied(&mut self, object: Object) {
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
                let old =
                    self.objects.namespace_mut(&name.namespace).services.insert(name.name.clone(), service.clone());
                self.service_changed(&name, [old, Some(service)]);
            }
            Object::EndpointSlice(slice) => {
                let name = Name::of(&slice.metadata);
                self.objects.insert_slice(&name, slice);
                self.dirty.insert(Item::Slice(name));
            }
            Object::AuthorizationPolicy(policy) => {
                let name = Name::of(&policy.metadata);
                let old =
                    self.objects.namespace_mut(&name.namespace).policies.insert(name.name.clone(), policy.clone());
                self.policy_changed(&name, [old, Some(policy)]);
            }
            Object::PeerAuthentication(policy) => {
                let name = Name::of(&policy.metadata);
                let old = self.objects.insert_peer_authentication(&name, policy.clone());
                self.peer_authentication_changed(&name, [old, Some(policy)]);
            }
            Object::NetworkPolicy(policy) => {
                let name = Name::of(&policy.metadata);
                let entry = self.objects.namespace_mut(&name.namespace);
                let old = entry.network_policies.insert(name.name.clone(), policy.clone());
                self.network_policy_changed(&name, [old, Some(policy)]);
            }
            _ => {}
        }
    }

    /// Lets an object go.
    pub(super) fn deleted(&mut self, key: &ObjectKey) {
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
            Kind::NetworkPolicy => {
                let old = self.objects.namespace_mut(&name.namespace).network_policies.remove(&name.name);
                self.network_policy_changed(&name, [old, None]);
            }
            _ => {}
        }
        self.objects.tidy(&key.namespace);
    }

    fn namespace_changed(&mut self, name: &Arc<str>, namespace: Option<Arc<Namespace>>) {
        let network =
            namespace.as_ref().and_then(|namespace| namespace.metadata.labels.as_ref()?.get(NETWORK_LABEL).cloned());
        let entry = self.objects.namespace_mut(name);
        entry.object = namespace;
        // Its annotation decides on the traffic distribution of its services.
        let services: Vec<Item> =
            entry.services.keys().map(|service| Item::Service(Name::new(name, service))).collect();
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
            let behind =
                self.objects.pods(&name.namespace).iter().filter(|(_, pod)| workload::service_selects(service, pod));
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
            let selected = self
                .reach(&name.namespace)
                .filter(|(_, pod)| labels.is_none_or(|labels| selects(labels, pod.metadata.labels.as_ref())));
            let pods: Vec<Item> = selected.map(|(name, _)| Item::Pod(name)).collect();
            self.dirty.extend(pods);
            if labels.is_none() {
                // What others inherit changed.
                let below = self
                    .objects
                    .namespaces()
                    .filter(|(namespace, _)| self.is_root(&name.namespace) || **namespace == name.namespace);
                let heirs: Vec<Item> = below
                    .flat_map(|(namespace, entry)| {
                        entry
                            .peer_authentications
                            .keys()
                            .map(|policy| Item::PeerAuthentication(Name::new(namespace, policy)))
                    })
                    .collect();
                self.dirty.extend(heirs);
            }
        }
    }

    fn network_policy_changed(&mut self, name: &Name, versions: [Option<Arc<NetworkPolicy>>; 2]) {
        let pods = self.objects.pods(&name.namespace).iter();
        let selected = pods.filter(|(_, pod)| {
            versions.iter().flatten().any(|policy| network_policy::selects(policy, pod.metadata.labels.as_ref()))
        });
        self.dirty.extend(selected.map(|(pod, _)| Item::Pod(Name::new(&name.namespace, pod))));
    }

    /// The pods that a policy of a namespace may be for: its own, or all for the root namespace.
    fn reach<'a>(&'a self, namespace: &'a Arc<str>) -> impl Iterator<Item = (Name, &'a Arc<Pod>)> {
        let all = self.is_root(namespace);
        let namespaces = self.objects.namespaces().filter(move |(name, _)| all || *name == namespace);
        namespaces
            .flat_map(|(namespace, entry)| entry.pods.iter().map(|(pod, object)| (Name::new(namespace, pod), object)))
    }

    pub(super) fn is_root(&self, namespace: &str) -> bool {
        namespace == self.mesh.root_namespace
    }
}
