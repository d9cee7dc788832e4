//! What is reported on an AuthorizationPolicy.

use aquifer_objects::crds::{AuthorizationPolicy, PolicyCondition, TargetRef};

use super::Mesh;
use super::policy::{Translated, translate};

/// Whether an object that a policy may be attached to exists: kind, namespace, name.
pub type Exists<'a> = &'a dyn Fn(&str, &str, &str) -> bool;

/// The conditions of a policy, without times: who writes them knows when they changed.
pub fn conditions(policy: &AuthorizationPolicy, mesh: &Mesh, exists: Exists<'_>) -> Vec<PolicyCondition> {
    match translate(policy, mesh) {
        Translated::ForWaypoints => vec![waypoint_accepted(policy, exists)],
        Translated::Unsupported(message) => vec![condition("ZtunnelAccepted", false, "UnsupportedValue", message)],
        Translated::Sent { left_out, .. } if left_out.is_empty() => {
            vec![condition("ZtunnelAccepted", true, "Accepted", "attached to ztunnel".to_owned())]
        }
        Translated::Sent { authorization, left_out, usable } => {
            let deny = authorization.action == i32::from(aquifer_proto::security::Action::Deny);
            let found: Vec<String> = left_out.into_iter().collect();
            let consequence = match (deny, usable) {
                (true, false) => {
                    "After omitting unsupported HTTP attributes, this DENY policy has no enforceable rules at ztunnel and will \
                     have no effect. Deploy a waypoint proxy and use a targetRef to enforce this policy."
                }
                (true, true) => {
                    "DENY policy with HTTP attributes is enforced without the HTTP rules. This will be more restrictive than requested."
                }
                (false, _) => {
                    "Within an ALLOW policy, rules matching HTTP attributes are omitted. This will be more restrictive than requested."
                }
            };
            let message = format!(
                "ztunnel does not support HTTP attributes (found: {}). In ambient mode you must use a waypoint proxy to enforce HTTP rules. {consequence}",
                found.join(", ")
            );
            vec![condition("ZtunnelAccepted", usable, "UnsupportedValue", message)]
        }
    }
}

/// No waypoint is bound to anything yet, so a policy for one finds its target at most.
fn waypoint_accepted(policy: &AuthorizationPolicy, exists: Exists<'_>) -> PolicyCondition {
    let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
    let targets = policy.spec.target_ref.iter().chain(&policy.spec.target_refs);
    let verdicts: Vec<(&str, String)> = targets.map(|target| verdict(target, namespace, exists)).collect();
    let (reason, message) = verdicts.into_iter().next().unwrap_or(("TargetNotFound", "not bound".to_owned()));
    condition("WaypointAccepted", false, reason, message)
}

fn verdict(target: &TargetRef, namespace: &str, exists: Exists<'_>) -> (&'static str, String) {
    let key = format!("{namespace}/{}", target.name);
    match target.kind.as_str() {
        "Service" | "ServiceEntry" if exists(&target.kind, namespace, &target.name) => {
            ("AncestorNotBound", format!("{} {key} is not bound to a waypoint", target.kind))
        }
        "Service" | "ServiceEntry" => ("TargetNotFound", format!("{} {key} was not found", target.kind)),
        _ => ("TargetNotFound", "not bound".to_owned()),
    }
}

fn condition(type_: &str, status: bool, reason: &str, message: String) -> PolicyCondition {
    PolicyCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        ..PolicyCondition::default()
    }
}
