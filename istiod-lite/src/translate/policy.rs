//! AuthorizationPolicy → istio.security.Authorization.
//!
//! The node proxy knows connections, not requests. Whatever speaks of requests is left out, towards more denial:
//! * In an ALLOW policy a rule with such an attribute goes as a whole. If all go, nothing is allowed.
//! * In a DENY policy only the attributes go: what is left of a match denies more than was asked; a match of which
//!   nothing is left never matches, and makes its rule inert if it stands alone in its clause.
//!
//! What was left out comes back as data, for the policy's status.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::IpAddr;

use aquifer_objects::crds::{Action, AuthorizationPolicy, Operation, Rule, Source, WhenCondition};
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
        /// The attributes that were left out, as they are written in the policy.
        left_out: BTreeSet<String>,
        /// Whether what remains still does something of what was asked.
        usable: bool,
    },
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
    let mut left_out = BTreeSet::new();
    let mut rules = Vec::new();
    for rule in &policy.spec.rules {
        let mut found = BTreeSet::new();
        let clauses = clauses(rule, &namespace, &mut found);
        if found.is_empty() || action == proto::Action::Deny {
            rules.push(proto::Rule { clauses });
        }
        left_out.extend(found);
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
fn clauses(rule: &Rule, namespace: &str, left_out: &mut BTreeSet<String>) -> Vec<Clause> {
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

fn operation(operation: &Operation, left_out: &mut BTreeSet<String>) -> Match {
    let requests = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    note(&requests, left_out);
    Match {
        destination_ports: port_numbers(&operation.ports),
        not_destination_ports: port_numbers(&operation.not_ports),
        ..Default::default()
    }
}

fn source(source: &Source, namespace: &str, left_out: &mut BTreeSet<String>) -> Match {
    let requests = [
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ];
    note(&requests, left_out);
    Match {
        source_ips: blocks(&source.ip_blocks),
        not_source_ips: blocks(&source.not_ip_blocks),
        namespaces: strings(&source.namespaces),
        not_namespaces: strings(&source.not_namespaces),
        service_accounts: accounts(&source.service_accounts, namespace),
        not_service_accounts: accounts(&source.not_service_accounts, namespace),
        principals: strings(&source.principals),
        not_principals: strings(&source.not_principals),
        ..Default::default()
    }
}

fn condition(when: &WhenCondition, left_out: &mut BTreeSet<String>) -> Match {
    let (values, not_values) = (&when.values, &when.not_values);
    let mut found = Match::default();
    match when.key.as_str() {
        "source.ip" => (found.source_ips, found.not_source_ips) = (blocks(values), blocks(not_values)),
        "source.namespace" => (found.namespaces, found.not_namespaces) = (strings(values), strings(not_values)),
        "source.principal" => (found.principals, found.not_principals) = (strings(values), strings(not_values)),
        "destination.ip" => (found.destination_ips, found.not_destination_ips) = (blocks(values), blocks(not_values)),
        "destination.port" => {
            (found.destination_ports, found.not_destination_ports) = (port_numbers(values), port_numbers(not_values));
        }
        other => {
            left_out.insert(other.to_owned());
        }
    }
    found
}

fn note(lists: &[(&str, &Vec<String>)], left_out: &mut BTreeSet<String>) {
    left_out.extend(lists.iter().filter(|(_, values)| !values.is_empty()).map(|(name, _)| (*name).to_owned()));
}

/// `*` anything there is, `*x` an end, `x*` a beginning, else the whole.
fn strings(values: &[String]) -> Vec<StringMatch> {
    let kind = |value: &String| match (value.strip_prefix('*'), value.strip_suffix('*')) {
        (Some(""), _) => MatchType::Presence(()),
        (Some(end), _) => MatchType::Suffix(end.to_owned()),
        (None, Some(beginning)) => MatchType::Prefix(beginning.to_owned()),
        (None, None) => MatchType::Exact(value.clone()),
    };
    values.iter().map(|value| StringMatch { match_type: Some(kind(value)) }).collect()
}

/// `<namespace>/<name>`, or `<name>` in the policy's namespace.
fn accounts(values: &[String], namespace: &str) -> Vec<ServiceAccountMatch> {
    let account = |value: &String| {
        let (namespace, name) = value.split_once('/').unwrap_or((namespace, value));
        ServiceAccountMatch { namespace: namespace.to_owned(), service_account: name.to_owned() }
    };
    values.iter().map(account).collect()
}

fn port_numbers(values: &[String]) -> Vec<u32> {
    values.iter().filter_map(|value| value.parse().ok()).filter(|port| *port <= 65535).collect()
}

fn blocks(values: &[String]) -> Vec<Address> {
    values.iter().filter_map(|value| block(value)).collect()
}

fn block(value: &str) -> Option<Address> {
    let (ip, length) = value.split_once('/').map_or((value, None), |(ip, length)| (ip, Some(length)));
    let ip: IpAddr = ip.parse().ok()?;
    let longest = if ip.is_ipv4() { 32 } else { 128 };
    let length = length.map_or(Some(longest), |length| length.parse().ok()).filter(|length| *length <= longest)?;
    Some(Address { address: address_bytes(ip), length })
}

fn is_dry_run(policy: &AuthorizationPolicy) -> bool {
    let value = policy.metadata.annotations.as_ref().and_then(|all| all.get("istio.io/dry-run"));
    // The values of Go's strconv.ParseBool, by which the annotation is defined.
    value.is_some_and(|value| matches!(value.as_str(), "1" | "t" | "T" | "true" | "TRUE" | "True"))
}
