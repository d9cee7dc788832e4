//! The kinds we know, and one type that holds an object of any of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Secret, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::crds::{
    AuthorizationPolicy, DestinationRule, EnvoyFilter, GRPCRoute, Gateway, GatewayClass, HTTPRoute, IstioGateway,
    PeerAuthentication, ProxyConfig, ReferenceGrant, RequestAuthentication, ServiceEntry, Sidecar, TCPRoute, TLSRoute,
    Telemetry, TrafficExtension, VirtualService, WasmPlugin, WorkloadEntry, WorkloadGroup,
};

/// What names an object: its kind, namespace (empty for cluster-scoped kinds) and name.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ObjectKey {
    /// The kind.
    pub kind: Kind,
    /// The namespace; empty for cluster-scoped kinds.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl ObjectKey {
    /// A key; `namespace` is ignored for cluster-scoped kinds.
    pub fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        let namespace = if kind.namespaced() { namespace } else { "" };
        Self { kind, namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}/{}", self.kind, self.name)
        } else {
            write!(f, "{}/{}/{}", self.kind, self.namespace, self.name)
        }
    }
}

/// One table makes [`Kind`], [`Object`] and what both answer: a new kind is one line.
///
/// `Kind: scope, group version | other served versions, plural | short names`; an empty group is the core's. `as`
/// gives the name in manifests where it is not the variant's. The first version is the one that we write.
macro_rules! kinds {
    ($($kind:ident $(as $name:literal)?: $scope:ident, $group:tt $version:literal $(| $older:literal)*, $plural:literal $(| $short:literal)*;)*) => {
        /// A kind of object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = concat!("`", kinds!(@api $group $version), "` ", kinds!(@name $kind $($name)?))] $kind,)*
        }

        impl Kind {
            /// Every kind, in the order in which a cluster would create them.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            /// The name, unique among all kinds: that of the manifest, but `IstioGateway` for Istio's own Gateway.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)* }
            }

            /// The name as in a manifest's `kind`.
            pub fn manifest_name(self) -> &'static str {
                match self { $(Self::$kind => kinds!(@name $kind $($name)?),)* }
            }

            /// The API group; empty for the core's.
            pub fn group(self) -> &'static str {
                match self { $(Self::$kind => $group,)* }
            }

            /// All versions that are read, the one that we write first.
            pub fn versions(self) -> &'static [&'static str] {
                match self { $(Self::$kind => &[$version $(, $older)*],)* }
            }

            /// The `apiVersion` that we write.
            pub fn api_version(self) -> &'static str {
                match self { $(Self::$kind => kinds!(@api $group $version),)* }
            }

            /// The short names, as `kubectl` accepts them.
            pub fn short_names(self) -> &'static [&'static str] {
                match self { $(Self::$kind => &[$($short),*],)* }
            }

            /// The plural of its REST path, as `kubectl` accepts it.
            pub fn plural(self) -> &'static str {
                match self { $(Self::$kind => $plural,)* }
            }

            /// Whether objects of the kind lie in a namespace.
            pub fn namespaced(self) -> bool {
                match self { $(Self::$kind => kinds!(@scope $scope),)* }
            }

            /// The kind of a manifest; `None` for one that we don't know.
            pub fn from_manifest(api_version: &str, kind: &str) -> Option<Self> {
                let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
                match (group, kind, version) {
                    $(($group, kinds!(@name $kind $($name)?), $version $(| $older)*) => Some(Self::$kind),)*
                    _ => None,
                }
            }
        }

        impl FromStr for Kind {
            type Err = UnknownKind;

            /// Reads a kind as a person types it: name, plural, `plural.group` or short name, in any case.
            fn from_str(text: &str) -> Result<Self, UnknownKind> {
                let lower = text.to_ascii_lowercase();
                if let Some((plural, group)) = lower.split_once('.') {
                    let found = Self::ALL.iter().find(|kind| kind.plural() == plural && kind.group() == group);
                    return found.copied().ok_or_else(|| UnknownKind(text.to_owned()));
                }
                $(if lower == stringify!($kind).to_ascii_lowercase() || lower == $plural $(|| lower == $short)* {
                    return Ok(Self::$kind);
                })*
                Err(UnknownKind(text.to_owned()))
            }
        }

        /// An object of any known kind. Cloning is cheap.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Object {
            $(#[doc = concat!("A ", stringify!($kind))] $kind(Arc<$kind>),)*
        }

        impl Object {
            /// The object's kind.
            pub fn kind(&self) -> Kind {
                match self { $(Self::$kind(_) => Kind::$kind,)* }
            }

            /// The object's metadata.
            pub fn meta(&self) -> &ObjectMeta {
                match self { $(Self::$kind(object) => &object.metadata,)* }
            }

            /// The object as JSON, with `apiVersion` and `kind`.
            pub fn to_json(&self) -> Value {
                let value = match self { $(Self::$kind(object) => serde_json::to_value(&**object),)* };
                value.expect("Kubernetes types have string keys only, so they always serialize")
            }

            pub(crate) fn from_json(kind: Kind, value: &Value) -> Result<Self, serde_path_to_error::Error<serde_json::Error>> {
                Ok(match kind {
                    $(Kind::$kind => Self::$kind(Arc::new(serde_path_to_error::deserialize(value)?)),)*
                })
            }
        }

        $(impl From<$kind> for Object {
            fn from(object: $kind) -> Self {
                Self::$kind(Arc::new(object))
            }
        })*
    };
    (@api "" $version:literal) => { $version };
    (@api $group:tt $version:literal) => { concat!($group, "/", $version) };
    (@name $kind:ident) => { stringify!($kind) };
    (@name $kind:ident $name:literal) => { $name };
    (@scope Cluster) => { false };
    (@scope Namespaced) => { true };
}

