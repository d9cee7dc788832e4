//! `deploy/crds/` holds what the Rust types make. `UPDATE_CRDS=1 cargo test -p aquifer-objects --test crds` rewrites it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use aquifer_objects::crds::definition;
use serde_json::Value;

#[test]
fn checked_in_definitions_are_current() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../deploy/crds");
    let fresh: BTreeMap<String, String> = definition::all().iter().map(file).collect();
    if std::env::vars().any(|(key, _)| key == "UPDATE_CRDS") {
        fs::remove_dir_all(&folder).ok();
        fs::create_dir_all(&folder).expect("deploy/crds");
        for (name, text) in &fresh {
            fs::write(folder.join(name), text).expect("a writable tree");
        }
    }
    let held = fs::read_dir(&folder).expect("deploy/crds").map(|entry| {
        let path = entry.expect("a readable entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        (name, fs::read_to_string(path).expect("text"))
    });
    let held: BTreeMap<String, String> = held.collect();
    let stale: Vec<&String> =
        fresh.keys().chain(held.keys()).filter(|name| fresh.get(*name) != held.get(*name)).collect();
    assert!(
        stale.is_empty(),
        "deploy/crds is stale ({stale:?}): run UPDATE_CRDS=1 cargo test -p aquifer-objects --test crds"
    );
}

/// A definition's file, with sorted keys: `<group>_<plural>.yaml`.
fn file(definition: &Value) -> (String, String) {
    let text = |pointer: &str| definition.pointer(pointer).and_then(Value::as_str).expect("a string");
    let name = format!("{}_{}.yaml", text("/spec/group"), text("/spec/names/plural"));
    let yaml = serde_norway::to_string(&sorted(definition)).expect("JSON is YAML");
    (name, format!("# Made from the Rust types; crates/objects/tests/crds.rs rewrites it.\n{yaml}"))
}

fn sorted(value: &Value) -> serde_norway::Value {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<&String, &Value> = fields.iter().collect();
            let fields = fields.into_iter().map(|(key, value)| (key.as_str().into(), sorted(value)));
            serde_norway::Value::Mapping(fields.collect())
        }
        Value::Array(items) => serde_norway::Value::Sequence(items.iter().map(sorted).collect()),
        other => serde_norway::to_value(other).expect("a scalar"),
    }
}
