//! The kinds we know, and one type that holds an object of any of them.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Node, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use crate::crds::{AuthorizationPolicy, PeerAuthentication};

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
macro_rules! kinds {
    ($($kind:ident: $scope:ident, $api:literal $(| $older:literal)*, $plural:literal $(| $short:literal)*;)*) => {
        /// A kind of object.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $(#[doc = concat!("`", $api, "` ", stringify!($kind))] $kind,)*
        }

        impl Kind {
            /// Every kind, in the order in which a cluster would create them.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),*];

            /// The name as in a manifest's `kind`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind),)* }
            }

            /// The `apiVersion` that we write.
            pub fn api_version(self) -> &'static str {
                match self { $(Self::$kind => $api,)* }
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
                match (api_version, kind) {
                    $(($api $(| $older)*, stringify!($kind)) => Some(Self::$kind),)*
                    _ => None,
                }
            }
        }

        impl FromStr for Kind {
            type Err = UnknownKind;

            /// Reads a kind as a person types it: name, plural or short name, in any case.
            fn from_str(text: &str) -> Result<Self, UnknownKind> {
                let lower = text.to_ascii_lowercase();
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
    (@scope Cluster) => { false };
    (@scope Namespaced) => { true };
}

kinds! {
    Namespace: Cluster, "v1", "namespaces" | "ns";
    Node: Cluster, "v1", "nodes" | "no";
    ServiceAccount: Namespaced, "v1", "serviceaccounts" | "sa";
    NetworkPolicy: Namespaced, "networking.k8s.io/v1", "networkpolicies" | "netpol";
    Deployment: Namespaced, "apps/v1", "deployments" | "deploy";
    Service: Namespaced, "v1", "services" | "svc";
    Pod: Namespaced, "v1", "pods" | "po";
    EndpointSlice: Namespaced, "discovery.k8s.io/v1", "endpointslices";
    AuthorizationPolicy: Namespaced, "security.istio.io/v1" | "security.istio.io/v1beta1", "authorizationpolicies" | "ap";
    PeerAuthentication: Namespaced, "security.istio.io/v1" | "security.istio.io/v1beta1", "peerauthentications" | "pa";
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
