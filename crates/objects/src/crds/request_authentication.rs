//! `security.istio.io` RequestAuthentication.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{IstioStatus, TargetRef, WorkloadSelector, schema};

/// Which tokens requests may bear.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "security.istio.io",
    version = "v1",
    kind = "RequestAuthentication",
    plural = "requestauthentications",
    shortname = "ra",
    namespaced,
    status = "IstioStatus",
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = schema::selector_or_targets()))]
pub struct RequestAuthenticationSpec {
    /// The issuers whose tokens are taken.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 4096))]
    pub jwt_rules: Vec<JwtRule>,
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
}

/// An issuer of tokens, and where its tokens stand.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [{"rule": "(has(self.jwksUri) ? 1 : 0) + (has(self.jwks_uri) ? 1 : 0) + (has(self.jwks) ? 1 : 0) <= 1", "message": "only one of jwks or jwksUri can be set"}]))]
pub struct JwtRule {
    /// The audiences of which a token must name one.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("items" = {"minLength": 1, "type": "string"}))]
    pub audiences: Vec<String>,
    /// Whether the token is passed on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub forward_original_token: Option<bool>,
    /// Cookies that hold a token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("items" = {"minLength": 1, "type": "string"}))]
    pub from_cookies: Vec<String>,
    /// Headers that hold a token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub from_headers: Vec<FromHeader>,
    /// Query parameters that hold a token.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("items" = {"minLength": 1, "type": "string"}))]
    pub from_params: Vec<String>,
    /// The issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("minLength" = 1))]
    pub issuer: Option<String>,
    /// The keys themselves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub jwks: Option<String>,
    /// Deprecated: see `jwksUri`.
    #[serde(rename = "jwks_uri", default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 2048, "minLength" = 1, "x-kubernetes-validations" = schema::is_url()))]
    pub jwks_uri_snake: Option<String>,
    /// Where the keys are fetched.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("maxLength" = 2048, "minLength" = 1, "x-kubernetes-validations" = schema::is_url()))]
    pub jwks_uri: Option<String>,
    /// Claims that become headers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub output_claim_to_headers: Vec<OutputClaimToHeader>,
    /// The header that gets the verified payload.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_payload_to_header: Option<String>,
    /// Claims that hold several values with spaces between.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 64, "items" = {"minLength": 1, "type": "string"}))]
    pub space_delimited_claims: Vec<String>,
    /// How long it may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::duration")]
    pub timeout: Option<String>,
}

/// A header that holds a token.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct FromHeader {
    /// The name.
    #[schemars(extend("minLength" = 1))]
    pub name: String,
    /// What stands before the token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
}

/// A claim of the token that becomes a header.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct OutputClaimToHeader {
    /// The claim.
    #[schemars(extend("minLength" = 1))]
    pub claim: String,
    /// The header.
    #[schemars(extend("minLength" = 1, "pattern" = "^[-_A-Za-z0-9]+$"))]
    pub header: String,
}
