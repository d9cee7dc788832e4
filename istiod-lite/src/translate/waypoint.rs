//! Which waypoint a service or workload is bound to, and why not.
//!
//! ```text
//!   Gateway + GatewayClass ─▶ Waypoint                         (usable once the Gateway has an address)
//!   labels of the object, else of its namespace ─▶ Wish
//!   Wish + Waypoints ─▶ Binding ─▶ resource and condition
//! ```
//!
//! A wish that cannot be had binds to nothing: traffic goes past the waypoint, and the object's status says so.

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::Arc;

use aquifer_objects::crds::PolicyCondition;
use aquifer_proto::workload::{ApplicationTunnel, GatewayAddress, WeightedWaypoint};

use super::labels::{LabelSet, Labels, Selector};
use super::status::condition;

/// The label of a waypoint's pods that names its Gateway; they are bound to no waypoint themselves.
pub const GATEWAY_NAME: &str = "gateway.networking.k8s.io/gateway-name";
/// The label of what a gateway controller made, by controller.
const MANAGED: &str = "gateway.istio.io/managed";
const USE_WAYPOINT: &str = "istio.io/use-waypoint";
const USE_WAYPOINT_NAMESPACE: &str = "istio.io/use-waypoint-namespace";
const CANARY: &str = "istio.io/use-waypoint-canary";
const CANARY_NAMESPACE: &str = "istio.io/use-waypoint-canary-namespace";
const CANARY_WEIGHT: &str = "istio.io/use-waypoint-canary-weight";
const INGRESS: &str = "istio.io/ingress-use-waypoint";

/// Namespace and name of a Gateway.
pub type Key = (Arc<str>, Arc<str>);

/// A Gateway that can be gone through.
#[derive(Clone, Debug, PartialEq)]
pub struct Waypoint {
    /// Namespace and name.
    pub key: Key,
    /// Where it is.
    pub address: GatewayAddress,
    /// What it is for: `service`, `workload`, `all`, `none`.
    pub traffic: String,
    /// From which namespaces it may be used.
    pub allowed: Allowed,
    /// How the node proxy hands connections to its pods, if not as to any other.
    pub tunnel: Option<ApplicationTunnel>,
    /// The service accounts of its pods, where policies must name them.
    pub accounts: BTreeSet<Arc<str>>,
}

/// From which namespaces a waypoint may be used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Allowed {
    /// Its own.
    Same,
    /// All.
    All,
    /// Those with such labels.
    Selected(Selector),
}

/// What is bound.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Traffic {
    /// What goes to a service.
    Service,
    /// What goes to a workload's own address.
    Workload,
}

impl Traffic {
    fn as_str(self) -> &'static str {
        match self {
            Self::Service => "service",
            Self::Workload => "workload",
        }
    }
}

impl Waypoint {
    /// Whether it takes such traffic.
    pub fn takes(&self, traffic: Traffic) -> bool {
        self.traffic == "all" || self.traffic == traffic.as_str()
    }

    fn lets_in(&self, namespace: &str, labels: &LabelSet) -> bool {
        match &self.allowed {
            Allowed::Same => *self.key.0 == *namespace,
            Allowed::All => true,
            Allowed::Selected(selector) => selector.selects(labels),
        }
    }

    fn name(&self) -> String {
        name(&self.key)
    }
}

fn name((namespace, name): &Key) -> String {
    format!("{namespace}/{name}")
}

/// One wish of an object or a namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Choice {
    /// It says nothing.
    #[default]
    Inherited,
    /// It wants none, whatever its namespace says.
    None,
    /// This one.
    Of(Key),
}

impl Choice {
    fn of(labels: &LabelSet, label: &str, namespace_label: &str, default_namespace: &Arc<str>) -> Self {
        match labels.get(label) {
            None => Self::Inherited,
            Some(name) if **name == *"none" => Self::None,
            Some(name) => Self::Of((labels.get(namespace_label).unwrap_or(default_namespace).clone(), name.clone())),
        }
    }

    /// The waypoint that it names.
    pub fn named(&self) -> Option<&Key> {
        match self {
            Self::Of(key) => Some(key),
            Self::Inherited | Self::None => None,
        }
    }
}

