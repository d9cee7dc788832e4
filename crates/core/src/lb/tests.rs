//! Eligibility, ranks and weights, as a table and against a naive oracle.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    fixtures::{gateway_ip, ip, mesh, pod, service},
    service::IpFamilies,
    workload::{ApplicationTunnel, ApplicationTunnelProtocol, Locality},
};

fn client() -> Workload {
    let locality = Locality { region: "eu".into(), zone: "eu-1".into(), subzone: "rack".into() };
    pod("client", &["10.0.0.9"]).with(|w| {
        w.locality = locality;
        w.network = "net".into();
    })
}

/// An endpoint of `ns/h` that shares with the client what `place` says: `net/cluster/region/zone/subzone/node`.
fn endpoint(name: &str, place: &str) -> Workload {
    let parts: Vec<Arc<str>> = place.split('/').map(Into::into).collect();
    pod(name, &["10.0.0.1"]).of("ns/h", &[]).with(|w| {
        w.network = parts[0].clone();
        w.cluster_id = parts[1].clone();
        w.locality = Locality { region: parts[2].clone(), zone: parts[3].clone(), subzone: parts[4].clone() };
        w.node = parts[5].clone();
        w.network_gateway = Some(gateway_ip("10.255.0.1"));
    })
}

fn balanced(mode: Mode, routing_preference: &[Scope]) -> Service {
    let load_balancing = LoadBalancing { mode, routing_preference: routing_preference.to_vec(), ..Default::default() };
    Service { load_balancing, ..service("ns/h", &["10.9.0.1"], &[(80, 8080)]) }
}

/// The names that can be picked, in 200 draws, with the port.
fn picks(service: &Service, endpoints: Vec<Workload>, port: u16, purpose: Purpose, reach: Reach) -> Vec<String> {
    let state = mesh(endpoints, []);
    let mut rng = StdRng::seed_from_u64(1);
    let mut names: Vec<_> = (0..200)
        .filter_map(|_| pick(&state, service, &client(), port, purpose, reach, &mut rng))
        .map(|endpoint| format!("{}:{}", endpoint.workload.name(), endpoint.port))
        .collect();
    names.sort();
    names.dedup();
    names
}

fn names(service: &Service, endpoints: Vec<Workload>) -> Vec<String> {
    picks(service, endpoints, 80, Purpose::Client, Reach::Everywhere)
}

#[test]
fn modes_keep_the_endpoints_that_preferences_choose() {
    use Mode::{Failover, Strict, Unspecified};
    use Scope::{Cluster, Network, Node, Region, Subzone, Zone};
    let all = || {
        vec![
            endpoint("near", "net/Kubernetes/eu/eu-1/rack/n1"),
            endpoint("zone", "net/Kubernetes/eu/eu-1/other/n2"),
            endpoint("region", "net/Kubernetes/eu/eu-2/rack/n3"),
            endpoint("far", "net/c2/us/eu-1/rack/n4"),
            endpoint("remote", "other/Kubernetes/eu/eu-1/rack/n1"),
        ]
    };
    let without =
        |names: &[&str]| all().into_iter().filter(|w| !names.iter().any(|name| w.name() == **name)).collect::<Vec<_>>();
    for (mode, preference, gone, expected) in [
        (Unspecified, &[Region, Zone][..], &[][..], &["far", "near", "region", "remote", "zone"][..]),
        (Strict, &[Node], &[], &["near", "remote"]),
        (Strict, &[Network, Node], &[], &["near"]),
        (Strict, &[Node], &["near", "remote"], &[]),
        // Each scope by its own value: far's zone has the same name.
        (Strict, &[Zone], &[], &["far", "near", "remote", "zone"]),
        (Strict, &[], &[], &["far", "near", "region", "remote", "zone"]),
        (Failover, &[], &[], &["far", "near", "region", "remote", "zone"]),
        (Failover, &[Region, Zone, Subzone, Node], &[], &["near", "remote"]),
        (Failover, &[Region, Zone, Subzone, Node], &["near", "remote"], &["zone"]),
        // Counting stops at the first scope that differs.
        (Failover, &[Region, Zone], &["near", "remote", "zone"], &["region"]),
        (Failover, &[Cluster, Region], &["near", "zone", "region", "remote"], &["far"]),
        // Network first: every local endpoint before any remote one, which still compare among themselves.
        (Failover, &[Network, Region, Zone], &[], &["near", "zone"]),
        (Failover, &[Network, Region, Zone], &["near", "zone", "region"], &["far"]),
        (Failover, &[Network, Region, Zone], &["near", "zone", "region", "far"], &["remote"]),
        // Network later is a scope like any other.
        (Failover, &[Region, Network], &["near", "zone", "region"], &["remote"]),
    ] {
        let expected: Vec<_> = expected.iter().map(|name| format!("{name}:8080")).collect();
        assert_eq!(
            names(&balanced(mode, preference), without(gone)),
            expected,
            "{mode:?} {preference:?} without {gone:?}"
        );
    }
    let remote = endpoint("remote", "other/Kubernetes/us/us-1/x/n9");
    let nearer = endpoint("nearer", "other/Kubernetes/eu/us-1/x/n9");
    assert_eq!(names(&balanced(Failover, &[Network, Region]), vec![remote, nearer]), ["nearer:8080"]);
}

