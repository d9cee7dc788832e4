//! What the server counts, under istiod's names: without the `_total` that this library appends to every counter. So
//! they are exposed as gauges that only rise; a `rate()` over them sees no difference.

use aquifer_proto::type_url;
use aquifer_runtime::metrics::Registry;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;

/// A count under a name without `_total`.
type Count = Gauge;

/// Counters of the server. Clones count together.
#[derive(Clone, Debug)]
pub struct ServerMetrics {
    connections: Family<VersionLabels, Gauge>,
    pushes: Family<TypeLabels, Count>,
    rejects: Family<TypeLabels, Count>,
    expired_nonces: Family<TypeLabels, Count>,
    push_seconds: Family<TypeLabels, Histogram, fn() -> Histogram>,
    config_bytes: Family<TypeLabels, Histogram, fn() -> Histogram>,
    send_seconds: Histogram,
    convergence_seconds: Histogram,
    write_timeouts: Count,
    delayed: Count,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct VersionLabels {
    version: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TypeLabels {
    r#type: &'static str,
}

// istiod's buckets.
const SECONDS: [f64; 9] = [0.01, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
const CONVERGENCE_SECONDS: [f64; 10] = [0.01, 0.05, 0.1, 0.5, 1.0, 3.0, 5.0, 10.0, 20.0, 30.0];
const BYTES: [f64; 7] = [1.0, 10_000.0, 1e6, 4e6, 10e6, 40e6, 100e6];

impl Default for ServerMetrics {
    fn default() -> Self {
        Self {
            connections: Family::default(),
            pushes: Family::default(),
            rejects: Family::default(),
            expired_nonces: Family::default(),
            push_seconds: Family::new_with_constructor(|| Histogram::new(SECONDS)),
            config_bytes: Family::new_with_constructor(|| Histogram::new(BYTES)),
            send_seconds: Histogram::new(SECONDS),
            convergence_seconds: Histogram::new(CONVERGENCE_SECONDS),
            write_timeouts: Count::default(),
            delayed: Count::default(),
        }
    }
}

impl ServerMetrics {
    /// Counters in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let m = Self::default();
        registry.register("pilot_xds", "Connected clients, by version", m.connections.clone());
        registry.register("pilot_xds_pushes", "Responses sent, by type", m.pushes.clone());
        let help = "Responses that a client refused, by type";
        registry.register("pilot_total_xds_rejects", help, m.rejects.clone());
        let help = "Acknowledgements of responses that were never sent, by type";
        registry.register("pilot_xds_expired_nonce", help, m.expired_nonces.clone());
        let help = "Seconds to build a push, by type";
        registry.register("pilot_xds_push_time", help, m.push_seconds.clone());
        let help = "Size of responses in bytes, by type";
        registry.register("pilot_xds_config_size_bytes", help, m.config_bytes.clone());
        let help = "Seconds until a client took a response";
        registry.register("pilot_xds_send_time", help, m.send_seconds.clone());
        let help = "Seconds from a publication until a client took what it changed";
        registry.register("pilot_proxy_convergence_time", help, m.convergence_seconds.clone());
        let help = "Clients disconnected because they read nothing";
        registry.register("pilot_xds_write_timeout", help, m.write_timeouts.clone());
        let help = "Requests that waited because their client asks too much";
        registry.register("aquifer_xds_delayed_requests", help, m.delayed.clone());
        m
    }

    /// Counts a connection for as long as the guard lives.
    pub(super) fn connected(&self, version: Option<&str>) -> ConnectionGuard {
        let version = version.unwrap_or("unknown").to_owned();
        let gauge = self.connections.get_or_create_owned(&VersionLabels { version });
        gauge.inc();
        ConnectionGuard(gauge)
    }

    pub(super) fn built(&self, type_url: &str, bytes: usize, seconds: f64) {
        let labels = labels(type_url);
        self.pushes.get_or_create(&labels).inc();
        self.config_bytes.get_or_create(&labels).observe(bytes as f64);
        self.push_seconds.get_or_create(&labels).observe(seconds);
    }

    pub(super) fn sent(&self, seconds: f64) {
        self.send_seconds.observe(seconds);
    }

    pub(super) fn converged(&self, seconds: f64) {
        self.convergence_seconds.observe(seconds);
    }

    pub(super) fn write_timeout(&self) {
        self.write_timeouts.inc();
    }

    pub(super) fn delayed(&self) {
        self.delayed.inc();
    }

    pub(super) fn rejected(&self, type_url: &str) {
        self.rejects.get_or_create(&labels(type_url)).inc();
    }

    pub(super) fn expired_nonce(&self, type_url: &str) {
        self.expired_nonces.get_or_create(&labels(type_url)).inc();
    }
}

#[derive(Debug)]
pub(super) struct ConnectionGuard(Gauge);

impl Drop for ConnectionGuard {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// istiod's short names of the types; a client's own text must not become a label.
fn labels(type_url: &str) -> TypeLabels {
    let short = match type_url {
        type_url::ADDRESS | type_url::WORKLOAD => "wds",
        type_url::AUTHORIZATION => "wads",
        _ => "other",
    };
    TypeLabels { r#type: short }
}
