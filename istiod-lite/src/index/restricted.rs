//! What NetworkPolicies do to tunnels. They have no status of ours, so it is said on the Services of the pods that they
//! select, and once in the log.
//!
//! What a policy does to a pod depends on the pod's labels, on whether it belongs to the mesh, and on the policies of its
//! namespace: a pod's change costs a look at these, and reaches its Services only if the answer is another than before.

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_objects::crds::PolicyCondition;

use super::objects::Space;
use super::{Index, Item};
use crate::translate::labels::LabelSet;
use crate::translate::network_policy::{Direction, NetworkPolicyFacts};
use crate::translate::pod::PodFacts;
use crate::translate::service::ServiceFacts;
use crate::translate::status::{RESTRICTED, condition};
use crate::translate::waypoint::Key;

/// What becomes of tunnels, or of a policy; the worst first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Matter {
    InboundBlocked,
    OutboundBlocked,
    InboundUnseen,
    OutboundUnseen,
}

/// What a policy does to a pod.
pub(super) type Restriction = (Matter, Arc<str>);

impl Matter {
    /// The code of the finding.
    pub(super) fn code(self) -> &'static str {
        match self {
            Self::InboundBlocked => super::findings::BLOCKS_INBOUND,
            Self::OutboundBlocked => super::findings::BLOCKS_OUTBOUND,
            Self::InboundUnseen | Self::OutboundUnseen => super::findings::PORTS_UNSEEN,
        }
    }

    /// What is to be known of it behind a Service, and what to do.
    fn sentence(self, namespace: &str, policies: &str) -> String {
        match self {
            Self::InboundBlocked => format!(
                "nobody in the mesh reaches pods of this Service: tunnels come on TCP port 15008, which NetworkPolicy \
                 {policies} of {namespace} does not let through. Add an ingress rule for port 15008 with the same peers."
            ),
            Self::OutboundBlocked => format!(
                "pods of this Service reach nobody in the mesh: tunnels go to TCP port 15008, which NetworkPolicy \
                 {policies} of {namespace} does not let through. Add an egress rule for port 15008 with the same peers."
            ),
            Self::InboundUnseen => format!(
                "the ingress ports of NetworkPolicy {policies} of {namespace} do not restrict pods of this Service within \
                 the mesh: what is carried to them all comes on TCP port 15008. To restrict ports, write an \
                 AuthorizationPolicy with `ports`."
            ),
            Self::OutboundUnseen => format!(
                "the egress ports of NetworkPolicy {policies} of {namespace} do not restrict pods of this Service within \
                 the mesh: what is carried from them all goes to TCP port 15008. To restrict ports, write \
                 AuthorizationPolicies with `ports` at the destinations."
            ),
        }
    }
}

/// What the policies of a namespace do to its pods of the mesh with such labels, sorted.
pub(super) fn restrictions(space: &Space, labels: &LabelSet) -> Vec<Restriction> {
    let selecting: Vec<(&Arc<str>, &Arc<NetworkPolicyFacts>)> =
        space.network_policies.iter().filter(|(_, policy)| policy.selects(labels)).collect();
    let mut found = Vec::new();
    for inbound in [true, false] {
        let direction = |policy: &NetworkPolicyFacts| if inbound { policy.ingress } else { policy.egress };
        let concerned: Vec<(&Arc<str>, Direction)> =
            selecting.iter().filter_map(|(name, policy)| Some((*name, direction(policy)?))).collect();
        // What any of them lets through passes.
        let tunnels = concerned.iter().any(|(_, direction)| direction.tunnels);
        for (name, direction) in concerned {
            let matter = match (tunnels, inbound) {
                (false, true) => Matter::InboundBlocked,
                (false, false) => Matter::OutboundBlocked,
                (true, true) if direction.by_port => Matter::InboundUnseen,
                (true, false) if direction.by_port => Matter::OutboundUnseen,
                (true, _) => continue,
            };
            found.push((matter, name.clone()));
        }
    }
    found.sort();
    found
}

