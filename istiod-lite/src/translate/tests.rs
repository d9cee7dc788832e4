//! The rules one by one; `index/golden.rs` holds them against recordings.

use aquifer_objects::Object;
use aquifer_objects::crds::{AuthorizationPolicy, PeerAuthentication};
use aquifer_objects::parse::parse_object;
use aquifer_proto::security::string_match::MatchType;
use aquifer_proto::security::{Action, Match, Rule, Scope};
use aquifer_proto::workload::{AppProtocol, IpFamilies, TunnelProtocol, Workload};
use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::policy::{Translated, is_sent, translate};
use super::{Labels, Mesh, peer_authentication, service, status, workload};

fn policy(metadata: Value, spec: Value) -> AuthorizationPolicy {
    let mut all = json!({"name": "p", "namespace": "shop"});
    all.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
    let value =
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": all, "spec": spec});
    match parse_object(value).unwrap() {
        Object::AuthorizationPolicy(policy) => policy.as_ref().clone(),
        other => panic!("{other:?}"),
    }
}

fn rules(spec: Value) -> (Vec<Rule>, bool) {
    match translate(&policy(json!({}), spec), &Mesh::default()) {
        Translated::Sent { authorization, usable, .. } => (authorization.rules, usable),
        other => panic!("{other:?}"),
    }
}

/// The matches of each clause of each rule.
fn matches(spec: Value) -> Vec<Vec<Vec<Match>>> {
    let of_rule = |rule: Rule| rule.clauses.into_iter().map(|clause| clause.matches).collect();
    rules(spec).0.into_iter().map(of_rule).collect()
}

#[test]
fn scope_of_policies() {
    let cases = [
        ("shop", json!({}), Scope::Namespace),
        ("shop", json!({"selector": {"matchLabels": {"a": "b"}}}), Scope::WorkloadSelector),
        ("istio-system", json!({}), Scope::Global),
        ("istio-system", json!({"selector": {"matchLabels": {"a": "b"}}}), Scope::WorkloadSelector),
    ];
    for (namespace, spec, scope) in cases {
        let sent = translate(&policy(json!({"namespace": namespace}), spec.clone()), &Mesh::default())
            .authorization()
            .unwrap();
        assert_eq!(sent.scope, i32::from(scope), "{namespace} {spec}");
    }
}

#[test]
fn policies_that_are_not_sent() {
    let cases = [
        (json!({}), json!({"action": "AUDIT"})),
        (json!({}), json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]})),
        (json!({"annotations": {"istio.io/dry-run": "true"}}), json!({})),
        (json!({}), json!({"targetRefs": [{"kind": "Service", "name": "x"}]})),
        (json!({}), json!({"targetRef": {"kind": "Service", "name": "x"}})),
    ];
    for (metadata, spec) in cases {
        let policy = policy(metadata, spec.clone());
        assert_eq!((translate(&policy, &Mesh::default()).authorization(), is_sent(&policy)), (None, false), "{spec}");
    }
    let off = policy(json!({"annotations": {"istio.io/dry-run": "false"}}), json!({}));
    assert!(translate(&off, &Mesh::default()).authorization().is_some() && is_sent(&off));
}

/// No rules and a rule without clauses are opposites: one never matches, the other always.
#[test]
fn empty_rules_and_rules_that_are_empty() {
    assert_eq!(rules(json!({})).0, []);
    assert_eq!(rules(json!({"rules": [{}]})).0, [Rule { clauses: vec![] }]);
    let deny = translate(&policy(json!({}), json!({"action": "DENY"})), &Mesh::default()).authorization().unwrap();
    assert_eq!((deny.action, deny.rules.len()), (i32::from(Action::Deny), 0));
}

