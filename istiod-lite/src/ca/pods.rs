//! The pods that exist, as far as authentication asks: by name, and by who runs on which node.
//!
//! Fed straight from the object stream, ahead of any debounce: a node asks for a pod's certificate
//! within milliseconds of the pod's start. One writer, many readers.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;
use tokio::sync::watch;

/// Written by the node agent when a pod's traffic is redirected.
const REDIRECTION: &str = "ambient.istio.io/redirection";

/// What authentication needs to know of a pod.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PodFacts {
    /// Kubernetes uid: a re-created pod of the same name is another pod.
    pub uid: String,
    /// Name of its service account.
    pub service_account: String,
    /// The node that it is bound to; empty before scheduling.
    pub node: String,
    /// Its phase is Failed: nothing of it runs any more.
    pub failed: bool,
    /// It is in the mesh: its node's proxy keeps a certificate for it.
    pub captured: bool,
}

impl PodFacts {
    /// Takes them from the object.
    pub fn of(pod: &Pod) -> Self {
        let spec = pod.spec.as_ref();
        let service_account = spec
            .and_then(|s| s.service_account_name.clone())
            .filter(|name| !name.is_empty())
            .unwrap_or_else(|| "default".into());
        let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        let annotation = pod.metadata.annotations.as_ref().and_then(|a| a.get(REDIRECTION));
        let redirected = annotation.is_some_and(|value| value == "enabled");
        Self {
            uid: pod.metadata.uid.clone().unwrap_or_default(),
            service_account,
            node: spec.and_then(|s| s.node_name.clone()).unwrap_or_default(),
            failed: phase == Some("Failed"),
            captured: redirected && !matches!(phase, Some("Failed" | "Succeeded")),
        }
    }
}

/// An empty table: its one writer and a reader to clone.
pub fn table() -> (PodWriter, Pods) {
    let table = Arc::new(RwLock::new(Table::default()));
    let changes = Arc::new(watch::Sender::new(0));
    (PodWriter { table: Arc::clone(&table), changes: Arc::clone(&changes) }, Pods { table, changes })
}

/// The reading end.
#[derive(Debug, Clone)]
pub struct Pods {
    table: Arc<RwLock<Table>>,
    changes: Arc<watch::Sender<u64>>,
}

/// The writing end.
#[derive(Debug)]
pub struct PodWriter {
    table: Arc<RwLock<Table>>,
    changes: Arc<watch::Sender<u64>>,
}

#[derive(Debug, Default)]
struct Table {
    pods: HashMap<(String, String), PodFacts>,
    /// (node, namespace, service account) → how many pods that have not failed.
    running: HashMap<(String, String, String), usize>,
}

impl Pods {
    /// The pod of that name, if it exists.
    pub fn get(&self, namespace: &str, name: &str) -> Option<PodFacts> {
        self.table.read().pods.get(&(namespace.into(), name.into())).cloned()
    }

    /// Whether a pod with that service account, not failed, is on the node.
    pub fn runs_on(&self, node: &str, namespace: &str, service_account: &str) -> bool {
        let key = (node.into(), namespace.into(), service_account.into());
        !node.is_empty() && self.table.read().running.contains_key(&key)
    }

    /// Every pod: namespace, name, facts. A copy, for what is looked at once in a while.
    pub fn all(&self) -> Vec<(String, String, PodFacts)> {
        let table = self.table.read();
        table.pods.iter().map(|((namespace, name), facts)| (namespace.clone(), name.clone(), facts.clone())).collect()
    }

    /// Ticks with each change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

impl PodWriter {
    /// A pod was added or changed.
    pub fn upsert(&self, namespace: &str, name: &str, facts: PodFacts) {
        let mut table = self.table.write();
        table.forget(namespace, name);
        if !facts.failed {
            *table.running.entry(running_key(namespace, &facts)).or_default() += 1;
        }
        table.pods.insert((namespace.into(), name.into()), facts);
        drop(table);
        self.changes.send_modify(|n| *n += 1);
    }

    /// A pod is gone.
    pub fn remove(&self, namespace: &str, name: &str) {
        self.table.write().forget(namespace, name);
    }
}

impl Table {
    fn forget(&mut self, namespace: &str, name: &str) {
        let Some(old) = self.pods.remove(&(namespace.into(), name.into())) else { return };
        if old.failed {
            return;
        }
        let key = running_key(namespace, &old);
        if let Some(count) = self.running.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                self.running.remove(&key);
            }
        }
    }
}

fn running_key(namespace: &str, facts: &PodFacts) -> (String, String, String) {
    (facts.node.clone(), namespace.into(), facts.service_account.clone())
}
