//! From a condition that says no to a code.

use aquifer_objects::crds::{Action, PolicyCondition};
use aquifer_objects::{Object, ObjectKey};

use super::codes::{self, Code};
use super::{Finding, codes::OTHER};
use crate::translate::status::{
    ACCEPTED, DEPRECATED, INVALID_VALUE, NO_EFFECT, PRINCIPAL_WITH_SCHEME, RESTRICTED, WAYPOINT_ACCEPTED,
    ZTUNNEL_ACCEPTED,
};

/// What is to be said of a condition; nothing of one that says that all is well.
pub(super) fn finding(key: &ObjectKey, object: Option<&Object>, condition: &PolicyCondition) -> Option<Finding> {
    let code = code(object, condition)?;
    Some(Finding { code, object: key.clone(), message: condition.message.clone() })
}

fn code(object: Option<&Object>, condition: &PolicyCondition) -> Option<&'static Code> {
    let yes = condition.status == "True";
    match (condition.type_.as_str(), yes, condition.reason.as_str()) {
        (NO_EFFECT, true, PRINCIPAL_WITH_SCHEME) => Some(codes::PRINCIPAL_WITH_SCHEME),
        // Of several hosts some are another's.
        (NO_EFFECT, true, "HostConflict") => Some(codes::HOST_CONFLICT),
        (NO_EFFECT, yes, _) => yes.then_some(codes::FIELD_WITHOUT_EFFECT),
        (DEPRECATED, yes, _) => yes.then_some(codes::DEPRECATED_FIELD),
        ("istio.io/WaypointMissing", yes, _) => yes.then_some(codes::NO_WAYPOINT),
        ("istio.io/WaypointBound", true, _) => {
            condition.message.contains("Canary waypoint not attached").then_some(codes::CANARY_NOT_BOUND)
        }
        ("istio.io/WaypointBound", false, _) => Some(codes::WAYPOINT_NOT_BOUND),
        // The NetworkPolicy itself is spoken of.
        (RESTRICTED, ..) => None,
        // Who sees a ServiceEntry is an administrator's decision, not a mistake.
        ("istio.io/VisibilityApplied", ..) => None,
        (ZTUNNEL_ACCEPTED, _, INVALID_VALUE) => Some(codes::INVALID_VALUE),
        (ZTUNNEL_ACCEPTED, true, "UnsupportedValue") => Some(codes::PARTLY_ENFORCED),
        (ZTUNNEL_ACCEPTED, false, _) => Some(not_enforced(object, &condition.message)),
        (_, true, _) => None,
        (ACCEPTED | WAYPOINT_ACCEPTED, false, reason) => Some(refused(&condition.type_, object, reason)),
        _ => Some(OTHER),
    }
}

/// A DENY policy that enforces nothing because all of it is about HTTP is a hole where there seems to be a wall.
fn not_enforced(object: Option<&Object>, message: &str) -> &'static Code {
    match object {
        Some(Object::AuthorizationPolicy(policy))
            if policy.spec.action == Action::Deny && message.contains("HTTP attributes") =>
        {
            codes::UNENFORCEABLE_DENY
        }
        _ => codes::POLICY_NOT_ENFORCED,
    }
}

fn refused(type_: &str, object: Option<&Object>, reason: &str) -> &'static Code {
    let is_route = object.is_some_and(|object| object.kind().group() == "gateway.networking.k8s.io");
    match reason {
        "NotSupported" if type_ == ACCEPTED && !is_route => codes::NOT_SUPPORTED,
        "NotSupported" => codes::NOT_YET,
        "NoWaypoint" | "AncestorNotBound" => codes::NO_WAYPOINT,
        "UnknownHost" => codes::UNKNOWN_HOST,
        "TargetNotFound" | "BackendNotFound" => codes::TARGET_NOT_FOUND,
        "NoHosts" => codes::NO_HOSTS,
        "HostConflict" => codes::HOST_CONFLICT,
        "Invalid" | "PartiallyInvalid" => codes::INVALID_TARGET,
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use aquifer_objects::Kind;

    use super::*;
    use crate::translate::status::condition;

    /// Nothing that is written today has it: it keeps a condition that is new from being lost.
    #[test]
    fn a_refusal_that_has_no_code_of_its_own_is_told_all_the_same() {
        let key = ObjectKey::new(Kind::ServiceEntry, "shop", "a");
        for (type_, status, told) in [
            (ACCEPTED, false, Some("AQ0099")),
            (WAYPOINT_ACCEPTED, false, Some("AQ0099")),
            ("example.org/New", false, Some("AQ0099")),
            ("example.org/New", true, None),
        ] {
            let found = finding(&key, None, &condition(type_, status, "New", "something new".to_owned()));
            assert_eq!(found.as_ref().map(|found| found.code.code), told, "{type_} {status}");
            assert!(found.is_none_or(|found| found.message == "something new"));
        }
    }
}
