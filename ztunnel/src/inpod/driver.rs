//! The connection to the node agent, and the doing of what [`State`] decides.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::readiness::{BlockReady, Readiness};
use aquifer_runtime::{Backoff, Cancel};
use futures_util::StreamExt;
use parking_lot::Mutex;

use super::netns::Netns;
use super::packet::{PacketError, PacketSocket};
use super::state::{OutOfTurn, Pod, State, Work};
use super::zds::{self, PodUid, Request, WorkloadInfo, ZdsError};
use crate::metrics::InpodMetrics;

/// How many pods are stopped at once.
const STOPS: usize = 32;

const RETRY_PENDING: Duration = Duration::from_secs(5);
const READINESS_TASK: &str = "workload proxy manager";

/// What serves pods: the workers; in tests, a list.
pub trait Proxies {
    /// Begins to serve a pod, wholly or not at all. The error is a short text for the agent.
    fn start(&self, pod: &Pod<Netns>) -> impl Future<Output = Result<(), String>>;
    /// Cuts what belongs to a pod; done when this returns.
    fn stop(&self, uid: &PodUid) -> impl Future<Output = ()>;
    /// The agent has named all pods, and each was started or refused.
    fn complete(&self) {}
}

/// Which pods there are, for `/config_dump`.
pub type PodView = Arc<Mutex<BTreeMap<PodUid, (WorkloadInfo, Phase)>>>;

/// How a pod stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
pub enum Phase {
    /// Its start failed; it is tried again.
    Pending,
    /// It is served.
    Up,
}

/// The manager of pods.
pub struct Manager<P> {
    state: State<Netns>,
    proxies: P,
    metrics: InpodMetrics,
    view: PodView,
    readiness: Readiness,
    block: Option<BlockReady>,
}

