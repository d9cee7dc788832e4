//! Objects in, actions out: `testdata/gateway/<case>/in.yaml` and `out.yaml` (`UPDATE_GOLDEN=1` writes them anew), and
//! the recording of the reference.

mod recording;
mod yaml;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aquifer_objects::parse::{parse_manifest, parse_object};
use aquifer_objects::{Event, Kind, Object, ObjectKey};
use aquifer_runtime::env::{Env as _, ProcessEnv};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::controller::Controller;
use super::reconcile::Action;
use super::{MANAGED, Settings, Told};
use crate::revision::Revision;
use crate::status::{Condition, GatewayStatus};

fn settings(image: bool) -> Settings {
    Settings {
        waypoint_image: image.then(|| "registry.example.com/aquifer/waypoint:1".to_owned()),
        revision: "default".into(),
        root_namespace: "istio-system".into(),
        cluster_domain: "cluster.local".into(),
        cluster_id: "Kubernetes".into(),
    }
}

fn told(trust_domain: &str, network: &str) -> Told {
    Told { trust_domain: trust_domain.into(), network: network.into(), ..Told::default() }
}

/// As the task would be after its first read; objects without our label are found by asking for them.
fn controller(objects: &[Object], settings: Settings, now: Instant) -> Controller {
    let mut controller = Controller::new(settings, told("cluster.local", ""), Revision::default(), true);
    let children = [
        Kind::ServiceAccount,
        Kind::Deployment,
        Kind::Service,
        Kind::HorizontalPodAutoscaler,
        Kind::PodDisruptionBudget,
    ];
    for object in objects {
        if !children.contains(&object.kind()) || object.label(MANAGED).is_some() {
            controller.take(&Event::Applied(object.clone()), now);
        }
    }
    controller.take(&Event::Synced, now);
    for object in objects.iter().filter(|object| object.kind() == Kind::Gateway) {
        for name in controller.unread(&object.key(), now) {
            let found = objects.iter().find(|object| object.key() == name).cloned();
            controller.was_read(name, found, now);
        }
    }
    controller
}

fn conditions(conditions: &[Condition]) -> Value {
    let one = |one: &Condition| json!({ "type": one.type_, "status": one.status, "reason": one.reason, "message": one.message });
    conditions.iter().map(one).collect()
}

fn status(status: &GatewayStatus) -> Value {
    let listener = |one: &crate::status::ListenerStatus| {
        json!({ "name": one.name, "attachedRoutes": one.attached_routes, "supportedKinds": one.supported_kinds,
            "conditions": conditions(&one.conditions) })
    };
    let address = |(type_, value): &(String, String)| json!({ "type": type_, "value": value });
    json!({
        "conditions": conditions(&status.conditions),
        "listeners": status.listeners.iter().map(listener).collect::<Value>(),
        "addresses": status.addresses.iter().map(address).collect::<Value>(),
    })
}

fn shown(action: &Action) -> Value {
    match action {
        Action::Claim(key) => json!({ "claim": key.to_string() }),
        Action::Apply(_, object) => json!({ "apply": object }),
        Action::Delete(key, uid) => json!({ "delete": key.to_string(), "uid": uid }),
        Action::Status(key, wanted) => json!({ "status": key.to_string(), "is": status(wanted) }),
    }
}

#[test]
fn golden() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("testdata/gateway");
    let mut cases: Vec<PathBuf> = fs::read_dir(&root).unwrap().map(|entry| entry.unwrap().path()).collect();
    cases.sort();
    assert!(cases.len() > 8, "{cases:?}");
    let mut wrong = Vec::new();
    for case in cases {
        let text = fs::read_to_string(case.join("in.yaml")).unwrap();
        let objects = parse_manifest(&case.join("in.yaml"), &text).unwrap();
        let now = Instant::now();
        let mut controller = controller(&objects, settings(!case.ends_with("no-image")), now);
        let (missing, told) = controller.classes();
        let mut out: Vec<Value> = missing.into_iter().map(|class| json!({ "create": class })).collect();
        out.extend(told.iter().map(|(class, told)| json!({ "class": class.name(), "is": conditions(told) })));
        for object in objects.iter().filter(|object| object.kind() == Kind::Gateway) {
            out.extend(controller.actions(&object.key(), now).iter().map(shown));
        }
        for orphan in controller.orphaned() {
            out.extend(controller.actions(&orphan, now).iter().map(shown));
        }
        let found = yaml::documents(&out);
        let file = case.join("out.yaml");
        if ProcessEnv.var("UPDATE_GOLDEN").is_some() {
            fs::write(&file, &found).unwrap();
        } else if fs::read_to_string(&file).unwrap_or_default() != found {
            wrong.push(format!("{}:\n{found}", case.display()));
        }
    }
    assert!(wrong.is_empty(), "not as in out.yaml (UPDATE_GOLDEN=1 writes it anew):\n{}", wrong.join("\n"));
}

