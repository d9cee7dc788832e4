//! Real connections through our rules: what the ends see, and what remains when the rules are gone. Who is captured
//! is `table.rs`.

use crate::lay::plain;
use crate::namespace::sh;
use crate::wire::{PROXY, Wire, ask, wire};
use aquifer_cni::keeper::Layout;
use aquifer_cni::probes::Probes;
use aquifer_cni::redirection;
use aquifer_cni::rules::pod::ProbeAddresses;
use std::net::IpAddr;

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
