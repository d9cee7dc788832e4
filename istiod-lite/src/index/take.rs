//! Takes objects in: their facts are kept, and what depends on what changed becomes dirty.

use std::sync::Arc;

use aquifer_objects::crds::{AuthorizationPolicy, Gateway, GatewayClass, PeerAuthentication};
use aquifer_objects::{Kind, Object, ObjectKey};

use super::objects::User;
use super::{Index, Item};
use crate::translate::endpoint_slice::SliceFacts;
use crate::translate::namespace::NamespaceFacts;
use crate::translate::network_policy::NetworkPolicyFacts;
use crate::translate::pod::PodFacts;
use crate::translate::service::ServiceFacts;
use crate::translate::service_entry::ServiceEntryFacts;
use crate::translate::status::{Subject, subjects};
use crate::translate::waypoint::{GATEWAY_NAME, Key, Wish};
use crate::translate::workload::node_locality;
use crate::translate::workload_entry::WorkloadEntryFacts;
use crate::translate::{l7, mesh, policy};

impl Index {
    /// Takes an object in.
    pub(super) fn applied(&mut self, object: Object) {
        let key = self.key(object.namespace(), object.name());
        let interner = &mut self.interner;
        match &object {
            Object::Namespace(namespace) => {
                let facts = NamespaceFacts::of(namespace, interner);
                self.set_namespace(&key.1, Some(facts));
            }
            Object::Node(node) => self.set_node(&key.1, node_locality(node)),
            Object::ConfigMap(map) => {
                if self.is_mesh_config(&key) {
                    let text = map.data.as_ref().and_then(|data| data.get(mesh::CONFIG_KEY)).cloned();
                    self.set_mesh_config(text.as_deref());
                }
            }
            Object::Pod(pod) => {
                let facts = PodFacts::of(pod, interner);
                self.set_pod(key, Some(facts));
            }
            Object::Service(service) => {
                let facts = ServiceFacts::of(service, interner);
                self.set_service(&key, Some(facts));
            }
            Object::EndpointSlice(slice) => {
                let facts = SliceFacts::of(slice, interner);
                self.set_slice(&key, facts);
            }
            Object::ServiceEntry(entry) => {
                let facts = ServiceEntryFacts::of(entry, interner);
                self.set_entry(&key, Some(facts));
            }
            Object::WorkloadEntry(entry) => {
                let facts = WorkloadEntryFacts::of(entry, interner);
                self.set_workload_entry(&key, Some(facts));
            }
            Object::AuthorizationPolicy(policy) => self.set_policy(&key, Some(policy.clone())),
            Object::PeerAuthentication(policy) => self.set_peer_authentication(&key, Some(policy.clone())),
            Object::NetworkPolicy(policy) => self.set_network_policy(&key, Some(NetworkPolicyFacts::of(policy))),
            Object::Gateway(gateway) => self.set_gateway(&key, Some(gateway.clone())),
            Object::GatewayClass(class) => self.set_gateway_class(&key.1, Some(class.clone())),
            _ => {
                let facts = l7::Facts::of(&object, interner);
                self.set_other(&object.key(), facts);
            }
        }
    }

    /// Lets an object go.
    pub(super) fn deleted(&mut self, gone: &ObjectKey) {
        let key = self.key(&gone.namespace, &gone.name);
        match gone.kind {
            Kind::Namespace => self.set_namespace(&key.1, None),
            Kind::Node => self.set_node(&key.1, None),
            Kind::ConfigMap => {
                if self.is_mesh_config(&key) {
                    self.set_mesh_config(None);
                }
            }
            Kind::Pod => self.set_pod(key, None),
            Kind::Service => self.set_service(&key, None),
            Kind::EndpointSlice => self.set_slice(&key, None),
            Kind::ServiceEntry => self.set_entry(&key, None),
            Kind::WorkloadEntry => self.set_workload_entry(&key, None),
            Kind::AuthorizationPolicy => self.set_policy(&key, None),
            Kind::PeerAuthentication => self.set_peer_authentication(&key, None),
            Kind::NetworkPolicy => self.set_network_policy(&key, None),
            Kind::Gateway => self.set_gateway(&key, None),
            Kind::GatewayClass => self.set_gateway_class(&key.1, None),
            _ => self.set_other(gone, None),
        }
        self.objects.tidy(&gone.namespace);
        if gone.kind == Kind::Namespace {
            self.objects.tidy(&gone.name);
        }
    }

