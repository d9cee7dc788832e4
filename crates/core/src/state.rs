//! What is known of the mesh at one moment, with the indexes that decisions need.
//!
//! All maps share structure between copies, so a copy costs a few pointers and a change costs what it touches.
//! Applying any sequence of updates gives the same state as building it from what they leave: all orders within
//! an index are by value, never by arrival.

mod index;
mod located;
mod table;
#[cfg(test)]
mod tests;

use std::{
    cmp::{Ordering, Reverse},
    collections::{BTreeMap, BTreeSet},
    hash::{Hash, Hasher},
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use rpds::HashTrieMapSync;

use self::{
    index::{Index, insert_sorted, remove_sorted},
    located::Locations,
    table::{Entry, Table},
};
use crate::{
    address::{NamespacedHostname, NetworkAddress, NetworkCidr},
    identity::Identity,
    policy::{Policy, PolicyKey, Scope},
    service::Service,
    workload::{Key, Text, TunnelProtocol, Uid, Workload},
};

/// One snapshot of the mesh.
#[derive(Debug, Clone, Default)]
pub struct MeshState {
    workloads: Table<Arc<Workload>>,
    workloads_by_address: Locations,
    workloads_by_node: Index<Arc<str>, Workload>,
    endpoints: Index<NamespacedHostname, Workload>,
    /// The largest capacity that a workload has, or has had.
    most_capacity: u32,
    services: HashTrieMapSync<NamespacedHostname, Arc<Service>>,
    services_by_hostname: Index<Arc<str>, Service>,
    services_by_vip: Index<NetworkCidr, Service>,
    /// Family and length of the ranges among the VIPs, with the number of ranges: what a lookup has to try.
    vip_lengths: Arc<BTreeMap<(Family, u8), usize>>,
    policies: HashTrieMapSync<PolicyKey, Arc<Policy>>,
    policies_by_namespace: Index<Arc<str>, Policy>,
    global_policies: Arc<Vec<Arc<Policy>>>,
    unknown_policies: UnknownPolicies,
}

/// One change.
#[derive(Debug, Clone)]
pub enum Update {
    Workload(Arc<Workload>),
    Service(Arc<Service>),
    Policy(Arc<Policy>),
    /// By resource name; that alone does not say whether it was a workload or a service.
    RemoveAddress(Arc<str>),
    /// By resource name, `<namespace>/<name>`.
    RemovePolicy(Arc<str>),
}

/// Who looks for a service: that decides among several of one hostname or address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct View<'a> {
    pub namespace: &'a str,
    /// `PREFERED_SERVICE_NAMESPACE`.
    pub preferred_namespace: Option<&'a str>,
}

