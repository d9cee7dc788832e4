//! Brings pods, endpoints, names and rules in line with the objects.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use aquifer_objects::{Kind, Object, ObjectKey};
use k8s_openapi::api::core::v1::Service;
use rand::rng;
use serde_json::{Value, json};
use tokio::task::spawn_blocking;

use super::model::{self, Entry};
use super::{Cluster, NewPod, text_of};
use crate::error::{LabError, Result};
use crate::init::deployments::{self, Step};
use crate::init::pod::Extra;
use crate::init::reaper::Place;
use crate::init::sandbox::Namespaces;
use crate::init::shared::new_uid;
use crate::init::{dns, endpoints, hosts, rules};

impl Cluster {
    pub(super) async fn reconcile(&mut self) {
        self.deployments().await;
        self.give_service_addresses().await;
        let services = self.model.services();
        let views: Vec<_> = self.pods.values().map(Entry::view(&self.shared)).collect();
        let mut slices = BTreeMap::new();
        let mut ports = Vec::new();
        let mut names = Vec::new();
        for service in &services {
            for slice in endpoints::slices(service, &views) {
                let key = (text_of(&slice.metadata.namespace), text_of(&slice.metadata.name));
                slices.insert(key, Object::from(slice).to_json());
            }
            ports.extend(endpoints::service_ports(service, &views));
            names.push(endpoints::host_entry(service, &views));
        }
        let mut ips: Vec<IpAddr> = views.iter().flat_map(|view| view.ips.iter().copied()).collect();
        ips.sort_unstable();
        ips.dedup();
        drop(views);
        self.write_slices(slices).await;
        names.sort();
        if names != self.hosts {
            self.hosts = names;
            self.write_hosts();
        }
        let rules = rules::render(&ports, &ips);
        if rules != self.rules {
            match self.apply_rules(rules.clone()).await {
                Ok(()) => self.rules = rules,
                Err(error) => tracing::error!(%error, "Service rules were not applied"),
            }
        }
    }

    async fn deployments(&mut self) {
        for deployment in self.model.deployments() {
            let key = (text_of(&deployment.metadata.namespace), text_of(&deployment.metadata.name));
            let hash = deployments::template_hash(&deployment);
            let owned = self.pods.values().filter(|entry| entry.belongs_to(&key)).map(Entry::owned).collect::<Vec<_>>();
            let replicas = deployments::replicas(&deployment);
            for step in deployments::steps(replicas, &hash, &owned) {
                match step {
                    Step::Create(count) => {
                        for _ in 0..count {
                            let pod = deployments::new_pod(&deployment, &hash, &mut rng());
                            let new = NewPod { pod, uid: new_uid(), extra: Extra::default() };
                            if let Err(error) = self.create(new).await {
                                tracing::warn!(deployment = key.1, %error, "a pod was not made");
                                break;
                            }
                        }
                    }
                    Step::Delete(name) => {
                        if let Some(entry) = self.pods.get(&(key.0.clone(), name)) {
                            entry.state.delete(None);
                        }
                    }
                }
            }
            let ready = owned.iter().filter(|pod| pod.ready && !pod.terminating).count();
            let alive = owned.iter().filter(|pod| !pod.terminating && !pod.finished).count();
            let updated = owned.iter().filter(|pod| !pod.terminating && !pod.finished && pod.hash == hash).count();
            let status = json!({"replicas": alive, "readyReplicas": ready, "availableReplicas": ready, "updatedReplicas": updated});
            if self.deployment_status.get(&key) != Some(&status) {
                let object = ObjectKey::new(Kind::Deployment, &key.0, &key.1);
                if let Err(error) = self.shared.store().patch_status(&object, status.clone()).await {
                    tracing::debug!(%error, "writing a deployment's status");
                }
                self.deployment_status.insert(key, status);
            }
        }
        // Pods whose Deployment is gone go too.
        for ((namespace, _), entry) in &self.pods {
            let orphaned =
                entry.state.deployment.as_ref().is_some_and(|name| !self.model.has_deployment(namespace, name));
            if orphaned && !entry.state.is_terminating() {
                entry.state.delete(None);
            }
        }
    }

