//! What a change costs, in items translated: the same in a small mesh and in a large one.

use aquifer_objects::{Event, Kind, ObjectKey};
use serde_json::{Value, json};

use super::Index;
use super::tests::applied;
use crate::translate::Mesh;

const NAMESPACES: usize = 20;
const SERVICES: usize = 10;

fn pod(number: usize, address: u8) -> Event {
    let (namespace, service) = (number % NAMESPACES, number / NAMESPACES % SERVICES);
    applied(json!({"apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": format!("pod-{number}"), "namespace": format!("ns-{namespace}"),
            "labels": {"app": format!("app-{service}"), "pod": number.to_string()},
            "annotations": {"ambient.istio.io/redirection": "enabled"}},
        "spec": {"nodeName": format!("node-{}", number % 50), "containers": [{"name": "c", "image": "i"}]},
        "status": {"phase": "Running", "podIP": format!("10.{}.{}.{address}", number / 250, number % 250),
            "conditions": [{"type": "Ready", "status": "True"}]}}))
}

fn service(namespace: usize, service: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "Service",
        "metadata": {"name": format!("app-{service}"), "namespace": format!("ns-{namespace}")},
        "spec": {"clusterIP": "10.96.0.1", "selector": {"app": format!("app-{service}")}, "ports": [{"port": 80}]}})
}

/// A mesh with waypoints, policies and so many pods.
fn mesh(pods: usize) -> Index {
    let mut index = Index::new(Mesh::default());
    let mut take = |event: Event| {
        let _ = index.apply(event);
    };
    for namespace in 0..NAMESPACES {
        let name = format!("ns-{namespace}");
        take(applied(
            json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"istio.io/use-waypoint": "wp"}}}),
        ));
        take(applied(
            json!({"apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway", "metadata": {"name": "wp", "namespace": name},
            "spec": {"gatewayClassName": "istio-waypoint", "listeners": [{"name": "mesh", "port": 15008, "protocol": "HBONE"}]},
            "status": {"addresses": [{"type": "Hostname", "value": format!("wp.{name}.svc.cluster.local")}]}}),
        ));
        take(applied(
            json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": {"name": "p", "namespace": name},
            "spec": {"selector": {"matchLabels": {"app": "app-0"}}, "rules": [{}]}}),
        ));
        for number in 0..SERVICES {
            take(applied(service(namespace, number)));
        }
    }
    take(applied(
        json!({"apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication", "metadata": {"name": "default", "namespace": "istio-system"},
        "spec": {"mtls": {"mode": "STRICT"}}}),
    ));
    for number in 0..pods {
        take(pod(number, 1));
    }
    index.flush();
    index
}

/// How many items an event costs.
fn cost(index: &mut Index, event: Event) -> u64 {
    let before = index.translated();
    let _ = index.apply(event);
    index.flush();
    index.translated() - before
}

#[test]
fn a_pods_change_costs_its_own_translation_however_many_there_are() {
    for pods in [1000, 5000] {
        let mut index = mesh(pods);
        assert_eq!(index.addresses().len(), pods + NAMESPACES * SERVICES);
        assert_eq!(cost(&mut index, pod(7, 2)), 1, "another address, of {pods}");
        assert_eq!(cost(&mut index, pod(7, 2)), 0, "nothing new, of {pods}");
        assert_eq!(cost(&mut index, pod(pods, 1)), 1, "one more than {pods}");
        let gone = ObjectKey::new(Kind::Pod, &format!("ns-{}", pods % NAMESPACES), &format!("pod-{pods}"));
        assert_eq!(cost(&mut index, Event::Deleted(gone)), 1, "one less than {}", pods + 1);
        // The slice that a controller writes next says nothing new: the pods have said it.
        let slice = json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"name": "app-0-abc", "namespace": "ns-7", "labels": {"kubernetes.io/service-name": "app-0"}},
            "endpoints": [{"addresses": ["10.0.7.2"], "targetRef": {"kind": "Pod", "name": "pod-7"}}], "ports": [{"name": "", "port": 80, "protocol": "TCP"}]});
        assert_eq!(cost(&mut index, applied(slice)), 0);
    }
}

#[test]
fn wider_changes_cost_what_they_reach() {
    let pods = 1000;
    let mut index = mesh(pods);
    let behind = (pods / NAMESPACES / SERVICES) as u64;
    let mut bound = service(0, 0);
    bound["metadata"]["labels"] = json!({"istio.io/use-waypoint": "none"});
    assert_eq!(cost(&mut index, applied(bound)), 1, "who is before a service is no matter of those behind it");
    let mut ports = service(0, 0);
    ports["spec"]["ports"] = json!([{"port": 81}]);
    assert_eq!(cost(&mut index, applied(ports)), 1 + behind);
    let node = json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-0", "labels": {"topology.kubernetes.io/zone": "z"}}});
    assert_eq!(cost(&mut index, applied(node)), 20);
    // A waypoint for services that goes: its namespace's services, and none of their pods.
    let gone = Event::Deleted(ObjectKey::new(Kind::Gateway, "ns-1", "wp"));
    assert_eq!(cost(&mut index, gone), SERVICES as u64);
}
