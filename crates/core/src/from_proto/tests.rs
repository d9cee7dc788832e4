//! What each field may hold, and how a refusal is named.

use aquifer_proto::{
    security,
    workload::{self as wire, gateway_address::Destination},
};
use proptest::prelude::*;
use prost::Message;

use super::*;
use crate::{
    policy::{Action, Scope, StringMatch},
    service::{HealthPolicy, IpFamilies, Mode, Visibility},
    workload::{HealthStatus, NetworkMode, SAME_NODE_EXTENSION, TunnelProtocol, WorkloadType},
};

fn good_workload() -> wire::Workload {
    wire::Workload { uid: "u".into(), name: "n".into(), namespace: "ns".into(), ..Default::default() }
}

fn good_service() -> wire::Service {
    wire::Service { namespace: "ns".into(), hostname: "h".into(), ..Default::default() }
}

fn good_gateway() -> wire::GatewayAddress {
    let name = wire::NamespacedHostname { namespace: "ns".into(), hostname: "wp".into() };
    wire::GatewayAddress { destination: Some(Destination::Hostname(name)), hbone_mtls_port: 15008 }
}

fn at(address: &[u8], length: Option<u32>) -> wire::NetworkAddress {
    wire::NetworkAddress { network: "net".into(), address: address.to_vec().into(), length }
}

#[test]
fn elided_defaults_are_filled_in() {
    let w = workload(&good_workload()).unwrap();
    assert_eq!(w.identity().to_string(), "spiffe://cluster.local/ns/ns/sa/default");
    assert_eq!((&*w.cluster_id, w.capacity, w.status), ("Kubernetes", 1, HealthStatus::Healthy));
    assert_eq!((w.tunnel_protocol, w.network_mode), (TunnelProtocol::None, NetworkMode::Standard));
    assert!(!w.same_node, "only who permits it says so");
    assert_eq!((w.hostname.clone(), w.workload_type), (None, WorkloadType::Deployment));
    let zero = workload(&wire::Workload { capacity: Some(0), ..good_workload() }).unwrap();
    assert_eq!(zero.capacity, 0, "0 is not absent");
    let s = service(&good_service()).unwrap();
    assert_eq!((s.ip_families, s.visibility), (IpFamilies::Automatic, Visibility::Public));
    assert_eq!((s.load_balancing.mode, s.load_balancing.health_policy), (Mode::Unspecified, HealthPolicy::OnlyHealthy));
}

#[test]
fn values_come_through() {
    let port = |service_port, target_port| wire::Port { service_port, target_port, app_protocol: 99 };
    let w = workload(&wire::Workload {
        addresses: vec![vec![10, 0, 0, 1].into(), ip_bytes("::ffff:10.0.0.2"), ip_bytes("fd00::1")],
        services: [("ns/h".to_owned(), wire::PortList { ports: vec![port(80, 8080), port(81, 0)] })].into(),
        authorization_policies: vec!["ns/p".into()],
        workload_type: 77,
        application_tunnel: Some(wire::ApplicationTunnel { protocol: 1, port: 0 }),
        hostname: "db.example".into(),
        waypoint: Some(good_gateway()),
        extensions: ["elsewhere.dev/x", SAME_NODE_EXTENSION]
            .map(|name| wire::Extension { name: name.to_owned(), config: None })
            .into(),
        ..good_workload()
    })
    .unwrap();
    let addresses: Vec<_> = w.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(addresses, ["10.0.0.1", "10.0.0.2", "fd00::1"]);
    let list = w.services.get(&"ns/h".parse().unwrap()).unwrap();
    assert_eq!((list.target_port(80), list.target_port(81), list.target_port(82)), (Some(8080), None, None));
    assert_eq!(w.workload_type, WorkloadType::Pod);
    assert_eq!(w.application_tunnel.unwrap().port, None);
    assert!(w.same_node);
    assert_eq!(w.waypoint.as_ref().unwrap().hbone_mtls_port, 15008);

    let s = service(&wire::Service {
        addresses: vec![
            at(&[10, 9, 0, 1], None),
            at(&[10, 9, 0, 1], Some(16)),
            at(&ip_bytes("::ffff:10.9.0.1"), Some(112)),
        ],
        subject_alt_names: vec!["spiffe://td/ns/a/sa/b".into(), "dns.example".into()],
        visibility: 9,
        ..good_service()
    })
    .unwrap();
    let vips: Vec<_> = s.addresses.iter().map(ToString::to_string).collect();
    assert_eq!(vips, ["net/10.9.0.1", "net/10.9.0.0/16", "net/10.9.0.0/16"]);
    assert_eq!(s.subject_alt_names.len(), 1);
    assert_eq!(s.visibility, Visibility::Public);
}