/// Why a connection to the agent ended.
#[derive(Debug, thiserror::Error)]
enum Ended {
    #[error("{0}")]
    Packet(#[from] PacketError),
    #[error("{0}")]
    Message(#[from] ZdsError),
    #[error("{0}")]
    OutOfTurn(#[from] OutOfTurn),
    #[error("cannot write: {0}")]
    Write(#[from] std::io::Error),
}

impl<P: Proxies> Manager<P> {
    /// Not ready until the agent has said which pods there are.
    pub fn new(proxies: P, metrics: InpodMetrics, view: PodView, readiness: &Readiness) -> Self {
        Self {
            state: State::default(),
            proxies,
            metrics,
            view,
            readiness: readiness.clone(),
            block: Some(readiness.register(READINESS_TASK)),
        }
    }

    /// Dials the agent at `path` again and again, until the drain. Running proxies outlive the connection.
    pub async fn run(mut self, path: &Path, cancel: &Cancel) {
        let mut dial = Backoff::doubling(Duration::from_millis(10), Duration::from_secs(15));
        let mut greet = Backoff::new(Duration::from_millis(5), Duration::from_secs(15), 2.0, 0.2);
        let mut dial_failures = 0_u32;
        loop {
            let wait = match PacketSocket::connect(path) {
                Err(error) => {
                    // While the agent starts this is no news; said once, and again when it lasts.
                    dial_failures += 1;
                    if dial_failures == 1 || dial_failures.is_multiple_of(10) {
                        tracing::info!(path = %path.display(), %error, "node agent not reached");
                    }
                    dial.next(&mut rand::rng())
                }
                Ok(socket) => {
                    dial.reset();
                    dial_failures = 0;
                    let served = tokio::select! {
                        biased;
                        () = cancel.drained() => return,
                        served = self.serve(&socket) => served,
                    };
                    if served.said_something {
                        greet.reset();
                    }
                    tracing::info!(error = %served.ended, "connection to the node agent ended");
                    greet.next(&mut rand::rng())
                }
            };
            tokio::select! {
                biased;
                () = cancel.drained() => return,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    async fn serve(&mut self, socket: &PacketSocket) -> Served {
        let mut said_something = false;
        let ended = match self.converse(socket, &mut said_something).await {
            Ok(never) => match never {},
            Err(ended) => ended,
        };
        let faulty = matches!(&ended, Ended::Message(_) | Ended::OutOfTurn(_))
            || matches!(&ended, Ended::Packet(PacketError::Truncated | PacketError::TooManyDescriptors(_)));
        if faulty {
            // The agent waits for an answer to each message; the connection ends in any case.
            let _ = socket.send(&zds::ack(Err(&format!("failure to read message : {ended}")))).await;
        }
        Served { ended, said_something }
    }

    async fn converse(
        &mut self,
        socket: &PacketSocket,
        said_something: &mut bool,
    ) -> Result<std::convert::Infallible, Ended> {
        socket.send(&zds::hello()).await?;
        self.state.connected();
        self.publish();
        tracing::info!("connected to the node agent");
        let mut retry = tokio::time::interval(RETRY_PENDING);
        retry.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                packet = socket.recv() => {
                    let request = zds::parse(packet?)?;
                    *said_something = true;
                    let answer = self.handle(request).await?;
                    socket.send(&zds::ack(answer.as_ref().copied().map_err(String::as_str))).await?;
                }
                _ = retry.tick() => self.retry().await,
            }
        }
    }

    async fn handle(&mut self, request: Request<std::os::fd::OwnedFd>) -> Result<Result<(), String>, OutOfTurn> {
        let request = match request {
            Request::Add { uid, info, netns } => match Netns::new(netns) {
                Ok(netns) => Request::Add { uid, info, netns },
                Err(e) => return Ok(Err(format!("failure to start proxy : {e}"))),
            },
            Request::Del(uid) => Request::Del(uid),
            Request::Keep(uid) => Request::Keep(uid),
            Request::SnapshotSent => Request::SnapshotSent,
        };
        let complete = matches!(request, Request::SnapshotSent);
        let Work { stop, start } = self.state.handle(request)?;
        // Together: one whose connections won't end doesn't hold up the next.
        futures_util::stream::iter(&stop)
            .for_each_concurrent(STOPS, async |uid| {
                self.proxies.stop(uid).await;
                self.metrics.stopped.inc();
                tracing::info!(%uid, "pod left");
            })
            .await;
        let answer = match start {
            Some(pod) => self.start(pod).await,
            None => Ok(()),
        };
        if complete {
            self.proxies.complete();
        }
        self.publish();
        Ok(answer)
    }

    async fn start(&mut self, pod: Pod<Netns>) -> Result<(), String> {
        let started = self.proxies.start(&pod).await;
        match &started {
            Ok(()) => {
                self.metrics.started.inc();
                tracing::info!(pod = %pod.info, uid = %pod.uid, "pod enrolled");
            }
            Err(error) => tracing::warn!(pod = %pod.info, uid = %pod.uid, error, "cannot serve pod, trying again"),
        }
        self.state.started(pod, started.is_ok());
        started.map_err(|e| format!("failure to start proxy : {e}"))
    }

    async fn retry(&mut self) {
        for pod in self.state.retry() {
            // The error is in the log, and the agent tries again by itself as well.
            let _ = self.start(pod).await;
        }
        self.publish();
    }

    /// Brings metrics, readiness and the view up to date.
    fn publish(&mut self) {
        self.metrics.active.set(self.state.running().len() as i64);
        self.metrics.pending.set(self.state.pending().len() as i64);
        if self.state.ready() {
            self.block = None;
        } else if self.block.is_none() {
            self.block = Some(self.readiness.register(READINESS_TASK));
        }
        let entry = |phase| move |pod: &Pod<Netns>| (pod.uid.clone(), (pod.info.clone(), phase));
        let running = self.state.running().map(entry(Phase::Up));
        *self.view.lock() = running.chain(self.state.pending().map(entry(Phase::Pending))).collect();
    }
}

struct Served {
    ended: Ended,
    said_something: bool,
}

#[cfg(test)]
#[path = "driver/tests.rs"]
mod tests;
