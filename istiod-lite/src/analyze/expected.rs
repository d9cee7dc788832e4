//! What a cluster would make of manifests, as far as it matters to what is said about them: a running pod for each
//! workload, an address for each waypoint and its class, the namespaces that are only named.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_objects::parse::parse_object;
use aquifer_objects::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use super::Workload;
use crate::translate::gateway::MESH_CONTROLLER;

const DATAPLANE_MODE: &str = "istio.io/dataplane-mode";
/// The class of waypoints.
const WAYPOINT_CLASS: &str = "istio-waypoint";

/// The objects, and what controllers would add to them and make of the workloads.
pub(super) fn complete(mut objects: Vec<Object>, workloads: &[Workload]) -> Vec<Object> {
    let mut keys: BTreeSet<ObjectKey> = objects.iter().map(Object::key).collect();
    let ambient: BTreeMap<String, bool> = objects
        .iter()
        .filter(|object| object.kind() == Kind::Namespace)
        .map(|namespace| (namespace.name().to_owned(), namespace.label(DATAPLANE_MODE) == Some("ambient")))
        .collect();
    let mut workloads = workloads.to_vec();
    let mut bare = Vec::new();
    for object in &mut objects {
        match object {
            Object::Deployment(deployment) => workloads.push(Workload::of_deployment(deployment)),
            // One that was exported from a cluster says itself what became of it.
            Object::Pod(pod) if pod.status.as_ref().is_none_or(|status| status.phase.is_none()) => {
                bare.push(Workload::of_pod(pod));
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
    // A bare pod is replaced by itself, running.
    let bare_keys: BTreeSet<ObjectKey> =
        bare.iter().map(|pod| ObjectKey::new(Kind::Pod, pod.namespace(), pod.key().2)).collect();
    objects.retain(|object| !bare_keys.contains(&object.key()));
    keys.retain(|key| !bare_keys.contains(key));

    let mut made = Vec::new();
    let running = bare.iter().chain(&workloads).filter(|workload| workload.is_running());
    for (number, workload) in running.enumerate() {
        let key = |name: &String| ObjectKey::new(Kind::Pod, workload.namespace(), name);
        let Some(name) = workload.pod_names().into_iter().find(|name| !keys.contains(&key(name))) else { continue };
        made.extend(parse_object(pod(workload, &name, number, &ambient)));
        keys.insert(key(&name));
    }
    objects.extend(made);

    let mut made = Vec::new();
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

/// A running pod of the workload. Its addresses only need to differ from all others'.
fn pod(workload: &Workload, name: &str, number: usize, ambient: &BTreeMap<String, bool>) -> Value {
    let template = workload.template();
    let meta = template.metadata.clone().unwrap_or_default();
    let (labels, mut annotations) = (meta.labels.unwrap_or_default(), meta.annotations.unwrap_or_default());
    let on_host = template.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or(false);
    // As the node agent decides.
    let enrolled = match labels.get(DATAPLANE_MODE).map(String::as_str) {
        Some("none") => false,
        Some("ambient") => true,
        _ => ambient.get(workload.namespace()).copied().unwrap_or(false),
    };
    if enrolled && !on_host {
        annotations.insert("ambient.istio.io/redirection".to_owned(), "enabled".to_owned());
    }
    let address = format!("198.51.{}.{}", (number / 250) % 250, number % 250 + 1);
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name, "namespace": workload.namespace(), "labels": labels, "annotations": annotations },
        "spec": { "nodeName": "node", "containers": [], "hostNetwork": on_host },
        "status": {
            "phase": "Running",
            "podIP": address,
            "podIPs": [{ "ip": address }],
            "conditions": [{ "type": "Ready", "status": "True" }],
        },
    })
}
