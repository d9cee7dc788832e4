//! ZDS messages: parsed once, here; inside, a request is valid (an Add has its pod and its namespace, nothing else
//! has a descriptor).

use std::os::fd::OwnedFd;
use std::sync::Arc;

use aquifer_proto::zds;
use prost::Message;

use super::packet::Packet;

/// A pod's Kubernetes uid.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PodUid(Arc<str>);

impl PodUid {
    /// Any non-empty text; ztunnel never looks into it.
    #[must_use]
    pub fn new(uid: &str) -> Self {
        Self(uid.into())
    }

    /// The uid as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for PodUid {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// Who a pod is: the key by which its workload is found.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct WorkloadInfo {
    /// The pod's name.
    pub name: Arc<str>,
    /// The pod's namespace.
    pub namespace: Arc<str>,
    /// The pod's service account.
    pub service_account: Arc<str>,
}

impl std::fmt::Display for WorkloadInfo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// What the agent asks. `N` is what stands for the pod's namespace.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Request<N> {
    /// Serve this pod.
    Add {
        /// The pod.
        uid: PodUid,
        /// Who it is.
        info: WorkloadInfo,
        /// Where it is.
        netns: N,
    },
    /// Serve no longer.
    Del(PodUid),
    /// Part of the snapshot, though the agent has no namespace for it: leave it as it is.
    Keep(PodUid),
    /// Everything named until now is all there is.
    SnapshotSent,
}

/// A packet that breaks the protocol. The answer is a nack, then a new connection.
#[derive(Debug, thiserror::Error)]
pub enum ZdsError {
    /// Not protobuf.
    #[error("failed to decode: {0}")]
    Decode(#[from] prost::DecodeError),
    /// An empty message, or a kind from the future.
    #[error("request without a known payload")]
    UnknownPayload,
    /// An Add that doesn't say who the pod is.
    #[error("add without workload_info")]
    NoInfo,
    /// A message about nobody.
    #[error("{0} without uid")]
    NoUid(&'static str),
    /// An Add without the pod's namespace.
    #[error("add without a network namespace descriptor")]
    NoDescriptor,
    /// A descriptor with anything but an Add.
    #[error("unexpected descriptor with {0}")]
    UnexpectedDescriptor(&'static str),
}

/// The first packet of a connection.
#[must_use]
pub fn hello() -> Vec<u8> {
    zds::ZdsHello { version: zds::Version::V1 as i32 }.encode_to_vec()
}

/// The answer to a request; short, since the agent reads at most 1024 bytes.
#[must_use]
pub fn ack(result: Result<(), &str>) -> Vec<u8> {
    const LONGEST: usize = 900;
    let error = match result {
        Ok(()) => String::new(),
        Err(e) => e.chars().take(LONGEST / 4).collect(),
    };
    zds::WorkloadResponse { payload: Some(zds::workload_response::Payload::Ack(zds::Ack { error })) }.encode_to_vec()
}

/// Packet → request.
pub fn parse(packet: Packet) -> Result<Request<OwnedFd>, ZdsError> {
    use zds::workload_request::Payload;
    let payload = zds::WorkloadRequest::decode(packet.data.as_slice())?.payload.ok_or(ZdsError::UnknownPayload)?;
    let uid = |uid: &str, kind| match uid {
        "" => Err(ZdsError::NoUid(kind)),
        uid => Ok(PodUid::new(uid)),
    };
    let (request, kind) = match payload {
        Payload::Add(add) => {
            let info = add.workload_info.ok_or(ZdsError::NoInfo)?;
            return Ok(Request::Add {
                uid: uid(&add.uid, "add")?,
                info: WorkloadInfo {
                    name: info.name.into(),
                    namespace: info.namespace.into(),
                    service_account: info.service_account.into(),
                },
                netns: packet.fd.ok_or(ZdsError::NoDescriptor)?,
            });
        }
        Payload::Del(del) => (Request::Del(uid(&del.uid, "del")?), "del"),
        Payload::Keep(keep) => (Request::Keep(uid(&keep.uid, "keep")?), "keep"),
        Payload::SnapshotSent(_) => (Request::SnapshotSent, "snapshot_sent"),
    };
    match packet.fd {
        Some(_) => Err(ZdsError::UnexpectedDescriptor(kind)),
        None => Ok(request),
    }
}

#[cfg(test)]
#[path = "zds/tests.rs"]
mod tests;
