//! The GatewayClasses that are ours.

use aquifer_objects::crds::gateway_api::GatewayClass;
use serde_json::{Value, json};

use crate::status::Condition;

/// The controller of waypoints.
pub(super) const WAYPOINTS: &str = "istio.io/mesh-controller";
/// The controller of Gateways that stand for another cluster's.
pub(super) const REMOTE: &str = "istio.io/unmanaged-gateway";

/// Name, controller and description of the classes that are made if nobody has made them.
const BUILT_IN: [(&str, &str, &str); 2] = [
    ("istio-waypoint", WAYPOINTS, "The default Istio waypoint GatewayClass"),
    ("istio-remote", REMOTE, "Remote to this cluster. Does not deploy or affect configuration."),
];

/// Istio's other classes, which nobody here serves.
const NOT_SERVED: [&str; 5] =
    ["istio", "istio-east-west", "istio-agentgateway", "istio-agentgateway-waypoint", "istio-agentgateway-ingress"];

/// What we do with a Gateway of a class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It becomes a waypoint.
    Waypoint,
    /// It stands for something elsewhere; nothing is made.
    Remote,
    /// A class of Istio's that is not served, and which no other controller has claimed either.
    NotServed,
    /// Another's.
    Foreign,
}

/// The role of Gateways of the class `name`, which may exist as an object.
pub(super) fn role(name: &str, class: Option<&GatewayClass>) -> Role {
    let built_in = BUILT_IN.iter().find(|(built_in, ..)| *built_in == name).map(|(_, controller, _)| *controller);
    match class.map(|class| class.spec.controller_name.as_str()).or(built_in) {
        Some(WAYPOINTS) => Role::Waypoint,
        Some(REMOTE) => Role::Remote,
        Some(_) => Role::Foreign,
        None if NOT_SERVED.contains(&name) => Role::NotServed,
        None => Role::Foreign,
    }
}

/// The built-in classes that `exists` doesn't know, as objects to make.
pub(super) fn missing(exists: impl Fn(&str) -> bool) -> Vec<Value> {
    let absent = BUILT_IN.iter().filter(|(name, ..)| !exists(name));
    absent
        .map(|(name, controller, description)| {
            json!({
                "apiVersion": "gateway.networking.k8s.io/v1",
                "kind": "GatewayClass",
                "metadata": { "name": name },
                "spec": { "controllerName": controller, "description": description },
            })
        })
        .collect()
}

/// What is said on a class; nothing on another's.
pub(super) fn conditions(class: &GatewayClass) -> Option<Vec<Condition>> {
    let ours = [WAYPOINTS, REMOTE].contains(&class.spec.controller_name.as_str());
    ours.then(|| vec![Condition::new("Accepted", true, "Accepted", "Handled by Istio controller")])
}
