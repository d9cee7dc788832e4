//! How the field managers' parts become one object. Pure.

use serde_json::{Map, Value};
use xxhash_rust::xxh64::Xxh64;

/// Lays `over` on `base`: maps merge, everything else is replaced, null says nothing.
pub(super) fn overlay(base: &mut Value, over: &Value) {
    match (base, over) {
        (_, Value::Null) => {}
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                match base.get_mut(key) {
                    Some(below) => overlay(below, value),
                    None if value.is_null() => {}
                    None => {
                        base.insert(key.clone(), value.clone());
                    }
                }
            }
        }
        (base, over) => *base = over.clone(),
    }
}

/// RFC 7386: a patch into a document; null removes. Maps that a removal leaves empty go too.
pub(super) fn patch(target: &mut Value, patch: &Value) {
    let Value::Object(changes) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(target) = target else { return };
    for (key, value) in changes {
        if value.is_null() {
            target.remove(key);
            continue;
        }
        let below = target.entry(key.clone()).or_insert(Value::Null);
        self::patch(below, value);
        if value.is_object() && below.as_object().is_some_and(Map::is_empty) {
            target.remove(key);
        }
    }
}

/// Whether the file creates its object rather than adding to it.
pub(super) fn creates(value: &Value) -> bool {
    value.pointer("/metadata/creationTimestamp").is_some_and(Value::is_string)
}

/// The uid that the part was written for.
pub(super) fn uid(value: &Value) -> Option<&str> {
    value.pointer("/metadata/uid").and_then(Value::as_str)
}

/// The object that a manifest and the managed parts (by manager name) make; `None` if nothing creates one.
pub(super) fn merge<'a>(manifest: Option<&Value>, managed: impl Iterator<Item = &'a Value> + Clone) -> Option<Value> {
    let mut merged = match manifest {
        Some(manifest) => manifest.clone(),
        None => managed.clone().find(|part| creates(part))?.clone(),
    };
    for part in managed {
        if !creates(part) && uid(part).is_some_and(|uid| self::uid(&merged).is_some_and(|ours| ours != uid)) {
            continue;
        }
        // Who was first stays the creator.
        let birth = birth(&merged);
        overlay(&mut merged, part);
        for (field, value) in birth {
            if let (Some(value), Some(metadata)) = (value, merged.get_mut("metadata").and_then(Value::as_object_mut)) {
                metadata.insert(field.to_owned(), value);
            }
        }
    }
    if let Some(metadata) = merged.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    Some(merged)
}

fn birth(value: &Value) -> [(&'static str, Option<Value>); 2] {
    ["uid", "creationTimestamp"].map(|field| (field, value["metadata"].get(field).filter(|v| v.is_string()).cloned()))
}

/// A hash of the content, the same whatever the order of its keys.
pub(crate) fn content_hash(value: &Value) -> u64 {
    let mut hash = Xxh64::new(0);
    feed(&mut hash, value);
    hash.digest()
}

fn feed(hash: &mut Xxh64, value: &Value) {
    match value {
        Value::Null => hash.update(b"n"),
        Value::Bool(flag) => hash.update(if *flag { b"t" } else { b"f" }),
        Value::Number(number) => {
            hash.update(b"d");
            hash.update(number.to_string().as_bytes());
            hash.update(b";");
        }
        Value::String(text) => {
            hash.update(b"s");
            hash.update(&text.len().to_le_bytes());
            hash.update(text.as_bytes());
        }
        Value::Array(items) => {
            hash.update(b"a");
            hash.update(&items.len().to_le_bytes());
            items.iter().for_each(|item| feed(hash, item));
        }
        Value::Object(map) => {
            hash.update(b"o");
            hash.update(&map.len().to_le_bytes());
            let mut keys: Vec<&String> = map.keys().collect();
            keys.sort_unstable();
            for key in keys {
                hash.update(&key.len().to_le_bytes());
                hash.update(key.as_bytes());
                feed(hash, &map[key]);
            }
        }
    }
}
