//! Each rule of outbound routing: what is known, what is asked, where it goes.

use proptest::prelude::*;
use rand::{SeedableRng, rngs::StdRng};

use super::*;
use crate::{
    fixtures::{
        any::{ADDRESSES, NAMESPACES, any_update},
        gateway_host, gateway_ip, ip, mesh, pod, service,
    },
    service::{LoadBalancing, Visibility, WeightedWaypoint},
    workload::{HealthStatus, NetworkMode},
};

fn client() -> Workload {
    pod("client", &["10.0.0.9", "fd00::9"])
}

fn plain(name: &str, addresses: &[&str]) -> Workload {
    pod(name, addresses).with(|w| w.tunnel_protocol = TunnelProtocol::None)
}

fn ask(state: &MeshState, source: Workload, destination: &str) -> Resolution {
    let conn = OutboundConn {
        source: Arc::new(source),
        network: "".into(),
        destination: destination.parse().unwrap(),
        preferred_service_namespace: None,
    };
    resolve(state, &conn, &mut StdRng::seed_from_u64(3))
}

/// `tcp <hop>` or `hbone <hop> <authority> <expected service accounts>`, then `> <workload>` and `@ <service>`; or why not.
fn text(resolution: &Resolution) -> String {
    let name =
        |workload: &Option<Arc<Workload>>| workload.as_ref().map(|w| format!(" > {}", w.name())).unwrap_or_default();
    let key = |service: &Option<Arc<Service>>| service.as_ref().map(|s| format!(" @ {}", s.key)).unwrap_or_default();
    match resolution {
        Resolution::Route(route) => {
            let how = match &route.tunnel {
                Tunnel::Passthrough => format!("tcp {}", route.next_hop),
                Tunnel::Hbone { authority, expect } => {
                    let who: Vec<_> = expect.iter().map(|id| &*id.service_account).collect();
                    format!("hbone {} {authority} {}", route.next_hop, who.join(","))
                }
            };
            format!("{how}{}{}", name(&route.destination), key(&route.service))
        }
        Resolution::Need(Need::Dns(pending)) => format!("dns {}", pending.hostname()),
        Resolution::Need(Need::Resource(key)) => format!("ask {key}"),
        Resolution::Reject(reject) => format!("{}{}{}", reject.reason, name(&reject.destination), key(&reject.service)),
    }
}

#[track_caller]
fn check(state: &MeshState, destination: &str, expected: &str) {
    assert_eq!(text(&ask(state, client(), destination)), expected, "to {destination}");
}

fn web() -> Service {
    service("ns/web", &["10.9.0.1", "fd09::1"], &[(80, 8080)])
}

#[test]
fn what_is_not_known_passes_through() {
    let state = mesh([client()], []);
    check(&state, "192.0.2.1:443", "tcp 192.0.2.1:443");
    check(&state, "[::ffff:192.0.2.1]:443", "tcp 192.0.2.1:443");
    let host = pod("host", &["10.0.0.1"]).with(|w| w.network_mode = NetworkMode::HostNetwork);
    check(&mesh([host], []), "10.0.0.1:80", "tcp 10.0.0.1:80");
}

