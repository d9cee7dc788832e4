//! A pod, its neighbours, and real packets between them.
//!
//! ```text
//!   vm 198.18.1.2 ──vm0── pod 198.18.0.2 ──eth0── peer 198.18.0.1, the probe address, a Service's address
//! ```
//!
//! The same with IPv6. Listeners in pod and peer answer each packet with where it arrived, from whom, and where it
//! was meant to go.

use crate::namespace::{fresh, sh};
use aquifer_cni::netns::NetNs;
use nix::unistd::{Uid, setfsuid};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::thread;
use std::time::{Duration, Instant};

pub(crate) const PROXY: u32 = 0x539;
const PATIENCE: Duration = Duration::from_secs(3);
/// A protocol that is neither TCP nor UDP; reserved for experiments (RFC 3692).
const EXPERIMENT: i32 = 253;

pub(crate) struct Wire {
    pub(crate) pod: NetNs,
    pub(crate) peer: NetNs,
    pub(crate) vm: NetNs,
}

/// Who is meant, in either family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum At {
    Pod,
    Peer,
    Vm,
    /// An address of a Service; nobody's own, and the peer's wire leads to it.
    Vip,
    Loopback,
    /// Where the node's probes come from.
    Probe,
}

impl At {
    pub(crate) fn ip(self, v6: bool) -> IpAddr {
        let text = match (self, v6) {
            (Self::Pod, false) => "198.18.0.2",
            (Self::Pod, true) => "fd00:18::2",
            (Self::Peer, false) => "198.18.0.1",
            (Self::Peer, true) => "fd00:18::1",
            (Self::Vm, false) => "198.18.1.2",
            (Self::Vm, true) => "fd00:18:1::2",
            (Self::Vip, false) => "198.19.0.10",
            (Self::Vip, true) => "fd00:19::10",
            (Self::Loopback, false) => "127.0.0.1",
            (Self::Loopback, true) => "::1",
            (Self::Probe, false) => "169.254.7.127",
            (Self::Probe, true) => "fd16:9254:7127:1337:ffff:ffff:ffff:ffff",
        };
        text.parse().unwrap()
    }
}

/// Joins two namespaces by a wire; each end gets its name there.
pub(crate) fn join(a: &NetNs, a_name: &str, b: &NetNs, b_name: &str) {
    // The child that runs `ip` finds our descriptor in our /proc.
    let to = format!("/proc/{}/fd/{}", std::process::id(), b.as_fd().as_raw_fd());
    sh(a, &format!("ip link add {a_name} type veth peer name there && ip link set there netns {to}"));
    sh(a, &format!("ip link set {a_name} up"));
    sh(b, &format!("ip link set there name {b_name} && ip link set {b_name} up"));
}

/// The namespaces and the wires, listeners in pod and peer, and no rules.
pub(crate) fn wire() -> Wire {
    let wire = Wire { pod: fresh(), peer: fresh(), vm: fresh() };
    join(&wire.pod, "eth0", &wire.peer, "eth0");
    join(&wire.pod, "vm0", &wire.vm, "eth0");
    sh(
        &wire.pod,
        "ip addr add 198.18.0.2/24 dev eth0; ip addr add fd00:18::2/64 dev eth0 nodad
         ip addr add 198.18.1.1/24 dev vm0; ip addr add fd00:18:1::1/64 dev vm0 nodad
         ip route add default via 198.18.0.1; ip -6 route add default via fd00:18::1
         sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
    );
    sh(
        &wire.peer,
        "ip addr add 198.18.0.1/24 dev eth0; ip addr add fd00:18::1/64 dev eth0 nodad
         ip addr add 169.254.7.127/32 dev eth0; ip addr add fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128 dev eth0 nodad
         ip addr add 198.19.0.10/32 dev lo; ip addr add fd00:19::10/128 dev lo nodad
         ip route add 198.18.1.0/24 via 198.18.0.2; ip -6 route add fd00:18:1::/64 via fd00:18::2",
    );
    sh(
        &wire.vm,
        "ip addr add 198.18.1.2/24 dev eth0; ip addr add fd00:18:1::2/64 dev eth0 nodad
         ip route add default via 198.18.1.1; ip -6 route add default via fd00:18:1::1",
    );
    for (namespace, place) in [(&wire.pod, "pod"), (&wire.peer, "peer")] {
        for port in [53, 80, 15001, 15006, 15008, 15053] {
            listen(namespace, place, port);
        }
        listen_otherwise(namespace, place);
    }
    wire
}

fn listen(namespace: &NetNs, place: &'static str, port: u16) {
    let address = SocketAddr::from(([0u16; 8], port));
    let (tcp, udp) =
        namespace.run(|| (TcpListener::bind(address).unwrap(), UdpSocket::bind(address).unwrap())).unwrap();
    std::thread::spawn(move || {
        for stream in tcp.incoming() {
            let mut stream = stream.unwrap();
            let socket = SockRef::from(&stream);
            let original = socket.original_dst_v4().or_else(|_| socket.original_dst_v6());
            let original = original.ok().and_then(|address| address.as_socket());
            let meant = original.map_or("?".into(), |address| address.to_string());
            let from = stream.peer_addr().unwrap().ip().to_canonical();
            let _ = write!(stream, "{place}:{port} from {from} to {meant}");
        }
    });
    std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok((_, from)) = udp.recv_from(&mut buffer) {
            let answer = format!("{place}:{port} from {}", from.ip().to_canonical());
            let _ = udp.send_to(answer.as_bytes(), from);
        }
    });
}

