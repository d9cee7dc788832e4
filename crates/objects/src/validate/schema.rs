//! What the schema of a kind's definition says of a manifest: unknown fields, missing ones, bounds, choices.
//!
//! An API server checks the same for objects that it holds; a folder has nobody else. Types are left to the typed
//! object, patterns to the checks by hand.

use serde_json::{Map, Value};

use super::{Errors, FieldError, rules};
use crate::crds::definition;
use crate::kinds::Kind;

/// What the kind's schema refuses; nothing for kinds without a schema of ours.
#[derive(Default)]
pub(crate) struct Refused {
    /// Fields, bounds and choices.
    pub(crate) structure: Vec<FieldError>,
    /// CEL rules, whose messages are terser than those of the checks by hand.
    pub(crate) rules: Vec<FieldError>,
}

/// Holds the object against its kind's schema.
pub(crate) fn check(kind: Kind, object: &Value) -> Refused {
    let mut errors = Both::default();
    if let Some(schema) = definition::schema(kind)
        && let Value::Object(fields) = object
    {
        let known = ["apiVersion", "kind", "metadata", "spec", "status"];
        for field in fields.keys().filter(|field| !known.contains(&field.as_str())) {
            errors.add(field.clone(), unknown(field, known.into_iter()));
        }
        if let Some(spec) = fields.get("spec") {
            value(&schema["properties"]["spec"], "spec", spec, &mut errors);
        }
    }
    Refused { structure: errors.structure.0, rules: errors.rules.0 }
}

#[derive(Default)]
struct Both {
    structure: Errors,
    rules: Errors,
}

impl Both {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.structure.add(path, message);
    }
}

fn value(schema: &Value, path: &str, value: &Value, errors: &mut Both) {
    choices(schema, path, value, errors);
    for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
        let text = |key: &str| rule[key].as_str().unwrap_or_default();
        if rules::holds(text("rule"), value) == Some(false) {
            errors.rules.add(path, text("message"));
        }
    }
    match value {
        Value::Object(fields) => object(schema, path, fields, errors),
        Value::Array(items) => {
            count(schema, path, "entries", ["minItems", "maxItems"], items.len(), errors);
            for (i, item) in items.iter().enumerate() {
                self::value(&schema["items"], &format!("{path}[{i}]"), item, errors);
            }
        }
        Value::String(text) => string(schema, path, text, errors),
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let (min, max) = (schema["minimum"].as_f64(), schema["maximum"].as_f64());
            if min.is_some_and(|min| number < min) || max.is_some_and(|max| number > max) {
                let bound = |bound: Option<f64>, word: &str| bound.map(|bound| format!(" {word} {bound}"));
                let bounds = [bound(min, "from"), bound(max, "to")].into_iter().flatten().collect::<String>();
                errors.add(path, format!("{number} is not a number{bounds}"));
            }
        }
        Value::Null | Value::Bool(_) => {}
    }
}

fn object(schema: &Value, path: &str, fields: &Map<String, Value>, errors: &mut Both) {
    count(schema, path, "fields", ["minProperties", "maxProperties"], fields.len(), errors);
    for name in schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str) {
        if fields.get(name).is_none_or(Value::is_null) {
            errors.add(format!("{path}.{name}"), "is required");
        }
    }
    let known = schema["properties"].as_object();
    let others = &schema["additionalProperties"];
    let open = schema["x-kubernetes-preserve-unknown-fields"] == true || known.is_none();
    for (name, field) in fields {
        let path = format!("{path}.{name}");
        match known.and_then(|known| known.get(name)) {
            Some(schema) => value(schema, &path, field, errors),
            None if others.is_object() => value(others, &path, field, errors),
            None if open => {}
            None => {
                let known = known.into_iter().flat_map(Map::keys).map(String::as_str);
                errors.add(path, unknown(name, known));
            }
        }
    }
}

fn unknown<'a>(name: &str, known: impl Iterator<Item = &'a str>) -> String {
    let known: Vec<String> = known.map(|known| format!("`{known}`")).collect();
    format!("unknown field `{name}`, expected one of {}", known.join(", "))
}

fn string(schema: &Value, path: &str, text: &str, errors: &mut Both) {
    if let Value::Array(values) = &schema["enum"]
        && !values.iter().any(|value| value == text)
    {
        let known: Vec<String> = values.iter().filter_map(Value::as_str).map(|known| format!("`{known}`")).collect();
        return errors.add(path, format!("unknown variant `{text}`, expected one of {}", known.join(", ")));
    }
    count(schema, path, "characters", ["minLength", "maxLength"], text.chars().count(), errors);
}

fn count(schema: &Value, path: &str, what: &str, bounds: [&str; 2], count: usize, errors: &mut Both) {
    let [min, max] =
        bounds.map(|bound| schema[bound].as_u64().map(|bound| usize::try_from(bound).unwrap_or(usize::MAX)));
    if let Some(min) = min.filter(|min| count < *min) {
        errors
            .add(path, if min == 1 { "must not be empty".to_owned() } else { format!("needs at least {min} {what}") });
    }
    if let Some(max) = max.filter(|max| count > *max) {
        errors.add(path, format!("has {count} {what}; {max} are allowed"));
    }
}

/// `oneOf` of what must be there: how Istio writes protobuf's choices.
fn choices(schema: &Value, path: &str, value: &Value, errors: &mut Both) {
    let all = schema["allOf"].as_array().into_iter().flatten().filter_map(|part| part["oneOf"].as_array());
    for choices in schema["oneOf"].as_array().into_iter().chain(all) {
        if choices.iter().filter(|choice| holds(choice, value)).count() != 1 {
            let names: Vec<&str> = choices.iter().filter_map(|choice| choice["required"][0].as_str()).collect();
            errors.add(path, format!("only one of {} can be set", names.join(", ")));
        }
    }
}

fn holds(schema: &Value, value: &Value) -> bool {
    let list = |key: &str| schema[key].as_array().into_iter().flatten();
    let there = |name: &Value| name.as_str().and_then(|name| value.get(name)).is_some_and(|field| !field.is_null());
    list("required").all(there)
        && list("allOf").all(|part| holds(part, value))
        && (!schema["anyOf"].is_array() || list("anyOf").any(|part| holds(part, value)))
        && (!schema["not"].is_object() || !holds(&schema["not"], value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn each_rule(schema: &Value, seen: &mut impl FnMut(&str)) {
        for rule in schema["x-kubernetes-validations"].as_array().into_iter().flatten() {
            seen(rule["rule"].as_str().unwrap());
        }
        for inner in schema["properties"].as_object().into_iter().flat_map(Map::values) {
            each_rule(inner, seen);
        }
        for key in ["items", "additionalProperties"] {
            if schema[key].is_object() {
                each_rule(&schema[key], seen);
            }
        }
    }

    #[test]
    fn every_rule_of_the_definitions_is_known() {
        let mut count = 0;
        for kind in Kind::ALL.iter().filter_map(|kind| definition::schema(*kind)) {
            each_rule(kind, &mut |rule| {
                count += 1;
                assert!(rules::holds(rule, &Value::Null).is_some(), "{rule}");
            });
        }
        assert!(count > 100, "{count} rules seen");
    }
}
