//! The gRPC service: one task a stream, which follows the source at the client's own pace.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Instant;

use aquifer_proto::xds::aggregated_discovery_service_server::{
    AggregatedDiscoveryService, AggregatedDiscoveryServiceServer,
};
use aquifer_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use aquifer_runtime::{Cancel, Tracker};
use prost::Message;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::MetadataMap;
use tonic::transport::CertificateDer;
use tonic::{Request, Response, Status, Streaming};

use super::clients::{ClientGuard, Clients};
use super::metrics::{ConnectionGuard, ServerMetrics};
use super::node;
use super::session::{Note, Refused, Session};
use crate::resource::ResourceSet;

/// Where the resources come from.
pub trait Source: Clone + Send + Sync + 'static {
    /// The current set.
    fn snapshot(&self) -> Arc<ResourceSet>;
    /// Changes whenever there is a newer set.
    fn subscribe(&self) -> watch::Receiver<u64>;
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
    /// The caller, from its metadata and its TLS client certificates; an error refuses the stream.
    async fn authenticate(
        &self,
        metadata: &MetadataMap,
        peer_certs: Option<Arc<Vec<CertificateDer<'static>>>>,
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
    ) -> Result<Caller, Status> {
        Ok(Caller::Anonymous)
    }
}

/// The discovery service.
#[derive(Clone)]
pub struct Server<S> {
    source: S,
    authenticate: Arc<dyn Authenticate>,
    metrics: ServerMetrics,
    tracker: Tracker,
    cancel: Cancel,
    clients: Clients,
}

// A client that comes back names all that it holds: some 100 bytes for each of 100 000 resources and more.
const MAX_REQUEST: usize = 64 * 1024 * 1024;
// Answers that a client has asked for and not read yet; beyond it, no more requests of its are read.
const MAX_UNREAD: usize = 32;

impl<S: Source> Server<S> {
    /// A service whose streams are tasks of `tracker` and end with the drain of `cancel`.
    pub fn new(
        source: S,
        authenticate: Arc<dyn Authenticate>,
        metrics: ServerMetrics,
        tracker: Tracker,
        cancel: Cancel,
    ) -> Self {
        Self { source, authenticate, metrics, tracker, cancel, clients: Clients::default() }
    }

    /// Who is connected.
    pub fn clients(&self) -> Clients {
        self.clients.clone()
    }

    /// As a tonic service.
    pub fn into_service(self) -> AggregatedDiscoveryServiceServer<Self> {
        AggregatedDiscoveryServiceServer::new(self).max_decoding_message_size(MAX_REQUEST)
    }
}

#[tonic::async_trait]
impl<S: Source> AggregatedDiscoveryService for Server<S> {
    type DeltaAggregatedResourcesStream = ReceiverStream<Result<DeltaDiscoveryResponse, Status>>;

    async fn delta_aggregated_resources(
        &self,
        request: Request<Streaming<DeltaDiscoveryRequest>>,
    ) -> Result<Response<Self::DeltaAggregatedResourcesStream>, Status> {
        let certs = request.peer_certs();
        let caller = self.authenticate.authenticate(request.metadata(), certs).await?;
        let peer = request.remote_addr().map(|a| a.to_string()).unwrap_or_default();
        // One place: what the client has not taken is not computed either.
        let (out, responses) = mpsc::channel(1);
        let changes = self.source.subscribe();
        let stream = ClientStream {
            current: self.source.snapshot(),
            source: self.source.clone(),
            changes,
            caller,
            peer,
            metrics: self.metrics.clone(),
            clients: self.clients.clone(),
            client: None,
            unread: VecDeque::new(),
        };
        let cancel = self.cancel.clone();
        self.tracker.spawn("xds_stream", async move {
            tokio::select! {
                biased; // An end that was asked for comes before more pushes. It ends the stream in good order.
                () = cancel.drained() => {}
                () = stream.run(request.into_inner(), out) => {}
            }
        });
        Ok(Response::new(ReceiverStream::new(responses)))
    }
}

struct ClientStream<S> {
    source: S,
    changes: watch::Receiver<u64>,
    /// The one snapshot that all types of this stream are answered from, replaced by a push of all of them.
    current: Arc<ResourceSet>,
    caller: Caller,
    peer: String,
    metrics: ServerMetrics,
    clients: Clients,
    /// There from the first request on.
    client: Option<Client>,
    unread: VecDeque<DeltaDiscoveryResponse>,
}

