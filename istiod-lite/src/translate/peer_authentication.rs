//! PeerAuthentication → the DENY policies that stand for it at the node proxy.
//!
//! Which mode holds is decided by three layers: workload over namespace over mesh; UNSET passes on, and no word at all
//! is PERMISSIVE. Of several policies on one layer the oldest counts. A selector in the root namespace counts nowhere.
//!
//! A workload that is STRICT lists the one static policy. One whose ports differ from the rest lists the policy made
//! from its own PeerAuthentication instead, which holds the whole truth: two DENY policies could not make an exception.

#[cfg(test)]
mod tests;

use aquifer_objects::crds::{MutualTls, MutualTlsMode, PeerAuthentication, PolicyCondition};
use aquifer_proto::security::string_match::MatchType;
use aquifer_proto::security::{Action, Authorization, Clause, Match, Rule, Scope, StringMatch};

use super::labels::LabelSet;
use super::status::{NO_EFFECT, ZTUNNEL_ACCEPTED, condition};
use super::{Labels, Mesh};

/// The name of the policy for plain STRICT. An underscore cannot be in a Kubernetes name, so nobody else has it.
const STATIC_STRICT: &str = "istio_converted_static_strict";
/// What the name of a policy made from one PeerAuthentication begins with.
const CONVERTED: &str = "converted_peer_authentication_";

/// The static policy; it is sent as soon as there is any PeerAuthentication.
pub fn static_strict(mesh: &Mesh) -> Authorization {
    deny(STATIC_STRICT.to_owned(), mesh.root_namespace.clone(), vec![Rule { clauses: vec![unauthenticated(None)] }])
}

/// The resource name of the static policy.
pub fn static_strict_resource(mesh: &Mesh) -> String {
    format!("{}/{STATIC_STRICT}", mesh.root_namespace)
}

/// The resource name of the policy made from a PeerAuthentication.
pub fn converted_resource(namespace: &str, name: &str) -> String {
    format!("{namespace}/{CONVERTED}{name}")
}

/// The policies that a workload must list. `policies` are those of its namespace and of the root namespace.
pub fn required<'a>(
    namespace: &str,
    labels: &LabelSet,
    policies: impl IntoIterator<Item = &'a PeerAuthentication>,
    mesh: &Mesh,
) -> Vec<String> {
    let all: Vec<&PeerAuthentication> = policies.into_iter().collect();
    let inherited = inherited(namespace, all.iter().copied(), mesh);
    let own = all.into_iter().filter(|policy| {
        in_namespace(policy, namespace)
            && namespace != mesh.root_namespace
            && selector(policy).is_some_and(|selector| labels.has(selector))
    });
    let strict = || vec![static_strict_resource(mesh)];
    match oldest(own) {
        None if inherited.strict() => strict(),
        None => Vec::new(),
        Some(policy) => match Effect::of(policy, inherited) {
            Effect { exceptions, rest: Mode::Strict } if exceptions.is_empty() => strict(),
            Effect { exceptions, rest: Mode::Permissive } if exceptions.is_empty() => Vec::new(),
            _ => vec![converted_resource(namespace, policy.metadata.name.as_deref().unwrap_or_default())],
        },
    }
}

/// The policy made from a PeerAuthentication whose ports differ from its rest; `None` for all others.
pub fn converted<'a>(
    policy: &PeerAuthentication,
    policies: impl IntoIterator<Item = &'a PeerAuthentication>,
    mesh: &Mesh,
) -> Option<Authorization> {
    let namespace = policy.metadata.namespace.clone()?;
    if namespace == mesh.root_namespace || selector(policy).is_none() {
        return None;
    }
    let effect = Effect::of(policy, inherited(&namespace, policies, mesh));
    if effect.exceptions.is_empty() {
        return None;
    }
    let rules = match effect.rest {
        // Any of these ports, and not authenticated.
        Mode::Permissive => {
            effect.exceptions.iter().map(|port| Rule { clauses: vec![unauthenticated(Some(*port))] }).collect()
        }
        // None of these ports, and not authenticated.
        Mode::Strict => {
            let exempt = |port: &u32| Clause {
                matches: vec![Match { not_destination_ports: vec![*port], ..Default::default() }],
            };
            let clauses = effect.exceptions.iter().map(exempt).chain([unauthenticated(None)]);
            vec![Rule { clauses: clauses.collect() }]
        }
    };
    let name = format!("{CONVERTED}{}", policy.metadata.name.as_deref()?);
    Some(deny(name, namespace, rules))
}

