//! The gRPC service: who calls, and a task for each stream.

use std::convert::Infallible;
use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use aquifer_proto::SERVED_TYPES;
use aquifer_runtime::{Cancel, Tracker};
use http::header::CONTENT_TYPE;
use http::request::Parts;
use http::{HeaderValue, Request, Response};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tonic::metadata::MetadataMap;
use tonic::server::NamedService;
use tonic::transport::CertificateDer;
use tonic_prost::ProstCodec;

use super::body::{Progress, ResponseBody};
use super::clients::Clients;
use super::limits::Limits;
use super::metrics::ServerMetrics;
use super::requests::{LargeRequests, Requests};
use super::sotw::{self, Inspect, Opened};
use super::stream::{ClientStream, Peer};
use crate::resource::ResourceSet;

/// Where the resources come from.
pub trait Source: Clone + Send + Sync + 'static {
    /// The current set.
    fn snapshot(&self) -> Arc<ResourceSet>;
    /// Changes whenever there is a newer set: the number of its generation.
    fn subscribe(&self) -> watch::Receiver<u64>;
    /// A client asks for a type that the current set lacks: a source that can make it of others does so now.
    fn want(&self, _type_url: &str) {}
}

/// Who opened a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Caller {
    /// Nobody in particular: the port asks for no proof.
    Anonymous,
    /// A workload that proved its service account.
    Workload {
        /// The namespace.
        namespace: String,
        /// The service account.
        service_account: String,
    },
}

impl Caller {
    /// A proven workload.
    pub fn workload(namespace: &str, service_account: &str) -> Self {
        Self::Workload { namespace: namespace.to_owned(), service_account: service_account.to_owned() }
    }
}

/// Decides who a caller is, before anything that it sends is read.
#[tonic::async_trait]
pub trait Authenticate: Send + Sync + 'static {
    /// The caller, from its metadata, its TLS client certificates and where it calls from; an error refuses the stream.
    async fn authenticate(
        &self,
        metadata: &MetadataMap,
        peer_certs: Option<Arc<Vec<CertificateDer<'static>>>>,
        peer: Option<SocketAddr>,
    ) -> Result<Caller, Status>;
}

/// Lets everybody in, for a port that asks for no proof.
#[derive(Clone, Copy, Debug, Default)]
pub struct AllowAnonymous;

#[tonic::async_trait]
impl Authenticate for AllowAnonymous {
    async fn authenticate(
        &self,
        _metadata: &MetadataMap,
        _peer_certs: Option<Arc<Vec<CertificateDer<'static>>>>,
        _peer: Option<SocketAddr>,
    ) -> Result<Caller, Status> {
        Ok(Caller::Anonymous)
    }
}

