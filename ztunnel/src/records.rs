//! One access line per connection, in Istio's keys and order, written from a typed record when it is finished.
//!
//! A connection's record is opened when it is known where the connection goes, and finished explicitly, once, with how
//! it went. A refusal before that is one short line ([`refused`]).

use std::fmt;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use aquifer_core::reason::Reason;
use aquifer_hbone::Counters;
use tokio::time::Instant;

use crate::metrics::{OpenSocket, Parties, ProxyMetrics, Reporter, TcpSeries, WorkerMetrics};

mod remedy;

/// Why a connection didn't come about, or ended early.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// What status, labels and tests go by.
    pub reason: Reason,
    /// What a person reads.
    pub message: String,
    /// The policy that decided; several, with commas, where none of them allowed.
    pub policy: Option<Arc<str>>,
}

impl Failure {
    /// A failure that no policy has a part in.
    pub fn new(reason: Reason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into(), policy: None }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

/// What is known of a connection when it opens.
#[derive(Clone, Debug)]
pub struct Opening {
    /// The client.
    pub src: SocketAddr,
    /// Where the connection goes: for HBONE the peer's port 15008.
    pub dst: SocketAddr,
    /// For HBONE, the authority.
    pub hbone_target: Option<Arc<str>>,
    /// Between whom.
    pub parties: Parties,
    /// When the client was accepted.
    pub since: Instant,
}

/// An open connection. Finish it.
#[derive(Debug)]
#[must_use = "a connection's record is finished explicitly"]
pub struct Record {
    opening: Opening,
    traffic: Rc<Traffic>,
    metrics: Rc<WorkerMetrics>,
    _socket: OpenSocket,
}

/// What a connection has carried; also read while it runs.
#[derive(Debug)]
pub struct Traffic {
    /// Counted by the copy. Two ends within this process count as one.
    pub counters: Rc<Counters>,
    counted: std::cell::Cell<(u64, u64)>,
    series: Rc<TcpSeries>,
}

impl Traffic {
    /// Brings the metrics up to date.
    pub fn flush(&self) {
        let (sent, received) = self.counters.get();
        let (sent_before, received_before) = self.counted.replace((sent, received));
        // "Received" in Istio's metric is what the server received.
        self.series.add_bytes(sent.saturating_sub(sent_before), received.saturating_sub(received_before));
    }
}

impl Record {
    /// Opens the record and counts the connection.
    pub fn open(opening: Opening, metrics: &Rc<WorkerMetrics>) -> Self {
        Self::open_counted(opening, metrics, Rc::default())
    }

    /// The same for an end that is counted by another one.
    pub fn open_counted(opening: Opening, metrics: &Rc<WorkerMetrics>, counters: Rc<Counters>) -> Self {
        let series = metrics.series(&opening.parties);
        series.opened();
        let record = Self {
            _socket: metrics.shared().socket_open(opening.parties.reporter),
            traffic: Rc::new(Traffic { counters, counted: Default::default(), series }),
            metrics: metrics.clone(),
            opening,
        };
        if tracing::enabled!(target: "access", tracing::Level::DEBUG) {
            record.line(Kind::Opened);
        }
        record
    }

    /// The byte counters to copy with.
    #[must_use]
    pub fn traffic(&self) -> Rc<Traffic> {
        self.traffic.clone()
    }

    /// Who takes part.
    #[must_use]
    pub fn parties(&self) -> &Parties {
        &self.opening.parties
    }

    /// Writes the line and counts the end.
    pub fn finish(self, outcome: Result<(), &Failure>) {
        self.traffic.flush();
        let parties = &self.opening.parties;
        if let Err(failure) = outcome {
            self.metrics.shared().refused(parties.reporter, failure.reason, failure.policy.as_ref());
        }
        self.metrics.closed(&self.traffic.series, parties, outcome.err().map(|f| f.reason));
        self.line(match outcome {
            Ok(()) => Kind::Complete,
            Err(failure) => Kind::Failed(failure),
        });
    }

    fn line(&self, kind: Kind<'_>) {
        let Opening { src, dst, hbone_target, parties, since } = &self.opening;
        let (source, destination) = (parties.source.as_deref(), parties.destination.as_deref());
        let mtls = parties.source_identity.is_some();
        let (sent, received) = self.traffic.counters.get();
        // From the logging side's view: what it sends to its own client is received for the outbound side.
        let (bytes_sent, bytes_recv) = match parties.reporter {
            Reporter::Source => (sent, received),
            Reporter::Destination => (received, sent),
        };
        let duration = format!("{}ms", since.elapsed().as_millis());
        let failure = match kind {
            Kind::Failed(failure) => Some(failure),
            Kind::Opened | Kind::Complete => None,
        };
        macro_rules! line {
            ($level:ident, $message:literal $(, $($extra:tt)*)?) => {
                tracing::event!(
                    target: "access",
                    tracing::Level::$level,
                    src.addr = %src,
                    src.workload = source.map(|w| w.name().to_string()),
                    src.namespace = source.map(|w| &*w.namespace),
                    src.identity = parties.source_identity.as_ref().map(|i| i.to_string()),
                    src.cluster = source.map(|w| &*w.cluster_id).filter(|id| !id.is_empty()),
                    dst.addr = %dst,
                    dst.hbone_addr = hbone_target.as_ref().map(tracing::field::display),
                    dst.service = parties.service.as_ref().map(|s| &**s.hostname()),
                    dst.workload = destination.map(|w| w.name().to_string()),
                    dst.namespace = destination.map(|w| &*w.namespace),
                    dst.identity = destination.filter(|_| mtls).map(|w| w.identity().to_string()),
                    dst.cluster = destination.map(|w| &*w.cluster_id),
                    direction = direction(parties.reporter),
                    $($($extra)*)?
                    $message
                )
            };
        }
        match failure {
            Some(failure) => line!(
                ERROR,
                "connection complete",
                bytes_sent = bytes_sent,
                bytes_recv = bytes_recv,
                duration = duration.as_str(),
                error = failure.message.as_str(),
                reason = failure.reason.code(),
                policy = failure.policy.as_deref(),
                remedy = remedy::of(failure),
            ),
            None if matches!(kind, Kind::Opened) => line!(DEBUG, "connection opened"),
            None => line!(
                INFO,
                "connection complete",
                bytes_sent = bytes_sent,
                bytes_recv = bytes_recv,
                duration = duration.as_str(),
            ),
        }
    }
}

enum Kind<'a> {
    Opened,
    Complete,
    Failed(&'a Failure),
}

/// A connection that was refused before it was known where it goes.
pub fn refused(metrics: &ProxyMetrics, reporter: Reporter, src: SocketAddr, dst: SocketAddr, failure: &Failure) {
    metrics.refused(reporter, failure.reason, failure.policy.as_ref());
    tracing::event!(
        target: "access",
        tracing::Level::WARN,
        src.addr = %src,
        dst.addr = %dst,
        direction = direction(reporter),
        error = failure.message.as_str(),
        reason = failure.reason.code(),
        policy = failure.policy.as_deref(),
        remedy = remedy::of(failure),
        "connection failed"
    );
}

fn direction(reporter: Reporter) -> &'static str {
    match reporter {
        Reporter::Source => "outbound",
        Reporter::Destination => "inbound",
    }
}

#[cfg(test)]
mod tests;
