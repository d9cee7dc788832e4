//! Real connections against the rules: who ends up at which listener.
//!
//! ```text
//!   pod 198.18.0.2, fd00:18::2 ──veth── peer 198.18.0.1, fd00:18::1, and the probe addresses
//! ```

use crate::lay::plain;
use crate::namespace::{fresh, sh};
use aquifer_cni::keeper::Layout;
use aquifer_cni::netns::NetNs;
use aquifer_cni::probes::Probes;
use aquifer_cni::redirection;
use aquifer_cni::rules::pod::{PodRules, ProbeAddresses};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use std::io::{Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::time::Duration;

const PROXY: u32 = 0x539;
const PATIENCE: Duration = Duration::from_secs(3);

struct Wire {
    pod: NetNs,
    peer: NetNs,
}

/// Two namespaces with a wire between them, listeners in both, rules in the pod.
fn wire(rules: &PodRules) -> Wire {
    let (pod, peer) = (fresh(), fresh());
    // The child that runs `ip` finds our descriptor in our /proc.
    let to = format!("/proc/{}/fd/{}", std::process::id(), pod.as_fd().as_raw_fd());
    sh(&peer, &format!("ip link add eth0 type veth peer name eth1 && ip link set eth1 netns {to}"));
    sh(&pod, "ip link set eth1 name eth0 && ip link set eth0 up && ip addr add 198.18.0.2/24 dev eth0");
    sh(&pod, "ip addr add fd00:18::2/64 dev eth0 nodad");
    sh(&pod, "ip route add 169.254.7.127 dev eth0 && ip -6 route add fd16:9254:7127:1337::/64 dev eth0");
    sh(&peer, "ip link set eth0 up && ip addr add 198.18.0.1/24 dev eth0 && ip addr add fd00:18::1/64 dev eth0 nodad");
    sh(&peer, "ip addr add 169.254.7.127/32 dev eth0");
    sh(&peer, "ip addr add fd16:9254:7127:1337:ffff:ffff:ffff:ffff/128 dev eth0 nodad");
    for port in [53, 80, 15001, 15006, 15008, 15053] {
        listen(&pod, "pod", port);
        listen(&peer, "peer", port);
    }
    pod.run(|| redirection::lay(rules)).unwrap().unwrap();
    Wire { pod, peer }
}

/// Answers each TCP connection and UDP packet with where it arrived, from whom, and where it was meant to go.
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
            let _ = udp.send_to(format!("{place}:{port}").as_bytes(), from);
        }
    });
}

/// Connects inside `namespace` and returns what the listener said; "" if nobody did.
fn ask(namespace: &NetNs, to: &str, mark: u32, from: Option<&str>) -> String {
    let to: SocketAddr = to.parse().unwrap();
    namespace
        .run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP)).unwrap();
            if mark != 0 {
                socket.set_mark(mark).unwrap();
            }
            if let Some(from) = from {
                let from: IpAddr = from.parse().unwrap();
                if mark == PROXY && from.is_ipv4() {
                    socket.set_ip_transparent_v4(true).unwrap();
                    socket.set_freebind_v4(true).unwrap();
                } else if mark == PROXY {
                    socket.set_ip_transparent_v6(true).unwrap();
                    socket.set_freebind_v6(true).unwrap();
                }
                socket.bind(&SocketAddr::new(from, 0).into()).unwrap();
            }
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

fn ask_udp(namespace: &NetNs, to: &str, mark: u32) -> String {
    let to: SocketAddr = to.parse().unwrap();
    namespace
        .run(|| {
            let socket = Socket::new(Domain::for_address(to), Type::DGRAM, Some(Protocol::UDP)).unwrap();
            if mark != 0 {
                socket.set_mark(mark).unwrap();
            }
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
            // Unconnected, as a resolver's may be; the answer's source is then whoever answers.
            socket.send_to(b"?", &to.into()).unwrap();
            let mut buffer = [0; 64];
            let length = (&socket).read(&mut buffer).unwrap_or(0);
            String::from_utf8_lossy(&buffer[..length]).into_owned()
        })
        .unwrap()
}

/// (where from, to, mark, source, expected listener).
type Case = (&'static str, &'static str, u32, Option<&'static str>, &'static str);

