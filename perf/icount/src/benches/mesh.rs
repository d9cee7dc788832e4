//! Questions to a mesh of 1 000 pods behind 100 services, and one service more whose endpoints they all are.

use std::hint::black_box;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use aquifer_core::authz::{self, Connection, authorize};
use aquifer_core::from_proto;
use aquifer_core::hbone::Authority;
use aquifer_core::identity::Identity;
use aquifer_core::inbound;
use aquifer_core::lb::{Purpose, Reach, pick};
use aquifer_core::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, StringMatch};
use aquifer_core::resolve::{OutboundConn, Resolution, resolve};
use aquifer_core::service::{NamespacedHostname, Service};
use aquifer_core::state::{MeshState, Update};
use aquifer_core::workload::Workload;
use aquifer_proto::workload as wire;
use prost::Message;
use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::meter::measure;

const PODS: u16 = 1000;
const SERVICES: u16 = 100;
/// Its endpoints are all pods.
const LARGE: u16 = SERVICES;

fn pod_ip(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(10, 1, high, low)
}

fn vip(n: u16) -> Ipv4Addr {
    let [high, low] = n.to_be_bytes();
    Ipv4Addr::new(10, 255, high, low)
}

fn hostname(n: u16) -> String {
    format!("service-{n}.shop.svc.cluster.local")
}

fn ports() -> wire::PortList {
    wire::PortList { ports: vec![wire::Port { service_port: 80, target_port: 8080, ..Default::default() }] }
}

fn wire_workload(n: u16) -> wire::Address {
    let services = [n % SERVICES, LARGE].map(|service| (format!("shop/{}", hostname(service)), ports()));
    let workload = wire::Workload {
        uid: format!("Kubernetes//Pod/shop/pod-{n}"),
        name: format!("pod-{n}"),
        namespace: "shop".into(),
        addresses: vec![pod_ip(n).octets().to_vec().into()],
        tunnel_protocol: wire::TunnelProtocol::Hbone.into(),
        trust_domain: "cluster.local".into(),
        service_account: format!("account-{}", n % SERVICES),
        node: format!("node-{}", n % 10),
        canonical_name: format!("app-{}", n % SERVICES),
        canonical_revision: "v1".into(),
        workload_type: wire::WorkloadType::Deployment.into(),
        workload_name: format!("app-{}", n % SERVICES),
        cluster_id: "Kubernetes".into(),
        services: services.into_iter().collect(),
        ..Default::default()
    };
    wire::Address { r#type: Some(wire::address::Type::Workload(workload)) }
}

fn wire_service(n: u16) -> wire::Address {
    let service = wire::Service {
        name: format!("service-{n}"),
        namespace: "shop".into(),
        hostname: hostname(n),
        addresses: vec![wire::NetworkAddress { address: vip(n).octets().to_vec().into(), ..Default::default() }],
        ports: ports().ports,
        ..Default::default()
    };
    wire::Address { r#type: Some(wire::address::Type::Service(service)) }
}

fn mesh() -> MeshState {
    let mut state = MeshState::default();
    let addresses = (0..PODS).map(wire_workload).chain((0..=LARGE).map(wire_service));
    for address in addresses {
        state.apply(from_proto::address(&address).expect("a valid address").into());
    }
    state
}

/// A pod as the state has it.
pub(super) fn workload(n: u16) -> Arc<Workload> {
    match from_proto::address(&wire_workload(n)) {
        Ok(from_proto::Address::Workload(workload)) => workload,
        _ => unreachable!("a workload was asked for"),
    }
}

fn resolve_to(address: Ipv4Addr, port: u16) {
    let (state, mut rng) = (mesh(), StdRng::seed_from_u64(1));
    let destination = SocketAddr::from((address, port));
    let conn = OutboundConn { source: workload(0), network: "".into(), destination, preferred_service_namespace: None };
    assert!(matches!(resolve(&state, &conn, &mut rng), Resolution::Route(_)), "the benchmark finds a route");
    measure(|| resolve(black_box(&state), black_box(&conn), &mut rng));
}

pub(super) fn resolve_service() {
    resolve_to(vip(7), 80);
}

pub(super) fn resolve_workload() {
    resolve_to(pod_ip(7), 8080);
}

pub(super) fn resolve_unknown() {
    resolve_to(Ipv4Addr::new(192, 0, 2, 1), 443);
}

fn pick_of(n: u16) {
    let (state, source, mut rng) = (mesh(), workload(0), StdRng::seed_from_u64(1));
    let key = NamespacedHostname::new("shop", hostname(n));
    let service: Arc<Service> = state.service(&key).expect("the service").clone();
    measure(|| {
        let endpoint = pick(black_box(&state), &service, &source, 80, Purpose::Client, Reach::Everywhere, &mut rng);
        endpoint.expect("an endpoint").port
    });
}

pub(super) fn pick_10() {
    pick_of(7);
}

pub(super) fn pick_1000() {
    pick_of(LARGE);
}

pub(super) fn inbound_route() {
    let (state, destination) = (mesh(), workload(7));
    let local = SocketAddr::from((pod_ip(7), inbound::HBONE_PORT));
    let authority: Authority = format!("{}:8080", pod_ip(7)).parse().expect("an authority");
    assert!(inbound::route(&state, &destination, local, &authority, None).is_ok(), "the benchmark is let in");
    measure(|| inbound::route(black_box(&state), &destination, local, black_box(&authority), None));
}

fn policy(n: u16, action: Action, wanted: Match) -> Policy {
    let rules = vec![Rule { clauses: vec![Clause { matches: vec![wanted] }] }];
    Policy {
        key: PolicyKey::new("shop", format!("policy-{n}")),
        scope: Scope::Namespace,
        action,
        rules,
        dry_run: false,
    }
}

fn authorize_with(policies: Vec<Policy>) {
    let mut state = mesh();
    policies.into_iter().for_each(|policy| state.apply(Update::Policy(Arc::new(policy))));
    let connection = Connection {
        destination: workload(7),
        identity: Some(Identity::new("cluster.local", "shop", "account-3")),
        source_ip: IpAddr::from(pod_ip(3)),
        destination_addr: SocketAddr::from((pod_ip(7), 8080)),
    };
    let verdict = authorize(&state, &connection);
    assert!(matches!(verdict.decision, authz::Decision::Allow(_)), "the benchmark is allowed");
    measure(|| authorize(black_box(&state), black_box(&connection)));
}

pub(super) fn authorize_without_policies() {
    authorize_with(Vec::new());
}

/// Five that deny others, four that allow others, and the one that allows this.
pub(super) fn authorize_10_policies() {
    let principal = |account: &str| StringMatch::Exact(format!("cluster.local/ns/shop/sa/{account}").into());
    let deny = (0..5).map(|n| {
        let source = format!("172.16.{n}.0/24").parse().expect("a network");
        let wanted = Match { source_ips: vec![source], destination_ports: vec![8080], ..Default::default() };
        policy(n, Action::Deny, wanted)
    });
    let allow = (5..10).map(|n| {
        let account = if n == 9 { "account-3".to_owned() } else { format!("other-{n}") };
        policy(n, Action::Allow, Match { principals: vec![principal(&account)], ..Default::default() })
    });
    authorize_with(deny.chain(allow).collect());
}

/// From the bytes that the control plane sends.
pub(super) fn xds_workload() {
    let bytes = bytes::Bytes::from(wire_workload(7).encode_to_vec());
    measure(|| {
        let address = wire::Address::decode(black_box(bytes.clone())).expect("an address");
        from_proto::address(&address).expect("a valid address")
    });
}
