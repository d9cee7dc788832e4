//! Istio's MeshConfig: what an administrator says for the whole mesh (ConfigMap `istio`, key `mesh`, in the control
//! plane's namespace). [`parse`] reads the fields that mean something here and names all others.

mod fields;
mod not_yet;
mod providers;
#[cfg(test)]
mod tests;
mod trust_domain;

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use self::providers::{
    DefaultProviders, EnvoyFileAccessLog, EnvoyOtelAls, ExtensionProvider, GrpcService, HeaderValue, HttpService,
    LogFormat, OpenTelemetry, ResourceDetectors, Zipkin,
};

/// What holds for the whole mesh. Fields that were left out, or are empty, are `None` or empty: who reads them knows
/// the default.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct MeshConfig {
    /// The namespace whose policies hold for the whole mesh.
    #[serde(alias = "root_namespace", skip_serializing_if = "Option::is_none")]
    pub root_namespace: Option<String>,
    /// The trust domain of all identities.
    #[serde(alias = "trust_domain", skip_serializing_if = "Option::is_none")]
    pub trust_domain: Option<String>,
    /// Further trust domains whose identities count as the mesh's own.
    #[serde(alias = "trust_domain_aliases", skip_serializing_if = "Vec::is_empty")]
    pub trust_domain_aliases: Vec<String>,
    /// Where telemetry can go, by name.
    #[serde(alias = "extension_providers", skip_serializing_if = "Vec::is_empty")]
    pub extension_providers: Vec<ExtensionProvider>,
    /// Where telemetry goes unless a Telemetry says otherwise.
    #[serde(alias = "default_providers", skip_serializing_if = "Option::is_none")]
    pub default_providers: Option<DefaultProviders>,
    /// The file of access lines, such as `/dev/stdout`; none writes no lines.
    #[serde(alias = "access_log_file", skip_serializing_if = "Option::is_none")]
    pub access_log_file: Option<String>,
    /// The namespaces that belong to the mesh: those that any of these selects, or all if there are none.
    #[serde(alias = "discovery_selectors", skip_serializing_if = "Vec::is_empty")]
    pub discovery_selectors: Vec<NamespaceSelector>,
    /// What becomes of traffic to where nobody knows.
    #[serde(alias = "outbound_traffic_policy", skip_serializing_if = "Option::is_none")]
    pub outbound_traffic_policy: Option<OutboundTrafficPolicy>,
    /// Settings of the proxies.
    #[serde(alias = "default_config", skip_serializing_if = "Option::is_none")]
    pub default_config: Option<ProxySettings>,
    /// Who sees ServiceEntries.
    #[serde(alias = "service_entry_visibility", skip_serializing_if = "Option::is_none")]
    pub service_entry_visibility: Option<ServiceEntryVisibility>,
}

/// Which namespaces, by their labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct NamespaceSelector {
    /// Labels that it must all have.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub match_labels: BTreeMap<String, String>,
    /// Conditions that must all hold.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub match_expressions: Vec<LabelRequirement>,
}

/// A condition on one label.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelRequirement {
    /// The label's key.
    pub key: String,
    /// `In`, `NotIn`, `Exists` or `DoesNotExist`.
    pub operator: String,
    /// What the label is held against.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
}

/// What becomes of traffic to where nobody knows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OutboundTrafficPolicy {
    /// The mode; left out it is the first of Istio's enumeration, as protobuf has it.
    pub mode: OutboundMode,
}

/// Whether traffic may leave for where nobody knows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum OutboundMode {
    /// Only to services of the registry.
    #[default]
    RegistryOnly,
    /// Anywhere.
    AllowAny,
    /// Anywhere, by names that are looked up as they come.
    AllowAnyDynamicDns,
}

/// Settings of the proxies that the control plane deploys (`istio.mesh.v1alpha1.ProxyConfig`).
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxySettings {
    /// How many threads a proxy works with; none or 0 is one a core that it may use.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub concurrency: Option<u32>,
    /// Environment variables of the proxies.
    #[serde(alias = "proxy_metadata", skip_serializing_if = "BTreeMap::is_empty")]
    pub proxy_metadata: BTreeMap<String, String>,
    /// How long a proxy that ends lets its connections end, such as `5s`.
    #[serde(alias = "termination_drain_duration", skip_serializing_if = "Option::is_none")]
    pub termination_drain_duration: Option<String>,
    /// How requests are traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tracing: Option<ProxyTracing>,
}

