use aquifer_objects::parse::parse_object;
use aquifer_objects::{Event, Kind, Object, ObjectKey};
use aquifer_proto::workload::{Address, Workload, WorkloadStatus, address};
use prost::Message;
use serde_json::{Value, json};

use super::{Change, Dirty, Index};
use crate::translate::Mesh;

pub(super) fn object(value: Value) -> Object {
    parse_object(value).unwrap()
}

pub(super) fn applied(value: Value) -> Event {
    Event::Applied(object(value))
}

pub(super) fn pod(name: &str, rest: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    merge(&mut pod, rest);
    pod
}

pub(super) fn service(name: &str, spec: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    merge(&mut service["spec"], spec);
    service
}

pub(super) fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (base, over) => *base = over.clone(),
    }
}

fn workload(index: &Index, name: &str) -> Option<Workload> {
    let resource = index.addresses().get(format!("Kubernetes//Pod/shop/{name}").as_str())?;
    match Address::decode(resource.clone()).unwrap().r#type {
        Some(address::Type::Workload(workload)) => Some(workload),
        other => panic!("{other:?}"),
    }
}

/// Takes events in, and tells which resources changed.
fn changed(index: &mut Index, events: Vec<Event>) -> Vec<String> {
    for event in events {
        let _ = index.apply(event);
    }
    let changes = index.flush();
    let name = |change: &Change| match change {
        Change::Upsert(name, _) => format!("+{name}"),
        Change::Remove(name) => format!("-{name}"),
    };
    changes.authorizations.iter().chain(&changes.addresses).map(name).collect()
}

#[test]
fn a_change_publishes_what_depends_on_it_and_nothing_else() {
    let mut index = Index::new(Mesh::default());
    let (pod_1, pod_2) = ("+Kubernetes//Pod/shop/web-1", "+Kubernetes//Pod/shop/web-2");
    let web = "+shop/web.shop.svc.cluster.local";
    assert_eq!(changed(&mut index, vec![applied(pod("web-1", &json!({})))]), [pod_1]);
    assert_eq!(changed(&mut index, vec![applied(pod("web-1", &json!({})))]), [""; 0], "equal bytes");
    assert_eq!(
        changed(&mut index, vec![applied(pod("web-2", &json!({"metadata": {"labels": {"app": "other"}}})))]),
        [pod_2]
    );
    assert_eq!(changed(&mut index, vec![applied(service("web", &json!({})))]), [web, pod_1]);
    let node = |zone: &str| {
        applied(
            json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "n1", "labels": {"topology.kubernetes.io/zone": zone}}}),
        )
    };
    assert_eq!(changed(&mut index, vec![node("z1")]), [pod_1, pod_2]);
    assert_eq!(index.apply(node("z1")), Dirty::No, "a node's report that says nothing new");
    assert_eq!(workload(&index, "web-1").unwrap().locality.unwrap().zone, "z1");
    // The selector moves from one pod to the other.
    assert_eq!(
        changed(&mut index, vec![applied(service("web", &json!({"selector": {"app": "other"}})))]),
        [pod_1, pod_2]
    );
    let policy = |namespace: &str| {
        applied(
            json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": namespace},
            "spec": {"selector": {"matchLabels": {"app": "web"}}}}),
        )
    };
    assert_eq!(changed(&mut index, vec![policy("elsewhere")]), ["+elsewhere/p"]);
    assert_eq!(
        changed(&mut index, vec![policy("istio-system")]),
        ["+istio-system/p", pod_1],
        "the root namespace's reach every pod"
    );
    assert_eq!(workload(&index, "web-1").unwrap().authorization_policies, ["istio-system/p"]);
    let gone = Event::Deleted(ObjectKey::new(Kind::AuthorizationPolicy, "istio-system", "p"));
    assert_eq!(changed(&mut index, vec![gone]), ["-istio-system/p", pod_1]);
    let gone = Event::Deleted(ObjectKey::new(Kind::Pod, "shop", "web-1"));
    assert_eq!(changed(&mut index, vec![gone]), ["-Kubernetes//Pod/shop/web-1"]);
}

#[test]
fn a_slice_without_its_service_waits_for_it() {
    let mut index = Index::new(Mesh::default());
    let slice = applied(json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"name": "s", "namespace": "shop", "labels": {"kubernetes.io/service-name": "web"}},
        "endpoints": [{"addresses": ["192.0.2.1"]}, {"addresses": ["192.0.2.2"]}], "ports": [{"port": 8080, "protocol": "TCP", "name": ""}]}));
    assert_eq!(changed(&mut index, vec![slice]), [""; 0]);
    let made = changed(&mut index, vec![applied(service("web", &json!({"selector": null, "ports": [{"port": 80}]})))]);
    assert_eq!(made.len(), 3);
    let gone = Event::Deleted(ObjectKey::new(Kind::Service, "shop", "web"));
    assert!(changed(&mut index, vec![gone]).iter().all(|change| change.starts_with('-')));
    assert!(index.addresses().is_empty());
}

