//! Kinds that act on requests, and kinds that have no effect on this mesh: what is said on the objects, and on whom that
//! depends.

#[cfg(test)]
mod tests;

use std::sync::Arc;

use aquifer_objects::crds::destination_rule::{SimpleLoadBalancer, TrafficPolicy};
use aquifer_objects::crds::gateway_api::ParentRef;
use aquifer_objects::crds::{DestinationRule, IstioStatus, PolicyCondition, TargetRef, VirtualService};
use aquifer_objects::{Kind, Object};

use super::Mesh;
use super::labels::Interner;
use super::status::{
    ACCEPTED, DEPRECATED, Found, Look, Subject, WAYPOINT_ACCEPTED, condition, is_ours, not_yet, subjects,
    targets_verdict,
};
use super::waypoint::Key;

/// The facts of such an object.
#[derive(Clone, Debug, PartialEq)]
pub struct Facts {
    kind: Kind,
    namespace: Arc<str>,
    concern: Concern,
    deprecated: Vec<String>,
    /// VirtualServices that a part of the requests is left to.
    pub delegates: Vec<Key>,
    /// Whether conditions of ours stand in its status.
    pub has_conditions: bool,
}

/// What an object wants to act on.
#[derive(Clone, Debug, PartialEq)]
enum Concern {
    /// Nothing that there is here; what to use instead.
    Nothing(&'static str),
    /// Requests to hosts.
    Hosts(Vec<String>),
    /// Requests that others leave to it.
    Delegated(Key),
    /// Requests through gateways of Istio's own kind alone.
    IstioGateways(Vec<String>),
    /// What it is attached to.
    Targets(Vec<TargetRef>),
    /// All workloads of its namespace, or some by their labels.
    Workloads,
    /// What a route is attached to.
    Parents(Vec<Subject>),
}

impl Facts {
    /// The facts of an object; `None` for kinds that are told of elsewhere.
    pub fn of(object: &Object, interner: &mut Interner) -> Option<Self> {
        let namespace = interner.string(object.namespace());
        let attached = |target: &Option<TargetRef>, targets: &[TargetRef]| {
            let all: Vec<TargetRef> = target.iter().chain(targets).cloned().collect();
            if all.is_empty() { Concern::Workloads } else { Concern::Targets(all) }
        };
        let mut deprecated = Vec::new();
        let mut delegates = Vec::new();
        let concern = match object {
            Object::VirtualService(service) => {
                delegates = delegates_of(service, &namespace, interner);
                virtual_service(service, &namespace, interner)
            }
            Object::DestinationRule(rule) => {
                deprecated = deprecated_fields(rule);
                Concern::Hosts(vec![rule.spec.host.clone()])
            }
            Object::RequestAuthentication(policy) => attached(&policy.spec.target_ref, &policy.spec.target_refs),
            Object::Telemetry(policy) => attached(&policy.spec.target_ref, &policy.spec.target_refs),
            Object::HTTPRoute(route) => Concern::Parents(parents(&route.spec.parent_refs, &namespace)),
            Object::GRPCRoute(route) => Concern::Parents(parents(&route.spec.parent_refs, &namespace)),
            Object::TCPRoute(route) => Concern::Parents(parents(&route.spec.parent_refs, &namespace)),
            Object::TLSRoute(route) => Concern::Parents(parents(&route.spec.parent_refs, &namespace)),
            other => Concern::Nothing(instead(other.kind())?),
        };
        Some(Self {
            kind: object.kind(),
            concern,
            deprecated,
            delegates,
            has_conditions: has_conditions(object),
            namespace,
        })
    }

    /// On whom the conditions depend.
    pub fn subjects(&self, mesh: &Mesh) -> Vec<Subject> {
        match &self.concern {
            Concern::Hosts(hosts) => hosts.iter().map(|host| host_subject(host, &self.namespace, mesh)).collect(),
            Concern::Delegated(key) => vec![Subject::Delegate(key.clone())],
            Concern::Targets(targets) => subjects(targets, &self.namespace),
            Concern::Parents(subjects) => subjects.clone(),
            Concern::Nothing(_) | Concern::IstioGateways(_) | Concern::Workloads => Vec::new(),
        }
    }

