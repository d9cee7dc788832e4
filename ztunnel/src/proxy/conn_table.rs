//! The connections of one worker: registered before they are authorized, judged again whenever the mesh changes.
//!
//! The order closes a race. A connection that is judged by an old policy while a new one arrives is in the table when
//! the change is worked through, and gets cut; judged first and registered later, it would slip through.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fmt;
use std::future::poll_fn;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Poll, Waker};

use aquifer_core::authz::{self, Connection, Decision};
use aquifer_core::reason::Reason;
use aquifer_core::state::MeshState;
use aquifer_core::workload::Workload;
use aquifer_runtime::Cancel;
use aquifer_tls::{PeerCertificate, Revocations};
use serde::Serialize;

use crate::inpod::zds::PodUid;
use crate::proxy::same_node::permitted;
use crate::proxy::verdict;
use crate::records::{Failure, Traffic};

/// One worker's connections. Clones are the same table.
#[derive(Clone, Debug, Default)]
pub struct ConnTable {
    inner: Rc<RefCell<Inner>>,
}

#[derive(Debug, Default)]
struct Inner {
    next: u64,
    /// Each where its guard has it: a tree's nodes are half empty when keys only grow, and must not be large.
    entries: BTreeMap<u64, Rc<Entry>>,
    tunnels: BTreeMap<u64, Tunnel>,
}

/// One connection.
#[derive(Debug)]
struct Entry {
    pod: PodUid,
    view: View,
    /// What an inbound connection is judged by. The outbound side judges nothing.
    judged: Option<Box<RefCell<Judged>>>,
    /// What the peer showed, where there is mTLS.
    certificate: RefCell<Option<Arc<PeerCertificate>>>,
    cut: Cut,
    traffic: RefCell<Option<Rc<Traffic>>>,
}

#[derive(Debug)]
struct Judged {
    by: Connection,
    /// It was let in; before that it is refused rather than cut.
    admitted: bool,
    /// The client, where nothing is on the wire in between: only as long as that is permitted for both.
    neighbour: Option<Arc<Workload>>,
}

/// An accepted mTLS connection, which may carry connections or none.
#[derive(Debug)]
struct Tunnel {
    certificate: Arc<PeerCertificate>,
    cancel: Cancel,
}

#[derive(Debug, Default)]
struct Cut {
    failure: RefCell<Option<Box<Failure>>>,
    waiter: RefCell<Option<Waker>>,
}

/// A connection as `/config_dump` shows it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct View {
    /// The client.
    pub src: SocketAddr,
    /// Where the client wanted to go.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub original_dst: Option<Asked>,
    /// Where the bytes go.
    pub actual_dst: SocketAddr,
    /// `HBONE` or `TCP`.
    pub protocol: &'static str,
}

/// Where a client wanted to go, in its own words.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Asked {
    /// By address.
    Address(SocketAddr),
    /// By a CONNECT's authority.
    Authority(Arc<str>),
}

impl fmt::Display for Asked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Authority(authority) => authority.fmt(f),
        }
    }
}

impl Serialize for Asked {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A pod's connections as `/config_dump` shows them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Connections {
    /// From others to the pod.
    pub inbound: Vec<View>,
    /// From the pod.
    pub outbound: Vec<View>,
}

impl ConnTable {
    /// Registers an outbound connection: it is listed, not judged.
    #[must_use]
    pub fn open_outbound(&self, pod: &PodUid, view: View) -> Guard {
        self.open(pod, view, None)
    }

    /// Registers an inbound connection, before it is judged by [`Guard::authorize`].
    #[must_use]
    pub fn open_inbound(&self, pod: &PodUid, view: View, judged: Connection) -> Guard {
        self.open(pod, view, Some(judged))
    }

    fn open(&self, pod: &PodUid, view: View, judged: Option<Connection>) -> Guard {
        let mut inner = self.inner.borrow_mut();
        let id = inner.next;
        inner.next += 1;
        let entry = Rc::new(Entry {
            pod: pod.clone(),
            view,
            judged: judged.map(|by| Box::new(RefCell::new(Judged { by, admitted: false, neighbour: None }))),
            certificate: RefCell::default(),
            cut: Cut::default(),
            traffic: RefCell::default(),
        });
        inner.entries.insert(id, entry.clone());
        Guard { table: self.clone(), id, entry }
    }