/// An ALLOW policy loses each rule that speaks of requests, as a whole: what stays allows no more than was asked.
#[test]
fn requests_in_allow_policies() {
    let l4 = json!({"from": [{"source": {"namespaces": ["good"]}}]});
    let attributes = [
        json!({"to": [{"operation": {"methods": ["GET"]}}]}),
        json!({"to": [{"operation": {"ports": ["80"], "notHosts": ["a"]}}]}),
        json!({"to": [{"operation": {"ports": ["80"]}}, {"operation": {"paths": ["/"]}}]}),
        json!({"from": [{"source": {"namespaces": ["x"], "requestPrincipals": ["*"]}}]}),
        json!({"from": [{"source": {"namespaces": ["x"], "notRemoteIpBlocks": ["10.0.0.1"]}}]}),
        json!({"from": [{"source": {"trustDomains": ["td"]}}]}),
        json!({"when": [{"key": "request.headers[x]", "values": ["a"]}]}),
        json!({"when": [{"key": "connection.sni", "values": ["a"]}]}),
        json!({"when": [{"key": "source.serviceAccount", "values": ["a/b"]}]}),
    ];
    for attribute in attributes {
        let (alone, usable) = rules(json!({"rules": [attribute]}));
        assert!(alone.is_empty() && !usable, "{attribute}: nothing is allowed");
        let (beside, usable) = rules(json!({"rules": [attribute, l4]}));
        assert!(beside.len() == 1 && usable, "{attribute}");
    }
}

/// A DENY policy loses only the attribute: a match that keeps something denies more, one that keeps nothing is inert.
#[test]
fn requests_in_deny_policies() {
    let deny = |rule: Value| json!({"action": "DENY", "rules": [rule]});
    let ports = |ports: &[u32]| Match { destination_ports: ports.to_vec(), ..Default::default() };
    let only = deny(json!({"to": [{"operation": {"methods": ["DELETE"]}}]}));
    assert_eq!((matches(only.clone()), rules(only).1), (vec![vec![vec![Match::default()]]], false));
    let mixed = deny(json!({"to": [{"operation": {"ports": ["8080"], "methods": ["DELETE"]}}]}));
    assert_eq!((matches(mixed.clone()), rules(mixed).1), (vec![vec![vec![ports(&[8080])]]], true));
    let two = deny(json!({"to": [{"operation": {"ports": ["8080"]}}, {"operation": {"paths": ["/"]}}]}));
    assert_eq!((matches(two.clone()), rules(two).1), (vec![vec![vec![ports(&[8080]), Match::default()]]], true));
    let inert = deny(
        json!({"to": [{"operation": {"ports": ["8080"]}}], "when": [{"key": "request.headers[x]", "values": ["a"]}]}),
    );
    assert!(!rules(inert).1, "one clause that never matches makes its rule inert");
}

#[test]
fn clauses_stand_in_the_order_to_from_when() {
    let found = matches(json!({"rules": [{
        "when": [{"key": "source.ip", "values": ["10.0.0.0/8"]}, {"key": "destination.ip", "notValues": ["2001:db8::1"]}],
        "from": [{"source": {"principals": ["td/ns/a/sa/b"]}}],
        "to": [{"operation": {"notPorts": ["22"]}}],
    }]}));
    let clauses = &found[0];
    assert_eq!(clauses.len(), 4);
    assert_eq!(clauses[0][0].not_destination_ports, [22]);
    assert_eq!(clauses[1][0].principals[0].match_type, Some(MatchType::Exact("td/ns/a/sa/b".to_owned())));
    assert_eq!(
        (clauses[2][0].source_ips[0].address.as_ref(), clauses[2][0].source_ips[0].length),
        ([10, 0, 0, 0].as_slice(), 8)
    );
    assert_eq!(
        (clauses[3][0].not_destination_ips[0].address.len(), clauses[3][0].not_destination_ips[0].length),
        (16, 128)
    );
}

#[test]
fn patterns() {
    let cases = [
        ("*", MatchType::Presence(())),
        ("*/sa/web", MatchType::Suffix("/sa/web".to_owned())),
        ("td/ns/a/*", MatchType::Prefix("td/ns/a/".to_owned())),
        ("td/ns/a/sa/web", MatchType::Exact("td/ns/a/sa/web".to_owned())),
        // Compared with identities without the scheme, so it never matches; kept as it was written.
        ("spiffe://td/ns/a/sa/b", MatchType::Exact("spiffe://td/ns/a/sa/b".to_owned())),
    ];
    for (pattern, expect) in cases {
        let found = matches(json!({"rules": [{"from": [{"source": {"principals": [pattern]}}]}]}));
        assert_eq!(found[0][0][0].principals[0].match_type, Some(expect), "{pattern}");
    }
}

