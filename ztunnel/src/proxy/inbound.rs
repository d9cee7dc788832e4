//! Into a pod: HBONE on 15008.

use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;

use aquifer_core::address::NetworkAddress;
use aquifer_core::authz::Connection;
use aquifer_core::demand::Key;
use aquifer_core::hbone::{Authority, Forwarded};
use aquifer_core::identity::Identity;
use aquifer_core::inbound::{InboundRoute, Unroutable, route_on_demand};
use aquifer_core::proxy_protocol;
use aquifer_core::reason::Reason;
use aquifer_core::service::Service;
use aquifer_core::state::MeshState;
use aquifer_core::workload::Workload;
use aquifer_hbone::{ConnectRequest, Counters, H2Stream, TcpTransport, Unfit};
use aquifer_runtime::holding;
use aquifer_tls::{PeerCertificate, TlsStream, stream as tls};
use http::{HeaderMap, StatusCode};
use rustls::CommonState;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::time::Instant;

use super::conn_table::{Asked, Guard, View};
use super::connector::dial;
use super::pod::Pod;
use crate::metrics::{Parties, Reporter};
use crate::records::{self, Failure, Opening, Record};
use crate::socket;

/// One mTLS connection, whose streams all have one peer.
pub(super) struct Tunnel {
    pub(super) pod: Rc<Pod>,
    /// The client, or the waypoint.
    pub(super) peer: SocketAddr,
    /// Our end: the pod's address.
    pub(super) local: SocketAddr,
    pub(super) identity: Identity,
    pub(super) certificate: Option<Arc<PeerCertificate>>,
}

/// What a client wants.
pub(super) struct Wanted<'a> {
    pub(super) authority: Authority,
    /// The service that it means, as it says.
    pub(super) host: Option<String>,
    /// What else it says: read when it is not known otherwise.
    pub(super) headers: Option<&'a HeaderMap>,
}

/// A connection in the table, before it is judged.
struct Registered {
    guard: Guard,
    record: Record,
    workload: Arc<Workload>,
    target: InboundRoute,
}

/// A connection after its handshake.
struct Accepted {
    tls: TlsStream<TcpStream, (Option<Identity>, Option<Arc<PeerCertificate>>)>,
    identity: Identity,
    certificate: Option<Arc<PeerCertificate>>,
}

/// Serves one connection: TLS, then a task per CONNECT.
pub(super) async fn serve(pod: Rc<Pod>, tcp: TcpStream) {
    let (Ok(peer), Ok(local)) = (tcp.peer_addr(), tcp.local_addr()) else { return };
    let (peer, local) = (socket::canonical(peer), socket::canonical(local));
    let handshaken = tokio::select! {
        biased;
        () = pod.cancel.forced() => return,
        done = handshake(&pod, tcp) => done,
    };
    let Accepted { tls, identity, certificate } = match handshaken {
        Ok(done) => done,
        Err(failure) => {
            return records::refused(pod.metrics.shared(), Reporter::Destination, peer, local, &failure);
        }
    };
    pod.learn_in_passing(peer.ip()).await;
    // Ends with the pod, or alone when the client's certificate is revoked; its streams say why.
    let cancel = pod.cancel.child();
    let _registered = certificate.clone().map(|certificate| pod.table.open_tunnel(certificate, cancel.clone()));
    let tunnel = Rc::new(Tunnel { pod: pod.clone(), peer, local, identity, certificate });
    let each = |request| holding(pod.crew.keep(), stream(tunnel.clone(), request));
    let shared = &pod.shared;
    let refused = |unfit: &Unfit| {
        let failure = Failure::new(unfit.reason(), unfit.to_string());
        records::refused(pod.metrics.shared(), Reporter::Destination, peer, local, &failure);
    };
    let served = aquifer_hbone::serve_within(tls, &shared.server, &pod.budget, each, refused, cancel, &shared.tracker);
    if let Err(error) = served.await {
        if error.is_disconnect() {
            tracing::debug!(%peer, %error, "tunnel lost");
        } else {
            let failure = Failure::new(Reason::H2Failed, format!("http2 error: {error}"));
            records::refused(pod.metrics.shared(), Reporter::Destination, peer, local, &failure);
        }
    }
}

