//! What a worker can do to a pod, and how it is really done on this node.

use crate::agent::decision::{Ignored, NOT_ENROLLED_REASON, REDIRECTION};
use crate::finder::Finder;
use crate::keeper::{Keeper, Layout};
use crate::metrics::Metrics;
use crate::netns::NetNs;
use crate::probes::Probes;
use crate::rules::pod::PodRules;
use crate::state::{Record, StateDir};
use crate::zds::{Zds, ZdsError, ZdsPod};
use crate::{migrate_req, redirection};
use aquifer_objects::{Kind, ObjectKey, WriteError, Writer};
use aquifer_proto::zds::WorkloadInfo;
use aquifer_runtime::Tracker;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::future::Future;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio::sync::watch;

/// What names a pod, for people and for the proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodId {
    /// The Kubernetes uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its service account.
    pub service_account: String,
}

/// Our annotations of a pod.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Marks {
    /// `enabled`, `pending` or none.
    pub redirection: Option<String>,
    /// Why it is not in, if someone should be told.
    pub reason: Option<String>,
}

/// The steps in and out. Each may be repeated. Errors are sentences: they are logged and shown, not matched.
pub trait Effects: Send + Sync + 'static {
    /// The pod's network namespace, if it runs by now.
    fn find(&self, pod: &PodId) -> Option<PathBuf>;
    /// Whether rules were laid for the pod, perhaps by an earlier agent.
    fn knows(&self, pod: &PodId) -> bool;
    /// Lays the rules and sees to it that they stay; new proxies are told of the pod.
    fn lay(
        &self,
        pod: &PodId,
        netns: &Path,
        rules: &PodRules,
        ips: &[IpAddr],
    ) -> impl Future<Output = Result<(), String>> + Send;
    /// Tells the proxy of the pod; it has accepted when this returns.
    fn hand_over(&self, pod: &PodId) -> impl Future<Output = Result<(), ZdsError>> + Send;
    /// The proxy shall keep what it runs for the pod; the agent does not find the namespace.
    fn keep(&self, pod: &PodId);
    /// Lets the kubelet's probes in.
    fn admit_probes(&self, pod: &PodId, ips: &[IpAddr]) -> impl Future<Output = Result<(), String>> + Send;
    /// Writes our annotations.
    fn mark(&self, pod: &PodId, marks: &Marks) -> impl Future<Output = Result<(), String>> + Send;
    /// Removes the rules from the pod, which runs on: first what captures, then, when the proxies have ended what they
    /// have of it, the rest.
    fn remove_rules(&self, pod: &PodId) -> impl Future<Output = Result<(), String>> + Send;
    /// Takes the pod from the proxies, the probe set and the agent's memory.
    fn forget(&self, pod: &PodId) -> impl Future<Output = Result<(), String>> + Send;
    /// Changes whenever a proxy has connected.
    fn proxies(&self) -> watch::Receiver<u64>;
    /// Tells of an annotation that means nothing.
    fn ignored(&self, pod: &PodId, annotation: &Ignored);
    /// Counts a failed step.
    fn failed(&self, step: &'static str);
    /// Counts pods that are in.
    fn enrolled(&self, change: i64);
}

/// The real thing.
pub struct Node {
    /// Where running pods' namespaces are.
    pub finder: Box<dyn Finder>,
    /// The agent's memory.
    pub state: StateDir,
    /// The proxies.
    pub zds: Zds,
    /// The node's probe sets.
    pub probes: Arc<Probes>,
    /// The node's own network namespace.
    pub host: NetNs,
    /// Annotations are written as manager `istio-cni`.
    pub writer: Writer,
    /// Counters.
    pub metrics: Metrics,
    /// Starts the keepers.
    pub tracker: Tracker,
    /// Who looks after which pod.
    pub kept: Mutex<HashMap<String, Kept>>,
}

/// A pod whose rules are laid.
pub struct Kept {
    netns: NetNs,
    rules: PodRules,
    keeper: Keeper,
}

