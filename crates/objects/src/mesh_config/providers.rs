//! Where telemetry can go.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A place for telemetry, by name. One of the kinds is set; none of them where Istio knows more kinds than we do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ExtensionProvider {
    /// The name by which Telemetry refers to it.
    pub name: String,
    /// Traces by OTLP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub opentelemetry: Option<OpenTelemetry>,
    /// Traces to Zipkin.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub zipkin: Option<Zipkin>,
    /// Access lines by OTLP.
    #[serde(alias = "envoy_otel_als", skip_serializing_if = "Option::is_none")]
    pub envoy_otel_als: Option<EnvoyOtelAls>,
    /// Access lines to a file.
    #[serde(alias = "envoy_file_access_log", skip_serializing_if = "Option::is_none")]
    pub envoy_file_access_log: Option<EnvoyFileAccessLog>,
    /// Metrics to be fetched by Prometheus: there are no settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prometheus: Option<Map<String, Value>>,
}

impl ExtensionProvider {
    /// Whether it is of a kind that is read here.
    pub fn is_known(&self) -> bool {
        let Self { name: _, opentelemetry, zipkin, envoy_otel_als, envoy_file_access_log, prometheus } = self;
        opentelemetry.is_some()
            || zipkin.is_some()
            || envoy_otel_als.is_some()
            || envoy_file_access_log.is_some()
            || prometheus.is_some()
    }
}

/// Traces by OTLP, by gRPC unless `http` is set.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OpenTelemetry {
    /// The collector: `[namespace/]host`.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// The longest path that is recorded, in bytes.
    #[serde(alias = "max_tag_length", skip_serializing_if = "Option::is_none")]
    pub max_tag_length: Option<u32>,
    /// OTLP over HTTP.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpService>,
    /// How gRPC is spoken.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub grpc: Option<GrpcService>,
    /// What more is told about the proxy.
    #[serde(alias = "resource_detectors", skip_serializing_if = "Option::is_none")]
    pub resource_detectors: Option<ResourceDetectors>,
    /// `ISTIO_CANONICAL` or `OTEL_SEMANTIC_CONVENTIONS`.
    #[serde(alias = "service_attribute_enrichment", skip_serializing_if = "Option::is_none")]
    pub service_attribute_enrichment: Option<String>,
}

/// OTLP over HTTP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HttpService {
    /// The path, such as `/v1/traces`.
    pub path: String,
    /// How long an answer may take, such as `3s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Headers of each request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderValue>,
}

/// OTLP over gRPC.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct GrpcService {
    /// How long an answer may take, such as `3s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Metadata of each call.
    #[serde(alias = "initial_metadata", skip_serializing_if = "Vec::is_empty")]
    pub initial_metadata: Vec<HeaderValue>,
}

/// A header: its value, or the environment variable that holds it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct HeaderValue {
    /// Its name.
    pub name: String,
    /// Its value.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// The proxy's environment variable that holds its value.
    #[serde(alias = "env_name", skip_serializing_if = "Option::is_none")]
    pub env_name: Option<String>,
}

/// What more is told about the proxy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ResourceDetectors {
    /// Attributes from `OTEL_RESOURCE_ATTRIBUTES`: there are no settings.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub environment: Option<Map<String, Value>>,
}

/// Traces to Zipkin.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Zipkin {
    /// The collector: `[namespace/]host`.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// The longest path that is recorded, in bytes.
    #[serde(alias = "max_tag_length", skip_serializing_if = "Option::is_none")]
    pub max_tag_length: Option<u32>,
    /// Whether trace ids have 64 bits in place of 128.
    #[serde(rename = "enable64bitTraceId", alias = "enable_64bit_trace_id", skip_serializing_if = "Option::is_none")]
    pub enable_64bit_trace_id: Option<bool>,
    /// The path; `/api/v2/spans` if none is given.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// `USE_B3` or `USE_B3_WITH_W3C_PROPAGATION`.
    #[serde(alias = "trace_context_option", skip_serializing_if = "Option::is_none")]
    pub trace_context_option: Option<String>,
    /// How long an answer may take, such as `5s`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timeout: Option<String>,
    /// Headers of each request.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub headers: Vec<HeaderValue>,
}

/// Access lines by OTLP.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyOtelAls {
    /// The collector: `[namespace/]host`.
    pub service: String,
    /// Its port.
    pub port: u32,
    /// The log's name.
    #[serde(alias = "log_name", skip_serializing_if = "Option::is_none")]
    pub log_name: Option<String>,
    /// What a line holds.
    #[serde(alias = "log_format", skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
}

/// Access lines to a file.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvoyFileAccessLog {
    /// The file, such as `/dev/stdout`.
    pub path: String,
    /// What a line holds.
    #[serde(alias = "log_format", skip_serializing_if = "Option::is_none")]
    pub log_format: Option<LogFormat>,
    /// Whether values that are missing are left out.
    #[serde(alias = "omit_empty_values", skip_serializing_if = "Option::is_none")]
    pub omit_empty_values: Option<bool>,
}

/// What an access line holds: text, or fields with values, both with Envoy's `%COMMANDS%`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LogFormat {
    /// The line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// The fields.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, Value>,
}

/// Where telemetry goes unless a Telemetry says otherwise: names of providers.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct DefaultProviders {
    /// Traces.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tracing: Vec<String>,
    /// Metrics.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub metrics: Vec<String>,
    /// Access lines.
    #[serde(alias = "access_logging", skip_serializing_if = "Vec::is_empty")]
    pub access_logging: Vec<String>,
}
