//! NetworkPolicy: whom it selects, and whether it lets tunnels through. Others enforce it, on the wire, where what pods
//! of the mesh send each other goes to one port.

use k8s_openapi::api::networking::v1::{NetworkPolicy, NetworkPolicyPort};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::labels::{LabelSet, Selector};

/// The port of tunnels.
const TUNNEL: i32 = 15008;

/// The facts of a NetworkPolicy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetworkPolicyFacts {
    selector: Selector,
    /// What may come in; `None` if that is not its matter.
    pub ingress: Option<Direction>,
    /// What may go out.
    pub egress: Option<Direction>,
}

/// What a policy lets through in one direction.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Direction {
    /// Whether any rule lets tunnels through.
    pub tunnels: bool,
    /// Whether any rule names ports at all.
    pub by_port: bool,
}

impl NetworkPolicyFacts {
    /// The facts of a NetworkPolicy.
    pub fn of(policy: &NetworkPolicy) -> Self {
        let spec = policy.spec.as_ref();
        // None, or an empty one, is every pod of the namespace.
        let selector = spec.and_then(|spec| spec.pod_selector.as_ref()).map(Selector::from).unwrap_or_default();
        let types = spec.and_then(|spec| spec.policy_types.as_deref()).unwrap_or_default();
        let ingress = spec.and_then(|spec| spec.ingress.as_deref()).unwrap_or_default();
        let egress = spec.and_then(|spec| spec.egress.as_deref());
        // Who says no type means ingress, and egress if there are such rules.
        let says = |wanted: &str, otherwise: bool| {
            if types.is_empty() { otherwise } else { types.iter().any(|named| named == wanted) }
        };
        Self {
            selector,
            ingress: says("Ingress", true).then(|| direction(ingress.iter().map(|rule| rule.ports.as_deref()))),
            egress: says("Egress", egress.is_some())
                .then(|| direction(egress.unwrap_or_default().iter().map(|rule| rule.ports.as_deref()))),
        }
    }

    /// Whether the policy selects a pod of its namespace. What cannot be understood selects.
    pub fn selects(&self, labels: &LabelSet) -> bool {
        self.selector.may_select(labels)
    }
}

fn direction<'a>(rules: impl Iterator<Item = Option<&'a [NetworkPolicyPort]>>) -> Direction {
    let mut made = Direction { tunnels: false, by_port: false };
    for ports in rules {
        // No list, or an empty one, is every port.
        let ports = ports.unwrap_or_default();
        made.by_port |= !ports.is_empty();
        made.tunnels |= ports.is_empty() || ports.iter().any(lets_tunnels_through);
    }
    made
}

fn lets_tunnels_through(port: &NetworkPolicyPort) -> bool {
    let tcp = port.protocol.as_deref().unwrap_or("TCP") == "TCP";
    tcp && match &port.port {
        None => true,
        Some(IntOrString::Int(first)) => (*first..=port.end_port.unwrap_or(*first)).contains(&TUNNEL),
        // The name of a container's port, which the tunnel's is not.
        Some(IntOrString::String(_)) => false,
    }
}