#[test]
fn service_accounts_are_of_the_policys_namespace_unless_they_say() {
    let found = matches(json!({"rules": [{"from": [{"source": {"serviceAccounts": ["web", "other/web"]}}]}]}));
    let accounts: Vec<_> =
        found[0][0][0].service_accounts.iter().map(|a| (a.namespace.as_str(), a.service_account.as_str())).collect();
    assert_eq!(accounts, [("shop", "web"), ("other", "web")]);
}

#[test]
fn a_policy_of_which_nothing_is_left_is_not_accepted() {
    let condition = |spec: Value| {
        let conditions = status::conditions(&policy(json!({}), spec), &Mesh::default(), &|_, _, _| false);
        (conditions[0].type_.clone(), conditions[0].status.clone(), conditions[0].reason.clone())
    };
    let expect = |type_: &str, status: &str, reason: &str| (type_.to_owned(), status.to_owned(), reason.to_owned());
    let l7 = json!({"to": [{"operation": {"methods": ["GET"]}}]});
    assert_eq!(condition(json!({})), expect("ZtunnelAccepted", "True", "Accepted"));
    assert_eq!(condition(json!({"rules": [l7]})), expect("ZtunnelAccepted", "False", "UnsupportedValue"));
    assert_eq!(condition(json!({"rules": [l7, {}]})), expect("ZtunnelAccepted", "True", "UnsupportedValue"));
    assert_eq!(
        condition(json!({"action": "DENY", "rules": [l7]})),
        expect("ZtunnelAccepted", "False", "UnsupportedValue")
    );
    assert_eq!(condition(json!({"action": "AUDIT"})), expect("ZtunnelAccepted", "False", "UnsupportedValue"));
}

// ---- mutual TLS ----

struct Mtls {
    policies: Vec<PeerAuthentication>,
}

impl Mtls {
    /// `(namespace, name, selector's app, mode, port modes)`, oldest first.
    fn new(policies: &[(&str, &str, Option<&str>, &str, &[(u16, &str)])]) -> Self {
        let policy = |(age, (namespace, name, app, mode, ports)): (
            usize,
            &(&str, &str, Option<&str>, &str, &[(u16, &str)]),
        )| {
            let ports: serde_json::Map<String, Value> =
                ports.iter().map(|(port, mode)| (port.to_string(), json!({"mode": mode}))).collect();
            let selector = app.map(|app| json!({"matchLabels": {"app": app}}));
            let value = json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
                "metadata": {"namespace": namespace, "name": name, "creationTimestamp": format!("2026-01-{:02}T00:00:00Z", age + 1)},
                "spec": {"selector": selector, "mtls": {"mode": mode}, "portLevelMtls": ports}});
            match parse_object(value).unwrap() {
                Object::PeerAuthentication(policy) => policy.as_ref().clone(),
                other => panic!("{other:?}"),
            }
        };
        Self { policies: policies.iter().enumerate().map(policy).collect() }
    }

    /// The policies that a pod with `app: web` in the namespace lists.
    fn listed(&self, namespace: &str) -> Vec<String> {
        let mesh = Mesh::default();
        let relevant = self.policies.iter().filter(|policy| {
            let of = policy.metadata.namespace.as_deref();
            of == Some(namespace) || of == Some(&mesh.root_namespace)
        });
        let labels = Labels::from([("app".to_owned(), "web".to_owned())]);
        peer_authentication::required(namespace, Some(&labels), relevant, &mesh)
    }

    /// Whether plaintext is refused on a port by the policies that the pod lists, as the node proxy reads them.
    fn refuses_plaintext(&self, namespace: &str, port: u32) -> bool {
        let mesh = Mesh::default();
        let refuses = |rule: &Rule| {
            rule.clauses.iter().all(|clause| {
                clause.matches.iter().any(|found| {
                    let port_matches = found.destination_ports.is_empty() || found.destination_ports.contains(&port);
                    port_matches && !found.not_destination_ports.contains(&port) && *found != Match::default()
                })
            })
        };
        self.listed(namespace).iter().any(|name| {
            if *name == peer_authentication::static_strict_resource(&mesh) {
                return peer_authentication::static_strict(&mesh).rules.iter().any(refuses);
            }
            let converted =
                self.policies.iter().filter_map(|policy| peer_authentication::converted(policy, &self.policies, &mesh));
            let mut named = converted.filter(|sent| format!("{}/{}", sent.namespace, sent.name) == *name);
            named.next().unwrap_or_else(|| panic!("{name} is listed and never sent")).rules.iter().any(refuses)
        })
    }
}

