//! No field that a user may write is lost: an object of every kind of Istio's, at every version, with every field of
//! its schema, comes out as it went in; and so does a folder of ordinary manifests.

use std::fs;

use aquifer_objects::crds::definition;
use aquifer_objects::folder::Folder;
use aquifer_objects::parse::parse_object;
use aquifer_objects::{Kind, Object};
use serde_json::{Map, Value, json};

/// A value that the schema describes, with every field set. `turn` chooses among alternatives.
fn sample(schema: &Value, turn: usize) -> Value {
    if let Some(values) = schema["enum"].as_array() {
        return values[turn % values.len()].clone();
    }
    if schema["x-kubernetes-int-or-string"] == true {
        return if turn.is_multiple_of(2) { json!(7) } else { json!("7") };
    }
    match schema["type"].as_str() {
        Some("string") => json!(format!("text{turn}")),
        Some("integer") => json!(schema["minimum"].as_i64().unwrap_or(0) + 1),
        Some("number") => json!(1.5),
        Some("boolean") => json!(turn.is_multiple_of(2)),
        Some("array") => json!([sample(&schema["items"], turn), sample(&schema["items"], turn + 1)]),
        _ => {
            let mut fields = Map::new();
            for (name, inner) in schema["properties"].as_object().into_iter().flatten() {
                fields.insert(name.clone(), sample(inner, turn));
            }
            if schema["additionalProperties"].is_object() {
                // A number, since some maps' keys are ports.
                fields.insert("8080".to_owned(), sample(&schema["additionalProperties"], turn));
            } else if fields.is_empty() {
                fields.insert("anything".to_owned(), json!({ "at": ["all", null, { "x": turn }] }));
            }
            Value::Object(fields)
        }
    }
}

/// The paths of `given` that `taken` lacks or holds otherwise.
fn lost(path: &str, given: &Value, taken: &Value) -> Vec<String> {
    match (given, taken) {
        (Value::Object(given), Value::Object(taken)) => given
            .iter()
            .flat_map(|(name, value)| {
                let path = format!("{path}.{name}");
                taken.get(name).map_or_else(|| vec![path.clone()], |taken| lost(&path, value, taken))
            })
            .collect(),
        (Value::Array(given), Value::Array(taken)) if given.len() == taken.len() => {
            given.iter().zip(taken).enumerate().flat_map(|(i, (a, b))| lost(&format!("{path}[{i}]"), a, b)).collect()
        }
        _ if given == taken => Vec::new(),
        (Value::Number(a), Value::Number(b)) if a.as_f64() == b.as_f64() => Vec::new(),
        _ => vec![format!("{path} ({given} became {taken})")],
    }
}

#[test]
fn every_field_of_every_version() {
    let mut fields = 0;
    for &kind in Kind::ALL {
        let Some(schema) = definition::schema(kind) else { continue };
        for version in kind.versions() {
            for turn in 0..12 {
                let mut object = sample(schema, turn);
                // Nulls are nothing in what we don't keep unread as well; an API server prunes them.
                remove_nulls(&mut object);
                object["apiVersion"] = json!(format!("{}/{version}", kind.group()));
                object["kind"] = json!(kind.manifest_name());
                object["metadata"] = json!({ "name": "a", "namespace": "b", "labels": { "x": "y" } });
                let read = parse_object(object.clone()).unwrap_or_else(|error| panic!("{kind} {version}: {error}"));
                assert_eq!(read.kind(), kind);
                object["apiVersion"] = json!(kind.api_version());
                assert_eq!(lost("", &object, &read.to_json()), [""; 0], "{kind} {version}");
                let again = parse_object(read.to_json()).expect("what we wrote");
                assert_eq!(again, read, "{kind} {version}");
                fields += count(&object);
            }
        }
    }
    assert!(fields > 10_000, "{fields} fields seen");
}

fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => {
            items.retain(|item| !item.is_null());
            items.iter_mut().for_each(remove_nulls);
        }
        _ => {}
    }
}

fn count(value: &Value) -> usize {
    match value {
        Value::Object(fields) => fields.len() + fields.values().map(count).sum::<usize>(),
        Value::Array(items) => items.iter().map(count).sum(),
        _ => 0,
    }
}

