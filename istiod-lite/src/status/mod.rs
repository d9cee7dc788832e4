//! What users are told about what they wrote: conditions in `status`, written by the leader, when they change and
//! only then.
//!
//! ```text
//!   translation ──want──┐
//!   gateway     ──want──┼─▶ Board (what stands, what is wanted) ──turn by turn, leader only──▶ Writer
//!   events ──observed───┘        ▲                                                              │
//!                                └──────────── the write comes back as an event ◀───────────────┘
//! ```
//!
//! Invariants:
//! * A status that stands is not written again; a write that comes back as it was written ends the matter.
//! * `lastTransitionTime` changes with the condition's status only.
//! * Who overwrites us is answered ever more seldom, and named in the log once.
//! * Who becomes leader looks at everything; who isn't writes nothing.

mod board;
mod bucket;
mod shape;
mod task;
#[cfg(test)]
mod tests;

use aquifer_objects::{Kind, crds};
use serde_json::Value;

pub use shape::CONTROLLER;
pub use task::StatusQueue;

/// A condition without its time, which who writes it knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Condition {
    /// The condition's type.
    pub type_: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
    /// One CamelCase word.
    pub reason: String,
    /// For people.
    pub message: String,
}

impl Condition {
    /// A condition that holds or doesn't.
    pub fn new(type_: &str, status: bool, reason: &str, message: impl Into<String>) -> Self {
        let status = if status { "True" } else { "False" };
        Self { type_: type_.into(), status: status.into(), reason: reason.into(), message: message.into() }
    }
}

impl From<&crds::Condition> for Condition {
    fn from(condition: &crds::Condition) -> Self {
        Self {
            type_: condition.type_.clone(),
            status: condition.status.clone(),
            reason: condition.reason.clone(),
            message: condition.message.clone(),
        }
    }
}

/// What shall stand in an object's status.
#[derive(Clone, Debug, PartialEq)]
pub enum Wanted {
    /// Conditions of the object itself; those of ours that are not among them go.
    Conditions(Vec<Condition>),
    /// A route's parents, each as the route names it.
    Parents(Vec<(Value, Vec<Condition>)>),
    /// Everything in a Gateway's status.
    Gateway(GatewayStatus),
}

/// The status of a Gateway.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct GatewayStatus {
    /// Accepted, Programmed, ResolvedRefs.
    pub conditions: Vec<Condition>,
    /// One for each listener, in their order.
    pub listeners: Vec<ListenerStatus>,
    /// Type (`IPAddress`, `Hostname`) and value.
    pub addresses: Vec<(String, String)>,
}

/// The status of one listener.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ListenerStatus {
    /// Which.
    pub name: String,
    /// Kinds of routes that it takes.
    pub supported_kinds: Vec<String>,
    /// How many routes are attached.
    pub attached_routes: i32,
    /// Accepted, Conflicted, Programmed, ResolvedRefs.
    pub conditions: Vec<Condition>,
}

/// One field manager's part of an object's status.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// Under whose name.
    pub manager: &'static str,
    /// The part.
    pub status: Value,
}

/// Whether the queue wants to see objects of the kind: those whose status is ours to write, and namespaces, which say
/// whose they are.
pub fn is_of_interest(kind: Kind) -> bool {
    let core = matches!(kind, Kind::Namespace | Kind::Service | Kind::Gateway | Kind::GatewayClass);
    let routes = matches!(kind, Kind::HTTPRoute | Kind::GRPCRoute | Kind::TCPRoute | Kind::TLSRoute);
    core || routes || kind.of_istio()
}
