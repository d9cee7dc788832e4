//! What was asked, under Istio's names.

use std::time::Duration;

use aquifer_core::workload::Workload;
use aquifer_runtime::metrics::Registry;
use hickory_proto::rr::RecordType;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;

use super::message::Transport;

const BUCKETS: [f64; 6] = [0.0005, 0.001, 0.01, 0.1, 1.0, 5.0];

/// Counters of all pods' queries.
#[derive(Clone, Debug)]
pub struct Metrics {
    requests: Family<Labels, Counter>,
    forwarded: Family<Labels, Counter>,
    failed: Family<Labels, Counter>,
    duration: Family<Labels, Histogram, fn() -> Histogram>,
}

/// What a query is counted under.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct Labels {
    request_query_type: String,
    request_protocol: &'static str,
    source_canonical_service: String,
    source_canonical_revision: String,
}

impl Labels {
    /// `source`: the pod that asks, if its workload is known.
    #[must_use]
    pub fn new(record_type: RecordType, transport: Transport, source: Option<&Workload>) -> Self {
        let of = |part: fn(&Workload) -> &str| {
            source.map(part).filter(|text| !text.is_empty()).unwrap_or("unknown").to_owned()
        };
        let request_query_type = match record_type {
            // Whoever asks must not be able to make 65 536 series.
            RecordType::Unknown(_) => "unknown".to_owned(),
            known => known.to_string().to_lowercase(),
        };
        Self {
            request_query_type,
            request_protocol: transport.as_str(),
            source_canonical_service: of(|workload| &workload.canonical_name),
            source_canonical_revision: of(|workload| &workload.canonical_revision),
        }
    }
}

impl Default for Metrics {
    fn default() -> Self {
        Self {
            requests: Family::default(),
            forwarded: Family::default(),
            failed: Family::default(),
            duration: Family::new_with_constructor(|| Histogram::new(BUCKETS)),
        }
    }
}

impl Metrics {
    /// Registers all of it.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("istio_dns_requests", "Total number of DNS requests", self.requests.clone());
        registry.register(
            "istio_dns_upstream_requests",
            "Total number of DNS requests forwarded to upstream",
            self.forwarded.clone(),
        );
        registry.register(
            "istio_dns_upstream_failures",
            "Total number of DNS requests forwarded to upstream that came to nothing",
            self.failed.clone(),
        );
        registry.register(
            "istio_dns_upstream_request_duration_seconds",
            "How long upstream took to answer DNS requests",
            self.duration.clone(),
        );
    }

    pub(super) fn request(&self, labels: &Labels) {
        self.requests.get_or_create(labels).inc();
    }

    pub(super) fn forwarded(&self, labels: &Labels) {
        self.forwarded.get_or_create(labels).inc();
    }

    pub(super) fn done(&self, labels: &Labels, took: Duration, failed: bool) {
        self.duration.get_or_create(labels).observe(took.as_secs_f64());
        if failed {
            self.failed.get_or_create(labels).inc();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn odd_types_share_a_series() {
        let of = |record_type| Labels::new(record_type, Transport::Udp, None).request_query_type;
        assert_eq!(of(RecordType::AAAA), "aaaa");
        assert_eq!(of(RecordType::SRV), "srv");
        assert_eq!(of(RecordType::Unknown(60_000)), "unknown");
    }
}
