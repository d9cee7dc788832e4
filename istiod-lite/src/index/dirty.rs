//! Which items a change reaches.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_objects::crds::PeerAuthentication;

use super::objects::User;
use super::{Index, Item};
use crate::translate::service::ServiceFacts;
use crate::translate::service_entry::ServiceEntryFacts;
use crate::translate::status::Subject;
use crate::translate::waypoint::{GATEWAY_NAME, Key, Traffic, Waypoint};
use crate::translate::{Labels, gateway, mesh, peer_authentication};

impl Index {
    /// Marks a service of either kind, and whose conditions tell of it.
    fn mark_service(&mut self, item: Item) {
        match &item {
            Item::Service(key) => self.subject_changed(&Subject::Service(key.clone())),
            Item::ServiceEntry(key) => {
                self.subject_changed(&Subject::ServiceEntry(key.clone()));
                let entry = self.objects.space(&key.0).entries.get(&key.1).cloned();
                for host in entry.iter().flat_map(|entry| &entry.hosts) {
                    self.subject_changed(&Subject::Host(host.clone()));
                }
            }
            _ => {}
        }
        self.dirty.insert(item);
    }

    pub(super) fn subject_changed(&mut self, subject: &Subject) {
        self.dirty.extend(self.objects.interested(subject).cloned());
    }

    /// A Service changed: itself, who is behind it, and who would like its name.
    pub(super) fn service_changed(&mut self, key: &Key, old: Option<&ServiceFacts>, new: Option<&ServiceFacts>) {
        let (namespace, name) = key;
        self.mark_service(Item::Service(key.clone()));
        let published = [old, new].map(|service| service.is_some_and(|service| service.published));
        if published[0] != published[1] {
            self.host_changed(&mesh_host(&self.mesh, key));
        }
        let behind = |service: Option<&ServiceFacts>| {
            service.map(|service| (service.published, service.ports.clone(), service.selector.clone()))
        };
        if behind(old) != behind(new) || self.mesh.allow_waypoints {
            for service in [old, new].into_iter().flatten() {
                self.behind_service_changed(namespace, service);
            }
            let slices = self.objects.space(namespace).slices.of(name);
            let own = slices.filter(|slice| !slice.is_of_pods());
            let items: Vec<Item> = own.map(|slice| Item::Slice((namespace.clone(), slice.name.clone()))).collect();
            self.dirty.extend(items);
        }
    }

    /// Pods and WorkloadEntries behind a Service.
    fn behind_service_changed(&mut self, namespace: &Arc<str>, service: &ServiceFacts) {
        let space = self.objects.space(namespace);
        let pod = |name: &Arc<str>| Item::Pod((namespace.clone(), name.clone()));
        match &service.selector {
            Some(selector) => self.behind_changed(namespace, selector),
            None => {
                let named = space.slices.of(&service.name).flat_map(|slice| slice.pods.iter());
                let pods: Vec<Item> = named.map(pod).collect();
                self.dirty.extend(pods);
            }
        }
    }

    /// Pods and WorkloadEntries that a service's selector selects.
    fn behind_changed(&mut self, namespace: &Arc<str>, selector: &Labels) {
        if selector.is_empty() {
            return;
        }
        let space = self.objects.space(namespace);
        let pods = space.pods_with(|set| set.has(selector)).map(|pod| Item::Pod((namespace.clone(), pod.clone())));
        let entries = space.workload_entries.iter().filter(|(_, entry)| entry.labels.has(selector));
        let entries = entries.map(|(entry, _)| Item::WorkloadEntry((namespace.clone(), entry.clone())));
        self.dirty.extend(pods.chain(entries));
    }

    /// One version of a ServiceEntry, before or after a change.
    pub(super) fn entry_changed(&mut self, key: &Key, entry: Option<&ServiceEntryFacts>) {
        self.mark_service(Item::ServiceEntry(key.clone()));
        let Some(entry) = entry else { return };
        if let Some(selector) = &entry.selector {
            self.behind_changed(&key.0, selector);
        }
        for host in &entry.hosts {
            self.subject_changed(&Subject::Host(host.clone()));
            self.host_changed(host);
        }
    }

