//! Data threads, and the control thread's handle to them.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;
use std::time::Duration;

use aquifer_hbone::Budget;
use aquifer_runtime::Cancel;
use tokio::runtime::{Builder, Handle, LocalOptions};
use tokio::sync::{mpsc, oneshot};

use super::conn_table::{ConnTable, Connections};
use super::listeners::Listeners;
use super::pod::{OnWorker, Pod, Shared, shutdown};
use super::same_node::Neighbours;
use super::spread::{Crew, Moved, Spread};
use crate::inpod::handover::{self, Handed, Holder, Predecessor};
use crate::inpod::netns::{Netns, NetnsId};
use crate::inpod::zds::{PodUid, WorkloadInfo};
use crate::metrics::{ProxyMetrics, WorkerMetrics};

/// How often running connections' bytes are added to the metrics.
const FLUSH_INTERVAL: Duration = Duration::from_secs(1);

enum Command {
    Add(Box<Add>),
    HandOver { uid: PodUid, netns: NetnsId, reply: oneshot::Sender<Handed> },
    Remove { uid: PodUid, done: oneshot::Sender<()> },
    MeshChanged { policies: bool, done: oneshot::Sender<usize> },
    RevocationsChanged { done: oneshot::Sender<usize> },
    Dump { reply: oneshot::Sender<BTreeMap<PodUid, Connections>> },
}

/// A pod to serve.
struct Add {
    uid: PodUid,
    info: WorkloadInfo,
    netns: Netns,
    listeners: Listeners,
    cancel: Cancel,
    budget: Budget,
    /// Whether all workers serve the pod.
    shared: bool,
    done: oneshot::Sender<io::Result<()>>,
}

/// The control thread's handle. Clones are the same workers.
#[derive(Clone)]
pub struct Workers {
    inner: Arc<Inner>,
}

struct Inner {
    /// One per thread, in order.
    runtimes: Vec<Handle>,
    senders: Vec<mpsc::UnboundedSender<Command>>,
    spread: Spread,
    shared: Arc<Shared>,
    metrics: Arc<ProxyMetrics>,
    cancel: Cancel,
}

