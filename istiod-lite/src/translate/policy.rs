//! AuthorizationPolicy → istio.security.Authorization.
//!
//! The node proxy knows connections, not requests. Whatever speaks of requests is left out, towards more denial:
//! * In an ALLOW policy a rule with such an attribute goes as a whole. If all go, nothing is allowed.
//! * In a DENY policy only the attributes go: what is left of a match denies more than was asked; a match of which
//!   nothing is left never matches, and makes its rule inert if it stands alone in its clause.
//!
//! A value that cannot be read (a folder refuses it, an API server may not) is treated the same way: what is left of its
//! match could let in more than was asked.
//!
//! What was left out comes back as data, for the policy's status.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;

use aquifer_objects::crds::{Action, AuthorizationPolicy, Operation, Rule, Source, WhenCondition};
use aquifer_objects::validate::values;
use aquifer_proto::security::string_match::MatchType;
use aquifer_proto::security::{
    self as proto, Address, Authorization, Clause, Match, Scope, ServiceAccountMatch, StringMatch,
};

use super::waypoint::{Key, Waypoint};
use super::{Labels, Mesh, address_bytes};

/// What a policy becomes at the node proxy.
#[derive(Clone, Debug, PartialEq)]
pub enum Translated {
    /// It is for waypoints alone.
    ForWaypoints,
    /// It cannot be had there at all; why.
    Unsupported(String),
    /// It is sent.
    Sent {
        /// The resource.
        authorization: Authorization,
        /// What was left out.
        left_out: LeftOut,
        /// Whether what remains still does something of what was asked.
        usable: bool,
    },
}

/// What a node proxy cannot be told.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LeftOut {
    /// Attributes of requests, as they are written in the policy.
    pub attributes: BTreeSet<String>,
    /// Whether values were left out because they cannot be read.
    pub unreadable: bool,
}

impl LeftOut {
    /// Whether all is there.
    pub fn is_nothing(&self) -> bool {
        self.attributes.is_empty() && !self.unreadable
    }

    fn add(&mut self, other: Self) {
        self.attributes.extend(other.attributes);
        self.unreadable |= other.unreadable;
    }

    /// Notes requests' attributes that are set.
    fn note(&mut self, lists: &[(&str, &Vec<String>)]) {
        let set = lists.iter().filter(|(_, values)| !values.is_empty());
        self.attributes.extend(set.map(|(name, _)| (*name).to_owned()));
    }

    /// The values that can be read.
    fn readable<T>(&mut self, values: &[String], read: impl Fn(&str) -> Option<T>) -> Vec<T> {
        let found: Vec<T> = values.iter().filter_map(|value| read(value)).collect();
        self.unreadable |= found.len() < values.len();
        found
    }

    /// The same of a condition's values and of those that it excludes.
    fn both<T>(&mut self, when: &WhenCondition, read: impl Fn(&str) -> Option<T>) -> (Vec<T>, Vec<T>) {
        (self.readable(&when.values, &read), self.readable(&when.not_values, &read))
    }
}

impl Translated {
    /// The resource, if one is sent.
    pub fn authorization(self) -> Option<Authorization> {
        match self {
            Self::Sent { authorization, .. } => Some(authorization),
            Self::ForWaypoints | Self::Unsupported(_) => None,
        }
    }
}

/// Translates a policy.
pub fn translate(policy: &AuthorizationPolicy, mesh: &Mesh) -> Translated {
    let namespace = policy.metadata.namespace.clone().unwrap_or_default();
    let name = policy.metadata.name.clone().unwrap_or_default();
    if is_dry_run(policy) {
        return Translated::Unsupported(format!(
            "found policy \"{namespace}/{name}\" using dry-run annotation, but support for ambient dry-run authorizationPolicies isn't enabled"
        ));
    }
    if has_targets(policy) {
        return Translated::ForWaypoints;
    }
    let action = match policy.spec.action {
        Action::Allow => proto::Action::Allow,
        Action::Deny => proto::Action::Deny,
        Action::Audit => return Translated::Unsupported("ztunnel does not support the AUDIT action".to_owned()),
        Action::Custom => return Translated::Unsupported("ztunnel does not support the CUSTOM action".to_owned()),
    };
    let mut left_out = LeftOut::default();
    let mut rules = Vec::new();
    for rule in &policy.spec.rules {
        let mut found = LeftOut::default();
        let clauses = clauses(rule, &namespace, &mut found);
        if found.is_nothing() || action == proto::Action::Deny {
            rules.push(proto::Rule { clauses });
        }
        left_out.add(found);
    }
    let usable = policy.spec.rules.is_empty() || rules.iter().any(can_match);
    let scope = match &policy.spec.selector {
        Some(_) => Scope::WorkloadSelector,
        None if namespace == mesh.root_namespace => Scope::Global,
        None => Scope::Namespace,
    };
    let authorization =
        Authorization { name, namespace, scope: scope.into(), action: action.into(), rules, ..Default::default() };
    Translated::Sent { authorization, left_out, usable }
}