    fn set_namespace(&mut self, name: &Arc<str>, facts: Option<NamespaceFacts>) {
        let old = self.objects.space(name).facts().clone();
        let described = facts.is_some();
        let new = Arc::new(facts.unwrap_or_default());
        self.objects.set_namespace(name, described.then(|| new.clone()));
        if old == new {
            return;
        }
        let user = User::Namespace(name.clone());
        self.objects.uses_no_more(&user, old.wish.named());
        self.objects.uses(&user, new.wish.named());
        self.space_changed(name);
        let others = self.objects.others.keys().filter(|key| key.namespace == *name);
        self.dirty.extend(others.cloned().map(Item::Other));
        if **name == *self.mesh.system_namespace && *new.network() != self.mesh.network {
            self.mesh.network = new.network().to_owned();
            self.mesh_changed();
        }
    }

    fn set_node(&mut self, name: &Arc<str>, locality: Option<aquifer_proto::workload::Locality>) {
        let nodes = &mut self.objects.nodes;
        // The kubelet reports all the time; only where the node is counts.
        if nodes.get(name) == locality.as_ref() {
            return;
        }
        match locality {
            Some(locality) => nodes.insert(name.clone(), locality),
            None => nodes.remove(name),
        };
        self.dirty.extend(self.objects.pods_on(name).cloned().map(Item::Pod));
    }

    fn set_pod(&mut self, key: Key, pod: Option<PodFacts>) {
        if self.objects.pod(&key).map(|pod| &**pod) == pod.as_ref() {
            return;
        }
        let pod = pod.map(Arc::new);
        let old = self.objects.set_pod(&key, pod.clone());
        let item = Item::Pod(key.clone());
        let wish = |pod: &PodFacts| Wish::of(&pod.labels, None, &pod.namespace);
        let same_labels = matches!((&old, &pod), (Some(old), Some(new)) if old.labels == new.labels);
        if !same_labels {
            let user = User::Item(item.clone());
            if let Some(old) = &old {
                self.objects.uses_no_more(&user, wish(old).named());
            }
            if let Some(new) = &pod {
                self.objects.uses(&user, wish(new).named());
            }
        }
        if self.mesh.allow_waypoints {
            for gateway in [&old, &pod].into_iter().flatten().filter_map(|pod| pod.labels.get(GATEWAY_NAME)) {
                self.gateway_changed(&(key.0.clone(), gateway.clone()));
            }
        }
        self.restricted_pod_changed(old.as_deref(), pod.as_deref());
        self.dirty.insert(item);
    }

    fn set_service(&mut self, key: &Key, service: Option<ServiceFacts>) {
        let (namespace, name) = key;
        let space = self.objects.space_mut(namespace);
        let old = space.services.get(name).cloned();
        if old.as_deref() == service.as_ref() {
            return;
        }
        let new = service.map(Arc::new);
        match &new {
            Some(new) => space.services.insert(name.clone(), new.clone()),
            None => space.services.remove(name),
        };
        if let Some(selector) = old.as_ref().and_then(|old| old.selector.as_ref()) {
            space.service_selectors.remove(selector, name);
        }
        if let Some(selector) = new.as_ref().and_then(|new| new.selector.as_ref()) {
            space.service_selectors.insert(selector, name);
        }
        let decides = |service: &Arc<ServiceFacts>| service.published && service.selector.is_none();
        let decide = [old.as_ref().is_some_and(decides), new.as_ref().is_some_and(decides)];
        if decide[0] != decide[1] {
            space.slices.set_decide(name, decide[1]);
        }
        let user = User::Item(Item::Service(key.clone()));
        for (service, uses) in [(&old, false), (&new, true)] {
            let Some(service) = service.as_ref().filter(|service| !service.never_bound) else { continue };
            if uses {
                self.objects.uses(&user, service.wish.named());
            } else {
                self.objects.uses_no_more(&user, service.wish.named());
            }
        }
        self.service_changed(key, old.as_deref(), new.as_deref());
    }

    fn set_slice(&mut self, key: &Key, slice: Option<SliceFacts>) {
        let (namespace, name) = key;
        let old = self.objects.space(namespace).slices.get(name).cloned();
        if old.as_deref() == slice.as_ref() {
            return;
        }
        let new = slice.map(Arc::new);
        for slice in [&old, &new].into_iter().flatten() {
            // Who is behind a Service with a selector is known from the pods themselves.
            if self.objects.slices_decide(&(namespace.clone(), slice.service.clone())) {
                if !self.objects.space(namespace).network_policies.is_empty() {
                    self.dirty.insert(Item::Service((namespace.clone(), slice.service.clone())));
                }
                let pods = slice.pods.iter().map(|pod| Item::Pod((namespace.clone(), pod.clone())));
                self.dirty.extend(pods);
            }
            if !slice.is_of_pods() {
                self.dirty.insert(Item::Slice(key.clone()));
            }
        }
        match new {
            Some(new) => {
                let decides = self.objects.slices_decide(&(namespace.clone(), new.service.clone()));
                self.objects.space_mut(namespace).slices.insert(new, decides);
            }
            None => {
                self.objects.space_mut(namespace).slices.remove(name);
            }
        }
    }

