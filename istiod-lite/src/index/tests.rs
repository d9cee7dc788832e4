use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_objects::parse::parse_object;
use aquifer_objects::{Event, Kind, Object, ObjectKey};
use aquifer_proto::workload::{Address, Workload, WorkloadStatus, address};
use proptest::prelude::*;
use prost::Message;
use serde_json::{Value, json};

use super::{Change, Changes, Dirty, Index, Published};
use crate::translate::Mesh;

fn object(value: Value) -> Object {
    parse_object(value).unwrap()
}

fn applied(value: Value) -> Event {
    Event::Applied(object(value))
}

fn pod(name: &str, rest: &Value) -> Value {
    let mut pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": "shop", "labels": {"app": "web"}},
        "spec": {"nodeName": "n1", "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080}]}]},
        "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [{"type": "Ready", "status": "True"}]},
    });
    merge(&mut pod, rest);
    pod
}

fn service(name: &str, spec: &Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "shop"},
        "spec": {"clusterIP": "10.96.0.1", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}]},
    });
    merge(&mut service["spec"], spec);
    service
}

fn merge(base: &mut Value, over: &Value) {
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
    match Address::decode(resource.body.clone()).unwrap().r#type {
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

#[test]
fn the_network_of_the_root_namespace_is_everybodys() {
    let mut index = Index::new(Mesh::default());
    changed(&mut index, vec![applied(pod("web-1", &json!({}))), applied(service("web", &json!({})))]);
    let aliases =
        |index: &Index| index.addresses().values().flat_map(|resource| resource.aliases.clone()).collect::<Vec<_>>();
    assert_eq!(aliases(&index), ["/10.0.0.1", "/10.96.0.1"]);
    let root = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system", "labels": {"topology.istio.io/network": "net1"}}});
    assert_eq!(changed(&mut index, vec![applied(root)]).len(), 2);
    assert_eq!(aliases(&index), ["net1/10.0.0.1", "net1/10.96.0.1"]);
    changed(&mut index, vec![Event::Deleted(ObjectKey::new(Kind::Namespace, "", "istio-system"))]);
    assert_eq!(aliases(&index), ["/10.0.0.1", "/10.96.0.1"]);
}

#[test]
fn host_network_pods_have_no_aliases() {
    let mut index = Index::new(Mesh::default());
    changed(&mut index, vec![applied(pod("web-1", &json!({"spec": {"hostNetwork": true}})))]);
    assert!(index.addresses().values().all(|resource| resource.aliases.is_empty()));
}

#[test]
fn pods_are_found_by_node_and_name() {
    let mut index = Index::new(Mesh::default());
    changed(
        &mut index,
        vec![applied(pod("web-1", &json!({}))), applied(pod("web-2", &json!({"spec": {"nodeName": "n2"}})))],
    );
    let on = |index: &Index, node: &str| {
        index.pods_on_node(node).filter_map(|pod| pod.metadata.name.clone()).collect::<Vec<_>>()
    };
    assert_eq!((on(&index, "n1"), on(&index, "n2")), (vec!["web-1".to_owned()], vec!["web-2".to_owned()]));
    changed(&mut index, vec![applied(pod("web-1", &json!({"spec": {"nodeName": "n2"}})))]);
    assert_eq!((on(&index, "n1").len(), on(&index, "n2").len()), (0, 2));
    assert!(index.pod("shop", "web-1").is_some() && index.pod("other", "web-1").is_none());
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

// ---- incremental equals rebuilt ----

const NAMESPACES: [&str; 3] = ["istio-system", "a", "b"];
const NAMES: [&str; 2] = ["x", "y"];

fn labels() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"app": "one"})),
        Just(json!({"app": "two"})),
        Just(json!({"app": "one", "tier": "t"}))
    ]
}

fn meta() -> impl Strategy<Value = Value> {
    (0..NAMESPACES.len(), 0..NAMES.len())
        .prop_map(|(namespace, name)| json!({"namespace": NAMESPACES[namespace], "name": NAMES[name]}))
}

fn some_pod() -> impl Strategy<Value = Value> {
    let node = prop_oneof![Just("n1"), Just("n2")];
    let phase = prop_oneof![4 => Just("Running"), 1 => Just("Succeeded")];
    (meta(), labels(), node, phase, any::<bool>(), 0..4u8).prop_map(|(mut meta, labels, node, phase, ready, address)| {
        meta["labels"] = labels;
        meta["annotations"] = if ready { json!({"ambient.istio.io/redirection": "enabled"}) } else { json!({}) };
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta,
            "spec": {"nodeName": node, "containers": [{"name": "c", "ports": [{"name": "http", "containerPort": 8080 + i32::from(ready)}]}]},
            "status": {"phase": phase, "podIP": format!("10.0.0.{address}"), "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
    })
}

fn some_service() -> impl Strategy<Value = Value> {
    let distribution = prop_oneof![Just(Value::Null), Just(json!("PreferClose"))];
    let kind = prop_oneof![4 => Just("ClusterIP"), 1 => Just("ExternalName")];
    (meta(), labels(), distribution, kind, any::<bool>()).prop_map(|(meta, selector, distribution, kind, named)| {
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"type": kind, "selector": selector, "clusterIP": "10.96.0.9",
            "trafficDistribution": distribution, "ports": [{"port": 80, "targetPort": if named { json!("http") } else { json!(8080) }}]}})
    })
}