/// Answers packets that are neither TCP nor UDP.
fn listen_otherwise(namespace: &NetNs, place: &'static str) {
    for domain in [Domain::IPV4, Domain::IPV6] {
        let socket = namespace.run(|| Socket::new(domain, Type::RAW, Some(Protocol::from(EXPERIMENT))).unwrap());
        let socket = socket.unwrap();
        std::thread::spawn(move || {
            let mut buffer = [0; 128];
            while let Ok((length, from)) = receive_from(&socket, &mut buffer) {
                // In the pod's own namespace answers arrive here as well.
                if buffer[..length].ends_with(b"?") {
                    let ip = from.ip();
                    let _ = socket.send_to(format!("<{place}:0 from {ip}").as_bytes(), &SocketAddr::new(ip, 0).into());
                }
            }
        });
    }
}

fn receive_from(mut socket: &Socket, buffer: &mut [u8]) -> std::io::Result<(usize, SocketAddr)> {
    // `peek_from` gives the sender, `read` takes the packet: plain std has no raw sockets.
    let mut space = [std::mem::MaybeUninit::uninit(); 128];
    let (_, from) = socket.peek_from(&mut space)?;
    Ok((socket.read(buffer)?, from.as_socket().expect("an internet address")))
}

/// Connects inside `namespace` and returns what the listener said; "" if nobody did.
pub(crate) fn ask(namespace: &NetNs, to: &str, mark: u32, from: Option<&str>) -> String {
    tcp(namespace, to.parse().unwrap(), mark, from.map(|from| from.parse().unwrap()), 0)
}

/// As [`ask`], by a user.
pub(crate) fn tcp(namespace: &NetNs, to: SocketAddr, mark: u32, from: Option<IpAddr>, user: u32) -> String {
    namespace
        .run(|| {
            if user != 0 {
                setfsuid(Uid::from_raw(user));
            }
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
            prepare(&socket, mark, from.map(|from| SocketAddr::new(from, 0)));
            if socket.connect_timeout(&to.into(), PATIENCE).is_err() {
                return String::new();
            }
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut said = String::new();
            let _ = (&socket).read_to_string(&mut said);
            said
        })
        .unwrap()
}

/// Sends a packet of UDP and returns what the listener said.
pub(crate) fn udp(namespace: &NetNs, to: SocketAddr, mark: u32, from: Option<SocketAddr>) -> String {
    datagram(namespace, Protocol::UDP, Type::DGRAM, to, mark, from)
}

/// Sends a packet that is neither TCP nor UDP.
pub(crate) fn other(namespace: &NetNs, to: IpAddr, mark: u32) -> String {
    let said = datagram(namespace, Protocol::from(EXPERIMENT), Type::RAW, SocketAddr::new(to, 0), mark, None);
    // IPv4 shows the header too.
    said.rsplit_once('<').map(|(_, said)| said.to_owned()).unwrap_or_default()
}

fn datagram(
    namespace: &NetNs,
    protocol: Protocol,
    kind: Type,
    to: SocketAddr,
    mark: u32,
    from: Option<SocketAddr>,
) -> String {
    namespace
        .run(|| {
            let socket = Socket::new(Domain::for_address(to), kind, Some(protocol)).unwrap();
            prepare(&socket, mark, from);
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            // Unconnected, as a resolver's may be; the answer's source is then whoever answers.
            socket.send_to(b"?", &to.into()).unwrap();
            let mut buffer = [0; 128];
            // A raw socket in the listener's namespace also sees the question.
            loop {
                let length = (&socket).read(&mut buffer).unwrap_or(0);
                if !buffer[..length].ends_with(b"?") {
                    return String::from_utf8_lossy(&buffer[..length]).into_owned();
                }
            }
        })
        .unwrap()
}

/// The mark, and the source address: anybody's, for the proxy.
fn prepare(socket: &Socket, mark: u32, from: Option<SocketAddr>) {
    if mark != 0 {
        socket.set_mark(mark).unwrap();
    }
    let Some(from) = from else { return };
    if mark == PROXY && from.is_ipv4() {
        socket.set_ip_transparent_v4(true).unwrap();
        socket.set_freebind_v4(true).unwrap();
    } else if mark == PROXY {
        socket.set_ip_transparent_v6(true).unwrap();
        socket.set_freebind_v6(true).unwrap();
    }
    // A child that another test is just starting holds a copy of every descriptor until it becomes its program: the
    // port that was ours a moment ago is free as soon as that is over.
    let begun = Instant::now();
    loop {
        match socket.bind(&from.into()) {
            Err(error) if error.kind() == ErrorKind::AddrInUse && begun.elapsed() < PATIENCE => thread::yield_now(),
            bound => break bound.unwrap(),
        }
    }
}
