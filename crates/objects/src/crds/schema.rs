//! Pieces of schemas that several fields share.

use schemars::{Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

/// A duration as Istio writes it: `1h`, `1.5s`, `10ms`.
pub(super) fn duration(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "x-kubernetes-validations": [
            { "rule": "duration(self) >= duration('1ms')", "message": "must be a valid duration greater than 1ms" },
        ],
    })
}

/// A number, or the text of one: how 64-bit numbers come out of protobuf.
pub(super) fn int_or_string(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "anyOf": [{ "type": "integer" }, { "type": "string" }],
        "x-kubernetes-int-or-string": true,
    })
}

/// Where a workload is: an address, a host name, or a socket's path.
pub(super) fn workload_address(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "string",
        "maxLength": 256,
        "x-kubernetes-validations": [
            {
                "rule": r#"self.startsWith("unix://") ? (self.substring(7, 8) == "/" || self.substring(7, 8) == "@") : true"#,
                "message": "UDS must be an absolute path or abstract socket",
            },
            {
                "rule": r#"self.startsWith("unix://") ? !self.endsWith("/") : true"#,
                "message": "UDS may not be a dir",
            },
        ],
    })
}

/// The numbers of a workload's ports, by name.
pub(super) fn workload_ports(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "type": "object",
        "maxProperties": 128,
        "x-kubernetes-validations": [
            {
                "rule": r#"self.all(key, size(key) < 63 && key.matches("^[a-zA-Z0-9](?:[-a-zA-Z0-9]*[a-zA-Z0-9])?$"))"#,
                "message": "port name must be valid",
            },
        ],
        "additionalProperties": {
            "type": "integer",
            "minimum": 0,
            "maximum": u32::MAX,
            "x-kubernetes-validations": is_port(),
        },
    })
}

/// The `oneOf` of an object of whose fields one may be set, or none.
pub(super) fn at_most_one(fields: &[&str]) -> Value {
    let each: Vec<Value> = fields.iter().map(|field| json!({ "required": [field] })).collect();
    let none = json!({ "not": { "anyOf": each } });
    std::iter::once(none).chain(each).collect()
}

/// The `x-kubernetes-validations` of a port's number.
pub(super) fn is_port() -> Value {
    json!([{ "rule": "0 < self && self <= 65535", "message": "port must be between 1-65535" }])
}

/// The `x-kubernetes-validations` of where something is fetched.
pub(super) fn is_url() -> Value {
    json!([{
        "rule": r#"url(self).getScheme() in ["http", "https"]"#,
        "message": "url must have scheme http:// or https://",
    }])
}

/// The `x-kubernetes-validations` of a policy: it selects pods, or is attached to targets.
pub(super) fn selector_or_targets() -> Value {
    json!([{
        "rule": "(has(self.selector) ? 1 : 0) + (has(self.targetRef) ? 1 : 0) + (has(self.targetRefs) ? 1 : 0) <= 1",
        "message": "only one of targetRefs or selector can be set",
    }])
}
