//! From JSON Schema as it is derived to the structural schema that an API server takes.

use serde_json::{Map, Value, json};

/// Makes the schema, and those within it, structural and like Istio's.
pub(super) fn tidy(schema: &mut Value) {
    if *schema == Value::Bool(true) {
        *schema = json!({ "x-kubernetes-preserve-unknown-fields": true });
    }
    let Value::Object(fields) = schema else { return };
    // Both are the serializer's affair: an API server would fill in the one and show the other.
    fields.remove("default");
    fields.remove("title");
    not_null(fields);
    enumeration(fields);
    number(fields);
    // A map whose keys aren't strings; Kubernetes has no patterns for keys.
    if let Some(Value::Object(patterns)) = fields.remove("patternProperties")
        && let Some((_, values)) = patterns.into_iter().next()
    {
        fields.insert("additionalProperties".to_owned(), values);
    }
    if fields.get("additionalProperties").is_some_and(Value::is_boolean) {
        let any = fields.remove("additionalProperties") == Some(Value::Bool(true));
        if any {
            fields.insert("x-kubernetes-preserve-unknown-fields".to_owned(), true.into());
        }
    }
    for (key, value) in fields.iter_mut() {
        match (key.as_str(), value) {
            ("properties", Value::Object(properties)) => properties.values_mut().for_each(tidy),
            ("items" | "additionalProperties", schema) => tidy(schema),
            _ => {}
        }
    }
}

/// An optional field may be left out; Kubernetes says nothing of null.
fn not_null(fields: &mut Map<String, Value>) {
    if let Some(types) = fields.get_mut("type")
        && let Value::Array(names) = types
    {
        names.retain(|name| name != "null");
        if let [only] = names.as_slice() {
            *types = only.clone();
        }
    }
    if let Some(Value::Array(values)) = fields.get_mut("enum") {
        values.retain(|value| !value.is_null());
    }
    if let Some(Value::Array(choices)) = fields.get("anyOf")
        && let [schema, null] = choices.as_slice()
        && null["type"] == "null"
        && let Value::Object(inner) = schema.clone()
    {
        fields.remove("anyOf");
        for (key, value) in inner {
            fields.entry(key).or_insert(value);
        }
    }
}

/// An enum whose variants are described one by one is a choice between constants.
fn enumeration(fields: &mut Map<String, Value>) {
    let Some(Value::Array(choices)) = fields.get("oneOf") else { return };
    let mut values = Vec::new();
    for choice in choices {
        match (choice.get("const"), choice.get("enum")) {
            (Some(value), _) => values.push(value.clone()),
            (None, Some(Value::Array(several))) => values.extend(several.iter().cloned()),
            _ => return,
        }
    }
    fields.remove("oneOf");
    fields.insert("type".to_owned(), "string".into());
    fields.insert("enum".to_owned(), Value::Array(values));
}

/// Kubernetes knows no unsigned formats; Istio writes their bounds.
fn number(fields: &mut Map<String, Value>) {
    match fields.get("format").and_then(Value::as_str) {
        Some("uint32") => {
            fields.remove("format");
            fields.entry("maximum").or_insert(u32::MAX.into());
        }
        Some("int64") => {
            fields.remove("format");
        }
        _ => {}
    }
}
