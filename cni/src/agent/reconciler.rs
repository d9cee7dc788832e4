//! Events in, one worker a pod out.

use crate::agent::decision::{
    Decision, Defaults, Ignored, NOT_ENROLLED_REASON, REDIRECTION, annotation, desired, ignored,
};
use crate::agent::effects::{Effects, Marks, PodId};
use crate::agent::worker::{self, Created, Order, Stocktaking, Target};
use crate::metrics::{EventLabels, Metrics};
use aquifer_objects::{Event, Kind, Object, ObjectKey};
use aquifer_runtime::Tracker;
use k8s_openapi::api::core::v1::{Namespace, Pod};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;
use tokio::sync::mpsc;

/// (namespace, name).
type PodKey = (String, String);

/// A pod of this node that the CNI plugin tells of.
#[derive(Debug)]
pub struct CmdAdd {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What was created, and who waits.
    pub created: Created,
}

/// Keeps the workers told.
pub struct Reconciler<E> {
    effects: Arc<E>,
    node: String,
    defaults: Defaults,
    metrics: Metrics,
    tracker: Tracker,
    namespaces: BTreeMap<String, Arc<Namespace>>,
    pods: BTreeMap<PodKey, Known>,
    /// The plugin is often faster than the watch.
    early: Vec<CmdAdd>,
    /// Until the first `Synced`.
    stocktaking: Option<Stocktaking>,
}

struct Known {
    pod: Arc<Pod>,
    uid: String,
    orders: mpsc::UnboundedSender<Order>,
    told: Option<Target>,
    /// Annotations that someone was warned of.
    ignored: Vec<Ignored>,
}

impl<E: Effects> Reconciler<E> {
    /// Knows nothing yet. `stocktaking` is given up when every pod that was there at the start has been looked at.
    pub fn new(
        effects: Arc<E>,
        node: String,
        defaults: Defaults,
        metrics: Metrics,
        tracker: Tracker,
        stocktaking: Stocktaking,
    ) -> Self {
        Self {
            effects,
            node,
            defaults,
            metrics,
            tracker,
            namespaces: BTreeMap::new(),
            pods: BTreeMap::new(),
            early: Vec::new(),
            stocktaking: Some(stocktaking),
        }
    }

    /// One change of the objects.
    pub fn event(&mut self, event: Event) {
        match event {
            Event::Synced => {
                // Before it, a pod may have come without its namespace: only now is a decision a decision.
                let keys: Vec<PodKey> = self.pods.keys().cloned().collect();
                for key in keys {
                    self.decide(&key);
                }
                self.stocktaking = None;
            }
            Event::Applied(Object::Namespace(namespace)) => self.namespace(namespace),
            Event::Applied(Object::Pod(pod)) => self.pod(pod),
            Event::Deleted(key) => self.deleted(&key),
            Event::Applied(_) => {}
        }
    }

    /// The CNI plugin's call. One for a pod that is not known yet waits for it.
    pub fn created(&mut self, call: CmdAdd) {
        self.early.retain(|call| !call.created.answer.is_closed());
        let key = (call.namespace.clone(), call.name.clone());
        let known = self.pods.get(&key).filter(|known| known.told.is_some());
        match known {
            Some(known) => {
                let _ = known.orders.send(Order::Created(call.created));
            }
            None => self.early.push(call),
        }
    }

    /// The names of all pods of this node, by uid.
    pub fn uids(&self) -> Vec<String> {
        self.pods.values().map(|known| known.uid.clone()).collect()
    }

    fn namespace(&mut self, namespace: Arc<Namespace>) {
        let Some(name) = namespace.metadata.name.clone() else { return };
        self.count(if self.namespaces.contains_key(&name) { "update" } else { "add" });
        self.namespaces.insert(name.clone(), namespace);
        self.decide_namespace(&name);
    }

