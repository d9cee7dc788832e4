//! The CEL rules of the definitions, in Rust: a folder refuses what an API server would. A test knows that none is
//! missing.

use serde_json::Value;

use crate::crds::duration;

/// Whether the value keeps the rule; `None` for a rule that nobody wrote here.
pub(super) fn holds(rule: &str, value: &Value) -> Option<bool> {
    // Rules may be wrapped anywhere.
    let rule = rule.split_whitespace().collect::<Vec<_>>().join(" ");
    let text = value.as_str().unwrap_or_default();
    let port = |port: Option<i64>| port.is_some_and(|port| (1..=65535).contains(&port));
    Some(match rule.as_str() {
        "duration(self) >= duration('1ms')" => duration::parse(text).is_some_and(|duration| duration.as_millis() >= 1),
        "0 < self && self <= 65535" => port(value.as_i64()),
        "self.all(key, 0 < int(key) && int(key) <= 65535)" => keys(value).all(|key| port(key.parse().ok())),
        "!self.contains(\"*\")" => !text.contains('*'),
        "self != \"*\"" => text != "*",
        "self.size() == 0" => text.is_empty(),
        "self.all(key, !key.contains(\"*\"))" => keys(value).all(|key| !key.contains('*')),
        "self.all(key, key.size() != 0)" => keys(value).all(|key| !key.is_empty()),
        "self.all(key, size(key) < 63 && key.matches(\"^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$\"))" => {
            keys(value).all(port_name)
        }
        "self in [\"\", \"HTTP\", \"HTTPS\"]" => ["", "HTTP", "HTTPS"].contains(&text),
        "url(self).getScheme() in [\"http\", \"https\"]" => {
            text.split_once("://").is_some_and(|(scheme, rest)| ["http", "https"].contains(&scheme) && !rest.is_empty())
        }
        "self.startsWith(\"unix://\") ? (self.substring(7, 8) == \"/\" || self.substring(7, 8) == \"@\") : true" => {
            text.strip_prefix("unix://").is_none_or(|path| path.starts_with(['/', '@']))
        }
        "self.startsWith(\"unix://\") ? !self.endsWith(\"/\") : true" => {
            !(text.starts_with("unix://") && text.ends_with('/'))
        }
        "has(self.address) || has(self.network)" => has(value, "address") || has(value, "network"),
        "(has(self.address) ? self.address : \"\").startsWith(\"unix://\") ? !has(self.ports) : true" => {
            !(string(value, "address").starts_with("unix://") && has(value, "ports"))
        }
        "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1" => {
            at_most_one(value, &["selector", "targetRef", "targetRefs"])
        }
        "(has(self.workloadSelector) ? 1 : 0) + (has(self.endpoints) ? 1 : 0) <= 1" => {
            at_most_one(value, &["workloadSelector", "endpoints"])
        }
        "(has(self.jwksUri) ? 1 : 0) + (has(self.jwks_uri) ? 1 : 0) + (has(self.jwks) ? 1 : 0) <= 1" => {
            at_most_one(value, &["jwksUri", "jwks_uri", "jwks"])
        }
        "(has(self.serviceAccounts) || has(self.notServiceAccounts)) ? (!has(self.principals) && !has(self.notPrincipals) \
         && !has(self.namespaces) && !has(self.notNamespaces)) : true" => {
            let any = |fields: &[&str]| fields.iter().any(|field| has(value, field));
            !(any(&["serviceAccounts", "notServiceAccounts"])
                && any(&["principals", "notPrincipals", "namespaces", "notNamespaces"]))
        }
        "has(self.portLevelMtls) ? (((has(self.selector) && has(self.selector.matchLabels)) ? self.selector.matchLabels \
         : {}).size() > 0) : true" => {
            !has(value, "portLevelMtls") || keys(&value["selector"]["matchLabels"]).count() > 0
        }
        "!((has(self.addresses) ? self.addresses : []).exists(k, k.contains(\"/\")) && !((has(self.resolution) ? \
         self.resolution : \"NONE\") in [\"STATIC\", \"NONE\"]))" => {
            let cidr = items(value, "addresses").any(|address| address.as_str().is_some_and(|text| text.contains('/')));
            !cidr || ["", "STATIC", "NONE"].contains(&string(value, "resolution"))
        }
        "((has(self.resolution) ? self.resolution : \"NONE\") == \"NONE\") ? !has(self.endpoints) : true" => {
            !(["", "NONE"].contains(&string(value, "resolution")) && has(value, "endpoints"))
        }
        "((has(self.resolution) ? self.resolution : \"\") == \"DNS_ROUND_ROBIN\") ? ((has(self.endpoints) ? \
         self.endpoints : []).size() <= 1) : true" => {
            string(value, "resolution") != "DNS_ROUND_ROBIN" || items(value, "endpoints").count() <= 1
        }
        "self.all(l1, self.exists_one(l2, l1.number == l2.number))" => {
            let ports = value.as_array().map(Vec::as_slice).unwrap_or_default();
            ports.iter().enumerate().all(|(i, port)| ports[..i].iter().all(|other| other["number"] != port["number"]))
        }
        "((has(self.operation) ? self.operation : \"\") == \"UPSERT\") ? (self.value != \"\") : true" => {
            string(value, "operation") != "UPSERT" || !string(value, "value").is_empty()
        }
        "((has(self.operation) ? self.operation : \"\") == \"REMOVE\") ? !has(self.value) : true" => {
            string(value, "operation") != "REMOVE" || !has(value, "value")
        }
        _ => return None,
    })
}

fn has(value: &Value, field: &str) -> bool {
    value.get(field).is_some_and(|field| !field.is_null())
}

fn string<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

fn keys(value: &Value) -> impl Iterator<Item = &str> {
    value.as_object().into_iter().flat_map(|fields| fields.keys()).map(String::as_str)
}

fn at_most_one(value: &Value, fields: &[&str]) -> bool {
    fields.iter().filter(|field| has(value, field)).count() <= 1
}

fn port_name(name: &str) -> bool {
    let bytes = name.as_bytes();
    let ends =
        bytes.first().zip(bytes.last()).is_some_and(|(a, z)| a.is_ascii_alphanumeric() && z.is_ascii_alphanumeric());
    ends && bytes.len() < 63 && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || *byte == b'-')
}
