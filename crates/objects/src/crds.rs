//! The custom kinds: Istio's, which we define ourselves with the fields of its API, and the Gateway API's.

mod authorization_policy;
pub mod definition;
pub mod destination_rule;
pub mod duration;
pub mod gateway_api;
mod peer_authentication;
pub mod request_authentication;
mod schema;
pub mod service_entry;
pub mod telemetry;
pub mod virtual_service;
mod without_effect;
pub mod workload_entry;
pub mod workload_group;

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::authorization_policy::{
    Action, AuthorizationPolicy, AuthorizationPolicySpec, Condition as WhenCondition, ExtensionProvider,
    From as RuleFrom, Operation, Rule, Source, TargetRef, To as RuleTo,
};
pub use self::destination_rule::{DestinationRule, DestinationRuleSpec};
pub use self::gateway_api::{
    GRPCRoute, GRPCRouteSpec, Gateway, GatewayClass, GatewayClassSpec, GatewaySpec, HTTPRoute, HTTPRouteSpec,
    ReferenceGrant, ReferenceGrantSpec, TCPRoute, TCPRouteSpec, TLSRoute, TLSRouteSpec,
};
pub use self::peer_authentication::{MutualTls, MutualTlsMode, PeerAuthentication, PeerAuthenticationSpec};
pub use self::request_authentication::{RequestAuthentication, RequestAuthenticationSpec};
pub use self::service_entry::{ServiceEntry, ServiceEntrySpec};
pub use self::telemetry::{Telemetry, TelemetrySpec};
pub use self::virtual_service::{VirtualService, VirtualServiceSpec};
pub use self::without_effect::{
    EnvoyFilter, EnvoyFilterSpec, IstioGateway, IstioGatewaySpec, ProxyConfig, ProxyConfigSpec, Sidecar, SidecarSpec,
    TrafficExtension, TrafficExtensionSpec, WasmPlugin, WasmPluginSpec,
};
pub use self::workload_entry::{WorkloadEntry, WorkloadEntrySpec};
pub use self::workload_group::{WorkloadGroup, WorkloadGroupSpec};

/// The status of Istio's policies is that of all its kinds.
pub type PolicyStatus = IstioStatus;
/// One condition of it.
pub type PolicyCondition = Condition;

/// Which pods of the namespace a policy is for.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadSelector {
    /// Labels that a pod must all have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend(
        "maxProperties" = 4096,
        "additionalProperties" = {
            "type": "string",
            "maxLength": 63,
            "x-kubernetes-validations": [
                {"rule": r#"!self.contains("*")"#, "message": "wildcard not allowed in label value match"}
            ]
        },
        "x-kubernetes-validations" = [
            {"rule": r#"self.all(key, !key.contains("*"))"#, "message": "wildcard not allowed in label key match"},
            {"rule": "self.all(key, key.size() != 0)", "message": "key must not be empty"}
        ]
    ))]
    pub match_labels: BTreeMap<String, String>,
}

/// What controllers report on an object of Istio's kinds (`istio.meta.v1alpha1.IstioStatus`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IstioStatus {
    /// The conditions, one a type.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
    /// The generation that the conditions speak of: a number, or the text of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::int_or_string")]
    pub observed_generation: Option<Value>,
    /// What a validator found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub validation_messages: Vec<ValidationMessage>,
    /// A ServiceEntry's allocated addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<ServiceAddress>,
    /// What else is there, written by others.
    #[serde(flatten)]
    #[schemars(skip)]
    pub other: Map<String, Value>,
}

/// What a validator found (`istio.analysis.v1alpha1.AnalysisMessageBase`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValidationMessage {
    /// What sort of message.
    #[serde(rename = "type", default, skip_serializing_if = "Option::is_none")]
    pub type_: Option<ValidationMessageType>,
    /// How bad it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub level: Option<ValidationLevel>,
    /// Where it is explained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub documentation_url: Option<String>,
}

/// What sort of message a validator left.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ValidationMessageType {
    /// Its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Its code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<String>,
}

/// How bad a validator's finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum ValidationLevel {
    /// Nobody said.
    Unknown,
    /// It does not work.
    Error,
    /// It may not do what was meant.
    Warning,
    /// Worth knowing.
    Info,
}

/// An address allocated to one host of a ServiceEntry (`istio.networking.v1alpha3.ServiceEntryAddress`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServiceAddress {
    /// The address.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub value: String,
    /// The host that it stands for.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub host: String,
}

/// One condition, of Istio's kinds (`istio.meta.v1alpha1.IstioCondition`) and of the Gateway API's.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// The condition's type.
    #[serde(rename = "type", default)]
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    #[serde(default)]
    pub status: String,
    /// One CamelCase word.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// For people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// RFC 3339 time of the last change of `status`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_transition_time: Option<String>,
    /// RFC 3339 time of the last look.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("format" = "date-time"))]
    pub last_probe_time: Option<String>,
    /// The generation that the condition speaks of: a number, or the text of one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::int_or_string")]
    pub observed_generation: Option<Value>,
}