/// A policy that applies to a workload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Candidate<'a> {
    Known(&'a Arc<Policy>),
    /// The workload names it and it is not known.
    Missing(&'a PolicyKey),
}

/// What to make of the policies that workloads name and that are not known.
#[derive(Debug, Clone, Default)]
pub struct UnknownPolicies {
    /// As Istio does: as if they were not named.
    pub skip: bool,
    /// Workload and policy: named a moment ago, and probably on its way.
    pub awaited: Arc<BTreeSet<(Uid, PolicyKey)>>,
}

/// What to make of one of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UnknownPolicy {
    /// It may be a DENY.
    Deny,
    /// It may come yet.
    Await,
    /// As if it were not named.
    Skip,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Family {
    V4,
    V6,
}

impl MeshState {
    /// Makes one change. The last update of a name wins; removing what is not there changes nothing.
    pub fn apply(&mut self, update: Update) {
        match update {
            Update::Workload(workload) => {
                // One name is one resource: a workload may take the name of a service, if only by mistake.
                if workload.uid.text().count(b'/') == 1 {
                    self.remove_service(&workload.uid.to_string());
                }
                self.insert_workload(workload);
            }
            Update::Service(service) => {
                self.remove_workload(service.key.to_string().as_str().into());
                self.insert_service(service);
            }
            Update::Policy(policy) => self.insert_policy(policy),
            Update::RemoveAddress(name) => {
                self.remove_workload((&*name).into());
                self.remove_service(&name);
            }
            Update::RemovePolicy(name) => {
                if let Ok(key) = name.parse() {
                    self.remove_policy(&key);
                }
            }
        }
    }

    // Workloads.

    /// The workload of this name.
    pub fn workload_by_uid<'a>(&self, uid: impl Into<Text<'a>>) -> Option<&Arc<Workload>> {
        self.workloads.get(&Key::from(uid))
    }

    /// The workload that has this address: of several a pod rather than an entry, then one that speaks HBONE.
    /// Workloads on the host's network are not found so.
    pub fn workload_by_addr(&self, address: &NetworkAddress) -> Option<&Arc<Workload>> {
        self.workloads_by_address.get(address).first()
    }

    /// The workload of a pod on this node.
    pub fn local_workload(
        &self,
        node: &str,
        name: &str,
        namespace: &str,
        service_account: &str,
    ) -> Option<&Arc<Workload>> {
        let on_node = self.workloads_by_node.get(node);
        let name = Text::from(name);
        let start = on_node.partition_point(|workload| (&*workload.namespace, workload.name()) < (namespace, name));
        on_node[start..]
            .iter()
            .take_while(|workload| &*workload.namespace == namespace && workload.name() == name)
            .find(|workload| &*workload.service_account == service_account)
    }

    /// The workloads of a node, by namespace and name.
    pub fn workloads_on_node(&self, node: &str) -> &[Arc<Workload>] {
        self.workloads_by_node.get(node)
    }

    /// The workloads that say they are endpoints of this service, healthy or not, whether or not it is known.
    pub fn endpoints(&self, service: &NamespacedHostname) -> &[Arc<Workload>] {
        self.endpoints.get(service)
    }

    /// No workload's capacity is larger.
    pub fn most_capacity(&self) -> u32 {
        self.most_capacity
    }

    /// All of them, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = &Arc<Workload>> {
        self.workloads.iter()
    }

    /// Identities of the workloads on a node that take HBONE: those that need a certificate there.
    pub fn identities_on_node(&self, node: &str) -> std::collections::BTreeSet<Identity> {
        self.workloads_on_node(node)
            .iter()
            .filter(|workload| workload.tunnel_protocol == TunnelProtocol::Hbone && !workload.native_tunnel)
            .map(|workload| workload.identity())
            .collect()
    }

    // Services.

    /// The service of this name.
    pub fn service(&self, key: &NamespacedHostname) -> Option<&Arc<Service>> {
        self.services.get(key)
    }

    /// The service with this VIP, as `view` sees it: an exact address first, then ranges; of several the viewer's own
    /// namespace, among ranges the longer, then the canonical one, then the preferred namespace, then the first by name.
    pub fn service_by_vip(&self, address: &NetworkAddress, view: &View<'_>) -> Option<&Arc<Service>> {
        let ip = address.address.to_canonical();
        let exact = NetworkCidr { network: address.network.clone(), cidr: IpNet::from(ip) };
        if let Some(service) = best(self.services_by_vip.get(&exact), view) {
            return Some(service);
        }
        let mut found: Option<(&Arc<Service>, u8)> = None;
        for (_, length) in self.vip_lengths.keys().rev().filter(|(family, _)| *family == Family::of(ip)) {
            let Ok(cidr) = IpNet::new(ip, *length) else { continue };
            let range = NetworkCidr { network: address.network.clone(), cidr: cidr.trunc() };
            let Some(service) = best(self.services_by_vip.get(&range), view) else { continue };
            // Longest first: a shorter one is only better if it is the viewer's own.
            let own = &*service.key.namespace == view.namespace;
            if own {
                return Some(service);
            }
            found.get_or_insert((service, *length));
        }
        found.map(|(service, _)| service)
    }

    /// The service of this hostname, as `view` sees it.
    pub fn service_by_hostname(&self, hostname: &str, view: &View<'_>) -> Option<&Arc<Service>> {
        self.service_by_hostname_where(hostname, view, |_| true)
    }

    /// The same among those that `keep` takes.
    pub fn service_by_hostname_where(
        &self,
        hostname: &str,
        view: &View<'_>,
        keep: impl Fn(&Service) -> bool,
    ) -> Option<&Arc<Service>> {
        best(self.services_by_hostname.get(hostname).iter().filter(|service| keep(service)), view)
    }

    /// All of them, in no order.
    pub fn services(&self) -> impl Iterator<Item = &Arc<Service>> {
        self.services.values()
    }

    // Policies.

    /// The policy of this name.
    pub fn policy(&self, key: &PolicyKey) -> Option<&Arc<Policy>> {
        self.policies.get(key)
    }

    /// What applies to a workload: its namespace's policies, global ones, and those that it names.
    pub fn policies_for<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = Candidate<'a>> {
        let namespace = self.policies_by_namespace.get(&*workload.namespace).iter();
        let named = workload.authorization_policies.iter().filter_map(|key| match self.policies.get(key) {
            None => Some(Candidate::Missing(key)),
            Some(policy) => match policy.scope {
                Scope::Global => None,
                Scope::Namespace if policy.key.namespace == workload.namespace => None,
                _ => Some(Candidate::Known(policy)),
            },
        });
        namespace.chain(self.global_policies.iter()).map(Candidate::Known).chain(named)
    }

    /// All of them, in no order.
    pub fn policies(&self) -> impl Iterator<Item = &Arc<Policy>> {
        self.policies.values()
    }

    /// What the workloads of a node name and is not known: workload and policy.
    pub fn missing_policies<'a>(&'a self, node: &str) -> impl Iterator<Item = (&'a Uid, &'a PolicyKey)> {
        self.workloads_on_node(node).iter().flat_map(|workload| {
            let missing = workload.authorization_policies.iter().filter(|key| self.policy(key).is_none());
            missing.map(|key| (&workload.uid, key))
        })
    }

    /// What to make of a policy that this workload names and that is not known.
    pub fn unknown_policy(&self, workload: &Workload, key: &PolicyKey) -> UnknownPolicy {
        let UnknownPolicies { skip, awaited } = &self.unknown_policies;
        if *skip {
            UnknownPolicy::Skip
        } else if !awaited.is_empty() && awaited.contains(&(workload.uid.clone(), key.clone())) {
            UnknownPolicy::Await
        } else {
            UnknownPolicy::Deny
        }
    }

    /// Says what to make of policies that are not known, from now on.
    pub fn set_unknown_policies(&mut self, unknown: UnknownPolicies) {
        self.unknown_policies = unknown;
    }

    // Changes.

    fn insert_workload(&mut self, workload: Arc<Workload>) {
        if self.workload_by_uid(&workload.uid).is_some_and(|held| *held == workload) {
            return;
        }
        self.remove_workload((&workload.uid).into());
        self.most_capacity = self.most_capacity.max(workload.capacity);
        self.workloads_by_address.insert(&workload, by_preference);
        if !workload.node.is_empty() {
            self.workloads_by_node.insert(workload.node.clone(), workload.clone(), by_name);
        }
        for service in workload.services.keys() {
            self.endpoints.insert(service.clone(), workload.clone(), by_uid);
        }
        let uid = workload.uid.clone();
        self.workloads.change(&Key::from(&uid), |_| Some(workload));
    }

    fn remove_workload(&mut self, uid: Key<'_>) {
        let Some(workload) = self.workloads.get(&uid).cloned() else { return };
        self.workloads_by_address.remove(&workload, by_preference);
        self.workloads_by_node.remove(&workload.node, &workload, by_name);
        for service in workload.services.keys() {
            self.endpoints.remove(service, &workload, by_uid);
        }
        self.workloads.change(&uid, |_| None);
    }

    fn insert_service(&mut self, service: Arc<Service>) {
        if self.services.get(&service.key).is_some_and(|held| *held == service) {
            return;
        }
        self.remove_service_key(&service.key.clone());
        self.services_by_hostname.insert(service.key.hostname.clone(), service.clone(), by_key);
        for vip in vips(&service) {
            let length = (!vip.is_single()).then(|| (Family::of(vip.cidr.addr()), vip.cidr.prefix_len()));
            let first = self.services_by_vip.insert(vip, service.clone(), by_key);
            if let (true, Some(length)) = (first, length) {
                *Arc::make_mut(&mut self.vip_lengths).entry(length).or_default() += 1;
            }
        }
        self.services.insert_mut(service.key.clone(), service);
    }

    fn remove_service(&mut self, name: &str) {
        // Most names that come here are a workload's uid, which is no service's name.
        if let Ok(key) = name.parse() {
            self.remove_service_key(&key);
        }
    }

    fn remove_service_key(&mut self, key: &NamespacedHostname) {
        let Some(service) = self.services.get(key).cloned() else { return };
        self.services_by_hostname.remove(&service.key.hostname, &service, by_key);
        for vip in vips(&service) {
            let last = self.services_by_vip.remove(&vip, &service, by_key);
            if last && !vip.is_single() {
                let lengths = Arc::make_mut(&mut self.vip_lengths);
                let length = (Family::of(vip.cidr.addr()), vip.cidr.prefix_len());
                if let Some(count) = lengths.get_mut(&length) {
                    *count -= 1;
                    if *count == 0 {
                        lengths.remove(&length);
                    }
                }
            }
        }
        self.services.remove_mut(key);
    }

    fn insert_policy(&mut self, policy: Arc<Policy>) {
        if self.policies.get(&policy.key).is_some_and(|held| *held == policy) {
            return;
        }
        self.remove_policy(&policy.key.clone());
        match policy.scope {
            Scope::Global => {
                insert_sorted(Arc::make_mut(&mut self.global_policies), policy.clone(), by_policy_key);
            }
            Scope::Namespace => {
                self.policies_by_namespace.insert(policy.key.namespace.clone(), policy.clone(), by_policy_key);
            }
            Scope::WorkloadSelector => {}
        }
        self.policies.insert_mut(policy.key.clone(), policy);
    }

    fn remove_policy(&mut self, key: &PolicyKey) {
        let Some(policy) = self.policies.get(key).cloned() else { return };
        match policy.scope {
            Scope::Global => {
                remove_sorted(Arc::make_mut(&mut self.global_policies), &policy, by_policy_key);
            }
            Scope::Namespace => {
                self.policies_by_namespace.remove(&policy.key.namespace, &policy, by_policy_key);
            }
            Scope::WorkloadSelector => {}
        }
        self.policies.remove_mut(key);
    }
}

