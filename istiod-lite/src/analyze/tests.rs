use std::path::Path;

use aquifer_objects::parse::{Unread, parse_each};

use super::*;

/// What is said about manifests, as `code object: beginning of the message`.
fn said(yaml: &str) -> Vec<(String, String)> {
    said_in(yaml, Mesh::default(), &Revision::default())
}

fn said_in(yaml: &str, mesh: Mesh, revision: &Revision) -> Vec<(String, String)> {
    let (mut objects, mut workloads) = (Vec::new(), Vec::new());
    for found in parse_each(Path::new("x.yaml"), yaml) {
        match found.object {
            Ok(object) => objects.push(object),
            Err(Unread::Foreign { value, .. }) => {
                workloads.push(Workload::read(&value).expect("a kind that makes pods").expect("a good one"));
            }
            Err(Unread::Wrong(error)) => panic!("{error}"),
        }
    }
    let found = analyze(objects, mesh, revision, Origin::Manifests(workloads));
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
        (
            "AQ0017",
            doc(SECURITY, "AuthorizationPolicy", "a", "spec: {action: DENY, rules: [{from: [{source: {principals: ['spiffe://cluster.local/ns/x/sa/y']}}]}]}"),
            "AuthorizationPolicy/shop/a",
            "without spiffe://",
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

/// A template of pods with the label.
fn template(app: &str) -> String {
    format!("template: {{metadata: {{labels: {{app: {app}, version: v7}}}}, spec: {{containers: []}}}}")
}

/// Each kind that makes pods, as its spec.
fn pod_makers() -> Vec<(&'static str, &'static str, String)> {
    let template = template("db");
    let replicated = format!("spec: {{selector: {{matchLabels: {{app: db}}}}, serviceName: db, {template}}}");
    vec![
        ("apps/v1", "Deployment", replicated.clone()),
        ("apps/v1", "StatefulSet", replicated.clone()),
        ("apps/v1", "DaemonSet", replicated.clone()),
        ("apps/v1", "ReplicaSet", replicated),
        ("v1", "ReplicationController", format!("spec: {{selector: {{app: db}}, {template}}}")),
        ("batch/v1", "Job", format!("spec: {{{template}}}")),
        ("batch/v1", "CronJob", format!("spec: {{schedule: '* * * * *', jobTemplate: {{spec: {{{template}}}}}}}")),
        ("v1", "Pod", "spec: {containers: []}".to_owned()),
    ]
}

/// Whose pods each kind's are: the label of a bare pod is its own.
fn maker(api: &str, kind: &str, spec: &str) -> String {
    let labels = if kind == "Pod" { "db, labels: {app: db, version: v7}" } else { "db" };
    doc(api, kind, labels, spec)
}

#[test]
fn whatever_makes_pods_has_them() {
    // A NetworkPolicy, a subset and a policy, each of which is only right if the pods are there and in the mesh.
    let others = [
        doc(
            "networking.k8s.io/v1",
            "NetworkPolicy",
            "a",
            "spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}",
        ),
        doc("v1", "Service", "db", "spec: {clusterIP: 10.0.0.5, selector: {app: db}, ports: [{port: 80}]}"),
        doc(
            NETWORKING,
            "DestinationRule",
            "b",
            "spec: {host: db, subsets: [{name: v7, labels: {version: v7}}, {name: v8, labels: {version: v8}}]}",
        ),
        doc(SECURITY, "PeerAuthentication", "c", "spec: {selector: {matchLabels: {app: db}}}"),
    ];
    for (api, kind, spec) in pod_makers() {
        let all = said(&format!("{}{}{}", shop(), maker(api, kind, &spec), others.concat()));
        let has = |code: &str| all.iter().filter(|(head, _)| head.starts_with(code)).collect::<Vec<_>>();
        assert_eq!(has("AQ0020").len(), 1, "{kind}: {all:#?}");
        let subsets = has("AQ0040");
        assert!(subsets.len() == 1 && subsets[0].1.contains("subset v8"), "{kind}: {all:#?}");
        assert!(has("AQ0045").is_empty(), "{kind}: {all:#?}");
    }
}

#[test]
fn what_is_scaled_down_or_outside_of_the_mesh_has_no_tunnels() {
    let policy = doc(
        "networking.k8s.io/v1",
        "NetworkPolicy",
        "a",
        "spec: {podSelector: {matchLabels: {app: db}}, policyTypes: [Ingress]}",
    );
    let cases = [
        ("StatefulSet", "spec: {", "spec: {replicas: 0, "),
        ("ReplicaSet", "spec: {", "spec: {replicas: 0, "),
        ("ReplicationController", "spec: {", "spec: {replicas: 0, "),
        ("Deployment", "spec: {", "spec: {replicas: 0, "),
        ("Job", "spec: {", "spec: {suspend: true, "),
        ("Job", "spec: {", "spec: {parallelism: 0, "),
        ("CronJob", "spec: {", "spec: {suspend: true, "),
        ("DaemonSet", "containers", "hostNetwork: true, containers"),
        ("Deployment", "containers", "hostNetwork: true, containers"),
        ("Pod", "containers", "hostNetwork: true, containers"),
        ("StatefulSet", "version: v7", "istio.io/dataplane-mode: none"),
        ("Pod", "version: v7", "istio.io/dataplane-mode: none"),
    ];
    for (kind, from, to) in cases {
        let makers = pod_makers();
        let (api, _, spec) = makers.iter().find(|(_, known, _)| *known == kind).unwrap();
        let made = maker(api, kind, spec).replacen(from, to, 1);
        assert!(made.contains(to), "{made}");
        let all = said(&format!("{}{made}{policy}", shop()));
        assert!(all.iter().all(|(head, _)| !head.starts_with("AQ0020")), "{kind} {to}: {all:#?}");
    }
}

#[test]
fn workloads_of_one_name_keep_their_pods_apart() {
    let makers: String = pod_makers()
        .iter()
        .map(|(api, kind, spec)| {
            maker(api, kind, spec).replace("version: v7", &format!("version: {}", kind.to_lowercase()))
        })
        .collect();
    let names = pod_makers()
        .iter()
        .map(|(_, kind, _)| {
            let kind = kind.to_lowercase();
            format!("{{name: {kind}, labels: {{version: {kind}}}}}")
        })
        .collect::<Vec<_>>()
        .join(", ");
    let service = doc("v1", "Service", "db", "spec: {clusterIP: 10.0.0.5, selector: {app: db}, ports: [{port: 80}]}");
    let rule = doc(NETWORKING, "DestinationRule", "b", &format!("spec: {{host: db, subsets: [{names}]}}"));
    let all = said(&format!("{}{makers}{service}{rule}", shop()));
    assert!(all.iter().all(|(head, _)| !head.starts_with("AQ0040")), "{all:#?}");
}

#[test]
fn a_workload_that_cannot_be_read_says_where() {
    let object = |spec: serde_json::Value| serde_json::json!({"apiVersion": "apps/v1", "kind": "StatefulSet", "metadata": {"name": "a"}, "spec": spec});
    let good = Workload::read(&object(serde_json::json!({"selector": {}, "template": {}})));
    assert!(matches!(good, Some(Ok(_))), "{good:?}");
    let bad =
        Workload::read(&object(serde_json::json!({"selector": {}, "template": {"metadata": {"labels": {"a": 1}}}})));
    let Some(Err(wrong)) = bad else { panic!("{bad:?}") };
    assert_eq!(wrong.path, "spec.template.metadata.labels.a");
    assert!(wrong.message.contains("expected a string"), "{wrong:?}");
    let nameless = Workload::read(
        &serde_json::json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {}, "spec": {"template": {}}}),
    );
    assert!(matches!(&nameless, Some(Err(wrong)) if wrong.path == "metadata.name"), "{nameless:?}");
    assert_eq!(Workload::read(&serde_json::json!({"apiVersion": "example.org/v1", "kind": "Job"})), None);
}

