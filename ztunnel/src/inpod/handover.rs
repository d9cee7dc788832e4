//! From one node proxy to the next: the listening sockets themselves.
//!
//! Where `net.ipv4.tcp_migrate_req` is 1 in a pod, the kernel moves what waits in a closing listener's queue to the next
//! process's listener. Where it isn't (a read-only /proc/sys, a kernel before 5.14), and where ports can't be shared
//! (`INPOD_PORT_REUSE=false`), the successor asks the running process for copies of its sockets (`SCM_RIGHTS`). Both then
//! accept from one queue, and nothing in it is lost when the old one closes its copies.
//!
//! ```text
//!  successor                                              running, at <INPOD_UDS>.handover
//!     │  {"version":1,"uid":"…","device":4,"inode":402653…}   │
//!     ├──────────────────────────────────────────────────────►│
//!     │  {"version":1,"sockets":["outbound",…],"more":false}  │
//!     │◄──────────────────────────────────────────────────────┤  + one descriptor for each
//! ```
//!
//! The successor connects when it starts, and takes the path over when the agent has named every pod, so that the next
//! one finds it. Whatever goes wrong, or takes long, it binds sockets of its own.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aquifer_runtime::{Cancel, Tracker};
use serde::{Deserialize, Serialize};
use tokio::sync::Mutex;

use super::netns::{Netns, NetnsId};
use super::packet::{PacketError, PacketListener, PacketSocket};
use super::zds::PodUid;

/// Of the conversation; another one is not understood, and its speaker left alone.
const VERSION: u32 = 1;

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(1);

/// Descriptors in a packet; the kernel allows 253.
const IN_A_PACKET: usize = 128;

/// Room for the names of that many.
const LONGEST: usize = 8192;

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// 15001.
    Outbound,
    /// 15006.
    Plaintext,
    /// 15008.
    Hbone,
    /// DNS, datagrams.
    DnsUdp,
    /// DNS, connections.
    DnsTcp,
}

/// Sockets of a pod that another process listens on as well.
pub type Handed = Vec<(Kind, OwnedFd)>;

/// What has sockets to hand over: the workers; in tests, a list.
pub trait Holder: Send + Sync + 'static {
    /// Copies of a pod's listening sockets in this namespace; none if the pod isn't served.
    fn sockets(&self, uid: &PodUid, netns: NetnsId) -> impl Future<Output = Handed> + Send;
}

#[derive(Debug, Serialize, Deserialize)]
struct Request {
    version: u32,
    uid: String,
    #[serde(flatten)]
    netns: NetnsId,
}

#[derive(Debug, Serialize, Deserialize)]
struct Reply {
    version: u32,
    sockets: Vec<Kind>,
    /// Another packet follows.
    more: bool,
}

/// Where the running process is asked, next to the node agent's socket.
#[must_use]
pub fn path(inpod_uds: &Path) -> PathBuf {
    let mut path = OsString::from(inpod_uds);
    path.push(".handover");
    path.into()
}

/// Whether a pod's queues need us to be handed over.
#[must_use]
pub fn is_needed(netns: &Netns, reuse_port: bool) -> bool {
    // `/proc/sys/net` shows the namespace of the thread that looks.
    let migrates = || std::fs::read_to_string("/proc/sys/net/ipv4/tcp_migrate_req");
    let migrates = netns.run(migrates).flatten().is_ok_and(|value| value.trim() == "1");
    !(reuse_port && migrates)
}

/// The process that served the node's pods when this one started, if there was one.
#[derive(Debug, Default)]
pub struct Predecessor {
    socket: Mutex<Option<PacketSocket>>,
}

/// Why nothing was handed over.
#[derive(Debug, thiserror::Error)]
enum HandoverError {
    #[error("{0}")]
    Packet(#[from] PacketError),
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("cannot read the answer: {0}")]
    Json(#[from] serde_json::Error),
    #[error("it speaks version {0}, not {VERSION}")]
    Version(u32),
    #[error("{named} sockets named, {came} came")]
    Mismatch { named: usize, came: usize },
    #[error("no answer in {PATIENCE:?}")]
    Timeout,
}

impl Predecessor {
    /// Connects to who is there now. Needs a runtime.
    #[must_use]
    pub fn find(path: &Path) -> Self {
        let socket = match PacketSocket::connect(path) {
            Ok(socket) => socket,
            Err(error) => {
                tracing::debug!(path = %path.display(), %error, "no running proxy to take sockets over from");
                return Self::default();
            }
        };
        if !socket.is_same_user().unwrap_or_default() {
            tracing::warn!(path = %path.display(), "another user listens here: no sockets are taken over");
            return Self::default();
        }
        Self { socket: Mutex::new(Some(socket)) }
    }