#[test]
fn a_pod_that_is_leaving_is_unhealthy_and_one_that_ended_is_gone() {
    let mut index = Index::new(Mesh::default());
    let mut status = |rest: Value| {
        changed(&mut index, vec![applied(pod("web-1", &rest))]);
        workload(&index, "web-1").map(|workload| workload.status == i32::from(WorkloadStatus::Healthy))
    };
    assert_eq!(status(json!({})), Some(true));
    assert_eq!(status(json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}})), Some(false));
    assert_eq!(status(json!({"status": {"conditions": []}})), Some(false));
    assert_eq!(status(json!({"status": {"phase": "Pending"}})), Some(true));
    assert_eq!(status(json!({"status": {"phase": "Succeeded"}})), None);
    assert_eq!(status(json!({"status": {"phase": "Failed"}})), None);
    assert_eq!(status(json!({"status": {"podIP": ""}})), None);
}

/// The aliases of what an event changed.
fn aliases(index: &mut Index, event: Event) -> Vec<String> {
    let _ = index.apply(event);
    let changes = index.flush().addresses;
    let of = |change| match change {
        Change::Upsert(_, resource) => resource.aliases,
        Change::Remove(_) => Vec::new(),
    };
    changes.into_iter().flat_map(of).collect()
}

#[test]
fn the_network_of_the_systems_namespace_is_everybodys() {
    let mut index = Index::new(Mesh::default());
    assert_eq!(aliases(&mut index, applied(pod("web-1", &json!({})))), ["/10.0.0.1"]);
    assert_eq!(aliases(&mut index, applied(service("web", &json!({})))), ["/10.96.0.1", "/10.0.0.1"]);
    let root = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system", "labels": {"topology.istio.io/network": "net1"}}});
    assert_eq!(aliases(&mut index, applied(root)), ["net1/10.96.0.1", "net1/10.0.0.1"]);
    let gone = Event::Deleted(ObjectKey::new(Kind::Namespace, "", "istio-system"));
    assert_eq!(aliases(&mut index, gone), ["/10.96.0.1", "/10.0.0.1"]);
}

#[test]
fn host_network_pods_have_no_aliases() {
    let mut index = Index::new(Mesh::default());
    assert!(aliases(&mut index, applied(pod("web-1", &json!({"spec": {"hostNetwork": true}})))).is_empty());
    assert!(workload(&index, "web-1").is_some());
}

#[test]
fn a_resource_says_whom_it_follows_and_where_it_is() {
    let mut index = Index::new(Mesh::default());
    let _ = index.apply(applied(service("web", &json!({}))));
    index.flush();
    let _ = index.apply(applied(pod("web-1", &json!({}))));
    let Change::Upsert(_, made) = index.flush().addresses.remove(0) else { panic!("made") };
    assert_eq!((&*made.node, made.follows.as_slice()), ("n1", ["shop/web.shop.svc.cluster.local".into()].as_slice()));
}

/// Whether the index permits each of the pods to be connected within its node's proxy.
fn permitted<const N: usize>(index: &Index, pods: [&str; N]) -> [bool; N] {
    pods.map(|name| {
        let extensions = workload(index, name).unwrap().extensions;
        extensions.iter().any(|e| e.name == "aquifer.dev/same-node" && e.config.is_none())
    })
}