impl Workers {
    /// Starts `count` threads. `cancel` ends the connections of all pods.
    pub fn start(count: usize, shared: Arc<Shared>, metrics: Arc<ProxyMetrics>, cancel: Cancel) -> io::Result<Self> {
        let (mates, moved): (Vec<_>, Vec<_>) = (0..count).map(|_| mpsc::unbounded_channel()).unzip();
        let (spread, mut senders) = (Spread::over(count), Vec::with_capacity(count));
        let (mut runtimes, mut starts) = (Vec::<Handle>::with_capacity(count), Vec::with_capacity(count));
        for (index, moved) in moved.into_iter().enumerate() {
            let (sender, receiver) = mpsc::unbounded_channel();
            let (shared, metrics, cancel) = (shared.clone(), metrics.clone(), cancel.clone());
            let (spread, mates) = (spread.clone(), mates.clone());
            let (made, runtime) = sync_channel(1);
            let (start, clocks) = sync_channel::<Vec<_>>(1);
            thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
                let _all_or_nothing = AbortOnPanic;
                // A local runtime stays on the thread that makes it. A `LocalSet` instead would write to an eventfd
                // each time that the kernel has news, to wake the runtime that has just brought them.
                let runtime = match Builder::new_current_thread().enable_all().build_local(LocalOptions::default()) {
                    Ok(runtime) => runtime,
                    Err(error) => return drop(made.send(Err(error))),
                };
                let _ = made.send(Ok(runtime.handle().clone()));
                // Without them another worker could not be made, and there will be none.
                let Ok(clocks) = clocks.recv() else { return };
                let crew = Crew::new(index, spread, clocks, mates, shared.tracker.clone());
                runtime.block_on(Worker::new(shared, metrics, crew).run(receiver, moved, cancel));
            })?;
            runtimes.push(runtime.recv().unwrap_or_else(|_| Err(io::Error::other("a worker ended as it began")))?);
            senders.push(sender);
            starts.push(start);
        }
        for start in starts {
            let _ = start.send(runtimes.iter().map(Handle::metrics).collect());
        }
        Ok(Self { inner: Arc::new(Inner { runtimes, senders, spread, shared, metrics, cancel }) })
    }

    /// What is open on each worker.
    #[must_use]
    pub fn spread(&self) -> &Spread {
        &self.inner.spread
    }

    /// The runtimes of the threads, for metrics.
    pub fn runtimes(&self) -> impl Iterator<Item = Handle> + '_ {
        self.inner.runtimes.iter().cloned()
    }

    /// Begins to serve a pod on all workers: all of its listeners stand when this returns, or none. Sockets that can't be
    /// replaced without loss come from the process before us, if it has them.
    pub async fn add(
        &self,
        uid: &PodUid,
        info: &WorkloadInfo,
        netns: &Netns,
        predecessor: &Predecessor,
    ) -> io::Result<()> {
        let shared = &self.inner.shared;
        let handed = match handover::is_needed(netns, shared.config.reuse_port) {
            true => predecessor.ask(uid, netns.id()).await,
            false => Handed::new(),
        };
        if !handed.is_empty() {
            tracing::info!(pod = %info, sockets = handed.len(), "taken over from the proxy before us");
        }
        let workers = self.inner.senders.len();
        let sets = Listeners::open(netns, &shared.config, shared.dns.as_deref(), workers, handed)?;
        self.serve(uid, info, netns, sets).await
    }

    /// Begins to serve a pod with these listeners, the first worker with the first set and so on. If one can't, none does.
    pub async fn serve(
        &self,
        uid: &PodUid,
        info: &WorkloadInfo,
        netns: &Netns,
        sets: Vec<Listeners>,
    ) -> io::Result<()> {
        let budget = Budget::new(self.inner.shared.config.pod_window);
        let mut begun = Vec::with_capacity(sets.len());
        let shared = sets.len() == self.inner.senders.len();
        for (sender, listeners) in self.inner.senders.iter().zip(sets) {
            let (done, receiver) = oneshot::channel();
            let (uid, info, netns) = (uid.clone(), info.clone(), netns.clone());
            // Each worker cuts its own, when it knows why.
            let (cancel, budget) = (self.inner.cancel.child(), budget.clone());
            // One that is gone drops the sender of the answer.
            let _ =
                sender.send(Command::Add(Box::new(Add { uid, info, netns, listeners, cancel, budget, shared, done })));
            begun.push(receiver);
        }
        let mut all = Ok(());
        for (index, receiver) in begun.into_iter().enumerate() {
            let one = receiver.await.unwrap_or_else(|_| Err(io::Error::other("it is gone")));
            let one = one.map_err(|e| io::Error::new(e.kind(), format!("worker {index}: {e}")));
            all = all.and(one);
        }
        if all.is_err() {
            self.remove(uid).await;
        }
        all
    }

    /// Serves HBONE for our own pod, in our own namespace, on one worker.
    pub async fn add_own(&self, info: &WorkloadInfo) -> io::Result<PodUid> {
        let netns = Netns::current()?;
        let listeners = Listeners::open_hbone_only(&netns, &self.inner.shared.config)?;
        let uid = PodUid::new(OWN_UID);
        self.serve(&uid, info, &netns, vec![listeners]).await?;
        Ok(uid)
    }

    /// Cuts a pod's connections and closes its listeners; returns when every worker has.
    pub async fn remove(&self, uid: &PodUid) {
        self.ask(|done| Command::Remove { uid: uid.clone(), done }).await;
    }

    /// Judges all inbound connections by the state as it is published now; returns when every worker has, and how
    /// many were cut.
    pub async fn mesh_changed(&self, policies: bool) -> usize {
        let cut = self.ask(|done| Command::MeshChanged { policies, done }).await.into_iter().sum();
        self.inner.metrics.policy_cuts(cut);
        cut
    }

    /// Cuts the connections whose peers' certificates the revocation lists name now; returns when every worker has, and
    /// how many there were.
    pub async fn revocations_changed(&self) -> usize {
        self.ask(|done| Command::RevocationsChanged { done }).await.into_iter().sum()
    }

    /// All connections by pod.
    pub async fn dump(&self) -> BTreeMap<PodUid, Connections> {
        let mut all: BTreeMap<PodUid, Connections> = BTreeMap::new();
        for part in self.ask(|reply| Command::Dump { reply }).await {
            for (uid, connections) in part {
                let pod = all.entry(uid).or_default();
                pod.inbound.extend(connections.inbound);
                pod.outbound.extend(connections.outbound);
            }
        }
        all
    }

    /// Asks all at once, then waits for each; one that is gone has nothing left to cut.
    async fn ask<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<T> {
        let replies: Vec<_> = self
            .inner
            .senders
            .iter()
            .map(|sender| {
                let (reply, receiver) = oneshot::channel();
                let _ = sender.send(command(reply));
                receiver
            })
            .collect();
        let mut answers = Vec::with_capacity(replies.len());
        for reply in replies {
            answers.extend(reply.await.ok());
        }
        answers
    }
}

