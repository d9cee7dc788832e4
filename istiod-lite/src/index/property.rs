//! Whatever happens in whatever order, an index holds what a new one would make of the objects that are there.

use std::collections::BTreeMap;
use std::sync::Arc;

use aquifer_objects::crds::PolicyCondition;
use aquifer_objects::{Event, Object, ObjectKey};
use bytes::Bytes;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::tests::{merge, object};
use super::{Change, Changes, Index};
use crate::translate::Mesh;

const NAMESPACES: [&str; 3] = ["istio-system", "a", "b"];
const NAMES: [&str; 2] = ["x", "y"];
/// The last is a Service's of Kubernetes.
const HOSTS: [&str; 4] = ["one.test", "two.test", "*.wild.test", "x.a.svc.cluster.local"];

fn labels() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({})),
        Just(json!({"app": "one"})),
        Just(json!({"app": "two"})),
        Just(json!({"app": "one", "tier": "t"}))
    ]
}

/// Labels that say something about waypoints, most of the time nothing.
fn waypoint_labels() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => Just(json!({})),
        2 => Just(json!({"istio.io/use-waypoint": "x"})),
        1 => Just(json!({"istio.io/use-waypoint": "y", "istio.io/use-waypoint-canary": "x"})),
        1 => Just(json!({"istio.io/use-waypoint": "x", "istio.io/use-waypoint-namespace": "a"})),
        1 => Just(json!({"istio.io/use-waypoint": "none"})),
        1 => Just(json!({"istio.io/ingress-use-waypoint": "true"})),
    ]
}

fn meta() -> impl Strategy<Value = Value> {
    (0..NAMESPACES.len(), 0..NAMES.len(), waypoint_labels(), 0..3u8).prop_map(|(namespace, name, labels, age)| {
        json!({"namespace": NAMESPACES[namespace], "name": NAMES[name], "labels": labels,
            "creationTimestamp": format!("2026-01-0{}T00:00:00Z", age + 1)})
    })
}

fn add(meta: &mut Value, labels: &Value) {
    merge(&mut meta["labels"], labels);
}

fn some_pod() -> impl Strategy<Value = Value> {
    let node = prop_oneof![Just("n1"), Just("n2")];
    let phase = prop_oneof![4 => Just("Running"), 1 => Just("Succeeded")];
    let gateway = prop_oneof![4 => Just(json!({})), 1 => Just(json!({"gateway.networking.k8s.io/gateway-name": "x"}))];
    (meta(), labels(), gateway, node, phase, any::<bool>(), 0..4u8).prop_map(
        |(mut meta, labels, gateway, node, phase, ready, address)| {
            add(&mut meta, &labels);
            add(&mut meta, &gateway);
            meta["annotations"] = if ready { json!({"ambient.istio.io/redirection": "enabled"}) } else { json!({}) };
            json!({"apiVersion": "v1", "kind": "Pod", "metadata": meta,
                "spec": {"nodeName": node, "serviceAccountName": format!("sa{address}"),
                    "containers": [{"name": "c", "image": "i", "ports": [{"name": "http", "containerPort": 8080 + i32::from(ready)}]}]},
                "status": {"phase": phase, "podIP": format!("10.0.0.{address}"), "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}})
        },
    )
}

fn some_service() -> impl Strategy<Value = Value> {
    let distribution = prop_oneof![Just(Value::Null), Just(json!("PreferClose"))];
    let kind = prop_oneof![4 => Just("ClusterIP"), 1 => Just("ExternalName")];
    (meta(), labels(), distribution, kind, any::<bool>()).prop_map(|(meta, selector, distribution, kind, named)| {
        let name = if kind == "ExternalName" { json!("elsewhere.test") } else { Value::Null };
        json!({"apiVersion": "v1", "kind": "Service", "metadata": meta, "spec": {"type": kind, "externalName": name, "selector": selector,
            "clusterIP": "10.96.0.9", "trafficDistribution": distribution,
            "ports": [{"port": 80, "targetPort": if named { json!("http") } else { json!(8080) }}]}})
    })
}

fn some_slice() -> impl Strategy<Value = Value> {
    let endpoints = prop::collection::vec((0..3u8, any::<bool>(), prop::option::of(0..NAMES.len())), 0..3);
    (meta(), 0..NAMES.len(), endpoints).prop_map(|(mut meta, service, endpoints)| {
        add(&mut meta, &json!({"kubernetes.io/service-name": NAMES[service]}));
        let endpoints: Vec<Value> = endpoints
            .into_iter()
            .map(|(address, ready, pod)| {
                let target = pod.map(|pod| json!({"kind": "Pod", "name": NAMES[pod]}));
                json!({"addresses": [format!("192.0.2.{address}")], "conditions": {"ready": ready}, "targetRef": target})
            })
            .collect();
        json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "metadata": meta,
            "endpoints": endpoints, "ports": [{"name": "", "port": 8080, "protocol": "TCP"}]})
    })
}

fn selector() -> impl Strategy<Value = Value> {
    prop_oneof![Just(Value::Null), labels().prop_map(|labels| json!({"matchLabels": labels}))]
}

/// What a policy may be attached to.
fn target() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(json!({"kind": "Service", "group": "", "name": "x"})),
        Just(json!({"kind": "ServiceEntry", "group": "networking.istio.io", "name": "x"})),
        Just(json!({"kind": "Gateway", "group": "gateway.networking.k8s.io", "name": "x"})),
        Just(json!({"kind": "GatewayClass", "group": "gateway.networking.k8s.io", "name": "istio-waypoint"})),
    ]
}

