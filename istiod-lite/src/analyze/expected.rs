//! What a cluster would make of manifests, as far as it matters to what is said about them: a pod for each
//! Deployment, an address for each waypoint and its class, the namespaces that are only named.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_objects::parse::parse_object;
use aquifer_objects::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use crate::translate::gateway::MESH_CONTROLLER;

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The class of waypoints.
const WAYPOINT_CLASS: &str = "istio-waypoint";

/// The objects, and what controllers would add.
pub(super) fn complete(mut objects: Vec<Object>) -> Vec<Object> {
    let keys: BTreeSet<ObjectKey> = objects.iter().map(Object::key).collect();
    let ambient: BTreeMap<String, bool> = objects
        .iter()
        .filter(|object| object.kind() == Kind::Namespace)
        .map(|namespace| (namespace.name().to_owned(), namespace.label(DATAPLANE_MODE) == Some("ambient")))
        .collect();
    let mut made = Vec::new();
    for (number, object) in objects.iter_mut().enumerate() {
        match object {
            Object::Deployment(deployment) if deployment.spec.replicas != Some(0) => {
                let template = deployment.spec.template.metadata.as_ref();
                let labels = template.and_then(|meta| meta.labels.clone()).unwrap_or_default();
                let enrolled = match labels.get(DATAPLANE_MODE).map(String::as_str) {
                    Some(mode) => mode == "ambient",
                    None => ambient.get(object.namespace()).copied().unwrap_or(false),
                };
                made.push(pod(object, number, &json!(labels), enrolled));
            }
            Object::Gateway(gateway)
                if gateway.spec.gateway_class_name == WAYPOINT_CLASS && gateway.status.is_none() =>
            {
                let mut with_address = object.to_json();
                with_address["status"] = json!({ "addresses": [{ "type": "IPAddress", "value": "192.0.2.1" }] });
                if let Ok(read) = parse_object(with_address) {
                    *object = read;
                }
            }
            _ => {}
        }
    }
    let named: BTreeSet<String> =
        objects.iter().map(|object| object.namespace().to_owned()).filter(|name| !name.is_empty()).collect();
    made.extend(
        named
            .into_iter()
            .filter(|name| !keys.contains(&ObjectKey::new(Kind::Namespace, "", name)))
            .map(|name| json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": name } })),
    );
    made.push(json!({
        "apiVersion": Kind::GatewayClass.api_version(),
        "kind": "GatewayClass",
        "metadata": { "name": WAYPOINT_CLASS },
        "spec": { "controllerName": MESH_CONTROLLER },
    }));
    // What stands in the manifests counts more than what would be made.
    let made = made.into_iter().filter_map(|object| parse_object(object).ok());
    objects.extend(made.filter(|object| !keys.contains(&object.key())).collect::<Vec<_>>());
    objects
}

/// A running pod of the Deployment. Its addresses only need to differ from all others'.
fn pod(deployment: &Object, number: usize, labels: &Value, enrolled: bool) -> Value {
    let (name, namespace) = (deployment.name(), deployment.namespace());
    let address = format!("198.51.{}.{}", (number / 250) % 250, number % 250 + 1);
    let annotations = if enrolled { json!({ "ambient.istio.io/redirection": "enabled" }) } else { json!({}) };
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": namespace, "labels": labels, "annotations": annotations },
        "spec": { "nodeName": "node", "containers": [] },
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}