fn check(wire: &Wire, cases: &[Case]) {
    for (place, to, mark, from, expected) in cases {
        let namespace = if *place == "pod" { &wire.pod } else { &wire.peer };
        let said = ask(namespace, to, *mark, *from);
        assert_eq!(
            said.split(' ').next().unwrap(),
            *expected,
            "{place} → {to}, mark {mark:#x}, source {from:?}: {said}"
        );
    }
}

#[test]
fn who_is_captured() {
    let wire = wire(&plain());
    let cases: &[Case] = &[
        ("pod", "198.18.0.1:80", 0, None, "pod:15001"),
        ("pod", "[fd00:18::1]:80", 0, None, "pod:15001"),
        // 15008 of another pod is no exception on the way out.
        ("pod", "198.18.0.1:15008", 0, None, "pod:15001"),
        ("pod", "[fd00:18::1]:15008", 0, None, "pod:15001"),
        // DNS over TCP is TCP unless it is captured as DNS.
        ("pod", "198.18.0.1:53", 0, None, "pod:15001"),
        // The proxy's own connections, whatever the upper bits of the mark.
        ("pod", "198.18.0.1:80", PROXY, None, "peer:80"),
        ("pod", "[fd00:18::1]:80", PROXY, None, "peer:80"),
        ("pod", "198.18.0.1:80", 0x7000 | PROXY, None, "peer:80"),
        ("pod", "198.18.0.1:80", 0x538, None, "pod:15001"),
        // Loopback, and the pod's own address over lo.
        ("pod", "127.0.0.1:80", 0, None, "pod:80"),
        ("pod", "[::1]:80", 0, None, "pod:80"),
        ("pod", "198.18.0.2:80", 0, None, "pod:80"),
        ("pod", "[fd00:18::2]:80", 0, None, "pod:80"),
        ("pod", "198.18.0.2:80", PROXY, None, "pod:80"),
        // To the node's probe address.
        ("pod", "169.254.7.127:80", 0, None, "peer:80"),
        ("pod", "[fd16:9254:7127:1337:ffff:ffff:ffff:ffff]:80", 0, None, "peer:80"),
        // Inbound.
        ("peer", "198.18.0.2:80", 0, Some("198.18.0.1"), "pod:15006"),
        ("peer", "[fd00:18::2]:80", 0, Some("fd00:18::1"), "pod:15006"),
        ("peer", "198.18.0.2:15008", 0, Some("198.18.0.1"), "pod:15008"),
        ("peer", "[fd00:18::2]:15008", 0, Some("fd00:18::1"), "pod:15008"),
        ("peer", "198.18.0.2:15001", 0, Some("198.18.0.1"), "pod:15006"),
        // Probes.
        ("peer", "198.18.0.2:80", 0, Some("169.254.7.127"), "pod:80"),
        ("peer", "[fd00:18::2]:80", 0, Some("fd16:9254:7127:1337:ffff:ffff:ffff:ffff"), "pod:80"),
    ];
    check(&wire, cases);
    assert_eq!(ask_udp(&wire.pod, "198.18.0.1:80", 0), "peer:80", "UDP is left alone");
    assert_eq!(ask_udp(&wire.pod, "198.18.0.1:53", 0), "peer:53", "so is DNS, unless it is captured");
}

#[test]
fn where_a_captured_connection_was_meant_to_go() {
    let wire = wire(&plain());
    assert_eq!(ask(&wire.pod, "198.18.0.1:80", 0, None), "pod:15001 from 198.18.0.2 to 198.18.0.1:80");
    assert_eq!(ask(&wire.pod, "[fd00:18::1]:80", 0, None), "pod:15001 from fd00:18::2 to [fd00:18::1]:80");
    let inbound = ask(&wire.peer, "198.18.0.2:80", 0, Some("198.18.0.1"));
    assert_eq!(inbound, "pod:15006 from 198.18.0.1 to 198.18.0.2:80");
}