fn some_slice() -> impl Strategy<Value = Value> {
    (meta(), 0..NAMES.len(), prop::collection::vec((0..3u8, any::<bool>()), 0..3)).prop_map(|(mut meta, service, endpoints)| {
        meta["labels"] = json!({"kubernetes.io/service-name": NAMES[service]});
        let endpoints: Vec<Value> = endpoints
            .into_iter()
            .map(|(address, ready)| json!({"addresses": [format!("192.0.2.{address}")], "conditions": {"ready": ready}}))
            .collect();
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": meta,
            "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
    })
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), labels().prop_map(|labels| json!({"matchLabels": labels}))]
}

fn some_policy() -> impl Strategy<Value = Value> {
    let rest = prop_oneof![
        4 => Just(json!({"rules": [{"from": [{"source": {"namespaces": ["a"]}}]}]})),
        1 => Just(json!({"action": "AUDIT"})),
        1 => Just(json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]})),
        2 => Just(json!({"selector": null, "targetRefs": [{"kind": "Service", "name": "x"}]})),
    ];
    (meta(), selector(), rest).prop_map(|(meta, selector, rest)| {
        let mut spec = json!({"selector": selector});
        merge(&mut spec, &rest);
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": meta, "spec": spec})
    })
}

fn some_peer_authentication() -> impl Strategy<Value = Value> {
    let mode = || prop_oneof![Just("UNSET"), Just("STRICT"), Just("PERMISSIVE"), Just("DISABLE")];
    (meta(), selector(), mode(), prop::option::of(mode()), 0..3u8).prop_map(|(mut meta, selector, mode, port, age)| {
        meta["creationTimestamp"] = json!(format!("2026-01-0{}T00:00:00Z", age + 1));
        let selects = selector.pointer("/matchLabels").and_then(Value::as_object).is_some_and(|labels| !labels.is_empty());
        let ports = port.filter(|_| selects).map(|mode| json!({"8080": {"mode": mode}}));
        json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": meta,
            "spec": {"selector": selector, "mtls": {"mode": mode}, "portLevelMtls": ports.unwrap_or_else(|| json!({}))}})
    })
}

fn some_network_policy() -> impl Strategy<Value = Value> {
    (meta(), selector(), any::<bool>()).prop_map(|(meta, selector, by_expression)| {
        let selector = match by_expression {
            true => json!({"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]}),
            false => selector,
        };
        json!({"apiVersion": "networking.k8s.io/v1", "kind": "NetworkPolicy", "metadata": meta,
            "spec": {"podSelector": selector}})
    })
}

fn some_namespace() -> impl Strategy<Value = Value> {
    (0..NAMESPACES.len(), any::<bool>(), any::<bool>()).prop_map(|(name, close, network)| {
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACES[name],
            "labels": if network { json!({"topology.istio.io/network": "net1"}) } else { json!({}) },
            "annotations": if close { json!({"networking.istio.io/traffic-distribution": "PreferClose"}) } else { json!({}) }}})
    })
}

fn some_node() -> impl Strategy<Value = Value> {
    (1..3u8, 0..3u8).prop_map(|(node, zone)| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{node}"), "labels": {"topology.kubernetes.io/zone": format!("z{zone}")}}})
    })
}

/// An object, whether it goes rather than comes, and whether the index is flushed afterwards.
fn step() -> impl Strategy<Value = (Value, bool, bool)> {
    let object = prop_oneof![
        4 => some_pod(),
        3 => some_service(),
        2 => some_slice(),
        3 => some_policy(),
        4 => some_peer_authentication(),
        3 => some_network_policy(),
        1 => some_namespace(),
        1 => some_node(),
    ];
    (object, prop::bool::weighted(0.3), any::<bool>())
}

/// What a client would hold that applied each change.
#[derive(Default)]
struct Client {
    held: BTreeMap<Arc<str>, Published>,
}

impl Client {
    fn follow(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Upsert(name, resource) => {
                    let old = self.held.insert(name.clone(), resource.clone());
                    assert_ne!(old, Some(resource), "{name} was sent twice");
                }
                Change::Remove(name) => assert!(self.held.remove(&name).is_some(), "{name} was not there"),
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(256))]

    /// Whatever happens in whatever order, the published resources are those of the objects that are there, and
    /// whoever follows the changes holds the same.
    #[test]
    fn incremental_equals_rebuilt(steps in prop::collection::vec(step(), 1..40)) {
        let mut index = Index::new(Mesh::default());
        let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let (mut addresses, mut authorizations) = (Client::default(), Client::default());
        let mut follow = |changes: Changes| {
            addresses.follow(changes.addresses);
            authorizations.follow(changes.authorizations);
        };
        for (value, gone, flush) in steps {
            let object = object(value);
            let key = object.key();
            if gone {
                objects.remove(&key);
                let _ = index.apply(Event::Deleted(key));
            } else {
                objects.insert(key, object.clone());
                let _ = index.apply(Event::Applied(object));
            }
            if flush {
                follow(index.flush());
            }
        }
        follow(index.flush());
        prop_assert!(index.flush().is_empty());

        let mut rebuilt = Index::new(Mesh::default());
        for object in objects.into_values() {
            let _ = rebuilt.apply(Event::Applied(object));
        }
        rebuilt.flush();
        prop_assert_eq!(index.addresses(), rebuilt.addresses());
        prop_assert_eq!(index.authorizations(), rebuilt.authorizations());
        prop_assert_eq!(index.statuses(), rebuilt.statuses());
        prop_assert_eq!(&addresses.held, rebuilt.addresses());
        prop_assert_eq!(&authorizations.held, rebuilt.authorizations());
    }
}
