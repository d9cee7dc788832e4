//! One pod on one worker: what all its connections share.

use std::cell::{Cell, RefCell};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use aquifer_core::address::NetworkAddress;
use aquifer_core::demand::Key;
use aquifer_core::hbone::Baggage;
use aquifer_core::identity::Identity;
use aquifer_core::reason::Reason;
use aquifer_core::state::MeshState;
use aquifer_core::store::Reader;
use aquifer_core::workload::Workload;
use aquifer_hbone::{Budget, Pool, PoolConfig, ServerConfig, TcpTransport, Transport, copy_bidirectional};
use aquifer_runtime::{Cancel, Tracker, holding};
use aquifer_tls::{CertManager, IdentityConfigs, PeerCertificate};
use http::HeaderValue;
use tokio::io::Interest;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::admit::admit;
use super::conn_table::{ConnTable, Guard};
use super::connector::{Connector, PoolKey};
use super::listeners::Listeners;
use super::same_node::Neighbours;
use super::spread::{Crew, Moved, Place};
use super::{inbound, outbound, passthrough};
use crate::config;
use crate::descriptors;
use crate::dns::lookup::Resolver;
use crate::dns::server::{self as dns_server, Local};
use crate::dns::upstream::Upstream;
use crate::dns::{Dns, UPSTREAM_LIMIT};
use crate::inpod::handover::{Handed, Kind};
use crate::inpod::netns::{Netns, NetnsId};
use crate::inpod::zds::{PodUid, WorkloadInfo};
use crate::metrics::{Reporter, WorkerMetrics};
use crate::on_demand::OnDemand;
use crate::records::{Failure, Traffic};
use crate::socket::{self, OriginalSource};

/// A pod that was just enrolled may be known to us before its workload is.
const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// How long a connection waits for what only its record needs.
const IN_PASSING: Duration = Duration::from_secs(1);

/// What every worker and every pod share.
pub struct Shared {
    /// Settings of the data path.
    pub config: config::Proxy,
    /// The mesh.
    pub state: Reader,
    /// Ticks whenever the mesh was published anew.
    pub published: watch::Receiver<u64>,
    /// Certificates.
    pub certs: CertManager,
    /// The tasks of all workers.
    pub tracker: Tracker,
    /// The accepting side of HTTP/2.
    pub server: ServerConfig,
    /// The connecting side.
    pub pool: PoolConfig,
    /// Was it said that connections go on without their client's address?
    pub warned_unspoofed: AtomicBool,
    /// The DNS proxy of all pods, if there is one.
    pub dns: Option<Arc<Dns>>,
    /// Where workloads that are known by hostname are looked up.
    pub names: Resolver,
    /// Where workloads and services are asked for that are not known, if not all are sent anyway.
    pub on_demand: Option<Arc<OnDemand>>,
}

/// The worker that a pod is served on.
pub struct OnWorker<'a> {
    /// Its view of the counters.
    pub metrics: &'a Rc<WorkerMetrics>,
    /// Its connections.
    pub table: &'a ConnTable,
    /// Its ways to the other workers.
    pub crew: &'a Rc<Crew>,
    /// Its pods.
    pub neighbours: &'a Neighbours,
    /// Whether the others don't serve the pod.
    pub alone: bool,
}

/// One pod on one worker.
pub struct Pod {
    pub(super) shared: Arc<Shared>,
    pub(super) uid: PodUid,
    pub(super) info: WorkloadInfo,
    pub(super) netns: Netns,
    pub(super) metrics: Rc<WorkerMetrics>,
    pub(super) table: ConnTable,
    pub(super) crew: Rc<Crew>,
    pub(super) neighbours: Neighbours,
    /// No other worker serves it.
    alone: bool,
    pub(super) cancel: Cancel,
    pub(super) pool: Pool<PoolKey, Connector>,
    /// What the peers of the pod may have under way, on all workers together.
    pub(super) budget: Budget,
    /// Whether the pod has redirection rules (all but our own).
    redirected: bool,
    /// The namespace's addresses, as far as they were looked for.
    addresses: RefCell<Vec<IpAddr>>,
    /// What is listened on, as long as it is.
    listening: RefCell<Vec<(Kind, Weak<dyn AsFd>)>>,
    removed: Cell<bool>,
    /// The pod's description of itself, and of which state of its workload.
    baggage: RefCell<Option<(Arc<Workload>, HeaderValue)>>,
    /// The certificate of whom the agent says the pod is, while its workload isn't known.
    named: RefCell<Option<Wanted>>,
    active: Rc<Active>,
}