fn ip_bytes(text: &str) -> prost::bytes::Bytes {
    text.parse::<std::net::Ipv6Addr>().unwrap().octets().to_vec().into()
}

#[test]
fn refused_workloads_name_the_field() {
    type Change = fn(&mut wire::Workload);
    let changes: [(Change, &str); 21] = [
        (|w| w.uid.clear(), "uid: missing"),
        (|w| w.namespace = "a/b".into(), "namespace: \"a/b\" cannot be part of an identity"),
        (|w| w.trust_domain = "td/ns/x".into(), "trust_domain: \"td/ns/x\" cannot be part of an identity"),
        (|w| w.service_account = "a/b".into(), "service_account: \"a/b\" cannot be part of an identity"),
        (
            |w| w.addresses = vec![vec![1, 2, 3, 4].into(), vec![1].into()],
            "addresses[1]: an address has 4 or 16 bytes, not 1",
        ),
        (|w| w.tunnel_protocol = 2, "tunnel_protocol: the protocol LEGACY_ISTIO_MTLS is not supported"),
        (|w| w.tunnel_protocol = 3, "tunnel_protocol: unknown value 3"),
        (|w| w.network_mode = 2, "network_mode: unknown value 2"),
        (|w| w.status = 2, "status: unknown value 2"),
        (
            |w| w.authorization_policies = vec!["p".into()],
            "authorization_policies[0]: not of the form <namespace>/<name>: \"p\"",
        ),
        (
            |w| drop(w.services.insert("h".into(), Default::default())),
            "services: not of the form <namespace>/<name>: \"h\"",
        ),
        (
            |w| {
                drop(w.services.insert(
                    "ns/h".into(),
                    wire::PortList {
                        ports: vec![wire::Port { service_port: 80, target_port: 65536, app_protocol: 0 }],
                    },
                ))
            },
            "services[ns/h].ports[0].target_port: 65536 is not a port",
        ),
        (
            |w| drop(w.services.insert("ns/h".into(), wire::PortList { ports: vec![wire::Port::default()] })),
            "services[ns/h].ports[0].service_port: 0 is not a port",
        ),
        (|w| w.waypoint = Some(Default::default()), "waypoint.destination: missing"),
        (
            |w| w.waypoint = Some(wire::GatewayAddress { hbone_mtls_port: 0, ..good_gateway() }),
            "waypoint.hbone_mtls_port: 0 is not a port",
        ),
        (
            |w| w.waypoint = Some(wire::GatewayAddress { hbone_mtls_port: 70000, ..good_gateway() }),
            "waypoint.hbone_mtls_port: 70000 is not a port",
        ),
        (
            |w| {
                w.waypoint = Some(wire::GatewayAddress {
                    destination: Some(Destination::Hostname(Default::default())),
                    hbone_mtls_port: 1,
                })
            },
            "waypoint.hostname.namespace: missing",
        ),
        (
            |w| {
                w.network_gateway = Some(wire::GatewayAddress {
                    destination: Some(Destination::Address(at(&[1], None))),
                    hbone_mtls_port: 1,
                })
            },
            "network_gateway.address.address: an address has 4 or 16 bytes, not 1",
        ),
        (
            |w| w.application_tunnel = Some(wire::ApplicationTunnel { protocol: 2, port: 1 }),
            "application_tunnel.protocol: unknown value 2",
        ),
        (
            |w| w.application_tunnel = Some(wire::ApplicationTunnel { protocol: 1, port: 65536 }),
            "application_tunnel.port: 65536 is not a port",
        ),
        (|w| w.addresses = vec![Default::default()], "addresses[0]: an address has 4 or 16 bytes, not 0"),
    ];
    for (change, expected) in changes {
        let mut w = good_workload();
        change(&mut w);
        assert_eq!(workload(&w).unwrap_err().to_string(), expected);
    }
    assert_eq!(address(&wire::Address::default()).unwrap_err().to_string(), "type: missing");
}

