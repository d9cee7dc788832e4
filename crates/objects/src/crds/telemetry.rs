//! `telemetry.istio.io` Telemetry.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{IstioStatus, TargetRef, WorkloadSelector, schema};

/// What is recorded of traffic, and for whom.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "telemetry.istio.io",
    version = "v1",
    kind = "Telemetry",
    plural = "telemetries",
    shortname = "telemetry",
    namespaced,
    status = "IstioStatus",
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::selector_or_targets()))]
pub struct TelemetrySpec {
    /// What is written of requests.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub access_logging: Vec<AccessLogging>,
    /// What is counted.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<Metrics>,
    /// Which pods; none means every pod of the namespace, or of the mesh in the root namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// A Gateway or Service whose waypoint acts on it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// Gateways, Services and the like whose waypoints act on it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 16))]
    pub target_refs: Vec<TargetRef>,
    /// What is traced.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tracing: Vec<Tracing>,
}

/// What is written of requests, and where to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct AccessLogging {
    /// Whether it is switched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("nullable" = true))]
    pub disabled: Option<bool>,
    /// Which requests are written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub filter: Option<LogFilter>,
    /// What must match; of several, any.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub match_: Option<LogMatch>,
    /// Providers of the MeshConfig, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<ProviderRef>,
}

/// Which requests are written.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogFilter {
    /// A CEL expression.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expression: Option<String>,
}

/// On which side of a request.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogMatch {
    /// The mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<WorkloadMode>,
}

/// On which side of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum WorkloadMode {
    /// Both.
    #[serde(rename = "CLIENT_AND_SERVER")]
    ClientAndServer,
    /// The caller's.
    #[serde(rename = "CLIENT")]
    Client,
    /// The called.
    #[serde(rename = "SERVER")]
    Server,
}

/// A provider of the MeshConfig.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ProviderRef {
    /// The name.
    #[schemars(extend("minLength" = 1))]
    pub name: String,
}

/// What is recorded, and for whom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Metrics {
    /// What is different with some metrics.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub overrides: Vec<MetricOverride>,
    /// Providers of the MeshConfig, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<ProviderRef>,
    /// How often TCP metrics are brought up to date.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub reporting_interval: Option<String>,
}

/// What is different with some metrics.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MetricOverride {
    /// Whether it is switched off.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("nullable" = true))]
    pub disabled: Option<bool>,
    /// What must match; of several, any.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub match_: Option<MetricMatch>,
    /// What becomes of tags, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub tag_overrides: BTreeMap<String, TagOverride>,
}

/// Which metric, on which side: one of the two names.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = schema::at_most_one(&["metric", "customMetric"])))]
pub struct MetricMatch {
    /// A metric by its name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1))]
    pub custom_metric: Option<String>,
    /// A metric of Istio's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metric: Option<IstioMetric>,
    /// The mode.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<WorkloadMode>,
}

/// A metric that proxies record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum IstioMetric {
    /// All of them.
    #[serde(rename = "ALL_METRICS")]
    AllMetrics,
    /// Requests.
    #[serde(rename = "REQUEST_COUNT")]
    RequestCount,
    /// How long requests took.
    #[serde(rename = "REQUEST_DURATION")]
    RequestDuration,
    /// Sizes of requests.
    #[serde(rename = "REQUEST_SIZE")]
    RequestSize,
    /// Sizes of answers.
    #[serde(rename = "RESPONSE_SIZE")]
    ResponseSize,
    /// Connections that began.
    #[serde(rename = "TCP_OPENED_CONNECTIONS")]
    TcpOpenedConnections,
    /// Connections that ended.
    #[serde(rename = "TCP_CLOSED_CONNECTIONS")]
    TcpClosedConnections,
    /// Bytes that went.
    #[serde(rename = "TCP_SENT_BYTES")]
    TcpSentBytes,
    /// Bytes that came.
    #[serde(rename = "TCP_RECEIVED_BYTES")]
    TcpReceivedBytes,
    /// Messages of gRPC calls.
    #[serde(rename = "GRPC_REQUEST_MESSAGES")]
    GrpcRequestMessages,
    /// Messages of gRPC answers.
    #[serde(rename = "GRPC_RESPONSE_MESSAGES")]
    GrpcResponseMessages,
}

/// What becomes of a tag of a metric.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{"rule": r#"((has(self.operation) ? self.operation : "") == "UPSERT") ? (self.value != "") : true"#, "message": "value must be set when operation is UPSERT"}, {"rule": r#"((has(self.operation) ? self.operation : "") == "REMOVE") ? !has(self.value) : true"#, "message": "value must not be set when operation is REMOVE"}]))]
pub struct TagOverride {
    /// What happens.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<TagOperation>,
    /// The value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// What happens to a tag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum TagOperation {
    /// It is set.
    #[serde(rename = "UPSERT")]
    Upsert,
    /// It is removed.
    #[serde(rename = "REMOVE")]
    Remove,
}

/// Which requests are traced, and for whom.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Tracing {
    /// Tags of spans, by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub custom_tags: BTreeMap<String, CustomTag>,
    /// Whether headers of traces are left alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("nullable" = true))]
    pub disable_context_propagation: Option<bool>,
    /// Whether no spans are reported.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("nullable" = true))]
    pub disable_span_reporting: Option<bool>,
    /// Whether spans bear Istio's tags.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("nullable" = true))]
    pub enable_istio_tags: Option<bool>,
    /// What must match; of several, any.
    #[serde(rename = "match", default, skip_serializing_if = "Option::is_none")]
    pub match_: Option<LogMatch>,
    /// Providers of the MeshConfig, by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub providers: Vec<ProviderRef>,
    /// How many requests of a hundred begin a trace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maximum" = 100, "minimum" = 0, "nullable" = true))]
    pub random_sampling_percentage: Option<f64>,
    /// Whether `x-request-id` says what is traced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("nullable" = true))]
    pub use_request_id_for_trace_sampling: Option<bool>,
}

/// Where a tag's value comes from: one of the fields.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("oneOf" = schema::at_most_one(&["literal", "environment", "header", "formatter"])))]
pub struct CustomTag {
    /// An environment variable of the proxy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<DefaultedName>,
    /// An expression of the access log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub formatter: Option<TagValue>,
    /// The header.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<DefaultedName>,
    /// The value itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub literal: Option<TagValue>,
}

/// A name, and the value where nothing of that name is there.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct DefaultedName {
    /// The value where there is none of that name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub default_value: Option<String>,
    /// The name.
    #[schemars(extend("minLength" = 1))]
    pub name: String,
}

/// A tag's value.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TagValue {
    /// The value.
    #[schemars(extend("minLength" = 1))]
    pub value: String,
}