/// What became of a policy. `policies` are those of its namespace and of the root namespace.
pub fn conditions<'a>(
    policy: &PeerAuthentication,
    policies: impl IntoIterator<Item = &'a PeerAuthentication>,
    mesh: &Mesh,
) -> Vec<PolicyCondition> {
    let (namespace, selector) = (policy.metadata.namespace.as_deref().unwrap_or_default(), selector(policy));
    if namespace == mesh.root_namespace && selector.is_some() {
        let message = format!(
            "a selector in the root namespace {namespace} selects nobody: leave it out for the whole mesh, or put the policy into the namespace of its workloads"
        );
        return vec![condition(ZTUNNEL_ACCEPTED, false, "Invalid", message)];
    }
    let alike =
        policies.into_iter().filter(|other| in_namespace(other, namespace) && self::selector(other) == selector);
    let name = |policy: &PeerAuthentication| policy.metadata.name.clone().unwrap_or_default();
    if let Some(older) = oldest(alike).map(name).filter(|older| *older != name(policy)) {
        let message =
            format!("the older PeerAuthentication {namespace}/{older} is for the same workloads, and counts alone");
        return vec![condition(ZTUNNEL_ACCEPTED, false, "Conflicted", message)];
    }
    let mut made = vec![condition(ZTUNNEL_ACCEPTED, true, "Accepted", "attached to ztunnel".to_owned())];
    let spec = &policy.spec;
    let disables = |mtls: &MutualTls| mtls.mode == MutualTlsMode::Disable;
    let mut ignored = Vec::new();
    let wrong: Vec<String> = spec
        .port_level_mtls
        .keys()
        .filter(|port| !is_port(**port))
        .map(|port| format!("portLevelMtls.{port}"))
        .collect();
    if !wrong.is_empty() {
        ignored.push(format!("{}: a port is a number from 1 to 65535", wrong.join(", ")));
    }
    if spec.mtls.iter().chain(spec.port_level_mtls.values()).any(disables) {
        ignored.push("DISABLE acts as PERMISSIVE: ztunnel always takes mutual TLS".to_owned());
    }
    if selector.is_none() && !spec.port_level_mtls.is_empty() {
        ignored.push("portLevelMtls has no effect without a selector".to_owned());
    }
    if !ignored.is_empty() {
        made.push(condition(NO_EFFECT, true, "ModeIgnored", ignored.join("; ")));
    }
    made
}

/// The labels by which a policy finds its pods. An empty selector is none.
pub fn selector(policy: &PeerAuthentication) -> Option<&Labels> {
    policy.spec.selector.as_ref().map(|selector| &selector.match_labels).filter(|labels| !labels.is_empty())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mode {
    Strict,
    /// Also what DISABLE means here: the node proxy always takes mutual TLS.
    Permissive,
}

impl Mode {
    fn strict(self) -> bool {
        self == Self::Strict
    }

    /// The mode that is said; `None` passes on.
    fn said(mtls: Option<&MutualTls>) -> Option<Self> {
        match mtls.map(|mtls| mtls.mode).unwrap_or_default() {
            MutualTlsMode::Unset => None,
            MutualTlsMode::Strict => Some(Self::Strict),
            MutualTlsMode::Permissive | MutualTlsMode::Disable => Some(Self::Permissive),
        }
    }
}

/// What a workload's own policy comes to.
struct Effect {
    /// The ports that differ from the rest, in order.
    exceptions: Vec<u32>,
    rest: Mode,
}

impl Effect {
    fn of(policy: &PeerAuthentication, inherited: Mode) -> Self {
        let rest = Mode::said(policy.spec.mtls.as_ref()).unwrap_or(inherited);
        let differs = |mtls: &MutualTls| Mode::said(Some(mtls)).is_some_and(|mode| mode != rest);
        let ports = policy.spec.port_level_mtls.iter().filter(|(port, _)| is_port(**port));
        let exceptions = ports.filter(|(_, mtls)| differs(mtls)).map(|(port, _)| *port).collect();
        Self { exceptions, rest }
    }
}

/// An API server whose definition lacks the rule takes any number. A node proxy would refuse the whole policy for it, and
/// whoever lists that policy would refuse everybody.
fn is_port(port: u32) -> bool {
    (1..=65535).contains(&port)
}

/// What holds in a namespace for workloads without a policy of their own.
fn inherited<'a>(namespace: &str, policies: impl IntoIterator<Item = &'a PeerAuthentication>, mesh: &Mesh) -> Mode {
    let wide: Vec<&PeerAuthentication> = policies.into_iter().filter(|policy| selector(policy).is_none()).collect();
    let layer = |of: &str| {
        let chosen = oldest(wide.iter().copied().filter(|policy| in_namespace(policy, of)));
        chosen.and_then(|policy| Mode::said(policy.spec.mtls.as_ref()))
    };
    layer(namespace).or_else(|| layer(&mesh.root_namespace)).unwrap_or(Mode::Permissive)
}

fn in_namespace(policy: &PeerAuthentication, namespace: &str) -> bool {
    policy.metadata.namespace.as_deref() == Some(namespace)
}

/// By creation, then by name.
fn oldest<'a>(policies: impl Iterator<Item = &'a PeerAuthentication>) -> Option<&'a PeerAuthentication> {
    policies.min_by_key(|policy| {
        let created = policy.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, policy.metadata.name.clone())
    })
}

fn deny(name: String, namespace: String, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name,
        namespace,
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules,
        ..Default::default()
    }
}

/// Matches who has no identity, on one port or on any.
fn unauthenticated(port: Option<u32>) -> Clause {
    let anybody = StringMatch { match_type: Some(MatchType::Presence(())) };
    let found =
        Match { not_principals: vec![anybody], destination_ports: port.into_iter().collect(), ..Default::default() };
    Clause { matches: vec![found] }
}