async fn handshake(pod: &Pod, tcp: TcpStream) -> Result<Accepted, Failure> {
    // One for all of it: a caller must not be kept by a certificate that doesn't come.
    let deadline = Instant::now() + pod.shared.config.handshake_timeout;
    let configs = pod.identity_configs(deadline).await?;
    let inspect = |state: &CommonState| (aquifer_tls::peer_identity(state), configs.client_of(state));
    let accept = tls::accept(configs.server.clone(), tcp, inspect);
    let tls = tokio::time::timeout_at(deadline, accept)
        .await
        .map_err(|_| Failure::new(Reason::TlsTimeout, "tls handshake timed out"))?
        .map_err(|e| {
            Failure::new(aquifer_tls::reason_of(&e), format!("tls handshake error: {}", aquifer_tls::explain(&e)))
        })?;
    // The verifier demands one; to go on without would be to trust nobody in particular.
    let (identity, certificate) = tls.peer().clone();
    let identity =
        identity.ok_or_else(|| Failure::new(Reason::PeerCertificateInvalid, "peer without a SPIFFE identity"))?;
    Ok(Accepted { tls, identity, certificate })
}

/// Takes one CONNECT from its headers to its record.
fn stream(tunnel: Rc<Tunnel>, request: ConnectRequest) -> impl Future<Output = ()> {
    let pod = tunnel.pod.clone();
    // Boxed, and gone before bytes flow: an open connection holds no room for how it was opened. Outside of the task,
    // which would keep a place for the request.
    let open = Box::pin(async move { open(&tunnel, request).await });
    async move {
        let Some(Open { mut stream, mut upstream, guard, record }) = open.await else { return };
        let outcome = pod.copy(&guard, &mut stream, &mut upstream, &record.traffic()).await;
        drop((stream, upstream));
        record.finish(outcome.as_ref().copied());
    }
}

/// A connection whose bytes can flow.
struct Open {
    stream: H2Stream,
    upstream: TcpTransport,
    guard: Guard,
    record: Record,
}

/// All that comes before. `None`: it came to nothing, which is recorded.
async fn open(tunnel: &Tunnel, request: ConnectRequest) -> Option<Open> {
    let wanted = wanted(&request).map_err(|failure| tunnel.refused(failure));
    let registered = match wanted {
        Ok(wanted) => tunnel.register(wanted, Rc::default()).await,
        Err(failure) => Err(failure),
    };
    let Registered { guard, record, workload, target } = match registered {
        Ok(registered) => registered,
        Err(failure) => {
            request.refuse(status(failure.reason));
            return None;
        }
    };
    match connect(tunnel, &guard, &workload, &target, request).await {
        Ok((stream, upstream)) => Some(Open { stream, upstream, guard, record }),
        Err(failure) => {
            record.finish(Err(&failure));
            None
        }
    }
}

fn wanted(request: &ConnectRequest) -> Result<Wanted<'_>, Failure> {
    let text = request.authority();
    let authority =
        text.parse().map_err(|e| Failure::new(Reason::InvalidAuthority, format!("invalid authority {text:?}: {e}")))?;
    Ok(Wanted { authority, host: forwarded_host(request.headers()), headers: Some(request.headers()) })
}

async fn connect(
    tunnel: &Tunnel,
    guard: &Guard,
    workload: &Arc<Workload>,
    target: &InboundRoute,
    mut request: ConnectRequest,
) -> Result<(H2Stream, TcpTransport), Failure> {
    let pod = &tunnel.pod;
    let gone = async {
        request.abandoned().await;
        given_up()
    };
    let upstream = match tunnel.dial(guard, target, gone).await {
        Ok(upstream) => upstream,
        // Nobody waits for an answer, so none is given.
        Err(failure) if failure.reason == Reason::ClientGone => return Err(failure),
        Err(failure) => {
            request.refuse(status(failure.reason));
            return Err(failure);
        }
    };
    let stream = request
        .accept(response_headers(pod, workload))
        .map_err(|e| Failure::new(Reason::TunnelClosed, format!("http2 error: {e}")))?;
    Ok((stream, upstream))
}

