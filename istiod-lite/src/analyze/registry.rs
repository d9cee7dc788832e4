//! Which hosts there are, and who stands behind them.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_objects::{Kind, Object, ObjectKey};

use crate::translate::{Labels, Mesh};

/// Hosts, pods and what else findings look up.
pub(super) struct Registry<'a> {
    mesh: &'a Mesh,
    /// All objects there are.
    keys: BTreeSet<ObjectKey>,
    /// Labels of the pods and machines, by namespace.
    workloads: BTreeMap<&'a str, Vec<&'a Labels>>,
    hosts: BTreeMap<String, Vec<&'a Labels>>,
    /// `*.example.org` without the star.
    wildcards: Vec<String>,
}

impl<'a> Registry<'a> {
    pub(super) fn new(objects: &'a [Object], mesh: &'a Mesh) -> Self {
        let mut workloads: BTreeMap<&str, Vec<&Labels>> = BTreeMap::new();
        for object in objects {
            let labels = match object {
                Object::Pod(pod) => pod.metadata.labels.as_ref(),
                Object::WorkloadEntry(entry) => Some(&entry.spec.labels),
                _ => continue,
            };
            workloads.entry(object.namespace()).or_default().extend(labels);
        }
        let keys = objects.iter().map(Object::key).collect();
        let mut registry = Self { mesh, keys, workloads, hosts: BTreeMap::new(), wildcards: Vec::new() };
        for object in objects {
            match object {
                Object::Service(service) => {
                    let selector = service.spec.as_ref().and_then(|spec| spec.selector.as_ref());
                    let behind = selector
                        .filter(|selector| !selector.is_empty())
                        .map(|selector| registry.selected(object.namespace(), selector))
                        .unwrap_or_default();
                    registry.hosts.insert(mesh.service_hostname(object.namespace(), object.name()), behind);
                }
                Object::ServiceEntry(entry) => {
                    let mut behind: Vec<&Labels> =
                        entry.spec.endpoints.iter().map(|endpoint| &endpoint.labels).collect();
                    if let Some(selector) = &entry.spec.workload_selector {
                        behind.extend(registry.selected(object.namespace(), &selector.labels));
                    }
                    for host in &entry.spec.hosts {
                        match host.strip_prefix('*') {
                            Some(suffix) => registry.wildcards.push(suffix.to_owned()),
                            None => registry.hosts.entry(host.clone()).or_default().extend(behind.iter().copied()),
                        }
                    }
                }
                _ => {}
            }
        }
        registry
    }

    /// The host in full, as an object of the namespace names it.
    pub(super) fn expanded(&self, host: &str, namespace: &str) -> String {
        self.mesh.expanded(host, namespace)
    }

    /// Whether somebody has the host, which is written in full.
    pub(super) fn has_host(&self, host: &str) -> bool {
        let beyond = host.strip_prefix('*');
        self.hosts.contains_key(host)
            || self.wildcards.iter().any(|suffix| host.ends_with(&**suffix))
            || beyond.is_some_and(|suffix| self.hosts.keys().any(|host| host.ends_with(suffix)))
    }

    /// The labels of those behind a host; none if the host is unknown.
    pub(super) fn behind(&self, host: &str) -> &[&'a Labels] {
        self.hosts.get(host).map_or(&[], Vec::as_slice)
    }

    pub(super) fn has(&self, kind: Kind, namespace: &str, name: &str) -> bool {
        self.keys.contains(&ObjectKey::new(kind, namespace, name))
    }

    /// Whether a namespace's policies hold for the whole mesh.
    pub(super) fn is_root(&self, namespace: &str) -> bool {
        namespace == self.mesh.root_namespace
    }

    /// The labels of the namespace's workloads, or of all.
    pub(super) fn workloads(&self, namespace: Option<&str>) -> impl Iterator<Item = &'a Labels> {
        let wanted = move |of: &str| namespace.is_none_or(|namespace| namespace == of);
        self.workloads.iter().filter(move |(of, _)| wanted(of)).flat_map(|(_, all)| all.iter().copied())
    }

    fn selected(&self, namespace: &str, selector: &Labels) -> Vec<&'a Labels> {
        self.workloads(Some(namespace)).filter(|labels| has_all(labels, selector)).collect()
    }
}

/// Whether labels include others.
pub(super) fn has_all(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}
