//! An item's resources and conditions, from the objects as they are.

use std::sync::Arc;

use aquifer_objects::crds::{PeerAuthentication, PolicyCondition};
use aquifer_objects::{Kind, ObjectKey};
use aquifer_proto::workload::{Service, Workload};

use super::{Batch, Index, Item};
use crate::translate::labels::{LabelSet, Labels};
use crate::translate::namespace::NamespaceFacts;
use crate::translate::pod::PodFacts;
use crate::translate::service::ServiceFacts;
use crate::translate::service_entry::ServiceEntryFacts;
use crate::translate::status::{self, Lost};
use crate::translate::visibility::Visibility;
use crate::translate::waypoint::{self, Asker, Binding, GATEWAY_NAME, Key, Traffic, Waypoint, Wish};
use crate::translate::workload::{self, Backend, Standing};
use crate::translate::workload_entry::WorkloadEntryFacts;
use crate::translate::{peer_authentication, policy};

impl Index {
    /// Makes an item's resources and conditions anew and publishes what differs.
    pub(super) fn translate(&mut self, item: Item, batch: &mut Batch) {
        match &item {
            Item::StaticStrict => {
                let any = self.objects.peer_authentications > 0;
                let sent = any.then(|| peer_authentication::static_strict(&self.mesh));
                self.publish_policy(item, sent, batch);
            }
            Item::AllowWaypoint(key) => {
                let waypoint = self.objects.waypoints.get(key).filter(|_| self.mesh.allow_waypoints);
                let sent = waypoint.and_then(|waypoint| policy::allow_waypoint(waypoint, &self.mesh));
                self.publish_policy(item, sent, batch);
            }
            Item::Policy(key) => {
                let object = self.space(key).and_then(|space| space.policies.get(&key.1)).cloned();
                let conditions = object
                    .as_ref()
                    .map(|policy| status::conditions(policy, &self.mesh, &|subject| self.found(subject)));
                self.report(object_key(Kind::AuthorizationPolicy, key), conditions.unwrap_or_default(), false, batch);
                let sent = object.and_then(|policy| policy::translate(&policy, &self.mesh).authorization());
                self.publish_policy(item, sent, batch);
            }
            Item::PeerAuthentication(key) => {
                let object = self.space(key).and_then(|space| space.peer_authentications.get(&key.1)).cloned();
                let conditions = object
                    .as_ref()
                    .map(|policy| peer_authentication::conditions(policy, self.relevant(&key.0), &self.mesh));
                self.report(object_key(Kind::PeerAuthentication, key), conditions.unwrap_or_default(), false, batch);
                let sent = object
                    .and_then(|policy| peer_authentication::converted(&policy, self.relevant(&key.0), &self.mesh));
                self.publish_policy(item, sent, batch);
            }
            Item::Service(key) => self.translate_service(key.clone(), item, batch),
            Item::ServiceEntry(key) => self.translate_entry(key.clone(), item, batch),
            Item::WorkloadEntry(key) => self.translate_workload_entry(key.clone(), item, batch),
            Item::Pod(key) => {
                let pod = self.space(key).and_then(|space| space.pods().get(&key.1)).cloned();
                if let Some(pod) = &pod {
                    batch.changes.restrictions.extend(self.news_of_restrictions(pod));
                }
                let made = pod.and_then(|pod| self.pod_workload(&pod));
                self.publish_workloads(item, made, batch);
            }
            Item::Slice(key) => {
                let space = self.space(key);
                let slice = space.and_then(|space| space.slices.get(&key.1));
                let service = space.zip(slice).and_then(|(space, slice)| space.services.get(&slice.service));
                let made = slice.zip(service).map(|(slice, service)| slice.workloads(service, &self.mesh));
                self.publish_workloads(item, made.into_iter().flatten(), batch);
            }
            Item::Other(key) => {
                let facts = self.objects.others.get(key).cloned();
                let conditions = facts
                    .as_ref()
                    .filter(|_| self.discovers(&key.namespace))
                    .map(|facts| facts.conditions(&self.mesh, &|subject| self.found(subject)));
                let stale = facts.is_some_and(|facts| facts.has_conditions);
                self.report(key.clone(), conditions.unwrap_or_default(), stale, batch);
            }
        }
    }

    /// What lies in an object's namespace, if that belongs to the mesh.
    pub(super) fn space(&self, key: &Key) -> Option<&super::objects::Space> {
        self.discovers(&key.0).then(|| self.objects.space(&key.0))
    }