/// Takes a connection of a pod on this worker up to where bytes can flow: what [`open`] does, with no request to answer.
/// A refusal is recorded; its status is the answer. Given up, it is recorded too.
pub(super) async fn join(
    tunnel: &Tunnel,
    wanted: Wanted<'_>,
    source: &Arc<Workload>,
    counters: Rc<Counters>,
) -> Result<(TcpTransport, Guard, Record), StatusCode> {
    let registered = tunnel.register(wanted, counters).await.map_err(|failure| status(failure.reason))?;
    let Registered { guard, record, target, .. } = registered;
    let awaited = Awaited(Some(record));
    let connected = match guard.on_one_node(source.clone(), || tunnel.pod.shared.state.load()) {
        Ok(()) => tunnel.dial(&guard, &target, std::future::pending()).await,
        Err(failure) => Err(failure),
    };
    let record = awaited.answered();
    match connected {
        Ok(upstream) => Ok((upstream, guard, record)),
        Err(failure) => {
            record.finish(Err(&failure));
            Err(status(failure.reason))
        }
    }
}

/// The record of a connection whose client waits, and may stop waiting.
struct Awaited(Option<Record>);

impl Awaited {
    fn answered(mut self) -> Record {
        self.0.take().expect("only dropping takes it, too")
    }
}

impl Drop for Awaited {
    fn drop(&mut self) {
        if let Some(record) = self.0.take() {
            record.finish(Err(&given_up()));
        }
    }
}

fn given_up() -> Failure {
    Failure::new(Reason::ClientGone, "the client gave up before it was answered")
}

/// The connection to the application, if policies allow it.
pub(super) async fn authorized_connect(
    pod: &Pod,
    guard: &Guard,
    target: &InboundRoute,
    client: SocketAddr,
    identity: Option<&Identity>,
) -> Result<TcpStream, Failure> {
    // After the registration: what is published from now on comes back as a cut.
    pod.admit(guard).await?;
    let hop = target.hop(pod.shared.config.localhost_app_tunnel);
    let spoofed = if hop.as_client { pod.spoof_source(client.ip(), hop.address) } else { None };
    let options = pod.shared.config.tcp.within_pod();
    let dialled = dial(&pod.shared, &pod.netns, hop.address, spoofed, &options).await;
    let failed = |reason, error: &std::io::Error| Failure::new(reason, format!("connection failed: {error}"));
    let mut stream = dialled.map_err(|e| failed(e.reason, &e.error))?;
    if hop.proxy_header {
        let header = proxy_protocol::header(client, target.asked, identity);
        stream.write_all(&header).await.map_err(|e| failed(Reason::ConnectFailed, &e))?;
    }
    Ok(stream)
}

impl Tunnel {
    /// Everything up to the table. A refusal is recorded.
    async fn register(&self, wanted: Wanted<'_>, counters: Rc<Counters>) -> Result<Registered, Failure> {
        let since = Instant::now();
        let pod = &self.pod;
        let Wanted { authority, host, headers } = wanted;
        let (state, workload, target) = self.target(&authority).await.map_err(|failure| self.refused(failure))?;
        let service = target.service.clone().or_else(|| guess_service(&state, &workload, host, target.upstream));
        let known = source_workload(&state, pod, self.peer.ip(), Some(&self.identity));
        let asked: Arc<str> = authority.to_string().into();
        let opening = Opening {
            src: self.peer,
            dst: self.local,
            hbone_target: Some(asked.clone()),
            parties: Parties {
                reporter: Reporter::Destination,
                source: known.or_else(|| self.stranger(headers?)),
                source_identity: Some(self.identity.clone()),
                destination: Some(workload.clone()),
                service,
            },
            since,
        };
        let view = View {
            src: self.peer,
            original_dst: Some(Asked::Authority(asked)),
            actual_dst: target.upstream,
            protocol: "HBONE",
        };
        let judged = Connection {
            destination: workload.clone(),
            identity: Some(self.identity.clone()),
            source_ip: self.peer.ip(),
            destination_addr: target.upstream,
        };
        let guard = pod.table.open_inbound(&pod.uid, view, judged);
        let record = Record::open_counted(opening, &pod.metrics, counters);
        guard.count(record.traffic());
        Ok(Registered { guard, record, workload, target })
    }