fn some_policy() -> impl Strategy<Value = Value> {
    let rest = prop_oneof![
        4 => Just(json!({"rules": [{"from": [{"source": {"namespaces": ["a"]}}]}]})),
        1 => Just(json!({"action": "AUDIT"})),
        1 => Just(json!({"rules": [{"to": [{"operation": {"methods": ["GET"]}}]}]})),
        3 => target().prop_map(|target| json!({"selector": null, "targetRefs": [target]})),
    ];
    (meta(), selector(), rest).prop_map(|(meta, selector, rest)| {
        let mut spec = json!({"selector": selector});
        merge(&mut spec, &rest);
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": meta, "spec": spec})
    })
}

fn some_peer_authentication() -> impl Strategy<Value = Value> {
    let mode = || prop_oneof![Just("UNSET"), Just("STRICT"), Just("PERMISSIVE"), Just("DISABLE")];
    (meta(), selector(), mode(), prop::option::of(mode())).prop_map(|(meta, selector, mode, port)| {
        let selects =
            selector.pointer("/matchLabels").and_then(Value::as_object).is_some_and(|labels| !labels.is_empty());
        let mut spec = json!({"selector": selector, "mtls": {"mode": mode}});
        if let Some(mode) = port.filter(|_| selects) {
            spec["portLevelMtls"] = json!({"8080": {"mode": mode}});
        }
        json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": meta, "spec": spec})
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
    let more = prop_oneof![
        3 => Just(json!({})),
        1 => Just(json!({"topology.istio.io/network": "net1"})),
        1 => Just(json!({"mesh": "yes"})),
        1 => Just(json!({"mesh": "no"})),
    ];
    (0..NAMESPACES.len(), any::<bool>(), waypoint_labels(), more).prop_map(|(name, close, labels, more)| {
        let mut meta = json!({"name": NAMESPACES[name], "labels": labels,
            "annotations": if close { json!({"networking.istio.io/traffic-distribution": "PreferClose"}) } else { json!({}) }});
        add(&mut meta, &more);
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": meta})
    })
}

fn some_node() -> impl Strategy<Value = Value> {
    (1..3u8, 0..3u8).prop_map(|(node, zone)| {
        json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": format!("n{node}"), "labels": {"topology.kubernetes.io/zone": format!("z{zone}")}}})
    })
}

fn some_service_entry() -> impl Strategy<Value = Value> {
    let host = || 0..HOSTS.len();
    let kind = prop_oneof![
        Just(json!({"resolution": "DNS"})),
        Just(json!({"resolution": "NONE", "addresses": ["198.51.100.0/24"]})),
        Just(json!({"resolution": "DYNAMIC_DNS", "exportTo": ["."]})),
        labels().prop_map(|labels| json!({"resolution": "STATIC", "workloadSelector": {"labels": labels}})),
        Just(
            json!({"resolution": "STATIC", "endpoints": [{"address": "192.0.2.9", "labels": {"app": "one", "istio.io/use-waypoint": "y"}}]})
        ),
    ];
    (meta(), host(), host(), kind, any::<bool>(), any::<bool>()).prop_map(|(meta, one, two, kind, addresses, races)| {
        let mut hosts = vec![HOSTS[one], HOSTS[two]];
        hosts.dedup();
        let mut spec = json!({"hosts": hosts, "ports": [{"number": 80, "name": "http", "protocol": "HTTP"}]});
        merge(&mut spec, &kind);
        let mut meta = meta;
        if races {
            meta["annotations"] = json!({"istio.io/connect-strategy": "RACE_FIRST_TCP_CONNECT"});
        }
        // All the same ones, so that they are contested.
        let addresses = if addresses { json!([{"host": HOSTS[one], "value": "240.240.0.1"}, {"host": HOSTS[one], "value": "2001:2::1"}]) } else { json!([]) };
        json!({"apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": meta, "spec": spec, "status": {"addresses": addresses}})
    })
}

fn some_workload_entry() -> impl Strategy<Value = Value> {
    (meta(), labels(), any::<bool>()).prop_map(|(meta, labels, by_name)| {
        let address = if by_name { "vm.test" } else { "192.0.2.7" };
        json!({"apiVersion": "networking.istio.io/v1", "kind": "WorkloadEntry", "metadata": meta,
            "spec": {"address": address, "labels": labels, "ports": {"http": 8000}}})
    })
}

fn some_gateway() -> impl Strategy<Value = Value> {
    let traffic = prop_oneof![
        Just(json!({})),
        Just(json!({"istio.io/waypoint-for": "all"})),
        Just(json!({"istio.io/waypoint-for": "workload"}))
    ];
    let allowed = prop_oneof![
        Just(json!({"from": "Same"})),
        Just(json!({"from": "All"})),
        Just(json!({"from": "Selector", "selector": {"matchLabels": {"mesh": "yes"}}})),
    ];
    (meta(), traffic, allowed, any::<bool>(), any::<bool>()).prop_map(|(mut meta, traffic, allowed, ready, sandwich)| {
        add(&mut meta, &traffic);
        if sandwich {
            meta["annotations"] = json!({"ambient.istio.io/waypoint-inbound-binding": "PROXY/15088"});
        }
        let host = format!("{}.{}.svc.cluster.local", meta["name"].as_str().unwrap(), meta["namespace"].as_str().unwrap());
        let addresses = if ready { json!([{"type": "Hostname", "value": host}]) } else { json!([]) };
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": meta,
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE",
                "allowedRoutes": {"namespaces": allowed}}]},
            "status": {"addresses": addresses}})
    })
}

