//! One small object of each kind, which every API server takes.

use aquifer_objects::Kind;
use serde_json::{Value, json};

/// The object.
pub(crate) fn of(kind: Kind, namespace: &str, name: &str) -> Value {
    let mut object = json!({
        "apiVersion": kind.api_version(),
        "kind": kind.manifest_name(),
        "metadata": { "name": name, "labels": { "turn": "1" } },
    });
    if kind.namespaced() {
        object["metadata"]["namespace"] = namespace.into();
    }
    for (field, value) in fields(kind).as_object().into_iter().flatten() {
        object[field] = value.clone();
    }
    object
}

fn fields(kind: Kind) -> Value {
    let template = json!({
        "metadata": { "labels": { "app": "probe" } },
        "spec": { "containers": [{ "name": "c", "image": "none" }] },
    });
    let selector = json!({ "matchLabels": { "app": "probe" } });
    let parents = json!([{ "name": "probe" }]);
    let backend = json!([{ "name": "probe", "port": 80 }]);
    match kind {
        Kind::Namespace | Kind::Node | Kind::ServiceAccount => json!({}),
        Kind::ConfigMap => json!({ "data": { "a": "b" } }),
        Kind::Secret => json!({ "stringData": { "a": "b" } }),
        Kind::NetworkPolicy => json!({ "spec": { "podSelector": {} } }),
        Kind::Deployment => json!({ "spec": { "selector": selector, "template": template } }),
        Kind::HorizontalPodAutoscaler => json!({ "spec": {
            "maxReplicas": 2, "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": "probe" },
        } }),
        Kind::PodDisruptionBudget => json!({ "spec": { "minAvailable": 1, "selector": selector } }),
        Kind::Service => json!({ "spec": { "ports": [{ "port": 80 }] } }),
        // Admission wants the ServiceAccount, unless no token is mounted for it.
        Kind::Pod => json!({ "spec": {
            "containers": [{ "name": "c", "image": "none" }],
            "serviceAccountName": "default", "automountServiceAccountToken": false,
        } }),
        Kind::EndpointSlice => json!({
            "addressType": "IPv4", "endpoints": [{ "addresses": ["10.0.0.1"] }], "ports": [{ "port": 80 }],
        }),
        Kind::AuthorizationPolicy => json!({ "spec": { "action": "DENY", "rules": [{}] } }),
        Kind::PeerAuthentication => json!({ "spec": { "mtls": { "mode": "STRICT" } } }),
        Kind::RequestAuthentication => {
            json!({ "spec": { "jwtRules": [{ "issuer": "https://x", "jwksUri": "https://x/jwks" }] } })
        }
        Kind::ServiceEntry => json!({ "spec": {
            "hosts": ["x.example"], "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }], "resolution": "DNS",
        } }),
        Kind::WorkloadEntry => json!({ "spec": { "address": "10.0.0.1" } }),
        Kind::WorkloadGroup => json!({ "spec": { "template": {} } }),
        Kind::VirtualService => json!({ "spec": {
            "hosts": ["x.example"], "http": [{ "route": [{ "destination": { "host": "x.example" } }] }],
        } }),
        Kind::DestinationRule => json!({ "spec": { "host": "x.example" } }),
        Kind::Telemetry => json!({ "spec": {} }),
        Kind::GatewayClass => json!({ "spec": { "controllerName": "example.com/none" } }),
        Kind::Gateway => json!({ "spec": {
            "gatewayClassName": "none", "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }],
        } }),
        Kind::HTTPRoute | Kind::GRPCRoute => {
            json!({ "spec": { "parentRefs": parents, "rules": [{ "backendRefs": backend }] } })
        }
        Kind::TCPRoute => json!({ "spec": { "parentRefs": parents, "rules": [{ "backendRefs": backend }] } }),
        Kind::TLSRoute => json!({ "spec": {
            "parentRefs": parents, "hostnames": ["x.example"], "rules": [{ "backendRefs": backend }],
        } }),
        Kind::ReferenceGrant => json!({ "spec": {
            "from": [{ "group": "gateway.networking.k8s.io", "kind": "HTTPRoute", "namespace": "x" }],
            "to": [{ "group": "", "kind": "Service" }],
        } }),
        Kind::IstioGateway => json!({ "spec": {
            "selector": { "istio": "none" },
            "servers": [{ "port": { "number": 80, "name": "http", "protocol": "HTTP" }, "hosts": ["x.example"] }],
        } }),
        Kind::Sidecar => json!({ "spec": { "egress": [{ "hosts": ["./*"] }] } }),
        Kind::EnvoyFilter | Kind::ProxyConfig | Kind::TrafficExtension => json!({ "spec": {} }),
        Kind::WasmPlugin => json!({ "spec": { "url": "oci://x.example/y" } }),
    }
}

/// What could stand in its status, for kinds whose status is ours to write.
pub(crate) fn status(kind: Kind) -> Option<Value> {
    let condition = json!({
        "type": "aquifer.dev/Probed", "status": "True", "reason": "Probed", "message": "by a test",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    let conditions = json!([condition]);
    match kind {
        Kind::Service | Kind::Gateway | Kind::GatewayClass => Some(json!({ "conditions": conditions })),
        Kind::HTTPRoute | Kind::GRPCRoute | Kind::TCPRoute | Kind::TLSRoute => Some(json!({ "parents": [{
            "parentRef": { "name": "probe" }, "controllerName": "istio.io/mesh-controller", "conditions": conditions,
        }] })),
        _ if kind.of_istio() => Some(json!({ "conditions": conditions })),
        _ => None,
    }
}