    /// Who has a host changed, perhaps: all who want it, and all who are behind them.
    fn host_changed(&mut self, host: &str) {
        let entries: Vec<Key> = self.objects.hosts.get(host).into_iter().flatten().cloned().collect();
        for key in entries {
            let entry = self.objects.space(&key.0).entries.get(&key.1).cloned();
            if let Some(selector) = entry.as_ref().and_then(|entry| entry.selector.as_ref()) {
                self.behind_changed(&key.0, selector);
            }
            self.mark_service(Item::ServiceEntry(key));
        }
    }

    /// All that lies in a namespace.
    pub(super) fn space_changed(&mut self, namespace: &Arc<str>) {
        let space = self.objects.space(namespace);
        let at = |name: &Arc<str>| (namespace.clone(), name.clone());
        let mut items: Vec<Item> = space.pods().keys().map(|pod| Item::Pod(at(pod))).collect();
        items.extend(space.slices.names().map(|slice| Item::Slice(at(slice))));
        items.extend(space.workload_entries.keys().map(|entry| Item::WorkloadEntry(at(entry))));
        items.extend(space.policies.keys().map(|policy| Item::Policy(at(policy))));
        items.extend(space.peer_authentications.keys().map(|policy| Item::PeerAuthentication(at(policy))));
        let services: Vec<Item> = space.services.keys().map(|service| Item::Service(at(service))).collect();
        let entries: Vec<Key> = space.entries.keys().map(at).collect();
        self.dirty.extend(items);
        for service in services {
            if let Item::Service(key) = &service {
                // Whether its namespace belongs to the mesh may have changed.
                let host = mesh_host(&self.mesh, key);
                self.host_changed(&host);
            }
            self.mark_service(service);
        }
        for key in entries {
            let entry = self.objects.space(&key.0).entries.get(&key.1).cloned();
            self.entry_changed(&key, entry.as_deref());
        }
        let gateways: Vec<Key> = self.objects.gateways.keys().filter(|key| key.0 == *namespace).cloned().collect();
        for key in gateways {
            self.gateway_changed(&key);
        }
    }

    /// The mesh changed: everything in it.
    pub(super) fn mesh_changed(&mut self) {
        self.mesh_changed = true;
        self.dirty.insert(Item::StaticStrict);
        let namespaces: Vec<Arc<str>> = self.objects.spaces().map(|(namespace, _)| namespace.clone()).collect();
        for namespace in namespaces {
            self.space_changed(&namespace);
        }
        let gateways: Vec<Key> = self.objects.gateways.keys().cloned().collect();
        for key in gateways {
            self.gateway_changed(&key);
            // It names identities, and so the trust domain.
            self.dirty.insert(Item::AllowWaypoint(key));
        }
        self.dirty.extend(self.objects.others.keys().cloned().map(Item::Other));
    }

    /// The workloads that a policy of a namespace selects; all of them for `None`. A policy of the root namespace
    /// selects from all namespaces.
    pub(super) fn selected_changed(&mut self, namespace: &Arc<str>, labels: Option<&Labels>) {
        let all = self.is_root(namespace);
        let such = Self::selected_by(labels);
        let mut items = Vec::new();
        for (of, space) in self.objects.spaces().filter(|(of, _)| all || *of == namespace) {
            let at = |name: &Arc<str>| (of.clone(), name.clone());
            items.extend(space.pods_with(&such).map(|pod| Item::Pod(at(pod))));
            let entries = space.workload_entries.iter().filter(|(_, entry)| such(&entry.labels));
            items.extend(entries.map(|(entry, _)| Item::WorkloadEntry(at(entry))));
            // Their endpoints have labels of their own.
            items.extend(space.entries.keys().map(|entry| Item::ServiceEntry(at(entry))));
        }
        self.dirty.extend(items);
    }

    pub(super) fn peer_authentication_changed(&mut self, namespace: &Arc<str>, policy: &PeerAuthentication) {
        let labels = peer_authentication::selector(policy);
        self.selected_changed(namespace, labels);
        // What others inherit changed, or which of those that are alike is the oldest.
        let root = self.is_root(namespace) && labels.is_none();
        let below = self.objects.spaces().filter(|(of, _)| root || *of == namespace);
        let heirs: Vec<Item> = below
            .flat_map(|(of, space)| {
                let names = space.peer_authentications.keys();
                names.map(|policy| Item::PeerAuthentication((of.clone(), policy.clone())))
            })
            .collect();
        self.dirty.extend(heirs);
    }

