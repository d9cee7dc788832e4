//! One table of packets and who gets them, held against our rules and against Istio's in iptables.

use crate::lay::plain;
use crate::namespace::{fresh, sh};
use crate::reference;
use crate::wire::{At, PROXY, Wire, join, other, tcp, udp, wire};
use At::{Loopback, Peer, Pod, Probe, Vip, Vm};
use Proto::{Other, Tcp, Udp};
use aquifer_cni::keeper::Layout;
use aquifer_cni::netns::NetNs;
use aquifer_cni::probes::Probes;
use aquifer_cni::redirection;
use aquifer_cni::rules::pod::{PodRules, ProbeAddresses};
use aquifer_cni::rules::{Table, encode};
use std::net::{IpAddr, SocketAddr};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Proto {
    Tcp,
    Udp,
    Other,
}

/// The proxy's listeners in the pod.
const OUT: &str = "15001";
const IN: &str = "15006";
const HBONE: &str = "15008";
const DNS: &str = "15053";
/// Where the packet was meant to go, in the pod and outside.
const APP: &str = "app";
const PEER: &str = "peer";
const NONE: &str = "none";

/// Where it is sent; protocol, destination, port, mark, source; the source that is seen; who gets it under each of
/// the [`variants`]. Each row is tried in both families.
type Row = (At, Proto, At, u16, u32, Option<At>, At, [&'static str; 5]);

#[rustfmt::skip]
const ROWS: &[Row] = &[
    //                                                   plain  DNS    ingress virtual all
    // The application's connections, whatever the port.
    (Pod, Tcp, Peer, 80, 0, None, Pod,                   [OUT,   OUT,   OUT,   OUT,   OUT]),
    (Pod, Tcp, Peer, 15008, 0, None, Pod,                [OUT,   OUT,   OUT,   OUT,   OUT]),
    (Pod, Tcp, Peer, 15001, 0, None, Pod,                [OUT,   OUT,   OUT,   OUT,   OUT]),
    (Pod, Tcp, Peer, 81, 0, None, Pod,                   [OUT,   OUT,   OUT,   OUT,   OUT]),
    (Pod, Tcp, Vip, 80, 0, None, Pod,                    [OUT,   OUT,   OUT,   OUT,   OUT]),
    (Pod, Tcp, Peer, 53, 0, None, Pod,                   [OUT,   DNS,   OUT,   OUT,   DNS]),
    // The proxy's own, whatever the upper bits of the mark.
    (Pod, Tcp, Peer, 80, PROXY, None, Pod,               [PEER,  PEER,  PEER,  PEER,  PEER]),
    (Pod, Tcp, Peer, 80, 0x7000 | PROXY, None, Pod,      [PEER,  PEER,  PEER,  PEER,  PEER]),
    (Pod, Tcp, Peer, 53, PROXY, None, Pod,               [PEER,  PEER,  PEER,  PEER,  PEER]),
    (Pod, Tcp, Vip, 80, PROXY, None, Pod,                [PEER,  PEER,  PEER,  PEER,  PEER]),
    (Pod, Tcp, Peer, 80, PROXY - 1, None, Pod,           [OUT,   OUT,   OUT,   OUT,   OUT]),
    (Pod, Tcp, Peer, 81, PROXY, None, Pod,               [NONE,  NONE,  NONE,  NONE,  NONE]),
    // Within the pod: loopback, and its own address over lo.
    (Pod, Tcp, Loopback, 80, 0, None, Loopback,          [APP,   APP,   APP,   APP,   APP]),
    (Pod, Tcp, Loopback, 53, 0, None, Loopback,          [APP,   APP,   APP,   APP,   APP]),
    (Pod, Tcp, Loopback, 15008, 0, None, Loopback,       [HBONE, HBONE, HBONE, HBONE, HBONE]),
    (Pod, Tcp, Pod, 80, 0, None, Pod,                    [APP,   APP,   APP,   APP,   APP]),
    (Pod, Tcp, Pod, 15008, 0, None, Pod,                 [HBONE, HBONE, HBONE, HBONE, HBONE]),
    (Pod, Tcp, Pod, 53, 0, None, Pod,                    [APP,   DNS,   APP,   APP,   DNS]),
    // The proxy to the application, as itself and as the client; answers come back to it.
    (Pod, Tcp, Pod, 80, PROXY, None, Pod,                [APP,   APP,   APP,   APP,   APP]),
    (Pod, Tcp, Pod, 80, PROXY, Some(Peer), Peer,         [APP,   APP,   APP,   APP,   APP]),
    (Pod, Tcp, Pod, 80, PROXY, Some(Vip), Vip,           [APP,   APP,   APP,   APP,   APP]),
    (Pod, Tcp, Pod, 53, PROXY, Some(Peer), Peer,         [APP,   APP,   APP,   APP,   APP]),
    // To where probes come from.
    (Pod, Tcp, Probe, 80, 0, None, Pod,                  [PEER,  PEER,  PEER,  PEER,  PEER]),
    (Pod, Tcp, Probe, 53, 0, None, Pod,                  [PEER,  PEER,  PEER,  PEER,  PEER]),
    // What is not TCP.
    (Pod, Udp, Peer, 53, 0, None, Pod,                   [PEER,  DNS,   PEER,  PEER,  DNS]),
    (Pod, Udp, Vip, 53, 0, None, Pod,                    [PEER,  DNS,   PEER,  PEER,  DNS]),
    (Pod, Udp, Probe, 53, 0, None, Pod,                  [PEER,  DNS,   PEER,  PEER,  DNS]),
    (Pod, Udp, Peer, 53, PROXY, None, Pod,               [PEER,  PEER,  PEER,  PEER,  PEER]),
    (Pod, Udp, Peer, 80, 0, None, Pod,                   [PEER,  PEER,  PEER,  PEER,  PEER]),
    (Pod, Udp, Peer, 15008, 0, None, Pod,                [PEER,  PEER,  PEER,  PEER,  PEER]),
    (Pod, Udp, Loopback, 53, 0, None, Loopback,          [APP,   APP,   APP,   APP,   APP]),
    (Pod, Udp, Pod, 53, 0, None, Pod,                    [APP,   APP,   APP,   APP,   APP]),
    (Pod, Udp, Pod, 80, 0, None, Pod,                    [APP,   APP,   APP,   APP,   APP]),
    (Pod, Other, Peer, 0, 0, None, Pod,                  [PEER,  PEER,  PEER,  PEER,  PEER]),
    // From outside.
    (Peer, Tcp, Pod, 80, 0, Some(Peer), Peer,            [IN,    IN,    APP,   IN,    APP]),
    (Peer, Tcp, Pod, 53, 0, Some(Peer), Peer,            [IN,    IN,    APP,   IN,    APP]),
    (Peer, Tcp, Pod, 81, 0, Some(Peer), Peer,            [IN,    IN,    NONE,  IN,    NONE]),
    (Peer, Tcp, Pod, 15001, 0, Some(Peer), Peer,         [IN,    IN,    OUT,   IN,    OUT]),
    (Peer, Tcp, Pod, 15008, 0, Some(Peer), Peer,         [HBONE, HBONE, HBONE, HBONE, HBONE]),
    (Peer, Tcp, Pod, 80, 0, Some(Probe), Probe,          [APP,   APP,   APP,   APP,   APP]),
    (Peer, Tcp, Pod, 15008, 0, Some(Probe), Probe,       [HBONE, HBONE, HBONE, HBONE, HBONE]),
    (Peer, Udp, Pod, 80, 0, None, Peer,                  [APP,   APP,   APP,   APP,   APP]),
    (Peer, Udp, Pod, 53, 0, None, Peer,                  [APP,   APP,   APP,   APP,   APP]),
    (Peer, Other, Pod, 0, 0, None, Peer,                 [APP,   APP,   APP,   APP,   APP]),
    // From behind an interface of the pod's own.
    (Vm, Tcp, Pod, 80, 0, None, Vm,                      [IN,    IN,    APP,   OUT,   OUT]),
    (Vm, Tcp, Pod, 15008, 0, None, Vm,                   [HBONE, HBONE, HBONE, OUT,   OUT]),
    (Vm, Tcp, Peer, 80, 0, None, Vm,                     [IN,    IN,    PEER,  OUT,   OUT]),
    (Vm, Tcp, Peer, 53, 0, None, Vm,                     [IN,    IN,    PEER,  OUT,   OUT]),
    (Vm, Udp, Pod, 80, 0, None, Vm,                      [APP,   APP,   APP,   APP,   APP]),
    (Vm, Udp, Peer, 53, 0, None, Vm,                     [PEER,  PEER,  PEER,  PEER,  PEER]),
];

fn variants() -> [(&'static str, PodRules); 5] {
    let interfaces = vec!["vm0".to_owned()];
    [
        ("plain", plain()),
        ("DNS", PodRules { capture_dns: true, ..plain() }),
        ("ingress", PodRules { ingress: true, ..plain() }),
        ("virtual interface", PodRules { virtual_interfaces: interfaces.clone(), ..plain() }),
        ("all", PodRules { capture_dns: true, ingress: true, virtual_interfaces: interfaces, ..plain() }),
    ]
}
const PLAIN_DNS: usize = 1;
const VIRTUAL: usize = 3;

/// Whose rules are in the pod.
#[derive(Debug, Clone, Copy)]
enum Whose {
    Ours,
    Istios,
}
use Whose::{Istios, Ours};

fn lay(whose: Whose, pod: &NetNs, rules: &PodRules) {
    match whose {
        Ours => pod.run(|| redirection::lay(rules)).unwrap().unwrap(),
        Istios => reference::load(pod, rules),
    }
}

/// Sends the packet; what is wrong with what became of it.
fn tried(wire: &Wire, row: &Row, v6: bool, variant: usize) -> Option<String> {
    let &(place, proto, to, port, mark, from, seen, verdicts) = row;
    let namespace = match place {
        Peer => &wire.peer,
        Vm => &wire.vm,
        _ => &wire.pod,
    };
    let meant = SocketAddr::new(to.ip(v6), port);
    let said = match proto {
        Tcp => tcp(namespace, meant, mark, from.map(|from| from.ip(v6)), 0),
        Udp => udp(namespace, meant, mark, None),
        Other => other(namespace, meant.ip(), mark),
    };
    let expected = match verdicts[variant] {
        NONE => String::new(),
        PEER => format!("peer:{port} from {}", seen.ip(v6)),
        APP => format!("pod:{port} from {}", seen.ip(v6)),
        listener => format!("pod:{listener} from {}", seen.ip(v6)),
    };
    let (got, to) = said.split_once(" to ").unwrap_or((&said, "?"));
    // A captured connection says where it was meant to go.
    let captured = proto == Tcp && ![PEER, APP, NONE, HBONE].contains(&verdicts[variant]) && expected == got;
    let lost = captured && to != meant.to_string() && !(to == "?" && port == 15001);
    let wrong = expected != got || lost;
    wrong.then(|| format!("{place:?} {proto:?} → {meant}, mark {mark:#x}, source {from:?}: {said:?}, not {expected:?}"))
}

fn check(name: &str, wire: &Wire, variant: usize, rows: impl Fn(&Row, bool) -> bool) {
    let mut wrong = Vec::new();
    let mut count = 0;
    for v6 in [false, true] {
        for row in ROWS.iter().filter(|row| rows(row, v6)) {
            count += 1;
            wrong.extend(tried(wire, row, v6, variant));
        }
    }
    assert!(wrong.is_empty(), "{name}, {} of {count} packets:\n{}", wrong.len(), wrong.join("\n"));
}

fn whole_table(whose: Whose) {
    for (variant, (name, rules)) in variants().into_iter().enumerate() {
        let wire = wire();
        lay(whose, &wire.pod, &rules);
        check(&format!("{whose:?}, {name}"), &wire, variant, |_, _| true);
    }
}

#[test]
fn the_table_holds_for_our_rules() {
    whole_table(Ours);
}

#[test]
fn the_table_holds_for_istios_rules() {
    whole_table(Istios);
}

/// Each of the proxy's upstream queries may look just like one that was captured: same addresses, same ports.
#[test]
fn the_proxys_own_dns_queries_are_kept_apart() {
    for whose in [Ours, Istios] {
        let wire = wire();
        lay(whose, &wire.pod, &variants()[PLAIN_DNS].1);
        assert_eq!(mixed_up(&wire, 5353), None, "{whose:?}");
    }
}

/// The same query from the application and from the proxy, by turns; which one went astray.
fn mixed_up(wire: &Wire, port: u16) -> Option<String> {
    for v6 in [false, true] {
        let (from, to) = (SocketAddr::new(Pod.ip(v6), port), SocketAddr::new(Peer.ip(v6), 53));
        for (mark, expected) in [(0, "pod:15053"), (PROXY, "peer:53"), (0, "pod:15053"), (PROXY, "peer:53")] {
            let said = udp(&wire.pod, to, mark, Some(from));
            if !said.starts_with(expected) {
                return Some(format!("{to}, mark {mark:#x}: {said:?}"));
            }
        }
    }
    None
}

/// Without any one of our rules some packet goes elsewhere: the table would notice.
fn undecided(variant: usize) -> Vec<&'static str> {
    let (_, rules) = variants().into_iter().nth(variant).unwrap();
    let wire = wire();
    lay(Ours, &wire.pod, &rules);
    let whole = rules.tables();
    let mut undecided = Vec::new();
    let mut port = 20000;
    for (table, chain, rule) in places(&whole) {
        let mut lacking = whole.clone();
        lacking[table].chains[chain].rules.remove(rule);
        wire.pod.run(|| encode::replace(&lacking, &[]).commit_here()).unwrap().unwrap();
        port += 1;
        let mut packets = [false, true].into_iter().flat_map(|v6| ROWS.iter().map(move |row| (row, v6)));
        let noticed = packets.any(|(row, v6)| tried(&wire, row, v6, variant).is_some())
            || (rules.capture_dns && mixed_up(&wire, port).is_some());
        let comment = whole[table].chains[chain].rules[rule].comment;
        // Each packet of the table begins a connection; what was open before is in `packets.rs`.
        if !noticed && comment != "open before" {
            undecided.push(comment);
        }
    }
    undecided
}

fn places(tables: &[Table]) -> Vec<(usize, usize, usize)> {
    let mut places = Vec::new();
    for (table, chains) in tables.iter().map(|table| &table.chains).enumerate() {
        for (chain, rules) in chains.iter().map(|chain| &chain.rules).enumerate() {
            places.extend((0..rules.len()).map(|rule| (table, chain, rule)));
        }
    }
    places
}

/// Rules that change no packet's way as things are, and stand because Istio's do: the output interface of what has
/// the return mark is lo already, and that is accepted too;
const RETURN: &str = "replies on their way to the proxy";
/// answers to the proxy find its socket in either zone (the zone keeps conntrack's own books straight);
const ANSWERS: [&str; 2] = ["answers to the proxy's own DNS queries", "to our rules"];
/// and of a virtual interface's traffic only TCP could meet a later rule, which was redirected before.
const VIRTUAL_REST: &str = "nothing else of a virtual interface";

#[test]
fn every_rule_but_three_decides_about_some_packet() {
    assert_eq!(undecided(PLAIN_DNS), [RETURN, ANSWERS[0], ANSWERS[1]]);
}

#[test]
fn every_rule_of_virtual_interfaces_but_two_decides_about_some_packet() {
    assert_eq!(undecided(VIRTUAL), [VIRTUAL_REST, RETURN]);
}

/// How a pod may look, whether its IPv6 can be redirected on the way in, and on the way out.
const ODD: &[(&str, bool, bool)] = &[
    (
        "sysctl -qw net.ipv4.conf.all.rp_filter=1 net.ipv4.conf.default.rp_filter=1 net.ipv4.conf.eth0.rp_filter=1",
        true,
        true,
    ),
    ("sysctl -qw net.ipv4.conf.all.route_localnet=1 net.ipv4.conf.eth0.route_localnet=1", true, true),
    ("sysctl -qw net.ipv4.conf.all.src_valid_mark=1 net.ipv4.conf.lo.rp_filter=1", true, true),
    ("sysctl -qw net.ipv4.ip_forward=0 net.ipv6.conf.all.forwarding=0 net.ipv4.conf.all.accept_local=0", true, true),
    ("sysctl -qw net.ipv4.ip_nonlocal_bind=1 net.ipv4.tcp_fwmark_accept=1 net.ipv4.fwmark_reflect=1", true, true),
    ("sysctl -qw net.ipv4.ip_early_demux=0 net.ipv4.tcp_migrate_req=1 net.ipv4.conf.all.arp_ignore=1", true, true),
    // Captured on its way out, an IPv6 packet goes to ::1: without it nothing can be captured, with whichever rules.
    ("ip -6 addr del ::1/128 dev lo", true, false),
    ("sysctl -qw net.ipv6.conf.lo.disable_ipv6=1", true, false),
    ("sysctl -qw net.ipv6.conf.all.disable_ipv6=1", false, false),
];

#[test]
fn the_table_holds_in_odd_pods() {
    for whose in [Ours, Istios] {
        for (odd, v6_in, v6_out) in ODD {
            let wire = wire();
            sh(&wire.pod, odd);
            lay(whose, &wire.pod, &variants()[PLAIN_DNS].1);
            let rows = |row: &Row, v6: bool| match row.0 {
                Vm => false,
                Peer => !v6 || *v6_in,
                _ => !v6 || *v6_out,
            };
            check(&format!("{whose:?}, {odd}"), &wire, PLAIN_DNS, rows);
            if odd.contains("disable_ipv6") {
                assert_eq!(sh(&wire.pod, "ip -6 route show table all | grep 'table 100' || true"), "", "{odd}");
            }
            if matches!(whose, Ours) {
                let missing = wire.pod.run(|| redirection::missing(&variants()[PLAIN_DNS].1)).unwrap().unwrap();
                assert_eq!(missing, Vec::<String>::new(), "{odd}: the keeper finds nothing to do");
                wire.pod.run(redirection::remove).unwrap().unwrap();
                assert_eq!(sh(&wire.pod, "nft list ruleset"), "", "{odd}");
            }
        }
    }
}

/// Who sends what to which pod, and the source that it sees: with the node's rule of ours, and of Istio's.
#[test]
fn the_nodes_probes_and_only_they_get_the_probe_address() {
    for whose in [Ours, Istios] {
        let wire = wire();
        lay(whose, &wire.pod, &plain());
        // A pod that is not enrolled, by address, and somebody whose packets the node forwards.
        sh(&wire.pod, "ip addr add 198.18.0.3/24 dev eth0; ip addr add fd00:18::3/64 dev eth0 nodad");
        let beyond = fresh();
        join(&wire.peer, "eth1", &beyond, "eth0");
        sh(
            &wire.peer,
            "ip addr add 198.18.2.1/24 dev eth1; ip addr add fd00:18:2::1/64 dev eth1 nodad
             sysctl -qw net.ipv4.ip_forward=1 net.ipv6.conf.all.forwarding=1",
        );
        sh(
            &beyond,
            "ip addr add 198.18.2.2/24 dev eth0; ip addr add fd00:18:2::2/64 dev eth0 nodad
             ip route add default via 198.18.2.1; ip -6 route add default via fd00:18:2::1",
        );
        let enrolled = [Pod.ip(false), Pod.ip(true)];
        match whose {
            Ours => {
                let probes = Probes::new(ProbeAddresses::default(), 0, [("web".to_owned(), enrolled.to_vec())]);
                wire.peer.run(|| probes.lay()).unwrap().unwrap();
            }
            Istios => {
                let pods = [("198.18.0.2", "169.254.7.127"), ("fd00:18::2", "fd16:9254:7127:1337:ffff:ffff:ffff:ffff")];
                reference::load_node(&wire.peer, &pods);
            }
        }
        for v6 in [false, true] {
            let ip = |v4: &str, text: &str| -> IpAddr { if v6 { text } else { v4 }.parse().unwrap() };
            let other = ip("198.18.0.3", "fd00:18::3");
            let at = |ip: IpAddr, port| SocketAddr::new(ip, port);
            let ask = |namespace: &NetNs, to: SocketAddr, user: u32| {
                let said = tcp(namespace, to, 0, None, user);
                said.split(" to ").next().unwrap().to_owned()
            };
            let seen = |listener: &str, from: IpAddr| format!("pod:{listener} from {from}");
            let (peer, probe, far) = (Peer.ip(v6), Probe.ip(v6), ip("198.18.2.2", "fd00:18:2::2"));
            assert_eq!(ask(&wire.peer, at(Pod.ip(v6), 80), 0), seen("80", probe), "{whose:?}: a probe");
            assert_eq!(ask(&wire.peer, at(Pod.ip(v6), 15008), 0), seen("15008", probe), "{whose:?}: whatever the port");
            assert_eq!(ask(&wire.peer, at(other, 80), 0), seen(IN, peer), "{whose:?}: a pod that is not enrolled");
            assert_eq!(ask(&beyond, at(Pod.ip(v6), 80), 0), seen(IN, far), "{whose:?}: what the node forwards");
            let said = udp(&wire.peer, at(Pod.ip(v6), 80), 0, None);
            assert_eq!(said, seen("80", peer), "{whose:?}: UDP is nobody's probe");
            // Istio's iptables rule takes every local socket, its nftables rule and ours the kubelet's user's.
            let another = match whose {
                Ours => seen(IN, peer),
                Istios => seen("80", probe),
            };
            assert_eq!(ask(&wire.peer, at(Pod.ip(v6), 80), 65534), another, "{whose:?}: another user");
        }
    }
}
