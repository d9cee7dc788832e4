use std::path::Path;

use aquifer_objects::parse::parse_manifest;

use super::*;

/// What is said about manifests, as `code object: beginning of the message`.
fn said(yaml: &str) -> Vec<(String, String)> {
    let objects = parse_manifest(Path::new("x.yaml"), yaml).expect("manifests");
    let found = analyze(objects, Mesh::default(), Origin::Manifests);
    found.into_iter().map(|finding| (format!("{} {}", finding.code.code, finding.object), finding.message)).collect()
}

/// A document of a manifest.
fn doc(api: &str, kind: &str, name: &str, rest: &str) -> String {
    format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: {name}, namespace: shop}}\n{rest}\n---\n")
}

const NETWORKING: &str = "networking.istio.io/v1";
const SECURITY: &str = "security.istio.io/v1";
const GATEWAY: &str = "gateway.networking.k8s.io/v1";

/// A namespace of the mesh with the service `web`, whose one Deployment is version v1.
fn shop() -> String {
    let deployment = "spec:\n  selector: {matchLabels: {app: web}}\n  template:\n    metadata: {labels: {app: web, version: v1}}\n    spec: {containers: [{name: a, image: b}]}";
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: shop, labels: {{istio.io/dataplane-mode: ambient}}}}\n---\n{}{}",
        doc("apps/v1", "Deployment", "web", deployment),
        doc("v1", "Service", "web", "spec: {clusterIP: 10.0.0.1, selector: {app: web}, ports: [{port: 80}]}"),
    )
}

fn waypoint() -> String {
    doc(
        GATEWAY,
        "Gateway",
        "waypoint",
        "spec: {gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE}]}",
    )
}

#[test]
fn a_good_namespace_is_not_talked_about() {
    let policy = doc(
        SECURITY,
        "AuthorizationPolicy",
        "a",
        "spec: {selector: {matchLabels: {app: web}}, rules: [{from: [{source: {namespaces: [x]}}]}]}",
    );
    let strict = doc(SECURITY, "PeerAuthentication", "a", "spec: {mtls: {mode: STRICT}}");
    assert_eq!(said(&format!("{}{policy}{strict}", shop())), []);
}