    fn translate_service(&mut self, key: Key, item: Item, batch: &mut Batch) {
        let facts = self.space(&key).and_then(|space| space.services.get(&key.1)).cloned();
        let binding = facts.as_ref().map(|facts| self.bound_service(facts)).unwrap_or_default();
        let bound = binding.condition().filter(|_| facts.as_ref().is_some_and(|facts| facts.published));
        let restricted = facts.as_ref().and_then(|facts| self.restriction_of(facts));
        let conditions = bound.into_iter().chain(restricted).collect();
        let stale = facts.as_ref().is_some_and(|facts| facts.has_conditions);
        self.report(object_key(Kind::Service, &key), conditions, stale, batch);
        let made = facts.and_then(|facts| facts.message(self.objects.space(&key.0).facts(), &binding, &self.mesh));
        let sent = made.map(|service| self.service_resource(service, batch)).into_iter().collect();
        self.publish(item, sent, false, batch);
    }

    fn translate_entry(&mut self, key: Key, item: Item, batch: &mut Batch) {
        let facts = self.space(&key).and_then(|space| space.entries.get(&key.1)).cloned();
        let Some(facts) = facts else {
            self.report(object_key(Kind::ServiceEntry, &key), Vec::new(), false, batch);
            self.automatic.withdraw(&key);
            return self.publish(item, Vec::new(), false, batch);
        };
        let namespace = self.objects.space(&key.0).facts().clone();
        let visibility = self.visibility(&namespace);
        let binding = self.bound_entry(&facts);
        let (won, lost) = self.hosts(&key, &facts);
        let conditions = status::of_service_entry(&facts, &binding, visibility, &lost, &self.mesh);
        self.report(object_key(Kind::ServiceEntry, &key), conditions, facts.has_conditions, batch);
        batch.changes.allocations.extend(self.automatic.propose(&key, &facts));

        let services: Vec<Service> = won
            .iter()
            .map(|host| {
                let canonical = self.is_canonical(&key, host, visibility);
                facts.message(host, canonical, visibility, &namespace, &binding, &self.mesh)
            })
            .collect();
        let policies = |labels: &LabelSet| {
            let backends: Vec<Option<Arc<Waypoint>>> = vec![binding.waypoint.clone()];
            self.policies_of(&key.0, labels, &backends)
        };
        let workloads = facts.workloads(&won, &policies, &|labels| self.endpoint_standing(&key.0, labels), &self.mesh);
        let mut sent: Vec<_> = services.into_iter().map(|service| self.service_resource(service, batch)).collect();
        sent.extend(workloads.into_iter().map(|workload| self.workload_resource(workload)));
        self.publish(item, sent, false, batch);
    }

    fn translate_workload_entry(&mut self, key: Key, item: Item, batch: &mut Batch) {
        let facts = self.space(&key).and_then(|space| space.workload_entries.get(&key.1)).cloned();
        let object = object_key(Kind::WorkloadEntry, &key);
        let Some(facts) = facts else {
            self.report(object, Vec::new(), false, batch);
            return self.publish_workloads(item, None, batch);
        };
        let (standing, condition) = self.standing(&facts.namespace, &facts.labels);
        self.report(object, condition.into_iter().collect(), facts.has_conditions, batch);
        let (services, waypoints) = self.behind(&facts.namespace, &facts.labels, None);
        let policies = self.policies_of(&facts.namespace, &facts.labels, &with(waypoints, &standing));
        let made = WorkloadEntryFacts::message(&facts, &services, policies, &standing, &self.mesh);
        self.publish_workloads(item, made, batch);
    }

    fn pod_workload(&self, pod: &PodFacts) -> Option<Workload> {
        if pod.addresses.is_empty() {
            return None;
        }
        let (standing, _) = self.standing(&pod.namespace, &pod.labels);
        let (services, waypoints) = self.behind(&pod.namespace, &pod.labels, Some(&pod.name));
        let policies = self.policies_of(&pod.namespace, &pod.labels, &with(waypoints, &standing));
        let locality = self.objects.nodes.get(&pod.node);
        let mut made = workload::pod(pod, locality, &services, policies, &standing, &self.mesh)?;
        if self.mesh.same_node && pod.is_redirected() && !self.is_restricted(pod) {
            made.extensions.push(workload::same_node());
        }
        Some(made)
    }

    /// Whether a NetworkPolicy selects the pod, so that what it sends and receives must be seen on the wire.
    fn is_restricted(&self, pod: &PodFacts) -> bool {
        self.objects.space(&pod.namespace).network_policies.values().any(|policy| policy.selects(&pod.labels))
    }

    // ---- services ----