    async fn give_service_addresses(&mut self) {
        for service in self.model.services() {
            let spec = service.spec.clone().unwrap_or_default();
            let external = spec.type_.as_deref() == Some("ExternalName");
            if external || spec.cluster_ip.as_deref() == Some("None") {
                continue;
            }
            let own = endpoints::cluster_ips(&service);
            if !own.is_empty() {
                for number in own.iter().filter_map(|ip| self.shared.plan.service_number(*ip)) {
                    self.service_numbers.reserve(number);
                    self.model.remember_number(&service, number);
                }
                continue;
            }
            let number = self.model.number_of(&service).or_else(|| self.service_numbers.take());
            let Some(number) = number else {
                tracing::warn!(service = service.metadata.name, "no Service address is left");
                continue;
            };
            self.model.remember_number(&service, number);
            let ips = model::service_ips(self.shared.plan, number, &spec);
            let families: Vec<&str> = ips.iter().map(|ip| if ip.is_ipv4() { "IPv4" } else { "IPv6" }).collect();
            let policy = if ips.len() > 1 { "PreferDualStack" } else { "SingleStack" };
            let patch = json!({"spec": {
                "clusterIP": ips.first(), "clusterIPs": ips, "ipFamilies": families,
                "ipFamilyPolicy": spec.ip_family_policy.as_deref().unwrap_or(policy),
                "type": spec.type_.as_deref().unwrap_or("ClusterIP"),
            }});
            let key = Object::Service(Arc::clone(&service)).key();
            if let Err(error) = self.shared.store().patch(&key, patch.clone()).await {
                tracing::debug!(%error, "writing a Service's address");
                continue;
            }
            // Not waiting for the watch to tell us what we wrote.
            self.model.apply(Object::from(patched_service(&service, &patch)));
        }
    }

    async fn write_slices(&mut self, slices: BTreeMap<(String, String), Value>) {
        for (key, slice) in &slices {
            if self.slices.get(key) != Some(slice)
                && let Err(error) = self.shared.store().apply(slice.clone()).await
            {
                tracing::warn!(%error, "writing an EndpointSlice");
            }
        }
        for key in self.slices.keys().filter(|key| !slices.contains_key(*key)) {
            self.delete_object(&ObjectKey::new(Kind::EndpointSlice, &key.0, &key.1)).await;
        }
        self.slices = slices;
    }

    fn write_hosts(&self) {
        let dns = self.shared.options.dns;
        if dns {
            dns::write(&self.shared, &self.hosts);
        }
        for ((namespace, name), entry) in &self.pods {
            let file = self.shared.paths.pod(&entry.state.folder).join("hosts");
            // In place: the pod has this very file mounted.
            let services = hosts::listed(&self.hosts, dns, entry.state.extra.component.is_some());
            if let Err(error) = fs::write(&file, hosts::render(name, &entry.state.ips, namespace, services)) {
                tracing::debug!(%error, pod = name, "writing hosts");
            }
        }
    }

    async fn apply_rules(&self, rules: String) -> Result<()> {
        let shared = Arc::clone(&self.shared);
        let apply = move || {
            for node in shared.nodes() {
                let place = Place::of(&Namespaces::net_only(Arc::clone(&node.net)));
                shared.reaper.run("nft", &["-f", "-"], &rules, &place)?;
            }
            Ok(())
        };
        spawn_blocking(apply).await.map_err(|panic| LabError::Refused(panic.to_string()))?
    }
}

fn patched_service(service: &Service, patch: &Value) -> Service {
    let mut spec = json!(service.spec);
    if let (Some(spec), Some(fields)) = (spec.as_object_mut(), patch["spec"].as_object()) {
        spec.extend(fields.clone());
    }
    let mut patched = service.clone();
    patched.spec = serde_json::from_value(spec).ok().or(patched.spec);
    patched
}
