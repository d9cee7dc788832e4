//! ZDS by packet: the node agent's end, and the proxy's.

use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use nix::poll::{PollFd, PollFlags, PollTimeout};
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, listen, recvmsg, sendmsg, socket,
};
use tokio::task::block_in_place;

use super::DEADLINE;
use super::protobuf::{Fields, Message};

/// Larger than what is allowed, so that what is too large is seen.
const BUFFER: usize = 4096;

/// The agent's socket.
#[derive(Debug)]
pub(crate) struct Listener(OwnedFd);

impl Listener {
    pub(crate) fn bind(path: &Path) -> Result<Self> {
        let fd = seqpacket()?;
        bind(fd.as_raw_fd(), &UnixAddr::new(path)?).with_context(|| format!("binding {}", path.display()))?;
        listen(&fd, Backlog::new(16)?)?;
        Ok(Self(fd))
    }

    /// The next proxy that dials.
    pub(crate) fn accept(&self) -> Result<Link> {
        self.accept_within(DEADLINE)?.context("no proxy dialled")
    }

    /// The same; `None` if nobody dials in time.
    pub(crate) fn accept_within(&self, time: Duration) -> Result<Option<Link>> {
        if !block_in_place(|| readable(self.0.as_fd(), time))? {
            return Ok(None);
        }
        let fd = accept4(self.0.as_raw_fd(), SockFlag::SOCK_CLOEXEC)?;
        Ok(Some(Link(own(fd))))
    }
}

/// One connection.
#[derive(Debug)]
pub(crate) struct Link(OwnedFd);

/// A packet with what came along.
#[derive(Debug)]
pub(crate) struct Packet {
    pub(crate) bytes: Vec<u8>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Link {
    pub(crate) fn dial(path: &Path) -> Result<Self> {
        let fd = seqpacket()?;
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?).with_context(|| format!("dialling {}", path.display()))?;
        Ok(Self(fd))
    }

    /// Ends the connection.
    pub(crate) fn close(&self) -> Result<()> {
        Ok(nix::sys::socket::shutdown(self.0.as_raw_fd(), nix::sys::socket::Shutdown::Both)?)
    }

    pub(crate) fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
        let fds: Vec<RawFd> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
        let sent = sendmsg::<()>(self.0.as_raw_fd(), &[IoSlice::new(bytes)], control, MsgFlags::MSG_NOSIGNAL, None)?;
        ensure!(sent == bytes.len(), "{sent} of {} bytes sent", bytes.len());
        Ok(())
    }

    /// The next packet; `None` when the other end closed.
    pub(crate) fn receive(&self) -> Result<Option<Packet>> {
        self.receive_within(DEADLINE)?.context("no packet came")
    }

    /// The same; the outer `None` if nothing comes in time.
    pub(crate) fn receive_within(&self, time: Duration) -> Result<Option<Option<Packet>>> {
        if !block_in_place(|| readable(self.0.as_fd(), time))? {
            return Ok(None);
        }
        let mut bytes = vec![0; BUFFER];
        let mut control = nix::cmsg_space!([RawFd; 8]);
        let mut io = [IoSliceMut::new(&mut bytes)];
        let received = recvmsg::<()>(self.0.as_raw_fd(), &mut io, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC);
        let message = match received {
            // The other end went away with packets unread.
            Err(nix::errno::Errno::ECONNRESET) => return Ok(Some(None)),
            other => other?,
        };
        let mut fds = Vec::new();
        for found in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(received) = found {
                fds.extend(received.into_iter().map(own));
            }
        }
        let length = message.bytes;
        Ok(Some((length > 0).then(|| {
            bytes.truncate(length);
            Packet { bytes, fds }
        })))
    }

    /// Whether nothing comes for this long: the agent's probe of an idle proxy.
    pub(crate) fn silent_for(&self, time: Duration) -> Result<bool> {
        Ok(self.receive_within(time)?.is_none())
    }

    /// Reads the proxy's hello.
    pub(crate) fn hello(&self) -> Result<()> {
        let packet = self.receive()?.context("closed before its hello")?;
        ensure!(packet.bytes == [8, 1], "a hello of version 1, not {:02x?}", packet.bytes);
        ensure!(packet.fds.is_empty(), "a hello with descriptors");
        Ok(())
    }

    /// Sends one request and reads its answer: the error's text, empty for an ack.
    pub(crate) fn request(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<String> {
        self.send(&message.0, fds)?;
        let packet = self.receive()?.context("closed instead of answering")?;
        ensure!(packet.bytes.len() <= 1024, "an answer of {} bytes", packet.bytes.len());
        ensure!(packet.fds.is_empty(), "an answer with descriptors");
        let answer = Fields::read(&packet.bytes)?;
        ensure!(answer.numbers() == [1], "an ack, not {answer:?}");
        Ok(answer.message(1)?.string(1))
    }

    /// Sends one request that must be acked.
    pub(crate) fn accepted(&self, message: &Message, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let error = self.request(message, fds)?;
        ensure!(error.is_empty(), "refused: {error}");
        Ok(())
    }
}

pub(crate) fn add(uid: &str, name: &str, namespace: &str, service_account: &str) -> Message {
    let info = Message::new().string(1, name).string(2, namespace).string(3, service_account);
    Message::new().message(1, &Message::new().string(1, uid).message(2, &info))
}

pub(crate) fn del(uid: &str) -> Message {
    Message::new().message(2, &Message::new().string(2, uid))
}

pub(crate) fn snapshot_sent() -> Message {
    Message::new().message(3, &Message::new())
}

pub(crate) fn keep(uid: &str) -> Message {
    Message::new().message(5, &Message::new().string(1, uid))
}

fn seqpacket() -> Result<OwnedFd> {
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?)
}

#[allow(unsafe_code)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: the kernel has just given us this descriptor, and nobody else knows of it.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn readable(fd: BorrowedFd<'_>, time: Duration) -> Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    Ok(nix::poll::poll(&mut fds, PollTimeout::try_from(time)?)? > 0)
}
