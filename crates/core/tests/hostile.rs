//! Whatever a peer or a control plane may send to the parsers: no panic, limits hold, and what is understood prints as
//! something that is understood the same way.
//!
//! Random bytes rarely get past the first field, so most inputs here are valid ones with a few places changed.

use aquifer_core::from_proto::{Address, address, authorization};
use aquifer_core::hbone::{Authority, Baggage, Forwarded, Traceparent};
use aquifer_core::identity::Identity;
use aquifer_core::state::{MeshState, Update};
use aquifer_proto::{security, workload as wire};
use proptest::prelude::*;
use prost::Message;
use std::sync::Arc;

/// A change at a place, given as a part of the whole.
#[derive(Clone, Debug)]
enum Edit {
    Set(f64, u8),
    Insert(f64, Vec<u8>),
    Remove(f64, usize),
    /// Doubles a piece.
    Repeat(f64, usize, usize),
}

fn edits() -> impl Strategy<Value = Vec<Edit>> {
    // Bytes that mean something to one parser or another, and any.
    let byte = prop_oneof![prop::sample::select(&b":[]%,;=\"\\/.-0f \0\xff\x80"[..]), any::<u8>()];
    let edit = prop_oneof![
        4 => (0.0..1.0, byte.clone()).prop_map(|(at, b)| Edit::Set(at, b)),
        3 => (0.0..1.0, prop::collection::vec(byte, 1..6)).prop_map(|(at, b)| Edit::Insert(at, b)),
        2 => (0.0..1.0, 1..9_usize).prop_map(|(at, n)| Edit::Remove(at, n)),
        1 => (0.0..1.0, 1..9_usize, 1..400_usize).prop_map(|(at, n, times)| Edit::Repeat(at, n, times)),
    ];
    prop::collection::vec(edit, 0..5)
}

fn edited(bytes: &[u8], edits: &[Edit]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    for edit in edits {
        let place = |at: &f64| ((bytes.len() as f64 * at) as usize).min(bytes.len());
        match edit {
            Edit::Set(at, b) => {
                let at = place(at);
                bytes.get_mut(at).into_iter().for_each(|byte| *byte = *b);
            }
            Edit::Insert(at, new) => {
                let at = place(at);
                bytes.splice(at..at, new.iter().copied());
            }
            Edit::Remove(at, n) => {
                let at = place(at);
                let end = (at + n).min(bytes.len());
                bytes.drain(at..end);
            }
            Edit::Repeat(at, n, times) => {
                let at = place(at);
                let piece = bytes[at..(at + n).min(bytes.len())].repeat(*times);
                bytes.splice(at..at, piece);
            }
        }
    }
    bytes
}

const TEXTS: &[&str] = &[
    "10.0.0.1:80",
    "[fd00::1]:15008",
    "[::ffff:10.0.0.1]:1",
    "payments.shop.svc.cluster.local:8080",
    "k8s.cluster.name=Kubernetes,k8s.namespace.name=shop,k8s.deployment.name=orders,service.name=orders,service.version=v1",
    "k8s.pod.name=a%20b,cloud.region=r1,cloud.availability_zone=z%2C1;meta=x",
    "for=\"10.0.0.1:4711\";host=payments.shop",
    "for=\"[fd00::1]:4711\";proto=http, for=10.0.0.2",
    "for=_hidden;by=unknown;host=\"a\\\"b\"",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
    "spiffe://cluster.local/ns/shop/sa/orders",
];

fn again<T: std::str::FromStr + ToString + PartialEq + std::fmt::Debug>(text: &str) -> Result<bool, TestCaseError> {
    let Ok(first) = text.parse::<T>() else { return Ok(false) };
    let printed = first.to_string();
    let Ok(second) = printed.parse::<T>() else {
        return Err(TestCaseError::fail(format!("{text:?} prints as {printed:?}, which is none")));
    };
    prop_assert_eq!(first, second, "{:?} prints as {:?}", text, printed);
    Ok(true)
}

#[test]
fn limits_on_length() {
    let long = |piece: &str, n: usize| piece.repeat(n);
    assert!(format!("{}:80", long("a.", 200)).parse::<Authority>().is_err());
    assert!(format!("k8s.namespace.name={}", long("a", 9000)).parse::<Baggage>().is_err());
    assert!(long("a=b,", 65).parse::<Baggage>().is_err());
    assert!(format!("host={}", long("a", 2000)).parse::<Forwarded>().is_err());
    let trace = "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-";
    assert!(format!("{trace}{}", long("a", 600)).parse::<Traceparent>().is_err());
}

