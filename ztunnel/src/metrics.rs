//! Counters, under Istio's names and labels.
//!
//! A label set of 26 parts is costly to look up and cheap to count on, so each worker keeps the handles of the label
//! sets that it has met ([`TcpSeries`]), and a connection looks there once. Bytes are counted by the copy itself and
//! added here once a second and at the end: nothing on the byte path is shared between threads.

mod strangers;

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt::{self, Write};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use aquifer_core::hbone::Baggage;
use aquifer_core::identity::Identity;
use aquifer_core::reason::Reason;
use aquifer_core::service::Service;
use aquifer_core::workload::Workload;
use aquifer_runtime::OwnThread;
use aquifer_runtime::metrics::Registry;
use prometheus_client::encoding::{EncodeLabel, EncodeLabelSet, EncodeLabelValue, LabelSetEncoder, LabelValueEncoder};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::info::Info;

use self::strangers::Strangers;

/// Which end of a connection reports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Reporter {
    /// The client's node proxy.
    Source,
    /// The server's.
    Destination,
}

impl EncodeLabelValue for Reporter {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(match self {
            Self::Source => "source",
            Self::Destination => "destination",
        })
    }
}

/// A label's text; what isn't known, or is empty, reads `unknown`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct Label(Option<Arc<str>>);

impl From<&Arc<str>> for Label {
    fn from(text: &Arc<str>) -> Self {
        Self((!text.is_empty()).then(|| text.clone()))
    }
}

impl EncodeLabelValue for Label {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.0.as_deref().unwrap_or("unknown"))
    }
}

/// An identity as a label.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Principal(Option<Identity>);

impl EncodeLabelValue for Principal {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        match &self.0 {
            Some(identity) => write!(encoder, "{identity}"),
            None => encoder.write_str("unknown"),
        }
    }
}

/// Istio's labels of a TCP connection, in Istio's order.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TcpLabels {
    reporter: Reporter,
    source_workload: Label,
    source_canonical_service: Label,
    source_canonical_revision: Label,
    source_workload_namespace: Label,
    source_principal: Principal,
    source_app: Label,
    source_version: Label,
    source_cluster: Label,
    destination_service: Label,
    destination_service_namespace: Label,
    destination_service_name: Label,
    destination_workload: Label,
    destination_canonical_service: Label,
    destination_canonical_revision: Label,
    destination_workload_namespace: Label,
    destination_principal: Principal,
    destination_app: Label,
    destination_version: Label,
    destination_cluster: Label,
    request_protocol: &'static str,
    response_flags: &'static str,
    connection_security_policy: &'static str,
    #[prometheus(flatten)]
    source_locality: SourceLocality,
    destination_region: Label,
    destination_zone: Label,
}

/// Where the client is. Unlike the other labels these are left out when they aren't known.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
struct SourceLocality {
    region: Label,
    zone: Label,
}

impl EncodeLabelSet for SourceLocality {
    fn encode(&self, encoder: &mut LabelSetEncoder<'_>) -> fmt::Result {
        for (name, label) in [("source_region", &self.region), ("source_zone", &self.zone)] {
            if let Some(text) = &label.0 {
                (name, &**text).encode(encoder.encode_label())?;
            }
        }
        Ok(())
    }
}

/// Between whom a connection is, as far as its counters care.
#[derive(Clone, Debug)]
pub struct Parties {
    /// Which end we are.
    pub reporter: Reporter,
    /// The client.
    pub source: Option<Arc<Workload>>,
    /// Whom the client's certificate names; `None` over plain TCP.
    pub source_identity: Option<Identity>,
    /// The server.
    pub destination: Option<Arc<Workload>>,
    /// The service that was asked for.
    pub service: Option<Arc<Service>>,
}