    fn set_entry(&mut self, key: &Key, entry: Option<ServiceEntryFacts>) {
        let (namespace, name) = key;
        let space = self.objects.space_mut(namespace);
        let old = space.entries.get(name).cloned();
        if old.as_deref() == entry.as_ref() {
            return;
        }
        let new = entry.map(Arc::new);
        match &new {
            Some(new) => space.entries.insert(name.clone(), new.clone()),
            None => space.entries.remove(name),
        };
        if let Some(selector) = old.as_ref().and_then(|old| old.selector.as_ref()) {
            space.entry_selectors.remove(selector, name);
        }
        if let Some(selector) = new.as_ref().and_then(|new| new.selector.as_ref()).filter(|labels| !labels.is_empty()) {
            space.entry_selectors.insert(selector, name);
        }
        let user = User::Item(Item::ServiceEntry(key.clone()));
        for (entry, is_new) in [(&old, false), (&new, true)] {
            let Some(entry) = entry else { continue };
            let wishes = self.wishes_of(entry);
            let named = wishes.iter().flat_map(Wish::named);
            if is_new {
                self.objects.uses(&user, named);
            } else {
                self.objects.uses_no_more(&user, named);
            }
            for host in &entry.hosts {
                if is_new {
                    self.objects.hosts.entry(host.clone()).or_default().insert(key.clone());
                } else {
                    super::objects::take(&mut self.objects.hosts, host, key);
                }
            }
        }
        let contested = self.automatic.stands(key, new.as_deref());
        self.dirty.extend(contested.into_iter().map(Item::ServiceEntry));
        self.entry_changed(key, old.as_deref());
        self.entry_changed(key, new.as_deref());
    }

    /// The wishes of a ServiceEntry for itself, and for its endpoints.
    fn wishes_of(&mut self, entry: &ServiceEntryFacts) -> Vec<Wish> {
        let of_endpoint = |labels| Wish::of(&self.interner.labels(Some(labels)), None, &entry.namespace);
        entry.endpoint_labels().map(of_endpoint).chain([entry.wish.clone()]).collect()
    }

    fn set_workload_entry(&mut self, key: &Key, entry: Option<WorkloadEntryFacts>) {
        let space = self.objects.space_mut(&key.0);
        let old = space.workload_entries.get(&key.1).cloned();
        if old.as_deref() == entry.as_ref() {
            return;
        }
        let new = entry.map(Arc::new);
        match &new {
            Some(new) => space.workload_entries.insert(key.1.clone(), new.clone()),
            None => space.workload_entries.remove(&key.1),
        };
        let item = Item::WorkloadEntry(key.clone());
        let user = User::Item(item.clone());
        let wish = |entry: &WorkloadEntryFacts| Wish::of(&entry.labels, None, &entry.namespace);
        if let Some(old) = &old {
            self.objects.uses_no_more(&user, wish(old).named());
        }
        if let Some(new) = &new {
            self.objects.uses(&user, wish(new).named());
        }
        self.dirty.insert(item);
    }

    fn set_policy(&mut self, key: &Key, policy: Option<Arc<AuthorizationPolicy>>) {
        let (namespace, name) = key;
        let space = self.objects.space_mut(namespace);
        let old = match &policy {
            Some(policy) => space.policies.insert(name.clone(), policy.clone()),
            None => space.policies.remove(name),
        };
        // A change of its status alone, which is ours, changes nothing.
        if let (Some(old), Some(new)) = (&old, &policy)
            && old.spec == new.spec
            && old.metadata.annotations == new.metadata.annotations
        {
            return;
        }
        if let Some(labels) = old.as_deref().and_then(policy::selector) {
            space.policy_selectors.remove(labels, name);
        }
        if let Some(labels) = policy.as_deref().filter(|policy| policy::is_sent(policy)).and_then(policy::selector) {
            space.policy_selectors.insert(labels, name);
        }
        let item = Item::Policy(key.clone());
        let targets = |policy: &AuthorizationPolicy| {
            let targets: Vec<_> = policy.spec.target_ref.iter().chain(&policy.spec.target_refs).cloned().collect();
            subjects(&targets, policy.metadata.namespace.as_deref().unwrap_or_default())
        };
        if let Some(old) = &old {
            self.objects.interests_no_more(&item, targets(old));
        }
        if let Some(new) = &policy {
            self.objects.interests(&item, targets(new));
        }
        self.dirty.insert(item);
        for policy in [&old, &policy].into_iter().flatten() {
            if let Some(labels) = policy::selector(policy) {
                self.selected_changed(namespace, Some(labels));
            }
        }
    }