fn some_gateway_class() -> impl Strategy<Value = Value> {
    (any::<bool>(), any::<bool>()).prop_map(|(ours, all)| {
        let controller = if ours { "istio.io/mesh-controller" } else { "elsewhere.test/controller" };
        let labels = if all { json!({"istio.io/waypoint-for": "all"}) } else { json!({}) };
        json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "GatewayClass",
            "metadata": {"name": "istio-waypoint", "labels": labels}, "spec": {"controllerName": controller}})
    })
}

/// Kinds that have a status and no resources.
fn some_other() -> impl Strategy<Value = Value> {
    let kind = prop_oneof![
        3 => (prop::option::of(0..HOSTS.len()), any::<bool>()).prop_map(|(host, delegates)| {
            let delegate = if delegates { json!({"name": "y"}) } else { Value::Null };
            let route = if delegates { json!([]) } else { json!([{"destination": {"host": "x"}}]) };
            json!({"apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
                "spec": {"hosts": host.map(|host| vec![HOSTS[host]]), "http": [{"delegate": delegate, "route": route}]}})
        }),
        2 => (0..HOSTS.len(), any::<bool>()).prop_map(|(host, short)| {
            json!({"apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
                "spec": {"host": if short { "x" } else { HOSTS[host] }, "trafficPolicy": {"loadBalancer": {"simple": "LEAST_CONN"}}}})
        }),
        1 => target().prop_map(|target| json!({"apiVersion": "security.istio.io/v1", "kind": "RequestAuthentication",
            "spec": {"targetRefs": [target]}})),
        1 => Just(json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "spec": {"parentRefs": [{"group": "", "kind": "Service", "name": "x"}, {"name": "y"}]}})),
        1 => Just(json!({"apiVersion": "networking.istio.io/v1", "kind": "Sidecar", "spec": {}})),
    ];
    (meta(), kind).prop_map(|(meta, mut object)| {
        object["metadata"] = meta;
        object
    })
}