#[test]
fn each_thing_has_its_code() {
    let deny = "{action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}";
    let route = |host: &str| format!("spec: {{hosts: [web], http: [{{route: [{{destination: {{{host}}}}}]}}]}}");
    let netpol =
        |spec: &str| doc("networking.k8s.io/v1", "NetworkPolicy", "a", &format!("spec: {{podSelector: {{}}, {spec}}}"));
    let parent = "parentRefs: [{group: '', kind: Service, name: web, port: 80}]";
    let cases: &[(&str, String, &str, &str)] = &[
        ("AQ0001", doc("networking.istio.io/v1alpha3", "EnvoyFilter", "a", "spec: {}"), "EnvoyFilter/shop/a", "no effect"),
        ("AQ0001", doc(NETWORKING, "Gateway", "a", "spec: {}"), "IstioGateway/shop/a", "gateway.networking.k8s.io"),
        (
            "AQ0003",
            doc(SECURITY, "AuthorizationPolicy", "a", "spec: {targetRefs: [{kind: Service, name: web}], rules: [{}]}"),
            "AuthorizationPolicy/shop/a",
            "not bound to a waypoint",
        ),
        ("AQ0003", doc(NETWORKING, "DestinationRule", "a", "spec: {host: web}"), "DestinationRule/shop/a", "use-waypoint"),
        ("AQ0004", doc(NETWORKING, "DestinationRule", "a", "spec: {host: wep}"), "DestinationRule/shop/a", "wep.shop.svc"),
        ("AQ0004", doc(NETWORKING, "VirtualService", "a", &route("host: wep")), "VirtualService/shop/a", "spec.http[0].route[0].destination.host"),
        (
            "AQ0005",
            doc(SECURITY, "AuthorizationPolicy", "a", "spec: {targetRefs: [{kind: Service, name: wep}], rules: [{}]}"),
            "AuthorizationPolicy/shop/a",
            "was not found",
        ),
        ("AQ0006", doc(NETWORKING, "VirtualService", "a", "spec: {}"), "VirtualService/shop/a", "no hosts: add"),
        ("AQ0010", doc(SECURITY, "AuthorizationPolicy", "a", &format!("spec: {deny}")), "AuthorizationPolicy/shop/a", "no enforceable rules"),
        (
            "AQ0011",
            doc(SECURITY, "AuthorizationPolicy", "a", "spec: {action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]}"),
            "AuthorizationPolicy/shop/a",
            "more restrictive",
        ),
        ("AQ0012", doc(SECURITY, "AuthorizationPolicy", "a", "spec: {action: AUDIT, rules: [{}]}"), "AuthorizationPolicy/shop/a", ""),
        (
            "AQ0013",
            doc("v1", "Service", "b", "spec: {clusterIP: 10.0.0.2, ports: [{port: 80}]}").replace("name: b", "name: b, labels: {istio.io/use-waypoint: nobody}"),
            "Service/shop/b",
            "is not ready",
        ),
        (
            "AQ0015",
            doc(NETWORKING, "DestinationRule", "a", "spec: {host: web, trafficPolicy: {outlierDetection: {consecutiveErrors: 1}}}"),
            "DestinationRule/shop/a",
            "consecutive5xxErrors",
        ),
        (
            "AQ0015",
            doc(NETWORKING, "VirtualService", "a", "spec: {hosts: [web], http: [{mirror_percent: 1, route: [{destination: {host: web}}]}]}"),
            "VirtualService/shop/a",
            "mirror_percent is deprecated",
        ),
        ("AQ0020", netpol("policyTypes: [Ingress]"), "NetworkPolicy/shop/a", "15008"),
        ("AQ0021", netpol("policyTypes: [Egress]"), "NetworkPolicy/shop/a", "15008"),
        ("AQ0022", netpol("ingress: [{ports: [{port: 15008}, {port: 80}]}]"), "NetworkPolicy/shop/a", "ports"),
        (
            "AQ0031",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'connectTimeout: 1s'}\n---\n".to_owned(),
            "ConfigMap/istio-system/istio",
            "connectTimeout",
        ),
        (
            "AQ0030",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: istio, namespace: istio-system}\ndata: {mesh: 'trustDomainAliases: 1'}\n---\n".to_owned(),
            "ConfigMap/istio-system/istio",
            "trustDomainAliases",
        ),
        (
            "AQ0040",
            doc(NETWORKING, "DestinationRule", "a", "spec: {host: web, subsets: [{name: v1, labels: {version: v1}}, {name: v2, labels: {version: v2}}]}"),
            "DestinationRule/shop/a",
            "subset v2 of web.shop.svc.cluster.local has no pods",
        ),
        ("AQ0041", doc(NETWORKING, "VirtualService", "a", &route("host: web, subset: v9")), "VirtualService/shop/a", "the subset v9"),
        (
            "AQ0042",
            doc(GATEWAY, "HTTPRoute", "a", &format!("spec: {{{parent}, rules: [{{backendRefs: [{{name: wep, port: 80}}]}}]}}")),
            "HTTPRoute/shop/a",
            "no Service shop/wep",
        ),
        (
            "AQ0043",
            doc(GATEWAY, "HTTPRoute", "a", &format!("spec: {{{parent}, rules: [{{matches: [{{path: {{value: /x}}}}], backendRefs: [{{name: web, port: 80}}]}}]}}"))
                + &doc(GATEWAY, "HTTPRoute", "b", &format!("spec: {{{parent}, rules: [{{matches: [{{path: {{type: PathPrefix, value: /x}}}}], backendRefs: [{{name: web, port: 80}}]}}]}}")),
            "HTTPRoute/shop/b",
            "HTTPRoute shop/a has the same match for Service shop/web",
        ),
        (
            "AQ0043",
            doc(NETWORKING, "VirtualService", "a", &route("host: web")) + &doc(NETWORKING, "VirtualService", "b", &route("host: web")),
            "VirtualService/shop/b",
            "VirtualService shop/a as well",
        ),
        (
            "AQ0044",
            doc(NETWORKING, "DestinationRule", "a", "spec: {host: web, trafficPolicy: {}}")
                + &doc(NETWORKING, "DestinationRule", "b", "spec: {host: web.shop.svc.cluster.local, trafficPolicy: {}}"),
            "DestinationRule/shop/b",
            "shop/a of web.shop.svc.cluster.local has a trafficPolicy as well",
        ),
        (
            "AQ0045",
            doc(SECURITY, "PeerAuthentication", "a", "spec: {selector: {matchLabels: {app: wep}}}"),
            "PeerAuthentication/shop/a",
            "none of the 1 pods of namespace shop has the labels app=wep",
        ),
        (
            "AQ0046",
            "apiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: other}\nspec: {clusterIP: 10.0.0.9, ports: [{port: 80}]}\n---\n".to_owned()
                + &doc(GATEWAY, "HTTPRoute", "a", &format!("spec: {{{parent}, rules: [{{backendRefs: [{{name: far, namespace: other, port: 80}}]}}]}}")),
            "HTTPRoute/shop/a",
            "no ReferenceGrant",
        ),
    ];
    for (code, manifest, object, part) in cases {
        let all = said(&format!("{}{manifest}", shop()));
        let wanted = format!("{code} {object}");
        assert!(
            all.iter().any(|(head, message)| *head == wanted && message.contains(part)),
            "{wanted}: …{part}… not in\n{all:#?}\nfor\n{manifest}"
        );
    }
}