#[test]
fn our_own_ports_are_refused_where_they_are_the_pods_own() {
    let state = mesh([], []);
    for port in [15001, 15006, 15008] {
        check(&state, &format!("127.0.0.1:{port}"), "illegal_port");
        check(&state, &format!("[::1]:{port}"), "illegal_port");
        check(&state, &format!("[::ffff:127.0.0.1]:{port}"), "illegal_port");
        check(&state, &format!("192.0.2.1:{port}"), &format!("tcp 192.0.2.1:{port}"));
    }
    check(&state, "127.0.0.1:15053", "tcp 127.0.0.1:15053");

    // The pod's own addresses, whether the mesh knows them, whatever the pod speaks, and through a service too.
    let own = |w: Workload| w.with(|w| w.addresses = client().addresses);
    let loops = service("ns/loops", &["10.9.0.2"], &[(80, 15006), (81, 15053)]);
    let through = Service { load_balancing: LoadBalancing { mode: Mode::Passthrough, ..Default::default() }, ..web() };
    let states = [
        mesh([], []),
        mesh([client()], []),
        mesh([own(plain("client", &[])).of("ns/loops", &[])], [loops]),
        mesh([], [Service { addresses: service("ns/own", &["10.0.0.9", "fd00::9"], &[]).addresses, ..through }]),
    ];
    for state in &states {
        for port in [15001, 15006, 15008] {
            check(state, &format!("10.0.0.9:{port}"), "illegal_port");
            check(state, &format!("[fd00::9]:{port}"), "illegal_port");
            check(state, &format!("[::ffff:10.0.0.9]:{port}"), "illegal_port");
        }
    }
    check(&states[2], "10.9.0.2:80", "illegal_port > client @ ns/loops");
    check(&states[2], "10.9.0.2:81", "tcp 10.0.0.9:15053 > client @ ns/loops");
    check(&states[2], "10.0.0.9:15053", "tcp 10.0.0.9:15053 > client");
    // Others' are theirs to refuse.
    check(&mesh([plain("b", &["10.0.0.2"])], []), "10.0.0.2:15006", "tcp 10.0.0.2:15006 > b");
}

#[test]
fn a_workload_gets_what_it_speaks() {
    let state = mesh([pod("a", &["10.0.0.1", "fd00::1"]), plain("b", &["10.0.0.2"])], []);
    check(&state, "10.0.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:80 a > a");
    check(&state, "[fd00::1]:80", "hbone [fd00::1]:15008 [fd00::1]:80 a > a");
    check(&state, "10.0.0.2:80", "tcp 10.0.0.2:80 > b");
    // The same node makes no difference, nor does the pod itself.
    assert_eq!(text(&ask(&state, pod("a", &["10.0.0.1"]), "10.0.0.1:80")), "hbone 10.0.0.1:15008 10.0.0.1:80 a > a");
}

#[test]
fn a_service_goes_to_an_endpoint() {
    let san = Identity::new("cluster.local", "ns", "extra");
    let endpoint = || pod("a", &["10.0.0.1", "fd00::1"]).of("ns/web", &[]);
    let state = mesh([endpoint()], [Service { subject_alt_names: vec![san], ..web() }]);
    check(&state, "10.9.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:8080 a,extra > a @ ns/web");
    check(&state, "[fd09::1]:80", "hbone [fd00::1]:15008 [fd00::1]:8080 a,extra > a @ ns/web");
    check(&state, "10.9.0.1:81", "no_healthy_upstream @ ns/web");
    let state = mesh([plain("b", &["10.0.0.2"]).of("ns/web", &[(80, 9090)])], [web()]);
    check(&state, "10.9.0.1:80", "tcp 10.0.0.2:9090 > b @ ns/web");
}

#[test]
fn a_known_service_without_endpoints_is_refused_not_passed_through() {
    check(&mesh([], [web()]), "10.9.0.1:80", "no_healthy_upstream @ ns/web");
    let sick = pod("a", &["10.0.0.1"]).with(|w| w.status = HealthStatus::Unhealthy).of("ns/web", &[]);
    check(&mesh([sick], [web()]), "10.9.0.1:80", "no_healthy_upstream @ ns/web");
    // One that the client may not see is not known to it.
    let hidden = Service { visibility: Visibility::Namespace, ..service("x/web", &["10.9.0.1"], &[(80, 80)]) };
    check(&mesh([], [hidden]), "10.9.0.1:80", "tcp 10.9.0.1:80");
}

#[test]
fn passthrough_keeps_the_address_and_names_the_service() {
    let load_balancing = LoadBalancing { mode: Mode::Passthrough, ..Default::default() };
    let external = Service { load_balancing, ..service("ns/ext", &["192.0.2.0/24"], &[(443, 443)]) };
    check(&mesh([], [external]), "192.0.2.9:8443", "tcp 192.0.2.9:8443 @ ns/ext");
}

