//! Every socket option that the data path needs, in one place.
//!
//! A socket belongs to the network namespace in which it is created, for good. So the functions that create one are
//! plain (not async): they run inside [`crate::inpod::netns::Netns::run`], and only the connect is awaited, outside.
//!
//! Options are set once, on the listener: Linux clones mark, keepalive, `TCP_NODELAY` and transparency into each
//! accepted socket, which saves half a dozen system calls per connection (a test holds the kernel to that).

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::AsFd;
use std::time::Duration;

use nix::sys::socket::{setsockopt, sockopt};
use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};
use tokio::net::{TcpSocket, TcpStream};

/// Pending connections per listener. Istio's 128 overflows at 512 connections at once, and a lost SYN costs a second.
pub const BACKLOG: i32 = 4096;

/// TCP keepalive times (`KEEPALIVE_TIME`, `KEEPALIVE_INTERVAL`, `KEEPALIVE_RETRIES`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Keepalive {
    /// Idle time before the first probe.
    pub time: Duration,
    /// Time between probes.
    pub interval: Duration,
    /// Unanswered probes until the connection counts as dead.
    pub retries: u32,
}

impl Keepalive {
    /// From the last sign of life to the end.
    #[must_use]
    pub fn timeout(self) -> Duration {
        self.time + self.interval * self.retries
    }
}

/// May sockets take foreign source addresses (`ENABLE_ORIG_SRC`)?
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OriginalSource {
    /// Try; without the permission go on with the pod's own address.
    #[default]
    Auto,
    /// A pod whose sockets can't be transparent isn't served.
    Required,
    /// Never.
    Off,
}

/// What every TCP socket of ours gets.
#[derive(Clone, Copy, Debug, Default)]
pub struct TcpOptions {
    /// `SO_MARK`: tells the redirection rules that this is our own traffic.
    pub mark: Option<u32>,
    /// Keepalive; `None` leaves the kernel's default (off).
    pub keepalive: Option<Keepalive>,
    /// `TCP_USER_TIMEOUT` = time + interval x retries (only with keepalive).
    pub user_timeout: bool,
    /// The other end is in the same network namespace: see [`within_pod`](Self::within_pod).
    pub within_pod: bool,
}

/// Congestion control of the hop between an application and us, which is loopback: nothing to measure and nothing to
/// share. BBR, the default of many machines, would pace it with timers, for 10 to 20 % of a bulk transfer. This one is
/// in every kernel and allowed to everybody.
const WITHIN_POD: &[u8] = b"reno";

impl TcpOptions {
    /// The same for connections that don't leave the pod.
    #[must_use]
    pub fn within_pod(self) -> Self {
        Self { within_pod: true, ..self }
    }

    fn apply(&self, socket: &Socket) -> io::Result<()> {
        socket.set_tcp_nodelay(true)?;
        if self.within_pod {
            // A refusal costs speed only.
            let _ = socket.set_tcp_congestion(WITHIN_POD);
        }
        if let Some(mark) = self.mark {
            socket.set_mark(mark)?;
        }
        if let Some(keepalive) = self.keepalive {
            socket.set_tcp_keepalive(
                &TcpKeepalive::new()
                    .with_time(keepalive.time)
                    .with_interval(keepalive.interval)
                    .with_retries(keepalive.retries),
            )?;
            if self.user_timeout {
                socket.set_tcp_user_timeout(Some(keepalive.timeout()))?;
            }
        }
        Ok(())
    }
}