/// Whether the policy is sent, without translating it.
pub fn is_sent(policy: &AuthorizationPolicy) -> bool {
    matches!(policy.spec.action, Action::Allow | Action::Deny) && !has_targets(policy) && !is_dry_run(policy)
}

/// Whether waypoints enforce the policy.
pub fn has_targets(policy: &AuthorizationPolicy) -> bool {
    policy.spec.target_ref.is_some() || !policy.spec.target_refs.is_empty()
}

/// The labels by which a sent policy finds its pods; `None` if it finds them by scope.
pub fn selector(policy: &AuthorizationPolicy) -> Option<&Labels> {
    policy.spec.selector.as_ref().map(|selector| &selector.match_labels)
}

/// What the name of a policy that lets a waypoint in begins with.
const ALLOW_WAYPOINT: &str = "istio_allow_waypoint_";

/// The policy that lets a waypoint's pods in to whoever is behind it; `None` as long as it has no pods.
pub fn allow_waypoint(waypoint: &Waypoint, mesh: &Mesh) -> Option<Authorization> {
    let (namespace, name) = &waypoint.key;
    if waypoint.accounts.is_empty() {
        return None;
    }
    let principal = |account: &std::sync::Arc<str>| StringMatch {
        match_type: Some(MatchType::Exact(format!("{}/ns/{namespace}/sa/{account}", mesh.trust_domain))),
    };
    let found = Match { principals: waypoint.accounts.iter().map(principal).collect(), ..Default::default() };
    Some(Authorization {
        name: format!("{ALLOW_WAYPOINT}{namespace}_{name}"),
        namespace: (**namespace).to_owned(),
        scope: Scope::WorkloadSelector.into(),
        action: proto::Action::Allow.into(),
        rules: vec![proto::Rule { clauses: vec![Clause { matches: vec![found] }] }],
        ..Default::default()
    })
}

/// The resource name of that policy.
pub fn allow_waypoint_resource((namespace, name): &Key) -> String {
    format!("{namespace}/{ALLOW_WAYPOINT}{namespace}_{name}")
}

/// Whether any connection can match the rule: each clause needs a match that holds something.
fn can_match(rule: &proto::Rule) -> bool {
    rule.clauses.iter().all(|clause| clause.matches.iter().any(|found| *found != Match::default()))
}

/// `to`, then `from`, then one clause for each `when`.
fn clauses(rule: &Rule, namespace: &str, left_out: &mut LeftOut) -> Vec<Clause> {
    let mut clauses = Vec::new();
    if !rule.to.is_empty() {
        let matches = rule.to.iter().map(|to| operation(&to.operation.clone().unwrap_or_default(), left_out)).collect();
        clauses.push(Clause { matches });
    }
    if !rule.from.is_empty() {
        let matches = rule
            .from
            .iter()
            .map(|from| source(&from.source.clone().unwrap_or_default(), namespace, left_out))
            .collect();
        clauses.push(Clause { matches });
    }
    clauses.extend(rule.when.iter().map(|when| Clause { matches: vec![condition(when, left_out)] }));
    clauses
}

fn operation(operation: &Operation, left_out: &mut LeftOut) -> Match {
    let requests = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    left_out.note(&requests);
    Match {
        destination_ports: left_out.readable(&operation.ports, port),
        not_destination_ports: left_out.readable(&operation.not_ports, port),
        ..Default::default()
    }
}

