//! Which pods the proxies shall run, and which proxies are connected.

use super::connection::{self, Command, Ended, Request};
use super::packet::{Listener, Packets};
use crate::netns::NetNs;
use aquifer_proto::zds::WorkloadInfo;
use aquifer_runtime::{Cancel, Tracker};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::gauge::Gauge;
use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// A pod as the proxies know it.
#[derive(Debug, Clone)]
pub struct ZdsPod {
    /// The Kubernetes uid.
    pub uid: String,
    /// Name, namespace, service account.
    pub info: WorkloadInfo,
    /// Its network namespace.
    pub netns: NetNs,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ZdsError {
    /// No proxy is there.
    #[error("no ztunnel is connected")]
    NotConnected,
    /// The proxy answered with an error.
    #[error("ztunnel refused: {0}")]
    Refused(String),
    /// The connection ended before the answer.
    #[error("connection to ztunnel lost: {0}")]
    Lost(String),
}

/// The protocol's time limits.
#[derive(Debug, Clone, Copy)]
pub struct Timing {
    /// For the hello, for each write and for each answer.
    pub deadline: Duration,
    /// At most this many connections are accepted a second.
    pub accepts_per_second: usize,
}

impl Default for Timing {
    fn default() -> Self {
        Self { deadline: Duration::from_secs(5), accepts_per_second: 5 }
    }
}

/// What is counted.
#[derive(Debug, Clone, Default)]
pub struct ZdsMetrics {
    /// Proxies connected now.
    pub connected: Gauge,
    /// Connections ended for a fault of the proxy's.
    pub faults: Counter,
}

/// The server. Cloning gives another handle to it.
#[derive(Clone)]
pub struct Zds {
    shared: Arc<Shared>,
}

struct Shared {
    timing: Timing,
    metrics: ZdsMetrics,
    state: Mutex<State>,
    /// Counts snapshots completed: whoever waits for a proxy waits for a change.
    snapshots: watch::Sender<u64>,
}

#[derive(Default)]
struct State {
    pods: BTreeMap<String, Held>,
    /// Oldest first.
    connections: Vec<(u64, mpsc::UnboundedSender<Command>)>,
    next: u64,
}

/// What a snapshot says of a pod.
#[derive(Clone)]
enum Held {
    /// Run this.
    Pod(ZdsPod),
    /// Whatever runs for this uid shall go on: the agent has no handle to its namespace.
    Keep,
}

impl Zds {
    /// A server without pods and connections.
    pub fn new(timing: Timing, metrics: ZdsMetrics) -> Self {
        let shared = Shared { timing, metrics, state: Mutex::default(), snapshots: watch::Sender::new(0) };
        Self { shared: Arc::new(shared) }
    }

    /// Puts the pod into every later snapshot without telling the proxies that are connected.
    pub fn insert(&self, pod: ZdsPod) {
        self.shared.state.lock().pods.insert(pod.uid.clone(), Held::Pod(pod));
    }

    /// Lets every later snapshot say that a proxy that runs for this pod shall go on.
    pub fn keep(&self, uid: &str) {
        self.shared.state.lock().pods.entry(uid.to_owned()).or_insert(Held::Keep);
    }

    /// Whether snapshots name the pod.
    pub fn holds(&self, uid: &str) -> bool {
        self.shared.state.lock().pods.contains_key(uid)
    }

    /// Puts the pod into every later snapshot, hands it to the newest proxy, and waits for its answer.
    pub async fn add(&self, pod: ZdsPod) -> Result<(), ZdsError> {
        let newest = {
            let mut state = self.shared.state.lock();
            state.pods.insert(pod.uid.clone(), Held::Pod(pod.clone()));
            state.connections.last().map(|(_, commands)| commands.clone())
        };
        let newest = newest.ok_or(ZdsError::NotConnected)?;
        send(&newest, Request::Add(pod)).await
    }

    /// Takes the pod out of the snapshot and from every proxy. One that is gone by then has nothing to give up.
    pub async fn del(&self, uid: &str) -> Result<(), ZdsError> {
        let connections: Vec<_> = {
            let mut state = self.shared.state.lock();
            state.pods.remove(uid);
            state.connections.iter().map(|(_, commands)| commands.clone()).collect()
        };
        let answers = connections.iter().map(|commands| send(commands, Request::Del(uid.to_owned())));
        let refused = futures_util::future::join_all(answers).await;
        match refused.into_iter().find(|answer| matches!(answer, Err(ZdsError::Refused(_)))) {
            Some(refused) => refused,
            None => Ok(()),
        }
    }

