//! The cluster: one task that owns all objects and brings pods, endpoints, names and rules in line with them.
//!
//! Everything it was told before a question is in force when the question is answered: a pod that the status calls
//! ready is reachable through its Services.

mod base;
mod model;
mod reconcile;

use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use aquifer_objects::{Kind, Object, ObjectKey, Watch};
use k8s_openapi::api::core::v1::Pod;
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};
use tokio::task::spawn_blocking;

use self::model::{Entry, Model, deployment_of};
use super::hosts::{self, HostEntry};
use super::pod::{self, Extra, Placement, PodState};
use super::shared::{Shared, new_uid};
use super::store::{self, Store};
use super::{components, dns};
use crate::addresses::{PodNumbers, ServiceNumbers};
use crate::error::{During, LabError, Result};
use crate::status::Status;

const WATCHED: [Kind; 6] =
    [Kind::Namespace, Kind::ServiceAccount, Kind::Deployment, Kind::Service, Kind::Pod, Kind::EndpointSlice];

const REDIRECTION: &str = "ambient.istio.io/redirection";

/// What the cluster is told.
#[derive(Debug)]
pub(super) enum Event {
    /// Make this pod, and say what became of it.
    Create(Box<NewPod>, oneshot::Sender<Result<Arc<PodState>>>),
    /// Some pod's readiness, addresses or end changed.
    PodChanged,
    /// A pod's sandbox is gone.
    PodGone(Arc<PodState>),
    /// How do things stand?
    Status(oneshot::Sender<Status>),
}

/// A pod that a part of the lab wants, already with its uid.
#[derive(Debug)]
pub(super) struct NewPod {
    pub(super) pod: Value,
    pub(super) uid: String,
    pub(super) extra: Extra,
}

/// Brings nodes and the cluster's own objects up, then the mesh.
pub(super) async fn start(shared: &Arc<Shared>) -> Result<()> {
    let making = Arc::clone(shared);
    let made =
        spawn_blocking(move || base::nodes(&making)).await.map_err(|panic| LabError::Start(panic.to_string()))?;
    shared.nodes.set(made?).map_err(|_| LabError::Start("the cluster was started twice".into()))?;
    let store = if shared.options.api_server {
        let (paths, ipv6) = (&shared.paths, shared.options.ipv6);
        let (store, server) =
            store::start_api_server(paths, shared.plan, ipv6, &shared.reaper, &shared.tracker).await?;
        // Set here alone.
        let _ = shared.api_server.set(server);
        store
    } else {
        Store::folder(&shared.paths)
    };
    shared.store.set(store).map_err(|_| LabError::Start("the cluster was started twice".into()))?;
    base::objects(shared).await?;
    let watch = shared.store().watch(&WATCHED)?;
    let cluster = Cluster::new(Arc::clone(shared));
    shared.tracker.spawn("cluster", cluster.run(shared.take_events(), watch));
    let resolver = if shared.options.dns { Some(dns::start(shared).await?) } else { None };
    if shared.options.mesh {
        components::start(shared).await?;
    }
    if let Some(resolver) = resolver {
        components::wait_ready(shared, &resolver).await?;
    }
    Ok(())
}

struct Cluster {
    shared: Arc<Shared>,
    model: Model,
    pods: BTreeMap<(String, String), Entry>,
    /// Free pod numbers of each node.
    numbers: Vec<PodNumbers>,
    service_numbers: ServiceNumbers,
    /// Pods that a person applied and that found no place: tried again whenever a pod has gone.
    waiting: BTreeMap<(String, String), Arc<Pod>>,
    /// Pods that ended: what the watch still says of them is old.
    gone: HashSet<String>,
    created: u64,
    slices: BTreeMap<(String, String), Value>,
    deployment_status: BTreeMap<(String, String), Value>,
    rules: String,
    hosts: Vec<HostEntry>,
}

impl Cluster {
    fn new(shared: Arc<Shared>) -> Self {
        let numbers = shared.nodes().iter().map(|_| PodNumbers::new()).collect();
        Self {
            shared,
            model: Model::default(),
            pods: BTreeMap::new(),
            numbers,
            service_numbers: ServiceNumbers::default(),
            waiting: BTreeMap::new(),
            gone: HashSet::new(),
            created: 0,
            slices: BTreeMap::new(),
            deployment_status: BTreeMap::new(),
            rules: String::new(),
            hosts: Vec::new(),
        }
    }

