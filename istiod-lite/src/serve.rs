//! Listening: ports bound before anything else starts, gRPC over them with and without TLS.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use aquifer_runtime::{Cancel, Tracker, accept_loop};
use aquifer_xds::server::{Hangup, PeerCerts};
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::ServerConfig;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tonic::body::Body;
use tonic::codegen::Service;
use tonic::server::NamedService;
use tonic::transport::server::TcpConnectInfo;

/// A peer that connects and stays silent holds a descriptor no longer than this.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Dead peers are noticed by unanswered pings, as Istio's clients do (30 s, 10 s).
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// A client has two streams and some certificate calls; more than this on a connection is abuse.
const MAX_STREAMS: u32 = 100;
/// What a client may send before somebody reads it: on a stream, and on all of its connection's.
const STREAM_WINDOW: u32 = 64 * 1024;
const CONNECTION_WINDOW: u32 = 256 * 1024;
/// What lies ready for a client that doesn't take it: of a stream, and encrypted.
const SEND_BUFFER: usize = 32 * 1024;
const TLS_BUFFER: usize = 32 * 1024;

type Request = http::Request<Incoming>;
type Response = http::Response<Body>;

/// The gRPC services of one port. A service that is absent does not exist there.
#[derive(Clone)]
pub struct Services<X, C> {
    /// Discovery.
    pub xds: X,
    /// The certificate authority, where it is served.
    pub ca: Option<C>,
}

/// A generated gRPC server.
pub trait Grpc:
    Service<Request, Response = Response, Error = Infallible, Future: Send> + NamedService + Clone + Send + Sync + 'static
{
}

impl<S> Grpc for S where
    S: Service<Request, Response = Response, Error = Infallible, Future: Send>
        + NamedService
        + Clone
        + Send
        + Sync
        + 'static
{
}

impl<X: Grpc, C: Grpc> Services<X, C> {
    async fn call(self, request: Request) -> Result<Response, Infallible> {
        let Self { mut xds, ca } = self;
        let path = request.uri().path();
        if names::<X>(path) {
            return xds.call(request).await;
        }
        match ca {
            Some(mut ca) if names::<C>(path) => ca.call(request).await,
            _ => Ok(tonic::Status::unimplemented("no such service on this port").into_http()),
        }
    }
}

/// Whether `/<service>/<method>` is of service `S`.
fn names<S: NamedService>(path: &str) -> bool {
    path.strip_prefix('/').and_then(|p| p.split_once('/')).is_some_and(|(name, _)| name == S::NAME)
}

/// Binds `address`; a wildcard takes both families where the machine has both. `setting` is the
/// variable that a person would change.
pub async fn bind(setting: &str, address: SocketAddr) -> anyhow::Result<TcpListener> {
    let bound = match TcpListener::bind(address).await {
        Err(e) if address.is_ipv6() && address.ip().is_unspecified() && no_ipv6(&e) => {
            TcpListener::bind((Ipv4Addr::UNSPECIFIED, address.port())).await
        }
        bound => bound,
    };
    bound.with_context(|| format!("{setting}: cannot listen on {address}"))
}

fn no_ipv6(error: &io::Error) -> bool {
    const EAFNOSUPPORT: i32 = 97;
    error.kind() == io::ErrorKind::AddrNotAvailable || error.raw_os_error() == Some(EAFNOSUPPORT)
}

/// Serves `services` until the drain, with TLS if there is a configuration for it.
pub fn grpc<X: Grpc, C: Grpc>(
    name: &'static str,
    listener: TcpListener,
    tls: Option<Arc<ServerConfig>>,
    services: Services<X, C>,
    tracker: &Tracker,
    cancel: &Cancel,
) {
    let (connections, cancel) = (tracker.clone(), cancel.clone());
    let acceptor = tls.map(TlsAcceptor::from);
    tracker.spawn(name, async move {
        // Each connection is a task from its first byte: a slow handshake holds up nobody.
        let serve = |(stream, peer): (TcpStream, SocketAddr)| {
            let connection = Connection {
                info: TcpConnectInfo { local_addr: stream.local_addr().ok(), remote_addr: Some(peer) },
                services: services.clone(),
                tracker: connections.clone(),
                certs: None,
                cancel: cancel.child(),
            };
            let acceptor = acceptor.clone();
            connections.spawn(name, async move {
                let _ = stream.set_nodelay(true);
                let served = match acceptor {
                    Some(acceptor) => connection.handshake(&acceptor, stream).await,
                    None => connection.serve(stream).await,
                };
                if let Err(error) = served {
                    tracing::debug!(server = name, %peer, error = %format_args!("{error:#}"), "connection ended");
                }
            });
        };
        if let Err(error) = accept_loop(name, || listener.accept(), serve, &cancel).await {
            tracing::error!(server = name, %error, "listener is dead");
        }
    });
}

struct Connection<X, C> {
    info: TcpConnectInfo,
    services: Services<X, C>,
    /// With which the client has proven who it is, if it has.
    certs: Option<PeerCerts>,
    tracker: Tracker,
    cancel: Cancel,
}

impl<X: Grpc, C: Grpc> Connection<X, C> {
    async fn handshake(mut self, acceptor: &TlsAcceptor, stream: TcpStream) -> anyhow::Result<()> {
        let accept = acceptor.accept_with(stream, |tls| tls.set_buffer_limit(Some(TLS_BUFFER)));
        let stream = tokio::time::timeout(HANDSHAKE_TIMEOUT, accept)
            .await
            .context("TLS handshake timed out")?
            .context("TLS handshake failed")?;
        let certs = stream.get_ref().1.peer_certificates();
        self.certs = certs.map(|certs| PeerCerts(Arc::new(certs.iter().map(|c| c.clone().into_owned()).collect())));
        self.serve(stream).await
    }

    async fn serve<IO>(self, io: IO) -> anyhow::Result<()>
    where
        IO: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Self { info, services, certs, tracker, cancel } = self;
        let hangup = Hangup(cancel.clone());
        let service = service_fn(move |mut request: Request| {
            let extensions = request.extensions_mut();
            extensions.insert(info.clone());
            extensions.insert(hangup.clone());
            if let Some(certs) = &certs {
                extensions.insert(certs.clone());
            }
            services.clone().call(request)
        });
        let mut connection = std::pin::pin!(
            http2::Builder::new(Streams(tracker))
                .timer(TokioTimer::new())
                .keep_alive_interval(PING_INTERVAL)
                .keep_alive_timeout(PING_TIMEOUT)
                .max_concurrent_streams(MAX_STREAMS)
                .initial_stream_window_size(STREAM_WINDOW)
                .initial_connection_window_size(CONNECTION_WINDOW)
                .max_send_buf_size(SEND_BUFFER)
                .serve_connection(TokioIo::new(io), service)
        );
        let result = tokio::select! {
            biased; // An end that was asked for comes before more requests.
            () = cancel.drained() => {
                connection.as_mut().graceful_shutdown();
                tokio::select! {
                    biased;
                    () = cancel.forced() => return Ok(()),
                    result = connection => result,
                }
            }
            result = connection.as_mut() => result,
        };
        result.context("HTTP/2")
    }
}

/// Starts hyper's per-stream tasks through the tracker.
#[derive(Clone)]
struct Streams(Tracker);

impl<F> Executor<F> for Streams
where
    F: Future<Output = ()> + Send + 'static,
{
    fn execute(&self, stream: F) {
        self.0.spawn("grpc stream", stream);
    }
}