/// A listener on all addresses of the current namespace; v6 wildcard sockets take v4 as well.
pub fn listen(
    addr: SocketAddr,
    options: &TcpOptions,
    original_source: OriginalSource,
    reuse_port: bool,
) -> io::Result<std::net::TcpListener> {
    let socket = Socket::new(Domain::for_address(addr), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    options.apply(&socket)?;
    socket.set_reuse_address(true)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    if addr.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    match (original_source, set_transparent(&socket, addr.is_ipv6())) {
        (OriginalSource::Required, Err(e)) => return Err(e),
        // The failure shows again, with a warning, when an upstream socket wants a foreign source.
        (OriginalSource::Auto | OriginalSource::Off, _) | (OriginalSource::Required, Ok(())) => {}
    }
    socket.bind(&addr.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

/// Sees to it that a listener of another process is on this port, and that what it accepts has our options. They are the
/// socket's, so the other process has them too.
pub fn adopt(listener: &std::net::TcpListener, port: u16, options: &TcpOptions) -> io::Result<()> {
    let socket = SockRef::from(listener);
    let at = listener.local_addr()?.port();
    if at != port || !socket.is_listener()? {
        return Err(io::Error::other(format!("not a listener on port {port}, but on {at}")));
    }
    socket.set_nonblocking(true)?;
    options.apply(&socket)
}

/// Listens on `[::]:port`, or on `0.0.0.0:port` where IPv6 is off or unknown to the kernel.
pub fn listen_wildcard(
    port: u16,
    ipv6: bool,
    options: &TcpOptions,
    original_source: OriginalSource,
    reuse_port: bool,
) -> io::Result<std::net::TcpListener> {
    let v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    if !ipv6 {
        return listen(v4, options, original_source, reuse_port);
    }
    let v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    match listen(v6, options, original_source, reuse_port) {
        Err(e) if lacks_address(&e) => listen(v4, options, original_source, reuse_port),
        other => other,
    }
}

/// A socket for datagrams to `addr`, of the current namespace.
pub fn listen_udp(addr: SocketAddr, options: &TcpOptions, reuse_port: bool) -> io::Result<std::net::UdpSocket> {
    let socket = udp(addr, options)?;
    if reuse_port {
        socket.set_reuse_port(true)?;
    }
    socket.bind(&addr.into())?;
    Ok(socket.into())
}

/// A socket for datagrams to and from `peer` alone, made in the current namespace.
pub fn connected_udp(peer: SocketAddr, options: &TcpOptions) -> io::Result<std::net::UdpSocket> {
    let socket = udp(peer, options)?;
    socket.connect(&peer.into())?;
    Ok(socket.into())
}

fn udp(addr: SocketAddr, options: &TcpOptions) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(addr), Type::DGRAM.nonblocking(), Some(Protocol::UDP))?;
    if let Some(mark) = options.mark {
        socket.set_mark(mark)?;
    }
    Ok(socket)
}

/// An unconnected socket towards `destination`, made in the current namespace.
///
/// `source`: take this foreign address as ours (the original client's). Where that isn't permitted, the connection
/// goes on from the pod's own address and the error comes back as the second value, to be logged by the caller.
pub fn upstream(
    destination: SocketAddr,
    source: Option<IpAddr>,
    options: &TcpOptions,
) -> io::Result<(TcpSocket, Option<io::Error>)> {
    let socket = Socket::new(Domain::for_address(destination), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    options.apply(&socket)?;
    let unspoofed = match source {
        Some(ip) if ip.is_ipv4() == destination.is_ipv4() => spoof(&socket, ip).err(),
        Some(_) | None => None,
    };
    Ok((TcpSocket::from_std_stream(socket.into()), unspoofed))
}

/// Where the client at `peer` wanted to go before the redirection rules brought it here; without them, our own address.
pub fn original_destination(stream: &TcpStream, peer: SocketAddr) -> io::Result<SocketAddr> {
    let socket = SockRef::from(stream);
    let original = if canonical(peer).is_ipv4() { socket.original_dst_v4() } else { socket.original_dst_v6() };
    match original.ok().and_then(|addr| addr.as_socket()) {
        Some(addr) => Ok(canonical(addr)),
        // No connection-tracking entry: nothing was redirected.
        None => stream.local_addr().map(canonical),
    }
}

/// A v4 address that a dual-stack socket shows as `::ffff:a.b.c.d`, as v4; flow label and scope are dropped.
#[must_use]
pub fn canonical(addr: SocketAddr) -> SocketAddr {
    SocketAddr::new(addr.ip().to_canonical(), addr.port())
}

/// The addresses of the network namespace that this thread is in.
pub fn addresses() -> io::Result<Vec<IpAddr>> {
    let all = nix::ifaddrs::getifaddrs()?.filter_map(|interface| interface.address);
    let ips = all.filter_map(|address| {
        let v4 = address.as_sockaddr_in().map(|v4| IpAddr::V4(v4.ip()));
        v4.or_else(|| address.as_sockaddr_in6().map(|v6| IpAddr::V6(v6.ip())))
    });
    Ok(ips.collect())
}

/// The next close sends a reset instead of a FIN: what a client sees without a mesh when its target refuses.
pub fn reset_on_close(stream: &TcpStream) {
    // Failure means that the socket is already dead, and then there is nobody to tell.
    let _ = SockRef::from(stream).set_linger(Some(Duration::ZERO));
}

fn spoof(socket: &Socket, source: IpAddr) -> io::Result<()> {
    // Also permits to bind to what is no address of ours, as IP_FREEBIND does.
    set_transparent(socket, source.is_ipv6())?;
    // Without it the port is taken for all destinations at bind time, and 28 000 connections of one client use up the
    // range: EADDRNOTAVAIL. With it the kernel chooses at connect, per 4-tuple (ip(7)); v6 sockets take it at SOL_IP.
    setsockopt(&socket.as_fd(), sockopt::IpBindAddressNoPort, &true)?;
    socket.bind(&SocketAddr::new(source, 0).into())
}

fn set_transparent(socket: &Socket, v6: bool) -> io::Result<()> {
    if v6 { socket.set_ip_transparent_v6(true) } else { socket.set_ip_transparent_v4(true) }
}

/// Whether binding failed because the namespace has no such address, or the kernel no such family.
pub(crate) fn lacks_address(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EAFNOSUPPORT | libc::EADDRNOTAVAIL))
}

#[cfg(test)]
#[path = "socket/tests.rs"]
mod tests;
