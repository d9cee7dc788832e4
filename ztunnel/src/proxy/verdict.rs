//! A verdict in Istio's words.

use std::sync::Arc;

use aquifer_core::authz::{By, Connection, Decision, Verdict};
use aquifer_core::policy::{Action, PolicyKey};
use aquifer_core::reason::Reason;
use aquifer_core::state::{Candidate, MeshState};
use aquifer_core::workload::Workload;

use crate::records::Failure;

/// Policies named in a refusal at most.
const NAMED: usize = 4;

/// Turns a denial into a failure that names the policy: the one that denied, or those that would have had to allow.
pub fn check(state: &MeshState, destination: &Workload, verdict: &Verdict) -> Result<(), Failure> {
    let unknown = |policy: &PolicyKey| (format!("policy not known yet: {policy}"), Some(Arc::from(policy.to_string())));
    let by = match &verdict.decision {
        Decision::Allow(_) => return Ok(()),
        Decision::Pending(policy) => {
            let (why, policy) = unknown(policy);
            return Err(failure(Reason::PolicyUnknown, &why, policy));
        }
        Decision::Deny(by) => by,
    };
    let reason = verdict.reason().unwrap_or(Reason::PolicyDenied);
    let (why, policy) = match by {
        By::Policy { policy, .. } => (format!("explicitly denied by: {policy}"), Some(policy.to_string().into())),
        By::PolicyUnknown(policy) => unknown(policy),
        By::NoAllowPolicyMatched | By::NoAllowPolicies => {
            ("allow policies exist, but none allowed".to_owned(), allow_policies(state, destination))
        }
    };
    Err(failure(reason, &why, policy))
}

fn failure(reason: Reason, why: &str, policy: Option<Arc<str>>) -> Failure {
    Failure { reason, message: format!("connection closed due to policy rejection: {why}"), policy }
}

/// One line about the decision, and one per dry-run policy that would have decided otherwise.
pub fn log(connection: &Connection, verdict: &Verdict, info: bool) {
    for note in &verdict.dry_run {
        tracing::info!(
            policy = %note.policy,
            action = ?note.action,
            matched = note.matched.is_some(),
            src.ip = %connection.source_ip,
            dst.addr = %connection.destination_addr,
            "dry-run policy"
        );
    }
    let identity = connection.identity.as_ref().map(tracing::field::display);
    let (src, dst) = (connection.source_ip, connection.destination_addr);
    if info {
        tracing::info!(decision = ?verdict.decision, src.ip = %src, src.identity = identity, dst.addr = %dst, "authorized");
    } else {
        tracing::debug!(decision = ?verdict.decision, src.ip = %src, src.identity = identity, dst.addr = %dst, "authorized");
    }
}

fn allow_policies(state: &MeshState, destination: &Workload) -> Option<Arc<str>> {
    let mut names: Vec<String> = state
        .policies_for(destination)
        .filter_map(|candidate| match candidate {
            Candidate::Known(policy) if policy.action == Action::Allow && !policy.dry_run => {
                Some(policy.key.to_string())
            }
            Candidate::Known(_) | Candidate::Missing(_) => None,
        })
        .take(NAMED)
        .collect();
    names.sort_unstable();
    (!names.is_empty()).then(|| names.join(",").into())
}