#[test]
fn precedence_of_mutual_tls() {
    type Case<'a> = (&'a str, &'a [(&'a str, &'a str, Option<&'a str>, &'a str, &'a [(u16, &'a str)])], bool, bool);
    let root = "istio-system";
    // What is there; is 8080 refused to plaintext; is 9090?
    let cases: &[Case<'_>] = &[
        ("nothing", &[], false, false),
        ("mesh", &[(root, "default", None, "STRICT", &[])], true, true),
        (
            "namespace over mesh",
            &[(root, "default", None, "STRICT", &[]), ("shop", "default", None, "PERMISSIVE", &[])],
            false,
            false,
        ),
        (
            "unset passes on",
            &[(root, "default", None, "STRICT", &[]), ("shop", "default", None, "UNSET", &[])],
            true,
            true,
        ),
        (
            "disable is permissive",
            &[(root, "default", None, "STRICT", &[]), ("shop", "default", None, "DISABLE", &[])],
            false,
            false,
        ),
        (
            "workload over namespace",
            &[("shop", "default", None, "PERMISSIVE", &[]), ("shop", "web", Some("web"), "STRICT", &[])],
            true,
            true,
        ),
        ("another workload's", &[("shop", "other", Some("other"), "STRICT", &[])], false, false),
        (
            "the oldest counts",
            &[("shop", "z", None, "STRICT", &[]), ("shop", "a", None, "PERMISSIVE", &[])],
            true,
            true,
        ),
        ("a selector in the root namespace", &[(root, "web", Some("web"), "STRICT", &[])], false, false),
        ("strict port", &[("shop", "web", Some("web"), "PERMISSIVE", &[(8080, "STRICT")])], true, false),
        ("strict port, mode inherited", &[("shop", "web", Some("web"), "UNSET", &[(8080, "STRICT")])], true, false),
        (
            "strict port under a strict mesh",
            &[(root, "default", None, "STRICT", &[]), ("shop", "web", Some("web"), "PERMISSIVE", &[(8080, "STRICT")])],
            true,
            false,
        ),
        ("open port", &[("shop", "web", Some("web"), "STRICT", &[(9090, "PERMISSIVE")])], true, false),
        (
            "open port, mode inherited",
            &[(root, "default", None, "STRICT", &[]), ("shop", "web", Some("web"), "UNSET", &[(9090, "PERMISSIVE")])],
            true,
            false,
        ),
        (
            "disabled port, mode inherited",
            &[(root, "default", None, "STRICT", &[]), ("shop", "web", Some("web"), "UNSET", &[(9090, "DISABLE")])],
            true,
            false,
        ),
        ("port that says nothing", &[("shop", "web", Some("web"), "STRICT", &[(9090, "UNSET")])], true, true),
        (
            "both kinds of port",
            &[
                (root, "default", None, "STRICT", &[]),
                ("shop", "web", Some("web"), "UNSET", &[(8080, "STRICT"), (9090, "PERMISSIVE")]),
            ],
            true,
            false,
        ),
        ("ports alike", &[("shop", "web", Some("web"), "STRICT", &[(8080, "STRICT"), (9090, "STRICT")])], true, true),
    ];
    for (name, policies, on_8080, on_9090) in cases {
        let mtls = Mtls::new(policies);
        assert_eq!(
            (mtls.refuses_plaintext("shop", 8080), mtls.refuses_plaintext("shop", 9090)),
            (*on_8080, *on_9090),
            "{name}"
        );
        assert!(mtls.listed("shop").len() <= 1, "{name}: two DENY policies make no exception");
    }
}

#[test]
fn the_root_namespaces_pods_follow_the_mesh() {
    let mtls = Mtls::new(&[
        ("istio-system", "default", None, "STRICT", &[]),
        ("istio-system", "web", Some("web"), "PERMISSIVE", &[]),
    ]);
    assert_eq!(mtls.listed("istio-system"), ["istio-system/istio_converted_static_strict"]);
}

// ---- services and workloads ----

fn service_of(spec: Value) -> Service {
    let value =
        json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web", "namespace": "shop"}, "spec": spec});
    match parse_object(value).unwrap() {
        Object::Service(service) => service.as_ref().clone(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn app_protocols() {
    let cases = [
        (json!({"port": 80}), AppProtocol::Unknown),
        (json!({"port": 80, "name": "http"}), AppProtocol::Http11),
        (json!({"port": 80, "name": "http-web"}), AppProtocol::Http11),
        (json!({"port": 80, "name": "HTTP2-web"}), AppProtocol::Http2),
        (json!({"port": 80, "name": "httpweb"}), AppProtocol::Unknown),
        (json!({"port": 80, "name": "grpc-web"}), AppProtocol::Unknown),
        (json!({"port": 80, "name": "grpc"}), AppProtocol::Grpc),
        (json!({"port": 80, "name": "https-x"}), AppProtocol::Tls),
        (json!({"port": 80, "name": "http", "appProtocol": "tcp"}), AppProtocol::Tcp),
        (json!({"port": 80, "appProtocol": "kubernetes.io/h2c"}), AppProtocol::Http2),
        (json!({"port": 80, "appProtocol": "kubernetes.io/ws"}), AppProtocol::Http11),
        (json!({"port": 80, "name": "http", "protocol": "UDP"}), AppProtocol::Unknown),
        (json!({"port": 3306}), AppProtocol::Tcp),
        (json!({"port": 53, "name": "dns-tcp"}), AppProtocol::Tcp),
    ];
    for (port, expect) in cases {
        let made = service::service(&service_of(json!({"ports": [port]})), None, &Mesh::default()).unwrap();
        assert_eq!(made.ports[0].app_protocol, i32::from(expect), "{port}");
    }
}

#[test]
fn service_addresses_and_families() {
    let cases = [
        (json!({"clusterIP": "None", "clusterIPs": ["None"]}), 0, IpFamilies::Automatic),
        (json!({"clusterIP": "10.96.0.1"}), 1, IpFamilies::Ipv4Only),
        (json!({"clusterIP": "10.96.0.1", "clusterIPs": ["10.96.0.1", "fd00::1"]}), 2, IpFamilies::Dual),
        (json!({"clusterIP": "fd00::1", "ipFamilies": ["IPv6"]}), 1, IpFamilies::Ipv6Only),
        (json!({"clusterIP": "None", "ipFamilies": ["IPv4", "IPv6"]}), 0, IpFamilies::Dual),
    ];
    for (spec, addresses, families) in cases {
        let made = service::service(&service_of(spec.clone()), None, &Mesh::default()).unwrap();
        assert_eq!((made.addresses.len(), made.ip_families), (addresses, i32::from(families)), "{spec}");
    }
    assert_eq!(
        service::service(&service_of(json!({"type": "ExternalName", "externalName": "a.b"})), None, &Mesh::default()),
        None
    );
}

#[test]
fn targets_of_ports() {
    let ports = json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "targetPort": 8081}, {"name": "c", "port": 82, "targetPort": "http"}, {"name": "d", "port": 83, "targetPort": "none"}]);
    let service_object = service_of(json!({"selector": {"app": "web"}, "ports": ports}));
    let made = service::service(&service_object, None, &Mesh::default()).unwrap();
    assert_eq!(made.ports.iter().map(|port| port.target_port).collect::<Vec<_>>(), [80, 8081, 0, 0]);
    let workload = workload_of(
        json!({}),
        json!({"containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 9, "protocol": "UDP"}]}],
        "initContainers": [{"name": "sidecar", "restartPolicy": "Always", "ports": [{"name": "http", "containerPort": 8080}]}]}),
        &[service_object],
    );
    let list = &workload.services["shop/web.shop.svc.cluster.local"];
    let ports: Vec<(u32, u32)> = list.ports.iter().map(|port| (port.service_port, port.target_port)).collect();
    assert_eq!(ports, [(80, 80), (81, 8081), (82, 8080)], "a port that the pod lacks is left out");
}

fn workload_of(metadata: Value, spec: Value, services: &[Service]) -> Workload {
    let mut meta = json!({"name": "web-1", "namespace": "shop", "labels": {"app": "web"}});
    meta.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
    let value = json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta, "spec": spec, "status": {"phase": "Running", "podIP": "10.0.0.1"}});
    match parse_object(value).unwrap() {
        Object::Pod(pod) => workload::pod(&pod, None, services, Vec::new(), &Mesh::default()).unwrap(),
        other => panic!("{other:?}"),
    }
}