#[test]
fn refused_services_name_the_field() {
    type Change = fn(&mut wire::Service);
    let changes: [(Change, &str); 12] = [
        (|s| s.namespace.clear(), "namespace: missing"),
        (|s| s.hostname.clear(), "hostname: missing"),
        (|s| s.addresses = vec![at(&[1], None)], "addresses[0].address: an address has 4 or 16 bytes, not 1"),
        (|s| s.addresses = vec![at(&[10, 0, 0, 1], Some(33))], "addresses[0].address: prefix length 33 of 10.0.0.1"),
        (
            |s| s.addresses = vec![at(&ip_bytes("::ffff:1.2.3.4"), Some(95))],
            "addresses[0].address: prefix length 95 of 1.2.3.4",
        ),
        (
            |s| s.ports = vec![wire::Port { service_port: 65536, ..Default::default() }],
            "ports[0].service_port: 65536 is not a port",
        ),
        (|s| s.waypoint = Some(Default::default()), "waypoint.destination: missing"),
        (|s| s.weighted_waypoints = vec![Default::default()], "weighted_waypoints[0].destination: missing"),
        (|s| s.ip_families = 4, "ip_families: unknown value 4"),
        (
            |s| s.load_balancing = Some(wire::LoadBalancing { mode: 4, ..Default::default() }),
            "load_balancing.mode: unknown value 4",
        ),
        (
            |s| s.load_balancing = Some(wire::LoadBalancing { health_policy: 2, ..Default::default() }),
            "load_balancing.health_policy: unknown value 2",
        ),
        (
            |s| s.load_balancing = Some(wire::LoadBalancing { routing_preference: vec![1, 0], ..Default::default() }),
            "load_balancing.routing_preference[1]: unknown value 0",
        ),
    ];
    for (change, expected) in changes {
        let mut s = good_service();
        change(&mut s);
        assert_eq!(service(&s).unwrap_err().to_string(), expected);
    }
}

fn of_match(m: security::Match) -> security::Authorization {
    let clauses = vec![security::Clause::default(), security::Clause { matches: vec![m] }];
    let rules = vec![security::Rule { clauses }];
    security::Authorization { name: "p".into(), namespace: "ns".into(), rules, ..Default::default() }
}