/// An extension of a request: the certificates with which its client proved itself to whoever ended its TLS.
#[derive(Clone, Debug)]
pub struct PeerCerts(pub Arc<Vec<CertificateDer<'static>>>);

/// An extension of a request: forcing it ends the connection. Without it a client that reads nothing is left to TCP.
#[derive(Clone, Debug)]
pub struct Hangup(pub Cancel);

/// The discovery service.
#[derive(Clone)]
pub struct Server<S> {
    source: S,
    authenticate: Arc<dyn Authenticate>,
    metrics: ServerMetrics,
    tracker: Tracker,
    cancel: Cancel,
    clients: Clients,
    limits: Limits,
    large: LargeRequests,
    inspect: Option<Arc<dyn Inspect>>,
}

impl<S: Source> Server<S> {
    /// A service whose streams are tasks of `tracker` and end with the drain of `cancel`.
    pub fn new(
        source: S,
        authenticate: Arc<dyn Authenticate>,
        metrics: ServerMetrics,
        tracker: Tracker,
        cancel: Cancel,
    ) -> Self {
        let (clients, limits, large) = (Clients::default(), Limits::default(), LargeRequests::default());
        Self { source, authenticate, metrics, tracker, cancel, clients, limits, large, inspect: None }
    }

    /// With other bounds.
    #[must_use]
    pub fn with_limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Whose debug pages are to be had on state-of-the-world streams. Without it there are none.
    #[must_use]
    pub fn with_inspect(mut self, inspect: Arc<dyn Inspect>) -> Self {
        self.inspect = Some(inspect);
        self
    }

    /// Who is connected.
    pub fn clients(&self) -> Clients {
        self.clients.clone()
    }

    /// As an HTTP service.
    pub fn into_service(self) -> Discovery<S> {
        Discovery(Arc::new(self))
    }

    async fn open<B>(&self, request: Request<B>) -> Result<Response<tonic::body::Body>, Status>
    where
        B: http_body::Body + Send + 'static,
        B::Error: fmt::Display,
        B::Data: Send,
    {
        let (parts, body) = request.into_parts();
        let hangup = parts.extensions.get::<Hangup>().cloned();
        let (caller, peer) = self.caller(parts).await?;
        let address = peer.map(|a| a.to_string()).unwrap_or_default();
        // One place: what the client has not taken is not computed either.
        let (out, answers) = mpsc::channel(1);
        let progress = Arc::new(Progress::default());
        let stream = ClientStream::new(
            &self.source,
            Peer { address, caller, hangup, progress: Arc::clone(&progress) },
            self.metrics.clone(),
            self.clients.clone(),
            self.limits,
        );
        let (cancel, large) = (self.cancel.clone(), self.large.clone());
        let spread = self.limits.drain_spread.mul_f64(rand::random());
        let drained = async move {
            cancel.drained().await;
            tokio::select! {
                () = cancel.forced() => {}
                () = tokio::time::sleep(spread) => {}
            }
        };
        self.tracker.spawn("xds_stream", async move {
            tokio::select! {
                biased; // An end that was asked for comes before more pushes. It ends the stream in good order.
                () = drained => {}
                () = stream.run(Requests::new(body, large), out) => {}
            }
        });
        let mut response = Response::new(tonic::body::Body::new(ResponseBody::new(answers, progress)));
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
        if let Some(own) = own_types(&self.source.snapshot()) {
            response.headers_mut().insert(SERVED_TYPES, own);
        }
        Ok(response)
    }
}

impl<S: Source> Server<S> {
    /// Who calls, and from where.
    async fn caller(&self, parts: Parts) -> Result<(Caller, Option<SocketAddr>), Status> {
        let certs = parts.extensions.get::<PeerCerts>().map(|certs| Arc::clone(&certs.0));
        let call = tonic::Request::from_parts(MetadataMap::from_headers(parts.headers), parts.extensions, ());
        let certs = certs.or_else(|| call.peer_certs());
        let peer = call.remote_addr();
        Ok((self.authenticate.authenticate(call.metadata(), certs, peer).await?, peer))
    }

    /// A state-of-the-world stream.
    async fn inspect<B>(&self, request: Request<B>) -> Result<Response<tonic::body::Body>, Status>
    where
        B: http_body::Body + Send + 'static,
        B::Error: Into<tonic::codegen::StdError> + Send,
    {
        let Some(inspect) = &self.inspect else {
            return Err(Status::unimplemented("only the delta service is served: use DeltaAggregatedResources"));
        };
        let (parts, body) = request.into_parts();
        let (caller, _) = self.caller(parts.clone()).await?;
        let (inspect, limits) = (Arc::clone(inspect), self.limits);
        let opened = Opened { inspect, caller, limits, tracker: self.tracker.clone(), cancel: self.cancel.clone() };
        let mut grpc = tonic::server::Grpc::new(ProstCodec::default()).max_decoding_message_size(sotw::MAX_QUESTION);
        Ok(grpc.streaming(opened, Request::from_parts(parts, body)).await)
    }
}

/// Types of ours that the server has: who does not know of them does not ask, and who does asks nobody else.
fn own_types(set: &ResourceSet) -> Option<HeaderValue> {
    let own: Vec<&str> = set.types().filter(|type_url| type_url.contains("/aquifer.")).collect();
    (!own.is_empty()).then(|| HeaderValue::from_str(&own.join(",")).ok()).flatten()
}

/// A [`Server`] as an HTTP service. It writes its responses by itself: generated code would hold each as a whole.
pub struct Discovery<S>(Arc<Server<S>>);

impl<S> Clone for Discovery<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<S> NamedService for Discovery<S> {
    const NAME: &'static str = "envoy.service.discovery.v3.AggregatedDiscoveryService";
}

const DELTA: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const STATE_OF_THE_WORLD: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/StreamAggregatedResources";

impl<S, B> tower_service::Service<Request<B>> for Discovery<S>
where
    S: Source,
    B: http_body::Body + Send + 'static,
    B::Error: fmt::Display + Into<tonic::codegen::StdError> + Send,
    B::Data: Send,
{
    type Response = Response<tonic::body::Body>;
    type Error = Infallible;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Infallible>> + Send>>;

    fn poll_ready(&mut self, _cx: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<B>) -> Self::Future {
        let server = Arc::clone(&self.0);
        Box::pin(async move {
            let response = match request.uri().path() {
                DELTA => server.open(request).await,
                STATE_OF_THE_WORLD => server.inspect(request).await,
                other => Err(Status::unimplemented(format!("there is no method {other:?} here"))),
            };
            Ok(response.unwrap_or_else(|status| status.into_http()))
        })
    }
}