#[test]
fn families_of_the_service_come_before_those_of_the_client() {
    let dual = || pod("a", &["10.0.0.1", "fd00::1"]).of("ns/web", &[]);
    for (ip_families, destination, expected) in [
        (IpFamilies::Automatic, "10.9.0.1:80", "10.0.0.1:15008"),
        (IpFamilies::Dual, "[fd09::1]:80", "[fd00::1]:15008"),
        (IpFamilies::Ipv4Only, "[fd09::1]:80", "10.0.0.1:15008"),
        (IpFamilies::Ipv6Only, "10.9.0.1:80", "[fd00::1]:15008"),
    ] {
        let state = mesh([dual()], [Service { ip_families, ..web() }]);
        let Resolution::Route(route) = ask(&state, client(), destination) else { panic!("a route") };
        assert_eq!(route.next_hop.to_string(), expected, "{ip_families:?} {destination}");
    }
    // A single-stack endpoint serves both.
    let state = mesh([pod("a", &["fd00::1"]).of("ns/web", &[])], [web()]);
    check(&state, "10.9.0.1:80", "hbone [fd00::1]:15008 [fd00::1]:8080 a > a @ ns/web");
}

#[test]
fn an_address_that_is_both_uses_the_service_for_endpoints_and_the_workload_for_waypoints() {
    // The address belongs to one of the service's endpoints: if that one is picked, it is used as asked.
    let endpoint = pod("a", &["10.0.0.1", "10.9.0.1"]).of("ns/web", &[]);
    let with_waypoint = Service { waypoint: Some(gateway_host("ns/wp")), ..web() };
    let state = mesh([endpoint], [with_waypoint]);
    check(&state, "10.9.0.1:80", "hbone 10.9.0.1:15008 10.9.0.1:8080 a > a @ ns/web");
}

/// A waypoint `ns/wp` with pods `w` and its service; its workloads say NONE as tunnel protocol.
fn with_waypoint(mut workloads: Vec<Workload>, mut services: Vec<Service>) -> MeshState {
    workloads.push(plain("w", &["10.0.1.1"]).of("ns/wp", &[]));
    services.push(service("ns/wp", &["10.9.1.1"], &[(15008, 15008), (15021, 15021)]));
    mesh(workloads, services)
}

#[test]
fn a_service_with_a_waypoint_goes_there_by_hbone_with_the_authority_as_asked() {
    for gateway in [gateway_host("ns/wp"), gateway_ip("10.9.1.1"), gateway_ip("10.0.1.1")] {
        let bound = Service { waypoint: Some(gateway), ..web() };
        let state = with_waypoint(vec![pod("a", &["10.0.0.1"]).of("ns/web", &[])], vec![bound]);
        check(&state, "10.9.0.1:80", "hbone 10.0.1.1:15008 10.9.0.1:80 w > w @ ns/web");
        check(&state, "[fd09::1]:80", "hbone 10.0.1.1:15008 [fd09::1]:80 w > w @ ns/web");
        // Its endpoint by address has no waypoint of its own.
        check(&state, "10.0.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:80 a > a");
        // The waypoint itself is not sent to itself.
        let from_waypoint = ask(&state, plain("w", &["10.0.1.1"]), "10.9.0.1:80");
        assert_eq!(text(&from_waypoint), "hbone 10.0.0.1:15008 10.0.0.1:8080 a > a @ ns/web");
    }
}