impl Effects for Node {
    fn find(&self, pod: &PodId) -> Option<PathBuf> {
        // A runtime without a sandbox process shows nothing of a pod whose containers wait to start again.
        let recorded = || self.state.get(&pod.uid).filter(|record| record.at(&record.netns_path).is_some());
        self.finder.find(&pod.uid).or_else(|| recorded().map(|record| record.netns_path))
    }

    fn knows(&self, pod: &PodId) -> bool {
        self.kept.lock().contains_key(&pod.uid) || self.zds.holds(&pod.uid) || self.state.get(&pod.uid).is_some()
    }

    async fn lay(&self, pod: &PodId, path: &Path, rules: &PodRules, ips: &[IpAddr]) -> Result<(), String> {
        let netns = NetNs::open(path).map_err(|error| format!("network namespace: {error}"))?;
        if netns.id() == self.host.id() {
            return Err(format!("network namespace: {} is the node's own", path.display()));
        }
        let kept = self.kept.lock().remove(&pod.uid);
        let keeper = match kept {
            Some(kept) if kept.netns.id() == netns.id() && kept.rules == *rules => {
                if self.state.get(&pod.uid).is_some_and(|record| record.ips == ips) {
                    // Laid, and the keeper sees to the rest: only a later step is tried again.
                    self.kept.lock().insert(pod.uid.clone(), kept);
                    return Ok(());
                }
                Some(kept.keeper)
            }
            Some(kept) => {
                // It would put the old rules back.
                kept.keeper.stop().await;
                None
            }
            None => None,
        };
        let (state, draft) = (self.state.clone(), record(pod, path, &netns, ips));
        let laid = {
            let rules = rules.clone();
            netns.enter(move || {
                remember(&state, draft)?;
                // A read-only /proc/sys costs a hand-over some connections, and is no reason to stay out.
                if let Err(error) = migrate_req::turn_on() {
                    tracing::debug!(%error, "tcp_migrate_req stays as it is");
                }
                rules.lay().map_err(io::Error::other)
            })
        };
        laid.await.and_then(|result| result).map_err(|error| error.to_string())?;
        self.zds.insert(zds_pod(pod, &netns));

        let keeper = match keeper {
            Some(keeper) => keeper,
            None => {
                let name = format!("{}/{}", pod.namespace, pod.name);
                let layout: Arc<dyn Layout> = Arc::new(rules.clone());
                let repairs = self.metrics.repairs.clone();
                let started = Keeper::start(name, netns.clone(), layout, repairs, &self.tracker).await;
                started.map_err(|error| format!("watch the rules: {error}"))?
            }
        };
        let kept = Kept { netns, rules: rules.clone(), keeper };
        self.kept.lock().insert(pod.uid.clone(), kept);
        Ok(())
    }

    async fn hand_over(&self, pod: &PodId) -> Result<(), ZdsError> {
        let netns = self.kept.lock().get(&pod.uid).map(|kept| kept.netns.clone());
        match netns {
            Some(netns) => self.zds.add(zds_pod(pod, &netns)).await,
            None => Ok(()),
        }
    }

    fn keep(&self, pod: &PodId) {
        self.zds.keep(&pod.uid);
    }

    async fn admit_probes(&self, pod: &PodId, ips: &[IpAddr]) -> Result<(), String> {
        let (probes, uid, ips) = (self.probes.clone(), pod.uid.clone(), ips.to_vec());
        let admitted = self.host.enter(move || probes.admit(&uid, &ips)).await;
        admitted.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
    }

    async fn mark(&self, pod: &PodId, marks: &Marks) -> Result<(), String> {
        let key = ObjectKey::new(Kind::Pod, &pod.namespace, &pod.name);
        let annotations = [(REDIRECTION, marks.redirection.as_deref()), (NOT_ENROLLED_REASON, marks.reason.as_deref())];
        match self.writer.patch_annotations(&key, Some(&pod.uid), &annotations).await {
            // The pod went away meanwhile, perhaps for another of its name: nobody reads its annotations any more.
            Ok(()) | Err(WriteError::NotFound(_) | WriteError::Conflict { .. }) => Ok(()),
            Err(error) => Err(error.to_string()),
        }
    }