/// How requests are traced.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ProxyTracing {
    /// How many of a hundred requests are traced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sampling: Option<f64>,
}

/// Who sees ServiceEntries, by the labels of their namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ServiceEntryVisibility {
    /// Where no policy matches.
    #[serde(alias = "default_visibility", skip_serializing_if = "Option::is_none")]
    pub default_visibility: Option<Visibility>,
    /// The first whose rules all match decides.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<VisibilityPolicy>,
}

/// What holds for the ServiceEntries of some namespaces.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VisibilityPolicy {
    /// Who sees them.
    pub visibility: Visibility,
    /// Which namespaces: all rules must match.
    #[serde(alias = "matching_rules", skip_serializing_if = "Vec::is_empty")]
    pub matching_rules: Vec<VisibilityRule>,
}

/// One rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct VisibilityRule {
    /// Labels of the namespace. `None` is a rule that this version doesn't know.
    #[serde(alias = "namespace_selector", skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<NamespaceSelector>,
}

/// Who sees a ServiceEntry.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "SCREAMING_SNAKE_CASE")]
pub enum Visibility {
    /// Nobody said.
    #[default]
    VisibilityUnspecified,
    /// Nobody.
    None,
    /// Its own namespace.
    Namespace,
    /// Everybody.
    Public,
}

/// A field that was set and changes nothing.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct NoEffect {
    /// Its path, as in `extensionProviders[2].datadog`.
    pub field: String,
    /// Why.
    pub why: Why,
}

/// Why a field changes nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Why {
    /// Istio knows it, and this mesh has no use for it.
    NotHere,
    /// It is read, and nobody acts upon it so far: what that means, as the rest of a sentence.
    NotSoFar(&'static str),
    /// Istio doesn't know it either.
    Unknown,
}

impl fmt::Display for NoEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.why {
            Why::NotHere => write!(f, "{} has no effect in this mesh", self.field),
            Why::NotSoFar(words) => write!(f, "{} {words}", self.field),
            Why::Unknown => write!(f, "{} is not a field of MeshConfig: is it misspelt?", self.field),
        }
    }
}

/// Why a MeshConfig cannot be read. What was last read stays in force.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("MeshConfig{}: {message}", place(.field, *.line))]
pub struct MeshConfigError {
    /// The field's path; empty if it is not about a field.
    pub field: String,
    /// The line of the text, counted from 1; 0 if unknown.
    pub line: usize,
    /// What is wrong.
    pub message: String,
}

fn place(field: &str, line: usize) -> String {
    match (field, line) {
        ("", 0) => String::new(),
        ("", line) => format!(" line {line}"),
        (field, _) => format!(" {field}"),
    }
}

/// Reads a MeshConfig, and names every field of it that has no effect. Field names may be written as in JSON
/// (`trustDomain`) or as in protobuf (`trust_domain`).
pub fn parse(yaml: &str) -> Result<(MeshConfig, Vec<NoEffect>), MeshConfigError> {
    let syntax = |error: serde_norway::Error| MeshConfigError {
        field: String::new(),
        line: error.location().map_or(0, |at| at.line()),
        message: error.to_string(),
    };
    let mut tree = serde_norway::Value::deserialize(serde_norway::Deserializer::from_str(yaml)).map_err(syntax)?;
    tree.apply_merge().map_err(syntax)?;
    let whole = |message: String| MeshConfigError { field: String::new(), line: 0, message };
    let mut value = serde_json::to_value(&tree).map_err(|error| whole(error.to_string()))?;
    match &value {
        Value::Null => return Ok((MeshConfig::default(), Vec::new())),
        Value::Object(_) => {}
        _ => return Err(whole("is not a list of fields with values".to_owned())),
    }
    fields::prune(&mut value);
    let config: MeshConfig = serde_path_to_error::deserialize(&value).map_err(|error| {
        let field = error.path().to_string();
        MeshConfigError { field, line: 0, message: error.into_inner().to_string() }
    })?;
    trust_domain::check(&config)?;
    let read = serde_json::to_value(&config).map_err(|error| whole(error.to_string()))?;
    let mut without_effect = fields::unread(&value, &read);
    without_effect.extend(not_yet::not_yet(&config));
    without_effect.sort();
    Ok((config, without_effect))
}