fn some_mesh_config() -> impl Strategy<Value = Value> {
    let config = prop_oneof![
        Just("{}"),
        Just("trustDomain: td\nunknown: 1"),
        Just("rootNamespace: a"),
        Just("discoverySelectors: [{matchLabels: {mesh: 'yes'}}]"),
        Just(
            "serviceEntryVisibility: {defaultVisibility: PUBLIC, policies: [{visibility: NAMESPACE, matchingRules: [{namespaceSelector: {matchLabels: {mesh: 'yes'}}}]}, {visibility: NONE, matchingRules: [{namespaceSelector: {matchLabels: {mesh: 'no'}}}]}]}"
        ),
    ];
    config.prop_map(|config| {
        json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "istio", "namespace": "istio-system"}, "data": {"mesh": config}})
    })
}

/// An object, whether it goes rather than comes, and whether the index is flushed afterwards.
fn step() -> impl Strategy<Value = (Value, bool, bool)> {
    let object = prop_oneof![
        5 => some_pod(),
        4 => some_service(),
        2 => some_slice(),
        3 => some_policy(),
        3 => some_peer_authentication(),
        2 => some_network_policy(),
        3 => some_namespace(),
        1 => some_node(),
        5 => some_service_entry(),
        2 => some_workload_entry(),
        3 => some_gateway(),
        1 => some_gateway_class(),
        3 => some_other(),
        2 => some_mesh_config(),
    ];
    (object, prop::bool::weighted(0.3), any::<bool>())
}

/// What a client would hold that applied each change.
#[derive(Default)]
struct Client {
    held: BTreeMap<Arc<str>, Bytes>,
}

impl Client {
    fn follow(&mut self, changes: Vec<Change>) {
        for change in changes {
            match change {
                Change::Upsert(name, resource) => {
                    let old = self.held.insert(name.clone(), resource.body.clone());
                    assert_ne!(old, Some(resource.body), "{name} was sent twice");
                }
                Change::Remove(name) => assert!(self.held.remove(&name).is_some(), "{name} was not there"),
            }
        }
    }
}

/// What would be written to the objects.
#[derive(Default)]
struct Statuses(BTreeMap<ObjectKey, Vec<PolicyCondition>>);

impl Statuses {
    fn follow(&mut self, changes: Vec<(ObjectKey, Vec<PolicyCondition>)>) {
        for (key, conditions) in changes {
            if conditions.is_empty() {
                self.0.remove(&key);
            } else {
                self.0.insert(key, conditions);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// The published resources are those of the objects that are there, the conditions too, and whoever follows the
    /// changes holds the same.
    #[test]
    fn incremental_equals_rebuilt(steps in prop::collection::vec(step(), 1..40), allow_waypoints: bool) {
        let mesh = Mesh { allow_waypoints, ..Mesh::default() };
        let mut index = Index::new(mesh.clone());
        let mut objects: BTreeMap<ObjectKey, Object> = BTreeMap::new();
        let (mut addresses, mut authorizations, mut statuses) = (Client::default(), Client::default(), Statuses::default());
        let mut follow = |changes: Changes| {
            addresses.follow(changes.addresses);
            authorizations.follow(changes.authorizations);
            statuses.follow(changes.statuses);
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

        let mut rebuilt = Index::new(mesh);
        for object in objects.into_values() {
            let _ = rebuilt.apply(Event::Applied(object));
        }
        rebuilt.flush();
        prop_assert_eq!(index.mesh(), rebuilt.mesh());
        prop_assert_eq!(index.addresses(), rebuilt.addresses());
        prop_assert_eq!(index.authorizations(), rebuilt.authorizations());
        prop_assert_eq!(index.statuses(), rebuilt.statuses());
        prop_assert_eq!(index.findings(), rebuilt.findings());
        prop_assert_eq!(&addresses.held, rebuilt.addresses());
        prop_assert_eq!(&authorizations.held, rebuilt.authorizations());
        let said: BTreeMap<_, _> = rebuilt.statuses().clone().into_iter().filter(|(_, said)| !said.is_empty()).collect();
        prop_assert_eq!(statuses.0, said);
        // Which address one gets may depend on who came first; that two don't get the same may not.
        let wanting = |index: &Index| index.allocations().into_iter().map(|one| one.entry).collect::<Vec<_>>();
        prop_assert_eq!(wanting(&index), wanting(&rebuilt));
        let proposed: Vec<String> = index.allocations().into_iter().flat_map(|one| one.addresses).map(|at| at.value).collect();
        let once: std::collections::BTreeSet<&String> = proposed.iter().filter(|at| *at != "240.240.0.1" && *at != "2001:2::1").collect();
        prop_assert_eq!(once.len(), proposed.iter().filter(|at| *at != "240.240.0.1" && *at != "2001:2::1").count());
    }
}