/// The uid that our own pod goes by; Kubernetes' uids are UUIDs.
const OWN_UID: &str = "ztunnel";

impl Holder for Workers {
    async fn sockets(&self, uid: &PodUid, netns: NetnsId) -> Handed {
        let parts = self.ask(|reply| Command::HandOver { uid: uid.clone(), netns, reply }).await;
        parts.into_iter().flatten().collect()
    }
}

/// Tasks' panics are caught one by one. One that reaches the thread itself would leave pods half served without
/// anybody knowing; a restart is better.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            std::process::abort();
        }
    }
}

/// One data thread.
struct Worker {
    shared: Arc<Shared>,
    metrics: Rc<WorkerMetrics>,
    table: ConnTable,
    crew: Rc<Crew>,
    neighbours: Neighbours,
    pods: HashMap<PodUid, Rc<Pod>>,
}

impl Worker {
    fn new(shared: Arc<Shared>, metrics: Arc<ProxyMetrics>, crew: Crew) -> Self {
        Self {
            shared,
            metrics: Rc::new(WorkerMetrics::new(metrics, crew.own())),
            table: ConnTable::default(),
            crew: Rc::new(crew),
            neighbours: Neighbours::default(),
            pods: HashMap::new(),
        }
    }

    /// Until the control thread's handle is dropped.
    async fn run(
        mut self,
        mut commands: mpsc::UnboundedReceiver<Command>,
        mut moved: mpsc::UnboundedReceiver<Moved>,
        cancel: Cancel,
    ) {
        let (mut forced, mut ended) = (pin!(cancel.forced()), false);
        let mut flush = tokio::time::interval(FLUSH_INTERVAL);
        flush.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased; // Commands first: cuts must not wait.
                command = commands.recv() => match command {
                    Some(command) => self.handle(command),
                    None => return,
                },
                () = &mut forced, if !ended => {
                    ended = true;
                    self.table.cut_all(None, &shutdown());
                }
                _ = flush.tick() => self.table.flush_traffic(),
                Some(moved) = moved.recv() => self.take(moved),
            }
        }
    }

    /// Serves a connection that another worker has accepted.
    fn take(&self, moved: Moved) {
        match self.pods.get(&moved.uid).filter(|pod| pod.is_in(moved.netns)) {
            Some(pod) => pod.take(moved),
            None => self.crew.give_back(moved),
        }
    }

    fn handle(&mut self, command: Command) {
        match command {
            Command::Add(add) => {
                let Add { uid, info, netns, listeners, cancel, budget, shared, done } = *add;
                let named = (uid.clone(), info, netns);
                let Self { metrics, table, crew, neighbours, .. } = self;
                let worker = OnWorker { metrics, table, crew, neighbours, alone: !shared };
                let started = Pod::start(&self.shared, named, listeners, worker, cancel, budget);
                let _ = done.send(started.map(|pod| drop(self.pods.insert(uid, pod))));
            }
            Command::HandOver { uid, netns, reply } => {
                let pod = self.pods.get(&uid).filter(|pod| pod.is_in(netns));
                let _ = reply.send(pod.map(|pod| pod.hand_over()).unwrap_or_default());
            }
            Command::Remove { uid, done } => match self.pods.remove(&uid) {
                Some(pod) => {
                    self.shared.tracker.spawn_local("pod-removal", async move {
                        pod.remove().await;
                        let _ = done.send(());
                    });
                }
                None => {
                    let _ = done.send(());
                }
            },
            Command::MeshChanged { policies, done } => {
                let state = self.shared.state.load();
                let _ = done.send(self.table.reauthorize(&state, policies));
            }
            Command::RevocationsChanged { done } => {
                let cut = self.table.cut_revoked(self.shared.certs.revocations());
                // A pooled connection may be to a peer that is revoked now: the next stream shakes hands anew.
                self.pods.values().for_each(|pod| pod.pool.retire_where(|_| true));
                let _ = done.send(cut);
            }
            Command::Dump { reply } => {
                let _ = reply.send(self.table.dump());
            }
        }
    }
}