    pub(super) fn bound_service(&self, service: &ServiceFacts) -> Binding {
        if service.never_bound || !service.published {
            return Binding::default();
        }
        self.bound(Traffic::Service, &service.namespace, &service.wish, false)
    }

    pub(super) fn bound_entry(&self, entry: &ServiceEntryFacts) -> Binding {
        if waypoint::never_bound(&entry.labels) {
            return Binding::default();
        }
        let visibility = self.visibility(self.objects.space(&entry.namespace).facts());
        self.bound(Traffic::Service, &entry.namespace, &entry.wish, visibility == Visibility::Namespace)
    }

    fn bound(&self, traffic: Traffic, namespace: &str, wish: &Wish, private: bool) -> Binding {
        let facts = self.objects.space(namespace).facts();
        let asker =
            Asker { traffic, namespace, namespace_labels: &facts.labels, inherited: &facts.wish, wish, private };
        waypoint::bind(asker, &|key| self.objects.waypoints.get(key).cloned())
    }

    fn visibility(&self, namespace: &NamespaceFacts) -> Visibility {
        self.mesh.visibility.as_ref().map_or(Visibility::Public, |rules| rules.of(&namespace.labels))
    }

    /// The hosts that a ServiceEntry has, and those that another has before it.
    fn hosts(&self, key: &Key, entry: &ServiceEntryFacts) -> (Vec<Arc<str>>, Vec<Lost>) {
        let (mut won, mut lost) = (Vec::new(), Vec::new());
        if self.visibility(self.objects.space(&key.0).facts()) == Visibility::None {
            return (won, lost);
        }
        for host in &entry.hosts {
            match self.winner(&key.0, host) {
                Some(Winner::Entry(winner, _)) if winner == *key => won.push(host.clone()),
                Some(Winner::Entry((_, name), _)) => {
                    lost.push((host.clone(), format!("the older ServiceEntry {}/{name}", key.0)));
                }
                Some(Winner::Service) => lost.push((host.clone(), format!("the Service {host}"))),
                None => {}
            }
        }
        (won, lost)
    }

    /// Who has a host in a namespace: its Service, else the oldest ServiceEntry.
    fn winner(&self, namespace: &str, host: &str) -> Option<Winner> {
        if !self.discovers(namespace) {
            return None;
        }
        if self.mesh.service_of(host).is_some_and(|(of, name)| of == namespace && self.is_published(of, name)) {
            return Some(Winner::Service);
        }
        let space = self.objects.space(namespace);
        if self.visibility(space.facts()) == Visibility::None {
            return None;
        }
        let wanting = self.objects.hosts.get(host).into_iter().flatten().filter(|key| *key.0 == *namespace);
        let oldest = wanting.min_by_key(|key| (space.entries.get(&key.1).and_then(|entry| entry.created), *key))?;
        let created = space.entries.get(&oldest.1).and_then(|entry| entry.created);
        Some(Winner::Entry(oldest.clone(), created))
    }

    fn is_published(&self, namespace: &str, name: &str) -> bool {
        self.discovers(namespace)
            && self.objects.space(namespace).services.get(name).is_some_and(|service| service.published)
    }

    /// Whether a ServiceEntry's host is the one that counts for namespaces without a service of that name: the
    /// Service's, else that of the oldest entry that all may see.
    fn is_canonical(&self, key: &Key, host: &str, visibility: Visibility) -> bool {
        if visibility != Visibility::Public {
            return false;
        }
        if self.mesh.service_of(host).is_some_and(|(namespace, name)| self.is_published(namespace, name)) {
            return false;
        }
        let namespaces: std::collections::BTreeSet<&Arc<str>> =
            self.objects.hosts.get(host).into_iter().flatten().map(|key| &key.0).collect();
        let public = namespaces
            .into_iter()
            .filter(|namespace| self.visibility(self.objects.space(namespace).facts()) == Visibility::Public);
        let winners = public.filter_map(|namespace| match self.winner(namespace, host)? {
            Winner::Entry(key, created) => Some((created, key)),
            Winner::Service => None,
        });
        winners.min().is_some_and(|(_, oldest)| oldest == *key)
    }

    // ---- workloads ----

    /// How a workload with such labels stands to waypoints, and what is said of that where it can be said.
    fn standing(&self, namespace: &Arc<str>, labels: &LabelSet) -> (Standing, Option<PolicyCondition>) {
        if let Some(name) = labels.said(GATEWAY_NAME) {
            let own = self.objects.waypoints.get(&(namespace.clone(), name.clone()));
            return (Standing::Gateway(own.cloned()), None);
        }
        let wish = Wish::of(labels, None, namespace);
        let binding = self.bound(Traffic::Workload, namespace, &wish, false);
        let condition = binding.condition();
        (binding.waypoint.map_or(Standing::Plain, Standing::Behind), condition)
    }