fn source(source: &Source, namespace: &str, left_out: &mut LeftOut) -> Match {
    let requests = [
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ];
    left_out.note(&requests);
    let account = |value: &str| account(value, namespace);
    Match {
        source_ips: left_out.readable(&source.ip_blocks, block),
        not_source_ips: left_out.readable(&source.not_ip_blocks, block),
        namespaces: left_out.readable(&source.namespaces, string),
        not_namespaces: left_out.readable(&source.not_namespaces, string),
        service_accounts: left_out.readable(&source.service_accounts, account),
        not_service_accounts: left_out.readable(&source.not_service_accounts, account),
        principals: left_out.readable(&source.principals, string),
        not_principals: left_out.readable(&source.not_principals, string),
        ..Default::default()
    }
}

fn condition(when: &WhenCondition, left_out: &mut LeftOut) -> Match {
    let mut found = Match::default();
    match when.key.as_str() {
        "source.ip" => (found.source_ips, found.not_source_ips) = left_out.both(when, block),
        "source.namespace" => (found.namespaces, found.not_namespaces) = left_out.both(when, string),
        "source.principal" => (found.principals, found.not_principals) = left_out.both(when, string),
        "destination.ip" => (found.destination_ips, found.not_destination_ips) = left_out.both(when, block),
        "destination.port" => {
            (found.destination_ports, found.not_destination_ports) = left_out.both(when, port);
        }
        other => {
            left_out.attributes.insert(other.to_owned());
        }
    }
    found
}

/// `*` anything there is, `*x` an end, `x*` a beginning, else the whole. An empty text would be who has no identity.
fn string(value: &str) -> Option<StringMatch> {
    let kind = match (value.strip_prefix('*'), value.strip_suffix('*')) {
        _ if value.is_empty() => return None,
        (Some(""), _) => MatchType::Presence(()),
        (Some(end), _) => MatchType::Suffix(end.to_owned()),
        (None, Some(beginning)) => MatchType::Prefix(beginning.to_owned()),
        (None, None) => MatchType::Exact(value.to_owned()),
    };
    Some(StringMatch { match_type: Some(kind) })
}

/// Who names no namespace means the policy's.
fn account(value: &str, namespace: &str) -> Option<ServiceAccountMatch> {
    let (of, name) = values::service_account(value)?;
    let namespace = of.unwrap_or(namespace).to_owned();
    Some(ServiceAccountMatch { namespace, service_account: name.to_owned() })
}

fn port(value: &str) -> Option<u32> {
    values::port(value).map(u32::from)
}

fn block(value: &str) -> Option<Address> {
    let (ip, length) = values::ip_block(value)?;
    Some(Address { address: address_bytes(ip), length: length.into() })
}

/// The fields with principals that match nobody, since identities are compared without their scheme, and what they hold.
pub fn principals_with_scheme(policy: &AuthorizationPolicy) -> Vec<(String, String)> {
    let mut found = Vec::new();
    let mut look = |path: String, values: &[String]| {
        let wrong = values.iter().enumerate().filter(|(_, value)| value.starts_with("spiffe://"));
        found.extend(wrong.map(|(at, value)| (format!("{path}[{at}]"), value.clone())));
    };
    for (i, rule) in policy.spec.rules.iter().enumerate() {
        for (j, from) in rule.from.iter().enumerate() {
            let Some(source) = &from.source else { continue };
            let path = format!("spec.rules[{i}].from[{j}].source");
            look(format!("{path}.principals"), &source.principals);
            look(format!("{path}.notPrincipals"), &source.not_principals);
        }
        for (j, when) in rule.when.iter().enumerate().filter(|(_, when)| when.key == "source.principal") {
            look(format!("spec.rules[{i}].when[{j}].values"), &when.values);
            look(format!("spec.rules[{i}].when[{j}].notValues"), &when.not_values);
        }
    }
    found
}

fn is_dry_run(policy: &AuthorizationPolicy) -> bool {
    let value = policy.metadata.annotations.as_ref().and_then(|all| all.get("istio.io/dry-run"));
    // The values of Go's strconv.ParseBool, by which the annotation is defined.
    value.is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}