    /// Registers an accepted tunnel: `cancel` is forced once the certificate is revoked.
    #[must_use]
    pub fn open_tunnel(&self, certificate: Arc<PeerCertificate>, cancel: Cancel) -> TunnelGuard {
        let mut inner = self.inner.borrow_mut();
        let id = inner.next;
        inner.next += 1;
        inner.tunnels.insert(id, Tunnel { certificate, cancel });
        TunnelGuard { table: self.clone(), id }
    }

    /// Cuts all connections, in both directions, and all tunnels whose peer is revoked. Returns how many connections.
    pub fn cut_revoked(&self, revocations: &Revocations) -> usize {
        let inner = self.inner.borrow();
        let mut cuts = 0;
        for entry in inner.entries.values() {
            if entry.certificate.borrow().as_ref().is_some_and(|c| revocations.is_revoked(c)) {
                cuts += usize::from(entry.cut.cut(revoked()));
            }
        }
        // After their connections, which are to say why they ended.
        for tunnel in inner.tunnels.values().filter(|t| revocations.is_revoked(&t.certificate)) {
            tunnel.cancel.force();
        }
        cuts
    }

    /// Cuts all connections of a pod, or of all.
    pub fn cut_all(&self, pod: Option<&PodUid>, failure: &Failure) {
        for entry in self.inner.borrow().entries.values().filter(|e| pod.is_none_or(|pod| e.pod == *pod)) {
            entry.cut.cut(failure.clone());
        }
    }

    /// Judges all inbound connections by a new state and cuts those that it doesn't allow. Returns how many had been
    /// let in; the others end as refused.
    ///
    /// `policies_changed`: judge all; otherwise only those whose own workload changed.
    pub fn reauthorize(&self, state: &MeshState, policies_changed: bool) -> usize {
        let mut cuts = 0;
        for entry in self.inner.borrow().entries.values() {
            let Some(judged) = &entry.judged else { continue };
            let Judged { by: judged, admitted, neighbour } = &mut *judged.borrow_mut();
            let current = state.workload_by_uid(&judged.destination.uid);
            let workload_changed = match &current {
                Some(current) => {
                    !Arc::ptr_eq(current, &judged.destination) && judges_differ(current, &judged.destination)
                }
                // A workload that is gone is being deleted: the node agent says when its connections end.
                None => false,
            };
            if let Some(current) = current {
                judged.destination = current.clone();
            }
            if let Some(source) = neighbour
                && !permitted(state.workload_by_uid(&source.uid), Some(&judged.destination))
            {
                cuts += usize::from(entry.cut.cut(no_longer_permitted()) && *admitted);
                continue;
            }
            if !(policies_changed || workload_changed) {
                continue;
            }
            let verdict = authz::authorize(state, judged);
            if matches!(verdict.decision, Decision::Pending(_)) {
                // The last verdict holds until the policy comes, or is given up: both are changes of policies.
                continue;
            }
            if let Err(denied) = verdict::check(state, &judged.destination, &verdict) {
                let message = "connection closed due to policy change".to_owned();
                let failure = match *admitted {
                    true => Failure { reason: Reason::PolicyChanged, message, ..denied },
                    false => denied,
                };
                cuts += usize::from(entry.cut.cut(failure) && *admitted);
            }
        }
        cuts
    }

    /// Open connections.
    #[must_use]
    pub fn len(&self) -> usize {
        self.inner.borrow().entries.len()
    }

    /// Is there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Adds what the connections have carried to the metrics.
    pub fn flush_traffic(&self) {
        for entry in self.inner.borrow().entries.values() {
            if let Some(traffic) = &*entry.traffic.borrow() {
                traffic.flush();
            }
        }
    }

    /// All connections by pod.
    #[must_use]
    pub fn dump(&self) -> BTreeMap<PodUid, Connections> {
        let mut pods: BTreeMap<PodUid, Connections> = BTreeMap::new();
        for entry in self.inner.borrow().entries.values() {
            let pod = pods.entry(entry.pod.clone()).or_default();
            let list = if entry.judged.is_some() { &mut pod.inbound } else { &mut pod.outbound };
            list.push(entry.view.clone());
        }
        pods
    }
}

/// Only what policies look at: a changed health or capacity cuts nobody.
fn judges_differ(a: &Workload, b: &Workload) -> bool {
    a.authorization_policies != b.authorization_policies || a.namespace != b.namespace
}

