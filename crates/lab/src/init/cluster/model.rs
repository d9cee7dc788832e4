//! The objects as the cluster knows them, and what it says of itself.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use aquifer_objects::{Kind, Object, ObjectKey};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, Service, ServiceSpec};

use crate::addresses::Plan;
use crate::init::components;
use crate::init::deployments::{OwnedPod, TEMPLATE_HASH};
use crate::init::endpoints::PodView;
use crate::init::pod::PodState;
use crate::init::shared::Shared;
use crate::status::{ComponentStatus, NodeStatus, PodInfo, Status};

/// A pod that lives, with its object as last seen.
pub(super) struct Entry {
    pub(super) object: Arc<Pod>,
    pub(super) state: Arc<PodState>,
    pub(super) age: u64,
    pub(super) redirection: Option<String>,
}

impl Entry {
    /// The pod as Services see it. Without a sandbox it has no address yet.
    pub(super) fn view<'a>(shared: &'a Shared) -> impl Fn(&'a Self) -> PodView<'a> {
        |entry| {
            let live = entry.state.live.lock();
            let up = live.namespaces.is_some();
            PodView {
                pod: &entry.object,
                ips: if up { &entry.state.ips } else { &[] },
                node: &shared.node(entry.state.node).name,
                uid: &entry.state.uid,
                ready: live.ready,
                terminating: entry.state.is_terminating(),
            }
        }
    }

    pub(super) fn belongs_to(&self, deployment: &(String, String)) -> bool {
        self.state.namespace == deployment.0 && self.state.deployment.as_ref() == Some(&deployment.1)
    }

    pub(super) fn owned(&self) -> OwnedPod {
        let live = self.state.live.lock();
        let labels = self.state.pod.metadata.labels.as_ref();
        OwnedPod {
            name: self.state.name.clone(),
            hash: labels.and_then(|labels| labels.get(TEMPLATE_HASH)).cloned().unwrap_or_default(),
            ready: live.ready,
            terminating: self.state.is_terminating(),
            finished: matches!(live.phase, "Failed" | "Succeeded"),
            age: self.age,
        }
    }

    fn info(&self, shared: &Shared) -> PodInfo {
        let (state, live) = (&self.state, self.state.live.lock());
        PodInfo {
            namespace: state.namespace.clone(),
            name: state.name.clone(),
            uid: state.uid.clone(),
            deployment: state.deployment.clone(),
            service_account: state.service_account.clone(),
            node: shared.node(state.node).name.clone(),
            ips: if live.namespaces.is_some() { state.ips.clone() } else { Vec::new() },
            phase: live.phase.to_owned(),
            ready: live.ready,
            terminating: state.is_terminating(),
            restarts: live.containers.values().map(|container| container.restarts).sum(),
            redirection: self.redirection.clone(),
            message: live.message.clone(),
        }
    }
}

/// The Deployment of a pod, through the name of its ReplicaSet.
pub(super) fn deployment_of(pod: &Pod) -> Option<String> {
    let owner = pod.metadata.owner_references.iter().flatten().find(|owner| owner.kind == "ReplicaSet")?;
    let hash = pod.metadata.labels.as_ref()?.get(TEMPLATE_HASH)?;
    Some(owner.name.strip_suffix(hash.as_str())?.strip_suffix('-')?.to_owned())
}

/// The addresses of a Service with this number, by the families that it wants.
pub(super) fn service_ips(plan: Plan, number: u16, spec: &ServiceSpec) -> Vec<IpAddr> {
    let all = plan.service(number);
    let wanted = spec.ip_families.as_deref().unwrap_or_default();
    let single = spec.ip_family_policy.as_deref() == Some("SingleStack");
    let mut ips: Vec<IpAddr> = match wanted {
        [] => all.clone(),
        families => {
            let of_family = |family: &String| all.iter().find(|ip| ip.is_ipv6() == (family == "IPv6")).copied();
            families.iter().filter_map(of_family).collect()
        }
    };
    if single {
        ips.truncate(1);
    }
    // A family that the lab lacks is no reason to have no address.
    if ips.is_empty() { all } else { ips }
}

/// Deployments and Services, and the numbers that Services have.
#[derive(Default)]
pub(super) struct Model {
    objects: BTreeMap<ObjectKey, Object>,
    numbers: HashMap<(String, String), Vec<u16>>,
}