#[test]
fn refused_policies_name_the_field() {
    let cidr = |address: &[u8], length| security::Address { address: address.to_vec().into(), length };
    let m = security::Match::default;
    let extension = security::Extension { name: "time-of-day".into(), config: None };
    for (m, expected) in [
        (security::Match { namespaces: vec![Default::default()], ..m() }, "namespaces[0]: no kind of match is set"),
        (
            security::Match { not_principals: vec![Default::default()], ..m() },
            "not_principals[0]: no kind of match is set",
        ),
        (
            security::Match { source_ips: vec![cidr(&[10, 0, 0, 0], 8), cidr(&[1], 8)], ..m() },
            "source_ips[1]: an address has 4 or 16 bytes, not 1",
        ),
        (
            security::Match { not_source_ips: vec![cidr(&[10, 0, 0, 0], 33)], ..m() },
            "not_source_ips[0]: prefix length 33 of 10.0.0.0",
        ),
        (
            security::Match { destination_ips: vec![cidr(&[0; 16], 129)], ..m() },
            "destination_ips[0]: prefix length 129 of ::",
        ),
        (
            security::Match { not_destination_ips: vec![cidr(&[], 0)], ..m() },
            "not_destination_ips[0]: an address has 4 or 16 bytes, not 0",
        ),
        (security::Match { destination_ports: vec![65536], ..m() }, "destination_ports[0]: 65536 is not a port"),
        (
            security::Match { not_destination_ports: vec![1, 70000], ..m() },
            "not_destination_ports[1]: 70000 is not a port",
        ),
        (
            security::Match { service_accounts: vec![Default::default()], ..m() },
            "service_accounts[0].namespace: missing",
        ),
        (
            security::Match { extensions: vec![extension], ..m() },
            "extensions[0]: extension \"time-of-day\" is not known, so the match cannot be judged",
        ),
    ] {
        let expected = format!("rules[0].clauses[1].matches[0].{expected}");
        assert_eq!(authorization(&of_match(m)).unwrap_err().to_string(), expected);
    }
    for (policy, expected) in [
        (security::Authorization { name: "".into(), ..of_match(m()) }, "name: missing"),
        (security::Authorization { namespace: "".into(), ..of_match(m()) }, "namespace: missing"),
        (security::Authorization { scope: 3, ..of_match(m()) }, "scope: unknown value 3"),
        (security::Authorization { action: 2, ..of_match(m()) }, "action: unknown value 2"),
    ] {
        assert_eq!(authorization(&policy).unwrap_err().to_string(), expected);
    }
}

#[test]
fn policies_come_through_with_all_their_structure() {
    use security::string_match::MatchType;
    let text = |kind| security::StringMatch { match_type: Some(kind) };
    let principals = [
        MatchType::Exact("e".into()),
        MatchType::Prefix("p".into()),
        MatchType::Suffix("s".into()),
        MatchType::Presence(()),
    ];
    let m = security::Match {
        principals: principals.map(text).to_vec(),
        source_ips: vec![security::Address { address: vec![10, 1, 2, 3].into(), length: 8 }],
        destination_ports: vec![80],
        ..Default::default()
    };
    let policy = authorization(&security::Authorization { scope: 2, action: 1, dry_run: true, ..of_match(m) }).unwrap();
    assert_eq!((policy.scope, policy.action, policy.dry_run), (Scope::WorkloadSelector, Action::Deny, true));
    assert_eq!(policy.key.to_string(), "ns/p");
    let clauses = &policy.rules[0].clauses;
    assert!(clauses[0].matches.is_empty());
    let m = &clauses[1].matches[0];
    let expected = [
        StringMatch::Exact("e".into()),
        StringMatch::Prefix("p".into()),
        StringMatch::Suffix("s".into()),
        StringMatch::Presence,
    ];
    assert_eq!(m.principals, expected);
    assert_eq!(m.source_ips, ["10.0.0.0/8".parse().unwrap()]);
    assert_eq!(m.destination_ports, [80]);
    assert_eq!(
        authorization(&of_match(Default::default())).unwrap().rules[0].clauses[1].matches.len(),
        1,
        "an empty match stays"
    );
}

proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
        if let Ok(message) = wire::Address::decode(&bytes[..]) {
            let _ = address(&message);
        }
        if let Ok(message) = wire::Workload::decode(&bytes[..]) {
            let _ = workload(&message);
        }
        if let Ok(message) = wire::Service::decode(&bytes[..]) {
            let _ = service(&message);
        }
        if let Ok(message) = security::Authorization::decode(&bytes[..]) {
            let _ = authorization(&message);
        }
    }

    #[test]
    fn ranges_are_canonical_or_refused(bytes in prop_oneof![any::<[u8; 4]>().prop_map(|b| b.to_vec()), any::<[u8; 16]>().prop_map(|b| b.to_vec())], length in 0u32..140) {
        match net(&"field", &bytes, length) {
            Ok(range) => {
                prop_assert_eq!(range, range.trunc());
                prop_assert_eq!(range.addr(), range.addr().to_canonical());
            }
            Err(refused) => prop_assert_eq!(refused.field, "field"),
        }
    }
}