fn no_longer_permitted() -> Failure {
    let message = "connection closed: it must be seen on the wire now, where a NetworkPolicy may be enforced";
    Failure::new(Reason::PolicyChanged, message)
}

fn revoked() -> Failure {
    Failure::new(Reason::CertificateRevoked, "connection closed: the peer's certificate is revoked")
}

impl Cut {
    fn cut(&self, failure: Failure) -> bool {
        let mut held = self.failure.borrow_mut();
        if held.is_some() {
            return false;
        }
        *held = Some(Box::new(failure));
        if let Some(waiter) = self.waiter.take() {
            waiter.wake();
        }
        true
    }
}

/// Why a connection may not be, or not yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The answer, unless there is a better one in time.
    pub failure: Failure,
    /// It hangs on a policy that is probably on its way.
    pub pending: bool,
}

/// A registered connection; it leaves the table when this is dropped.
#[derive(Debug)]
pub struct Guard {
    table: ConnTable,
    id: u64,
    entry: Rc<Entry>,
}

impl Guard {
    /// Judges the connection by `state`.
    pub fn authorize(&self, state: &MeshState, info_logging: bool) -> Result<(), Refusal> {
        let Some(judged) = &self.entry.judged else { return Ok(()) };
        let Judged { by: judged, admitted, .. } = &mut *judged.borrow_mut();
        // As the workload is by now: it may have changed while we waited.
        if let Some(current) = state.workload_by_uid(&judged.destination.uid) {
            judged.destination = current.clone();
        }
        let verdict = authz::authorize(state, judged);
        verdict::log(judged, &verdict, info_logging);
        let pending = matches!(verdict.decision, Decision::Pending(_));
        let checked = verdict::check(state, &judged.destination, &verdict);
        *admitted |= checked.is_ok();
        checked.map_err(|failure| Refusal { failure, pending })
    }

    /// Ties the connection to what its peer showed, and refuses it if that is revoked. From now on it is cut when it
    /// becomes so.
    pub fn bind(&self, certificate: Arc<PeerCertificate>, revocations: &Revocations) -> Result<(), Failure> {
        self.entry.certificate.replace(Some(certificate.clone()));
        // Bound first, asked second: lists that change in between come back as a cut.
        if revocations.is_revoked(&certificate) { Err(revoked()) } else { Ok(()) }
    }

    /// Marks a connection that nothing on the wire shows, from `source` on this node, and refuses it if that is not
    /// permitted. From now on it is cut when it becomes so.
    pub fn on_one_node(&self, source: Arc<Workload>, load: impl FnOnce() -> Arc<MeshState>) -> Result<(), Failure> {
        let Some(judged) = &self.entry.judged else { return Ok(()) };
        let Judged { by: judged, neighbour, .. } = &mut *judged.borrow_mut();
        let (client, server) = (source.uid.clone(), judged.destination.uid.clone());
        *neighbour = Some(source);
        // Marked first, asked second: what is published in between comes back as a cut.
        let state = load();
        let both = permitted(state.workload_by_uid(&client), state.workload_by_uid(&server));
        if both { Ok(()) } else { Err(no_longer_permitted()) }
    }

    /// Has its traffic show in the metrics while it runs.
    pub fn count(&self, traffic: Rc<Traffic>) {
        self.entry.traffic.replace(Some(traffic));
    }

    /// Ends when the connection has to be cut, and says why. For one waiter.
    pub async fn cut(&self) -> Failure {
        let cut = &self.entry.cut;
        poll_fn(|cx| {
            if let Some(failure) = &*cut.failure.borrow() {
                return Poll::Ready(Failure::clone(failure));
            }
            let mut waiter = cut.waiter.borrow_mut();
            if !waiter.as_ref().is_some_and(|waiter| waiter.will_wake(cx.waker())) {
                *waiter = Some(cx.waker().clone());
            }
            Poll::Pending
        })
        .await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.table.inner.borrow_mut().entries.remove(&self.id);
    }
}

/// A registered tunnel; it leaves the table when this is dropped.
#[derive(Debug)]
pub struct TunnelGuard {
    table: ConnTable,
    id: u64,
}

impl Drop for TunnelGuard {
    fn drop(&mut self) {
        self.table.inner.borrow_mut().tunnels.remove(&self.id);
    }
}

#[cfg(test)]
mod tests;