#[test]
fn the_app_sees_the_client_and_its_replies_come_back() {
    let wire = wire(&plain());
    let said = ask(&wire.pod, "198.18.0.2:80", PROXY, Some("198.18.0.1"));
    assert!(said.starts_with("pod:80 from 198.18.0.1 "), "{said:?}");
    let said = ask(&wire.pod, "[fd00:18::2]:80", PROXY, Some("fd00:18::1"));
    assert!(said.starts_with("pod:80 from fd00:18::1 "), "{said:?}");
    wire.pod.run(redirection::remove).unwrap().unwrap();
    let said = ask(&wire.pod, "198.18.0.2:80", PROXY, Some("198.18.0.99"));
    assert_eq!(said, "", "without the return path the replies leave the pod");
}

#[test]
fn the_nodes_probes_pass_and_nobody_elses_connections() {
    let wire = wire(&plain());
    let pods: Vec<IpAddr> = vec!["198.18.0.2".parse().unwrap(), "fd00:18::2".parse().unwrap()];
    let probes = Probes::new(ProbeAddresses::default(), 0, [("web".to_owned(), pods)]);
    wire.peer.run(|| probes.lay()).unwrap().unwrap();
    let v4 = ask(&wire.peer, "198.18.0.2:80", 0, None);
    assert!(v4.starts_with("pod:80 from 169.254.7.127 "), "{v4}");
    let v6 = ask(&wire.peer, "[fd00:18::2]:80", 0, None);
    assert!(v6.starts_with("pod:80 from fd16:9254:7127:1337:ffff:ffff:ffff:ffff "), "{v6}");
    let other = "setpriv --reuid 65534 --clear-groups bash -c 'exec 3<>/dev/tcp/198.18.0.2/80; cat <&3'";
    let said = sh(&wire.peer, other);
    assert!(said.starts_with("pod:15006 from 198.18.0.1 "), "another user's: {said}");

    wire.peer.run(|| probes.withdraw("web")).unwrap().unwrap();
    let said = ask(&wire.peer, "198.18.0.2:80", 0, None);
    assert!(said.starts_with("pod:15006 from 198.18.0.1 "), "a pod that is out: {said}");
}

#[test]
fn dns_is_captured_on_demand() {
    let wire = wire(&PodRules { capture_dns: true, ..plain() });
    assert_eq!(ask_udp(&wire.pod, "198.18.0.1:53", 0), "pod:15053");
    assert_eq!(ask_udp(&wire.pod, "[fd00:18::1]:53", 0), "pod:15053");
    assert_eq!(ask_udp(&wire.pod, "198.18.0.1:53", PROXY), "peer:53");
    assert_eq!(ask_udp(&wire.pod, "198.18.0.1:80", 0), "peer:80");
    check(
        &wire,
        &[
            ("pod", "198.18.0.1:53", 0, None, "pod:15053"),
            ("pod", "[fd00:18::1]:53", 0, None, "pod:15053"),
            ("pod", "198.18.0.1:53", PROXY, None, "peer:53"),
            ("pod", "127.0.0.1:53", 0, None, "pod:53"),
            ("pod", "198.18.0.1:80", 0, None, "pod:15001"),
        ],
    );
}

#[test]
fn an_ingress_takes_its_own_inbound() {
    let wire = wire(&PodRules { ingress: true, ..plain() });
    check(
        &wire,
        &[
            ("peer", "198.18.0.2:80", 0, Some("198.18.0.1"), "pod:80"),
            ("peer", "[fd00:18::2]:80", 0, Some("fd00:18::1"), "pod:80"),
            ("pod", "198.18.0.1:80", 0, None, "pod:15001"),
        ],
    );
}

#[test]
fn what_comes_from_a_virtual_interface_is_outbound() {
    let wire = wire(&PodRules { virtual_interfaces: vec!["eth0".into()], ..plain() });
    check(
        &wire,
        &[
            ("peer", "198.18.0.2:80", 0, Some("198.18.0.1"), "pod:15001"),
            ("peer", "[fd00:18::2]:80", 0, Some("fd00:18::1"), "pod:15001"),
        ],
    );
}

#[test]
fn without_rules_everything_is_plain() {
    let wire = wire(&plain());
    wire.pod.run(redirection::remove).unwrap().unwrap();
    check(
        &wire,
        &[("pod", "198.18.0.1:80", 0, None, "peer:80"), ("peer", "198.18.0.2:80", 0, Some("198.18.0.1"), "pod:80")],
    );
}