    /// Changes whenever a proxy has taken a snapshot.
    pub fn snapshots(&self) -> watch::Receiver<u64> {
        self.shared.snapshots.subscribe()
    }

    /// How many proxies are connected.
    pub fn connections(&self) -> usize {
        self.shared.state.lock().connections.len()
    }

    /// Serves proxies. Begin only when every pod that was enrolled before is known: a proxy drops what a snapshot
    /// does not name.
    pub async fn serve(&self, listener: Listener, tracker: Tracker, cancel: Cancel) {
        let mut recent = VecDeque::new();
        loop {
            let packets = tokio::select! {
                biased;
                () = cancel.drained() => return,
                accepted = listener.accept() => accepted,
            };
            match packets {
                Ok(packets) => {
                    let (server, cancel) = (self.clone(), cancel.child());
                    tracker.spawn("zds connection", async move {
                        tokio::select! {
                            biased;
                            () = cancel.drained() => {}
                            () = server.converse(packets) => {}
                        }
                    });
                }
                Err(error) => tracing::warn!(%error, "accept on the ZDS socket"),
            }
            recent.push_back(Instant::now());
            if recent.len() >= self.shared.timing.accepts_per_second {
                let oldest = recent.pop_front().unwrap_or_else(Instant::now);
                tokio::time::sleep_until(oldest + Duration::from_secs(1)).await;
            }
        }
    }

    async fn converse(&self, packets: Packets) {
        let timing = self.shared.timing;
        let result = match connection::hello(&packets, timing).await {
            Ok(()) => self.registered(&packets).await,
            Err(ended) => Err(ended),
        };
        match result {
            Ok(()) => {}
            Err(Ended::Closed) => tracing::info!("ztunnel disconnected"),
            Err(ended) => {
                self.shared.metrics.faults.inc();
                tracing::warn!(reason = %ended, "ended the connection to ztunnel");
            }
        }
    }

    async fn registered(&self, packets: &Packets) -> Result<(), Ended> {
        let timing = self.shared.timing;
        let (sender, mut commands) = mpsc::unbounded_channel();
        // Under one lock: a pod that is added from here on reaches this connection as a command.
        let (registration, pods) = {
            let mut state = self.shared.state.lock();
            let id = state.next;
            state.next += 1;
            state.connections.push((id, sender));
            let pods: Vec<Request> = state.pods.iter().map(|(uid, held)| held.request(uid)).collect();
            (Registration { shared: self.shared.clone(), id }, pods)
        };
        self.shared.metrics.connected.inc();
        let count = pods.len();
        connection::snapshot(packets, timing, pods).await?;
        tracing::info!(pods = count, "ztunnel connected and took the snapshot");
        self.shared.snapshots.send_modify(|count| *count += 1);
        let result = connection::live(packets, timing, &mut commands).await;
        drop(registration);
        result
    }
}

impl Held {
    fn request(&self, uid: &str) -> Request {
        match self {
            Self::Pod(pod) => Request::Add(pod.clone()),
            Self::Keep => Request::Keep(uid.to_owned()),
        }
    }
}

/// A connection in the list, for as long as it lasts.
struct Registration {
    shared: Arc<Shared>,
    id: u64,
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.metrics.connected.dec();
        let mut state = self.shared.state.lock();
        let was_newest = state.connections.last().is_some_and(|(id, _)| *id == self.id);
        state.connections.retain(|(id, _)| *id != self.id);
        // An older proxy that is the newest again has not heard of the pods that were added since. It takes those
        // that it runs already as they are.
        if let Some((_, commands)) = state.connections.last().filter(|_| was_newest) {
            for held in state.pods.values() {
                if let Held::Pod(pod) = held {
                    let (answer, _) = oneshot::channel();
                    let _ = commands.send(Command { request: Request::Add(pod.clone()), answer });
                }
            }
        }
    }
}

async fn send(commands: &mpsc::UnboundedSender<Command>, request: Request) -> Result<(), ZdsError> {
    let lost = || ZdsError::Lost("it ended".into());
    let (answer, answered) = oneshot::channel();
    commands.send(Command { request, answer }).map_err(|_| lost())?;
    answered.await.unwrap_or_else(|_| Err(lost()))
}
