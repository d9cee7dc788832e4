//! `gateway.networking.k8s.io` TLSRoute.

use kube::CustomResource;
use serde::{Deserialize, Serialize};

use super::{DefaultScope, L4Rule, ParentRef, RouteStatus};

/// Where TLS connections go, by server name.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[kube(
    group = "gateway.networking.k8s.io",
    version = "v1",
    kind = "TLSRoute",
    plural = "tlsroutes",
    namespaced,
    status = "RouteStatus",
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
pub struct TLSRouteSpec {
    /// The host names that it is for; all if there are none.
    pub hostnames: Vec<String>,
    /// What it is attached to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parent_refs: Vec<ParentRef>,
    /// The rules.
    pub rules: Vec<L4Rule>,
    /// For whom default Gateways are used as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub use_default_gateways: Option<DefaultScope>,
}