    /// The pod's sockets, if they are to be had soon.
    pub async fn ask(&self, uid: &PodUid, netns: NetnsId) -> Handed {
        let mut slot = self.socket.lock().await;
        let Some(socket) = slot.as_ref() else { return Vec::new() };
        let asked = tokio::time::timeout(PATIENCE, exchange(socket, uid, netns)).await;
        match asked.unwrap_or(Err(HandoverError::Timeout)) {
            Ok(handed) => handed,
            Err(error) => {
                match error {
                    HandoverError::Packet(PacketError::Closed) => tracing::info!("the proxy before us has ended"),
                    error => tracing::warn!(%error, "no sockets are taken over: new ones are bound"),
                }
                // What it still says would be taken for the answer to another question.
                *slot = None;
                Vec::new()
            }
        }
    }
}

async fn exchange(socket: &PacketSocket, uid: &PodUid, netns: NetnsId) -> Result<Handed, HandoverError> {
    let request = Request { version: VERSION, uid: uid.as_str().to_owned(), netns };
    socket.send(&serde_json::to_vec(&request)?).await?;
    let mut handed = Vec::new();
    let mut buffer = vec![0; LONGEST];
    loop {
        let (data, descriptors) = socket.recv_many(&mut buffer).await?;
        let reply: Reply = serde_json::from_slice(&data)?;
        if reply.version != VERSION {
            return Err(HandoverError::Version(reply.version));
        }
        if reply.sockets.len() != descriptors.len() {
            return Err(HandoverError::Mismatch { named: reply.sockets.len(), came: descriptors.len() });
        }
        handed.extend(reply.sockets.into_iter().zip(descriptors));
        if !reply.more {
            return Ok(handed);
        }
    }
}

/// Answers successors until the drain.
pub async fn serve(listener: PacketListener, holder: impl Holder, tasks: Tracker, cancel: Cancel) {
    let holder = Arc::new(holder);
    loop {
        let accepted = tokio::select! {
            biased;
            () = cancel.drained() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok(socket) if socket.is_same_user().unwrap_or_default() => {
                let (holder, cancel) = (holder.clone(), cancel.clone());
                tasks.spawn("hand-over", async move {
                    tokio::select! {
                        biased;
                        () = cancel.drained() => {}
                        ended = answer(&socket, &*holder) => {
                            if let Err(error) = ended {
                                tracing::debug!(%error, "hand-over ended");
                            }
                        }
                    }
                });
            }
            Ok(_) => tracing::warn!("a process of another user asked for sockets"),
            Err(error) => {
                tracing::warn!(%error, "hand-over");
                tokio::time::sleep(PATIENCE).await;
            }
        }
    }
}

async fn answer(socket: &PacketSocket, holder: &impl Holder) -> Result<(), HandoverError> {
    let mut buffer = vec![0; LONGEST];
    loop {
        let (data, _) = socket.recv_many(&mut buffer).await?;
        let asked = serde_json::from_slice::<Request>(&data).ok().filter(|request| request.version == VERSION);
        let Some(Request { uid, netns, .. }) = asked else {
            // It reads which version is spoken here, and binds.
            send(socket, &[], false).await?;
            continue;
        };
        let handed = holder.sockets(&PodUid::new(&uid), netns).await;
        tracing::info!(uid, sockets = handed.len(), "handed over to the next proxy");
        let mut rest = &handed[..];
        loop {
            let (now, later) = rest.split_at(rest.len().min(IN_A_PACKET));
            send(socket, now, !later.is_empty()).await?;
            rest = later;
            if rest.is_empty() {
                break;
            }
        }
    }
}

async fn send(socket: &PacketSocket, handed: &[(Kind, OwnedFd)], more: bool) -> Result<(), HandoverError> {
    let reply = Reply { version: VERSION, sockets: handed.iter().map(|(kind, _)| *kind).collect(), more };
    let descriptors: Vec<_> = handed.iter().map(|(_, fd)| fd.as_fd()).collect();
    Ok(socket.send_with(&serde_json::to_vec(&reply)?, &descriptors).await?)
}

#[cfg(test)]
#[path = "handover/tests.rs"]
mod tests;