fn gateway(annotations: Value) -> Object {
    parse_object(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": "wp", "namespace": "shop", "uid": "u-1", "annotations": annotations },
        "spec": { "gatewayClassName": "istio-waypoint", "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }] },
    }))
    .unwrap()
}

fn applies(actions: &[Action]) -> Vec<(ObjectKey, Value)> {
    let one = |action: &Action| match action {
        Action::Apply(key, object) => Some((key.clone(), object.clone())),
        _ => None,
    };
    actions.iter().filter_map(one).collect()
}

/// What stands as it was written is left alone; what somebody changes or deletes is put right.
#[test]
fn what_stands_is_not_written_again() {
    let start = Instant::now();
    let object = gateway(json!({}));
    let key = object.key();
    let mut controller = controller(&[object], settings(true), start);
    let first = applies(&controller.actions(&key, start));
    assert_eq!(first.len(), 3);
    let mut standing = Vec::new();
    for (number, (key, value)) in first.iter().enumerate() {
        controller.applied(key, value, start);
        let mut stands = value.clone();
        stands["metadata"]["uid"] = json!(format!("c-{number}"));
        standing.push(parse_object(stands).unwrap());
    }
    assert_eq!(applies(&controller.actions(&key, start)), [], "not yet come back");
    for object in &standing {
        controller.take(&Event::Applied(object.clone()), start);
    }
    assert_eq!(applies(&controller.actions(&key, start)), [], "come back as written");

    // A status is nobody's wish; a label is.
    let deployment = standing.iter().find(|object| object.kind() == Kind::Deployment).unwrap();
    let mut changed = deployment.to_json();
    changed["status"] = json!({ "readyReplicas": 1 });
    controller.take(&Event::Applied(parse_object(changed.clone()).unwrap()), start);
    assert_eq!(applies(&controller.actions(&key, start)), []);
    changed["spec"]["replicas"] = json!(7);
    controller.take(&Event::Applied(parse_object(changed).unwrap()), start);
    let again = applies(&controller.actions(&key, start));
    assert_eq!(again.iter().map(|(key, _)| key.kind).collect::<Vec<_>>(), [Kind::Deployment]);
    assert_eq!(again[0].1["metadata"]["uid"], "c-1", "and no other object of that name is meant");

    let service = standing.iter().find(|object| object.kind() == Kind::Service).unwrap();
    controller.take(&Event::Deleted(service.key()), start);
    let again = applies(&controller.actions(&key, start));
    assert!(again.iter().any(|(key, _)| key.kind == Kind::Service));
}

/// The variables of the Deployment's container that say where in the mesh a waypoint is.
fn variables(actions: &[Action]) -> Vec<(String, String)> {
    let applied = applies(actions);
    let Some((_, deployment)) = applied.iter().find(|(key, _)| key.kind == Kind::Deployment) else { return Vec::new() };
    let env = deployment.pointer("/spec/template/spec/containers/0/env").unwrap().as_array().unwrap();
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let all = env.iter().map(|one| (text(&one["name"]), text(&one["value"])));
    all.filter(|(name, _)| name.contains("TRUST_DOMAIN") || name.contains("NETWORK")).collect()
}

/// What the mesh says now is what waypoints are told; a Gateway's own label names its network.
#[test]
fn deployments_follow_the_mesh() {
    let start = Instant::now();
    let object = gateway(json!({}));
    let key = object.key();
    let mut controller = controller(std::slice::from_ref(&object), settings(true), start);
    let pair = |name: &str, value: &str| (name.to_owned(), value.to_owned());
    while controller.next(start).is_some() {}
    let actions = controller.actions(&key, start);
    assert_eq!(variables(&actions), [pair("TRUST_DOMAIN", "cluster.local")]);
    for (key, value) in applies(&actions) {
        controller.applied(&key, &value, start);
        controller.take(&Event::Applied(parse_object(value).unwrap()), start);
    }
    assert_eq!(applies(&controller.actions(&key, start)), []);
    while controller.next(start).is_some() {}

    controller.tell(told("cluster.local", ""), start);
    assert_eq!(controller.next(start), None, "nothing new");
    controller.tell(told("new.test", "east"), start);
    assert_eq!(controller.next(start), Some(key.clone()));
    let actions = controller.actions(&key, start);
    let expect = [pair("TRUST_DOMAIN", "new.test"), pair("NETWORK", "east"), pair("ISTIO_META_NETWORK", "east")];
    assert_eq!(variables(&actions), expect);
    let (_, deployment) = applies(&actions).into_iter().find(|(key, _)| key.kind == Kind::Deployment).unwrap();
    assert_eq!(deployment["spec"]["template"]["metadata"]["labels"]["topology.istio.io/network"], "east");

    let mut json = object.to_json();
    json["metadata"]["labels"] = json!({ "topology.istio.io/network": "west" });
    controller.take(&Event::Applied(parse_object(json).unwrap()), start);
    let expect = [pair("TRUST_DOMAIN", "new.test"), pair("NETWORK", "west"), pair("ISTIO_META_NETWORK", "west")];
    assert_eq!(variables(&controller.actions(&key, start)), expect);
}

