//! Real connections through our rules: what the ends see, and what remains when the rules are gone. Who is captured
//! is `table.rs`.

use crate::lay::plain;
use crate::namespace::sh;
use crate::wire::{PROXY, Wire, ask, wire};
use aquifer_cni::keeper::Layout;
use aquifer_cni::netns::NetNs;
use aquifer_cni::probes::Probes;
use aquifer_cni::redirection;
use aquifer_cni::rules::pod::ProbeAddresses;
use std::io::{Read, Write};
use std::net::{IpAddr, TcpListener, TcpStream};
use std::time::Duration;

fn redirected() -> Wire {
    let wire = wire();
    wire.pod.run(|| redirection::lay(&plain())).unwrap().unwrap();
    wire
}

#[test]
fn the_app_sees_the_client_and_its_replies_come_back() {
    let wire = redirected();
    let said = ask(&wire.pod, "198.18.0.2:80", PROXY, Some("198.18.0.1"));
    assert!(said.starts_with("pod:80 from 198.18.0.1 "), "{said:?}");
    let said = ask(&wire.pod, "[fd00:18::2]:80", PROXY, Some("fd00:18::1"));
    assert!(said.starts_with("pod:80 from fd00:18::1 "), "{said:?}");
    wire.pod.run(redirection::remove).unwrap().unwrap();
    let said = ask(&wire.pod, "198.18.0.2:80", PROXY, Some("198.18.0.99"));
    assert_eq!(said, "", "without the return path the replies leave the pod");
}

#[test]
fn a_pod_that_is_out_gets_no_probes_under_the_probe_address() {
    let wire = redirected();
    let pods: Vec<IpAddr> = vec!["198.18.0.2".parse().unwrap(), "fd00:18::2".parse().unwrap()];
    let probes = Probes::new(ProbeAddresses::default(), 0, [("web".to_owned(), pods)]);
    wire.peer.run(|| probes.lay()).unwrap().unwrap();
    let v4 = ask(&wire.peer, "198.18.0.2:80", 0, None);
    assert!(v4.starts_with("pod:80 from 169.254.7.127 "), "{v4}");
    let other = "setpriv --reuid 65534 --clear-groups bash -c 'exec 3<>/dev/tcp/198.18.0.2/80; cat <&3'";
    let said = sh(&wire.peer, other);
    assert!(said.starts_with("pod:15006 from 198.18.0.1 "), "another user's: {said}");

    wire.peer.run(|| probes.withdraw("web")).unwrap().unwrap();
    let said = ask(&wire.peer, "198.18.0.2:80", 0, None);
    assert!(said.starts_with("pod:15006 from 198.18.0.1 "), "a pod that is out: {said}");
}

#[test]
fn without_rules_everything_is_plain() {
    let wire = redirected();
    wire.pod.run(redirection::remove).unwrap().unwrap();
    let out = ask(&wire.pod, "198.18.0.1:80", 0, None);
    assert!(out.starts_with("peer:80 "), "{out}");
    let inbound = ask(&wire.peer, "198.18.0.2:80", 0, Some("198.18.0.1"));
    assert!(inbound.starts_with("pod:80 "), "{inbound}");
}

/// A connection from one namespace to the other, both ends.
fn open(from: &NetNs, to: &NetNs, ip: &'static str) -> [TcpStream; 2] {
    let listener = to.run(|| TcpListener::bind((ip, 0))).unwrap().unwrap();
    let port = listener.local_addr().unwrap().port();
    let client = from.run(move || TcpStream::connect((ip, port))).unwrap().unwrap();
    let server = listener.accept().unwrap().0;
    for end in [&client, &server] {
        end.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    [client, server]
}

/// Bytes go both ways, whoever begins.
fn talks([client, server]: &[TcpStream; 2], server_first: bool) {
    let ends = if server_first { [(server, client), (client, server)] } else { [(client, server), (server, client)] };
    for (mut from, mut to) in ends {
        from.write_all(b"hello").unwrap();
        let mut heard = [0; 5];
        to.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
    }
}

/// Conntrack knows nothing of them yet: their next packet must not be taken for the first of a connection to redirect.
#[test]
fn what_was_open_before_the_rules_goes_on() {
    for (pod_ip, peer_ip) in [("198.18.0.2", "198.18.0.1"), ("fd00:18::2", "fd00:18::1")] {
        for server_first in [false, true] {
            let wire = wire();
            let out = open(&wire.pod, &wire.peer, peer_ip);
            let inbound = open(&wire.peer, &wire.pod, pod_ip);
            wire.pod.run(|| redirection::lay(&plain())).unwrap().unwrap();
            talks(&out, server_first);
            talks(&inbound, server_first);
        }
    }
}

#[test]
fn a_pod_that_is_released_is_captured_no_more_and_keeps_its_translations() {
    let wire = redirected();
    wire.pod.run(redirection::release).unwrap().unwrap();
    let out = ask(&wire.pod, "198.18.0.1:80", 0, None);
    assert!(out.starts_with("peer:80 "), "{out}");
    let inbound = ask(&wire.peer, "198.18.0.2:80", 0, Some("198.18.0.1"));
    assert!(inbound.starts_with("pod:80 "), "{inbound}");
    let tables = sh(&wire.pod, "nft list tables");
    assert!(tables.contains("istio-ambient-nat") && tables.contains("istio-ambient-mangle"), "{tables}");
    wire.pod.run(redirection::remove).unwrap().unwrap();
    // Where there is nothing, there is nothing to release.
    wire.pod.run(redirection::release).unwrap().unwrap();
    assert_eq!(sh(&wire.pod, "nft list tables"), "");
}
