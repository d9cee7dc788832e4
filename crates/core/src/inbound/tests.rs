//! What a CONNECT may ask of a pod.

use super::*;
use crate::{
    fixtures::{gateway_host, gateway_ip, mesh, pod, service},
    workload::ApplicationTunnelProtocol,
};

/// `<upstream> [@ <service>]` or why not, for a CONNECT to pod `a` at 10.0.0.1.
fn ask(state: &MeshState, workload: &Workload, authority: &str) -> String {
    let local = "10.0.0.1:15008".parse().unwrap();
    match route(state, &Arc::new(workload.clone()), local, &authority.parse().unwrap(), None) {
        Ok(route) => match route.service {
            Some(service) => format!("{} @ {}", route.upstream, service.key),
            None => route.upstream.to_string(),
        },
        Err(reason) => reason.to_string(),
    }
}

fn a() -> Workload {
    pod("a", &["10.0.0.1", "fd00::1"]).of("ns/web", &[(81, 8181)])
}

fn web() -> Service {
    service("ns/web", &["10.9.0.1"], &[(80, 8080), (81, 0), (82, 0), (83, 15008)])
}

#[test]
fn only_this_pods_address_and_known_hostnames_are_served() {
    let state = mesh([a(), pod("b", &["10.0.0.2"])], [web()]);
    for (authority, expected) in [
        ("10.0.0.1:80", "10.0.0.1:80"),
        ("[::ffff:10.0.0.1]:80", "10.0.0.1:80"),
        // Another address of the pod is not the one the connection came to.
        ("[fd00::1]:80", "destination_mismatch"),
        ("10.0.0.2:80", "destination_mismatch"),
        ("10.9.0.1:80", "destination_mismatch"),
        ("127.0.0.1:80", "destination_mismatch"),
        ("[::1]:80", "destination_mismatch"),
        ("192.0.2.1:80", "destination_mismatch"),
        ("web:80", "10.0.0.1:8080 @ ns/web"),
        ("web:81", "10.0.0.1:8181 @ ns/web"),
        ("web:82", "port_unknown"),
        ("web:84", "port_unknown"),
        ("unknown.example:80", "service_unknown"),
    ] {
        assert_eq!(ask(&state, &a(), authority), expected, "{authority}");
    }
}

#[test]
fn the_proxys_own_ports_are_never_reached() {
    let state = mesh([a()], [web()]);
    for authority in ["10.0.0.1:15001", "10.0.0.1:15006", "10.0.0.1:15008", "web:83"] {
        assert_eq!(ask(&state, &a(), authority), "illegal_port", "{authority}");
    }
    assert_eq!(ask(&state, &a(), "10.0.0.1:15053"), "10.0.0.1:15053");
    for (destination, expected) in [
        ("10.0.0.1:80", Ok("10.0.0.1:80")),
        ("[::ffff:10.0.0.1]:80", Ok("10.0.0.1:80")),
        ("10.0.0.1:15006", Err(Reason::IllegalPort)),
        ("[fd00::1]:15008", Err(Reason::IllegalPort)),
    ] {
        let expected = expected.map(|addr| addr.parse().unwrap());
        assert_eq!(passthrough(destination.parse().unwrap()), expected, "{destination}");
    }
}

#[test]
fn a_waypoint_takes_what_is_bound_to_it_and_nothing_else() {
    let gateways = [gateway_host("ns/wp"), gateway_ip("10.9.1.1"), gateway_ip("10.0.0.1")];
    for gateway in gateways {
        let bound = Service { waypoint: Some(gateway.clone()), ..web() };
        let bound_pod = pod("b", &["10.0.0.2"]).with(|w| w.waypoint = Some(gateway));
        let other = service("ns/other", &["10.9.0.2"], &[(80, 80)]);
        let waypoint = pod("a", &["10.0.0.1"]).of("ns/wp", &[]);
        let services = [bound, other, service("ns/wp", &["10.9.1.1"], &[(15008, 15008)])];
        let state = mesh([waypoint.clone(), bound_pod, pod("c", &["10.0.0.3"])], services);
        for (authority, expected) in [
            ("10.9.0.1:80", "10.0.0.1:80 @ ns/web"),
            ("10.0.0.2:80", "10.0.0.1:80"),
            ("10.9.0.2:80", "destination_mismatch"),
            ("10.0.0.3:80", "destination_mismatch"),
        ] {
            assert_eq!(ask(&state, &waypoint, authority), expected, "{authority}");
        }
        let stranger = pod("a", &["10.0.0.1"]).with(|w| {
            w.uid = "x".into();
            w.service_account = "x".into();
        });
        assert_eq!(ask(&state, &stranger, "10.0.0.2:80"), "destination_mismatch");
    }
}

