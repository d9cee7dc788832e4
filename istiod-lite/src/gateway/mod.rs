//! Waypoints: a Gateway of class `istio-waypoint` becomes a ServiceAccount, a Deployment and a Service, and is told so.
//!
//! ```text
//!   Gateways, classes, overlays, what stands ──Event──▶ Controller ──▶ reconcile (pure) ──▶ Vec<Action>
//!                                                           ▲                                  │
//!                                                           └── what stands ◀── Writer (SSA) ◀─┴─▶ StatusQueue
//! ```
//!
//! Invariants:
//! * Only the leader of the Gateway's revision watches and writes; a new leader starts from what stands.
//! * An object that doesn't carry our label is never written to: that would take over somebody's own.
//! * What lies in a namespace that is not discovered is not ours: nothing is made of it, and nothing said. What stands
//!   there already is left.
//! * What isn't running is not reported as programmed, and a Gateway without addresses binds nobody.

mod class;
mod conditions;
mod controller;
mod merge;
mod reconcile;
mod render;
mod task;
#[cfg(test)]
mod tests;

use crate::translate::labels::{LabelSet, Selector};
use crate::translate::{Labels, Mesh};

pub use conditions::service_address;
pub use reconcile::{Action, Input, reconcile};
pub use task::{Waypoints, start};

/// The field manager of what a Gateway becomes.
pub const MANAGER: &str = "istio.io/gateway-controller";
/// The same in a folder, where a manager is a folder's name.
const FOLDER_MANAGER: &str = "istio.io-gateway-controller";
/// The label of objects that a Gateway controller made.
pub const MANAGED: &str = "gateway.istio.io/managed";
/// The annotation on a Gateway that says which generation of controllers owns it; larger numbers win.
pub const CONTROLLER_VERSION: &str = "gateway.istio.io/controller-version";
/// Ours.
pub const VERSION: i64 = 5;
/// The label of a ConfigMap in the root namespace that overlays all Gateways of a class.
pub const CLASS_DEFAULTS: &str = "gateway.istio.io/defaults-for-class";

/// What a waypoint is told, as the process was told it.
#[derive(Clone, Debug, Default)]
pub struct Settings {
    /// WAYPOINT_IMAGE: what a waypoint's container runs; without it none is made.
    pub waypoint_image: Option<String>,
    /// The revision of this control plane.
    pub revision: String,
    /// The root namespace.
    pub root_namespace: String,
    /// The suffix of Service names.
    pub cluster_domain: String,
    /// The cluster.
    pub cluster_id: String,
}

/// What a waypoint is told, as the mesh has it at the moment.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Told {
    /// The trust domain, which is that of the certificates that it gets.
    pub trust_domain: String,
    /// The network of this cluster, or nothing.
    pub network: String,
    /// The namespaces that belong to the mesh: those that any of these selects, or all if there are none.
    pub discovery: Vec<Selector>,
    /// The control plane's namespace and the root namespace, which always do.
    pub own: [String; 2],
}

impl Told {
    /// Whether Gateways of a namespace with such labels are the mesh's. One that is not known yet may be kept out by
    /// its labels.
    pub fn discovers(&self, namespace: &str, labels: Option<&Labels>) -> bool {
        let selected = |labels| self.discovery.iter().any(|selector| selector.selects(&LabelSet::from(labels)));
        self.discovery.is_empty() || self.own.iter().any(|own| own == namespace) || labels.is_some_and(selected)
    }
}

impl From<&Mesh> for Told {
    fn from(mesh: &Mesh) -> Self {
        Self {
            trust_domain: mesh.trust_domain.clone(),
            network: mesh.network.clone(),
            discovery: mesh.discovery.clone(),
            own: [mesh.system_namespace.clone(), mesh.root_namespace.clone()],
        }
    }
}

impl Settings {
    /// Where waypoints find us: each revision has a Service of its own.
    pub fn control_plane(&self) -> String {
        let suffix = if self.revision == "default" { String::new() } else { format!("-{}", self.revision) };
        format!("istiod{suffix}.{}.svc:15012", self.root_namespace)
    }
}
