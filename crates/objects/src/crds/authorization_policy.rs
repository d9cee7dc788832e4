//! `security.istio.io/v1` AuthorizationPolicy.

use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{IstioStatus, WorkloadSelector, schema};

/// Who may call whom.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "security.istio.io",
    version = "v1",
    kind = "AuthorizationPolicy",
    plural = "authorizationpolicies",
    shortname = "ap",
    namespaced,
    status = "IstioStatus",
    schema = "disabled",
    derive = "Default",
    derive = "PartialEq"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend(
    "oneOf" = schema::at_most_one(&["provider"]),
    "x-kubernetes-validations" = schema::selector_or_targets()
))]
pub struct AuthorizationPolicySpec {
    /// Which pods; none means every pod of the namespace, or of the mesh in the root namespace.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub selector: Option<WorkloadSelector>,
    /// A Gateway or Service whose waypoint enforces the policy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target_ref: Option<TargetRef>,
    /// The same for several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 16))]
    pub target_refs: Vec<TargetRef>,
    /// The rules, of which any may match. `None` and empty are alike: nothing matches.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 512))]
    pub rules: Vec<Rule>,
    /// What a match means.
    #[serde(default)]
    pub action: Action,
    /// Who decides if the action is CUSTOM.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<ExtensionProvider>,
}

/// What a policy's match means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub enum Action {
    /// Let it in.
    #[default]
    Allow,
    /// Keep it out.
    Deny,
    /// Note it.
    Audit,
    /// Ask an extension provider.
    Custom,
}

/// An extension provider by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExtensionProvider {
    /// Its name.
    #[serde(default)]
    pub name: String,
}

/// What a policy is attached to (`istio.type.v1beta1.PolicyTargetReference`).
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["kind", "name"]))]
pub struct TargetRef {
    /// API group; empty for core kinds.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(extend(
        "maxLength" = 253,
        "pattern" = r"^$|^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
    ))]
    pub group: String,
    /// Kind.
    #[serde(default)]
    #[schemars(extend("minLength" = 1, "maxLength" = 63, "pattern" = "^[a-zA-Z]([-a-zA-Z0-9]*[a-zA-Z0-9])?$"))]
    pub kind: String,
    /// Name.
    #[serde(default)]
    #[schemars(extend("minLength" = 1, "maxLength" = 253))]
    pub name: String,
    /// Namespace; only the policy's own is allowed.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    #[schemars(extend("x-kubernetes-validations" = [
        {"rule": "self.size() == 0", "message": "cross namespace referencing is not currently supported"}
    ]))]
    pub namespace: String,
}

/// Matches if any `from`, any `to` and every `when` matches; a list that is left out matches all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Rule {
    /// Sources.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(extend("maxItems" = 512))]
    pub from: Vec<From>,
    /// Operations.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub to: Vec<To>,
    /// Conditions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub when: Vec<Condition>,
}

/// One source.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct From {
    /// The source.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<Source>,
}

/// One operation.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct To {
    /// The operation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<Operation>,
}

macro_rules! string_lists {
    ($(#[$attribute:meta])* $name:ident { $($(#[$field_attribute:meta])* $field:ident,)* }) => {
        #[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
        #[serde(rename_all = "camelCase")]
        $(#[$attribute])*
        pub struct $name {
            $($(#[$field_attribute])* #[serde(default, skip_serializing_if = "Vec::is_empty")] pub $field: Vec<String>,)*
        }
    };
}

string_lists! {
    /// Who calls. All given lists must match.
    #[schemars(extend("x-kubernetes-validations" = [{
        "rule": "(has(self.serviceAccounts) || has(self.notServiceAccounts)) ? (!has(self.principals) &&\n!has(self.notPrincipals) && !has(self.namespaces) && !has(self.notNamespaces)) : true",
        "message": "Cannot set serviceAccounts with namespaces or principals"
    }]))]
    Source {
        /// Peer identities without `spiffe://`.
        principals,
        /// The opposite.
        not_principals,
        /// JWT identities `issuer/subject`.
        request_principals,
        /// The opposite.
        not_request_principals,
        /// The peer identity's namespace.
        namespaces,
        /// The opposite.
        not_namespaces,
        /// The peer's service account, `namespace/name` or `name`.
        #[schemars(extend("maxItems" = 16, "items" = {"type": "string", "maxLength": 320}))]
        service_accounts,
        /// The opposite.
        #[schemars(extend("maxItems" = 16, "items" = {"type": "string", "maxLength": 320}))]
        not_service_accounts,
        /// Source addresses of the packets.
        ip_blocks,
        /// The opposite.
        not_ip_blocks,
        /// Client addresses as X-Forwarded-For tells them.
        remote_ip_blocks,
        /// The opposite.
        not_remote_ip_blocks,
        /// The peer identity's trust domain.
        trust_domains,
        /// The opposite.
        not_trust_domains,
    }
}

string_lists! {
    /// What is called. All given lists must match.
    Operation {
        /// HTTP hosts.
        hosts,
        /// The opposite.
        not_hosts,
        /// Destination ports.
        ports,
        /// The opposite.
        not_ports,
        /// HTTP methods.
        methods,
        /// The opposite.
        not_methods,
        /// HTTP paths.
        paths,
        /// The opposite.
        not_paths,
    }
}

/// One more attribute that must match.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("required" = ["key"]))]
pub struct Condition {
    /// The attribute.
    #[serde(default)]
    pub key: String,
    /// Allowed values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub values: Vec<String>,
    /// Forbidden values.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub not_values: Vec<String>,
}
