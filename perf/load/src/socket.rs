//! Targets, sources, descriptors.

use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};
use std::os::fd::AsFd;

use anyhow::{Context, Result, ensure};
use mio::net::TcpStream;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{setsockopt, sockopt::IpBindAddressNoPort};
use socket2::{Domain, Protocol, SockRef, Socket, Type};

/// Descriptors that are not connections: standard streams, epoll, timers, listeners.
const SPARE: u64 = 64;

/// The first address of `host:port`.
///
/// # Errors
/// When there is none.
pub fn resolve(target: &str) -> Result<SocketAddr> {
    let mut addresses = target.to_socket_addrs().with_context(|| format!("{target:?} is not a host:port to go to"))?;
    addresses.next().with_context(|| format!("{target:?} has no address"))
}

/// Takes as many descriptors as the system lets this process have.
///
/// # Errors
/// When that is too few for `connections`.
pub fn raise_descriptor_limit(connections: usize) -> Result<()> {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).context("reading the limit of open descriptors")?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raising the limit of open descriptors")?;
    }
    ensure!(
        connections as u64 + SPARE <= hard,
        "{connections} connections need {} descriptors and this process may have {hard}: take fewer connections, or \
         raise the hard limit (ulimit -Hn), or run several processes",
        connections as u64 + SPARE,
    );
    Ok(())
}

/// Where connections come from.
#[derive(Debug, Clone, Default)]
pub(crate) struct Sources {
    addresses: Vec<IpAddr>,
    next: usize,
}

impl Sources {
    /// These by turns, or what the system chooses when there are none.
    pub(crate) fn new(addresses: &[IpAddr]) -> Self {
        Self { addresses: addresses.to_vec(), next: 0 }
    }

    /// Begins to connect.
    pub(crate) fn connect(&mut self, target: SocketAddr) -> io::Result<TcpStream> {
        if self.addresses.is_empty() {
            return TcpStream::connect(target);
        }
        let source = self.addresses[self.next % self.addresses.len()];
        self.next = self.next.wrapping_add(1);
        let socket = Socket::new(Domain::for_address(target), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
        bind(&socket, source)?;
        match socket.connect(&target.into()) {
            Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => Err(error),
            _ => Ok(TcpStream::from_std(socket.into())),
        }
    }
}

/// Binds to an address and leaves the port to connect, which knows the target: a port may then serve many targets.
pub(crate) fn bind(socket: &impl AsFd, source: IpAddr) -> io::Result<()> {
    setsockopt(socket, IpBindAddressNoPort, &true)?;
    SockRef::from(socket).bind(&SocketAddr::new(source, 0).into())
}