    /// Makes a Gateway's waypoint anew, and marks whom it concerns if it is another than before.
    pub(super) fn gateway_changed(&mut self, key: &Key) {
        let new = self.waypoint(key);
        let old = match &new {
            Some(new) => self.objects.waypoints.insert(key.clone(), new.clone()),
            None => self.objects.waypoints.remove(key),
        };
        if old == new {
            return;
        }
        self.subject_changed(&Subject::Gateway(key.clone()));
        let versions = [old, new];
        let users: Vec<User> = self.objects.users(key).cloned().collect();
        for user in users {
            self.user_changed(user, &versions);
        }
        let (namespace, name) = key;
        let space = self.objects.space(namespace);
        let instances = space.pods_with(|set| set.get(GATEWAY_NAME) == Some(name));
        let instances: Vec<Item> = instances.map(|pod| Item::Pod((namespace.clone(), pod.clone()))).collect();
        self.dirty.extend(instances);
        if self.mesh.allow_waypoints {
            self.dirty.insert(Item::AllowWaypoint(key.clone()));
        }
    }

    fn user_changed(&mut self, user: User, versions: &[Option<Arc<Waypoint>>; 2]) {
        let namespace = match user {
            User::Item(item) => {
                if self.mesh.allow_waypoints {
                    self.behind_item_changed(&item);
                }
                return self.mark_service(item);
            }
            User::Namespace(namespace) => namespace,
        };
        let space = self.objects.space(&namespace);
        let at = |name: &Arc<str>| (namespace.clone(), name.clone());
        let services = space.services.keys().map(|service| Item::Service(at(service)));
        let entries = space.entries.keys().map(|entry| Item::ServiceEntry(at(entry)));
        let marked: Vec<Item> = services.chain(entries).collect();
        let mut items: Vec<Item> = space.workload_entries.keys().map(|entry| Item::WorkloadEntry(at(entry))).collect();
        // Pods, which are many, use it only for what goes to them alone.
        let for_workloads = versions.iter().flatten().any(|waypoint| waypoint.takes(Traffic::Workload));
        if for_workloads || self.mesh.allow_waypoints {
            items.extend(space.pods().keys().map(|pod| Item::Pod(at(pod))));
        }
        self.dirty.extend(items);
        for item in marked {
            self.mark_service(item);
        }
    }

    /// Who is behind a service lists the policy for its waypoint.
    fn behind_item_changed(&mut self, item: &Item) {
        match item {
            Item::Service((namespace, name)) => {
                if let Some(service) = self.objects.space(namespace).services.get(name).cloned() {
                    self.behind_service_changed(namespace, &service);
                }
            }
            Item::ServiceEntry((namespace, name)) => {
                let entry = self.objects.space(namespace).entries.get(name).cloned();
                if let Some(selector) = entry.as_ref().and_then(|entry| entry.selector.as_ref()) {
                    self.behind_changed(namespace, selector);
                }
            }
            _ => {}
        }
    }

    /// The waypoint that a Gateway is now.
    fn waypoint(&self, key: &Key) -> Option<Arc<Waypoint>> {
        let object = self.objects.gateways.get(key).filter(|_| self.discovers(&key.0))?;
        let class = self.objects.gateway_classes.get(object.spec.gateway_class_name.as_str());
        let accounts = if self.mesh.allow_waypoints { self.accounts(key) } else { BTreeSet::new() };
        let made = gateway::waypoint(key, object, class.map(|class| &**class), accounts, &self.mesh)?;
        Some(Arc::new(made))
    }

    /// The service accounts of a Gateway's pods.
    fn accounts(&self, (namespace, name): &Key) -> BTreeSet<Arc<str>> {
        let space = self.objects.space(namespace);
        let pods = space.pods_with(|set| set.get(GATEWAY_NAME) == Some(name));
        pods.filter_map(|pod| space.pods().get(pod)).map(|pod| pod.service_account.clone()).collect()
    }
}

fn mesh_host(mesh: &mesh::Mesh, (namespace, name): &Key) -> String {
    mesh.service_hostname(namespace, name)
}