#[test]
fn the_cluster_domain_is_what_the_control_plane_was_told() {
    let rule = doc(NETWORKING, "DestinationRule", "a", "spec: {host: web.shop.svc.example.org}");
    let yaml = format!("{}{rule}", shop());
    let unknown = |all: &[(String, String)]| all.iter().any(|(head, _)| head.starts_with("AQ0004"));
    assert!(unknown(&said(&yaml)));
    let mesh = Mesh { domain: "example.org".to_owned(), ..Mesh::default() };
    let all = said_in(&yaml, mesh.clone(), &Revision::default());
    assert!(!unknown(&all), "{all:#?}");
    let short = said_in(&yaml.replace(".shop.svc.example.org", ""), mesh, &Revision::default());
    assert!(!unknown(&short), "{short:#?}");
}

#[test]
fn a_revision_reads_its_own_objects_and_its_own_mesh_config() {
    let canary = Revision::new("canary", [], false);
    let of_canary = doc(NETWORKING, "DestinationRule", "a", "spec: {host: wep}")
        .replace("name: a", "name: a, labels: {istio.io/rev: canary}");
    let config = |name: &str| {
        format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: {name}, namespace: istio-system}}\ndata: {{mesh: 'connectTimeout: 1s'}}\n---\n"
        )
    };
    let yaml = format!("{}{of_canary}{}{}", shop(), config("istio"), config("istio-canary"));
    let heads = |revision: &Revision| -> Vec<String> {
        let mesh = Mesh { config_map: revision.config_map(), ..Mesh::default() };
        said_in(&yaml, mesh, revision).into_iter().map(|(head, _)| head).collect()
    };
    assert_eq!(heads(&Revision::default()), ["AQ0031 ConfigMap/istio-system/istio"]);
    let of_canary = heads(&canary);
    assert!(of_canary.contains(&"AQ0031 ConfigMap/istio-system/istio-canary".to_owned()), "{of_canary:?}");
    assert!(of_canary.contains(&"AQ0004 DestinationRule/shop/a".to_owned()), "{of_canary:?}");
    assert!(!of_canary.contains(&"AQ0031 ConfigMap/istio-system/istio".to_owned()), "{of_canary:?}");
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
