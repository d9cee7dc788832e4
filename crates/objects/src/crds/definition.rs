//! The CustomResourceDefinitions of Istio's kinds, made from the Rust types.
//!
//! Group, names, versions, fields and rules are Istio's, so that objects and clients of either work with the other.
//! `deploy/crds/` holds what this makes; a test compares.

mod tidy;

use std::collections::BTreeMap;
use std::sync::LazyLock;

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde_json::{Map, Value, json};

use super::{
    AuthorizationPolicySpec, DestinationRuleSpec, IstioStatus, PeerAuthenticationSpec, RequestAuthenticationSpec,
    ServiceEntrySpec, TelemetrySpec, VirtualServiceSpec, WorkloadEntrySpec, WorkloadGroupSpec,
};
use crate::kinds::Kind;

/// What tells our definitions from those that somebody else installed.
pub const LABEL: (&str, &str) = ("app.kubernetes.io/part-of", "aquifer");

/// How a kind's definition differs from the others'.
struct Definition {
    kind: Kind,
    /// The version in which an API server stores objects.
    stored: &'static str,
    /// The schema of `spec`; none for kinds whose spec we keep unread.
    spec: Option<fn(&mut SchemaGenerator) -> Schema>,
    /// Whether an object without `spec` is refused.
    needs_spec: bool,
    columns: &'static [Column],
}

/// What `kubectl get` shows: heading, path, type, description.
type Column = (&'static str, &'static str, &'static str, &'static str);

const AGE: Column = ("Age", ".metadata.creationTimestamp", "date", "How long the object has existed.");
const HOSTS: &str = "The hosts that it is about.";

const DEFINITIONS: &[Definition] = &[
    Definition {
        kind: Kind::AuthorizationPolicy,
        columns: &[("Action", ".spec.action", "string", "What a match means."), AGE],
        ..istio::<AuthorizationPolicySpec>()
    },
    Definition {
        kind: Kind::PeerAuthentication,
        columns: &[("Mode", ".spec.mtls.mode", "string", "Whether callers must use mutual TLS."), AGE],
        ..istio::<PeerAuthenticationSpec>()
    },
    Definition { kind: Kind::RequestAuthentication, columns: &[], ..istio::<RequestAuthenticationSpec>() },
    Definition {
        kind: Kind::ServiceEntry,
        needs_spec: true,
        columns: &[
            ("Hosts", ".spec.hosts", "string", HOSTS),
            ("Location", ".spec.location", "string", "Within the mesh or outside."),
            ("Resolution", ".spec.resolution", "string", "How its addresses are found."),
            AGE,
        ],
        ..istio::<ServiceEntrySpec>()
    },
    Definition {
        kind: Kind::WorkloadEntry,
        needs_spec: true,
        columns: &[AGE, ("Address", ".spec.address", "string", "Where the workload is.")],
        ..istio::<WorkloadEntrySpec>()
    },
    Definition { kind: Kind::WorkloadGroup, needs_spec: true, ..istio::<WorkloadGroupSpec>() },
    Definition {
        kind: Kind::VirtualService,
        columns: &[
            ("Gateways", ".spec.gateways", "string", "The proxies that it is for."),
            ("Hosts", ".spec.hosts", "string", HOSTS),
            AGE,
        ],
        ..istio::<VirtualServiceSpec>()
    },
    Definition {
        kind: Kind::DestinationRule,
        columns: &[("Host", ".spec.host", "string", "The host that it is about."), AGE],
        ..istio::<DestinationRuleSpec>()
    },
    Definition { kind: Kind::Telemetry, stored: "v1alpha1", ..istio::<TelemetrySpec>() },
    Definition { kind: Kind::IstioGateway, ..UNREAD },
    Definition { kind: Kind::Sidecar, ..UNREAD },
    Definition { kind: Kind::EnvoyFilter, stored: "v1alpha3", ..UNREAD },
    Definition { kind: Kind::ProxyConfig, stored: "v1beta1", ..UNREAD },
    Definition { kind: Kind::WasmPlugin, stored: "v1alpha1", needs_spec: true, columns: &[AGE], ..UNREAD },
    Definition { kind: Kind::TrafficExtension, stored: "v1alpha1", needs_spec: true, columns: &[AGE], ..UNREAD },
];

