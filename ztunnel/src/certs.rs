//! Which identities this node needs certificates for: those of its HBONE workloads, and those of enrolled pods, whether
//! or not the control plane already calls them HBONE (it does so only after we serve them).

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aquifer_core::identity::Identity;
use aquifer_core::state::MeshState;
use aquifer_tls::{CertManager, TrustBundle};
use parking_lot::Mutex;

use crate::inpod::zds::{PodUid, WorkloadInfo};

/// Keeps the manager's list of identities equal to what is needed. Clones share it.
#[derive(Clone)]
pub struct Identities {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    node: String,
    manager: CertManager,
    pods: BTreeMap<PodUid, WorkloadInfo>,
    held: BTreeSet<Identity>,
}

impl Identities {
    /// For the pods of `node`; none yet.
    #[must_use]
    pub fn new(node: &str, manager: CertManager) -> Self {
        let inner = Inner { node: node.to_owned(), manager, pods: BTreeMap::new(), held: BTreeSet::new() };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }

    /// Whose pods these are.
    #[must_use]
    pub fn node(&self) -> String {
        self.inner.lock().node.clone()
    }

    /// The control plane says whom to trust, or has no such word (any more).
    pub fn trust(&self, bundle: Option<TrustBundle>) -> Result<(), String> {
        let manager = self.inner.lock().manager.clone();
        manager.adopt(bundle).map_err(|e| e.to_string())
    }

    /// A new state is about to be published: whoever reads it may ask for these identities at once.
    pub fn follow(&self, state: &MeshState) {
        self.inner.lock().update(state);
    }

    /// A pod is enrolled.
    pub fn add(&self, uid: &PodUid, info: &WorkloadInfo, state: &MeshState) {
        let mut inner = self.inner.lock();
        inner.pods.insert(uid.clone(), info.clone());
        inner.update(state);
    }

    /// A pod has left.
    pub fn remove(&self, uid: &PodUid, state: &MeshState) {
        let mut inner = self.inner.lock();
        inner.pods.remove(uid);
        inner.update(state);
    }
}

impl Inner {
    fn update(&mut self, state: &MeshState) {
        let mut needed = state.identities_on_node(&self.node);
        needed.extend(self.pods.values().filter_map(|pod| {
            let workload = state.local_workload(&self.node, &pod.name, &pod.namespace, &pod.service_account)?;
            Some(workload.identity())
        }));
        for new in needed.difference(&self.held) {
            self.manager.want(new);
        }
        for gone in self.held.difference(&needed) {
            self.manager.forget(gone);
        }
        self.held = needed;
    }
}
