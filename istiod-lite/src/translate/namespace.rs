//! What is kept of a Namespace: what its objects inherit.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Namespace;

use super::labels::{Interner, LabelSet};
use super::service::Distribution;
use super::waypoint::Wish;

/// The label of the control plane's namespace that names the network of all pods.
const NETWORK: &str = "topology.istio.io/network";

/// The facts of a Namespace. The default is that of one which nobody has described.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NamespaceFacts {
    /// Its labels.
    pub labels: Arc<LabelSet>,
    /// Which waypoint its objects use that don't say.
    pub wish: Wish,
    /// Which endpoints its services prefer that don't say.
    pub distribution: Option<Distribution>,
}

impl NamespaceFacts {
    /// The facts of a Namespace.
    pub fn of(namespace: &Namespace, interner: &mut Interner) -> Self {
        let labels = interner.labels(namespace.metadata.labels.as_ref());
        let name = interner.string(namespace.metadata.name.as_deref().unwrap_or_default());
        let annotations = namespace.metadata.annotations.as_ref();
        Self { wish: Wish::of(&labels, annotations, &name), distribution: Distribution::of(None, annotations), labels }
    }

    /// The network that it names.
    pub fn network(&self) -> &str {
        self.labels.get(NETWORK).map_or("", |network| network)
    }
}
