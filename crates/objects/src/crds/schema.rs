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