    async fn run(mut self, mut events: mpsc::UnboundedReceiver<Event>, mut watch: Watch) {
        loop {
            let mut questions = Vec::new();
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.event(event, &mut questions).await,
                    None => return,
                },
                object = watch.next() => match object {
                    Some(object) => self.object(object).await,
                    None => {
                        tracing::error!("the watch of the manifests ended");
                        return;
                    }
                },
            }
            while let Some(object) = watch.try_next() {
                self.object(object).await;
            }
            while let Ok(event) = events.try_recv() {
                self.event(event, &mut questions).await;
            }
            self.reconcile().await;
            if !questions.is_empty() {
                let status = self.status();
                // A pod may have turned ready meanwhile: what is called ready is in the rules.
                self.reconcile().await;
                for question in questions {
                    // Who asked may have gone away.
                    let _ = question.send(status.clone());
                }
            }
        }
    }

    async fn event(&mut self, event: Event, questions: &mut Vec<oneshot::Sender<Status>>) {
        match event {
            Event::Create(new, answer) => _ = answer.send(self.create(*new).await),
            Event::PodChanged => {}
            Event::PodGone(state) => {
                self.gone.insert(state.uid.clone());
                self.pods.remove(&(state.namespace.clone(), state.name.clone()));
                if let Some(number) = state.number {
                    self.numbers[usize::from(state.node) - 1].give_back(number);
                }
                for pod in std::mem::take(&mut self.waiting).into_values() {
                    self.pod_applied(pod).await;
                }
            }
            Event::Status(question) => questions.push(question),
        }
    }

    async fn object(&mut self, event: aquifer_objects::Event) {
        match event {
            aquifer_objects::Event::Synced => {}
            aquifer_objects::Event::Applied(Object::Pod(pod)) => self.pod_applied(pod).await,
            aquifer_objects::Event::Applied(Object::Namespace(namespace)) => {
                base::furnish_namespace(&self.shared, &namespace, &self.model).await;
                if namespace.metadata.deletion_timestamp.is_some() {
                    self.end_namespace(&text_of(&namespace.metadata.name));
                }
                self.model.apply(Object::Namespace(namespace));
            }
            aquifer_objects::Event::Applied(object) => self.model.apply(object),
            aquifer_objects::Event::Deleted(key) => self.deleted(&key).await,
        }
    }

    async fn pod_applied(&mut self, pod: Arc<Pod>) {
        let key = (text_of(&pod.metadata.namespace), text_of(&pod.metadata.name));
        let redirection =
            pod.metadata.annotations.as_ref().and_then(|annotations| annotations.get(REDIRECTION)).cloned();
        if let Some(entry) = self.pods.get_mut(&key) {
            entry.redirection = redirection;
            if pod.metadata.deletion_timestamp.is_some() && !entry.state.is_terminating() {
                let grace = pod.metadata.deletion_grace_period_seconds;
                entry.state.delete(grace.and_then(|grace| u64::try_from(grace).ok()));
            }
            entry.object = pod;
            return;
        }
        let uid = pod.metadata.uid.clone();
        let old = pod.metadata.deletion_timestamp.is_some() || uid.as_ref().is_some_and(|uid| self.gone.contains(uid));
        if old {
            return;
        }
        if let Err(error) = self.adopt(&pod).await {
            tracing::warn!(pod = key.1, %error, "not scheduled yet");
            self.waiting.insert(key, pod);
        }
    }

    /// Starts a pod that a person applied. Only what scheduling adds is ours to write.
    async fn adopt(&mut self, pod: &Arc<Pod>) -> Result<()> {
        let Some(pod) = self.shared.store().whole_pod(Arc::clone(pod)).await? else { return Ok(()) };
        let known = pod.metadata.uid.is_some();
        let uid = pod.metadata.uid.clone().unwrap_or_else(new_uid);
        self.begin(pod, (uid.clone(), uid), Extra::default(), known).await.map(drop)
    }

    /// Where a server keeps a namespace until it is empty, it is emptied, and let go when its last pod is gone.
    fn end_namespace(&self, name: &str) {
        for (_, entry) in self.pods.iter().filter(|((namespace, _), _)| namespace == name) {
            entry.state.delete(None);
        }
        let (shared, name) = (Arc::clone(&self.shared), name.to_owned());
        self.shared.tracker.spawn("namespace", async move {
            let Some(remote) = shared.store().remote() else { return };
            remote.empty_namespace(&name).await;
            while shared.pods.lock().keys().any(|(namespace, _)| *namespace == name) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            if let Err(error) = remote.finalize_namespace(&name).await {
                // Another of these was faster.
                tracing::debug!(namespace = name, %error, "letting a namespace go");
            }
        });
    }

    async fn deleted(&mut self, key: &ObjectKey) {
        let name = (key.namespace.to_string(), key.name.to_string());
        match key.kind {
            Kind::Pod => {
                self.waiting.remove(&name);
                if let Some(entry) = self.pods.get(&name) {
                    entry.state.delete(None);
                }
                return;
            }
            Kind::Namespace => {
                for inner in self.model.keys_in(&key.name) {
                    self.delete_object(&inner).await;
                }
                for (_, entry) in self.pods.iter().filter(|((namespace, _), _)| *namespace == *key.name) {
                    entry.state.delete(None);
                }
            }
            Kind::Service => {
                for number in self.model.forget_service(&name) {
                    self.service_numbers.give_back(number);
                }
                // Only our part may be left, if a person removed the manifest's file.
                self.shared.store().release(key);
            }
            _ => {}
        }
        self.model.delete(key);
    }

    async fn delete_object(&self, key: &ObjectKey) {
        if let Err(error) = self.shared.store().delete(key).await {
            tracing::debug!(object = %key, %error, "deleting");
        }
    }

    // --- Pods --------------------------------------------------------------------------------------------------

    async fn create(&mut self, new: NewPod) -> Result<Arc<PodState>> {
        let NewPod { mut pod, uid, extra } = new;
        let typed: Pod =
            serde_json::from_value(pod.clone()).map_err(|error| LabError::Manifest(format!("pod: {error}")))?;
        let node = self.choose_node(&typed)?;
        pod["spec"]["nodeName"] = json!(self.shared.node(node).name);
        let made = self.shared.store().create_pod(pod, &uid).await?;
        let own = made.metadata.uid.clone().unwrap_or_else(|| uid.clone());
        self.begin(Arc::new(made), (own, uid), extra, true).await
    }

    /// Gives the pod a node and addresses, and starts its life.
    async fn begin(
        &mut self,
        pod: Arc<Pod>,
        (uid, folder): (String, String),
        extra: Extra,
        uid_known: bool,
    ) -> Result<Arc<PodState>> {
        let node = self.choose_node(&pod)?;
        let host_network = pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        let numbers = &mut self.numbers[usize::from(node) - 1];
        let full = || LabError::Refused(format!("node{node} is full: 253 pods"));
        let number = match (host_network, pod::wanted_ipv4(&pod)) {
            (true, _) => None,
            (false, None) => Some(numbers.take().ok_or_else(full)?),
            (false, Some(wanted)) => {
                let number = wanted.octets()[3];
                let on_node = self.shared.plan.pod(node, number).contains(&IpAddr::V4(wanted));
                let taken = if on_node { numbers.take_exactly(number) } else { None };
                Some(taken.ok_or_else(|| LabError::Refused(format!("address {wanted} is not free on node{node}")))?)
            }
        };
        let mut ips = match number {
            Some(number) => self.shared.plan.pod(node, number),
            None => self.shared.plan.node(node),
        };
        if pod::without_ipv6(&pod) {
            ips.retain(IpAddr::is_ipv4);
        }
        let key = (text_of(&pod.metadata.namespace), text_of(&pod.metadata.name));
        if pod.spec.as_ref().and_then(|spec| spec.node_name.as_ref()).is_none() || !uid_known {
            let new_uid = (!uid_known).then_some(uid.as_str());
            let object = ObjectKey::new(Kind::Pod, &key.0, &key.1);
            self.shared.store().bind_pod(&object, &self.shared.node(node).name, new_uid).await?;
        }
        let own = self.shared.paths.pod(&folder);
        fs::create_dir_all(&own).during(|| format!("making {}", own.display()))?;
        let services = hosts::listed(&self.hosts, self.shared.options.dns, extra.component.is_some());
        fs::write(own.join("hosts"), hosts::render(&key.1, &ips, &key.0, services))
            .during(|| "writing a pod's hosts".into())?;
        let placement = Placement { node, number, ips, deployment: deployment_of(&pod) };
        let state = pod::start(&self.shared, Arc::clone(&pod), (uid, folder), placement, extra);
        self.created += 1;
        self.pods.insert(key, Entry { object: pod, state: Arc::clone(&state), age: self.created, redirection: None });
        Ok(state)
    }

    /// The node that the pod names or selects, else the one with the fewest of its kind, then the fewest pods.
    fn choose_node(&self, pod: &Pod) -> Result<u8> {
        let spec = pod.spec.as_ref();
        let selected = spec.and_then(|spec| spec.node_selector.as_ref()?.get("kubernetes.io/hostname"));
        if let Some(name) = spec.and_then(|spec| spec.node_name.as_ref()).or(selected) {
            let node = self.shared.node_named(name);
            return node.map(|node| node.number).ok_or_else(|| LabError::Refused(format!("there is no node `{name}`")));
        }
        let deployment = deployment_of(pod);
        let load = |number: u8| {
            let on_node =
                self.pods.values().filter(|entry| entry.state.node == number && !entry.state.is_terminating());
            let (mut alike, mut all) = (0, 0);
            for entry in on_node {
                all += 1;
                alike += usize::from(deployment.is_some() && entry.state.deployment == deployment);
            }
            (alike, all, number)
        };
        let least = self.shared.nodes().iter().map(|node| load(node.number)).min();
        least.map(|(_, _, number)| number).ok_or_else(|| LabError::Refused("there is no node".into()))
    }

    fn status(&self) -> Status {
        model::status(&self.shared, &self.pods)
    }
}

fn text_of(name: &Option<String>) -> String {
    name.clone().unwrap_or_default()
}