    /// The conditions. Of a route, they are those of each parent of ours.
    pub fn conditions(&self, mesh: &Mesh, look: Look<'_>) -> Vec<PolicyCondition> {
        let kind = self.kind.as_str();
        let waypoint = |(reason, message)| Some(condition(WAYPOINT_ACCEPTED, false, reason, message));
        let said = match &self.concern {
            Concern::Nothing(instead) => {
                let message = format!("{} has no effect on this mesh: {instead}", shown(self.kind));
                Some(condition(ACCEPTED, false, "NotSupported", message))
            }
            Concern::Delegated(key) => match look(&Subject::Delegate(key.clone())) {
                Found::Missing => {
                    let message = "no hosts: add `hosts: [my-service]`".to_owned();
                    Some(condition(ACCEPTED, false, "NoHosts", message))
                }
                Found::Bound(by) | Found::Wrong(by) => {
                    let message = format!("delegated to by {by}, but waypoints do not enforce {kind} yet");
                    waypoint(("NotSupported", message))
                }
                Found::Unbound => None,
            },
            Concern::IstioGateways(gateways) => {
                let message = format!(
                    "only for the Istio Gateways {}, which have no effect on this mesh: {NO_INGRESS}",
                    gateways.join(", ")
                );
                waypoint(("NotSupported", message))
            }
            Concern::Hosts(hosts) => waypoint(self.hosts_verdict(hosts, mesh, look)),
            Concern::Targets(targets) => waypoint(targets_verdict(targets, &self.namespace, kind, mesh, look)),
            Concern::Workloads => {
                let message = format!(
                    "{kind} acts at waypoints, which take only what is attached to them: add `targetRefs` that name a Service or Gateway. Waypoints do not enforce it yet."
                );
                waypoint(("NotSupported", message))
            }
            Concern::Parents(subjects) => parents_verdict(subjects, kind, look)
                .map(|(reason, message)| condition(ACCEPTED, false, reason, message)),
        };
        let warning = (!self.deprecated.is_empty())
            .then(|| condition(DEPRECATED, true, "DeprecatedField", self.deprecated.join("; ")));
        said.into_iter().chain(warning).collect()
    }

    fn hosts_verdict(&self, hosts: &[String], mesh: &Mesh, look: Look<'_>) -> (&'static str, String) {
        let expanded: Vec<String> = hosts.iter().map(|host| mesh.expanded(host, &self.namespace)).collect();
        let found: Vec<Found> = hosts.iter().map(|host| look(&host_subject(host, &self.namespace, mesh))).collect();
        if let Some(Found::Bound(waypoint)) = found.iter().find(|found| matches!(found, Found::Bound(_))) {
            return not_yet(waypoint, self.kind.as_str());
        }
        let names = expanded.join(", ");
        if found.iter().all(|found| *found == Found::Missing) {
            let message = format!("no Service or ServiceEntry has the host {names}: correct `host`, or create one");
            return ("UnknownHost", message);
        }
        let message = format!(
            "{names} is not bound to a waypoint: label the Service or its namespace `istio.io/use-waypoint`. Waypoints do not enforce {} yet.",
            self.kind
        );
        ("NoWaypoint", message)
    }
}

/// The kind as a user knows it.
fn shown(kind: Kind) -> &'static str {
    match kind {
        Kind::IstioGateway => "Gateway of networking.istio.io",
        other => other.as_str(),
    }
}

/// What there is in place of gateways at the mesh's edge.
const NO_INGRESS: &str = "it has waypoints only, and no ingress or egress of its own. Run an ingress controller, such as one of gateway.networking.k8s.io, in a namespace of the mesh; what leaves the mesh passes";

/// What to use instead of kinds that have no effect.
fn instead(kind: Kind) -> Option<&'static str> {
    Some(match kind {
        Kind::IstioGateway => NO_INGRESS,
        Kind::Sidecar => {
            "there are no sidecars to configure. To restrict who is seen, set serviceEntryVisibility in the MeshConfig; to restrict who is reached, use an AuthorizationPolicy"
        }
        Kind::EnvoyFilter => {
            "there is no Envoy to patch. An AuthorizationPolicy restricts callers by identities and ports; what HTTPRoute and Telemetry can say acts once waypoints do"
        }
        Kind::WasmPlugin | Kind::TrafficExtension => {
            "proxies run no plugins, and ask nobody else. An AuthorizationPolicy restricts callers by identities and ports; whatever looks at requests is for the application to do"
        }
        Kind::ProxyConfig => {
            "there are no sidecars to configure. Set variables of ztunnel, or parametersRef of a waypoint's Gateway"
        }
        Kind::WorkloadGroup => "machines do not register themselves. Write a WorkloadEntry for each",
        _ => return None,
    })
}

fn host_subject(host: &str, namespace: &str, mesh: &Mesh) -> Subject {
    let host = mesh.expanded(host, namespace);
    match mesh.service_of(&host) {
        Some((namespace, name)) => Subject::Service((namespace.into(), name.into())),
        None => Subject::Host(host.into()),
    }
}

fn virtual_service(service: &VirtualService, namespace: &Arc<str>, interner: &mut Interner) -> Concern {
    let spec = &service.spec;
    if spec.hosts.is_empty() {
        let name = interner.string(service.metadata.name.as_deref().unwrap_or_default());
        return Concern::Delegated((namespace.clone(), name));
    }
    // No gateway at all means the mesh.
    if spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == "mesh") {
        Concern::Hosts(spec.hosts.clone())
    } else {
        Concern::IstioGateways(spec.gateways.clone())
    }
}

