//! One proxy's connection, from hello to its end.

use super::packet::{MAX, Packets};
use super::server::{Timing, ZdsError, ZdsPod};
use crate::netns::NetNs;
use aquifer_proto::zds::{
    AddWorkload, DelWorkload, KeepWorkload, SnapshotSent, Version, WorkloadRequest, WorkloadResponse, ZdsHello,
    workload_request::Payload, workload_response,
};
use prost::Message;
use std::io;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// What the agent asks of a connection.
#[derive(Debug)]
pub(super) struct Command {
    pub(super) request: Request,
    pub(super) answer: oneshot::Sender<Result<(), ZdsError>>,
}

/// A packet to a proxy.
#[derive(Debug, Clone)]
pub(super) enum Request {
    Add(ZdsPod),
    Keep(String),
    Del(String),
    SnapshotSent,
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum Ended {
    #[error("ztunnel closed the connection")]
    Closed,
    #[error("ztunnel did not {0} in time")]
    Late(&'static str),
    #[error("protocol error: {0}")]
    Protocol(String),
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl Request {
    fn name(&self) -> String {
        match self {
            Self::Add(pod) => format!("{}/{}", pod.info.namespace, pod.info.name),
            Self::Keep(uid) | Self::Del(uid) => uid.clone(),
            Self::SnapshotSent => String::new(),
        }
    }

    fn encode(&self) -> (Vec<u8>, Option<&NetNs>) {
        let (payload, netns) = match self {
            Self::Add(pod) => {
                let add = AddWorkload { uid: pod.uid.clone(), workload_info: Some(pod.info.clone()) };
                (Payload::Add(add), Some(&pod.netns))
            }
            Self::Keep(uid) => (Payload::Keep(KeepWorkload { uid: uid.clone() }), None),
            Self::Del(uid) => (Payload::Del(DelWorkload { uid: uid.clone() }), None),
            Self::SnapshotSent => (Payload::SnapshotSent(SnapshotSent {}), None),
        };
        (WorkloadRequest { payload: Some(payload) }.encode_to_vec(), netns)
    }
}

/// Waits for the hello. It gets no answer.
pub(super) async fn hello(packets: &Packets, timing: Timing) -> Result<(), Ended> {
    let bytes = timeout(timing.deadline, packets.receive()).await.map_err(|_| Ended::Late("say hello"))??;
    let hello = ZdsHello::decode(bytes.ok_or(Ended::Closed)?.as_slice())
        .map_err(|error| Ended::Protocol(format!("hello: {error}")))?;
    if hello.version != Version::V1 as i32 {
        return Err(Ended::Protocol(format!("hello of version {}; this agent speaks 1", hello.version)));
    }
    Ok(())
}

/// Sends every pod, and that this was all. A refused pod is the agent's to send again.
pub(super) async fn snapshot(packets: &Packets, timing: Timing, pods: Vec<Request>) -> Result<(), Ended> {
    for pod in pods {
        if let Err(reason) = exchange(packets, timing, &pod).await? {
            tracing::warn!(pod = %pod.name(), %reason, "ztunnel refused a pod of the snapshot");
        }
    }
    exchange(packets, timing, &Request::SnapshotSent)
        .await?
        .map_err(|reason| Ended::Protocol(format!("ztunnel refused the snapshot: {reason}")))
}

/// Carries commands until the connection ends.
pub(super) async fn live(
    packets: &Packets,
    timing: Timing,
    commands: &mut mpsc::UnboundedReceiver<Command>,
) -> Result<(), Ended> {
    loop {
        let command = tokio::select! {
            // First, so that what a proxy says unasked is never taken for an answer. Istio's agent looks every five
            // seconds for ten milliseconds; looking all the time finds the same faults sooner.
            biased;
            unasked = packets.receive() => return Err(match unasked? {
                None => Ended::Closed,
                Some(bytes) => Ended::Protocol(format!("{} bytes unasked", bytes.len())),
            }),
            command = commands.recv() => match command {
                Some(command) => command,
                None => return Ok(()),
            },
        };
        match exchange(packets, timing, &command.request).await {
            Ok(outcome) => {
                let _ = command.answer.send(outcome.map_err(ZdsError::Refused));
            }
            Err(ended) => {
                let _ = command.answer.send(Err(ZdsError::Lost(ended.to_string())));
                return Err(ended);
            }
        }
    }
}

/// One request, one answer: accepted, or refused and why.
async fn exchange(packets: &Packets, timing: Timing, request: &Request) -> Result<Result<(), String>, Ended> {
    let (bytes, netns) = request.encode();
    if bytes.len() > MAX {
        // That pod's trouble alone: the connection carries the others.
        return Ok(Err(format!("{} bytes; a packet holds {MAX}", bytes.len())));
    }
    timeout(timing.deadline, packets.send(&bytes, netns)).await.map_err(|_| Ended::Late("take a request"))??;
    let bytes = timeout(timing.deadline, packets.receive()).await.map_err(|_| Ended::Late("answer"))??;
    let response = WorkloadResponse::decode(bytes.ok_or(Ended::Closed)?.as_slice())
        .map_err(|error| Ended::Protocol(format!("answer: {error}")))?;
    match response.payload {
        Some(workload_response::Payload::Ack(ack)) if ack.error.is_empty() => Ok(Ok(())),
        Some(workload_response::Payload::Ack(ack)) => Ok(Err(first_line(&ack.error))),
        None => Err(Ended::Protocol("answer without an ack".into())),
    }
}

/// Some proxies append a back trace.
fn first_line(error: &str) -> String {
    error.lines().next().unwrap_or_default().trim().to_owned()
}