#[test]
fn an_application_tunnel_takes_any_address_at_its_port() {
    let tunnel = |port| Some(ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port });
    let state = mesh([a()], [web()]);
    let with_port = a().with(|w| w.application_tunnel = tunnel(Some(15088)));
    let without = a().with(|w| w.application_tunnel = tunnel(None));
    assert_eq!(ask(&state, &with_port, "192.0.2.1:80"), "10.0.0.1:15088");
    assert_eq!(ask(&state, &with_port, "web:82"), "10.0.0.1:15088 @ ns/web");
    assert_eq!(ask(&state, &without, "192.0.2.1:80"), "10.0.0.1:80");
    assert_eq!(ask(&state, &without, "192.0.2.1:15006"), "illegal_port");
}

#[test]
fn only_a_proxy_that_takes_headers_is_reached_on_loopback() {
    use ApplicationTunnelProtocol::{None as Plain, Proxy};
    let dual = Service { addresses: service("ns/web", &["fd09::1", "10.9.0.1"], &[]).addresses, ..web() };
    let state = mesh([a()], [dual, service("ns/headless", &[], &[(80, 8080)])]);
    // Tunnel, our end, authority, LOCALHOST_APP_TUNNEL → address, as the client, header; what it says was asked for.
    for (tunnel, local, authority, localhost, expected) in [
        (Some(Proxy), "10.0.0.1", "192.0.2.1:80", true, "127.0.0.1:15088 false true 192.0.2.1:80"),
        (Some(Proxy), "fd00::1", "[2001:db8::1]:80", true, "[::1]:15088 false true [2001:db8::1]:80"),
        (Some(Proxy), "10.0.0.1", "192.0.2.1:80", false, "10.0.0.1:15088 true true 192.0.2.1:80"),
        (Some(Proxy), "fd00::1", "web:80", true, "[::1]:15088 false true 10.9.0.1:80"),
        (Some(Proxy), "10.0.0.1", "headless:80", true, "127.0.0.1:15088 false true 10.0.0.1:80"),
        (Some(Plain), "10.0.0.1", "192.0.2.1:80", true, "10.0.0.1:15088 true false 192.0.2.1:80"),
        (None, "10.0.0.1", "10.0.0.1:80", true, "10.0.0.1:80 true false 10.0.0.1:80"),
        (None, "10.0.0.1", "web:80", false, "10.0.0.1:8080 true false 10.9.0.1:80"),
    ] {
        let application_tunnel = tunnel.map(|protocol| ApplicationTunnel { protocol, port: Some(15088) });
        let workload = Arc::new(a().with(|w| w.application_tunnel = application_tunnel));
        let local = SocketAddr::new(local.parse().unwrap(), 15008);
        let route = route(&state, &workload, local, &authority.parse().unwrap(), None).unwrap();
        // Policies judge the pod's address, whatever is dialled.
        assert_eq!(route.upstream.ip(), local.ip());
        let Hop { address, as_client, proxy_header } = route.hop(localhost);
        let got = format!("{address} {as_client} {proxy_header} {}", route.asked);
        assert_eq!(got, expected, "{tunnel:?} {authority} {localhost}");
    }
}

#[test]
fn on_demand_what_decides_is_asked_for_first() {
    let check = |state: &MeshState, authority: &str, known: &[&str], expected: &str| {
        let is_known = |key: &Key| known.contains(&key.to_string().as_str());
        let local = "10.0.0.1:15008".parse().unwrap();
        let authority: Authority = authority.parse().unwrap();
        let got = match route_on_demand(state, &Arc::new(a()), local, &authority, None, &is_known) {
            Ok(route) => route.upstream.to_string(),
            Err(Unroutable::Need(key)) => format!("ask {key}"),
            Err(Unroutable::Reject(reason)) => reason.to_string(),
        };
        assert_eq!(got, expected, "{authority} knowing {known:?}");
    };
    let alone = mesh([a()], []);
    check(&alone, "10.0.0.1:80", &[], "10.0.0.1:80");
    check(&alone, "10.9.5.1:80", &[], "ask /10.9.5.1");
    check(&alone, "10.9.5.1:80", &["/10.9.5.1"], "destination_mismatch");
    check(&alone, "web:81", &[], "ask ns/web");
    check(&alone, "web:81", &["ns/web"], "service_unknown");
    check(&alone, "other:81", &[], "service_unknown");
    // A service whose waypoint we might be.
    let bound = || Service { waypoint: Some(gateway_host("ns/wp")), ..service("ns/shop", &["10.9.5.1"], &[(80, 80)]) };
    check(&mesh([a()], [bound()]), "10.9.5.1:80", &[], "ask ns/wp");
    check(&mesh([a()], [bound()]), "10.9.5.1:80", &["ns/wp"], "destination_mismatch");
    let ours = mesh([a().of("ns/wp", &[])], [bound(), service("ns/wp", &[], &[(15008, 15008)])]);
    check(&ours, "10.9.5.1:80", &[], "10.0.0.1:80");
    let others = mesh([a()], [bound(), service("ns/wp", &[], &[(15008, 15008)])]);
    check(&others, "10.9.5.1:80", &[], "destination_mismatch");
}