/// Tasks of the pod.
#[derive(Default)]
struct Active {
    count: Cell<usize>,
    none: Notify,
}

pub(super) struct ActiveGuard(Rc<Active>);

/// A certificate that is kept as long as this lives.
struct Wanted {
    certs: CertManager,
    identity: Identity,
}

impl Wanted {
    fn new(certs: &CertManager, identity: Identity) -> Self {
        certs.want(&identity);
        Self { certs: certs.clone(), identity }
    }
}

impl Drop for Wanted {
    fn drop(&mut self) {
        self.certs.forget(&self.identity);
    }
}

impl Drop for ActiveGuard {
    fn drop(&mut self) {
        let left = self.0.count.get() - 1;
        self.0.count.set(left);
        if left == 0 {
            self.0.none.notify_one();
        }
    }
}

impl Pod {
    /// Begins to serve a pod on this thread. Needs the worker's local runtime.
    pub fn start(
        shared: &Arc<Shared>,
        (uid, info, netns): (PodUid, WorkloadInfo, Netns),
        listeners: Listeners,
        OnWorker { metrics, table, crew, neighbours, alone }: OnWorker<'_>,
        cancel: Cancel,
        budget: Budget,
    ) -> std::io::Result<Rc<Self>> {
        let connector = Connector::new(shared.clone(), netns.clone());
        let (pooled, tracker) = (shared.pool.clone(), shared.tracker.clone());
        let pool = Pool::within(budget.clone(), connector, pooled, cancel.clone(), tracker);
        let pod = Rc::new(Self {
            shared: shared.clone(),
            uid,
            info,
            netns,
            metrics: metrics.clone(),
            table: table.clone(),
            crew: crew.clone(),
            neighbours: neighbours.clone(),
            alone,
            cancel,
            pool,
            budget,
            redirected: !listeners.outbound.is_empty(),
            addresses: RefCell::default(),
            listening: RefCell::default(),
            removed: Cell::new(false),
            baggage: RefCell::default(),
            named: RefCell::default(),
            active: Rc::default(),
        });
        let mut listeners = listeners.into_tokio()?;
        if let (Some(dns), Some(sockets)) = (&shared.dns, listeners.dns.take()) {
            let upstream = Upstream::new(dns.servers.clone(), pod.netns.clone(), shared.config.tcp, UPSTREAM_LIMIT);
            let served = dns_server::serve(LocalPod(pod.clone()), dns.clone(), upstream, sockets)?;
            let mut listening = pod.listening.borrow_mut();
            listening.extend(served.udp.into_iter().map(|socket| (Kind::DnsUdp, socket as Weak<dyn AsFd>)));
            listening.extend(served.tcp.into_iter().map(|socket| (Kind::DnsTcp, socket as Weak<dyn AsFd>)));
        }
        for listener in listeners.outbound {
            pod.accept(Kind::Outbound, listener, outbound::serve);
        }
        for listener in listeners.plaintext {
            pod.accept(Kind::Plaintext, listener, passthrough::serve);
        }
        for listener in listeners.hbone {
            pod.accept(Kind::Hbone, listener, inbound::serve);
        }
        neighbours.add(&pod);
        Ok(pod)
    }

    /// Copies of the sockets that are listened on now, for the process after us.
    pub fn hand_over(&self) -> Handed {
        let listening = self.listening.borrow();
        let copies = listening.iter().filter_map(|(kind, socket)| {
            let copy = socket.upgrade()?.as_fd().try_clone_to_owned();
            copy.inspect_err(|error| tracing::warn!(pod = %self.info, %error, "cannot hand over"))
                .ok()
                .map(|fd| (*kind, fd))
        });
        copies.collect()
    }

    /// Whether it is in this namespace.
    #[must_use]
    pub fn is_in(&self, netns: NetnsId) -> bool {
        self.netns.id() == netns
    }