fn workloads() -> Vec<wire::Address> {
    let name = |n: &str| wire::NamespacedHostname { namespace: "shop".into(), hostname: n.into() };
    let gateway = |destination| wire::GatewayAddress { destination: Some(destination), hbone_mtls_port: 15008 };
    let network = wire::NetworkAddress { network: "net".into(), address: vec![10, 9, 0, 1].into(), length: Some(24) };
    let ports = vec![wire::Port { service_port: 80, target_port: 8080, app_protocol: 1 }];
    let workload = wire::Workload {
        uid: "Kubernetes//Pod/shop/orders-1".into(),
        name: "orders-1".into(),
        namespace: "shop".into(),
        addresses: vec![vec![10, 0, 0, 1].into(), vec![0xfd; 16].into()],
        network: "net".into(),
        tunnel_protocol: 1,
        service_account: "orders".into(),
        waypoint: Some(gateway(wire::gateway_address::Destination::Hostname(name("wp")))),
        network_gateway: Some(gateway(wire::gateway_address::Destination::Address(network.clone()))),
        node: "node1".into(),
        workload_type: 1,
        authorization_policies: vec!["shop/allow".into()],
        services: [("shop/orders.shop.svc".to_owned(), wire::PortList { ports: ports.clone() })].into(),
        application_tunnel: Some(wire::ApplicationTunnel { protocol: 1, port: 15088 }),
        locality: Some(wire::Locality { region: "r".into(), zone: "z".into(), subzone: "s".into() }),
        capacity: Some(7),
        ..Default::default()
    };
    let service = wire::Service {
        name: "orders".into(),
        namespace: "shop".into(),
        hostname: "orders.shop.svc".into(),
        addresses: vec![network],
        ports,
        subject_alt_names: vec!["spiffe://cluster.local/ns/shop/sa/orders".into()],
        waypoint: Some(gateway(wire::gateway_address::Destination::Hostname(name("wp")))),
        load_balancing: Some(wire::LoadBalancing { routing_preference: vec![1, 2, 3], mode: 2, health_policy: 1 }),
        ip_families: 3,
        ..Default::default()
    };
    use wire::address::Type;
    [Type::Workload(workload), Type::Service(service)].map(|t| wire::Address { r#type: Some(t) }).into()
}

fn policy() -> security::Authorization {
    let exact =
        |text: &str| security::StringMatch { match_type: Some(security::string_match::MatchType::Exact(text.into())) };
    let prefix =
        |text: &str| security::StringMatch { match_type: Some(security::string_match::MatchType::Prefix(text.into())) };
    let address = |bytes: &[u8], length| security::Address { address: bytes.to_vec().into(), length };
    let matched = security::Match {
        namespaces: vec![exact("shop")],
        not_namespaces: vec![prefix("kube-")],
        principals: vec![exact("cluster.local/ns/shop/sa/orders")],
        source_ips: vec![address(&[10, 0, 0, 0], 8), address(&[0xfd; 16], 64)],
        destination_ports: vec![80, 443],
        not_destination_ports: vec![15008],
        ..Default::default()
    };
    let clause = security::Clause { matches: vec![matched] };
    let rules = security::Rule { clauses: vec![clause.clone(), clause] };
    security::Authorization {
        name: "allow".into(),
        namespace: "shop".into(),
        scope: 2,
        action: 1,
        rules: vec![rules],
        ..Default::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]

    #[test]
    fn texts(which in prop::sample::select(TEXTS), edits in edits()) {
        let bytes = edited(which.as_bytes(), &edits);
        // Headers are bytes; those that are no text never reach these parsers, and SANs are ASCII.
        let text = String::from_utf8_lossy(&bytes);
        again::<Authority>(&text)?;
        again::<Baggage>(&text)?;
        again::<Forwarded>(&text)?;
        if let Ok(trace) = text.parse::<Traceparent>() {
            prop_assert!(trace.trace_id != 0 && trace.parent_id != 0);
            prop_assert_eq!(trace.to_string().parse::<Traceparent>().unwrap(), trace);
        }
        if let Ok(identity) = text.parse::<Identity>() {
            // One text, one identity: a policy that names it cannot mean another.
            prop_assert_eq!(identity.to_string(), text.into_owned());
        }
    }

    #[test]
    fn addresses(which in 0..2_usize, edits in edits()) {
        let bytes = edited(&workloads()[which].encode_to_vec(), &edits);
        let Ok(message) = wire::Address::decode(&bytes[..]) else { return Ok(()) };
        let mut state = MeshState::default();
        match address(&message) {
            Ok(Address::Workload(workload)) => {
                prop_assert!(!workload.uid.to_string().is_empty());
                let uid = workload.uid.clone();
                state.apply(Update::Workload(workload));
                prop_assert!(state.workload_by_uid(&uid).is_some());
                state.apply(Update::RemoveAddress(uid.to_string().into()));
                prop_assert!(state.workload_by_uid(&uid).is_none());
            }
            Ok(Address::Service(service)) => state.apply(Update::Service(service)),
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }

    #[test]
    fn policies(edits in edits()) {
        let bytes = edited(&policy().encode_to_vec(), &edits);
        if let Ok(message) = security::Authorization::decode(&bytes[..]) {
            match authorization(&message) {
                Ok(policy) => MeshState::default().apply(Update::Policy(Arc::new(policy))),
                Err(error) => prop_assert!(!error.to_string().is_empty()),
            }
        }
    }
}

/// The inputs above reach the depths that they are made for.
#[test]
fn the_seeds_themselves_are_valid() {
    assert!(
        workloads().iter().all(|message| address(message).is_ok()),
        "{:?}",
        workloads().iter().map(address).collect::<Vec<_>>()
    );
    assert!(authorization(&policy()).is_ok(), "{:?}", authorization(&policy()));
    let understood = |text: &&&str| {
        text.parse::<Authority>().is_ok()
            || text.parse::<Baggage>().is_ok()
            || text.parse::<Forwarded>().is_ok()
            || text.parse::<Traceparent>().is_ok()
            || text.parse::<Identity>().is_ok()
    };
    assert_eq!(TEXTS.iter().filter(understood).count(), TEXTS.len());
}
