//! What istiod-lite counts, under Istio's names.
//!
//! Istio's counters carry no `_total`, which this library appends to every counter; so they are
//! exposed as gauges that only rise. A `rate()` over them sees no difference.

use std::fmt;
use std::sync::atomic::AtomicU64;
use std::time::Instant;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeLabelSet, EncodeMetric};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::metrics::info::Info;
use prometheus_client::registry::{Metric, Registry};
use time::OffsetDateTime;

use crate::ca::csr::CsrError;
use crate::ca::issuer::IssueError;

/// A count under a name without `_total`.
pub type Count = Gauge;
type Seconds = Gauge<f64, AtomicU64>;

/// Seconds; from a debounce's few milliseconds to a stuck client.
const TIME_BUCKETS: [f64; 10] = [0.001, 0.005, 0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 10.0, 30.0];

/// The `type` label: of a resource, an object or an event, by the metric.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct TypeLabel {
    r#type: String,
}

/// The label `type=of`.
pub fn type_label(of: impl Into<String>) -> TypeLabel {
    TypeLabel { r#type: of.into() }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ErrorLabel {
    error: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabel {
    component: &'static str,
    tag: &'static str,
}

/// Everything, by who counts it.
#[derive(Debug, Clone)]
pub struct Metrics {
    /// The push side.
    pub push: PushMetrics,
    /// The CA.
    pub ca: CaMetrics,
}

/// From an object's change to the published resources.
#[derive(Debug, Clone)]
pub struct PushMetrics {
    /// `pilot_inbound_updates{type}`: changes of objects.
    pub inbound_updates: Family<TypeLabel, Count>,
    /// `pilot_push_triggers{type}`: changes of resources that were published.
    pub push_triggers: Family<TypeLabel, Count>,
    /// `pilot_debounce_time`: from the first unpublished change to the publication.
    pub debounce_time: Histogram,
    /// `pilot_pushcontext_init_seconds`: the translation of one batch.
    pub translate_time: Histogram,
    /// `pilot_services`.
    pub services: Gauge,
}

/// What the CA did.
#[derive(Debug, Clone, Default)]
pub struct CaMetrics {
    /// `citadel_server_csr_count`.
    pub csr_count: Count,
    /// `citadel_server_authentication_failure_count`.
    pub authentication_failures: Count,
    /// `citadel_server_success_cert_issuance_count`.
    pub issued: Count,
    /// `citadel_server_id_extraction_err_count`.
    pub id_extraction_errors: Count,
    parsing_errors: Count,
    sign_errors: Family<ErrorLabel, Count>,
    root_expiry: Seconds,
    chain_expiry: Seconds,
}

impl Metrics {
    /// Makes them and puts them into `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        const VERSION: &str = env!("CARGO_PKG_VERSION");
        registry.register("pilot", "Version of the control plane", Info::new([("version", VERSION)]));
        let build = Family::<BuildLabel, Gauge>::default();
        build.get_or_create(&BuildLabel { component: "pilot", tag: VERSION }).set(1);
        registry.register("istio_build", "Build of the component", build);
        let metrics = Self { push: PushMetrics::register(registry), ca: CaMetrics::register(registry) };
        let (root_expiry, chain_expiry) = (metrics.ca.root_expiry.clone(), metrics.ca.chain_expiry.clone());
        registry.register_collector(Box::new(Clocks { started: Instant::now(), root_expiry, chain_expiry }));
        metrics
    }
}

impl PushMetrics {
    fn register(registry: &mut Registry) -> Self {
        let histogram = || Histogram::new(TIME_BUCKETS);
        Self {
            inbound_updates: add(registry, "pilot_inbound_updates", "Changes of objects", Family::default()),
            push_triggers: add(registry, "pilot_push_triggers", "Changes of resources published", Family::default()),
            debounce_time: add(
                registry,
                "pilot_debounce_time",
                "Seconds from a change to its publication",
                histogram(),
            ),
            translate_time: add(
                registry,
                "pilot_pushcontext_init_seconds",
                "Seconds to translate a batch of changes",
                histogram(),
            ),
            services: add(registry, "pilot_services", "Services known", Gauge::default()),
        }
    }
}

impl CaMetrics {
    fn register(registry: &mut Registry) -> Self {
        Self {
            csr_count: add(registry, "citadel_server_csr_count", "Signing requests received", Count::default()),
            authentication_failures: add(
                registry,
                "citadel_server_authentication_failure_count",
                "Requests of unknown or unauthorized callers",
                Count::default(),
            ),
            issued: add(
                registry,
                "citadel_server_success_cert_issuance_count",
                "Certificates issued",
                Count::default(),
            ),
            id_extraction_errors: add(
                registry,
                "citadel_server_id_extraction_err_count",
                "Signing requests of callers whose identity cannot be told",
                Count::default(),
            ),
            parsing_errors: add(
                registry,
                "citadel_server_csr_parsing_err_count",
                "Signing requests that could not be read",
                Count::default(),
            ),
            sign_errors: add(
                registry,
                "citadel_server_csr_sign_err_count",
                "Signing requests not signed",
                Family::default(),
            ),
            root_expiry: add(
                registry,
                "citadel_server_root_cert_expiry_timestamp",
                "Unix time at which the root expires",
                Seconds::default(),
            ),
            chain_expiry: add(
                registry,
                "citadel_server_cert_chain_expiry_timestamp",
                "Unix time at which the signer, or one between it and the root, expires",
                Seconds::default(),
            ),
        }
    }

    /// Notes the ends of validity: the root's, and that of what signs below it.
    pub fn expiry(&self, root: OffsetDateTime, chain: OffsetDateTime) {
        self.root_expiry.set(root.unix_timestamp() as f64);
        self.chain_expiry.set(chain.unix_timestamp() as f64);
    }

    /// Notes why a request was not signed.
    pub fn sign_error(&self, error: &IssueError) {
        let error = match error {
            IssueError::Csr(CsrError::Encoding) => {
                self.parsing_errors.inc();
                "csr_error"
            }
            IssueError::Csr(CsrError::Signature | CsrError::Key | CsrError::Size) => "csr_error",
            IssueError::Ttl { .. } => "ttl_error",
            IssueError::RootExpired => "ca_not_ready",
            IssueError::Signing(_) => "cert_generation_error",
        };
        self.sign_errors.get_or_create(&ErrorLabel { error }).inc();
    }
}

fn add<M: Metric + Clone>(registry: &mut Registry, name: &str, help: &str, metric: M) -> M {
    registry.register(name, help, metric.clone());
    metric
}

/// What time alone changes: read at each scrape.
#[derive(Debug)]
struct Clocks {
    started: Instant,
    root_expiry: Seconds,
    chain_expiry: Seconds,
}

impl Collector for Clocks {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name, help, value: f64| {
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("istiod_uptime_seconds", "Seconds since the start", self.started.elapsed().as_secs_f64())?;
        let now = OffsetDateTime::now_utc().unix_timestamp() as f64;
        let (root, chain) = (self.root_expiry.get() - now, self.chain_expiry.get() - now);
        gauge("citadel_server_root_cert_expiry_seconds", "Seconds until the root expires", root)?;
        gauge("citadel_server_cert_chain_expiry_seconds", "Seconds until the signer expires", chain)
    }
}