impl Entry<Key<'_>> for Arc<Workload> {
    fn hash_key(&self, hasher: &mut impl Hasher) {
        self.uid.hash(hasher);
    }

    fn has_key(&self, uid: &Key<'_>) -> bool {
        uid.is(&self.uid)
    }
}

impl Family {
    fn of(ip: IpAddr) -> Self {
        if ip.is_ipv4() { Self::V4 } else { Self::V6 }
    }
}

/// The best of several services of one name or address; the list is sorted by key, and the first wins.
fn best<'a>(services: impl IntoIterator<Item = &'a Arc<Service>>, view: &View<'_>) -> Option<&'a Arc<Service>> {
    services.into_iter().filter(|service| service.visible_to(view.namespace)).min_by_key(|service| {
        let namespace = &*service.key.namespace;
        Reverse((namespace == view.namespace, service.canonical, Some(namespace) == view.preferred_namespace))
    })
}

fn vips(service: &Service) -> impl Iterator<Item = NetworkCidr> + '_ {
    service.addresses.iter().map(|vip| NetworkCidr { network: vip.network.clone(), cidr: vip.cidr.trunc() })
}

fn by_preference(a: &Workload, b: &Workload) -> Ordering {
    let rank = |workload: &Workload| (!workload.is_pod(), workload.tunnel_protocol != TunnelProtocol::Hbone);
    rank(a).cmp(&rank(b)).then_with(|| a.uid.cmp(&b.uid))
}

fn by_name(a: &Workload, b: &Workload) -> Ordering {
    (&a.namespace, a.name(), &a.uid).cmp(&(&b.namespace, b.name(), &b.uid))
}

fn by_uid(a: &Workload, b: &Workload) -> Ordering {
    a.uid.cmp(&b.uid)
}

fn by_key(a: &Service, b: &Service) -> Ordering {
    a.key.cmp(&b.key)
}

fn by_policy_key(a: &Policy, b: &Policy) -> Ordering {
    a.key.cmp(&b.key)
}