/// What people write, of every kind of Istio's and the Gateway API's: kind and spec.
const MANIFESTS: &[(Kind, &str)] = &[
    (
        Kind::AuthorizationPolicy,
        "{action: DENY, rules: [{from: [{source: {notPrincipals: [cluster.local/ns/a/sa/b]}}]}]}",
    ),
    (
        Kind::PeerAuthentication,
        "{selector: {matchLabels: {a: b}}, mtls: {mode: STRICT}, portLevelMtls: {'80': {mode: DISABLE}}}",
    ),
    (
        Kind::RequestAuthentication,
        "{jwtRules: [{issuer: a, jwks_uri: 'https://a/keys', fromParams: [t], forwardOriginalToken: true}]}",
    ),
    (
        Kind::ServiceEntry,
        "{hosts: ['*.example.org'], location: MESH_EXTERNAL, resolution: NONE, ports: [{number: 443, name: tls, protocol: TLS}]}",
    ),
    (Kind::WorkloadEntry, "{address: 10.0.0.1, labels: {app: vm}, serviceAccount: vm, weight: 2, ports: {http: 8080}}"),
    (
        Kind::WorkloadGroup,
        "{metadata: {labels: {app: vm}}, template: {serviceAccount: vm}, probe: {tcpSocket: {port: 80}}}",
    ),
    (
        Kind::VirtualService,
        "{hosts: [reviews], http: [{mirror_percent: 5, mirror: {host: v2}, match: [{uri: {prefix: /a}}], route: [{destination: {host: reviews, subset: v1}, weight: 100}], timeout: 2s, retries: {attempts: 3}}]}",
    ),
    (
        Kind::DestinationRule,
        "{host: reviews, trafficPolicy: {loadBalancer: {simple: LEAST_CONN}, outlierDetection: {consecutiveErrors: 5}}, subsets: [{name: v1, labels: {version: v1}}]}",
    ),
    (
        Kind::Telemetry,
        "{tracing: [{providers: [{name: otel}], randomSamplingPercentage: 10.0, customTags: {a: {literal: {value: b}}}}]}",
    ),
    (
        Kind::IstioGateway,
        "{selector: {istio: ingressgateway}, servers: [{port: {number: 80, name: http, protocol: HTTP}, hosts: ['*']}]}",
    ),
    (Kind::Sidecar, "{egress: [{hosts: ['./*']}]}"),
    (Kind::EnvoyFilter, "{configPatches: [{applyTo: HTTP_FILTER, patch: {operation: MERGE, value: {a: {b: [1]}}}}]}"),
    (Kind::ProxyConfig, "{concurrency: 0, environmentVariables: {A: b}}"),
    (Kind::WasmPlugin, "{url: 'oci://a/b', phase: AUTHN, pluginConfig: {a: [1, {b: c}]}}"),
    (Kind::TrafficExtension, "{lua: {inlineCode: 'x'}}"),
    (Kind::GatewayClass, "{controllerName: istio.io/mesh-controller}"),
    (
        Kind::Gateway,
        "{gatewayClassName: istio-waypoint, listeners: [{name: mesh, port: 15008, protocol: HBONE, allowedRoutes: {namespaces: {from: Selector, selector: {matchLabels: {a: b}}}}}]}",
    ),
    (
        Kind::HTTPRoute,
        "{parentRefs: [{group: '', kind: Service, name: a, port: 80}], rules: [{matches: [{path: {type: PathPrefix, value: /a}, headers: [{name: x, value: y}]}], filters: [{type: RequestHeaderModifier, requestHeaderModifier: {set: [{name: a, value: b}]}}], backendRefs: [{name: a, port: 80, weight: 0}], timeouts: {request: 1s}}]}",
    ),
    (
        Kind::GRPCRoute,
        "{rules: [{matches: [{method: {service: a.B, method: C}}], backendRefs: [{name: a, port: 80}]}]}",
    ),
    (Kind::TCPRoute, "{rules: [{backendRefs: [{name: a, port: 80}]}]}"),
    (Kind::TLSRoute, "{hostnames: [a.example], rules: [{backendRefs: [{name: a, port: 443}]}]}"),
    (
        Kind::ReferenceGrant,
        "{from: [{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: a}], to: [{group: '', kind: Service}]}",
    ),
];

#[test]
fn a_folder_of_manifests_of_every_kind_and_version() {
    let folder = tempfile::tempdir().unwrap();
    let mut written = Vec::new();
    for &kind in Kind::ALL.iter().filter(|kind| kind.optional()) {
        let (_, spec) = MANIFESTS.iter().find(|row| row.0 == kind).unwrap_or_else(|| panic!("no manifest of {kind}"));
        for version in kind.versions() {
            let (name, group) = (format!("of-{version}"), kind.group());
            let namespace = if kind.namespaced() { "\n  namespace: shop" } else { "" };
            let text = format!(
                "apiVersion: {group}/{version}\nkind: {}\nmetadata:\n  name: {name}{namespace}\nspec: {spec}\n",
                kind.manifest_name()
            );
            fs::write(folder.path().join(format!("{kind}-{version}.yaml")), &text).unwrap();
            let spec: Value = serde_norway::from_str(spec).unwrap();
            written.push((kind, name, spec));
        }
    }
    let (objects, problems) = Folder::new(folder.path()).read(Kind::ALL);
    assert_eq!(problems.iter().map(ToString::to_string).collect::<Vec<_>>(), [""; 0]);
    assert_eq!(objects.len(), written.len());
    for (kind, name, spec) in written {
        let object = objects.iter().find(|object| object.kind() == kind && object.name() == name);
        let json = object.map(Object::to_json).unwrap_or_else(|| panic!("{kind} {name} was not read"));
        assert_eq!(lost("", &spec, &json["spec"]), [""; 0], "{kind} {name}");
        assert_eq!(json["kind"], kind.manifest_name());
    }
}