#[test]
fn pods_are_connected_within_their_node_unless_a_network_policy_selects_them() {
    let redirected = |name: &str, labels: &Value| {
        let mut pod = pod(name, &json!({"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}}));
        pod["metadata"]["labels"] = labels.clone();
        applied(pod)
    };
    let policy = |namespace: &str, spec: Value| {
        applied(json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy",
            "metadata": {"name": "np", "namespace": namespace}, "spec": spec}))
    };
    let mut index = Index::new(Mesh::default());
    let one = redirected("one", &json!({"app": "web", "tier": "front"}));
    let two = redirected("two", &json!({"app": "db"}));
    let pods = ["one", "two"];
    changed(&mut index, vec![one.clone(), two.clone(), applied(pod("plain", &json!({})))]);
    assert_eq!(permitted(&index, ["one", "two", "plain"]), [true, true, false], "only what a node proxy serves");

    let expression = |operator: &str, values: Value| json!({"podSelector": {"matchExpressions": [{"key": "tier", "operator": operator, "values": values}]}});
    // Selector, and whether each pod is still permitted.
    let table = [
        (json!({"podSelector": {"matchLabels": {"app": "web"}}}), [false, true]),
        (
            json!({"podSelector": {"matchLabels": {"app": "db"}}, "policyTypes": ["Egress"], "egress": []}),
            [true, false],
        ),
        (json!({"podSelector": {"matchLabels": {"app": "web", "tier": "back"}}}), [true, true]),
        (json!({"podSelector": {}}), [false, false]),
        (json!({"ingress": [{}]}), [false, false]),
        (expression("In", json!(["front", "back"])), [false, true]),
        (expression("In", json!(["back"])), [true, true]),
        (expression("NotIn", json!(["front"])), [true, false]),
        (expression("Exists", json!(null)), [false, true]),
        (expression("DoesNotExist", json!(null)), [true, false]),
        (
            json!({"podSelector": {"matchLabels": {"app": "db"}, "matchExpressions": [{"key": "tier", "operator": "Exists"}]}}),
            [true, true],
        ),
    ];
    for (spec, expect) in table {
        changed(&mut index, vec![policy("shop", spec.clone())]);
        assert_eq!(permitted(&index, pods), expect, "{spec}");
    }
    // Of a namespace, for that namespace; and what is deleted holds nobody back.
    let all = json!({"podSelector": {}});
    assert_eq!(changed(&mut index, vec![policy("shop", all.clone()), policy("istio-system", all)]).len(), 2);
    assert_eq!(permitted(&index, pods), [false, false]);
    let gone = Event::Deleted(ObjectKey::new(Kind::NetworkPolicy, "shop", "np"));
    let again = ["+Kubernetes//Pod/shop/one", "+Kubernetes//Pod/shop/two"];
    assert_eq!(changed(&mut index, vec![gone]), again, "and nobody else");
    assert_eq!(permitted(&index, pods), [true, true]);

    let mut off = Index::new(Mesh { same_node: false, ..Mesh::default() });
    changed(&mut off, vec![one, two]);
    assert_eq!(permitted(&off, pods), [false, false]);
}

#[test]
fn status_follows_the_policy_and_its_target() {
    let mut index = Index::new(Mesh::default());
    let key = ObjectKey::new(Kind::AuthorizationPolicy, "shop", "p");
    let policy = json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": "shop"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "web"}], "rules": [{}]}});
    let mut reason = |event: Event| {
        let _ = index.apply(event);
        let changes = index.flush();
        changes
            .statuses
            .into_iter()
            .map(|(of, conditions)| (of == key, conditions.first().map(|condition| condition.reason.clone())))
            .collect::<Vec<_>>()
    };
    assert_eq!(reason(applied(policy.clone())), [(true, Some("TargetNotFound".to_owned()))]);
    assert_eq!(reason(applied(service("web", &json!({})))), [(true, Some("AncestorNotBound".to_owned()))]);
    assert_eq!(reason(applied(policy)), []);
    assert_eq!(reason(Event::Deleted(key.clone())), [(true, None)]);
}

#[test]
fn a_mesh_config_acts_at_once_and_one_that_cannot_be_read_changes_nothing() {
    let config = |text: &str| {
        applied(
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"}, "data": {"mesh": text}}),
        )
    };
    let mut index = Index::new(Mesh::default());
    changed(&mut index, vec![applied(pod("web-1", &json!({})))]);
    assert_eq!(index.apply(config("trustDomain: one.test\nproxyListenPort: 1")), Dirty::Yes);
    let changes = index.flush();
    assert_eq!(workload(&index, "web-1").unwrap().trust_domain, "one.test");
    let mesh = changes.mesh.unwrap();
    assert_eq!((mesh.mesh.trust_domain.as_str(), mesh.error), ("one.test", None));
    assert_eq!(mesh.without_effect[0].field, "proxyListenPort");
    assert_eq!(index.apply(config("trustDomain: one.test\nproxyListenPort: 1")), Dirty::No);

    let _ = index.apply(config("trustDomain: [one.test]"));
    let changes = index.flush();
    assert!(changes.addresses.is_empty());
    assert!(changes.mesh.unwrap().error.is_some(), "it is told");
    assert_eq!(index.mesh().trust_domain, "one.test");
    assert!(index.findings().iter().any(|found| found.code == "MeshConfigInvalid"));

    let gone = ObjectKey::new(Kind::ConfigMap, "istio-system", "istio");
    assert_eq!(changed(&mut index, vec![Event::Deleted(gone)]), ["+Kubernetes//Pod/shop/web-1"]);
    assert_eq!(workload(&index, "web-1").unwrap().trust_domain, "");
    assert!(index.findings().is_empty());
}

#[test]
fn an_automatic_address_counts_once_it_stands_in_the_status() {
    let entry = |name: &str, addresses: &Value| {
        applied(
            json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": {"name": name, "namespace": "shop"},
            "spec": {"hosts": [format!("{name}.test")], "resolution": "DNS", "ports": [{"number": 80, "name": "http"}]}, "status": {"addresses": addresses}}),
        )
    };
    let mut index = Index::new(Mesh::default());
    let _ = index.apply(entry("a", &json!([])));
    let proposed = index.flush().allocations.remove(0);
    assert_eq!(proposed.entry, ObjectKey::new(Kind::ServiceEntry, "shop", "a"));
    assert_eq!(proposed.addresses.len(), 2);
    assert_eq!(index.allocations(), std::slice::from_ref(&proposed), "it waits");
    let _ = index.apply(entry("a", &json!(proposed.addresses)));
    let changes = index.flush();
    assert!(changes.allocations.is_empty() && index.allocations().is_empty());
    let Change::Upsert(name, made) = &changes.addresses[0] else { panic!("{changes:?}") };
    assert_eq!((&**name, made.aliases.len()), ("shop/a.test", 2));
    // Whoever takes the same one gets another.
    let _ = index.apply(entry("b", &json!([{"host": "b.test", "value": proposed.addresses[0].value}])));
    let other = index.flush().allocations.remove(0);
    assert!(other.addresses.iter().all(|at| !proposed.addresses.iter().any(|taken| taken.value == at.value)));
    let _ = index.apply(Event::Deleted(ObjectKey::new(Kind::ServiceEntry, "shop", "b")));
    index.flush();
    assert!(index.allocations().is_empty());
}

