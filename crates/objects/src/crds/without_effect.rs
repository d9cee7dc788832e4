//! Istio's kinds that have no effect on this mesh yet: taken as they are, so that a repository of manifests applies
//! whole, and answered by a status that says what to use instead.

use kube::CustomResource;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::IstioStatus;

macro_rules! without_effect {
    ($($(#[$doc:meta])* $spec:ident = $root:literal, $group:literal, $version:literal, $kind:literal, $plural:literal;)*) => {
        $(
            $(#[$doc])*
            #[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
            #[kube(
                group = $group,
                version = $version,
                kind = $kind,
                root = $root,
                plural = $plural,
                namespaced,
                status = "IstioStatus",
                schema = "disabled",
                derive = "Default",
                derive = "PartialEq"
            )]
            pub struct $spec {
                /// What the user wrote, kept unread.
                #[serde(flatten)]
                pub fields: Map<String, Value>,
            }
        )*
    };
}

without_effect! {
    /// `networking.istio.io` Gateway: a proxy at the mesh's edge, with Istio's own routes.
    IstioGatewaySpec = "IstioGateway", "networking.istio.io", "v1", "Gateway", "gateways";
    /// What a sidecar proxy knows of the mesh.
    SidecarSpec = "Sidecar", "networking.istio.io", "v1", "Sidecar", "sidecars";
    /// Patches of Envoy's configuration.
    EnvoyFilterSpec = "EnvoyFilter", "networking.istio.io", "v1alpha3", "EnvoyFilter", "envoyfilters";
    /// Settings of a workload's own proxy.
    ProxyConfigSpec = "ProxyConfig", "networking.istio.io", "v1beta1", "ProxyConfig", "proxyconfigs";
    /// A WebAssembly filter of Envoy.
    WasmPluginSpec = "WasmPlugin", "extensions.istio.io", "v1alpha1", "WasmPlugin", "wasmplugins";
    /// A filter written in WebAssembly or Lua.
    TrafficExtensionSpec =
        "TrafficExtension", "extensions.istio.io", "v1alpha1", "TrafficExtension", "trafficextensions";
}
