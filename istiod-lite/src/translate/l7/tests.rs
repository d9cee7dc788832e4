use aquifer_objects::parse::parse_object;
use serde_json::{Value, json};

use super::Facts;
use crate::translate::Mesh;
use crate::translate::labels::Interner;
use crate::translate::status::{Found, Subject, is_ours};

/// In this mesh `bound` has a waypoint before it, `plain` has none, and nobody else is there.
fn look(subject: &Subject) -> Found {
    let name = match subject {
        Subject::Service((namespace, name)) if **namespace == *"shop" => name,
        Subject::ServiceEntry((_, name)) | Subject::Host(name) | Subject::GatewayClass(name) => name,
        Subject::Gateway((_, name)) if **name == *"wp" => return Found::Bound("shop/wp".to_owned()),
        Subject::Gateway((_, name)) if **name == *"edge" => return Found::Wrong("no waypoint".to_owned()),
        Subject::Delegate((_, name)) if **name == *"delegated" => return Found::Bound("shop/root".to_owned()),
        _ => return Found::Missing,
    };
    match &**name {
        "bound" | "bound.test" => Found::Bound("shop/wp".to_owned()),
        "plain" | "plain.test" => Found::Unbound,
        _ => Found::Missing,
    }
}

/// Type, status, reason of each condition, and all messages.
fn said(api_version: &str, kind: &str, name: &str, spec: Value) -> (Vec<(String, String, String)>, String) {
    let value =
        json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": name, "namespace": "shop"}, "spec": spec});
    let facts = Facts::of(&parse_object(value).unwrap(), &mut Interner::default()).unwrap();
    let conditions = facts.conditions(&Mesh::default(), &look);
    assert!(conditions.iter().all(|condition| is_ours(&condition.type_)));
    let messages: Vec<String> = conditions.iter().map(|condition| condition.message.clone()).collect();
    (conditions.into_iter().map(|c| (c.type_, c.status, c.reason)).collect(), messages.join("\n"))
}

const NETWORKING: &str = "networking.istio.io/v1";
const SECURITY: &str = "security.istio.io/v1";
const GATEWAYS: &str = "gateway.networking.k8s.io/v1";

#[test]
fn kinds_without_effect_say_what_to_use_instead() {
    let server = json!({"servers": [{"port": {"number": 80, "name": "http", "protocol": "HTTP"}, "hosts": ["*"]}]});
    let cases = [
        (NETWORKING, "Gateway", server, "it has waypoints only, and no ingress or egress of its own"),
        (NETWORKING, "Sidecar", json!({}), "serviceEntryVisibility"),
        ("networking.istio.io/v1alpha3", "EnvoyFilter", json!({}), "HTTPRoute"),
        ("extensions.istio.io/v1alpha1", "WasmPlugin", json!({"url": "oci://x"}), "proxies run no plugins"),
        (
            "extensions.istio.io/v1alpha1",
            "TrafficExtension",
            json!({"wasm": {"url": "oci://x"}}),
            "proxies run no plugins",
        ),
        ("networking.istio.io/v1beta1", "ProxyConfig", json!({}), "parametersRef"),
        (NETWORKING, "WorkloadGroup", json!({"template": {}}), "WorkloadEntry"),
    ];
    for (api_version, kind, spec, instead) in cases {
        let (conditions, message) = said(api_version, kind, "x", spec);
        assert_eq!(conditions, [("Accepted".to_owned(), "False".to_owned(), "NotSupported".to_owned())], "{kind}");
        assert!(message.contains(instead), "{kind}: {message}");
        // Nobody is sent to what has no effect itself.
        assert!(!message.contains("CUSTOM") && !message.contains("external authorizer"), "{kind}: {message}");
        for waits in ["HTTPRoute", "Telemetry"] {
            assert!(!message.contains(waits) || message.contains("once waypoints"), "{kind}: {message}");
        }
    }
}