/// A waypoint outside of the discovery selectors is nobody's; they act when they change, and when a namespace's labels do.
#[test]
fn namespaces_that_are_not_discovered_get_no_waypoint() {
    let start = Instant::now();
    let object = gateway(json!({}));
    let key = object.key();
    let namespace = |labels: Value| {
        let json = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": "shop", "labels": labels } });
        Event::Applied(parse_object(json).unwrap())
    };
    let selecting = || {
        let mesh = aquifer_objects::mesh_config::parse("discoverySelectors: [{matchLabels: {mesh: here}}]").unwrap().0;
        Told::from(&crate::translate::Mesh::default().overruled(&mesh))
    };
    let mut controller = controller(std::slice::from_ref(&object), settings(true), start);
    let acts = |controller: &mut Controller, woken: bool| {
        assert_eq!(controller.next(start).is_some(), woken);
        while controller.next(start).is_some() {}
        let acts = !controller.actions(&key, start).is_empty();
        // Who is not discovered is not asked after either.
        let later = start + Duration::from_secs(60);
        assert_eq!(!controller.unread(&key, later).is_empty(), acts);
        acts
    };
    assert!(acts(&mut controller, true));
    controller.tell(selecting(), start);
    assert!(!acts(&mut controller, true));
    controller.take(&namespace(json!({ "mesh": "elsewhere" })), start);
    assert!(!acts(&mut controller, true));
    controller.take(&namespace(json!({ "mesh": "here" })), start);
    assert!(acts(&mut controller, true));
    controller.take(&namespace(json!({ "mesh": "here" })), start);
    assert!(acts(&mut controller, false), "nothing new");
    controller.take(&namespace(json!({})), start);
    assert!(!acts(&mut controller, true));
    controller.tell(told("cluster.local", ""), start);
    assert!(acts(&mut controller, true), "no selectors select all");
    let own = Told { own: ["istio-system".into(), "shop".into()], ..selecting() };
    controller.tell(own, start);
    assert!(acts(&mut controller, true), "the control plane's own namespaces always belong to the mesh");
}

#[test]
fn a_gateway_that_never_rests_has_to_wait() {
    let start = Instant::now();
    let object = gateway(json!({}));
    let mut controller = controller(std::slice::from_ref(&object), settings(true), start);
    let mut turns = 0;
    for tick in 0..3000 {
        let now = start + Duration::from_millis(100 * tick);
        controller.take(&Event::Applied(object.clone()), now);
        while controller.next(now).is_some() {
            turns += 1;
        }
    }
    assert!((900..=1100).contains(&turns), "{turns}");
}

#[test]
fn another_revisions_gateway_is_left_to_it() {
    let now = Instant::now();
    let object = gateway(json!({}));
    let mut json = object.to_json();
    json["metadata"]["labels"] = json!({ "istio.io/rev": "canary" });
    let labelled = parse_object(json).unwrap();
    let key = labelled.key();
    let namespace = parse_object(json!({ "apiVersion": "v1", "kind": "Namespace",
        "metadata": { "name": "shop", "labels": { "istio.io/rev": "canary" } } }))
    .unwrap();
    let table = [(vec![labelled], "canary"), (vec![object.clone()], "default"), (vec![object, namespace], "canary")];
    for (objects, owner) in table {
        for (name, is_default) in [("default", true), ("canary", false)] {
            let mut controller =
                Controller::new(settings(true), Told::default(), Revision::new(name, [], is_default), true);
            for object in &objects {
                controller.take(&Event::Applied(object.clone()), now);
            }
            controller.take(&Event::Synced, now);
            let acts = !controller.actions(&key, now).is_empty();
            assert_eq!(acts, name == owner, "{name} of {}", objects.len());
        }
    }
}
