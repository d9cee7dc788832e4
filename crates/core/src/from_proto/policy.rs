//! Policies.

use std::fmt;

use aquifer_proto::security as wire;

use super::{ConversionError, Problem, each, error, net, port, required};
use crate::policy::{Action, Clause, Match, Policy, PolicyKey, Rule, Scope, ServiceAccountMatch, StringMatch};

pub(super) fn policy(p: &wire::Authorization) -> Result<Policy, ConversionError> {
    let scope = match wire::Scope::try_from(p.scope) {
        Ok(wire::Scope::Global) => Scope::Global,
        Ok(wire::Scope::Namespace) => Scope::Namespace,
        Ok(wire::Scope::WorkloadSelector) => Scope::WorkloadSelector,
        Err(_) => return Err(error("scope", Problem::UnknownValue(p.scope))),
    };
    let action = match wire::Action::try_from(p.action) {
        Ok(wire::Action::Allow) => Action::Allow,
        Ok(wire::Action::Deny) => Action::Deny,
        Err(_) => return Err(error("action", Problem::UnknownValue(p.action))),
    };
    Ok(Policy {
        key: PolicyKey { namespace: required("namespace", &p.namespace)?, name: required("name", &p.name)? },
        scope,
        action,
        rules: each("rules", &p.rules, rule)?,
        dry_run: p.dry_run,
    })
}

fn rule(rule: &wire::Rule, at: &dyn fmt::Display) -> Result<Rule, ConversionError> {
    Ok(Rule { clauses: each("clauses", &rule.clauses, clause).map_err(|e| e.within(at))? })
}

fn clause(clause: &wire::Clause, at: &dyn fmt::Display) -> Result<Clause, ConversionError> {
    Ok(Clause { matches: each("matches", &clause.matches, single_match).map_err(|e| e.within(at))? })
}

fn single_match(m: &wire::Match, at: &dyn fmt::Display) -> Result<Match, ConversionError> {
    fields(m).map_err(|e| e.within(at))
}

fn fields(m: &wire::Match) -> Result<Match, ConversionError> {
    if let Some(extension) = m.extensions.first() {
        return Err(error("extensions[0]", Problem::UnknownExtension(extension.name.clone())));
    }
    let cidr = |address: &wire::Address, at: &dyn fmt::Display| net(at, &address.address, address.length);
    let number = |number: &u32, at: &dyn fmt::Display| port(at, *number);
    Ok(Match {
        namespaces: each("namespaces", &m.namespaces, string)?,
        not_namespaces: each("not_namespaces", &m.not_namespaces, string)?,
        principals: each("principals", &m.principals, string)?,
        not_principals: each("not_principals", &m.not_principals, string)?,
        source_ips: each("source_ips", &m.source_ips, cidr)?,
        not_source_ips: each("not_source_ips", &m.not_source_ips, cidr)?,
        destination_ips: each("destination_ips", &m.destination_ips, cidr)?,
        not_destination_ips: each("not_destination_ips", &m.not_destination_ips, cidr)?,
        destination_ports: each("destination_ports", &m.destination_ports, number)?,
        not_destination_ports: each("not_destination_ports", &m.not_destination_ports, number)?,
        service_accounts: each("service_accounts", &m.service_accounts, account)?,
        not_service_accounts: each("not_service_accounts", &m.not_service_accounts, account)?,
    })
}

fn string(m: &wire::StringMatch, at: &dyn fmt::Display) -> Result<StringMatch, ConversionError> {
    use wire::string_match::MatchType;
    match &m.match_type {
        Some(MatchType::Exact(text)) => Ok(StringMatch::Exact(text.as_str().into())),
        Some(MatchType::Prefix(text)) => Ok(StringMatch::Prefix(text.as_str().into())),
        Some(MatchType::Suffix(text)) => Ok(StringMatch::Suffix(text.as_str().into())),
        Some(MatchType::Presence(())) => Ok(StringMatch::Presence),
        None => Err(error(at, Problem::NoMatchKind)),
    }
}

fn account(m: &wire::ServiceAccountMatch, at: &dyn fmt::Display) -> Result<ServiceAccountMatch, ConversionError> {
    Ok(ServiceAccountMatch {
        namespace: required(&format!("{at}.namespace"), &m.namespace)?,
        service_account: required(&format!("{at}.service_account"), &m.service_account)?,
    })
}
