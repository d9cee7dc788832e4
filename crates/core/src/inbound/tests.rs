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
        let bound_pod = Workload { waypoint: Some(gateway), ..pod("b", &["10.0.0.2"]) };
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
        let stranger = Workload { uid: "x".into(), service_account: "x".into(), ..pod("a", &["10.0.0.1"]) };
        assert_eq!(ask(&state, &stranger, "10.0.0.2:80"), "destination_mismatch");
    }
}

#[test]
fn an_application_tunnel_takes_any_address_at_its_port() {
    let tunnel = |port| Some(ApplicationTunnel { protocol: ApplicationTunnelProtocol::Proxy, port });
    let state = mesh([a()], [web()]);
    let with_port = Workload { application_tunnel: tunnel(Some(15088)), ..a() };
    let without = Workload { application_tunnel: tunnel(None), ..a() };
    assert_eq!(ask(&state, &with_port, "192.0.2.1:80"), "10.0.0.1:15088");
    assert_eq!(ask(&state, &with_port, "web:82"), "10.0.0.1:15088 @ ns/web");
    assert_eq!(ask(&state, &without, "192.0.2.1:80"), "10.0.0.1:80");
    assert_eq!(ask(&state, &without, "192.0.2.1:15006"), "illegal_port");
}
