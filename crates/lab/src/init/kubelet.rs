//! A node's kubelet: probes its pods over the network from the node's own network namespace, as a kubelet does.
//!
//! It is a thread that entered the namespace once; sockets belong to the namespace they were made in.

use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::Tracker;
use nix::sched::{CloneFlags, setns};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::{mpsc, oneshot};
use tokio::task::LocalSet;

use super::http;
use crate::error::{During, Result};

/// A probe over the network.
#[derive(Debug, Clone)]
pub(super) enum NetworkProbe {
    Tcp(SocketAddr),
    Http { to: SocketAddr, request: String },
}

/// Hands probes to the node's thread.
#[derive(Debug, Clone)]
pub(super) struct Kubelet(mpsc::UnboundedSender<Job>);

#[derive(Debug)]
struct Job {
    probe: NetworkProbe,
    timeout: Duration,
    answer: oneshot::Sender<std::result::Result<(), String>>,
}

impl Kubelet {
    pub(super) fn start(node: &str, net: Arc<OwnedFd>) -> Result<Self> {
        let (sender, jobs) = mpsc::unbounded_channel();
        let thread = std::thread::Builder::new().name(format!("kubelet-{node}"));
        let run = move || {
            if let Err(error) = setns(&*net, CloneFlags::CLONE_NEWNET) {
                tracing::error!(%error, "entering a node's network namespace");
                return;
            }
            match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => LocalSet::new().block_on(&runtime, serve(jobs)),
                Err(error) => tracing::error!(%error, "starting a kubelet"),
            }
        };
        thread.spawn(run).during(|| "starting a kubelet".into())?;
        Ok(Self(sender))
    }

    /// One probe; the error says what happened instead of an answer.
    pub(super) async fn probe(&self, probe: NetworkProbe, timeout: Duration) -> std::result::Result<(), String> {
        let (answer, result) = oneshot::channel();
        let gone = || "the node's kubelet is gone".to_owned();
        self.0.send(Job { probe, timeout, answer }).map_err(|_| gone())?;
        result.await.map_err(|_| gone())?
    }
}

async fn serve(mut jobs: mpsc::UnboundedReceiver<Job>) {
    let tracker = Tracker::new();
    while let Some(Job { probe, timeout, answer }) = jobs.recv().await {
        tracker.spawn_local("probe", async move {
            let result = tokio::time::timeout(timeout, run(probe)).await;
            let result = result.unwrap_or_else(|_| Err(format!("no answer within {timeout:?}")));
            // Who asked may have stopped caring.
            let _ = answer.send(result);
        });
    }
}

async fn run(probe: NetworkProbe) -> std::result::Result<(), String> {
    let (to, request) = match probe {
        NetworkProbe::Tcp(to) => (to, None),
        NetworkProbe::Http { to, request } => (to, Some(request)),
    };
    let mut stream = TcpStream::connect(to).await.map_err(|error| format!("connecting to {to}: {error}"))?;
    let Some(request) = request else { return Ok(()) };
    let exchange = async {
        stream.write_all(request.as_bytes()).await?;
        let mut answer = Vec::new();
        while http::status(&answer).is_none() && stream.read_buf(&mut answer).await? > 0 {}
        std::io::Result::Ok(answer)
    };
    let answer = exchange.await.map_err(|error| format!("asking {to}: {error}"))?;
    match http::status(&answer) {
        Some(200..400) => Ok(()),
        Some(status) => Err(format!("{to} answered {status}")),
        None => Err(format!("{to} gave no HTTP answer")),
    }
}