    fn endpoint_standing(&self, namespace: &Arc<str>, labels: &Labels) -> Standing {
        self.standing(namespace, &LabelSet::from(labels)).0
    }

    /// The services that a workload with such labels is behind, and their waypoints where those must be let in.
    fn behind(
        &self,
        namespace: &Arc<str>,
        labels: &LabelSet,
        pod: Option<&str>,
    ) -> (Vec<Backend>, Vec<Option<Arc<Waypoint>>>) {
        let space = self.objects.space(namespace);
        let (mut backends, mut waypoints) = (Vec::new(), Vec::new());
        let mut add = |service: &ServiceFacts| {
            backends.push(Backend {
                resource: self.mesh.service_resource(namespace, &service.name),
                of_entry: false,
                ports: service.ports.clone(),
            });
            if self.mesh.allow_waypoints {
                waypoints.push(self.bound_service(service).waypoint);
            }
        };
        let services = space.service_selectors.candidates(labels).filter_map(|name| space.services.get(name));
        for service in services {
            if service.selector.as_ref().is_some_and(|selector| labels.has(selector)) {
                add(service);
            }
        }
        for slice in pod.into_iter().flat_map(|pod| space.slices.naming(pod)) {
            if let Some(service) = space.services.get(&slice.service) {
                add(service);
            }
        }
        let entries = space.entry_selectors.candidates(labels).filter_map(|name| space.entries.get(name));
        for entry in entries.filter(|entry| entry.selector.as_ref().is_some_and(|selector| labels.has(selector))) {
            let key = (namespace.clone(), entry.name.clone());
            let (won, _) = self.hosts(&key, entry);
            if self.mesh.allow_waypoints && !won.is_empty() {
                waypoints.push(self.bound_entry(entry).waypoint);
            }
            backends.extend(won.iter().map(|host| entry.backend(host)));
        }
        (backends, waypoints)
    }

    /// The names of the policies that a workload must list: those that select it, sorted, then mutual TLS, then what
    /// lets its waypoints in.
    fn policies_of(&self, namespace: &Arc<str>, labels: &LabelSet, waypoints: &[Option<Arc<Waypoint>>]) -> Vec<String> {
        let mut names = Vec::new();
        let root: &str = &self.mesh.root_namespace;
        let own: &str = namespace;
        for of in std::iter::once(own).chain((own != root).then_some(root)) {
            let space = self.objects.space(of);
            for name in space.policy_selectors.candidates(labels) {
                let policy = space.policies.get(name).and_then(|policy| policy::selector(policy));
                if policy.is_some_and(|selector| labels.has(selector)) {
                    names.push(format!("{of}/{name}"));
                }
            }
        }
        names.sort_unstable();
        names.extend(peer_authentication::required(namespace, labels, self.relevant(namespace), &self.mesh));
        if self.mesh.allow_waypoints {
            let mut lets_in: Vec<String> = waypoints
                .iter()
                .flatten()
                .filter(|waypoint| !waypoint.accounts.is_empty())
                .map(|waypoint| policy::allow_waypoint_resource(&waypoint.key))
                .collect();
            lets_in.sort_unstable();
            lets_in.dedup();
            names.extend(lets_in);
        }
        names
    }

    /// The PeerAuthentications that may count in a namespace: its own and the root namespace's.
    fn relevant<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a PeerAuthentication> + use<'a> {
        let own = self.objects.space(namespace).peer_authentications.values();
        let root = (!self.is_root(namespace))
            .then(|| self.objects.space(&self.mesh.root_namespace).peer_authentications.values());
        own.chain(root.into_iter().flatten()).map(|policy| &**policy)
    }
}

/// Who has a host in a namespace.
enum Winner {
    Service,
    /// And when it was made.
    Entry(Key, Option<k8s_openapi::jiff::Timestamp>),
}

/// The waypoints before a workload: its services', and its own.
fn with(mut waypoints: Vec<Option<Arc<Waypoint>>>, standing: &Standing) -> Vec<Option<Arc<Waypoint>>> {
    if let Standing::Behind(waypoint) = standing {
        waypoints.push(Some(waypoint.clone()));
    }
    waypoints
}

fn object_key(kind: Kind, (namespace, name): &Key) -> ObjectKey {
    ObjectKey { kind, namespace: namespace.clone(), name: name.clone() }
}
