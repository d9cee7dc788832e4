use aquifer_objects::Object;
use aquifer_objects::crds::PeerAuthentication;
use aquifer_objects::parse::parse_object;
use aquifer_proto::security::{Match, Rule};
use serde_json::{Value, json};

use crate::translate::labels::LabelSet;
use crate::translate::{Labels, Mesh, peer_authentication};

/// Namespace, name, the selector's `app`, mode, modes of ports.
type Spec<'a> = (&'a str, &'a str, Option<&'a str>, &'a str, &'a [(u32, &'a str)]);

struct Mtls {
    policies: Vec<PeerAuthentication>,
}

impl Mtls {
    /// The policies, oldest first.
    fn new(policies: &[Spec<'_>]) -> Self {
        let policy = |(age, (namespace, name, app, mode, ports)): (usize, &Spec<'_>)| {
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
        peer_authentication::required(namespace, &LabelSet::from(&labels), relevant, &mesh)
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
    type Case<'a> = (&'a str, &'a [Spec<'a>], bool, bool);
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

/// An API server whose definition is another's may take them; a node proxy takes no policy that names one.
#[test]
fn ports_that_cannot_be_are_no_exceptions() {
    for rest in ["STRICT", "PERMISSIVE"] {
        let other = if rest == "STRICT" { "PERMISSIVE" } else { "STRICT" };
        let only = Mtls::new(&[("shop", "web", Some("web"), rest, &[(0, other), (70_000, other)])]);
        assert!(only.listed("shop").iter().all(|name| name.ends_with("_static_strict")), "{:?}", only.listed("shop"));
        let beside = Mtls::new(&[("shop", "web", Some("web"), rest, &[(8080, other), (70_000, other)])]);
        assert_eq!(beside.listed("shop").len(), 1);
        let made = peer_authentication::converted(&beside.policies[0], &beside.policies, &Mesh::default()).unwrap();
        assert_eq!(beside.refuses_plaintext("shop", 8080), other == "STRICT");
        aquifer_core::from_proto::authorization(&made).unwrap();
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

/// Each policy is told what became of it: that it counts, or why it does not.
#[test]
fn every_policy_is_told_what_became_of_it() {
    let all = Mtls::new(&[
        ("istio-system", "mesh", None, "STRICT", &[]),
        ("istio-system", "selects", Some("web"), "STRICT", &[]),
        ("istio-system", "later", None, "PERMISSIVE", &[]),
        ("shop", "open", None, "DISABLE", &[]),
        ("shop", "web", Some("web"), "STRICT", &[(80, "PERMISSIVE")]),
        ("shop", "web-again", Some("web"), "PERMISSIVE", &[]),
        ("shop", "api", Some("api"), "PERMISSIVE", &[(80, "DISABLE")]),
        ("shop", "ports", Some("ports"), "PERMISSIVE", &[(0, "STRICT"), (80, "STRICT"), (65536, "STRICT")]),
    ]);
    let expect = [
        ("mesh", "ZtunnelAccepted=True Accepted", ""),
        ("selects", "ZtunnelAccepted=False Invalid", "put the policy into the namespace of its workloads"),
        ("later", "ZtunnelAccepted=False Conflicted", "the older PeerAuthentication istio-system/mesh"),
        ("open", "ZtunnelAccepted=True Accepted aquifer.dev/NoEffect=True ModeIgnored", "DISABLE acts as PERMISSIVE"),
        ("web", "ZtunnelAccepted=True Accepted", ""),
        ("web-again", "ZtunnelAccepted=False Conflicted", "the older PeerAuthentication shop/web"),
        ("api", "ZtunnelAccepted=True Accepted aquifer.dev/NoEffect=True ModeIgnored", "DISABLE acts as PERMISSIVE"),
        (
            "ports",
            "ZtunnelAccepted=True Accepted aquifer.dev/NoEffect=True ModeIgnored",
            "portLevelMtls.0, portLevelMtls.65536: a port is a number from 1 to 65535",
        ),
    ];
    for (policy, (name, expect, part)) in all.policies.iter().zip(expect) {
        let made = peer_authentication::conditions(policy, &all.policies, &Mesh::default());
        let said: Vec<String> = made.iter().map(|one| format!("{}={} {}", one.type_, one.status, one.reason)).collect();
        assert_eq!((policy.metadata.name.as_deref(), &*said.join(" ")), (Some(name), expect));
        assert!(made.iter().any(|one| one.message.contains(part)), "{made:?}");
    }
}