fn delegates_of(service: &VirtualService, namespace: &Arc<str>, interner: &mut Interner) -> Vec<Key> {
    // Delegates cannot delegate.
    if service.spec.hosts.is_empty() {
        return Vec::new();
    }
    let delegates = service.spec.http.iter().filter_map(|route| route.delegate.as_ref());
    delegates
        .filter_map(|delegate| {
            let namespace = match delegate.namespace.as_deref() {
                Some(other) if !other.is_empty() => interner.string(other),
                _ => namespace.clone(),
            };
            Some((namespace, interner.string(delegate.name.as_deref()?)))
        })
        .collect()
}

fn parents(parents: &[ParentRef], namespace: &str) -> Vec<Subject> {
    let subject = |parent: &ParentRef| {
        let namespace = parent.namespace.as_deref().unwrap_or(namespace);
        let key = || (namespace.into(), parent.name.as_str().into());
        let group = parent.group.as_deref().unwrap_or("gateway.networking.k8s.io");
        match (group, parent.kind.as_deref().unwrap_or("Gateway")) {
            ("" | "core", "Service") => Some(Subject::Service(key())),
            ("networking.istio.io", "ServiceEntry") => Some(Subject::ServiceEntry(key())),
            ("gateway.networking.k8s.io", "Gateway") => Some(Subject::Gateway(key())),
            _ => None,
        }
    };
    parents.iter().filter_map(subject).collect()
}

/// `None` if no parent is ours: a Gateway that is no waypoint has its own controller.
fn parents_verdict(subjects: &[Subject], kind: &str, look: Look<'_>) -> Option<(&'static str, String)> {
    let mut first = None;
    for subject in subjects {
        let name = match subject {
            Subject::Service((namespace, name)) => format!("Service {namespace}/{name}"),
            Subject::ServiceEntry((namespace, name)) => format!("ServiceEntry {namespace}/{name}"),
            _ => String::new(),
        };
        let verdict = match look(subject) {
            Found::Bound(waypoint) => return Some(not_yet(&waypoint, kind)),
            Found::Missing | Found::Unbound | Found::Wrong(_) if name.is_empty() => continue,
            Found::Missing => ("BackendNotFound", format!("{name} was not found: correct parentRefs, or create it")),
            Found::Unbound | Found::Wrong(_) => (
                "NoWaypoint",
                format!(
                    "{name} is not bound to a waypoint: label it or its namespace `istio.io/use-waypoint`. Waypoints do not enforce {kind} yet."
                ),
            ),
        };
        first.get_or_insert(verdict);
    }
    first
}

/// Fields that act under another name.
fn deprecated_fields(rule: &DestinationRule) -> Vec<String> {
    let mut found = Vec::new();
    if let Some(policy) = &rule.spec.traffic_policy {
        deprecated_in(policy, "trafficPolicy", &mut found);
    }
    for (at, subset) in rule.spec.subsets.iter().enumerate() {
        if let Some(policy) = &subset.traffic_policy {
            deprecated_in(policy, &format!("subsets[{at}].trafficPolicy"), &mut found);
        }
    }
    found
}

fn deprecated_in(policy: &TrafficPolicy, path: &str, found: &mut Vec<String>) {
    let ports = policy.port_level_settings.iter().enumerate();
    let settings =
        std::iter::once((path.to_owned(), &policy.outlier_detection, &policy.load_balancer)).chain(ports.map(
            |(at, port)| (format!("{path}.portLevelSettings[{at}]"), &port.outlier_detection, &port.load_balancer),
        ));
    for (path, outliers, balancer) in settings {
        if outliers.as_ref().is_some_and(|outliers| outliers.consecutive_errors.is_some()) {
            found.push(format!(
                "{path}.outlierDetection.consecutiveErrors is deprecated and acts as consecutive5xxErrors: write that"
            ));
        }
        if balancer.as_ref().and_then(|balancer| balancer.simple) == Some(SimpleLoadBalancer::LeastConn) {
            found.push(format!(
                "{path}.loadBalancer.simple LEAST_CONN is deprecated and acts as LEAST_REQUEST: write that"
            ));
        }
    }
}

/// Whether conditions of ours stand in the object's status.
fn has_conditions(object: &Object) -> bool {
    let of_istio = |status: &Option<IstioStatus>| {
        status.as_ref().is_some_and(|status| status.conditions.iter().any(|condition| is_ours(&condition.type_)))
    };
    match object {
        Object::VirtualService(object) => of_istio(&object.status),
        Object::DestinationRule(object) => of_istio(&object.status),
        Object::RequestAuthentication(object) => of_istio(&object.status),
        Object::Telemetry(object) => of_istio(&object.status),
        _ => false,
    }
}