/// Another revision's, or a stale one: what stands there and is not said any more is taken away.
#[test]
fn conditions_that_nobody_says_any_more_are_to_go() {
    let mut index = Index::new(Mesh::default());
    let mut stale = service("web", &json!({}));
    stale["status"] = json!({"conditions": [{"type": "istio.io/WaypointBound", "status": "True", "reason": "WaypointAccepted", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}]});
    let _ = index.apply(applied(stale));
    let _ = index.apply(applied(service("plain", &json!({}))));
    assert_eq!(index.flush().statuses, [(ObjectKey::new(Kind::Service, "shop", "web"), vec![])]);
    let _ = index.apply(applied(service("web", &json!({}))));
    assert_eq!(index.flush().statuses, [(ObjectKey::new(Kind::Service, "shop", "web"), vec![])]);
}

fn network_policy(name: &str, spec: &Value) -> Value {
    let mut policy = json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"podSelector": {}, "policyTypes": ["Ingress"]}});
    merge(&mut policy["spec"], spec);
    policy
}

fn redirected(name: &str, rest: &Value) -> Value {
    let mut made = pod(name, &json!({"metadata": {"annotations": {"ambient.istio.io/redirection": "enabled"}}}));
    merge(&mut made, rest);
    made
}

/// A NetworkPolicy has no status: the Services of the pods that it selects say what it does to tunnels.
#[test]
fn a_network_policy_that_stops_tunnels_is_named_in_the_status_of_services_and_in_the_log() {
    let mut index = Index::new(Mesh::default());
    let web = ObjectKey::new(Kind::Service, "shop", "web");
    let step = |index: &mut Index, event: Event| {
        let _ = index.apply(event);
        let changes = index.flush();
        let said: Vec<_> = changes
            .statuses
            .iter()
            .map(|(key, conditions)| {
                assert_eq!(*key, web);
                let shown = |one: &aquifer_objects::crds::PolicyCondition| {
                    format!("{}={} {}", one.type_, one.status, one.reason)
                };
                conditions.iter().map(shown).collect::<Vec<_>>().join(",")
            })
            .collect();
        (said, changes.restrictions.len())
    };
    let inbound = "aquifer.dev/NetworkPolicyConflict=True NetworkPolicyBlocksInboundTunnels".to_owned();
    let unseen = "aquifer.dev/NetworkPolicyConflict=True NetworkPolicyPortsUnseen".to_owned();
    let other = json!({"metadata": {"labels": {"app": "other"}}});
    step(&mut index, applied(service("web", &json!({}))));
    step(&mut index, applied(service("lonely", &json!({"selector": {"app": "lonely"}}))));
    step(&mut index, applied(pod("web-1", &json!({}))));
    assert_eq!(step(&mut index, applied(network_policy("closed", &json!({})))), (vec![], 0), "not of the mesh");
    assert_eq!(step(&mut index, applied(redirected("web-1", &json!({})))), (vec![inbound.clone()], 1));
    let message = &index.statuses()[&web][0].message;
    assert!(message.contains("NetworkPolicy closed of shop") && message.contains("15008"), "{message}");
    assert_eq!(step(&mut index, applied(redirected("web-2", &json!({})))), (vec![], 0), "the same again");
    assert_eq!(
        step(&mut index, applied(redirected("other", &other))),
        (vec![], 0),
        "behind no Service, of a policy that is told"
    );

    // Another policy lets tunnels through, and its ports are seen by nobody.
    let open = network_policy("open", &json!({"ingress": [{"ports": [{"port": 15008}, {"port": 80}]}]}));
    assert_eq!(step(&mut index, applied(open)), (vec![unseen], 1));
    let gone = Event::Deleted(ObjectKey::new(Kind::NetworkPolicy, "shop", "open"));
    assert_eq!(step(&mut index, gone), (vec![inbound.clone()], 1), "told again, since it came again");

    // Its pods leave the mesh, or are not behind it any more.
    step(&mut index, applied(pod("web-1", &json!({}))));
    assert_eq!(step(&mut index, applied(redirected("web-2", &other))), (vec![String::new()], 0));
    assert_eq!(step(&mut index, applied(redirected("web-2", &json!({})))), (vec![inbound], 0));
    let gone = Event::Deleted(ObjectKey::new(Kind::NetworkPolicy, "shop", "closed"));
    assert_eq!(step(&mut index, gone), (vec![String::new()], 0));
}

