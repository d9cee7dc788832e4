//! Pieces of schemas that several fields share.

use schemars::{Schema, SchemaGenerator, json_schema};

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
