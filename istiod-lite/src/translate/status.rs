//! What is reported on the objects that users write: conditions, without times. Who writes them knows when they changed.

use std::sync::Arc;

use aquifer_objects::crds::{AuthorizationPolicy, PolicyCondition, TargetRef};
use aquifer_objects::validate::of_authorization_policy;

use super::Mesh;
use super::policy::{Translated, principals_with_scheme, translate};
use super::service_entry::ServiceEntryFacts;
use super::visibility::Visibility;
use super::waypoint::{BOUND, Binding, Key};

/// Whether the whole object has an effect; of kinds whose effect isn't told in parts.
pub const ACCEPTED: &str = "Accepted";
/// Whether waypoints act on it.
pub const WAYPOINT_ACCEPTED: &str = "WaypointAccepted";
/// Whether node proxies act on it.
pub const ZTUNNEL_ACCEPTED: &str = "ZtunnelAccepted";
/// Fields that do nothing here.
pub const NO_EFFECT: &str = "aquifer.dev/NoEffect";
/// Fields that still act, and have a better name.
pub const DEPRECATED: &str = "aquifer.dev/Deprecated";
/// Whether a NetworkPolicy keeps tunnels from pods of a Service, or does nothing that it seems to.
pub const RESTRICTED: &str = "aquifer.dev/NetworkPolicyConflict";
/// The reason of fields that an API server took and nobody can use.
pub const INVALID_VALUE: &str = "InvalidValue";
/// The reason of principals that can match nobody.
pub const PRINCIPAL_WITH_SCHEME: &str = "PrincipalWithScheme";
const MISSING: &str = "istio.io/WaypointMissing";
const VISIBILITY: &str = "istio.io/VisibilityApplied";

/// The types of conditions that we write, and take away.
pub const OURS: [&str; 9] =
    [ACCEPTED, NO_EFFECT, DEPRECATED, RESTRICTED, BOUND, MISSING, VISIBILITY, WAYPOINT_ACCEPTED, ZTUNNEL_ACCEPTED];

/// Whether conditions of a type are ours.
pub fn is_ours(type_: &str) -> bool {
    OURS.contains(&type_)
}

/// What a policy or a route is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// A Service.
    Service(Key),
    /// A ServiceEntry.
    ServiceEntry(Key),
    /// A host name that is no Service's of Kubernetes.
    Host(Arc<str>),
    /// A Gateway of the Gateway API.
    Gateway(Key),
    /// A GatewayClass.
    GatewayClass(Arc<str>),
    /// A VirtualService that others may delegate to.
    Delegate(Key),
}

/// What became of a subject.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// It is not there.
    Missing,
    /// It is there, and no waypoint is before it.
    Unbound,
    /// The waypoint, or the class of waypoints, by name.
    Bound(String),
    /// It is there, and can't be meant; why.
    Wrong(String),
}

/// Finds a subject.
pub type Look<'a> = &'a dyn Fn(&Subject) -> Found;