/// What an object, or a namespace for its objects, wishes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Wish {
    /// The waypoint.
    pub primary: Choice,
    /// A second one for a part of the traffic.
    pub canary: Choice,
    /// How much of it in per cent, as it is written.
    weight: Option<String>,
    /// Whether gateways at the edge go through the waypoint as well; what cannot be read means no.
    ingress: Option<bool>,
}

impl Wish {
    /// The wish that labels and annotations express.
    pub fn of(labels: &LabelSet, annotations: Option<&Labels>, namespace: &Arc<str>) -> Self {
        let canary = match Choice::of(labels, CANARY, CANARY_NAMESPACE, namespace) {
            Choice::Of((_, name)) if name.is_empty() => Choice::None,
            other => other,
        };
        Self {
            primary: Choice::of(labels, USE_WAYPOINT, USE_WAYPOINT_NAMESPACE, namespace),
            canary,
            weight: annotations.and_then(|all| all.get(CANARY_WEIGHT)).cloned(),
            // The values of Go's strconv.ParseBool.
            ingress: labels.get(INGRESS).map(|value| matches!(&**value, "1" | "t" | "T" | "true" | "TRUE" | "True")),
        }
    }

    /// The waypoints that it names.
    pub fn named(&self) -> impl Iterator<Item = &Key> {
        self.primary.named().into_iter().chain(self.canary.named())
    }
}

/// What is asked about an object.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// What is to be bound.
    pub traffic: Traffic,
    /// The object's namespace.
    pub namespace: &'a str,
    /// The namespace's labels.
    pub namespace_labels: &'a LabelSet,
    /// What the namespace wishes for its objects.
    pub inherited: &'a Wish,
    /// What the object wishes.
    pub wish: &'a Wish,
    /// Whether only a waypoint of the object's own namespace may be used.
    pub private: bool,
}

/// What came of a wish.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Binding {
    /// The waypoint.
    pub waypoint: Option<Arc<Waypoint>>,
    /// The second one, and its share in per cent.
    pub canary: Option<(Arc<Waypoint>, u32)>,
    /// Whether it is said that gateways at the edge go through it, and whether they do.
    pub ingress: Option<bool>,
    /// Why there is none, or why there is no second one.
    pub refused: Option<Refusal>,
}

/// Why a wish cannot be had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// One word.
    pub reason: &'static str,
    /// For people.
    pub message: String,
}

impl Refusal {
    fn new(reason: &'static str, message: String) -> Self {
        Self { reason, message }
    }
}

/// Whether an object with such labels is bound to no waypoint, whatever anybody wishes: it belongs to a gateway.
pub fn never_bound(labels: &LabelSet) -> bool {
    let controller = labels.get(MANAGED).map_or("", |value| value);
    matches!(controller, "istio.io-mesh-controller" | "istio.io-eastwest-controller")
}

/// Binds an object.
pub fn bind(asker: Asker<'_>, lookup: &dyn Fn(&Key) -> Option<Arc<Waypoint>>) -> Binding {
    let own = asker.wish.primary != Choice::Inherited;
    let choice = if own { &asker.wish.primary } else { &asker.inherited.primary };
    let Some(key) = choice.named() else { return Binding::default() };
    let waypoint = match attach(asker, key, lookup) {
        Ok(waypoint) => waypoint,
        // What a namespace wishes for its services is not asked of its workloads.
        Err(refusal) if !own && asker.traffic == Traffic::Workload && refusal.reason == UNSUPPORTED => {
            return Binding::default();
        }
        Err(refusal) => return Binding { refused: Some(refusal), ..Binding::default() },
    };
    let ingress = asker.wish.ingress.or(asker.inherited.ingress);
    let mut binding = Binding { ingress, ..Binding::default() };
    if asker.traffic == Traffic::Service {
        // Inherited from the same level as the waypoint itself.
        match canary(asker, !own, &waypoint, lookup) {
            Ok(canary) => binding.canary = canary,
            Err(refusal) => binding.refused = Some(refusal),
        }
    }
    binding.waypoint = Some(waypoint);
    binding
}

const UNSUPPORTED: &str = "UnsupportedTrafficType";