struct Client {
    session: Session,
    id: String,
    _counted: ConnectionGuard,
    listed: ClientGuard,
}

impl<S: Source> ClientStream<S> {
    async fn run(
        mut self,
        mut requests: Streaming<DeltaDiscoveryRequest>,
        out: mpsc::Sender<Result<DeltaDiscoveryResponse, Status>>,
    ) {
        let mut waiting_since = None;
        loop {
            let result = tokio::select! {
                place = out.reserve(), if !self.unread.is_empty() => {
                    let (Ok(place), Some(response)) = (place, self.unread.pop_front()) else {
                        break;
                    };
                    place.send(Ok(response));
                    let since = waiting_since.take().unwrap_or_else(Instant::now);
                    self.metrics.sent(since.elapsed().as_secs_f64());
                    Ok(())
                }
                // Only an idle stream is pushed to: a slow client gets one push of all that changed meanwhile.
                changed = self.changes.changed(), if self.unread.is_empty() => match changed {
                    Ok(()) => {
                        self.push();
                        Ok(())
                    }
                    Err(_) => break, // The source is gone.
                },
                request = requests.message(), if self.unread.len() < MAX_UNREAD => match request {
                    Ok(Some(request)) => self.request(request),
                    Ok(None) => break,
                    Err(status) => {
                        tracing::debug!(peer = self.peer, error = status.message(), "xds stream lost");
                        break;
                    }
                },
                () = out.closed() => break,
            };
            if let Err(status) = result {
                tracing::warn!(peer = self.peer, error = status.message(), "xds stream refused");
                let _ = out.send(Err(status)).await;
                return;
            }
            if !self.unread.is_empty() && waiting_since.is_none() {
                waiting_since = Some(Instant::now());
            }
        }
        let client = self.client.as_ref().map_or("", |client| &client.id);
        tracing::info!(peer = self.peer, client, "xds client disconnected");
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        if self.client.is_none() {
            let node = node::check(request.node.as_ref(), &self.caller)?;
            tracing::info!(peer = self.peer, client = node.id, "xds client connected");
            self.client = Some(Client {
                _counted: self.metrics.connected(node.version.as_deref()),
                listed: self.clients.connected(&node.id, &self.peer),
                session: Session::new(node.node_name),
                id: node.id,
            });
        }
        let Some(client) = &mut self.client else {
            return Ok(());
        };
        let started = Instant::now();
        let type_url = request.type_url.clone();
        let handled =
            client.session.handle(request, &self.current).map_err(|refused| refusal(&refused, &self.caller))?;
        match &handled.note {
            Note::Nacked(error) => {
                self.metrics.rejected(&type_url);
                client.listed.answered(&type_url, Some(error));
                tracing::warn!(client = client.id, type_url, error, "xds response rejected");
            }
            Note::Stale => self.metrics.expired_nonce(&type_url),
            Note::Acked => client.listed.answered(&type_url, None),
            Note::Subscribed => {}
        }
        self.enqueue(handled.responses, started);
        Ok(())
    }

    fn push(&mut self) {
        self.current = self.source.snapshot();
        let Some(client) = &mut self.client else {
            return;
        };
        let started = Instant::now();
        let responses = client.session.push(&self.current);
        self.enqueue(responses, started);
    }

    fn enqueue(&mut self, responses: Vec<DeltaDiscoveryResponse>, started: Instant) {
        for response in responses {
            let seconds = started.elapsed().as_secs_f64();
            self.metrics.built(&response.type_url, response.encoded_len(), seconds);
            if let Some(client) = &self.client {
                client.listed.sent(&response.type_url);
            }
            self.unread.push_back(response);
        }
    }
}

fn refusal(refused: &Refused, caller: &Caller) -> Status {
    match (refused, caller) {
        // istiod answers so: types beyond the mesh's own are for callers that proved who they are.
        (Refused::UnknownType(_), Caller::Anonymous) => Status::unauthenticated(refused.to_string()),
        _ => Status::invalid_argument(refused.to_string()),
    }
}