    /// Whether what the pod sends and receives comes to us: all pods' but our own.
    pub(super) fn is_redirected(&self) -> bool {
        self.redirected
    }

    /// Whether the namespace has this address. A pod keeps those that it has.
    pub(super) fn has_address(&self, ip: IpAddr) -> bool {
        if self.addresses.borrow().contains(&ip) {
            return true;
        }
        let found = self.netns.run(socket::addresses).flatten();
        let found = found.inspect_err(|error| tracing::warn!(pod = %self.info, %error, "cannot list its addresses"));
        let Ok(found) = found else { return false };
        let known = found.contains(&ip);
        *self.addresses.borrow_mut() = found;
        known
    }

    /// Cuts everything of the pod at once, and waits until it is gone.
    pub async fn remove(&self) {
        self.removed.set(true);
        // First, so that each connection says why it ended.
        self.table.cut_all(Some(&self.uid), &self.forced());
        self.cancel.force();
        let gone = async {
            while self.active.count.get() > 0 {
                self.active.none.notified().await;
            }
        };
        if tokio::time::timeout(Duration::from_secs(1), gone).await.is_err() {
            tracing::warn!(pod = %self.info, tasks = self.active.count.get(), "tasks outlive their pod");
        }
    }

    fn accept<F: Future<Output = ()> + 'static>(
        self: &Rc<Self>,
        kind: Kind,
        listener: TcpListener,
        serve: fn(Rc<Self>, TcpStream) -> F,
    ) {
        let name = match kind {
            Kind::Outbound => "outbound",
            Kind::Plaintext => "inbound-plaintext",
            Kind::Hbone => "inbound",
            Kind::DnsUdp | Kind::DnsTcp => "dns",
        };
        let listener = Rc::new(listener);
        let weak: Weak<TcpListener> = Rc::downgrade(&listener);
        self.listening.borrow_mut().push((kind, weak));
        let (pod, guard) = (self.clone(), self.enter());
        self.shared.tracker.spawn_local(name, async move {
            let _guard = guard;
            let each = |(stream, _peer): (TcpStream, _)| {
                let here = match pod.alone {
                    true => Some((stream, pod.crew.keep())),
                    false => pod.crew.place((&pod.uid, pod.netns.id()), kind, stream),
                };
                if let Some((stream, place)) = here {
                    pod.spawn(place, serve(pod.clone(), stream));
                }
            };
            let accept = || descriptors::accept(&listener);
            if let Err(error) = aquifer_runtime::accept_loop(name, accept, each, &pod.cancel).await {
                tracing::error!(pod = %pod.info, listener = name, %error, "listener stopped");
            }
        });
    }

    /// Serves a connection that another worker has accepted.
    pub fn take(self: &Rc<Self>, moved: Moved) {
        let Moved { kind, stream, place, on_its_way: _on_its_way, .. } = moved;
        let stream = match TcpStream::from_std(stream) {
            Ok(stream) => stream,
            Err(error) => return tracing::debug!(pod = %self.info, %error, "connection lost before it was served"),
        };
        let pod = self.clone();
        match kind {
            Kind::Outbound => self.spawn(place, outbound::serve(pod, stream)),
            Kind::Plaintext => self.spawn(place, passthrough::serve(pod, stream)),
            Kind::Hbone => self.spawn(place, inbound::serve(pod, stream)),
            // Served where they are accepted.
            Kind::DnsUdp | Kind::DnsTcp => {}
        }
    }

    fn spawn(&self, place: Place, connection: impl Future<Output = ()> + 'static) {
        self.shared.tracker.spawn_local("connection", holding((self.enter(), place), connection));
    }

    /// Counts a task of the pod, which is not gone before it.
    pub(super) fn enter(&self) -> ActiveGuard {
        self.active.count.set(self.active.count.get() + 1);
        ActiveGuard(self.active.clone())
    }

    /// This pod's workload and the snapshot that it is from; waits for it if it isn't known yet.
    pub(super) async fn workload(&self) -> Result<(Arc<MeshState>, Arc<Workload>), Failure> {
        let mut published = self.shared.published.clone();
        let find = async {
            loop {
                // Seen first, read second: a publication in between wakes us again.
                published.borrow_and_update();
                let state = self.shared.state.load();
                if let Some(workload) = self.find_in(&state) {
                    return (state, workload);
                }
                if published.changed().await.is_err() {
                    std::future::pending::<()>().await;
                }
            }
        };
        tokio::select! {
            biased;
            () = self.cancel.forced() => Err(self.forced()),
            found = tokio::time::timeout(WORKLOAD_WAIT, find) => {
                found.map_err(|_| Failure::new(Reason::WorkloadUnknown, format!("unknown workload: {}", self.info)))
            }
        }
    }

    /// With what the pod answers TLS: its workload's certificate. Until that one is known, the certificate of whom the
    /// node agent says it is, so that callers are refused with a reason rather than by silence.
    /// Waits until `deadline`, and not longer than it waits for the workload.
    pub(super) async fn identity_configs(&self, deadline: Instant) -> Result<Arc<IdentityConfigs>, Failure> {
        let certs = &self.shared.certs;
        let by_workload = async {
            let (_, workload) = self.workload().await?;
            let configs = certs.get(&workload.identity(), deadline).await;
            configs.map_err(|e| Failure::new(e.reason(), format!("identity error: {e}")))
        };
        if self.find_in(&self.shared.state.load()).is_some() {
            self.named.take();
            return by_workload.await;
        }
        let WorkloadInfo { namespace, service_account, .. } = &self.info;
        let identity = Identity::new(&*self.shared.config.trust_domain, &**namespace, &**service_account);
        // Kept, or each caller would cost a certificate.
        self.named.borrow_mut().get_or_insert_with(|| Wanted::new(certs, identity.clone()));
        let by_name = async {
            match certs.get(&identity, deadline).await {
                Ok(configs) => configs,
                // The authority may not know the pod either, or be of another trust domain.
                Err(error) => {
                    tracing::debug!(pod = %self.info, %error, "no certificate for a pod without workload");
                    std::future::pending().await
                }
            }
        };
        tokio::select! {
            biased;
            by_workload = by_workload => by_workload,
            by_name = by_name => Ok(by_name),
        }
    }

    /// Whether what isn't in the state under this key doesn't exist.
    pub(super) fn is_known(&self, key: &Key) -> bool {
        self.shared.on_demand.as_ref().is_none_or(|on_demand| on_demand.is_known(key))
    }

    /// Waits for the control plane's answer; it is in the state then, or known not to exist.
    pub(super) async fn learn(&self, key: &Key) -> Result<(), Failure> {
        let Some(on_demand) = &self.shared.on_demand else { return Ok(()) };
        tokio::select! {
            biased;
            () = self.cancel.forced() => Err(self.forced()),
            asked = on_demand.ask(key) => {
                asked.map_err(|e| Failure::new(Reason::DiscoveryTimeout, format!("{key}: {e}")))
            }
        }
    }

    /// The same for whom we only want to name in records: not for long, and it may come to nothing.
    pub(super) async fn learn_in_passing(&self, ip: IpAddr) {
        if self.shared.on_demand.is_none() {
            return;
        }
        let address = NetworkAddress::new(self.shared.config.network.clone(), ip);
        let key = Key::Address(address.clone());
        if self.shared.state.load().workload_by_addr(&address).is_none() && !self.is_known(&key) {
            let _ = tokio::time::timeout(IN_PASSING, self.learn(&key)).await;
        }
    }

    /// Lets a connection into the pod, if policies do.
    pub(super) async fn admit(&self, guard: &Guard) -> Result<(), Failure> {
        let Shared { config, state, published, .. } = &*self.shared;
        let wait = config.unknown_policies.wait;
        admit(guard, || state.load(), published.clone(), wait, config.authz_info_logging).await
    }

    /// How the pod describes itself to peers, for their telemetry. Names come from the control plane; with one that can't
    /// be a header there is none.
    pub(super) fn baggage(&self, workload: &Arc<Workload>) -> Option<HeaderValue> {
        let mut kept = self.baggage.borrow_mut();
        match &*kept {
            Some((of, value)) if Arc::ptr_eq(of, workload) => Some(value.clone()),
            Some(_) | None => {
                let value = HeaderValue::try_from(Baggage::of(workload).to_string()).ok()?;
                *kept = Some((workload.clone(), value.clone()));
                Some(value)
            }
        }
    }

    pub(super) fn find_in(&self, state: &MeshState) -> Option<Arc<Workload>> {
        let WorkloadInfo { name, namespace, service_account } = &self.info;
        state.local_workload(&self.shared.config.node, name, namespace, service_account).cloned()
    }

    /// Ties a connection over mTLS to what its peer showed, and refuses it if that is revoked by now.
    pub(super) fn bind(
        &self,
        guard: &Guard,
        certificate: Option<&Arc<PeerCertificate>>,
        reporter: Reporter,
    ) -> Result<(), Failure> {
        let revocations = self.shared.certs.revocations();
        match certificate {
            Some(certificate) => guard.bind(certificate.clone(), revocations),
            None => {
                // No list will ever cut it.
                self.metrics.shared().untracked(reporter);
                Ok(())
            }
        }
    }

    /// Ends when a connection of this pod must end, and says why. The end of the pod, or of all, cuts what is in the
    /// table: a connection that waited for it itself would hold a place in a list that all workers share.
    pub(super) async fn must_end(&self, guard: &Guard) -> Failure {
        if self.cancel.is_forced() {
            return self.forced();
        }
        guard.cut().await
    }

    /// The address that the application shall see: the client's, unless the client is the pod itself, or this is our
    /// own pod, whose namespace has no route for the answers.
    pub(super) fn spoof_source(&self, client: IpAddr, upstream: SocketAddr) -> Option<IpAddr> {
        let off = self.shared.config.original_source == OriginalSource::Off;
        (!off && self.redirected && client != upstream.ip()).then_some(client)
    }

    fn forced(&self) -> Failure {
        if self.removed.get() {
            Failure::new(Reason::PodRemoved, "connection closed because the pod left the mesh")
        } else {
            shutdown()
        }
    }

    /// Copies until both directions have ended, a stream breaks, or the connection must end; then both peers see a
    /// broken connection, not an orderly end.
    pub(super) async fn copy<D: Transport, U: Transport>(
        &self,
        guard: &Guard,
        downstream: &mut D,
        upstream: &mut U,
        traffic: &Traffic,
    ) -> Result<(), Failure> {
        let ended = tokio::select! {
            biased; // The cut first: a busy connection must not outlive its permission.
            failure = self.must_end(guard) => Err(failure),
            copied = copy_bidirectional(downstream, upstream, &traffic.counters) => {
                return copied.map_err(|e| match self.cancel.is_forced() {
                    // The tunnel may hear of the end before us.
                    true => self.forced(),
                    false => Failure::new(Reason::ConnectionReset, format!("io error: {e}")),
                });
            }
        };
        downstream.abort();
        upstream.abort();
        ended
    }
}

/// Why connections end that outlive the drain.
pub(super) fn shutdown() -> Failure {
    Failure::new(Reason::Shutdown, "connection closed due to connection drain")
}

/// A pod as its DNS proxy sees it.
struct LocalPod(Rc<Pod>);

impl Local for LocalPod {
    async fn workload(&self) -> Option<(Arc<MeshState>, Arc<Workload>)> {
        self.0.workload().await.ok()
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.0.shared.tracker.spawn_local(name, holding(self.0.enter(), task));
    }

    fn cancel(&self) -> &Cancel {
        &self.0.cancel
    }
}

/// Ends when the client of a connection that is still being made has reset it. A client that has only ended its own
/// direction may well wait for the answer.
pub(super) async fn left(client: &TcpStream) -> Failure {
    match client.ready(Interest::ERROR).await {
        Ok(_) => Failure::new(Reason::ClientGone, "the client left before it was connected"),
        // Not to be known then; the copy will see.
        Err(_) => std::future::pending().await,
    }
}

/// Closes a connection that came to nothing, as a refusing target would.
pub(super) fn refuse(client: TcpStream) {
    TcpTransport::new(client).abort();
}

#[cfg(test)]
#[path = "pod/tests.rs"]
mod tests;
