//! The reference made these objects of these Gateways, and said this of them.

use std::fs;
use std::path::Path;

use super::*;

fn read(case: &str, file: &str) -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/recordings/translation");
    let text = fs::read_to_string(root.join(case).join(file)).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Every field of ours is theirs too; a list of theirs may hold no more than ours.
fn within(ours: &Value, theirs: &Value, path: &str, out: &mut Vec<String>) {
    match (ours, theirs) {
        (Value::Object(ours), Value::Object(theirs)) => {
            for (key, value) in ours {
                within(value, theirs.get(key).unwrap_or(&Value::Null), &format!("{path}.{key}"), out);
            }
        }
        (Value::Array(ours), Value::Array(theirs)) if ours.len() == theirs.len() => {
            for (index, (ours, theirs)) in ours.iter().zip(theirs).enumerate() {
                within(ours, theirs, &format!("{path}[{index}]"), out);
            }
        }
        _ if ours == theirs => {}
        _ => out.push(format!("{path}: ours {ours}, theirs {theirs}")),
    }
}

fn without_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("lastTransitionTime");
            fields.remove("observedGeneration");
            fields.values_mut().for_each(without_times);
        }
        Value::Array(items) => items.iter_mut().for_each(without_times),
        _ => {}
    }
}

#[test]
fn as_the_reference_made_them() {
    let mut recorded: Vec<Value> = read("00-baseline", "objects.json");
    recorded.extend(read("f-waypoints", "objects.json"));
    let mut objects = Vec::new();
    for value in &recorded {
        let mut value = value.clone();
        if value["kind"] == "Gateway" {
            // As if nothing had been said of them yet.
            value["status"] = json!({});
        }
        if value["kind"] == "Deployment" {
            // The recording leaves the template out, without which it is no Deployment.
            value["spec"]["template"] = json!({ "metadata": { "labels": value["spec"]["selector"]["matchLabels"] },
                "spec": { "containers": [{ "name": "x", "image": "x" }] } });
        }
        // Kinds that nobody reads.
        objects.extend(parse_object(value));
    }
    let now = Instant::now();
    let mut controller = controller(&objects, settings(true), now);
    let (missing, told) = controller.classes();
    assert_eq!(missing, Vec::<Value>::new());
    let recorded_classes = recorded.iter().filter(|value| value["kind"] == "GatewayClass");
    for (class, ours) in &told {
        let theirs = recorded_classes.clone().find(|value| value["metadata"]["name"] == class.name()).unwrap();
        let mut theirs = theirs["status"]["conditions"].clone();
        without_times(&mut theirs);
        assert_eq!(conditions(ours), theirs, "{}", class.key());
    }
    let told_of: Vec<&str> = told.iter().map(|(class, _)| class.name()).collect();
    assert_eq!(told_of, ["istio-remote", "istio-waypoint"]);

    let mut compared = 0;
    for gateway in objects.iter().filter(|object| object.kind() == Kind::Gateway) {
        for action in controller.actions(&gateway.key(), now) {
            compared += 1;
            match action {
                Action::Claim(_) => {}
                Action::Delete(key, _) => panic!("{key} is theirs too"),
                Action::Apply(key, ours) => compare(&key, ours, &recorded),
                Action::Status(key, ours) => {
                    let all = read("f-waypoints", "status.json");
                    let theirs = all.iter().find(|one| one["kind"] == "Gateway" && one["name"] == *key.name).unwrap();
                    let mut theirs = theirs["status"].clone();
                    without_times(&mut theirs);
                    assert_eq!(status(&ours), theirs, "{key}");
                }
            }
        }
    }
    assert_eq!(compared, 5 * 5);
}

fn compare(key: &ObjectKey, mut ours: Value, recorded: &[Value]) {
    let named = |value: &&Value| value["kind"] == key.kind.as_str() && value["metadata"]["name"] == *key.name;
    let mut theirs = recorded.iter().find(named).unwrap_or_else(|| panic!("{key} is not theirs")).clone();
    if key.kind == Kind::Deployment {
        // The template is seen in the pods.
        let template = ours["spec"]["template"].take();
        ours["spec"].as_object_mut().unwrap().remove("template");
        let pod = recorded.iter().find(|value| {
            value["kind"] == "Pod" && value["metadata"]["labels"]["gateway.networking.k8s.io/gateway-name"] == *key.name
        });
        let mut labels = pod.unwrap()["metadata"]["labels"].clone();
        labels.as_object_mut().unwrap().remove("pod-template-hash");
        assert_eq!(template["metadata"]["labels"], labels, "{key}");
        assert_eq!(template["metadata"]["annotations"], pod.unwrap()["metadata"]["annotations"], "{key}");
        assert_eq!(template["spec"]["serviceAccountName"], pod.unwrap()["spec"]["serviceAccountName"], "{key}");
        theirs["metadata"]["annotations"].as_object_mut().unwrap().remove("deployment.kubernetes.io/revision");
    }
    let mut wrong = Vec::new();
    within(&ours, &theirs, "", &mut wrong);
    assert_eq!(wrong, Vec::<String>::new(), "{key}");
    for (field, missing) in [("labels", Value::Null), ("ownerReferences", Value::Null), ("annotations", json!({}))] {
        let of = |value: &Value| value["metadata"].get(field).cloned().filter(|value| *value != missing);
        assert_eq!(of(&ours).filter(|v| *v != json!({})), of(&theirs).filter(|v| *v != json!({})), "{key}: {field}");
    }
}