fn attach(
    asker: Asker<'_>,
    key: &Key,
    lookup: &dyn Fn(&Key) -> Option<Arc<Waypoint>>,
) -> Result<Arc<Waypoint>, Refusal> {
    let full = name(key);
    if asker.private && *key.0 != *asker.namespace {
        let message = format!(
            "cannot bind to waypoint \"{full}\" in another namespace: cross-namespace waypoint binding is not permitted for a ServiceEntry with NAMESPACE visibility"
        );
        return Err(Refusal::new("CrossNamespaceWaypointForbidden", message));
    }
    let Some(waypoint) = lookup(key) else {
        return Err(Refusal::new("WaypointIsNotReady", format!("waypoint \"{full}\" is not ready")));
    };
    if !waypoint.lets_in(asker.namespace, asker.namespace_labels) {
        let message = format!("we are not permitted to attach to waypoint \"{full}\" (missing allowedRoutes?)");
        return Err(Refusal::new("AttachmentDenied", message));
    }
    if !waypoint.takes(asker.traffic) {
        let message = format!(
            "attempting to bind to traffic type \"{}\" which the waypoint \"{full}\" does not support",
            asker.traffic.as_str()
        );
        return Err(Refusal::new(UNSUPPORTED, message));
    }
    Ok(waypoint)
}

fn canary(
    asker: Asker<'_>,
    inherits: bool,
    primary: &Waypoint,
    lookup: &dyn Fn(&Key) -> Option<Arc<Waypoint>>,
) -> Result<Option<(Arc<Waypoint>, u32)>, Refusal> {
    let inherited = inherits.then_some(asker.inherited);
    let choice = match (&asker.wish.canary, inherited) {
        (Choice::Inherited, Some(namespace)) => &namespace.canary,
        (own, _) => own,
    };
    let Some(key) = choice.named() else { return Ok(None) };
    let full = name(key);
    if *key == primary.key {
        let message = format!("canary waypoint \"{full}\" must differ from the primary waypoint");
        return Err(Refusal::new("CanarySameAsPrimary", message));
    }
    let written = asker.wish.weight.as_deref().or(inherited.and_then(|namespace| namespace.weight.as_deref()));
    let weight = written.map_or(Some(0), |text| text.parse().ok().filter(|weight: &u32| *weight <= 100));
    let Some(weight) = weight else {
        let message = format!("canary waypoint \"{full}\" has an invalid weight; must be an integer in [0,100]");
        return Err(Refusal::new("CanaryInvalidWeight", message));
    };
    let canary = attach(asker, key, lookup)?;
    Ok(Some((canary, weight)))
}

impl Binding {
    /// The address that clients go to.
    pub fn address(&self) -> Option<GatewayAddress> {
        self.waypoint.as_ref().map(|waypoint| waypoint.address.clone())
    }

    /// The shares of the waypoint and its canary; empty without one.
    pub fn weighted(&self) -> Vec<WeightedWaypoint> {
        let (Some(primary), Some((canary, weight))) = (&self.waypoint, &self.canary) else { return Vec::new() };
        let share =
            |waypoint: &Waypoint, weight| WeightedWaypoint { destination: Some(waypoint.address.clone()), weight };
        vec![share(primary, 100 - weight), share(canary, *weight)]
    }

    /// Whether gateways at the edge go through the waypoint.
    pub fn ingress_too(&self) -> bool {
        self.waypoint.is_some() && self.ingress == Some(true)
    }

    /// What is said about it on the object: nothing where nobody wishes anything.
    pub fn condition(&self) -> Option<PolicyCondition> {
        let Some(waypoint) = &self.waypoint else {
            let refusal = self.refused.as_ref()?;
            return Some(condition(BOUND, false, refusal.reason, refusal.message.clone()));
        };
        let mut message = format!("Successfully attached to waypoint {}", waypoint.name());
        match self.ingress {
            Some(true) => message.push_str(". Ingress traffic will traverse the waypoint"),
            Some(false) => message.push_str(
                ". Ingress traffic is not using the waypoint, set the istio.io/ingress-use-waypoint label to true if desired.",
            ),
            None => {}
        }
        if let Some(refusal) = &self.refused {
            message.push_str(". Canary waypoint not attached: ");
            message.push_str(&refusal.message);
        }
        Some(condition(BOUND, true, "WaypointAccepted", message))
    }
}

/// The condition's type.
pub(super) const BOUND: &str = "istio.io/WaypointBound";
