//! The facts of all objects, where they are found by what depends on them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, LazyLock};

use aquifer_objects::ObjectKey;
use aquifer_objects::crds::{AuthorizationPolicy, Gateway, GatewayClass, PeerAuthentication};
use aquifer_proto::workload::Locality;

use super::Item;
use super::selectors::SelectorIndex;
use crate::translate::endpoint_slice::SliceFacts;
use crate::translate::l7;
use crate::translate::labels::LabelSet;
use crate::translate::namespace::NamespaceFacts;
use crate::translate::network_policy::NetworkPolicyFacts;
use crate::translate::pod::PodFacts;
use crate::translate::service::ServiceFacts;
use crate::translate::service_entry::ServiceEntryFacts;
use crate::translate::status::Subject;
use crate::translate::waypoint::{Key, Waypoint};
use crate::translate::workload_entry::WorkloadEntryFacts;

/// Facts of one kind in one namespace, by name.
pub(super) type ByName<T> = BTreeMap<Arc<str>, Arc<T>>;

static NOBODY: LazyLock<Arc<NamespaceFacts>> = LazyLock::new(Arc::default);

/// What lies in one namespace.
#[derive(Debug, Default)]
pub(super) struct Space {
    facts: Option<Arc<NamespaceFacts>>,
    pods: ByName<PodFacts>,
    /// Pods have many labels and few sets of them: what selects pods looks at the sets.
    pods_by_labels: HashMap<Arc<LabelSet>, BTreeSet<Arc<str>>>,
    pub(super) services: ByName<ServiceFacts>,
    pub(super) service_selectors: SelectorIndex,
    pub(super) slices: Slices,
    pub(super) entries: ByName<ServiceEntryFacts>,
    pub(super) entry_selectors: SelectorIndex,
    pub(super) workload_entries: ByName<WorkloadEntryFacts>,
    pub(super) policies: ByName<AuthorizationPolicy>,
    pub(super) policy_selectors: SelectorIndex,
    pub(super) peer_authentications: ByName<PeerAuthentication>,
    pub(super) network_policies: ByName<NetworkPolicyFacts>,
}

impl Space {
    fn is_empty(&self) -> bool {
        self.facts.is_none()
            && self.pods.is_empty()
            && self.services.is_empty()
            && self.slices.by_name.is_empty()
            && self.entries.is_empty()
            && self.workload_entries.is_empty()
            && self.policies.is_empty()
            && self.peer_authentications.is_empty()
            && self.network_policies.is_empty()
    }

    /// The namespace's own facts.
    pub(super) fn facts(&self) -> &Arc<NamespaceFacts> {
        self.facts.as_ref().unwrap_or(&NOBODY)
    }

    pub(super) fn pods(&self) -> &ByName<PodFacts> {
        &self.pods
    }

    /// The sets of labels that pods have, and who has them.
    pub(super) fn label_sets(&self) -> impl Iterator<Item = (&LabelSet, &BTreeSet<Arc<str>>)> {
        self.pods_by_labels.iter().map(|(set, pods)| (&**set, pods))
    }

    /// The names of the pods whose labels are such.
    pub(super) fn pods_with<'a>(&'a self, such: impl Fn(&LabelSet) -> bool + 'a) -> impl Iterator<Item = &'a Arc<str>> {
        self.label_sets().filter(move |(set, _)| such(set)).flat_map(|(_, pods)| pods)
    }
}

/// The slices of a namespace.
#[derive(Debug, Default)]
pub(super) struct Slices {
    by_name: ByName<SliceFacts>,
    by_service: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
    /// Pods that are behind a Service because a slice says so: those of Services without a selector.
    by_pod: HashMap<Arc<str>, BTreeSet<Arc<str>>>,
}

impl Slices {
    pub(super) fn get(&self, name: &str) -> Option<&Arc<SliceFacts>> {
        self.by_name.get(name)
    }

