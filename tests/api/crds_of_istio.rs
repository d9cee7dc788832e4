//! Our definitions of Istio's kinds against Istio's own, whose Go module is downloaded for it: group, names, scope,
//! versions, columns and every field with its type and rules. What is meant to differ stands in [`INTENDED`]. Needs the Go proxy, but no API server.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;

use aquifer_objects::crds::definition;
use serde::Deserialize;
use serde_json::Value;

const MODULE: &str = "istio.io/api@v1.31.1";
const DEFINITIONS: &str = "kubernetes/customresourcedefinitions.gen.yaml";

/// Where ours are meant to differ, and why: plural, the path's beginning, reason.
const INTENDED: &[(&str, &str, &str)] = &[
    ("envoyfilters", ".spec", "without effect: the spec is kept unread"),
    ("gateways", ".spec", "without effect: the spec is kept unread"),
    ("proxyconfigs", ".spec", "without effect: the spec is kept unread"),
    ("sidecars", ".spec", "without effect: the spec is kept unread"),
    ("trafficextensions", ".spec", "without effect: the spec is kept unread"),
    ("wasmplugins", ".spec", "without effect: the spec is kept unread"),
    ("*", ".status.addresses", "Istio leaves a ServiceEntry's addresses to the fields that it preserves unread"),
];

#[test]
fn definitions_are_istios() {
    let text = std::fs::read_to_string(module(MODULE).join(DEFINITIONS)).expect("Istio's definitions");
    let theirs: BTreeMap<String, Value> = serde_norway::Deserializer::from_str(&text)
        .map(|document| Value::deserialize(document).expect("YAML"))
        .filter(|definition| !definition.is_null())
        .map(|definition| (name(&definition), definition))
        .collect();
    let ours: BTreeMap<String, Value> =
        definition::all().into_iter().map(|definition| (name(&definition), definition)).collect();
    assert!(theirs.len() >= 15, "{DEFINITIONS} of {MODULE} holds {} definitions", theirs.len());

    let mut differences = Vec::new();
    let mut met = BTreeSet::new();
    for name in theirs.keys().chain(ours.keys()).collect::<BTreeSet<_>>() {
        let (Some(ours), Some(theirs)) = (ours.get(name), theirs.get(name)) else {
            differences.push(format!("{name}: only {} define it", if ours.contains_key(name) { "we" } else { "they" }));
            continue;
        };
        let plural = name.split('.').next().unwrap_or_default();
        let (ours, theirs) = (facts(ours), facts(theirs));
        for path in ours.keys().chain(theirs.keys()).collect::<BTreeSet<_>>() {
            if ours.get(path) == theirs.get(path) {
                continue;
            }
            let below_version = path.split_once(' ').map_or("", |(_, path)| path);
            let intended = INTENDED
                .iter()
                .position(|(of, start, _)| (*of == "*" || *of == plural) && below_version.starts_with(start));
            match intended {
                Some(row) => drop(met.insert(row)),
                None => {
                    differences.push(format!("{name} {path}: {:?}, Istio's {:?}", ours.get(path), theirs.get(path)))
                }
            }
        }
    }
    assert!(differences.is_empty(), "{} differences:\n{}", differences.len(), differences.join("\n"));
    let unmet: Vec<_> = (0..INTENDED.len()).filter(|row| !met.contains(row)).map(|row| INTENDED[row]).collect();
    assert!(unmet.is_empty(), "listed as intended, but alike: {unmet:?}");
}

fn name(definition: &Value) -> String {
    definition["metadata"]["name"].as_str().expect("a name").to_owned()
}

/// What counts of a definition, flat: path to text.
fn facts(definition: &Value) -> BTreeMap<String, String> {
    let mut facts = BTreeMap::new();
    let spec = &definition["spec"];
    for key in ["group", "scope"] {
        facts.insert(key.to_owned(), spec[key].to_string());
    }
    for key in ["kind", "listKind", "plural", "singular", "shortNames", "categories"] {
        facts.insert(format!("names.{key}"), spec["names"][key].to_string());
    }
    for version in spec["versions"].as_array().expect("versions") {
        let name = version["name"].as_str().expect("a version");
        for key in ["served", "storage", "subresources"] {
            facts.insert(format!("{name} {key}"), version[key].to_string());
        }
        for column in version["additionalPrinterColumns"].as_array().into_iter().flatten() {
            let column_name = column["name"].as_str().unwrap_or_default();
            let column = format!("{} {}", column["jsonPath"], column["type"]);
            facts.insert(format!("{name} column {column_name}"), column);
        }
        schema(&version["schema"]["openAPIV3Schema"], &format!("{name} "), &mut facts);
    }
    facts
}

/// Every keyword of the schema but descriptions, by the field's path.
fn schema(schema: &Value, path: &str, facts: &mut BTreeMap<String, String>) {
    for (key, value) in schema.as_object().into_iter().flatten() {
        match key.as_str() {
            "description" => {}
            "properties" => {
                for (field, inner) in value.as_object().into_iter().flatten() {
                    self::schema(inner, &format!("{path}.{field}"), facts);
                }
            }
            "items" => self::schema(value, &format!("{path}[]"), facts),
            "additionalProperties" if value.is_object() => self::schema(value, &format!("{path}{{}}"), facts),
            "required" => drop(facts.insert(format!("{path} required"), sorted(value))),
            _ => drop(facts.insert(format!("{path} {key}"), canonical(value))),
        }
    }
}

fn sorted(list: &Value) -> String {
    let mut items: Vec<String> = list.as_array().into_iter().flatten().map(ToString::to_string).collect();
    items.sort();
    items.join(" ")
}

/// Text that doesn't depend on the order of keys, nor on 1 being written 1.0.
fn canonical(value: &Value) -> String {
    match value {
        Value::Object(fields) => {
            let fields: BTreeMap<&String, String> = fields.iter().map(|(key, value)| (key, canonical(value))).collect();
            format!("{fields:?}")
        }
        Value::Array(items) => format!("{:?}", items.iter().map(canonical).collect::<Vec<_>>()),
        Value::Number(number) => number.as_f64().unwrap_or(f64::NAN).to_string(),
        other => other.to_string(),
    }
}

/// Downloads a Go module through the ordinary client, outside of the tree, and says where it lies.
fn module(module: &str) -> PathBuf {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let output = Command::new("go")
        .args(["mod", "download", "-json", module])
        .env("GOFLAGS", "-mod=mod")
        .current_dir(folder.path())
        .output()
        .expect("the command go, which downloads Istio's definitions: install golang-go");
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_default();
    let dir = answer["Dir"].as_str().unwrap_or_else(|| {
        panic!("go mod download {module}: {}{}", answer["Error"], String::from_utf8_lossy(&output.stderr))
    });
    Path::new(dir).to_owned()
}
