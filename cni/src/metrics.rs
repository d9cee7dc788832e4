//! What the agent counts, under Istio's names where Istio has one.

use crate::zds::server::ZdsMetrics;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// The agent's metrics.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    /// Objects' changes seen.
    pub events: Family<EventLabels, Counter>,
    /// Pods in the mesh on this node.
    pub enrolled: Gauge,
    /// Pods that shall be in and are not yet.
    pub failures: Family<StepLabels, Counter>,
    /// Rules laid again after someone had removed them.
    pub repairs: Counter,
    /// The ZDS server's.
    pub zds: ZdsMetrics,
}

/// `type` = add, update, delete.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct EventLabels {
    /// What happened to the object.
    pub r#type: &'static str,
}

/// `step` = netns, rules, zds, probes, annotation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct StepLabels {
    /// The step that failed.
    pub step: &'static str,
}

impl Metrics {
    /// Adds them to the process's registry.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("nodeagent_reconcile_events", "Events about pods and namespaces", self.events.clone());
        registry.register("nodeagent_enrolled_pods", "Pods of this node in the mesh", self.enrolled.clone());
        registry.register("nodeagent_step_failures", "Failed attempts by step", self.failures.clone());
        registry.register("nodeagent_rules_repaired", "Rules laid again after removal", self.repairs.clone());
        registry.register("ztunnel_connected", "Connected ztunnels", self.zds.connected.clone());
        registry.register("ztunnel_connection_faults", "Connections ended for a fault", self.zds.faults.clone());
    }
}