impl Parties {
    fn labels(&self, response_flags: &'static str) -> TcpLabels {
        let of = |w: &Option<Arc<Workload>>, part: fn(&Workload) -> &Arc<str>| {
            w.as_ref().map(|w| Label::from(part(w))).unwrap_or_default()
        };
        let (s, d) = (&self.source, &self.destination);
        let service =
            |part: fn(&Service) -> &Arc<str>| self.service.as_ref().map(|s| Label::from(part(s))).unwrap_or_default();
        TcpLabels {
            reporter: self.reporter,
            source_workload: of(s, |w| &w.workload_name),
            source_canonical_service: of(s, |w| &w.canonical_name),
            source_canonical_revision: of(s, |w| &w.canonical_revision),
            source_workload_namespace: of(s, |w| &w.namespace),
            source_principal: Principal(self.source_identity.clone()),
            source_app: of(s, |w| &w.canonical_name),
            source_version: of(s, |w| &w.canonical_revision),
            source_cluster: of(s, |w| &w.cluster_id),
            destination_service: service(|s| s.hostname()),
            destination_service_namespace: service(|s| s.namespace()),
            destination_service_name: service(|s| &s.name),
            destination_workload: of(d, |w| &w.workload_name),
            destination_canonical_service: of(d, |w| &w.canonical_name),
            destination_canonical_revision: of(d, |w| &w.canonical_revision),
            destination_workload_namespace: of(d, |w| &w.namespace),
            destination_principal: Principal(d.as_ref().map(|w| w.identity())),
            destination_app: of(d, |w| &w.canonical_name),
            destination_version: of(d, |w| &w.canonical_revision),
            destination_cluster: of(d, |w| &w.cluster_id),
            request_protocol: "tcp",
            response_flags,
            connection_security_policy: if self.source_identity.is_some() { "mutual_tls" } else { "unknown" },
            source_locality: SourceLocality {
                region: of(s, |w| &w.locality.region),
                zone: of(s, |w| &w.locality.zone),
            },
            destination_region: of(d, |w| &w.locality.region),
            destination_zone: of(d, |w| &w.locality.zone),
        }
    }
}

/// Istio's labels of a lookup: who wanted it, and what.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OnDemandDnsLabels {
    source_workload: Label,
    source_canonical_service: Label,
    source_canonical_revision: Label,
    source_workload_namespace: Label,
    source_principal: Principal,
    source_app: Label,
    source_version: Label,
    source_cluster: Label,
    hostname: String,
}

