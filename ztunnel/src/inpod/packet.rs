//! Packets over `SOCK_SEQPACKET` with descriptors in them. For ZDS: one protobuf message per packet, at most 1024
//! bytes, at most one descriptor.

use std::fs::{self, Permissions};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::cmsg_space;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind,
    connect, getsockopt, listen, recvmsg, sendmsg, socket, sockopt,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The largest packet either side of ZDS sends.
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
    /// Dials a socket in the file system.
    pub fn connect(path: &Path) -> io::Result<Self> {
        let fd = unix_socket()?;
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
        self.send_with(data, &[]).await
    }

    /// Sends one packet with copies of these descriptors, at most 253 (unix(7)).
    pub async fn send_with(&self, data: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let numbers: Vec<RawFd> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&numbers)];
        let control = if numbers.is_empty() { &[][..] } else { &rights[..] };
        self.io
            .async_io(Interest::WRITABLE, |fd| {
                sendmsg::<()>(fd.as_raw_fd(), &[IoSlice::new(data)], control, MsgFlags::MSG_NOSIGNAL, None)
                    .map_err(io::Error::from)
            })
            .await
            .map(drop)
    }

    /// Waits for the next packet of ZDS.
    pub async fn recv(&self) -> Result<Packet, PacketError> {
        let (data, mut descriptors) = self.recv_many(&mut [0; MAX_PACKET]).await?;
        if descriptors.len() > 1 {
            return Err(PacketError::TooManyDescriptors(descriptors.len()));
        }
        Ok(Packet { data, fd: descriptors.pop() })
    }

    /// Waits for the next packet, which must fit into `buffer`, and takes all descriptors that come with it.
    pub async fn recv_many(&self, buffer: &mut [u8]) -> Result<(Vec<u8>, Vec<OwnedFd>), PacketError> {
        self.io
            .async_io(Interest::READABLE, |fd| match receive(fd.as_raw_fd(), buffer) {
                Err(PacketError::Io(e)) => Err(e),
                other => Ok(other),
            })
            .await?
    }

    /// Whether the other end was made by a process of the same user as ours.
    pub fn is_same_user(&self) -> io::Result<bool> {
        let peer = getsockopt(self.io.get_ref(), sockopt::PeerCredentials)?;
        Ok(peer.uid() == nix::unistd::geteuid().as_raw())
    }
}

/// Listens in the file system, for processes of our user alone.
#[derive(Debug)]
pub struct PacketListener {
    io: AsyncFd<OwnedFd>,
}

impl PacketListener {
    /// Puts a socket at `path`, in the place of whatever socket was there; nobody ever finds it half made.
    #[allow(unsafe_code)]
    pub fn bind(path: &Path) -> io::Result<Self> {
        let mut draft = path.as_os_str().to_owned();
        draft.push(format!(".{}", std::process::id()));
        let draft = PathBuf::from(draft);
        let fd = unix_socket()?;
        // A process of our number died here.
        let _ = fs::remove_file(&draft);
        bind(fd.as_raw_fd(), &UnixAddr::new(&draft)?)?;
        let placed = fs::set_permissions(&draft, Permissions::from_mode(0o600))
            .and_then(|()| Ok(listen(&fd, Backlog::new(16)?)?))
            .and_then(|()| fs::rename(&draft, path));
        if placed.is_err() {
            let _ = fs::remove_file(&draft);
        }
        placed?;
        // SAFETY: an `OwnedFd` always gives the same open descriptor, and this one lives inside the `AsyncFd`.
        let io = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) };
        Ok(Self { io: io.map_err(|e| e.into_parts().1)? })
    }

    /// Waits for the next caller.
    pub async fn accept(&self) -> io::Result<PacketSocket> {
        let accepted = self.io.async_io(Interest::READABLE, |fd| {
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            Ok(own(accept4(fd.as_raw_fd(), flags)?))
        });
        PacketSocket::new(accepted.await?)
    }
}

fn unix_socket() -> io::Result<OwnedFd> {
    let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
    Ok(socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?)
}

fn receive(fd: RawFd, buffer: &mut [u8]) -> Result<(Vec<u8>, Vec<OwnedFd>), PacketError> {
    // Room for all that the kernel passes at once (unix(7)): of a truncated list we couldn't close those that came.
    let mut control = cmsg_space!([RawFd; 253]);
    let mut slices = [IoSliceMut::new(buffer)];
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
    Ok((buffer[..length].to_vec(), descriptors))
}

#[allow(unsafe_code)]
fn own(fd: RawFd) -> OwnedFd {
    // SAFETY: recvmsg(2) (SCM_RIGHTS) or accept4(2) has just put this descriptor into our table, and nobody else knows
    // its number.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

#[cfg(test)]
#[path = "packet/tests.rs"]
mod tests;