#[test]
fn only_usable_endpoints_are_eligible() {
    let local = || endpoint("e", "net/Kubernetes////");
    let plain = balanced(Mode::Unspecified, &[]);
    let any_health = LoadBalancing { health_policy: HealthPolicy::AllowAll, ..Default::default() };
    let sick = || local().with(|w| w.status = HealthStatus::Unhealthy);
    let bare = || local().with(|w| w.addresses = vec![].into());
    let named = Service { ports: crate::fixtures::port_list(&[(80, 0)]), ..plain.clone() };
    let v6_only = Service { ip_families: IpFamilies::Ipv6Only, ..plain.clone() };
    for (what, service, workload, expected) in [
        ("healthy", plain.clone(), local(), Some("e:8080")),
        ("unhealthy", plain.clone(), sick(), None),
        (
            "unhealthy, but all are allowed",
            Service { load_balancing: any_health, ..plain.clone() },
            sick(),
            Some("e:8080"),
        ),
        ("no address", plain.clone(), bare(), None),
        ("a hostname instead", plain.clone(), bare().with(|w| w.hostname = Some("h".into())), Some("e:8080")),
        ("a gateway, if remote", plain.clone(), bare().with(|w| w.network = "other".into()), Some("e:8080")),
        (
            "remote without one",
            plain.clone(),
            bare().with(|w| {
                w.network = "o".into();
                w.network_gateway = None;
            }),
            None,
        ),
        ("its own port", plain.clone(), local().of("ns/h", &[(80, 9090)]), Some("e:9090")),
        ("its own list without the port", plain.clone(), local().of("ns/h", &[(81, 9090)]), Some("e:8080")),
        ("named port, resolved", named.clone(), local().of("ns/h", &[(80, 7000)]), Some("e:7000")),
        ("named port, unresolved", named.clone(), local(), None),
        ("named port, zero", named, local().of("ns/h", &[(80, 0)]), None),
        ("wrong family", v6_only.clone(), local(), None),
        (
            "one address of the family",
            v6_only,
            local().with(|w| w.addresses = vec![ip("10.0.0.1"), ip("fd00::1")].into()),
            Some("e:8080"),
        ),
        ("no capacity", plain.clone(), local().with(|w| w.capacity = 0), None),
    ] {
        assert_eq!(names(&service, vec![workload]), Vec::from_iter(expected), "{what}");
    }
    assert_eq!(picks(&plain, vec![local()], 81, Purpose::Client, Reach::Everywhere), Vec::<String>::new());
    let remote = endpoint("r", "other/Kubernetes////");
    assert_eq!(picks(&plain, vec![local(), remote.clone()], 80, Purpose::Client, Reach::OwnNetwork), ["e:8080"]);
    assert!(picks(&plain, vec![remote], 80, Purpose::Client, Reach::OwnNetwork).is_empty());
}

