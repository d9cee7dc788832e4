//! From a pod to a pod that this worker serves as well: bytes go from one to the other with no tunnel in between.
//!
//! ```text
//!   the tunnel       client ── copy ── HTTP/2, TLS, TCP 15008, TLS, HTTP/2 ── copy ── application
//!   on one node      client ───────────────────── copy ─────────────────────────── application
//! ```
//!
//! Whatever a tunnel's two ends do is done here too, by the same functions: both certificates are verified as in a
//! handshake, the destination checks, registers, authorizes and dials in its own namespace, either end's cut ends both, and
//! both report. Only a connection for which a tunnel would stand at once comes here; every other one goes through a
//! tunnel, whose ends say what is wrong. And only between pods for which the control plane permits it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;

use aquifer_core::hbone::Authority;
use aquifer_core::identity::Identity;
use aquifer_core::inbound::HBONE_PORT;
use aquifer_core::reason::Reason;
use aquifer_core::resolve::{Route, Tunnel};
use aquifer_core::workload::Workload;
use aquifer_hbone::{TcpTransport, Transport};
use aquifer_runtime::aside;
use aquifer_tls::{IdentityConfigs, Met, meet};
use rustls::pki_types::UnixTime;

use super::conn_table::Guard;
use super::connector::status_failure;
use super::inbound;
use super::pod::{ActiveGuard, Pod};
use crate::inpod::zds::WorkloadInfo;
use crate::metrics::Reporter;
use crate::records::{Failure, Record, Traffic};

/// Pairs of certificates that a worker remembers at most; beyond, it forgets all and begins anew.
const MET_KEPT: usize = 1024;

/// The pods of one worker, as they find each other. Clones are the same.
#[derive(Clone, Default)]
pub struct Neighbours {
    pods: Rc<RefCell<HashMap<WorkloadInfo, Vec<Weak<Pod>>>>>,
    /// By the generations of the client's and the server's certificates.
    met: Rc<RefCell<HashMap<(u64, u64), Met>>>,
}

impl Neighbours {
    /// Lets a pod be found until it is dropped.
    pub(super) fn add(&self, pod: &Rc<Pod>) {
        let mut pods = self.pods.borrow_mut();
        pods.retain(|_, namesakes| {
            namesakes.retain(|pod| pod.strong_count() > 0);
            !namesakes.is_empty()
        });
        pods.entry(pod.info.clone()).or_default().push(Rc::downgrade(pod));
    }

    /// The pod of this name, if it is the only one: one that is recreated may be here twice for a while.
    fn find(&self, workload: &Workload) -> Option<Rc<Pod>> {
        let info = WorkloadInfo {
            name: workload.name().to_string().into(),
            namespace: workload.namespace.clone(),
            service_account: workload.service_account.clone(),
        };
        let pods = self.pods.borrow();
        let mut alive = pods.get(&info)?.iter().filter_map(Weak::upgrade).filter(|pod| !pod.cancel.is_forced());
        let pod = alive.next()?;
        alive.next().is_none().then_some(pod)
    }

    /// What the two would learn of each other in a handshake, if it would succeed. Verified once for each pair of
    /// certificates; whether they are valid by now and not revoked is the caller's to ask.
    fn meet(&self, client: &IdentityConfigs, server: &IdentityConfigs) -> Option<Met> {
        let generations = (client.generation, server.generation);
        if let Some(met) = self.met.borrow().get(&generations) {
            return Some(met.clone());
        }
        let found = meet(client, server, UnixTime::now());
        let met = found.inspect_err(|error| tracing::debug!(%error, "neighbours that don't know each other")).ok()?;
        let mut all = self.met.borrow_mut();
        if all.len() >= MET_KEPT {
            all.clear();
        }
        all.insert(generations, met.clone());
        Some(met)
    }
}

/// A destination on this worker, and what a handshake with it would have shown.
pub(super) struct Neighbour {
    pod: Rc<Pod>,
    met: Met,
    authority: Authority,
    identity: Identity,
}

