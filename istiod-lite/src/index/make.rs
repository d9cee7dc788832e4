//! An item's resources, from the objects as they are.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use aquifer_objects::crds::{AuthorizationPolicy, PeerAuthentication, PolicyCondition};
use aquifer_objects::{Kind, ObjectKey};
use aquifer_proto::security::Authorization;
use aquifer_proto::workload::{Address, Workload, address};
use bytes::Bytes;
use k8s_openapi::api::core::v1::Pod;
use prost::Message;
use xxhash_rust::xxh64::xxh64;

use super::objects::Name;
use super::{Change, Changes, Index, Item, Published};
use crate::translate::{network_policy, peer_authentication, policy, selects, service, status, workload};

impl Index {
    /// Makes an item's resources anew and publishes what differs.
    pub(super) fn translate(&mut self, item: Item, changes: &mut Changes) {
        match &item {
            Item::StaticStrict => {
                let sent =
                    self.objects.has_peer_authentications().then(|| peer_authentication::static_strict(&self.mesh));
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
                let sent = object.and_then(|policy| {
                    peer_authentication::converted(policy, self.relevant(&name.namespace), &self.mesh)
                });
                self.publish_policy(item, sent, changes);
            }
            Item::Service(name) => {
                let object = self.objects.services(&name.namespace).get(&name.name);
                let resource = object
                    .and_then(|object| service::service(object, self.objects.namespace(&name.namespace), &self.mesh));
                let sent = resource.map(|resource| {
                    let name = self.mesh.service_resource(&name.namespace, &name.name);
                    let aliases = service::aliases(&resource);
                    let address = Address { r#type: Some(address::Type::Service(resource)) };
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
                let service =
                    slice.and_then(|slice| self.objects.services(&name.namespace).get(workload::slice_service(slice)?));
                let sent = match (slice, service) {
                    (Some(slice), Some(service)) => workload::endpoint_slice(slice, service, &self.mesh),
                    _ => Vec::new(),
                };
                let sent = sent.into_iter().map(workload_resource).collect();
                publish(&mut self.addresses, &mut self.made, item, sent, &mut changes.addresses);
            }
        }
    }

    fn pod_workload(&self, name: &Name, pod: &Pod) -> Option<Workload> {
        let node = pod.spec.as_ref().and_then(|spec| self.objects.nodes.get(spec.node_name.as_deref()?));
        let services = self.objects.services(&name.namespace).values().map(|service| &**service);
        let mut made = workload::pod(pod, node.map(|node| &**node), services, self.policies_of(name, pod), &self.mesh)?;
        if self.mesh.same_node && workload::is_redirected(pod) && !self.is_restricted(name, pod) {
            made.extensions.push(workload::same_node());
        }
        Some(made)
    }

    /// Whether a NetworkPolicy selects the pod, so that what it sends and receives must be seen on the wire.
    fn is_restricted(&self, name: &Name, pod: &Pod) -> bool {
        let labels = pod.metadata.labels.as_ref();
        self.objects.network_policies(&name.namespace).values().any(|policy| network_policy::selects(policy, labels))
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
                // Only what is sent may be named: a name that never comes denies.
                if selected && policy::is_sent(policy) {
                    names.push(format!("{namespace}/{policy_name}"));
                }
            }
        }
        names.sort_unstable();
        names.extend(peer_authentication::required(
            &name.namespace,
            labels,
            self.relevant(&name.namespace),
            &self.mesh,
        ));
        names
    }

    /// The PeerAuthentications that may count in a namespace: its own and the root namespace's.
    fn relevant<'a>(&'a self, namespace: &str) -> impl Iterator<Item = &'a PeerAuthentication> + use<'a> {
        let own = self.objects.peer_authentications(namespace).values();
        let root =
            (!self.is_root(namespace)).then(|| self.objects.peer_authentications(&self.mesh.root_namespace).values());
        own.chain(root.into_iter().flatten()).map(|policy| &**policy)
    }

    fn conditions(&self, policy: &AuthorizationPolicy) -> Vec<PolicyCondition> {
        let exists = |kind: &str, namespace: &str, name: &str| {
            kind == "Service" && self.objects.services(namespace).contains_key(name)
        };
        status::conditions(policy, &self.mesh, &exists)
    }

    fn publish_policy(&mut self, item: Item, sent: Option<Authorization>, changes: &mut Changes) {
        let sent = sent.map(|policy| (format!("{}/{}", policy.namespace, policy.name), published(&policy, Vec::new())));
        publish(
            &mut self.authorizations,
            &mut self.made,
            item,
            sent.into_iter().collect(),
            &mut changes.authorizations,
        );
    }
}

fn workload_resource(workload: Workload) -> (String, Published) {
    let aliases = workload::aliases(&workload);
    let name = workload.uid.clone();
    (name, published(&Address { r#type: Some(address::Type::Workload(workload)) }, aliases))
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