#[test]
fn a_waypoint_needs_its_hbone_port_or_an_application_tunnel() {
    let waypoint = service("ns/h", &[], &[(15008, 15008)]);
    let without_port = service("ns/h", &[], &[(80, 8080)]);
    let plain = || endpoint("w", "net/Kubernetes////");
    let application_tunnel = Some(ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port: Some(15088) });
    let sandwiched = plain().with(|w| w.application_tunnel = application_tunnel);
    for (service, workload, expected) in [
        (&waypoint, plain(), Some("w:15008")),
        (&without_port, plain(), None),
        (&without_port, sandwiched, Some("w:15008")),
    ] {
        assert_eq!(
            picks(service, vec![workload], 15008, Purpose::Waypoint, Reach::Everywhere),
            Vec::from_iter(expected)
        );
    }
}

#[test]
fn the_pick_is_random_by_capacity() {
    let capacities = [("a", 0), ("b", 1), ("c", 3), ("d", 6)];
    let endpoints =
        capacities.map(|(name, capacity)| endpoint(name, "net/Kubernetes////").with(|w| w.capacity = capacity));
    let state = mesh(endpoints, []);
    let mut rng = StdRng::seed_from_u64(7);
    let mut counts = BTreeMap::new();
    for _ in 0..10_000 {
        let service = balanced(Mode::Unspecified, &[]);
        let picked = pick(&state, &service, &client(), 80, Purpose::Client, Reach::Everywhere, &mut rng).unwrap();
        *counts.entry(picked.workload.name().to_string()).or_insert(0i32) += 1;
    }
    assert!(!counts.contains_key("a"));
    for (name, expected) in [("b", 1_000), ("c", 3_000), ("d", 6_000)] {
        assert!((counts[name] - expected).abs() < 250, "{counts:?}");
    }
}

/// Of many endpoints some are drawn before all are looked at; that changes nothing in the odds.
#[test]
fn the_pick_among_many_is_random_by_capacity_too() {
    let near = "net/Kubernetes/eu/eu-1/rack/n1";
    let endpoints = (0..4 * MANY).map(|n| {
        // Three quarters aren't near, a few of the others are sick, and capacities differ.
        let place = if n % 4 == 0 { near } else { "net/Kubernetes/us/x/y/n2" };
        endpoint(&format!("e{n}"), place).with(|w| {
            w.uid = format!("{n:03}").into();
            w.capacity = [1, 3, 0, 6][n / 4 % 4];
            w.status = if n % 32 == 28 { HealthStatus::Unhealthy } else { HealthStatus::Healthy };
        })
    });
    let state = mesh(endpoints, []);
    let mut rng = StdRng::seed_from_u64(7);
    for preference in [&[Scope::Region, Scope::Zone][..], &[Scope::Network, Scope::Region]] {
        let service = balanced(Mode::Failover, preference);
        let mut by_capacity = BTreeMap::new();
        for _ in 0..20_000 {
            let picked = pick(&state, &service, &client(), 80, Purpose::Client, Reach::Everywhere, &mut rng).unwrap();
            assert_eq!((&*picked.workload.node, picked.workload.status), ("n1", HealthStatus::Healthy));
            *by_capacity.entry(picked.workload.capacity).or_insert(0i32) += 1;
        }
        // Eight with capacity 1, eight with 3, four with 6: the other four are sick.
        for (capacity, expected) in [(1, 20_000 / 7), (3, 3 * 20_000 / 7), (6, 3 * 20_000 / 7)] {
            assert!((by_capacity[&capacity] - expected).abs() < 500, "{preference:?}: {by_capacity:?}");
        }
    }
}

#[test]
fn capacities_do_not_overflow() {
    let endpoints = ["a", "b", "c"].map(|name| endpoint(name, "net/Kubernetes////").with(|w| w.capacity = u32::MAX));
    assert_eq!(names(&balanced(Mode::Unspecified, &[]), endpoints.to_vec()).len(), 3);
}

// Naively: rank every endpoint by writing out its comparisons.