    /// Reaches the application, unless the connection must end before, or its client is `gone`.
    async fn dial(
        &self,
        guard: &Guard,
        target: &InboundRoute,
        gone: impl Future<Output = Failure>,
    ) -> Result<TcpTransport, Failure> {
        let pod = &self.pod;
        pod.bind(guard, self.certificate.as_ref(), Reporter::Destination)?;
        tokio::select! {
            biased; // The end first: nothing may begin after it.
            failure = pod.must_end(guard) => Err(failure),
            gone = gone => Err(gone),
            connected = authorized_connect(pod, guard, target, self.peer, Some(&self.identity)) => {
                connected.map(TcpTransport::new)
            }
        }
    }

    /// The client as it describes itself. Behind a gateway its address is the gateway's.
    fn stranger(&self, headers: &HeaderMap) -> Option<Arc<Workload>> {
        let said = headers.get("baggage")?.to_str().ok()?.parse().ok()?;
        self.pod.metrics.stranger(&self.identity, &said)
    }

    fn refused(&self, failure: Failure) -> Failure {
        records::refused(self.pod.metrics.shared(), Reporter::Destination, self.peer, self.local, &failure);
        failure
    }

    async fn target(&self, authority: &Authority) -> Result<(Arc<MeshState>, Arc<Workload>, InboundRoute), Failure> {
        let preferred = self.pod.shared.config.preferred_service_namespace.as_deref();
        let known = |key: &Key| self.pod.is_known(key);
        loop {
            let (state, workload) = self.pod.workload().await?;
            match route_on_demand(&state, &workload, self.local, authority, preferred, &known) {
                Ok(target) => return Ok((state, workload, target)),
                Err(Unroutable::Reject(reason)) => return Err(Failure::new(reason, unroutable(reason, authority))),
                Err(Unroutable::Need(key)) => self.pod.learn(&key).await?,
            }
        }
    }
}

#[cfg(test)]
pub(super) fn stream_task_size() -> usize {
    fn size<F: Future>(_: impl Fn(Rc<Tunnel>, ConnectRequest) -> F) -> usize {
        size_of::<F>()
    }
    size(stream)
}

fn unroutable(reason: Reason, authority: &Authority) -> String {
    match reason {
        Reason::IllegalPort => "attempted recursive call to ourselves".to_owned(),
        Reason::DestinationMismatch => format!("destination mismatch: {authority} is not served here"),
        Reason::ServiceUnknown => format!("unknown service: {authority}"),
        Reason::PortUnknown => format!("no usable port: {authority}"),
        reason => format!("{}: {authority}", reason.code().replace('_', " ")),
    }
}

/// The client's workload, for telemetry. What the certificate says outweighs whose address it is.
pub(super) fn source_workload(
    state: &MeshState,
    pod: &Pod,
    ip: IpAddr,
    identity: Option<&Identity>,
) -> Option<Arc<Workload>> {
    let address = NetworkAddress::new(pod.shared.config.network.clone(), ip);
    let found = state.workload_by_addr(&address)?;
    identity.is_none_or(|id| found.has_identity(id)).then(|| found.clone())
}

/// Which service was meant: the one that the client says, if the pod is part of it; else one that has this port.
pub(super) fn guess_service(
    state: &MeshState,
    workload: &Workload,
    said: Option<String>,
    upstream: SocketAddr,
) -> Option<Arc<Service>> {
    let mut own = workload.services.iter().filter_map(|(key, ports)| Some((state.service(key)?, ports)));
    match said {
        Some(host) if workload.services.keys().any(|key| *key.hostname == *host) => {
            own.find(|(service, _)| **service.hostname() == *host)
        }
        Some(_) | None => own.find(|(_, ports)| ports.ports.iter().any(|p| p.target_port == Some(upstream.port()))),
    }
    .map(|(service, _)| service.clone())
}

fn forwarded_host(headers: &HeaderMap) -> Option<String> {
    headers.get("forwarded")?.to_str().ok()?.parse::<Forwarded>().ok()?.host
}

fn response_headers(pod: &Pod, workload: &Arc<Workload>) -> HeaderMap {
    let mut headers = HeaderMap::new();
    if pod.shared.config.response_baggage
        && let Some(baggage) = pod.baggage(workload)
    {
        headers.insert("baggage", baggage);
    }
    headers
}

fn status(reason: Reason) -> StatusCode {
    StatusCode::from_u16(reason.http_status()).unwrap_or(StatusCode::SERVICE_UNAVAILABLE)
}
