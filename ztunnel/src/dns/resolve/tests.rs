//! Names in a small mesh, one table per rule.

use aquifer_core::state::Update;
use aquifer_proto::workload as wire;
use proptest::prelude::*;
use rand::SeedableRng;
use rand::rngs::StdRng;

use super::*;
use crate::testing;

fn service(namespace: &str, hostname: &str, vips: &[&str]) -> wire::Service {
    wire::Service {
        name: hostname.split('.').next().unwrap_or_default().into(),
        namespace: namespace.into(),
        hostname: hostname.into(),
        addresses: vips.iter().map(|vip| network_address(vip)).collect(),
        ..wire::Service::default()
    }
}

/// `[network/]ip`.
fn network_address(text: &str) -> wire::NetworkAddress {
    let (network, ip) = text.split_once('/').unwrap_or(("", text));
    wire::NetworkAddress { network: network.into(), address: octets(ip).into(), ..Default::default() }
}

fn octets(ip: &str) -> Vec<u8> {
    match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn endpoint(name: &str, ips: &[&str], service: &str) -> wire::Workload {
    wire::Workload {
        addresses: ips.iter().map(|ip| octets(ip).into()).collect(),
        services: [(service.to_owned(), wire::PortList::default())].into(),
        ..testing::pod("shop", name, [198, 18, 17, 2])
    }
}

fn mesh() -> MeshState {
    let mut state = MeshState::default();
    let headless = "data/db.data.svc.cluster.local";
    let services = [
        service("shop", "web.shop.svc.cluster.local", &["198.19.0.16", "fd00:19::10"]),
        service("bar", "web.bar.svc.cluster.local", &["198.19.0.17"]),
        service("bar", "only.bar.svc.cluster.local", &["198.19.0.18"]),
        service("shop", "far.shop.svc.cluster.local", &["far/198.19.0.19"]),
        service("data", "db.data.svc.cluster.local", &[]),
        service("data", "none.data.svc.cluster.local", &[]),
        wire::Service {
            ip_families: wire::IpFamilies::Ipv4Only as i32,
            ..service("data", "four.data.svc.cluster.local", &[])
        },
        service("ext", "api.example.com", &["240.240.0.1", "2001:2::1"]),
        service("ext", "*.wild.example.com", &["240.240.0.2"]),
        service("ext", "exact.wild.example.com", &["240.240.0.3"]),
        service("ext", "no-address.example.com", &[]),
        wire::Service { visibility: 1, ..service("ext", "hidden.example.com", &["240.240.0.4"]) },
        // One hostname, several namespaces.
        service("aaa", "shared.example.com", &["240.240.1.1"]),
        wire::Service { canonical: true, ..service("bbb", "shared.example.com", &["240.240.1.2"]) },
        service("shop", "shared.example.com", &["240.240.1.3"]),
        service("aaa", "preferred.example.com", &["240.240.2.1"]),
        service("zzz", "preferred.example.com", &["240.240.2.2"]),
        // The client's own has no address: another's answers.
        service("shop", "partly.example.com", &[]),
        service("ext", "partly.example.com", &["240.240.3.1"]),
        wire::Service {
            addresses: vec![wire::NetworkAddress { length: Some(16), ..network_address("240.241.0.0") }],
            ..service("ext", "range.example.com", &[])
        },
    ];
    for service in services {
        state.apply(Update::Service(testing::service(service)));
    }
    let unhealthy = wire::Workload {
        status: wire::WorkloadStatus::Unhealthy as i32,
        ..endpoint("db-3", &["198.18.17.13"], headless)
    };
    let elsewhere = wire::Workload { network: "far".into(), ..endpoint("db-4", &["198.18.17.14"], headless) };
    let workloads = [
        endpoint("db-1", &["198.18.17.11", "fd00:18::11"], headless),
        endpoint("db-2", &["198.18.17.12", "198.18.17.99"], headless),
        unhealthy,
        elsewhere,
        endpoint("four-1", &["198.18.17.21", "fd00:18::21"], "data/four.data.svc.cluster.local"),
        testing::pod("shop", "client", [198, 18, 17, 2]),
    ];
    for workload in workloads {
        state.apply(Update::Workload(testing::workload(workload)));
    }
    state
}

fn zone() -> Zone {
    Zone { domain: "cluster.local".into(), preferred_namespace: None, ipv6: true }
}

/// Canonical text: `-` for unknown, `none` for no address, else the addresses in order, `name: ` before them for a
/// CNAME.
fn ask(state: &MeshState, zone: &Zone, namespace: &str, name: &str, family: Family) -> String {
    let client = testing::workload(testing::pod(namespace, "client", [198, 18, 17, 2]));
    let found = resolve(state, zone, &client, (name, family), &mut StdRng::seed_from_u64(1));
    let Some(Known { canonical, mut addresses }) = found else { return "-".into() };
    addresses.sort();
    let list: Vec<String> = addresses.iter().map(ToString::to_string).collect();
    let list = if list.is_empty() { "none".to_owned() } else { list.join(" ") };
    canonical.map(|name| format!("{name}: ")).unwrap_or_default() + &list
}

fn check(name: &str, v4: &str, v6: &str) {
    let state = mesh();
    let found = (ask(&state, &zone(), "shop", name, Family::V4), ask(&state, &zone(), "shop", name, Family::V6));
    assert_eq!(found, (v4.to_owned(), v6.to_owned()), "{name}");
}

#[test]
fn every_form_of_a_services_name() {
    for name in ["web", "web.shop", "web.shop.svc", "web.shop.svc.cluster.local"] {
        check(name, "198.19.0.16", "fd00:19::10");
    }
    for name in ["web.bar", "web.bar.svc", "web.bar.svc.cluster.local"] {
        check(name, "198.19.0.17", "none");
    }
    check("only", "-", "-");
}

#[test]
fn a_wrong_family_is_known_and_empty() {
    check("only.bar.svc.cluster.local", "198.19.0.18", "none");
    // Without a CNAME: there is nothing to name.
    check("only.bar.shop.svc.cluster.local", "only.bar: 198.19.0.18", "none");
}

#[test]
fn search_domains_come_off_with_a_cname() {
    check("api.example.com", "240.240.0.1", "2001:2::1");
    for search in ["shop.svc.cluster.local", "svc.cluster.local", "cluster.local"] {
        check(&format!("api.example.com.{search}"), "api.example.com: 240.240.0.1", "api.example.com: 2001:2::1");
    }
    check("api.example.com.bar.svc.cluster.local", "-", "-");
    check("web.bar.shop.svc.cluster.local", "web.bar: 198.19.0.17", "none");
}

#[test]
fn wildcards_answer_below_them_without_cname() {
    check("a.wild.example.com", "240.240.0.2", "none");
    check("a.b.wild.example.com", "240.240.0.2", "none");
    check("a.wild.example.com.shop.svc.cluster.local", "240.240.0.2", "none");
    check("exact.wild.example.com", "240.240.0.3", "none");
    check("wild.example.com", "-", "-");
}

#[test]
fn headless_services_answer_with_endpoints() {
    // One address per endpoint; the unhealthy one and the one on another network are left out.
    check("db.data", "198.18.17.11 198.18.17.12", "fd00:18::11");
    check("db.data.svc.cluster.local", "198.18.17.11 198.18.17.12", "fd00:18::11");
    check("none.data.svc.cluster.local", "none", "none");
    // Of a pod with both families only the Service's.
    check("four.data.svc.cluster.local", "198.18.17.21", "none");
}

#[test]
fn what_the_mesh_cannot_answer_goes_on() {
    check("nobody.example.com", "-", "-");
    check("no-address.example.com", "-", "-");
    check("range.example.com", "-", "-");
    check("nobody.shop.svc.cluster.local", "-", "-");
    // Pods' and workloads' names are not ours.
    check("client.shop", "-", "-");
    check("db-1.db.data.svc.cluster.local", "-", "-");
}

#[test]
fn only_the_clients_network_counts() {
    check("far.shop.svc.cluster.local", "none", "none");
}

#[test]
fn visibility_hides() {
    let state = mesh();
    assert_eq!(ask(&state, &zone(), "shop", "hidden.example.com", Family::V4), "-");
    assert_eq!(ask(&state, &zone(), "ext", "hidden.example.com", Family::V4), "240.240.0.4");
}

#[test]
fn one_hostname_in_several_namespaces() {
    let state = mesh();
    let of = |preferred: Option<&str>, namespace: &str, name: &str| {
        let zone = Zone { preferred_namespace: preferred.map(Into::into), ..zone() };
        ask(&state, &zone, namespace, name, Family::V4)
    };
    assert_eq!(of(None, "shop", "shared.example.com"), "240.240.1.3", "the client's own");
    assert_eq!(of(Some("aaa"), "bar", "shared.example.com"), "240.240.1.2", "then the canonical one");
    assert_eq!(of(Some("zzz"), "bar", "preferred.example.com"), "240.240.2.2", "then the preferred namespace's");
    assert_eq!(of(None, "bar", "preferred.example.com"), "240.240.2.1", "then the first");
    assert_eq!(of(None, "shop", "partly.example.com"), "240.240.3.1", "among those that have an address");
}

#[test]
fn without_ipv6_there_are_no_such_addresses() {
    let state = mesh();
    let zone = Zone { ipv6: false, ..zone() };
    assert_eq!(ask(&state, &zone, "shop", "web", Family::V6), "none");
    assert_eq!(ask(&state, &zone, "shop", "web", Family::V4), "198.19.0.16");
    assert_eq!(ask(&state, &zone, "shop", "db.data", Family::V6), "none");
}

#[test]
fn another_cluster_domain() {
    let mut state = MeshState::default();
    state.apply(Update::Service(testing::service(service("shop", "web.shop.svc.corp.test", &["198.19.0.16"]))));
    let zone = Zone { domain: "corp.test".into(), ..zone() };
    for name in ["web", "web.shop.svc", "web.shop.svc.corp.test"] {
        assert_eq!(ask(&state, &zone, "shop", name, Family::V4), "198.19.0.16");
    }
    assert_eq!(ask(&state, &zone, "shop", "web.shop.svc.cluster.local", Family::V4), "-");
}

#[test]
fn answers_come_in_every_order() {
    let state = mesh();
    let client = testing::workload(testing::pod("shop", "client", [198, 18, 17, 2]));
    let mut rng = StdRng::seed_from_u64(7);
    let firsts: std::collections::HashSet<IpAddr> = (0..64)
        .filter_map(|_| {
            resolve(&state, &zone(), &client, ("db.data", Family::V4), &mut rng)?.addresses.first().copied()
        })
        .collect();
    assert_eq!(firsts.len(), 2);
}

proptest! {
    #[test]
    fn any_name_is_answered_without_panic(name in "[a-z*_.-]{1,300}", v6: bool) {
        let client = testing::workload(testing::pod("shop", "client", [198, 18, 17, 2]));
        let family = if v6 { Family::V6 } else { Family::V4 };
        let found = resolve(&mesh(), &zone(), &client, (&name, family), &mut StdRng::seed_from_u64(1));
        for ip in found.iter().flat_map(|known| &known.addresses) {
            prop_assert!(family.has(*ip));
        }
    }
}