/// The pod where a route ends, if a connection of `src` may be handed to it. No: the tunnel is for it.
pub(super) fn neighbour(pod: &Pod, route: &Route, src: SocketAddr) -> Option<Neighbour> {
    let Tunnel::Hbone { authority, expect } = &route.tunnel else { return None };
    let (source, destination, hop) = (&route.source, route.destination.as_ref()?, route.next_hop);
    let shared = &*pod.shared;
    if !(shared.config.same_node && source.same_node && destination.same_node) {
        return None;
    }
    // To the workload itself: a waypoint is reached for somebody else.
    let authority: Authority = authority.parse().ok()?;
    let direct = hop.port() == HBONE_PORT && matches!(&authority, Authority::Ip(target) if target.ip() == hop.ip());
    // Our end of the tunnel would have the pod's own address; a client may use any that it has given itself.
    let own = source.addresses.contains(&src.ip()) && src.is_ipv4() == hop.is_ipv4();
    let here = destination.node[..] == shared.config.node && !destination.native_tunnel;
    if !(direct && own && here && destination.addresses.contains(&hop.ip())) {
        return None;
    }
    let other =
        pod.neighbours.find(destination).filter(|other| other.is_redirected() && other.has_address(hop.ip()))?;
    if other.find_in(&shared.state.load())?.uid != destination.uid {
        return None;
    }
    let (identity, theirs) = (source.identity(), destination.identity());
    let (client, server) = (shared.certs.current(&identity)?, shared.certs.current(&theirs)?);
    let met = pod.neighbours.meet(&client, &server).filter(|_| expect.contains(&theirs))?;
    let revocations = shared.certs.revocations();
    if revocations.is_revoked(&met.client) || revocations.is_revoked(&met.server) {
        return None;
    }
    Some(Neighbour { pod: other, met, authority, identity })
}

impl Neighbour {
    /// Has the destination take the connection. Failures are those of a client whose tunnel's other end refuses.
    pub(super) async fn connect(
        self,
        pod: &Pod,
        guard: &Guard,
        route: &Route,
        (src, traffic): (SocketAddr, &Traffic),
    ) -> Result<Joined, Failure> {
        pod.bind(guard, Some(&self.met.server), Reporter::Source)?;
        let tunnel = inbound::Tunnel {
            pod: self.pod,
            peer: src,
            local: route.next_hop,
            identity: self.identity,
            certificate: Some(self.met.client),
        };
        let active = tunnel.pod.enter();
        let host = route.service.as_ref().map(|service| service.hostname().to_string());
        let wanted = inbound::Wanted { authority: self.authority, host, headers: None };
        let joined = inbound::join(&tunnel, wanted, &route.source, traffic.counters.clone()).await;
        let (stream, guard, record) = joined.map_err(status_failure)?;
        Ok(Joined { pod: tunnel.pod, stream, guard, record, _active: active })
    }
}

/// The destination's end of a connection whose bytes can flow.
pub(super) struct Joined {
    pod: Rc<Pod>,
    stream: TcpTransport,
    guard: Guard,
    record: Record,
    /// The destination isn't gone before its connections are.
    _active: ActiveGuard,
}

impl Joined {
    /// Copies as long as both ends may, and finishes the destination's record; the outcome is the source's.
    pub(super) async fn copy(
        self,
        pod: &Pod,
        guard: &Guard,
        client: &mut TcpTransport,
        traffic: &Traffic,
    ) -> Result<(), Failure> {
        let Self { pod: other, mut stream, guard: theirs, record, _active } = self;
        let (here, there) = tokio::select! {
            biased; // The cut first: a busy connection must not outlive its permission.
            failure = aside(other.must_end(&theirs)) => {
                client.abort();
                stream.abort();
                (Err(at_once(pod, guard).await), Err(failure))
            }
            copied = pod.copy(guard, client, &mut stream, traffic) => match copied {
                // It broke: both ends have seen it.
                Ok(()) => (Ok(()), Ok(())),
                Err(failure) if failure.reason == Reason::ConnectionReset => (Err(failure.clone()), Err(failure)),
                Err(failure) => (Err(failure), Err(at_once(&other, &theirs).await)),
            },
        };
        drop(stream);
        record.finish(there.as_ref().copied());
        here
    }
}

/// Why one end's connection ends when the other end is cut: for reasons of its own, or as a broken tunnel ends.
async fn at_once(pod: &Pod, guard: &Guard) -> Failure {
    tokio::select! {
        biased;
        failure = pod.must_end(guard) => failure,
        () = std::future::ready(()) => {
            Failure::new(Reason::ConnectionReset, "io error: connection reset by the proxy of the other pod")
        }
    }
}

/// Whether the control plane still permits what is open between the two. Those that are gone are being deleted: the node
/// agent says when their connections end.
pub(super) fn permitted(source: Option<&Arc<Workload>>, destination: Option<&Arc<Workload>>) -> bool {
    [source, destination].into_iter().flatten().all(|workload| workload.same_node)
}
