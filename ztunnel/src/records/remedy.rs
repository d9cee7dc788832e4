//! What mends a refusal, in a sentence on its access line. `docs/troubleshooting.md` says more.

use aquifer_core::reason::Reason;

use super::Failure;

/// For what STRICT mode refuses: plaintext, where there must be mutual TLS.
pub(super) const STRICT: &str = "enrol the client (istio.io/dataplane-mode=ambient) or allow plaintext on this port (PeerAuthentication portLevelMtls)";

/// The policies that Istio's control plane makes of PeerAuthentications: plain STRICT, and one whose ports differ. An
/// underscore cannot be in a Kubernetes name, so no AuthorizationPolicy has such a name.
const STRICT_POLICY: &str = "istio_converted_static_strict";
const CONVERTED_POLICY: &str = "converted_peer_authentication_";

/// What to do about a failure; nothing where only the line's own `error` can tell.
pub(super) fn of(failure: &Failure) -> Option<&'static str> {
    match failure.reason {
        Reason::PolicyDenied | Reason::PolicyChanged if failure.policy.as_deref().is_some_and(is_strict) => {
            Some(STRICT)
        }
        Reason::PolicyDenied => Some("change this DENY policy, or call as somebody whom it does not match"),
        Reason::PolicyNotAllowed => Some("add a rule for this client and port to one of these ALLOW policies"),
        Reason::PolicyUnknown => Some(
            "have the control plane send this policy, or set AUTHZ_UNKNOWN_POLICY=skip to ignore what it never sends",
        ),
        Reason::PolicyChanged => {
            Some("if this was not meant: change the policy back, or call as somebody whom it allows")
        }
        Reason::MethodNotAllowed => Some("call the application's own port: 15008 takes HTTP/2 CONNECT only"),
        Reason::IllegalPort => Some("call the application's own port: 15001, 15006 and 15008 are the proxy's"),
        Reason::WorkloadUnknown => Some("see that the control plane is up and that NODE_NAME is the node's name"),
        Reason::NoHealthyUpstream => Some("see that the Service selects pods and that they are Ready"),
        Reason::WaypointUnavailable => Some("bring the waypoint up, or take the label istio.io/use-waypoint away"),
        Reason::ConnectRefused => Some("let the application listen on this port and on the pod's address"),
        Reason::HboneTimeout => Some("allow TCP 15008 between enrolled pods (NetworkPolicy)"),
        Reason::HboneRefused => Some("see that ztunnel runs on the destination's node"),
        Reason::IdentityUnavailable => Some("see that the certificate authority is up and trusts this node's account"),
        Reason::PeerCertificateMissing => Some("enrol the client, or call the application's own port"),
        Reason::CertificateRevoked => Some("have a new certificate issued, or mend the revocation list"),
        Reason::PeerDenied => Some("see reason and policy in the access line of the destination's ztunnel"),
        Reason::PeerRefused => Some("see the reason in the access line of the destination's ztunnel"),
        // What else there is depends on more than the reason.
        _ => None,
    }
}

/// Whether a policy, `namespace/name`, stands for a PeerAuthentication.
fn is_strict(policy: &str) -> bool {
    let name = policy.split_once('/').map_or(policy, |(_, name)| name);
    name == STRICT_POLICY || name.starts_with(CONVERTED_POLICY)
}