#[test]
fn names_of_workloads() {
    let owner = |kind: &str, name: &str| json!([{"apiVersion": "v1", "kind": kind, "name": name, "uid": "u", "controller": true}]);
    let cases = [
        // labels, owner → workload, canonical name, revision
        (json!({}), Value::Null, "web-1", "web-1", "latest"),
        (json!({"app": "a"}), Value::Null, "web-1", "a", "latest"),
        (json!({"app": "a", "app.kubernetes.io/name": "k", "version": "v1"}), Value::Null, "web-1", "k", "v1"),
        (
            json!({"app": "a", "service.istio.io/canonical-name": "c", "service.istio.io/canonical-revision": "r", "version": "v1"}),
            Value::Null,
            "web-1",
            "c",
            "r",
        ),
        (json!({"version": "v1", "app.kubernetes.io/version": "k1"}), Value::Null, "web-1", "web-1", "k1"),
        (json!({"pod-template-hash": "5d4"}), owner("ReplicaSet", "web-5d4"), "web", "web", "latest"),
        (json!({}), owner("ReplicaSet", "web-5d4"), "web-5d4", "web-5d4", "latest"),
        (json!({}), owner("StatefulSet", "db"), "db", "db", "latest"),
        (json!({}), owner("Job", "migrate"), "migrate", "migrate", "latest"),
        (json!({}), owner("Job", "nightly-28901234"), "nightly", "nightly", "latest"),
        (json!({"service.istio.io/workload-name": "mine"}), owner("StatefulSet", "db"), "mine", "mine", "latest"),
    ];
    for (labels, owners, name, canonical, revision) in cases {
        let made = workload_of(json!({"labels": labels, "ownerReferences": owners}), json!({}), &[]);
        assert_eq!(
            (made.workload_name.as_str(), made.canonical_name.as_str(), made.canonical_revision.as_str()),
            (name, canonical, revision),
            "{labels} {owners}"
        );
    }
}

