//! Which pods are served: requests in, what to start and stop out. Pure; the driver does the work and reports back.
//!
//! ```text
//!            Add                     started(ok)
//!   (none) ───────► starting ───────────────────────► running ◄─┐ Add, same namespace: ack
//!                      │ started(error)                 │  └────┘
//!                      ▼                                │ Del · not in the snapshot · Add with another namespace
//!                   pending ── retry, every 5 s ─►      ▼
//!                                                     stopped (connections cut)
//! ```
//!
//! Invariants: a broken connection to the agent stops nothing; a uid is never running and pending at once; what the
//! agent names twice is started once.

use std::collections::{BTreeMap, BTreeSet};

use super::zds::{PodUid, Request, WorkloadInfo};

/// After more retries than these, about ten seconds, a pod no longer counts against readiness.
const PATIENCE: u32 = 2;

/// A pod to serve.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pod<N> {
    /// Its uid.
    pub uid: PodUid,
    /// Who it is.
    pub info: WorkloadInfo,
    /// Where it is.
    pub netns: N,
}

/// What has to be done before a request can be answered: first the stops, then the start.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Work<N> {
    /// Cut these.
    pub stop: Vec<PodUid>,
    /// Then serve this one, and report by [`State::started`].
    pub start: Option<Pod<N>>,
}

impl<N> Default for Work<N> {
    fn default() -> Self {
        Self { stop: Vec::new(), start: None }
    }
}

/// A message out of turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OutOfTurn {
    /// Keep belongs to the snapshot.
    #[error("keep after the snapshot")]
    Keep,
    /// One snapshot per connection.
    #[error("second snapshot_sent")]
    SnapshotSent,
}

/// Which pods are served.
#[derive(Debug)]
pub struct State<N> {
    running: BTreeMap<PodUid, Pod<N>>,
    pending: BTreeMap<PodUid, Pod<N>>,
    /// How often a pod was tried again by ourselves and in vain, over all connections.
    retries: BTreeMap<PodUid, u32>,
    /// Named on this connection so far; `None` once the snapshot is complete.
    snapshot: Option<BTreeSet<PodUid>>,
    /// Has any snapshot ever been completed?
    synced: bool,
}

impl<N> Default for State<N> {
    fn default() -> Self {
        Self {
            running: BTreeMap::new(),
            pending: BTreeMap::new(),
            retries: BTreeMap::new(),
            snapshot: Some(BTreeSet::new()),
            synced: false,
        }
    }
}

impl<N: Clone + Eq> State<N> {
    /// A new connection to the agent: a new snapshot begins. Running proxies are untouched.
    pub fn connected(&mut self) {
        self.snapshot = Some(BTreeSet::new());
        self.pending.clear();
    }

    /// Takes one request.
    pub fn handle(&mut self, request: Request<N>) -> Result<Work<N>, OutOfTurn> {
        match request {
            Request::Add { uid, info, netns } => Ok(self.add(Pod { uid, info, netns })),
            Request::Keep(uid) => match &mut self.snapshot {
                Some(named) => {
                    named.insert(uid);
                    Ok(Work::default())
                }
                None => Err(OutOfTurn::Keep),
            },
            Request::Del(uid) => Ok(self.del(&uid)),
            Request::SnapshotSent => match self.snapshot.take() {
                Some(named) => {
                    self.synced = true;
                    Ok(self.reconcile(&named))
                }
                None => Err(OutOfTurn::SnapshotSent),
            },
        }
    }

    /// How a start ended. A failed one is tried again ([`State::retry`]).
    pub fn started(&mut self, pod: Pod<N>, ok: bool) {
        if ok {
            self.pending.remove(&pod.uid);
            self.retries.remove(&pod.uid);
            self.running.insert(pod.uid.clone(), pod);
        } else {
            self.pending.insert(pod.uid.clone(), pod);
        }
    }

    /// Pods whose start failed, to be tried again now.
    #[must_use]
    pub fn retry(&mut self) -> Vec<Pod<N>> {
        for uid in self.pending.keys() {
            *self.retries.entry(uid.clone()).or_default() += 1;
        }
        self.pending.values().cloned().collect()
    }

    /// May this node take pods? Once a snapshot was complete, and while nothing is pending. A pod that goes on failing
    /// is tried on, but holds up nobody: one broken namespace must not stop a node, or the rollout of a new version.
    #[must_use]
    pub fn ready(&self) -> bool {
        let hopeless = |uid| self.retries.get(uid).is_some_and(|&times| times > PATIENCE);
        self.synced && self.pending.keys().all(hopeless)
    }

    /// Pods being served.
    pub fn running(&self) -> impl ExactSizeIterator<Item = &Pod<N>> {
        self.running.values()
    }

    /// Pods waiting for another try.
    pub fn pending(&self) -> impl ExactSizeIterator<Item = &Pod<N>> {
        self.pending.values()
    }

    fn add(&mut self, pod: Pod<N>) -> Work<N> {
        if let Some(named) = &mut self.snapshot {
            named.insert(pod.uid.clone());
        }
        let mut work = Work::default();
        if let Some(running) = self.running.get(&pod.uid) {
            if running.netns == pod.netns {
                return work;
            }
            // The sandbox was made anew: nothing of the old one can be used.
            self.running.remove(&pod.uid);
            work.stop.push(pod.uid.clone());
        }
        work.start = Some(pod);
        work
    }

    fn del(&mut self, uid: &PodUid) -> Work<N> {
        self.pending.remove(uid);
        self.retries.remove(uid);
        let mut work = Work::default();
        match &mut self.snapshot {
            // Whether it is cut is the snapshot's to say, so that a Del that races with it isn't done twice.
            Some(named) => {
                named.remove(uid);
            }
            None => {
                if self.running.remove(uid).is_some() {
                    work.stop.push(uid.clone());
                }
            }
        }
        work
    }

    fn reconcile(&mut self, named: &BTreeSet<PodUid>) -> Work<N> {
        let stop: Vec<PodUid> = self.running.keys().filter(|uid| !named.contains(*uid)).cloned().collect();
        for uid in &stop {
            self.running.remove(uid);
        }
        self.retries.retain(|uid, _| named.contains(uid));
        Work { stop, start: None }
    }
}

#[cfg(test)]
#[path = "state/tests.rs"]
mod tests;