impl OnDemandDnsLabels {
    fn new(source: &Workload, hostname: &str) -> Self {
        Self {
            source_workload: (&source.workload_name).into(),
            source_canonical_service: (&source.canonical_name).into(),
            source_canonical_revision: (&source.canonical_revision).into(),
            source_workload_namespace: (&source.namespace).into(),
            source_principal: Principal(Some(source.identity())),
            source_app: (&source.canonical_name).into(),
            source_version: (&source.canonical_revision).into(),
            source_cluster: (&source.cluster_id).into(),
            hostname: hostname.to_owned(),
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReporterLabels {
    reporter: Reporter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RefusedLabels {
    reason: &'static str,
    policy: PolicyLabel,
    reporter: Reporter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WorkerLabels {
    worker: usize,
}

/// Empty where no policy has a part in it.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct PolicyLabel(Option<Arc<str>>);

impl EncodeLabelValue for PolicyLabel {
    fn encode(&self, encoder: &mut LabelValueEncoder<'_>) -> fmt::Result {
        encoder.write_str(self.0.as_deref().unwrap_or_default())
    }
}

/// The proxy's counters, shared by all workers.
#[derive(Clone, Debug, Default)]
pub struct ProxyMetrics {
    opened: Family<TcpLabels, Counter>,
    closed: Family<TcpLabels, Counter>,
    received: Family<TcpLabels, Counter>,
    sent: Family<TcpLabels, Counter>,
    failed: Family<TcpLabels, Counter>,
    sockets: Family<ReporterLabels, Gauge>,
    refused: Family<RefusedLabels, Counter>,
    carried: Family<WorkerLabels, Counter>,
    policy_cuts: Counter,
    crl_rejections: Family<ReporterLabels, Counter>,
    crl_untracked: Family<ReporterLabels, Counter>,
    on_demand_dns: Family<OnDemandDnsLabels, Counter>,
}

impl ProxyMetrics {
    /// Registers all of it.
    pub fn register(&self, registry: &mut Registry) {
        let mut counter = |name: &str, help: &str, family: &Family<TcpLabels, Counter>| {
            registry.register(name, help, family.clone());
        };
        counter("istio_tcp_connections_opened", "The total number of TCP connections opened", &self.opened);
        counter("istio_tcp_connections_closed", "The total number of TCP connections closed", &self.closed);
        counter(
            "istio_tcp_received_bytes",
            "The size of total bytes received during request in case of a TCP connection",
            &self.received,
        );
        counter(
            "istio_tcp_sent_bytes",
            "The size of total bytes sent during response in case of a TCP connection",
            &self.sent,
        );
        counter("istio_tcp_connections_failed", "The total number of TCP connections that failed", &self.failed);
        registry.register("istio_tcp_sockets_open", "The current number of open TCP sockets", self.sockets.clone());
        registry.register(
            "istio_crl_policy_rejections",
            "Connections refused or cut because the peer's certificate is revoked",
            self.crl_rejections.clone(),
        );
        registry.register(
            "istio_crl_untracked_connections",
            "mTLS connections that a change of the revocation lists cannot cut",
            self.crl_untracked.clone(),
        );
        registry.register(
            "istio_on_demand_dns",
            "The total number of connections whose destination is known by hostname",
            self.on_demand_dns.clone(),
        );
        registry.register(
            "aquifer_connections_refused",
            "Connections that were refused, cut or failed, by reason and by the policy that decided",
            self.refused.clone(),
        );
        registry.register(
            "aquifer_worker_bytes",
            "Bytes that a worker's connections have carried, both directions",
            self.carried.clone(),
        );
        registry.register(
            "aquifer_policy_cuts",
            "Open connections that were cut because a policy or a workload changed",
            self.policy_cuts.clone(),
        );
    }

    /// Counts a refusal, with or without a connection opened before.
    pub fn refused(&self, reporter: Reporter, reason: Reason, policy: Option<&Arc<str>>) {
        let labels = RefusedLabels { reason: reason.code(), policy: PolicyLabel(policy.cloned()), reporter };
        self.refused.get_or_create(&labels).inc();
        if reason == Reason::CertificateRevoked {
            self.crl_rejections.get_or_create(&ReporterLabels { reporter }).inc();
        }
    }

    /// Counts a connection over mTLS whose peer's certificate isn't at hand.
    pub fn untracked(&self, reporter: Reporter) {
        self.crl_untracked.get_or_create(&ReporterLabels { reporter }).inc();
    }

    /// Counts a connection that goes to a workload known by hostname.
    pub fn on_demand_dns(&self, source: &Workload, hostname: &str) {
        self.on_demand_dns.get_or_create(&OnDemandDnsLabels::new(source, hostname)).inc();
    }

    /// Counts connections cut by a change of policy.
    pub fn policy_cuts(&self, count: usize) {
        self.policy_cuts.inc_by(count as u64);
    }

    /// Counts an open socket as long as the guard lives.
    #[must_use]
    pub fn socket_open(&self, reporter: Reporter) -> OpenSocket {
        let gauge = self.sockets.get_or_create_owned(&ReporterLabels { reporter });
        gauge.inc();
        OpenSocket(gauge)
    }
}

/// An open socket, as counted.
#[derive(Debug)]
pub struct OpenSocket(Gauge<i64, AtomicI64>);

impl Drop for OpenSocket {
    fn drop(&mut self) {
        self.0.dec();
    }
}

/// The handles of one label set.
#[derive(Debug)]
pub struct TcpSeries {
    /// Those of the worker, whatever the labels.
    carried: Counter,
    opened: Counter,
    closed: Counter,
    received: Counter,
    sent: Counter,
    _own: OwnThread,
}

impl TcpSeries {
    /// A connection is open.
    pub fn opened(&self) {
        self.opened.inc();
    }

    /// Bytes since the last call: from the client, to the client.
    pub fn add_bytes(&self, from_client: u64, to_client: u64) {
        self.carried.inc_by(from_client + to_client);
        if from_client > 0 {
            self.received.inc_by(from_client);
        }
        if to_client > 0 {
            self.sent.inc_by(to_client);
        }
    }
}

/// One worker's view of the counters.
#[derive(Debug)]
pub struct WorkerMetrics {
    shared: Arc<ProxyMetrics>,
    /// All bytes of this worker's connections.
    carried: Counter,
    series: RefCell<HashMap<TcpLabels, Rc<TcpSeries>>>,
    /// Those of the connections before, found without their labels.
    recent: RefCell<HashMap<Between, (Parties, Rc<TcpSeries>)>>,
    strangers: RefCell<Strangers>,
}

/// Label sets that a worker remembers at most; beyond, it forgets all and begins anew.
const SERIES_KEPT: usize = 4096;
/// The same for parties. They keep workloads alive that have changed since, so they are fewer.
const RECENT_KEPT: usize = 512;

/// Parties by where they are in memory, which nobody else takes as long as they are remembered. A workload that has
/// changed is another one.
#[derive(Debug, PartialEq, Eq, Hash)]
struct Between {
    reporter: Reporter,
    mtls: bool,
    source: *const Workload,
    destination: *const Workload,
    service: *const Service,
}

impl Between {
    fn of(parties: &Parties) -> Self {
        Self {
            reporter: parties.reporter,
            mtls: parties.source_identity.is_some(),
            source: parties.source.as_ref().map_or(std::ptr::null(), Arc::as_ptr),
            destination: parties.destination.as_ref().map_or(std::ptr::null(), Arc::as_ptr),
            service: parties.service.as_ref().map_or(std::ptr::null(), Arc::as_ptr),
        }
    }
}

impl WorkerMetrics {
    /// The view of the worker of this number, without memory yet.
    #[must_use]
    pub fn new(shared: Arc<ProxyMetrics>, worker: usize) -> Self {
        let carried = shared.carried.get_or_create_owned(&WorkerLabels { worker });
        Self { shared, carried, series: RefCell::default(), recent: RefCell::default(), strangers: RefCell::default() }
    }

    /// What all workers share.
    #[must_use]
    pub fn shared(&self) -> &Arc<ProxyMetrics> {
        &self.shared
    }

    /// A client that the mesh doesn't know, as its baggage describes it; `None` if its certificate doesn't bear it out.
    #[must_use]
    pub fn stranger(&self, identity: &Identity, said: &Baggage) -> Option<Arc<Workload>> {
        self.strangers.borrow_mut().meet(identity, said)
    }

    /// The handles for a connection between these.
    #[must_use]
    pub fn series(&self, parties: &Parties) -> Rc<TcpSeries> {
        let between = Between::of(parties);
        let mut recent = self.recent.borrow_mut();
        if let Some((known, series)) = recent.get(&between)
            && known.source_identity == parties.source_identity
        {
            return series.clone();
        }
        let series = self.series_of(parties.labels("-"));
        if recent.len() >= RECENT_KEPT {
            recent.clear();
        }
        // With its own parties: a key that was there before points at what it held.
        recent.remove(&between);
        recent.insert(between, (parties.clone(), series.clone()));
        series
    }

    fn series_of(&self, labels: TcpLabels) -> Rc<TcpSeries> {
        let mut series = self.series.borrow_mut();
        if let Some(known) = series.get(&labels) {
            return known.clone();
        }
        if series.len() >= SERIES_KEPT {
            series.clear();
        }
        let new = Rc::new(TcpSeries {
            carried: self.carried.clone(),
            opened: self.shared.opened.get_or_create_owned(&labels),
            closed: self.shared.closed.get_or_create_owned(&labels),
            received: self.shared.received.get_or_create_owned(&labels),
            sent: self.shared.sent.get_or_create_owned(&labels),
            _own: OwnThread::default(),
        });
        series.insert(labels, new.clone());
        new
    }

    /// A connection has ended; how, if not well.
    pub fn closed(&self, series: &TcpSeries, parties: &Parties, failure: Option<Reason>) {
        let Some(reason) = failure else {
            series.closed.inc();
            return;
        };
        let labels = parties.labels(reason.response_flag());
        self.shared.closed.get_or_create(&labels).inc();
        self.shared.failed.get_or_create(&labels).inc();
    }
}

/// Which pods are served.
#[derive(Clone, Debug, Default)]
pub struct InpodMetrics {
    /// Pods being served.
    pub active: Gauge,
    /// Pods whose start failed.
    pub pending: Gauge,
    /// Starts.
    pub started: Counter,
    /// Stops.
    pub stopped: Counter,
}

impl InpodMetrics {
    /// Registers all of it.
    pub fn register(&self, registry: &mut Registry) {
        registry.register(
            "workload_manager_active_proxy_count",
            "The total number current workloads with active proxies",
            self.active.clone(),
        );
        registry.register(
            "workload_manager_pending_proxy_count",
            "The total number current workloads with pending proxies",
            self.pending.clone(),
        );
        registry.register(
            "workload_manager_proxies_started",
            "The total number of proxies that were started",
            self.started.clone(),
        );
        registry.register(
            "workload_manager_proxies_stopped",
            "The total number of proxies that were stopped",
            self.stopped.clone(),
        );
    }
}

/// Registers `istio_build`, and our own version beside it.
pub fn register_build(registry: &mut Registry, tag: &str) {
    let build = Family::<BuildLabels, Gauge>::default();
    build.get_or_create(&BuildLabels { component: "ztunnel", tag: tag.to_owned() }).set(1);
    registry.register("istio_build", "Istio component build info", build);
    let info = Info::new(vec![("version", env!("CARGO_PKG_VERSION"))]);
    registry.register("aquifer_build", "Build of this binary", info);
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct BuildLabels {
    component: &'static str,
    tag: String,
}

#[cfg(test)]
mod tests;
