//! What the client counts, under the names of Istio's ztunnel.

use aquifer_runtime::metrics::Registry;
use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Unit;

/// Counters of the client. Clones count together.
#[derive(Clone, Debug, Default)]
pub struct ClientMetrics {
    terminations: Family<TerminationLabels, Counter>,
    messages: Family<TypeLabels, Counter>,
    bytes: Family<TypeLabels, Counter>,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub enum Termination {
    /// No stream came to be.
    ConnectionError,
    /// The server refused or failed.
    Error,
    /// The connection went away, as connections do.
    Reconnect,
    /// The server ended the stream in good order.
    Complete,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TerminationLabels {
    reason: Termination,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabels {
    url: String,
}

impl ClientMetrics {
    /// Counters in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        registry.register(
            "istio_xds_connection_terminations",
            "Discovery streams that ended, by reason",
            metrics.terminations.clone(),
        );
        registry.register("istio_xds_message", "Discovery responses received, by type", metrics.messages.clone());
        registry.register_with_unit(
            "istio_xds_message",
            "Size of discovery responses received, by type",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        metrics
    }

    pub(super) fn ended(&self, reason: Termination) {
        self.terminations.get_or_create(&TerminationLabels { reason }).inc();
    }

    pub(super) fn received(&self, type_url: &str, bytes: usize) {
        let labels = TypeLabels { url: type_url.to_owned() };
        self.messages.get_or_create(&labels).inc();
        self.bytes.get_or_create(&labels).inc_by(bytes as u64);
    }
}
