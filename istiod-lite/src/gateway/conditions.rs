//! What a Gateway is told: conditions, listeners, addresses. Reasons are Istio's and the Gateway API's.

use aquifer_objects::crds::gateway_api::Gateway;
use aquifer_objects::crds::gateway_api::gateway::Listener;
use k8s_openapi::api::core::v1::Service;

use crate::status::{Condition, GatewayStatus, ListenerStatus};

/// The port and protocol that make a Gateway a waypoint.
const HBONE_PORT: i32 = 15008;
const HBONE: &str = "HBONE";

/// Whether, and why not, the Gateway runs.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Programmed {
    /// It does, behind this Service and these addresses (type, value).
    At {
        /// `<name>.<namespace>.svc.<domain>`.
        service: String,
        /// As they are reported.
        addresses: Vec<(String, String)>,
    },
    /// It doesn't.
    Not {
        /// One CamelCase word.
        reason: &'static str,
        /// With the remedy.
        message: String,
    },
}

/// The status of a Gateway whose parameters can be used.
pub(super) fn status(gateway: &Gateway, programmed: Programmed) -> GatewayStatus {
    let listeners: Vec<ListenerStatus> = gateway.spec.listeners.iter().map(listener).collect();
    let valid: Vec<&Listener> = gateway.spec.listeners.iter().filter(|listener| is_hbone(listener)).collect();
    let accepted = if valid.is_empty() {
        refused("ListenersNotValid", NO_LISTENER)
    } else if valid.len() < listeners.len() {
        Condition::new(
            "Accepted",
            true,
            "ListenersNotValid",
            format!("Resource accepted, but some listeners are not. {NO_LISTENER}"),
        )
    } else {
        Condition::new("Accepted", true, "Accepted", "Resource accepted")
    };
    let mut addresses = Vec::new();
    let programmed = match programmed {
        _ if valid.is_empty() => Condition::new("Programmed", false, "Invalid", NO_LISTENER),
        Programmed::At { service, addresses: found } => {
            addresses = found;
            let assigned: Vec<String> = valid.iter().map(|listener| format!("{service}:{}", listener.port)).collect();
            let message = format!("Resource programmed, assigned to service(s) {}", assigned.join(" and "));
            Condition::new("Programmed", true, "Programmed", message)
        }
        Programmed::Not { reason, message } => Condition::new("Programmed", false, reason, message),
    };
    let resolved = Condition::new("ResolvedRefs", true, "ResolvedRefs", "All references resolved");
    GatewayStatus { conditions: vec![accepted, programmed, resolved], listeners, addresses }
}

/// The status of a Gateway that is not accepted.
pub(super) fn rejected(gateway: &Gateway, reason: &'static str, message: &str) -> GatewayStatus {
    let not_programmed = Condition::new("Programmed", false, "Invalid", message);
    let listeners = gateway.spec.listeners.iter().map(listener).collect();
    GatewayStatus { conditions: vec![refused(reason, message), not_programmed], listeners, addresses: Vec::new() }
}

const NO_LISTENER: &str = "Expected a single listener on port 15008 with protocol \"HBONE\": give the waypoint `{name: mesh, port: 15008, protocol: HBONE}`";

fn refused(reason: &str, message: &str) -> Condition {
    Condition::new("Accepted", false, reason, message)
}

/// Whether the listener is a waypoint's.
pub(super) fn is_hbone(listener: &Listener) -> bool {
    listener.port == HBONE_PORT && listener.protocol == HBONE
}

fn listener(listener: &Listener) -> ListenerStatus {
    let fine = |type_: &str, status: bool, reason: &str| Condition::new(type_, status, reason, "No errors found");
    let conditions = if is_hbone(listener) {
        vec![
            fine("Accepted", true, "Accepted"),
            fine("Conflicted", false, "NoConflicts"),
            fine("Programmed", true, "Programmed"),
            fine("ResolvedRefs", true, "ResolvedRefs"),
        ]
    } else {
        vec![
            Condition::new("Accepted", false, "UnsupportedProtocol", NO_LISTENER),
            fine("Conflicted", false, "NoConflicts"),
            Condition::new("Programmed", false, "Invalid", NO_LISTENER),
            fine("ResolvedRefs", true, "ResolvedRefs"),
        ]
    };
    // Routes are attached to the services behind a waypoint, never to its tunnel.
    ListenerStatus { name: listener.name.clone(), supported_kinds: Vec::new(), attached_routes: 0, conditions }
}

/// The addresses of a Service as a Gateway reports them, its own first and its name last; none while it has none.
pub fn service_address(service: &Service, domain: &str) -> Vec<(String, String)> {
    let spec = service.spec.clone().unwrap_or_default();
    let ip = |ip: String| ("IPAddress".to_owned(), ip);
    let mut addresses: Vec<(String, String)> = if spec.type_.as_deref() == Some("LoadBalancer") {
        let status = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
        let ingress = status.and_then(|balancer| balancer.ingress.clone()).unwrap_or_default();
        let address = |one: k8s_openapi::api::core::v1::LoadBalancerIngress| match (one.ip, one.hostname) {
            (Some(found), _) => Some(ip(found)),
            (None, Some(name)) => Some(("Hostname".to_owned(), name)),
            (None, None) => None,
        };
        ingress.into_iter().filter_map(address).collect()
    } else {
        let one = || spec.cluster_ip.clone().into_iter().collect();
        let ips: Vec<String> = spec.cluster_ips.clone().filter(|ips| !ips.is_empty()).unwrap_or_else(one);
        ips.into_iter().filter(|ip| !ip.is_empty() && ip != "None").map(ip).collect()
    };
    if !addresses.is_empty() {
        addresses.push(("Hostname".to_owned(), hostname(service, domain)));
    }
    addresses
}

/// The name by which the mesh knows the Service.
pub(super) fn hostname(service: &Service, domain: &str) -> String {
    let meta = &service.metadata;
    let (name, namespace) = (meta.name.as_deref().unwrap_or_default(), meta.namespace.as_deref().unwrap_or_default());
    format!("{name}.{namespace}.svc.{domain}")
}