    async fn remove_rules(&self, pod: &PodId) -> Result<(), String> {
        let record = self.state.get(&pod.uid);
        let kept = self.kept.lock().remove(&pod.uid);
        let netns = match kept {
            Some(kept) => {
                kept.keeper.stop().await;
                Some(kept.netns)
            }
            // Laid by an earlier agent.
            None => record.as_ref().and_then(|record| self.finder.recorded(record)),
        };
        let Some(netns) = netns else { return Ok(()) };
        let own = record.filter(|record| record.netns == netns.id()).and_then(|record| record.tcp_migrate_req);
        let released = netns.enter(|| redirection::release().map_err(io::Error::other)).await;
        released.and_then(|result| result).map_err(|error| error.to_string())?;
        // It ends what it has of the pod, as long as both ends can hear of it. If it doesn't, `forget` says so.
        let _ = self.zds.del(&pod.uid).await;
        let removed = netns.enter(move || {
            redirection::remove().map_err(io::Error::other)?;
            if let Some(Err(error)) = own.map(|value| migrate_req::restore(&value)) {
                tracing::debug!(%error, "tcp_migrate_req stays as it is");
            }
            Ok(())
        });
        removed.await.and_then(|result| result).map_err(|error| error.to_string())
    }

    async fn forget(&self, pod: &PodId) -> Result<(), String> {
        let kept = self.kept.lock().remove(&pod.uid);
        if let Some(kept) = kept {
            kept.keeper.stop().await;
        }
        let refused = self.zds.del(&pod.uid).await;
        let (probes, uid) = (self.probes.clone(), pod.uid.clone());
        let withdrawn = self.host.enter(move || probes.withdraw(&uid)).await;
        self.state.forget(&pod.uid).map_err(|error| error.to_string())?;
        withdrawn.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
        refused.map_err(|error| error.to_string())
    }

    fn proxies(&self) -> watch::Receiver<u64> {
        self.zds.snapshots()
    }

    fn ignored(&self, pod: &PodId, Ignored { key, value, expected }: &Ignored) {
        let pod = format!("{}/{}", pod.namespace, pod.name);
        tracing::warn!(pod, annotation = key, value, expected, "annotation ignored");
    }

    fn failed(&self, step: &'static str) {
        self.metrics.failures.get_or_create(&crate::metrics::StepLabels { step }).inc();
    }

    fn enrolled(&self, change: i64) {
        self.metrics.enrolled.inc_by(change);
    }
}

fn zds_pod(pod: &PodId, netns: &NetNs) -> ZdsPod {
    let info = WorkloadInfo {
        name: pod.name.clone(),
        namespace: pod.namespace.clone(),
        service_account: pod.service_account.clone(),
    };
    ZdsPod { uid: pod.uid.clone(), info, netns: netns.clone() }
}

fn record(pod: &PodId, path: &Path, netns: &NetNs, ips: &[IpAddr]) -> Record {
    Record {
        uid: pod.uid.clone(),
        namespace: pod.namespace.clone(),
        name: pod.name.clone(),
        ips: ips.to_vec(),
        netns: netns.id(),
        netns_path: path.to_owned(),
        tcp_migrate_req: None,
    }
}

/// Notes the pod's own `tcp_migrate_req` before it is changed; what an earlier agent noted for this namespace stands.
fn remember(state: &StateDir, mut record: Record) -> io::Result<()> {
    record.tcp_migrate_req = match state.get(&record.uid) {
        Some(earlier) if earlier.netns == record.netns => earlier.tcp_migrate_req,
        _ => migrate_req::current()?,
    };
    state.save(&record)
}
