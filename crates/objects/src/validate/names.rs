//! Names, labels and annotations, as apimachinery's `validation` has them (RFC 1123, RFC 1035).

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::{Errors, FieldError};
use crate::kinds::Kind;

/// Every label that Kubernetes would refuse; `path` is the map's, as in `metadata.labels`.
pub fn labels<'a>(path: &str, labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<FieldError> {
    let mut errors = Errors::default();
    for (key, value) in labels {
        label(path, key, value, &mut errors);
    }
    errors.0
}

/// Whether it is a DNS name in lower case, without a dot at its end: what most kinds are named by, and a cluster's domain.
pub fn is_dns_name(text: &str) -> bool {
    dns_subdomain(text).is_none()
}

pub(super) fn metadata(kind: Kind, meta: &ObjectMeta, errors: &mut Errors) {
    if let Some(name) = &meta.name {
        let wrong = match kind {
            Kind::Namespace => dns_label(name),
            Kind::Service => service_name(name),
            _ => dns_subdomain(name),
        };
        if let Some(wrong) = wrong {
            errors.add("metadata.name", format!("{name:?} {wrong}"));
        }
    }
    if let Some(namespace) = meta.namespace.as_deref().filter(|_| kind.namespaced())
        && let Some(wrong) = dns_label(namespace)
    {
        errors.add("metadata.namespace", format!("{namespace:?} {wrong}"));
    }
    inner_metadata("metadata", meta, errors);
}

/// What a template's metadata has too.
pub(super) fn inner_metadata(path: &str, meta: &ObjectMeta, errors: &mut Errors) {
    label_map(&format!("{path}.labels"), meta.labels.as_ref(), errors);
    for key in meta.annotations.iter().flat_map(BTreeMap::keys) {
        // Annotations' keys alone may be written in capitals throughout.
        if let Some(wrong) = qualified_name(&key.to_ascii_lowercase()) {
            errors.add(format!("{path}.annotations"), format!("the key {key:?} {wrong}"));
        }
    }
}

pub(super) fn label_map(path: &str, map: Option<&BTreeMap<String, String>>, errors: &mut Errors) {
    for (key, value) in map.into_iter().flatten() {
        label(path, key, value, errors);
    }
}

pub(super) fn label_selector(path: &str, selector: &LabelSelector, errors: &mut Errors) {
    label_map(&format!("{path}.matchLabels"), selector.match_labels.as_ref(), errors);
    for (i, requirement) in selector.match_expressions.iter().flatten().enumerate() {
        let path = format!("{path}.matchExpressions[{i}]");
        if let Some(wrong) = qualified_name(&requirement.key) {
            errors.add(format!("{path}.key"), format!("{:?} {wrong}", requirement.key));
        }
        let values = requirement.values.as_deref().unwrap_or_default();
        match (requirement.operator.as_str(), values.is_empty()) {
            ("In" | "NotIn", false) | ("Exists" | "DoesNotExist", true) => {}
            ("In" | "NotIn", true) => errors.add(format!("{path}.values"), "must hold at least one value"),
            ("Exists" | "DoesNotExist", false) => errors.add(format!("{path}.values"), "must be left out"),
            (other, _) => errors
                .add(format!("{path}.operator"), format!("{other:?} is none of In, NotIn, Exists and DoesNotExist")),
        }
    }
}

pub(super) fn label(path: &str, key: &str, value: &str, errors: &mut Errors) {
    if let Some(wrong) = qualified_name(key) {
        errors.add(path, format!("the key {key:?} {wrong}"));
    }
    if !value.is_empty()
        && let Some(wrong) = word(value)
    {
        errors.add(path, format!("the value {value:?} of {key:?} {wrong}"));
    }
}

/// `[<DNS subdomain>/]<word>`
fn qualified_name(key: &str) -> Option<String> {
    match key.split_once('/') {
        None => word(key),
        Some((prefix, _)) if dns_subdomain(prefix).is_some() => {
            dns_subdomain(prefix).map(|wrong| format!("has a prefix that {wrong}"))
        }
        Some((_, name)) => word(name),
    }
}

/// A label's value, or the name part of its key.
fn word(text: &str) -> Option<String> {
    let inner = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    let good =
        (1..=63).contains(&text.len()) && text.bytes().all(inner) && ends(text, |byte| byte.is_ascii_alphanumeric());
    (!good).then(|| "must be 1 to 63 letters, digits, '-', '_' and '.', with a letter or digit at both ends".to_owned())
}

/// RFC 1123 subdomain: what most kinds are named by.
fn dns_subdomain(text: &str) -> Option<String> {
    let good = text.len() <= 253 && text.split('.').all(is_dns_part);
    (!good).then(|| {
        "must be at most 253 lower case letters, digits, '-' and '.', with a letter or digit at both ends of each part"
            .to_owned()
    })
}

/// RFC 1123 label: namespaces, containers.
pub(super) fn dns_label(text: &str) -> Option<String> {
    let good = text.len() <= 63 && is_dns_part(text);
    (!good)
        .then(|| "must be 1 to 63 lower case letters, digits and '-', with a letter or digit at both ends".to_owned())
}

/// RFC 1035 label: Services become host names.
fn service_name(text: &str) -> Option<String> {
    let good = text.len() <= 63 && is_dns_part(text) && text.starts_with(|first: char| first.is_ascii_lowercase());
    (!good).then(|| {
        "must be 1 to 63 lower case letters, digits and '-', with a letter first and a letter or digit last".to_owned()
    })
}

fn is_dns_part(part: &str) -> bool {
    let alphanumeric = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    part.bytes().all(|byte| alphanumeric(byte) || byte == b'-') && ends(part, alphanumeric)
}

fn ends(text: &str, good: impl Fn(u8) -> bool) -> bool {
    let bytes = text.as_bytes();
    bytes.first().is_some_and(|first| good(*first)) && bytes.last().is_some_and(|last| good(*last))
}