#[test]
fn a_workload_with_a_waypoint_goes_there_unless_the_caller_is_that_waypoint() {
    let bound = pod("a", &["10.0.0.1"]).with(|w| w.waypoint = Some(gateway_host("ns/wp"))).of("ns/web", &[]);
    let state = with_waypoint(vec![bound], vec![web()]);
    check(&state, "10.0.0.1:80", "hbone 10.0.1.1:15008 10.0.0.1:80 w > w");
    // Addressed by service, a workload's waypoint does not count.
    check(&state, "10.9.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:8080 a > a @ ns/web");
    let direct = "hbone 10.0.0.1:15008 10.0.0.1:80 a > a";
    assert_eq!(text(&ask(&state, plain("w", &["10.0.1.1"]), "10.0.0.1:80")), direct);
    // Another resource of the same pod, by identity and address; and not by either alone.
    let alias = plain("w", &["10.0.1.1"]).with(|w| w.uid = "entry".into());
    assert_eq!(text(&ask(&state, alias, "10.0.0.1:80")), direct);
    for source in [
        plain("w", &["10.0.1.2"]).with(|w| w.uid = "x".into()),
        plain("w", &["10.0.1.1"]).with(|w| {
            w.uid = "x".into();
            w.service_account = "thief".into();
        }),
    ] {
        assert_eq!(text(&ask(&state, source, "10.0.0.1:80")), "hbone 10.0.1.1:15008 10.0.0.1:80 w > w");
    }
}

#[test]
fn a_waypoint_that_cannot_be_used_is_refused_and_never_skipped() {
    let bound = |gateway| vec![Service { waypoint: Some(gateway), ..web() }];
    let endpoint = || pod("a", &["10.0.0.1"]).of("ns/web", &[]);
    let refused = "waypoint_unavailable @ ns/web";
    check(&mesh([endpoint()], bound(gateway_host("ns/wp"))), "10.9.0.1:80", refused);
    check(&mesh([endpoint()], bound(gateway_ip("10.9.1.1"))), "10.9.0.1:80", refused);
    let mut services = bound(gateway_host("ns/wp"));
    services.push(service("ns/wp", &[], &[(80, 80)]));
    let state = mesh([endpoint(), plain("w", &["10.0.1.1"]).of("ns/wp", &[])], services);
    check(&state, "10.9.0.1:80", refused);
}

#[test]
fn weighted_waypoints_are_sampled_and_without_weight_the_one_is_used() {
    let state = |weights: [u32; 2]| {
        let destinations = ["ns/wp", "ns/canary"].map(gateway_host);
        let weighted_waypoints =
            destinations.into_iter().zip(weights).map(|(destination, weight)| WeightedWaypoint { destination, weight });
        let bound = Service {
            waypoint: Some(gateway_host("ns/wp")),
            weighted_waypoints: weighted_waypoints.collect(),
            ..web()
        };
        let canary = service("ns/canary", &[], &[(15008, 15008)]);
        with_waypoint(vec![plain("c", &["10.0.1.2"]).of("ns/canary", &[])], vec![bound, canary])
    };
    let share_of_canary = |weights| {
        let state = state(weights);
        let conn = OutboundConn {
            source: Arc::new(client()),
            network: "".into(),
            destination: "10.9.0.1:80".parse().unwrap(),
            preferred_service_namespace: None,
        };
        let mut rng = StdRng::seed_from_u64(5);
        (0..1000).filter(|_| text(&resolve(&state, &conn, &mut rng)).contains("10.0.1.2")).count()
    };
    assert_eq!(share_of_canary([0, 0]), 0);
    assert_eq!(share_of_canary([100, 0]), 0);
    assert_eq!(share_of_canary([0, 1]), 1000);
    assert!((150..250).contains(&share_of_canary([80, 20])));
}

