//! Overlays as Kubernetes' strategic merge patches: maps merge, lists of named things merge by their name, other lists
//! are replaced, null removes.

use serde_json::{Map, Value};

/// By which field the items of a list are told apart; lists without one are replaced.
fn merge_key(list: &str, parent: &Parent) -> Option<&'static str> {
    Some(match list {
        "containers"
        | "initContainers"
        | "ephemeralContainers"
        | "volumes"
        | "env"
        | "imagePullSecrets"
        | "resourceClaims"
        | "secrets" => "name",
        "ports" if *parent == Parent::Container => "containerPort",
        "ports" => "port",
        "volumeMounts" => "mountPath",
        "volumeDevices" => "devicePath",
        "hostAliases" => "ip",
        "topologySpreadConstraints" => "topologyKey",
        _ => return None,
    })
}

#[derive(PartialEq)]
enum Parent {
    Container,
    Other,
}

/// Lays a patch over an object; the error names the field that cannot be merged.
pub(super) fn strategic(base: &mut Value, patch: &Value) -> Result<(), String> {
    if !patch.is_object() {
        return Err("is not a map of fields".to_owned());
    }
    value(base, patch, "", &Parent::Other)
}

fn value(base: &mut Value, patch: &Value, path: &str, parent: &Parent) -> Result<(), String> {
    let Value::Object(fields) = patch else {
        *base = patch.clone();
        return Ok(());
    };
    match fields.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *base = Value::Object(fields.iter().filter(|(key, _)| !key.starts_with('$')).map(own).collect());
            return Ok(());
        }
        Some("delete") => {
            *base = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(format!("{path}: unknown $patch {other:?}; known are merge, replace, delete")),
    }
    if !base.is_object() {
        *base = Value::Object(Map::new());
    }
    let Value::Object(into) = base else { return Ok(()) };
    if let Some(keep) = fields.get("$retainKeys").and_then(Value::as_array) {
        into.retain(|key, _| keep.iter().any(|kept| kept == key.as_str()));
    }
    for (key, patch) in fields.iter().filter(|(key, _)| !key.starts_with('$')) {
        let path = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
        match patch {
            Value::Null => {
                into.remove(key);
            }
            Value::Array(items) => {
                let old = into.entry(key.clone()).or_insert_with(|| Value::Array(Vec::new()));
                match merge_key(key, parent) {
                    Some(name) => list(old, items, name, &path, key)?,
                    None => *old = Value::Array(items.clone()),
                }
            }
            patch => value(into.entry(key.clone()).or_insert(Value::Null), patch, &path, &Parent::Other)?,
        }
    }
    Ok(())
}

fn list(base: &mut Value, patch: &[Value], name: &str, path: &str, field: &str) -> Result<(), String> {
    let directive = |item: &Value, word: &str| item["$patch"] == word;
    if patch.iter().any(|item| directive(item, "replace") && item.get(name).is_none()) {
        *base = patch.iter().filter(|item| !directive(item, "replace")).cloned().collect();
        return Ok(());
    }
    if !base.is_array() {
        *base = Value::Array(Vec::new());
    }
    let Value::Array(into) = base else { return Ok(()) };
    let parent = if field.ends_with("ontainers") { Parent::Container } else { Parent::Other };
    for (index, item) in patch.iter().enumerate() {
        let Some(id) = item.get(name) else {
            return Err(format!("{path}[{index}]: has no {name}, by which it is told from the others"));
        };
        let at = into.iter().position(|old| old.get(name) == Some(id));
        if directive(item, "delete") {
            at.map(|at| into.remove(at));
            continue;
        }
        let at = at.unwrap_or_else(|| {
            into.push(Value::Null);
            into.len() - 1
        });
        value(&mut into[at], item, &format!("{path}[{index}]"), &parent)?;
    }
    Ok(())
}

fn own((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn merged(mut base: Value, patch: Value) -> Result<Value, String> {
        strategic(&mut base, &patch).map(|()| base)
    }

    #[test]
    fn as_kubernetes_merges() {
        let pod = |spec: Value| json!({ "spec": { "template": { "spec": spec } } });
        let base = json!({ "containers": [
            { "name": "istio-proxy", "image": "a", "ports": [{ "containerPort": 1, "name": "x" }], "env": [{ "name": "A", "value": "1" }] },
        ], "tolerations": [{ "key": "a" }], "volumes": [{ "name": "v", "emptyDir": {} }] });
        let table = [
            (
                "a container by name",
                json!({ "containers": [{ "name": "istio-proxy", "image": "b" }] }),
                "/containers/0/image",
                json!("b"),
            ),
            (
                "another is appended",
                json!({ "containers": [{ "name": "second" }] }),
                "/containers/1/name",
                json!("second"),
            ),
            (
                "ports by number",
                json!({ "containers": [{ "name": "istio-proxy", "ports": [{ "containerPort": 1, "name": "y" }] }] }),
                "/containers/0/ports",
                json!([{ "containerPort": 1, "name": "y" }]),
            ),
            (
                "a variable",
                json!({ "containers": [{ "name": "istio-proxy", "env": [{ "name": "B", "value": "2" }] }] }),
                "/containers/0/env",
                json!([{ "name": "A", "value": "1" }, { "name": "B", "value": "2" }]),
            ),
            (
                "a variable goes",
                json!({ "containers": [{ "name": "istio-proxy", "env": [{ "name": "A", "$patch": "delete" }] }] }),
                "/containers/0/env",
                json!([]),
            ),
            (
                "null removes",
                json!({ "containers": [{ "name": "istio-proxy", "env": null }] }),
                "/containers/0/env",
                Value::Null,
            ),
            (
                "lists without names are replaced",
                json!({ "tolerations": [{ "key": "b" }] }),
                "/tolerations",
                json!([{ "key": "b" }]),
            ),
            (
                "a list is replaced on demand",
                json!({ "volumes": [{ "$patch": "replace" }, { "name": "w" }] }),
                "/volumes",
                json!([{ "name": "w" }]),
            ),
            ("a map too", json!({ "affinity": { "$patch": "replace", "x": 1 } }), "/affinity", json!({ "x": 1 })),
        ];
        for (what, patch, pointer, expected) in table {
            let result = merged(pod(base.clone()), pod(patch)).unwrap();
            let found = result.pointer(&format!("/spec/template/spec{pointer}")).cloned().unwrap_or_default();
            assert_eq!(found, expected, "{what}");
        }
    }

    #[test]
    fn what_cannot_be_merged_is_named() {
        let error = merged(json!({}), json!({ "spec": { "ports": [{ "name": "x" }] } })).unwrap_err();
        assert_eq!(error, "spec.ports[0]: has no port, by which it is told from the others");
        assert!(merged(json!({}), json!("text")).is_err());
        assert!(
            merged(json!({}), json!({ "spec": { "$patch": "sideways" } }))
                .unwrap_err()
                .contains("spec: unknown $patch")
        );
    }
}