/// The kind is a placeholder: every row names its own.
const UNREAD: Definition =
    Definition { kind: Kind::IstioGateway, stored: "v1", spec: None, needs_spec: false, columns: &[] };

const fn istio<S: JsonSchema>() -> Definition {
    Definition { spec: Some(schema_of::<S>), columns: &[AGE], ..UNREAD }
}

fn schema_of<S: JsonSchema>(generator: &mut SchemaGenerator) -> Schema {
    generator.root_schema_for::<S>()
}

/// The definitions as JSON, in the order of their names.
pub fn all() -> Vec<Value> {
    let mut definitions: Vec<Value> = DEFINITIONS.iter().map(definition).collect();
    definitions.sort_by_key(|definition| definition["metadata"]["name"].as_str().map(str::to_owned));
    definitions
}

/// The schema of a kind's whole object; `None` for kinds that aren't Istio's.
pub fn schema(kind: Kind) -> Option<&'static Value> {
    static SCHEMAS: LazyLock<BTreeMap<Kind, Value>> =
        LazyLock::new(|| DEFINITIONS.iter().map(|definition| (definition.kind, object_schema(definition))).collect());
    SCHEMAS.get(&kind)
}

fn definition(definition: &Definition) -> Value {
    let kind = definition.kind;
    let (name, plural, group) = (kind.manifest_name(), kind.plural(), kind.group());
    let categories = ["istio-io".to_owned(), format!("{}-istio-io", group.trim_end_matches(".istio.io"))];
    let mut names = json!({
        "kind": name,
        "listKind": format!("{name}List"),
        "plural": plural,
        "singular": name.to_ascii_lowercase(),
        "categories": categories,
    });
    if !kind.short_names().is_empty() {
        names["shortNames"] = json!(kind.short_names());
    }
    let schema = object_schema(definition);
    let mut versions: Vec<&str> = kind.versions().to_vec();
    versions.sort_unstable();
    let versions: Vec<Value> =
        versions.into_iter().map(|version| self::version(version, definition, schema.clone())).collect();
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": { "name": format!("{plural}.{group}"), "labels": { LABEL.0: LABEL.1 } },
        "spec": { "group": group, "names": names, "scope": "Namespaced", "versions": versions },
    })
}

fn version(name: &str, definition: &Definition, schema: Value) -> Value {
    let mut version = json!({
        "name": name,
        "served": true,
        "storage": name == definition.stored,
        "subresources": { "status": {} },
        "schema": { "openAPIV3Schema": schema },
    });
    if !definition.columns.is_empty() {
        let columns = definition.columns.iter().map(|(name, path, kind, description)| {
            json!({ "name": name, "jsonPath": path, "type": kind, "description": description })
        });
        version["additionalPrinterColumns"] = columns.collect();
    }
    version
}

fn object_schema(definition: &Definition) -> Value {
    let mut spec = match definition.spec {
        Some(make) => tidied(make),
        None => json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true }),
    };
    let mut status = tidied(schema_of::<IstioStatus>);
    // Others write their own fields there.
    status["x-kubernetes-preserve-unknown-fields"] = true.into();
    for schema in [&mut spec, &mut status] {
        if let Some(fields) = schema.as_object_mut() {
            fields.remove("title");
        }
    }
    let mut schema = Map::new();
    schema.insert("type".to_owned(), "object".into());
    schema.insert("properties".to_owned(), json!({ "spec": spec, "status": status }));
    if definition.needs_spec {
        schema.insert("required".to_owned(), json!(["spec"]));
    }
    Value::Object(schema)
}

fn tidied(make: fn(&mut SchemaGenerator) -> Schema) -> Value {
    let settings = SchemaSettings::draft2020_12().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let mut schema = make(&mut settings.into_generator()).to_value();
    tidy::tidy(&mut schema);
    schema
}