#[test]
fn other_networks_are_refused_unless_an_endpoint_is_here() {
    let remote = || {
        let network_gateway = Some(gateway_ip("10.255.0.1"));
        pod("r", &[])
            .with(|w| {
                w.network = "far".into();
                w.network_gateway = network_gateway;
                w.addresses = vec![].into();
            })
            .of("ns/web", &[])
    };
    check(&mesh([remote()], [web()]), "10.9.0.1:80", "remote_network > r @ ns/web");
    let weightier = remote().with(|w| w.capacity = 1_000_000);
    let state = mesh([weightier, pod("a", &["10.0.0.1"]).of("ns/web", &[])], [web()]);
    check(&state, "10.9.0.1:80", "hbone 10.0.0.1:15008 10.0.0.1:8080 a > a @ ns/web");
    // An address on another network is not the same address here.
    let state = mesh([pod("r", &["10.0.0.1"]).with(|w| w.network = "far".into())], []);
    check(&state, "10.0.0.1:80", "tcp 10.0.0.1:80");
    // A remote waypoint.
    let waypoint = plain("w", &[]).with(|w| {
        w.network = "far".into();
        w.network_gateway = Some(gateway_ip("10.255.0.1"));
    });
    let bound = Service { waypoint: Some(gateway_host("ns/wp")), ..web() };
    let state = mesh([waypoint.of("ns/wp", &[])], [bound, service("ns/wp", &[], &[(15008, 15008)])]);
    check(&state, "10.9.0.1:80", "remote_network > w @ ns/web");
}

#[test]
fn a_hostname_needs_dns_and_goes_on_from_there() {
    let external = plain("db", &[]).with(|w| w.hostname = Some("db.example".into())).of("ns/web", &[]);
    let state = mesh([external], [web()]);
    let pending = || match ask(&state, client(), "10.9.0.1:80") {
        Resolution::Need(Need::Dns(pending)) => pending,
        other => panic!("{}", text(&other)),
    };
    assert_eq!(pending().hostname(), "db.example");
    let found = pending().complete(&[ip("2001:db8::1"), ip("192.0.2.1")]);
    assert_eq!(text(&found), "tcp 192.0.2.1:8080 > db @ ns/web");
    assert_eq!(text(&pending().complete(&[ip("2001:db8::1")])), "tcp [2001:db8::1]:8080 > db @ ns/web");
    assert_eq!(text(&pending().complete(&[])), "dns_failed > db @ ns/web");
}

#[test]
fn on_demand_each_unknown_key_is_asked_for_once() {
    let check = |state: &MeshState, destination: &str, known: &[&str], expected: &str| {
        let conn = OutboundConn {
            source: Arc::new(client()),
            network: "".into(),
            destination: destination.parse().unwrap(),
            preferred_service_namespace: None,
        };
        let is_known = |key: &Key| known.contains(&key.to_string().as_str());
        let resolution = resolve_on_demand(state, &conn, &is_known, &mut StdRng::seed_from_u64(3));
        assert_eq!(text(&resolution), expected, "to {destination} knowing {known:?}");
    };
    let empty = mesh([], []);
    check(&empty, "10.9.0.1:80", &[], "ask /10.9.0.1");
    check(&empty, "[::ffff:10.9.0.1]:80", &[], "ask /10.9.0.1");
    check(&empty, "10.9.0.1:80", &["/10.9.0.1"], "tcp 10.9.0.1:80");
    // What is there needs no question.
    let endpoint = || pod("a", &["10.0.0.1"]).of("ns/web", &[]);
    let there = mesh([endpoint()], [web()]);
    check(&there, "10.0.0.1:80", &[], "hbone 10.0.0.1:15008 10.0.0.1:80 a > a");
    check(&there, "10.9.0.1:80", &[], "hbone 10.0.0.1:15008 10.0.0.1:8080 a > a @ ns/web");
    check(&mesh([], [web()]), "10.9.0.1:80", &[], "no_healthy_upstream @ ns/web");
    // One that the client may not see is answered for, and still not there.
    let hidden = Service { visibility: Visibility::Namespace, ..service("x/web", &["10.9.0.1"], &[(80, 80)]) };
    check(&mesh([], [hidden]), "10.9.0.1:80", &["/10.9.0.1"], "tcp 10.9.0.1:80");
    // Then the waypoint, by either name; one that is not there is not gone around.
    for (gateway, name) in [(gateway_host("ns/wp"), "ns/wp"), (gateway_ip("10.9.1.1"), "/10.9.1.1")] {
        let bound = || Service { waypoint: Some(gateway.clone()), ..web() };
        let state = mesh([endpoint()], [bound()]);
        check(&state, "10.9.0.1:80", &[], &format!("ask {name}"));
        check(&state, "10.9.0.1:80", &[name], "waypoint_unavailable @ ns/web");
        let state = with_waypoint(vec![endpoint()], vec![bound()]);
        check(&state, "10.9.0.1:80", &[], "hbone 10.0.1.1:15008 10.9.0.1:80 w > w @ ns/web");
        let bound = pod("b", &["10.0.0.2"]).with(|w| w.waypoint = Some(gateway.clone()));
        check(&mesh([bound], []), "10.0.0.2:80", &[], &format!("ask {name}"));
    }
    // Our own ports are refused without asking.
    check(&empty, "127.0.0.1:15001", &[], "illegal_port");
}

