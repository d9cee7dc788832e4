//! `networking.istio.io` ServiceEntry.

use std::collections::BTreeMap;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{IstioStatus, WorkloadEntrySpec, schema};

/// Hosts that Kubernetes doesn't know as Services.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.istio.io",
    version = "v1",
    kind = "ServiceEntry",
    plural = "serviceentries",
    shortname = "se",
    namespaced,
    status = "IstioStatus",
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "(has(self.workloadSelector) ? 1 : 0) + (has(self.endpoints) ? 1 : 0) <= 1", "message": "only one of WorkloadSelector or Endpoints can be set"}, {"rule": r#"!((has(self.addresses) ? self.addresses : []).exists(k, k.contains("/")) && !((has(self.resolution) ? self.resolution : "NONE") in ["STATIC", "NONE"]))"#, "message": "CIDR addresses are allowed only for NONE/STATIC resolution types"}, {"rule": r#"((has(self.resolution) ? self.resolution : "NONE") == "NONE") ? !has(self.endpoints) : true"#, "message": "NONE mode cannot set endpoints"}, {"rule": r#"((has(self.resolution) ? self.resolution : "") == "DNS_ROUND_ROBIN") ? ((has(self.endpoints) ? self.endpoints : []).size() <= 1) : true"#, "message": "DNS_ROUND_ROBIN mode cannot have multiple endpoints"}]))]
pub struct ServiceEntrySpec {
    /// The addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256, "items" = {"maxLength": 64, "type": "string"}))]
    pub addresses: Vec<String>,
    /// The endpoints.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 4096))]
    pub endpoints: Vec<WorkloadEntrySpec>,
    /// The namespaces that see it: `.` its own, `*` all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub export_to: Vec<String>,
    /// The hosts.
    #[schemars(extend("maxItems" = 256, "minItems" = 1, "items" = {"type": "string", "x-kubernetes-validations": [{"message": "hostname cannot be wildcard", "rule": r#"self != "*""#}]}))]
    pub hosts: Vec<String>,
    /// Within the mesh or outside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub location: Option<Location>,
    /// The ports.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 256, "x-kubernetes-list-map-keys" = ["name"], "x-kubernetes-list-type" = "map", "x-kubernetes-validations" = [{"rule": "self.all(l1, self.exists_one(l2, l1.number == l2.number))", "message": "port number cannot be duplicated"}]))]
    pub ports: Vec<ServicePort>,
    /// How addresses are found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resolution: Option<Resolution>,
    /// The names of which the host's certificate must bear one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub subject_alt_names: Vec<String>,
    /// Which workloads, by their labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workload_selector: Option<LabelsSelector>,
}

/// Within the mesh or outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Location {
    /// Outside.
    #[serde(rename = "MESH_EXTERNAL")]
    MeshExternal,
    /// Within.
    #[serde(rename = "MESH_INTERNAL")]
    MeshInternal,
}

/// A port of the hosts.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ServicePort {
    /// The name.
    #[schemars(extend("maxLength" = 256))]
    pub name: String,
    /// The number.
    #[schemars(extend("x-kubernetes-validations" = schema::is_port()))]
    pub number: u32,
    /// The protocol.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 256))]
    pub protocol: Option<String>,
    /// The endpoints' port, where it is another.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = schema::is_port()))]
    pub target_port: Option<u32>,
}

/// How addresses are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Resolution {
    /// Connections go to the address that the client chose.
    #[serde(rename = "NONE")]
    None,
    /// They are given.
    #[serde(rename = "STATIC")]
    Static,
    /// By the hosts' names.
    #[serde(rename = "DNS")]
    Dns,
    /// By the hosts' names, one address at a time.
    #[serde(rename = "DNS_ROUND_ROBIN")]
    DnsRoundRobin,
    /// By the name that each request asks for.
    #[serde(rename = "DYNAMIC_DNS")]
    DynamicDns,
}

/// Workloads by their labels.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LabelsSelector {
    /// The labels.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(extend("maxProperties" = 256, "additionalProperties" = {"maxLength": 63, "type": "string", "x-kubernetes-validations": [{"message": "wildcard is not supported in selector", "rule": r#"!self.contains("*")"#}]}))]
    pub labels: BTreeMap<String, String>,
}