    fn pod(&mut self, pod: Arc<Pod>) {
        let key = (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default());
        let here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(self.node.as_str());
        let uid = pod.metadata.uid.clone().unwrap_or_default();
        if !here || uid.is_empty() {
            // Perhaps a new pod of that name, elsewhere.
            return self.gone(&key);
        }
        match self.pods.get_mut(&key) {
            Some(known) if known.uid == uid => {
                known.pod = pod;
                self.count("update");
            }
            _ => {
                // A pod of the same name that is another one: a StatefulSet's, or re-created by hand.
                self.gone(&key);
                let (orders, received) = mpsc::unbounded_channel();
                let id = identify(&pod, &uid);
                let worker = worker::run(self.effects.clone(), id, received, self.stocktaking.clone());
                self.tracker.spawn("pod", worker);
                self.pods.insert(key.clone(), Known { pod, uid, orders, told: None, ignored: Vec::new() });
                self.count("add");
            }
        }
        self.decide(&key);
    }

    fn deleted(&mut self, key: &ObjectKey) {
        self.count("delete");
        match key.kind {
            Kind::Namespace => {
                self.namespaces.remove(&*key.name);
                self.decide_namespace(&key.name);
            }
            Kind::Pod => self.gone(&(key.namespace.to_string(), key.name.to_string())),
            _ => {}
        }
    }

    fn gone(&mut self, key: &PodKey) {
        if let Some(known) = self.pods.remove(key) {
            let _ = known.orders.send(Order::Gone);
        }
    }

    fn decide_namespace(&mut self, namespace: &str) {
        let keys: Vec<PodKey> = self.pods.keys().filter(|(own, _)| own == namespace).cloned().collect();
        for key in keys {
            self.decide(&key);
        }
    }

    /// Tells the worker what shall be, if that is new.
    fn decide(&mut self, key: &PodKey) {
        let namespace = self.namespaces.get(&key.0);
        let Some(known) = self.pods.get_mut(key) else { return };
        if namespace.is_none() && self.stocktaking.is_some() {
            return;
        }
        let target = Target {
            decision: desired(&known.pod, namespace.map(Arc::as_ref), &self.defaults),
            ips: addresses(&known.pod),
            marks: Marks {
                redirection: annotation(&known.pod, REDIRECTION).map(str::to_owned),
                reason: annotation(&known.pod, NOT_ENROLLED_REASON).map(str::to_owned),
            },
        };
        if matches!(target.decision, Decision::Enrol(_)) {
            let ignored = ignored(&known.pod);
            for annotation in ignored.iter().filter(|annotation| !known.ignored.contains(annotation)) {
                self.effects.ignored(&identify(&known.pod, &known.uid), annotation);
            }
            known.ignored = ignored;
        }
        if known.told.as_ref() != Some(&target) {
            known.told = Some(target.clone());
            let _ = known.orders.send(Order::Shall(target));
        }
        let (now, early) =
            std::mem::take(&mut self.early).into_iter().partition(|call| call.namespace == key.0 && call.name == key.1);
        self.early = early;
        let now: Vec<CmdAdd> = now;
        for call in now {
            self.created(call);
        }
    }

    fn count(&self, r#type: &'static str) {
        self.metrics.events.get_or_create(&EventLabels { r#type }).inc();
    }
}

fn identify(pod: &Pod, uid: &str) -> PodId {
    let account = pod.spec.as_ref().and_then(|spec| spec.service_account_name.clone());
    PodId {
        uid: uid.to_owned(),
        namespace: pod.metadata.namespace.clone().unwrap_or_default(),
        name: pod.metadata.name.clone().unwrap_or_default(),
        service_account: account.filter(|name| !name.is_empty()).unwrap_or_else(|| "default".into()),
    }
}

fn addresses(pod: &Pod) -> Vec<IpAddr> {
    let Some(status) = &pod.status else { return Vec::new() };
    let listed = status.pod_ips.iter().flatten().map(|entry| entry.ip.as_str());
    let mut ips: Vec<IpAddr> = listed.chain(status.pod_ip.as_deref()).filter_map(|ip| ip.parse().ok()).collect();
    ips.sort();
    ips.dedup();
    ips
}