fn any_endpoint() -> impl Strategy<Value = Workload> {
    let either = |a: &'static str, b: &'static str| proptest::sample::select(vec![a, b]);
    let place = (
        either("net", "other"),
        either("Kubernetes", "c2"),
        either("eu", "us"),
        either("eu-1", "x"),
        either("rack", "y"),
        either("n1", "n2"),
    );
    (place, any::<bool>(), 0u32..3, any::<bool>()).prop_map(
        |((network, cluster, region, zone, subzone, node), healthy, capacity, ported)| {
            let workload = endpoint("e", &format!("{network}/{cluster}/{region}/{zone}/{subzone}/{node}"));
            let status = if healthy { HealthStatus::Healthy } else { HealthStatus::Unhealthy };
            let workload = workload.with(|w| {
                w.status = status;
                w.capacity = capacity;
            });
            if ported { workload.of("ns/h", &[(80, 1234)]) } else { workload }
        },
    )
}

fn oracle(service: &Service, endpoints: &[Workload]) -> Vec<usize> {
    let source = client();
    let agree = |scope: &Scope, w: &Workload| match scope {
        Scope::Network => w.network == source.network,
        Scope::Cluster => w.cluster_id == source.cluster_id,
        Scope::Region => w.locality.region == source.locality.region,
        Scope::Zone => w.locality.zone == source.locality.zone,
        Scope::Subzone => w.locality.subzone == source.locality.subzone,
        Scope::Node => w.node == source.node,
    };
    let preferences = &service.load_balancing.routing_preference;
    let mut ranked = Vec::new();
    for (index, workload) in endpoints.iter().enumerate() {
        let healthy =
            workload.status == HealthStatus::Healthy || service.load_balancing.health_policy == HealthPolicy::AllowAll;
        let ported = service.ports.ports[0].target_port.is_some()
            || workload.services.values().any(|list| !list.ports.is_empty());
        if !healthy || !ported {
            continue;
        }
        let mut rank = 0;
        let mut running = true;
        for (position, scope) in preferences.iter().enumerate() {
            let same = agree(scope, workload);
            if position == 0 && *scope == Scope::Network {
                rank += if same { preferences.len() } else { 0 };
            } else if same && running {
                rank += 1;
            } else {
                running = false;
            }
        }
        match service.load_balancing.mode {
            Mode::Strict if !preferences.iter().all(|scope| agree(scope, workload)) => {}
            Mode::Failover => ranked.push((rank, index)),
            _ => ranked.push((0, index)),
        }
    }
    let best = ranked.iter().map(|(rank, _)| *rank).max();
    ranked
        .into_iter()
        .filter(|(rank, index)| Some(*rank) == best && endpoints[*index].capacity > 0)
        .map(|(_, index)| index)
        .collect()
}

proptest! {
    #[test]
    fn picks_what_the_oracle_allows(
        endpoints in prop_oneof![
            proptest::collection::vec(any_endpoint(), 0..8),
            proptest::collection::vec(any_endpoint(), MANY..2 * MANY),
        ],
        preference in proptest::sample::subsequence(vec![Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node, Scope::Cluster], 0..5).prop_shuffle(),
        mode in proptest::sample::select(vec![Mode::Unspecified, Mode::Strict, Mode::Failover]),
        named: bool,
        all: bool,
        seed: u64,
    ) {
        let endpoints: Vec<_> = endpoints.into_iter().enumerate()
            .map(|(index, w)| w.with(|w| w.uid = format!("{index}").into()))
            .collect();
        let mut service = balanced(mode, &preference);
        if named {
            service.ports = crate::fixtures::port_list(&[(80, 0)]);
        }
        if all {
            service.load_balancing.health_policy = HealthPolicy::AllowAll;
        }
        let allowed = oracle(&service, &endpoints);
        let state = mesh(endpoints, []);
        let mut rng = StdRng::seed_from_u64(seed);
        for _ in 0..8 {
            let picked = pick(&state, &service, &client(), 80, Purpose::Client, Reach::Everywhere, &mut rng);
            match picked {
                None => prop_assert!(allowed.is_empty(), "nothing picked of {allowed:?}"),
                Some(endpoint) => prop_assert!(allowed.contains(&endpoint.workload.uid.to_string().parse().unwrap()), "{} not of {allowed:?}", endpoint.workload.uid),
            }
        }
    }
}