#[test]
fn a_port_of_zero_is_never_dialled() {
    let named = service("ns/web", &["10.9.0.1"], &[(80, 0)]);
    let state =
        mesh([pod("a", &["10.0.0.1"]).of("ns/web", &[(80, 7000)]), pod("b", &["10.0.0.2"]).of("ns/web", &[])], [named]);
    for seed in 0..20 {
        let conn = OutboundConn {
            source: Arc::new(client()),
            network: "".into(),
            destination: "10.9.0.1:80".parse().unwrap(),
            preferred_service_namespace: None,
        };
        let resolution = resolve(&state, &conn, &mut StdRng::seed_from_u64(seed));
        assert_eq!(text(&resolution), "hbone 10.0.0.1:15008 10.0.0.1:7000 a > a @ ns/web");
    }
}

proptest! {
    /// Whatever is known, and in whatever state: a service that is known is never passed through in silence, a tunnel
    /// always knows whom to expect, and no port is made up.
    #[test]
    fn nothing_known_is_passed_through_by_mistake(
        updates in proptest::collection::vec(any_update(), 0..30),
        to in proptest::sample::select(&ADDRESSES[..]),
        namespace in proptest::sample::select(&NAMESPACES[..]),
        port in proptest::sample::select(vec![80u16, 81, 15008]),
        seed: u64,
    ) {
        let mut state = MeshState::default();
        updates.into_iter().for_each(|update| state.apply(update));
        let source = Arc::new(client().with(|w| w.namespace = namespace.into()));
        let conn = OutboundConn {
            source,
            network: "".into(),
            destination: SocketAddr::new(ip(to), port),
            preferred_service_namespace: None,
        };
        let address = NetworkAddress::new("", ip(to));
        let workload = state.workload_by_addr(&address);
        let service = state.service_by_vip(&address, &View { namespace, preferred_namespace: None });
        match resolve(&state, &conn, &mut StdRng::seed_from_u64(seed)) {
            Resolution::Route(route) => {
                prop_assert!(route.next_hop.port() != 0);
                prop_assert_eq!(route.service.as_ref(), service);
                let known = workload.is_some() || service.is_some();
                prop_assert_eq!(route.destination.is_some(), known);
                match (&route.tunnel, &route.destination) {
                    (Tunnel::Hbone { authority, expect }, Some(destination)) => {
                        prop_assert!(expect.contains(&destination.identity()));
                        prop_assert!(authority.parse::<Authority>().is_ok());
                    }
                    (Tunnel::Passthrough, Some(destination)) => {
                        prop_assert_eq!(destination.tunnel_protocol, TunnelProtocol::None);
                    }
                    (tunnel, None) => {
                        prop_assert_eq!(tunnel, &Tunnel::Passthrough);
                        prop_assert_eq!(route.next_hop, conn.destination);
                    }
                }
            }
            Resolution::Reject(reject) => {
                prop_assert!(workload.is_some() || service.is_some(), "{}", reject.reason);
            }
            Resolution::Need(_) => prop_assert!(false, "no workload has a hostname"),
        }
    }
}