    pub(super) fn names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.by_name.keys()
    }

    /// The slices of a Service.
    pub(super) fn of<'a>(&'a self, service: &str) -> impl Iterator<Item = &'a Arc<SliceFacts>> + use<'a> {
        let names = self.by_service.get(service).into_iter().flatten();
        names.filter_map(|name| self.by_name.get(name))
    }

    /// The slices that put a pod behind their Service.
    pub(super) fn naming<'a>(&'a self, pod: &str) -> impl Iterator<Item = &'a Arc<SliceFacts>> + use<'a> {
        let names = self.by_pod.get(pod).into_iter().flatten();
        names.filter_map(|name| self.by_name.get(name))
    }

    /// `decides`: whether the Service leaves its endpoints to slices.
    pub(super) fn insert(&mut self, slice: Arc<SliceFacts>, decides: bool) {
        self.remove(&slice.name.clone());
        self.by_service.entry(slice.service.clone()).or_default().insert(slice.name.clone());
        if decides {
            self.link(&slice);
        }
        self.by_name.insert(slice.name.clone(), slice);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Arc<SliceFacts>> {
        let old = self.by_name.remove(name)?;
        take(&mut self.by_service, &old.service, &old.name);
        self.unlink(&old);
        Some(old)
    }

    /// A Service begins or ceases to leave its endpoints to slices.
    pub(super) fn set_decide(&mut self, service: &str, decide: bool) {
        let slices: Vec<Arc<SliceFacts>> = self.of(service).cloned().collect();
        for slice in slices {
            if decide { self.link(&slice) } else { self.unlink(&slice) }
        }
    }

    fn link(&mut self, slice: &SliceFacts) {
        for pod in &slice.pods {
            self.by_pod.entry(pod.clone()).or_default().insert(slice.name.clone());
        }
    }

    fn unlink(&mut self, slice: &SliceFacts) {
        for pod in &slice.pods {
            take(&mut self.by_pod, pod, &slice.name);
        }
    }
}

/// All objects.
#[derive(Debug, Default)]
pub(super) struct Objects {
    spaces: BTreeMap<Arc<str>, Space>,
    nothing: Space,
    pub(super) nodes: HashMap<Arc<str>, Locality>,
    pods_by_node: HashMap<Arc<str>, BTreeSet<Key>>,
    pub(super) peer_authentications: usize,
    /// ServiceEntries by host.
    pub(super) hosts: HashMap<Arc<str>, BTreeSet<Key>>,
    pub(super) gateways: BTreeMap<Key, Arc<Gateway>>,
    pub(super) gateway_classes: BTreeMap<Arc<str>, Arc<GatewayClass>>,
    /// The Gateways that can be gone through.
    pub(super) waypoints: BTreeMap<Key, Arc<Waypoint>>,
    /// Who names a waypoint.
    users: HashMap<Key, BTreeSet<User>>,
    /// Objects that have a status and no resources.
    pub(super) others: BTreeMap<ObjectKey, Arc<l7::Facts>>,
    /// VirtualServices by whom they delegate to.
    pub(super) delegators: HashMap<Key, BTreeSet<Key>>,
    /// Whose conditions depend on a subject.
    interested: HashMap<Subject, BTreeSet<Item>>,
}

/// Who names a waypoint.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum User {
    /// A namespace, for its objects.
    Namespace(Arc<str>),
    /// An object.
    Item(Item),
}

impl Objects {
    pub(super) fn spaces(&self) -> impl Iterator<Item = (&Arc<str>, &Space)> {
        self.spaces.iter()
    }

    pub(super) fn space(&self, namespace: &str) -> &Space {
        self.spaces.get(namespace).unwrap_or(&self.nothing)
    }

    pub(super) fn space_mut(&mut self, namespace: &Arc<str>) -> &mut Space {
        if !self.spaces.contains_key(namespace) {
            self.spaces.insert(namespace.clone(), Space::default());
        }
        self.spaces.get_mut(namespace).unwrap_or(&mut self.nothing)
    }