/// One policy's change is no reason to say again what holds of others, nor of itself.
#[test]
fn of_network_policies_only_news_are_logged() {
    let mut index = Index::new(Mesh::default());
    let step = |index: &mut Index, event: Event| {
        let _ = index.apply(event);
        let mut news: Vec<_> =
            index.flush().restrictions.iter().map(|found| format!("{} {}", found.object.name, found.code)).collect();
        news.sort();
        news
    };
    let of = |app: &str| json!({"metadata": {"labels": {"app": app}}});
    let closed = |name: &str, app: &str| network_policy(name, &json!({"podSelector": {"matchLabels": {"app": app}}}));
    let gone = |name: &str| Event::Deleted(ObjectKey::new(Kind::NetworkPolicy, "shop", name));
    step(&mut index, applied(redirected("a-1", &of("a"))));
    step(&mut index, applied(redirected("b-1", &of("b"))));
    assert_eq!(step(&mut index, applied(closed("a", "a"))), ["a NetworkPolicyBlocksInboundTunnels"]);
    assert_eq!(step(&mut index, applied(closed("b", "b"))), ["b NetworkPolicyBlocksInboundTunnels"]);
    let mut wider = closed("a", "a");
    wider["spec"]["policyTypes"] = json!(["Ingress", "Egress"]);
    assert_eq!(step(&mut index, applied(wider)), ["a NetworkPolicyBlocksOutboundTunnels"]);
    assert_eq!(step(&mut index, gone("b")), [""; 0]);
    assert_eq!(step(&mut index, applied(closed("a", "a"))), [""; 0]);
    // What had gone is news when it comes again.
    assert_eq!(step(&mut index, applied(closed("b", "b"))), ["b NetworkPolicyBlocksInboundTunnels"]);
}

/// It is told as such a change, for waypoints to hear of it.
#[test]
fn the_network_that_the_control_planes_namespace_names_changes_the_mesh() {
    let mut index = Index::new(Mesh::default());
    index.flush();
    let namespace = |name: &str, network: &str| {
        applied(json!({"apiVersion": "v1", "kind": "Namespace",
            "metadata": {"name": name, "labels": {"topology.istio.io/network": network}}}))
    };
    let mut network = |event: Event| {
        let _ = index.apply(event);
        index.flush().mesh.map(|change| change.mesh.network)
    };
    assert_eq!(network(namespace("istio-system", "west")).as_deref(), Some("west"));
    assert_eq!(network(namespace("istio-system", "west")), None);
    assert_eq!(network(namespace("shop", "east")), None);
    assert_eq!(network(Event::Deleted(ObjectKey::new(Kind::Namespace, "", "istio-system"))).as_deref(), Some(""));
}