#[test]
fn what_acts_on_requests_says_what_it_lacks() {
    let vs = |hosts: Value| json!({"hosts": hosts, "http": [{"route": [{"destination": {"host": "bound"}}]}]});
    let route = |parents: Value| json!({"parentRefs": parents, "rules": []});
    let service = |name: &str| json!({"group": "", "kind": "Service", "name": name});
    let target = |name: &str| json!({"targetRefs": [{"group": "", "kind": "Service", "name": name}]});
    let istio_gateway =
        json!({"hosts": ["bound"], "gateways": ["edge"], "http": [{"route": [{"destination": {"host": "bound"}}]}]});
    let cases = [
        // Kind, name, spec, type, reason, a part of the message.
        (
            NETWORKING,
            "VirtualService",
            "x",
            vs(json!(["bound"])),
            "WaypointAccepted",
            "NotSupported",
            "bound to shop/wp",
        ),
        (
            NETWORKING,
            "VirtualService",
            "x",
            vs(json!(["bound.shop.svc.cluster.local"])),
            "WaypointAccepted",
            "NotSupported",
            "shop/wp",
        ),
        (
            NETWORKING,
            "VirtualService",
            "x",
            vs(json!(["plain"])),
            "WaypointAccepted",
            "NoWaypoint",
            "plain.shop.svc.cluster.local is not bound",
        ),
        (
            NETWORKING,
            "VirtualService",
            "x",
            vs(json!(["plain.test", "bound.test"])),
            "WaypointAccepted",
            "NotSupported",
            "shop/wp",
        ),
        (
            NETWORKING,
            "VirtualService",
            "x",
            vs(json!(["nobody"])),
            "WaypointAccepted",
            "UnknownHost",
            "nobody.shop.svc.cluster.local",
        ),
        (
            NETWORKING,
            "VirtualService",
            "x",
            istio_gateway,
            "WaypointAccepted",
            "NotSupported",
            "no ingress or egress of its own",
        ),
        (
            NETWORKING,
            "VirtualService",
            "x",
            json!({"http": [{"route": [{"destination": {"host": "bound"}}]}]}),
            "Accepted",
            "NoHosts",
            "no hosts: add `hosts: [my-service]`",
        ),
        (
            NETWORKING,
            "VirtualService",
            "delegated",
            json!({"http": [{"route": [{"destination": {"host": "bound"}}]}]}),
            "WaypointAccepted",
            "NotSupported",
            "delegated to by shop/root",
        ),
        (
            NETWORKING,
            "DestinationRule",
            "x",
            json!({"host": "plain"}),
            "WaypointAccepted",
            "NoWaypoint",
            "istio.io/use-waypoint",
        ),
        (
            NETWORKING,
            "DestinationRule",
            "x",
            json!({"host": "nobody.test"}),
            "WaypointAccepted",
            "UnknownHost",
            "nobody.test",
        ),
        (
            SECURITY,
            "RequestAuthentication",
            "x",
            target("bound"),
            "WaypointAccepted",
            "NotSupported",
            "the application must check tokens",
        ),
        (
            SECURITY,
            "RequestAuthentication",
            "x",
            target("plain"),
            "WaypointAccepted",
            "AncestorNotBound",
            "Service shop/plain is not bound",
        ),
        (
            SECURITY,
            "RequestAuthentication",
            "x",
            target("nobody"),
            "WaypointAccepted",
            "TargetNotFound",
            "Service shop/nobody was not found",
        ),
        (SECURITY, "RequestAuthentication", "x", json!({}), "WaypointAccepted", "NotSupported", "targetRefs"),
        ("telemetry.istio.io/v1", "Telemetry", "x", json!({}), "WaypointAccepted", "NotSupported", "targetRefs"),
        (GATEWAYS, "HTTPRoute", "x", route(json!([service("bound")])), "Accepted", "NotSupported", "shop/wp"),
        (GATEWAYS, "HTTPRoute", "x", route(json!([service("plain")])), "Accepted", "NoWaypoint", "Service shop/plain"),
        (GATEWAYS, "GRPCRoute", "x", route(json!([service("nobody")])), "Accepted", "BackendNotFound", "parentRefs"),
        (GATEWAYS, "HTTPRoute", "x", route(json!([{"name": "wp"}])), "Accepted", "NotSupported", "shop/wp"),
    ];
    for (api_version, kind, name, spec, type_, reason, part) in cases {
        let (conditions, message) = said(api_version, kind, name, spec.clone());
        assert_eq!(conditions, [(type_.to_owned(), "False".to_owned(), reason.to_owned())], "{kind} {spec}: {message}");
        assert!(message.contains(part), "{kind} {spec}: {message}");
    }
}

/// A Gateway that is no waypoint has a controller of its own, which answers.
#[test]
fn routes_of_others_are_left_alone() {
    for parent in ["edge", "absent"] {
        let spec = json!({"parentRefs": [{"name": parent}], "rules": []});
        assert_eq!(said(GATEWAYS, "HTTPRoute", "x", spec).0, [], "{parent}");
    }
}

#[test]
fn deprecated_fields_are_named_and_said_to_act() {
    let spec = json!({"host": "plain",
        "trafficPolicy": {"outlierDetection": {"consecutiveErrors": 5}, "portLevelSettings": [{"port": {"number": 80}, "loadBalancer": {"simple": "LEAST_CONN"}}]},
        "subsets": [{"name": "v1", "trafficPolicy": {"loadBalancer": {"simple": "LEAST_CONN"}}}, {"name": "v2"}]});
    let (conditions, message) = said(NETWORKING, "DestinationRule", "x", spec);
    assert_eq!(conditions[1], ("aquifer.dev/Deprecated".to_owned(), "True".to_owned(), "DeprecatedField".to_owned()));
    for part in [
        "trafficPolicy.outlierDetection.consecutiveErrors is deprecated and acts as consecutive5xxErrors",
        "trafficPolicy.portLevelSettings[0].loadBalancer.simple LEAST_CONN is deprecated and acts as LEAST_REQUEST",
        "subsets[0].trafficPolicy.loadBalancer.simple LEAST_CONN",
    ] {
        assert!(message.contains(part), "{message}");
    }
}
