//! ZDS packets: one protobuf message per `SOCK_SEQPACKET` packet, at most 1024 bytes, at most one descriptor.

use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg, sendmsg, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The largest packet either side sends.
pub const MAX_PACKET: usize = 1024;

/// One received packet.
#[derive(Debug)]
pub struct Packet {
    /// The message's bytes.
    pub data: Vec<u8>,
    /// The descriptor that came along.
    pub fd: Option<OwnedFd>,
}

/// What is wrong with a packet itself, or with the connection.
#[derive(Debug, thiserror::Error)]
pub enum PacketError {
    /// The agent closed the connection.
    #[error("connection closed by the agent")]
    Closed,
    /// More than [`MAX_PACKET`] bytes, or more descriptors than fit.
    #[error("truncated packet")]
    Truncated,
    /// More than one descriptor came.
    #[error("{0} descriptors in one packet")]
    TooManyDescriptors(usize),
    /// The kernel said no.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A connected `SOCK_SEQPACKET` socket.
#[derive(Debug)]
pub struct PacketSocket {
    io: AsyncFd<OwnedFd>,
}

impl PacketSocket {
    /// Dials the agent's socket.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd =
            socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC, None)?;
        // Connecting a local socket doesn't wait: it succeeds, or fails with EAGAIN when the queue is full.
        connect(fd.as_raw_fd(), &UnixAddr::new(path)?)?;
        Self::new(fd)
    }

    /// Takes a connected, non-blocking socket.
    #[allow(unsafe_code)]
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: an `OwnedFd` always gives the same open descriptor, and this one lives inside the `AsyncFd`.
        let io = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE | Interest::WRITABLE) };
        Ok(Self { io: io.map_err(|e| e.into_parts().1)? })
    }

    /// Sends one packet.
    pub async fn send(&self, data: &[u8]) -> io::Result<()> {
        self.io
            .async_io(Interest::WRITABLE, |fd| {
                sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(data)], &[], MsgFlags::MSG_NOSIGNAL, None)
                    .map_err(io::Error::from)
            })
            .await
            .map(drop)
    }

    /// Waits for the next packet.
    pub async fn recv(&self) -> Result<Packet, PacketError> {
        self.io
            .async_io(Interest::READABLE, |fd| match receive(fd.as_raw_fd()) {
                Err(PacketError::Io(e)) => Err(e),
                other => Ok(other),
            })
            .await?
    }
}

fn receive(fd: RawFd) -> Result<Packet, PacketError> {
    // One byte more than allowed, so that the kernel's truncation flag isn't the only witness.
    let mut buffer = [0; MAX_PACKET];
    // Room for all that the kernel passes at once (unix(7)): of a truncated list we couldn't close those that came.
    let mut control = cmsg_space!([RawFd; 253]);
    let mut slices = [IoSliceMut::new(&mut buffer)];
    let message =
        recvmsg::<()>(fd, &mut slices, Some(&mut control), MsgFlags::MSG_CMSG_CLOEXEC).map_err(io::Error::from)?;

    // First of all own the descriptors: whatever is wrong below, they get closed.
    let mut descriptors = Vec::new();
    let control_intact = match message.cmsgs() {
        Ok(messages) => {
            for message in messages {
                if let ControlMessageOwned::ScmRights(fds) = message {
                    descriptors.extend(fds.into_iter().map(own));
                }
            }
            true
        }
        Err(_) => false,
    };
    let truncated = message.flags.intersects(MsgFlags::MSG_TRUNC | MsgFlags::MSG_CTRUNC);
    let length = message.bytes;

    if truncated || !control_intact {
        return Err(PacketError::Truncated);
    }
    if length == 0 {
        return Err(PacketError::Closed);
    }
    if descriptors.len() > 1 {
        return Err(PacketError::TooManyDescriptors(descriptors.len()));
    }
    Ok(Packet { data: buffer[..length].to_vec(), fd: descriptors.pop() })
}

#[allow(unsafe_code)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: recvmsg(2) has just put this descriptor into our table (SCM_RIGHTS), and nobody else knows its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
#[path = "packet/tests.rs"]
mod tests;
