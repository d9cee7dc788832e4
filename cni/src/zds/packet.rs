//! SOCK_SEQPACKET: one message a packet, a descriptor at most beside it.

use crate::descriptor::register;
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept4, bind, listen, recvmsg,
    sendmsg, socket,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The longest packet either side may send.
pub const MAX: usize = 1024;

/// Connections wait here while the agent is still taking stock of its pods.
const BACKLOG: i32 = 16;

/// A listening socket at a path.
#[derive(Debug)]
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
}

impl Listener {
    /// Listens at `path`; a stale socket there is replaced.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let explain =
            |what: &str, error: io::Error| io::Error::new(error.kind(), format!("{what} {}: {error}", path.display()));
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).map_err(|error| explain("create the folder of", error))?;
        }
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(explain("remove stale", error)),
            _ => {}
        }
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, flags, None)?;
        let address = UnixAddr::new(path).map_err(|errno| explain("bind", errno.into()))?;
        bind(fd.as_raw_fd(), &address).map_err(|errno| explain("bind", errno.into()))?;
        listen(&fd, Backlog::new(BACKLOG)?)?;
        Ok(Self { fd: register(fd, Interest::READABLE)? })
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Packets> {
        let fd = self
            .fd
            .async_io(Interest::READABLE, |fd| {
                let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
                Ok(accept4(fd.as_raw_fd(), flags)?)
            })
            .await?;
        #[allow(unsafe_code)]
        // SAFETY: accept4 just returned this descriptor, and nobody else knows it.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        Packets::new(fd)
    }
}

/// One connection.
#[derive(Debug)]
pub struct Packets {
    fd: AsyncFd<OwnedFd>,
}

impl Packets {
    /// A connected, non-blocking SOCK_SEQPACKET socket.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: register(fd, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// Sends one packet, with a descriptor beside it or without.
    pub async fn send(&self, bytes: &[u8], descriptor: Option<&impl AsFd>) -> io::Result<()> {
        if bytes.len() > MAX {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, format!("{} bytes, at most {MAX}", bytes.len())));
        }
        let raw = descriptor.map(|descriptor| [descriptor.as_fd().as_raw_fd()]);
        let control: Vec<ControlMessage<'_>> = raw.iter().map(|raw| ControlMessage::ScmRights(raw)).collect();
        self.fd
            .async_io(Interest::WRITABLE, |fd| {
                let sent = sendmsg::<()>(
                    fd.as_raw_fd(),
                    &[IoSlice::new(bytes)],
                    &control,
                    MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT,
                    None,
                )?;
                debug_assert_eq!(sent, bytes.len(), "a packet goes whole or not at all");
                Ok(())
            })
            .await
    }

    /// Receives one packet; None at the end. A packet that is too long or carries a descriptor is an error.
    pub async fn receive(&self) -> io::Result<Option<Vec<u8>>> {
        self.fd.async_io(Interest::READABLE, receive).await
    }
}

fn receive(fd: &OwnedFd) -> io::Result<Option<Vec<u8>>> {
    let mut bytes = vec![0; MAX];
    let (length, flags) = {
        let mut slices = [IoSliceMut::new(&mut bytes)];
        // No room for control data: descriptors that come are dropped by the kernel, and it says so.
        match recvmsg::<()>(fd.as_raw_fd(), &mut slices, None, MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT) {
            Ok(received) => (received.bytes, received.flags),
            // The peer ended while its last words were under way: an end like any other.
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(errno) => return Err(errno.into()),
        }
    };
    let fault = |text: &str| Err(io::Error::new(io::ErrorKind::InvalidData, text.to_owned()));
    if flags.contains(MsgFlags::MSG_TRUNC) {
        return fault("packet longer than 1024 bytes");
    }
    if flags.contains(MsgFlags::MSG_CTRUNC) {
        return fault("packet with a descriptor");
    }
    if length == 0 {
        return Ok(None);
    }
    bytes.truncate(length);
    Ok(Some(bytes))
}