kinds! {
    Namespace: Cluster, "" "v1", "namespaces" | "ns";
    Node: Cluster, "" "v1", "nodes" | "no";
    ServiceAccount: Namespaced, "" "v1", "serviceaccounts" | "sa";
    ConfigMap: Namespaced, "" "v1", "configmaps" | "cm";
    Secret: Namespaced, "" "v1", "secrets";
    NetworkPolicy: Namespaced, "networking.k8s.io" "v1", "networkpolicies" | "netpol";
    Deployment: Namespaced, "apps" "v1", "deployments" | "deploy";
    HorizontalPodAutoscaler: Namespaced, "autoscaling" "v2", "horizontalpodautoscalers" | "hpa";
    PodDisruptionBudget: Namespaced, "policy" "v1", "poddisruptionbudgets" | "pdb";
    Service: Namespaced, "" "v1", "services" | "svc";
    Pod: Namespaced, "" "v1", "pods" | "po";
    EndpointSlice: Namespaced, "discovery.k8s.io" "v1", "endpointslices";
    AuthorizationPolicy: Namespaced, "security.istio.io" "v1" | "v1beta1", "authorizationpolicies" | "ap";
    PeerAuthentication: Namespaced, "security.istio.io" "v1" | "v1beta1", "peerauthentications" | "pa";
    RequestAuthentication: Namespaced, "security.istio.io" "v1" | "v1beta1", "requestauthentications" | "ra";
    ServiceEntry: Namespaced, "networking.istio.io" "v1" | "v1beta1" | "v1alpha3", "serviceentries" | "se";
    WorkloadEntry: Namespaced, "networking.istio.io" "v1" | "v1beta1" | "v1alpha3", "workloadentries" | "we";
    WorkloadGroup: Namespaced, "networking.istio.io" "v1" | "v1beta1" | "v1alpha3", "workloadgroups" | "wg";
    VirtualService: Namespaced, "networking.istio.io" "v1" | "v1beta1" | "v1alpha3", "virtualservices" | "vs";
    DestinationRule: Namespaced, "networking.istio.io" "v1" | "v1beta1" | "v1alpha3", "destinationrules" | "dr";
    Telemetry: Namespaced, "telemetry.istio.io" "v1" | "v1alpha1", "telemetries" | "telemetry";
    GatewayClass: Cluster, "gateway.networking.k8s.io" "v1" | "v1beta1", "gatewayclasses" | "gc";
    Gateway: Namespaced, "gateway.networking.k8s.io" "v1" | "v1beta1", "gateways" | "gtw";
    HTTPRoute: Namespaced, "gateway.networking.k8s.io" "v1" | "v1beta1", "httproutes";
    GRPCRoute: Namespaced, "gateway.networking.k8s.io" "v1" | "v1alpha2", "grpcroutes";
    TCPRoute: Namespaced, "gateway.networking.k8s.io" "v1" | "v1alpha2", "tcproutes";
    TLSRoute: Namespaced, "gateway.networking.k8s.io" "v1" | "v1alpha3" | "v1alpha2", "tlsroutes";
    ReferenceGrant: Namespaced, "gateway.networking.k8s.io" "v1" | "v1beta1", "referencegrants" | "refgrant";
    IstioGateway as "Gateway": Namespaced, "networking.istio.io" "v1" | "v1beta1" | "v1alpha3", "gateways" | "gw";
    Sidecar: Namespaced, "networking.istio.io" "v1" | "v1beta1" | "v1alpha3", "sidecars";
    EnvoyFilter: Namespaced, "networking.istio.io" "v1alpha3", "envoyfilters";
    ProxyConfig: Namespaced, "networking.istio.io" "v1beta1", "proxyconfigs";
    WasmPlugin: Namespaced, "extensions.istio.io" "v1alpha1", "wasmplugins";
    TrafficExtension: Namespaced, "extensions.istio.io" "v1alpha1", "trafficextensions";
}

impl Kind {
    /// Whether it is one of Istio's own kinds.
    pub fn of_istio(self) -> bool {
        self.group().ends_with(".istio.io")
    }

    /// Whether a CRD defines it: an API server may be without it.
    pub fn optional(self) -> bool {
        self.of_istio() || self.group() == "gateway.networking.k8s.io"
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl Object {
    /// What names the object.
    pub fn key(&self) -> ObjectKey {
        ObjectKey::new(self.kind(), self.namespace(), self.name())
    }

    /// The name.
    pub fn name(&self) -> &str {
        self.meta().name.as_deref().unwrap_or_default()
    }

    /// The namespace; empty for cluster-scoped kinds.
    pub fn namespace(&self) -> &str {
        self.meta().namespace.as_deref().unwrap_or_default()
    }

    /// One label's value.
    pub fn label(&self, key: &str) -> Option<&str> {
        self.meta().labels.as_ref()?.get(key).map(String::as_str)
    }

    /// One annotation's value.
    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.meta().annotations.as_ref()?.get(key).map(String::as_str)
    }
}

/// A kind that nobody here knows.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown kind {0:?}; known kinds: {known}", known = known_kinds())]
pub struct UnknownKind(pub String);

/// The known kinds as `Kind (apiVersion)`, for messages.
pub fn known_kinds() -> String {
    let names: Vec<String> = Kind::ALL.iter().map(|kind| format!("{kind} ({})", kind.api_version())).collect();
    names.join(", ")
}