impl Model {
    pub(super) fn apply(&mut self, object: Object) {
        if object.kind() != Kind::EndpointSlice {
            self.objects.insert(object.key(), object);
        }
    }

    pub(super) fn delete(&mut self, key: &ObjectKey) {
        self.objects.remove(key);
    }

    pub(super) fn has(&self, key: &ObjectKey) -> bool {
        self.objects.contains_key(key)
    }

    pub(super) fn keys_in(&self, namespace: &str) -> Vec<ObjectKey> {
        self.objects.keys().filter(|key| *key.namespace == *namespace && key.kind.namespaced()).cloned().collect()
    }

    pub(super) fn services(&self) -> Vec<Arc<Service>> {
        let service =
            |object: &Object| if let Object::Service(service) = object { Some(Arc::clone(service)) } else { None };
        self.objects.values().filter_map(service).collect()
    }

    pub(super) fn deployments(&self) -> Vec<Arc<Deployment>> {
        let deployment = |object: &Object| {
            if let Object::Deployment(deployment) = object { Some(Arc::clone(deployment)) } else { None }
        };
        self.objects.values().filter_map(deployment).collect()
    }

    pub(super) fn has_deployment(&self, namespace: &str, name: &str) -> bool {
        self.has(&ObjectKey::new(Kind::Deployment, namespace, name))
    }

    pub(super) fn number_of(&self, service: &Service) -> Option<u16> {
        self.numbers.get(&name_of(service))?.first().copied()
    }

    pub(super) fn remember_number(&mut self, service: &Service, number: u16) {
        let numbers = self.numbers.entry(name_of(service)).or_default();
        if !numbers.contains(&number) {
            numbers.push(number);
        }
    }

    /// The numbers that are free again.
    pub(super) fn forget_service(&mut self, name: &(String, String)) -> Vec<u16> {
        self.numbers.remove(name).unwrap_or_default()
    }
}

fn name_of(service: &Service) -> (String, String) {
    let text = |name: &Option<String>| name.clone().unwrap_or_default();
    (text(&service.metadata.namespace), text(&service.metadata.name))
}

/// What `aquifer lab status` shows.
pub(super) fn status(shared: &Shared, pods: &BTreeMap<(String, String), Entry>) -> Status {
    let component = |(component, state): (&crate::options::Component, &Arc<PodState>)| ComponentStatus {
        component: component.clone(),
        pod: state.name.clone(),
        pid: components::pid(state),
        ready: state.live.lock().ready,
        ips: state.ips.clone(),
    };
    Status {
        name: shared.name.clone(),
        uptime: shared.uptime(),
        start_took: shared.start_took(),
        nodes: shared
            .nodes()
            .iter()
            .map(|node| NodeStatus { name: node.name.clone(), ips: node.ips.clone() })
            .collect(),
        pods: pods.values().map(|entry| entry.info(shared)).collect(),
        components: shared.components.lock().iter().map(component).collect(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_deployments_name_is_in_its_pods() {
        let pod = |set: &str, hash: &str| -> Pod {
            serde_json::from_value(json!({"metadata": {
                "labels": {"pod-template-hash": hash},
                "ownerReferences": [{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "uid": "u"}],
            }}))
            .unwrap()
        };
        assert_eq!(deployment_of(&pod("web-front-abc12", "abc12")).as_deref(), Some("web-front"));
        assert_eq!(deployment_of(&pod("web", "abc12")), None);
        assert_eq!(deployment_of(&Pod::default()), None);
    }

    #[test]
    fn services_get_the_families_they_ask_for() {
        let cases = [
            (json!({}), true, "198.19.0.20 fd00:19::14"),
            (json!({}), false, "198.19.0.20"),
            (json!({"ipFamilyPolicy": "SingleStack"}), true, "198.19.0.20"),
            (json!({"ipFamilies": ["IPv6"]}), true, "fd00:19::14"),
            (json!({"ipFamilies": ["IPv6", "IPv4"]}), true, "fd00:19::14 198.19.0.20"),
            (json!({"ipFamilies": ["IPv6"]}), false, "198.19.0.20"),
        ];
        for (spec, ipv6, expect) in cases {
            let spec: ServiceSpec = serde_json::from_value(spec).unwrap();
            let ips: Vec<String> = service_ips(Plan::new(ipv6), 20, &spec).iter().map(IpAddr::to_string).collect();
            assert_eq!(ips.join(" "), expect);
        }
    }
}