/// What the policies of a namespace do to those of its pods of the mesh that have such labels.
fn all_restrictions(space: &Space, which: impl Fn(&LabelSet) -> bool) -> BTreeSet<Restriction> {
    let redirected = |name: &Arc<str>| space.pods().get(name).is_some_and(|pod| pod.is_redirected());
    let sets = space.label_sets().filter(|(labels, pods)| which(labels) && pods.iter().any(redirected));
    sets.flat_map(|(labels, _)| restrictions(space, labels)).collect()
}

impl Index {
    fn restrictions_of(&self, pod: &PodFacts) -> Vec<Restriction> {
        let space = self.objects.space(&pod.namespace);
        if space.network_policies.is_empty() || !pod.is_redirected() {
            return Vec::new();
        }
        restrictions(space, &pod.labels)
    }

    /// A pod changed: its Services are looked at again if something else is to be said of it.
    pub(super) fn restricted_pod_changed(&mut self, old: Option<&PodFacts>, new: Option<&PodFacts>) {
        let [before, after] = [old, new].map(|pod| pod.map(|pod| self.restrictions_of(pod)).unwrap_or_default());
        let same_labels = matches!((old, new), (Some(old), Some(new)) if old.labels == new.labels);
        if before == after && (same_labels || before.is_empty()) {
            return;
        }
        for pod in [old, new].into_iter().flatten() {
            self.services_of_pod_changed(&pod.namespace, &pod.labels, &pod.name);
        }
    }

    /// The Services that a pod is behind are looked at again.
    pub(super) fn services_of_pod_changed(&mut self, namespace: &Arc<str>, labels: &LabelSet, pod: &str) {
        let space = self.objects.space(namespace);
        let selecting = space.service_selectors.candidates(labels);
        let naming = space.slices.naming(pod).map(|slice| &slice.service);
        let services: Vec<Item> =
            selecting.chain(naming).map(|name| Item::Service((namespace.clone(), name.clone()))).collect();
        self.dirty.extend(services);
    }

    /// What is said of a Service whose pods some NetworkPolicy keeps tunnels from.
    pub(super) fn restriction_of(&self, service: &ServiceFacts) -> Option<PolicyCondition> {
        let space = self.objects.space(&service.namespace);
        if space.network_policies.is_empty() || !service.published {
            return None;
        }
        let found: BTreeSet<Restriction> = if let Some(selector) = &service.selector {
            all_restrictions(space, |labels| labels.has(selector))
        } else {
            let named = space.slices.of(&service.name).flat_map(|slice| slice.pods.iter());
            let pods = named.filter_map(|pod| space.pods().get(pod)).filter(|pod| pod.is_redirected());
            pods.flat_map(|pod| restrictions(space, &pod.labels)).collect()
        };
        let (worst, _) = found.first()?;
        let mut sentences: Vec<String> = Vec::new();
        for matter in [Matter::InboundBlocked, Matter::OutboundBlocked, Matter::InboundUnseen, Matter::OutboundUnseen] {
            let policies: Vec<&str> =
                found.iter().filter(|(of, _)| *of == matter).map(|(_, policy)| &**policy).collect();
            if !policies.is_empty() {
                sentences.push(matter.sentence(&service.namespace, &policies.join(", ")));
            }
        }
        Some(condition(RESTRICTED, true, worst.code(), sentences.join(" ")))
    }

    /// What is not in the log yet of the policies that a pod meets.
    pub(super) fn news_of_restrictions(&mut self, pod: &PodFacts) -> Vec<super::Finding> {
        let mut news = Vec::new();
        for (matter, policy) in self.restrictions_of(pod) {
            let key: Key = (pod.namespace.clone(), policy);
            if self.told.entry(key.clone()).or_default().insert(matter) {
                news.push(super::findings::of_pod(matter, &key, &pod.name));
            }
        }
        news
    }

    /// Policies of a namespace changed: what holds no longer is told anew when it comes again.
    pub(super) fn forget_restrictions(&mut self, namespace: &Arc<str>) {
        if !self.told.keys().any(|(of, _)| of == namespace) {
            return;
        }
        let holding = all_restrictions(self.objects.space(namespace), |_| true);
        self.told.retain(|(of, policy), matters| {
            matters.retain(|matter| of != namespace || holding.contains(&(*matter, policy.clone())));
            !matters.is_empty()
        });
    }
}