    /// Forgets a namespace that holds nothing any more.
    pub(super) fn tidy(&mut self, namespace: &str) {
        if self.spaces.get(namespace).is_some_and(Space::is_empty) {
            self.spaces.remove(namespace);
        }
    }

    pub(super) fn set_namespace(&mut self, name: &Arc<str>, facts: Option<Arc<NamespaceFacts>>) {
        self.space_mut(name).facts = facts;
    }

    pub(super) fn pod(&self, (namespace, name): &Key) -> Option<&Arc<PodFacts>> {
        self.space(namespace).pods.get(name)
    }

    pub(super) fn pods_on<'a>(&'a self, node: &str) -> impl Iterator<Item = &'a Key> + use<'a> {
        self.pods_by_node.get(node).into_iter().flatten()
    }

    /// Puts a pod in the place of the one that was there, or takes it away.
    pub(super) fn set_pod(&mut self, key: &Key, pod: Option<Arc<PodFacts>>) -> Option<Arc<PodFacts>> {
        let (namespace, name) = key;
        let space = self.space_mut(namespace);
        let old = match &pod {
            Some(pod) => space.pods.insert(name.clone(), pod.clone()),
            None => space.pods.remove(name),
        };
        if let Some(old) = &old {
            take(&mut space.pods_by_labels, &old.labels, name);
            take(&mut self.pods_by_node, &old.node, key);
        }
        if let Some(pod) = pod {
            let space = self.space_mut(namespace);
            space.pods_by_labels.entry(pod.labels.clone()).or_default().insert(name.clone());
            if !pod.node.is_empty() {
                self.pods_by_node.entry(pod.node.clone()).or_default().insert(key.clone());
            }
        }
        old
    }

    /// The Services that are behind nobody's selector leave their endpoints to slices.
    pub(super) fn slices_decide(&self, (namespace, service): &Key) -> bool {
        self.space(namespace)
            .services
            .get(service)
            .is_some_and(|service| service.published && service.selector.is_none())
    }

    pub(super) fn users<'a>(&'a self, waypoint: &Key) -> impl Iterator<Item = &'a User> + use<'a> {
        self.users.get(waypoint).into_iter().flatten()
    }

    pub(super) fn uses<'a>(&mut self, user: &User, waypoints: impl Iterator<Item = &'a Key>) {
        for waypoint in waypoints {
            self.users.entry(waypoint.clone()).or_default().insert(user.clone());
        }
    }

    pub(super) fn uses_no_more<'a>(&mut self, user: &User, waypoints: impl Iterator<Item = &'a Key>) {
        for waypoint in waypoints {
            take(&mut self.users, waypoint, user);
        }
    }

    pub(super) fn interested<'a>(&'a self, subject: &Subject) -> impl Iterator<Item = &'a Item> + use<'a> {
        self.interested.get(subject).into_iter().flatten()
    }

    pub(super) fn interests(&mut self, item: &Item, subjects: Vec<Subject>) {
        for subject in subjects {
            self.interested.entry(subject).or_default().insert(item.clone());
        }
    }

    pub(super) fn interests_no_more(&mut self, item: &Item, subjects: Vec<Subject>) {
        for subject in subjects {
            take(&mut self.interested, &subject, item);
        }
    }
}

/// Takes a member out of one of several sets, and the set away when it is empty.
pub(super) fn take<K, T, Q, R>(sets: &mut HashMap<K, BTreeSet<T>>, key: &Q, member: &R)
where
    K: std::borrow::Borrow<Q> + std::hash::Hash + Eq,
    Q: std::hash::Hash + Eq + ?Sized,
    T: std::borrow::Borrow<R> + Ord,
    R: Ord + ?Sized,
{
    if let Some(set) = sets.get_mut(key) {
        set.remove(member);
        if set.is_empty() {
            sets.remove(key);
        }
    }
}