#[test]
fn what_waits_for_waypoints_says_so() {
    let service = "apiVersion: v1\nkind: Service\nmetadata: {name: api, namespace: shop, labels: {istio.io/use-waypoint: waypoint}}\nspec: {clusterIP: 10.0.0.3, selector: {app: web}, ports: [{port: 80}]}\n---\n";
    let rule = doc(NETWORKING, "DestinationRule", "a", "spec: {host: api}");
    let all = said(&format!("{}{}{service}{rule}", shop(), waypoint()));
    let heads: Vec<&str> = all.iter().map(|(head, _)| head.as_str()).collect();
    assert_eq!(heads, ["AQ0002 DestinationRule/shop/a"], "{all:#?}");
}

#[test]
fn a_policy_for_a_waypoint_among_the_manifests_finds_it() {
    let target = "{kind: Gateway, group: gateway.networking.k8s.io, name: waypoint}";
    let policy = doc(SECURITY, "AuthorizationPolicy", "a", &format!("spec: {{targetRefs: [{target}], rules: [{{}}]}}"));
    let all = said(&format!("{}{}{policy}", shop(), waypoint()));
    let heads: Vec<&str> = all.iter().map(|(head, _)| head.as_str()).collect();
    assert_eq!(heads, ["AQ0002 AuthorizationPolicy/shop/a"], "{all:#?}");
}

#[test]
fn a_dry_run_is_no_hole() {
    let policy = doc(SECURITY, "AuthorizationPolicy", "a", "spec: {action: DENY, rules: [{}]}")
        .replace("namespace: shop", "namespace: shop, annotations: {istio.io/dry-run: 'true'}");
    let all = said(&format!("{}{policy}", shop()));
    assert_eq!(all.iter().map(|(head, _)| head.as_str()).collect::<Vec<_>>(), ["AQ0012 AuthorizationPolicy/shop/a"]);
}

#[test]
fn a_grant_is_honoured() {
    let far = "apiVersion: v1\nkind: Service\nmetadata: {name: far, namespace: other}\nspec: {clusterIP: 10.0.0.9, ports: [{port: 80}]}\n---\napiVersion: gateway.networking.k8s.io/v1beta1\nkind: ReferenceGrant\nmetadata: {name: a, namespace: other}\nspec: {from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}], to: [{group: '', kind: Service}]}\n---\n";
    let route = doc(
        GATEWAY,
        "HTTPRoute",
        "a",
        "spec: {parentRefs: [{group: '', kind: Service, name: web}], rules: [{backendRefs: [{name: far, namespace: other, port: 80}]}]}",
    );
    let all = said(&format!("{}{far}{route}", shop()));
    assert!(all.iter().all(|(head, _)| !head.starts_with("AQ0046")), "{all:#?}");
}

#[test]
fn codes_are_unique_and_documented() {
    let page = include_str!("../../../docs/analyze.md");
    for (at, code) in CODES.iter().enumerate() {
        let row = format!("| {} | {} | {} |", code.code, code.name, code.level.as_str());
        assert!(page.contains(&row), "docs/analyze.md has no row {row}");
        assert!(CODES[..at].iter().all(|other| other.code < code.code && other.name != code.name), "{}", code.code);
    }
    assert_eq!(page.matches("| AQ").count(), CODES.len(), "docs/analyze.md has rows that no code has");
}
