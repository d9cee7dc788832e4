//! What a lab's control socket speaks: a length, then JSON, with descriptors beside the first byte.
//!
//! ```text
//!   caller ── Request (+ stdin, stdout, stderr by SCM_RIGHTS) ─▶ pid 1 of the lab
//!          ◀─ Reply, Reply, … ──────────────────────────────────
//! ```
//! One request a connection, but for `Signal`, which may follow an `Exec`. A caller that hangs up takes
//! what it started with it.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixStream;

use aquifer_objects::{Kind, ObjectKey};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::options::{Component, Netns};
use crate::status::{ProcessStats, Status};

/// Larger messages are refused.
const MAX_MESSAGE: usize = 16 << 20;

/// Where a command runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Target {
    /// In a pod, with its files, its host name and its network.
    Pod { namespace: String, name: String },
    /// With the machine's files in one of the lab's network namespaces.
    Netns(Netns),
}

/// An object's name, its kind as text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Named {
    kind: String,
    namespace: String,
    name: String,
}

impl Named {
    pub(crate) fn of(key: &ObjectKey) -> Self {
        Self { kind: key.kind.as_str().into(), namespace: (*key.namespace).into(), name: (*key.name).into() }
    }

    pub(crate) fn key(&self) -> Option<ObjectKey> {
        Some(ObjectKey::new(kind(&self.kind)?, &self.namespace, &self.name))
    }
}

/// The kind of this name, which both sides know.
pub(crate) fn kind(name: &str) -> Option<Kind> {
    Kind::ALL.iter().find(|kind| kind.as_str() == name).copied()
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Request {
    Status,
    Exec {
        target: Target,
        args: Vec<String>,
        env: Vec<(String, String)>,
    },
    /// Follows `Exec` on the same connection.
    Signal(i32),
    DeletePod {
        namespace: String,
        name: String,
        grace_seconds: Option<u64>,
    },
    SignalComponent {
        component: Component,
        signal: i32,
    },
    StartComponent {
        component: Component,
        env: Vec<(String, String)>,
    },
    ReplaceIstiod,
    ReplaceZtunnel {
        node: String,
        env: Vec<(String, String)>,
    },
    Stats {
        component: Component,
    },
    Http {
        netns: Netns,
        method: String,
        port: u16,
        path: String,
    },
    Token {
        namespace: String,
        pod: String,
        ttl_seconds: u64,
    },
    /// The next four are for a lab whose objects lie in an API server, which nobody outside of it reaches.
    Apply {
        object: Value,
    },
    Delete {
        object: Named,
    },
    Patch {
        object: Named,
        patch: Value,
    },
    Objects {
        kinds: Vec<String>,
    },
    Down,
}

#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Reply {
    Status(Box<Status>),
    Started { pid: i32 },
    Exited { code: i32 },
    Stats(ProcessStats),
    Http { status: u16, body: String },
    Text(String),
    Objects(Vec<Value>),
    Done,
    Error(String),
}

/// Sends one message; `fds` go with its first byte.
pub(crate) fn send<T: Serialize>(stream: &UnixStream, message: &T, fds: &[RawFd]) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let mut frame = Vec::with_capacity(4 + body.len());
    frame.extend_from_slice(&u32::try_from(body.len()).map_err(io::Error::other)?.to_le_bytes());
    frame.extend_from_slice(&body);
    let rights = [ControlMessage::ScmRights(fds)];
    let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    let sent = loop {
        match sendmsg::<()>(stream.as_raw_fd(), &[IoSlice::new(&frame)], control, MsgFlags::MSG_NOSIGNAL, None) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut stream = stream;
    stream.write_all(&frame[sent..])
}

/// Receives one message and its descriptors; `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(stream: &UnixStream) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut length = [0u8; 4];
    let (got, fds) = receive_with_fds(stream, &mut length)?;
    if got == 0 {
        return Ok(None);
    }
    let mut reader = stream;
    reader.read_exact(&mut length[got..])?;
    let length = u32::from_le_bytes(length) as usize;
    if length > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "message too long"));
    }
    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    Ok(Some((serde_json::from_slice(&body)?, fds)))
}

#[allow(unsafe_code)]
fn receive_with_fds(stream: &UnixStream, buffer: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut control = nix::cmsg_space!([RawFd; 8]);
    let mut slices = [IoSliceMut::new(buffer)];
    let message = loop {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        match recvmsg::<()>(stream.as_raw_fd(), &mut slices, Some(&mut control), flags) {
            Err(nix::errno::Errno::EINTR) => {}
            Err(nix::errno::Errno::ECONNRESET) => return Ok((0, Vec::new())),
            other => break other?,
        }
    };
    let mut fds = Vec::new();
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = part {
            // SAFETY: the kernel has just made these descriptors for us and nobody else knows them.
            fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    Ok((message.bytes, fds))
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn messages_and_descriptors_arrive_together() {
        let (a, b) = UnixStream::pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        let request = Request::Exec {
            target: Target::Pod { namespace: "shop".into(), name: "orders".into() },
            args: vec!["x".repeat(300_000)],
            env: Vec::new(),
        };
        let sender = std::thread::spawn(move || {
            send(&a, &request, &[write.as_fd().as_raw_fd()]).unwrap();
            send(&a, &Request::Signal(9), &[]).unwrap();
        });
        let (got, fds) = receive::<Request>(&b).unwrap().unwrap();
        let Request::Exec { args, .. } = got else { panic!("not exec") };
        assert_eq!(args[0].len(), 300_000);
        assert_eq!(fds.len(), 1);
        File::from(fds.into_iter().next().unwrap()).write_all(b"hi").unwrap();
        let mut text = String::new();
        sender.join().unwrap();
        let (second, none) = receive::<Request>(&b).unwrap().unwrap();
        assert!(matches!(second, Request::Signal(9)) && none.is_empty());
        assert!(receive::<Request>(&b).unwrap().is_none());
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "hi");
    }
}