/// Why something does not act at a waypoint: one word, and a sentence for people.
pub type Verdict = (&'static str, String);

/// The conditions of an AuthorizationPolicy.
pub fn conditions(policy: &AuthorizationPolicy, mesh: &Mesh, look: Look<'_>) -> Vec<PolicyCondition> {
    let mut made = enforcement(policy, mesh, look);
    let wrong = principals_with_scheme(policy);
    if !wrong.is_empty() {
        let fields: Vec<String> = wrong.iter().map(|(field, value)| format!("{field} {value:?}")).collect();
        let message = format!(
            "{} matches nobody, and a DENY policy denies nobody by it: identities are compared without their scheme. \
             Write it without spiffe://, as in \"cluster.local/ns/shop/sa/web\".",
            fields.join(", ")
        );
        made.push(condition(NO_EFFECT, true, PRINCIPAL_WITH_SCHEME, message));
    }
    made
}

/// Who enforces it, and how much of it.
fn enforcement(policy: &AuthorizationPolicy, mesh: &Mesh, look: Look<'_>) -> Vec<PolicyCondition> {
    let faults = of_authorization_policy(&policy.spec);
    match translate(policy, mesh) {
        Translated::ForWaypoints => {
            let namespace = policy.metadata.namespace.as_deref().unwrap_or_default();
            let targets: Vec<TargetRef> =
                policy.spec.target_ref.iter().chain(&policy.spec.target_refs).cloned().collect();
            let (reason, message) = targets_verdict(&targets, namespace, "AuthorizationPolicy", mesh, look);
            vec![condition(WAYPOINT_ACCEPTED, false, reason, message)]
        }
        Translated::Unsupported(message) => vec![condition(ZTUNNEL_ACCEPTED, false, "UnsupportedValue", message)],
        Translated::Sent { authorization, usable, left_out } if !faults.is_empty() => {
            let deny = authorization.action == i32::from(aquifer_proto::security::Action::Deny);
            let nowhere = faults.iter().any(|fault| fault.path.starts_with("spec.selector"));
            let faults: Vec<String> = faults.iter().map(ToString::to_string).collect();
            let consequence = match (deny, usable) {
                _ if nowhere => "No pod has such labels: the policy has no effect.",
                _ if usable && left_out.is_nothing() => "Nothing is left out for it.",
                (true, true) => "This DENY policy is enforced without them, and may deny more or less than requested.",
                (true, false) => {
                    "Without them nothing of this DENY policy can be enforced, and it will have no effect."
                }
                (false, _) => {
                    "Of an ALLOW policy the rules with such values are omitted. This will be more restrictive than requested."
                }
            };
            let attributes: Vec<String> = left_out.attributes.into_iter().collect();
            let besides = match attributes.is_empty() {
                true => String::new(),
                false => {
                    format!(" HTTP attributes are left out as well ({}): they need a waypoint.", attributes.join(", "))
                }
            };
            let message =
                format!("some fields cannot be used: {}. {consequence}{besides} Correct them.", faults.join("; "));
            vec![condition(ZTUNNEL_ACCEPTED, usable && !nowhere, INVALID_VALUE, message)]
        }
        Translated::Sent { left_out, .. } if left_out.attributes.is_empty() => {
            vec![condition(ZTUNNEL_ACCEPTED, true, "Accepted", "attached to ztunnel".to_owned())]
        }
        Translated::Sent { authorization, left_out, usable } => {
            let deny = authorization.action == i32::from(aquifer_proto::security::Action::Deny);
            let found: Vec<String> = left_out.attributes.into_iter().collect();
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
            vec![condition(ZTUNNEL_ACCEPTED, usable, "UnsupportedValue", message)]
        }
    }
}

/// The subjects of targets, as far as they may be targets at all.
pub fn subjects(targets: &[TargetRef], namespace: &str) -> Vec<Subject> {
    targets.iter().filter_map(|target| subject(target, namespace)).collect()
}

fn subject(target: &TargetRef, namespace: &str) -> Option<Subject> {
    let namespace = if target.namespace.is_empty() { namespace } else { &target.namespace };
    let key = || (namespace.into(), target.name.as_str().into());
    match target.kind.as_str() {
        "Service" => Some(Subject::Service(key())),
        "ServiceEntry" => Some(Subject::ServiceEntry(key())),
        "Gateway" => Some(Subject::Gateway(key())),
        "GatewayClass" => Some(Subject::GatewayClass(target.name.as_str().into())),
        _ => None,
    }
}

/// What becomes of an object of some kind that is attached to targets. If one fails, the first failure speaks for all.
pub fn targets_verdict(targets: &[TargetRef], namespace: &str, kind: &str, mesh: &Mesh, look: Look<'_>) -> Verdict {
    let verdicts: Vec<Result<String, Verdict>> =
        targets.iter().map(|target| verdict(target, namespace, kind, mesh, look)).collect();
    let bound: Vec<&String> = verdicts.iter().filter_map(|verdict| verdict.as_ref().ok()).collect();
    let failed = verdicts.iter().find_map(|verdict| verdict.as_ref().err());
    match (failed, bound.first()) {
        (None, Some(waypoint)) => not_yet(waypoint, kind),
        (None, None) => ("TargetNotFound", "not bound".to_owned()),
        (Some((reason, message)), None) => (reason, message.clone()),
        (Some((_, message)), Some(_)) => ("PartiallyInvalid", message.clone()),
    }
}

fn verdict(target: &TargetRef, namespace: &str, kind: &str, mesh: &Mesh, look: Look<'_>) -> Result<String, Verdict> {
    let not_bound = || "not bound".to_owned();
    let Some(subject) = subject(target, namespace) else {
        return Err(("TargetNotFound", not_bound()));
    };
    let named = match &subject {
        Subject::Service((namespace, name)) => Some(format!("Service {namespace}/{name}")),
        Subject::ServiceEntry((namespace, name)) => Some(format!("ServiceEntry {namespace}/{name}")),
        Subject::GatewayClass(_) if namespace != mesh.root_namespace => {
            let message = format!(
                "{kind} must be in the root namespace `{}` when referencing a GatewayClass",
                mesh.root_namespace
            );
            return Err(("Invalid", message));
        }
        _ => None,
    };
    match look(&subject) {
        Found::Bound(waypoint) => Ok(waypoint),
        Found::Unbound => Err((
            "AncestorNotBound",
            named.map_or_else(not_bound, |named| format!("{named} is not bound to a waypoint")),
        )),
        Found::Missing => {
            Err(("TargetNotFound", named.map_or_else(not_bound, |named| format!("{named} was not found"))))
        }
        Found::Wrong(why) => Err(("Invalid", why)),
    }
}

/// Everything is in place, and still nothing happens: waypoints don't act on it yet.
pub fn not_yet(waypoint: &str, kind: &str) -> Verdict {
    let instead = match kind {
        "AuthorizationPolicy" => {
            "Until then restrict callers by ports and identities: a policy with a selector, or none, is enforced by ztunnel"
        }
        "RequestAuthentication" => "Until then the application must check tokens itself",
        _ => "Until then traffic passes as if it were not there",
    };
    ("NotSupported", format!("bound to {waypoint}, but waypoints do not enforce {kind} yet. {instead}."))
}

/// A host that a ServiceEntry would like, and who has it before it.
pub type Lost = (Arc<str>, String);

/// The conditions of a ServiceEntry.
pub fn of_service_entry(
    entry: &ServiceEntryFacts,
    binding: &Binding,
    visibility: Visibility,
    lost: &[Lost],
    mesh: &Mesh,
) -> Vec<PolicyCondition> {
    let mut made: Vec<PolicyCondition> = Vec::new();
    let conflicts: Vec<String> =
        lost.iter().map(|(host, winner)| format!("{host} is that of {winner} already")).collect();
    let conflict = format!("{}: use another host, or delete one of the two", conflicts.join(", "));
    let exported = "exportTo has no effect in ambient mode: all of the mesh sees these hosts. \
                    To restrict that, set serviceEntryVisibility in the MeshConfig.";
    let whole = lost.len() == entry.hosts.len();
    if whole {
        made.push(condition(ACCEPTED, false, "HostConflict", conflict.clone()));
    }
    match (!lost.is_empty() && !whole, entry.exports) {
        (true, true) => made.push(condition(NO_EFFECT, true, "HostConflict", format!("{conflict}; {exported}"))),
        (true, false) => made.push(condition(NO_EFFECT, true, "HostConflict", conflict)),
        (false, true) => made.push(condition(NO_EFFECT, true, "ExportToIgnored", exported.to_owned())),
        (false, false) => {}
    }
    made.extend(binding.condition());
    if binding.waypoint.is_none() {
        let reason = if entry.has_wildcard() {
            Some("NoWaypointForWildcardService")
        } else if entry.races {
            Some("NoWaypointForRacingConnectStrategy")
        } else {
            None
        };
        let message = "ServiceEntry will not apply until it is bound to a valid waypoint.";
        made.extend(reason.map(|reason| condition(MISSING, true, reason, message.to_owned())));
    }
    if mesh.visibility.is_some() {
        let message = match visibility {
            Visibility::Public => "all of the mesh sees these hosts",
            Visibility::Namespace => "only the entry's own namespace sees these hosts",
            Visibility::None => "the MeshConfig's serviceEntryVisibility keeps these hosts from everybody",
        };
        made.push(condition(VISIBILITY, visibility != Visibility::None, visibility.as_str(), message.to_owned()));
    }
    made
}

/// One condition.
pub fn condition(type_: &str, status: bool, reason: &str, message: String) -> PolicyCondition {
    PolicyCondition {
        type_: type_.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        ..Default::default()
    }
}