    fn set_peer_authentication(&mut self, key: &Key, policy: Option<Arc<PeerAuthentication>>) {
        let (namespace, name) = key;
        let space = self.objects.space_mut(namespace);
        let old = match &policy {
            Some(policy) => space.peer_authentications.insert(name.clone(), policy.clone()),
            None => space.peer_authentications.remove(name),
        };
        if let (Some(old), Some(new)) = (&old, &policy)
            && old.spec == new.spec
            && old.metadata.creation_timestamp == new.metadata.creation_timestamp
        {
            return;
        }
        self.objects.peer_authentications += usize::from(policy.is_some());
        self.objects.peer_authentications -= usize::from(old.is_some());
        self.dirty.insert(Item::StaticStrict);
        self.dirty.insert(Item::PeerAuthentication(key.clone()));
        for policy in [&old, &policy].into_iter().flatten() {
            self.peer_authentication_changed(namespace, policy);
        }
    }

    fn set_network_policy(&mut self, key: &Key, policy: Option<NetworkPolicyFacts>) {
        let (namespace, name) = key;
        let space = self.objects.space_mut(namespace);
        let new = policy.map(Arc::new);
        let old = match &new {
            Some(new) => space.network_policies.insert(name.clone(), new.clone()),
            None => space.network_policies.remove(name),
        };
        if old == new {
            return;
        }
        let space = self.objects.space(namespace);
        let versions = [old, new];
        let selected = space.pods_with(|set| versions.iter().flatten().any(|policy| policy.selects(set)));
        let selected: Vec<Arc<PodFacts>> = selected.filter_map(|pod| space.pods().get(pod).cloned()).collect();
        self.forget_restrictions(namespace);
        for pod in selected {
            if pod.is_redirected() {
                self.services_of_pod_changed(namespace, &pod.labels, &pod.name);
            }
            self.dirty.insert(Item::Pod((namespace.clone(), pod.name.clone())));
        }
    }

    fn set_gateway(&mut self, key: &Key, gateway: Option<Arc<Gateway>>) {
        match gateway {
            Some(gateway) => self.objects.gateways.insert(key.clone(), gateway),
            None => self.objects.gateways.remove(key),
        };
        self.gateway_changed(key);
        self.subject_changed(&Subject::Gateway(key.clone()));
    }

    fn set_gateway_class(&mut self, name: &Arc<str>, class: Option<Arc<GatewayClass>>) {
        let classes = &mut self.objects.gateway_classes;
        match class {
            Some(class) => classes.insert(name.clone(), class),
            None => classes.remove(name),
        };
        let of_class = self.objects.gateways.iter().filter(|(_, gateway)| gateway.spec.gateway_class_name == **name);
        let gateways: Vec<Key> = of_class.map(|(key, _)| key.clone()).collect();
        for key in gateways {
            self.gateway_changed(&key);
            // Whether it is a waypoint at all may have changed for those who are attached to it.
            self.subject_changed(&Subject::Gateway(key));
        }
        self.subject_changed(&Subject::GatewayClass(name.clone()));
    }

    fn set_other(&mut self, key: &ObjectKey, facts: Option<l7::Facts>) {
        let old = match facts.clone() {
            Some(facts) => self.objects.others.insert(key.clone(), Arc::new(facts)),
            None => self.objects.others.remove(key),
        };
        if old.as_deref() == facts.as_ref() {
            return;
        }
        let item = Item::Other(key.clone());
        let own: Key = (key.namespace.clone(), key.name.clone());
        for (facts, is_new) in [(old.as_deref(), false), (facts.as_ref(), true)] {
            let Some(facts) = facts else { continue };
            let subjects = facts.subjects(&self.mesh);
            if is_new {
                self.objects.interests(&item, subjects);
            } else {
                self.objects.interests_no_more(&item, subjects);
            }
            for delegate in &facts.delegates {
                if is_new {
                    self.objects.delegators.entry(delegate.clone()).or_default().insert(own.clone());
                } else {
                    super::objects::take(&mut self.objects.delegators, delegate, &own);
                }
                self.subject_changed(&Subject::Delegate(delegate.clone()));
            }
        }
        self.dirty.insert(item);
    }
}