/// `pending` is not yet: what is sent to such a pod as HBONE would be lost.
#[test]
fn tunnels() {
    let redirection = |value: &str| json!({"annotations": {"ambient.istio.io/redirection": value}});
    let cases = [
        (json!({}), TunnelProtocol::None, false),
        (redirection("enabled"), TunnelProtocol::Hbone, false),
        (redirection("pending"), TunnelProtocol::None, false),
        (redirection("Enabled"), TunnelProtocol::None, false),
        (json!({"labels": {"networking.istio.io/tunnel": "http"}}), TunnelProtocol::Hbone, true),
        (json!({"labels": {"networking.istio.io/tunnel": "none"}}), TunnelProtocol::None, false),
        (json!({"labels": {"istio.io/dataplane-mode": "ambient"}}), TunnelProtocol::None, false),
    ];
    for (metadata, tunnel, native) in cases {
        let made = workload_of(metadata.clone(), json!({}), &[]);
        assert_eq!((made.tunnel_protocol, made.native_tunnel), (i32::from(tunnel), native), "{metadata}");
    }
}

#[test]
fn defaults_are_left_out_or_filled_in() {
    let made = workload_of(json!({}), json!({}), &[]);
    assert_eq!(
        (made.service_account.as_str(), made.trust_domain.as_str(), made.cluster_id.as_str()),
        ("default", "", "Kubernetes")
    );
    assert_eq!(made.uid, "Kubernetes//Pod/shop/web-1");
}
