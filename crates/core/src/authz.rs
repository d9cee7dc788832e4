//! Whether a connection into a workload is allowed, and by what.

#[cfg(test)]
mod tests;

use std::{
    cell::OnceCell,
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use ipnet::IpNet;

use crate::{
    identity::Identity,
    policy::{Action, Clause, Match, Policy, PolicyKey, Rule, ServiceAccountMatch},
    reason::Reason,
    state::{Candidate, MeshState, UnknownPolicy},
    workload::Workload,
};

/// What is judged.
#[derive(Debug, Clone)]
pub struct Connection {
    pub destination: Arc<Workload>,
    /// None = plaintext.
    pub identity: Option<Identity>,
    pub source_ip: IpAddr,
    /// The pod's address and the final port there.
    pub destination_addr: SocketAddr,
}

/// The judgement of one connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    pub decision: Decision,
    /// What dry-run policies would have done.
    pub dry_run: Vec<DryRun>,
}

/// Allowed or denied, and by what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision {
    Allow(By),
    Deny(By),
    /// The workload has just named a policy that is not known yet and may decide either way. Whoever is connected stays,
    /// whoever comes waits.
    Pending(PolicyKey),
}

/// What decided.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// A policy's rule matched; rules count from 0.
    Policy { policy: PolicyKey, rule: usize },
    /// No ALLOW policy applies, so all is allowed that no DENY policy matches.
    NoAllowPolicies,
    /// ALLOW policies apply and none matched.
    NoAllowPolicyMatched,
    /// The workload names a policy that is not known: it might have denied.
    PolicyUnknown(PolicyKey),
}

/// A dry-run policy that applies, and the rule that matched, if any.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DryRun {
    pub policy: PolicyKey,
    pub action: Action,
    pub matched: Option<usize>,
}

/// Judges a connection: a DENY that matches denies; else a named policy that is missing denies, or leaves it open as long
/// as it is awaited; else without ALLOW policies it is allowed; else one of them must match.
pub fn authorize(state: &MeshState, connection: &Connection) -> Verdict {
    let subject = Subject::new(connection);
    let mut dry_run = Vec::new();
    let (mut missing, mut awaited) = (None, None);
    let mut allow_policies = false;
    let mut allowed = None;
    let mut denied = None;
    for candidate in state.policies_for(&connection.destination) {
        let policy = match candidate {
            Candidate::Known(policy) => policy,
            Candidate::Missing(key) => {
                match state.unknown_policy(&connection.destination, key) {
                    UnknownPolicy::Deny => missing = missing.or(Some(key)),
                    UnknownPolicy::Await => awaited = awaited.or(Some(key)),
                    UnknownPolicy::Skip => {}
                }
                continue;
            }
        };
        if policy.dry_run {
            dry_run.push(DryRun {
                policy: policy.key.clone(),
                action: policy.action,
                matched: subject.matching_rule(policy),
            });
            continue;
        }
        let decided = match policy.action {
            Action::Deny => &mut denied,
            Action::Allow => {
                allow_policies = true;
                &mut allowed
            }
        };
        if decided.is_none() {
            *decided = subject.matching_rule(policy).map(|rule| By::Policy { policy: policy.key.clone(), rule });
        }
    }
    let decision = match (denied, missing, awaited, allowed) {
        (Some(by), ..) => Decision::Deny(by),
        (None, Some(key), ..) => Decision::Deny(By::PolicyUnknown(key.clone())),
        (None, None, Some(key), _) => Decision::Pending(key.clone()),
        (None, None, None, Some(by)) => Decision::Allow(by),
        (None, None, None, None) if allow_policies => Decision::Deny(By::NoAllowPolicyMatched),
        (None, None, None, None) => Decision::Allow(By::NoAllowPolicies),
    };
    Verdict { decision, dry_run }
}

impl Verdict {
    /// Whether the connection may be.
    pub fn is_allowed(&self) -> bool {
        matches!(self.decision, Decision::Allow(_))
    }

    /// Why not, if not.
    pub fn reason(&self) -> Option<Reason> {
        match &self.decision {
            Decision::Allow(_) => None,
            Decision::Deny(By::Policy { .. }) => Some(Reason::PolicyDenied),
            Decision::Deny(By::PolicyUnknown(_)) | Decision::Pending(_) => Some(Reason::PolicyUnknown),
            Decision::Deny(By::NoAllowPolicyMatched | By::NoAllowPolicies) => Some(Reason::PolicyNotAllowed),
        }
    }

    /// The policy that decided, or that is missing.
    pub fn policy(&self) -> Option<&PolicyKey> {
        match &self.decision {
            Decision::Allow(by) | Decision::Deny(by) => match by {
                By::Policy { policy, .. } | By::PolicyUnknown(policy) => Some(policy),
                By::NoAllowPolicies | By::NoAllowPolicyMatched => None,
            },
            Decision::Pending(policy) => Some(policy),
        }
    }
}

/// The connection as policies see it.
struct Subject<'a> {
    identity: Option<&'a Identity>,
    principal: OnceCell<String>,
    source_ip: IpAddr,
    destination_ip: IpAddr,
    destination_port: u16,
}

impl<'a> Subject<'a> {
    fn new(connection: &'a Connection) -> Self {
        Self {
            identity: connection.identity.as_ref(),
            principal: OnceCell::new(),
            source_ip: connection.source_ip.to_canonical(),
            destination_ip: connection.destination_addr.ip().to_canonical(),
            destination_port: connection.destination_addr.port(),
        }
    }

    fn matching_rule(&self, policy: &Policy) -> Option<usize> {
        policy.rules.iter().position(|rule| self.matches_rule(rule))
    }

    fn matches_rule(&self, rule: &Rule) -> bool {
        rule.clauses.iter().all(|clause| self.matches_clause(clause))
    }

    fn matches_clause(&self, clause: &Clause) -> bool {
        clause.matches.is_empty() || clause.matches.iter().any(|m| self.matches(m))
    }

    fn matches(&self, m: &Match) -> bool {
        // No field set: the translation left nothing that could be judged here, so it must not match.
        if m.is_empty() {
            return false;
        }
        let namespace = self.identity.map_or("", |identity| &identity.namespace);
        let principal = || self.identity.map(|identity| self.principal.get_or_init(|| identity.principal()).as_str());
        let account = |wanted: &ServiceAccountMatch| {
            self.identity.is_some_and(|identity| {
                identity.namespace == wanted.namespace && identity.service_account == wanted.service_account
            })
        };
        holds(&m.namespaces, &m.not_namespaces, |wanted| wanted.matches(namespace))
            && holds(&m.principals, &m.not_principals, |wanted| principal().is_some_and(|text| wanted.matches(text)))
            && holds(&m.service_accounts, &m.not_service_accounts, account)
            && holds(&m.source_ips, &m.not_source_ips, |net| net.contains(&self.source_ip))
            && holds(&m.destination_ips, &m.not_destination_ips, |net: &IpNet| net.contains(&self.destination_ip))
            && holds(&m.destination_ports, &m.not_destination_ports, |port| *port == self.destination_port)
    }
}

/// A field and its negation: one of the wanted values must match, if there are any, and none of the unwanted.
fn holds<T>(wanted: &[T], unwanted: &[T], matches: impl Fn(&T) -> bool) -> bool {
    (wanted.is_empty() || wanted.iter().any(&matches)) && !unwanted.iter().any(&matches)
}
