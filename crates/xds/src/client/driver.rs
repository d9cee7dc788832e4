//! The client's connection: TLS, credentials, keepalive, reconnecting.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use aquifer_proto::SERVED_TYPES;
use aquifer_proto::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use aquifer_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use aquifer_runtime::{Backoff, Cancel};
use hyper_util::client::legacy::connect::HttpConnector;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::metadata::{Ascii, MetadataKey, MetadataMap, MetadataValue};
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Streaming};

use super::ResourceSink;
use super::demand::{Demand, Demands};
use super::dial::Dialler;
use super::metrics::{ClientMetrics, Termination};
use super::session::{Session, Watch};

/// Where the trust in the server comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCa {
    /// A PEM file, read again for each connection.
    File(PathBuf),
    /// PEM text.
    Pem(String),
    /// The authorities that the operating system trusts, read again for each connection.
    System,
}

/// What proves who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A file, read again for each connection, since the kubelet renews it.
    File(PathBuf),
    /// The token itself.
    Literal(String),
}

/// How to reach the server, as whom, and for what.
#[derive(Clone, Debug)]
pub struct ClientConfig {
    /// `https://host:port`. Plaintext is refused: the token would be there to read.
    pub address: String,
    /// The name to verify instead of the address's host (ALT_XDS_HOSTNAME).
    pub alt_hostname: Option<String>,
    /// Who signs the server's certificate.
    pub root_ca: RootCa,
    /// The bearer token; none for a server that needs none.
    pub token: Option<Token>,
    /// The `clusterid` header: in which cluster the token is to be reviewed.
    pub cluster_id: String,
    /// More headers (XDS_HEADER_*).
    pub headers: Vec<(String, String)>,
    /// Who we are.
    pub node: Node,
    /// The types to watch, in the order of asking.
    pub watches: Vec<Watch>,
}

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
enum ConnectError {
    #[error("address {0:?}: {1}")]
    Address(String, &'static str),
    #[error("root certificates {0}: {1}")]
    Root(PathBuf, io::Error),
    #[error(
        "XDS_ROOT_CA=SYSTEM: {}: install ca-certificates, or name a PEM file by SSL_CERT_FILE or XDS_ROOT_CA", chain(.0)
    )]
    SystemRoots(tonic::transport::Error),
    #[error("token {0}: {1}")]
    Token(PathBuf, io::Error),
    #[error("header {0:?} cannot be sent")]
    Header(String),
    #[error("connect: {}", chain(.0))]
    Transport(#[from] tonic::transport::Error),
    #[error("stream refused: {}: {}", .0.code(), .0.message())]
    Stream(tonic::Status),
}

// Istio's channel parameters.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
const PING_INTERVAL: Duration = Duration::from_secs(30);
const PING_TIMEOUT: Duration = Duration::from_secs(10);
const TCP_KEEPALIVE: Duration = Duration::from_secs(300);
const TCP_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(75);
const TCP_KEEPALIVE_RETRIES: u32 = 9;
const MAX_MESSAGE: usize = 200 * 1024 * 1024;
/// A request that tells what is held may be longer than istiod takes: 4 MiB, unless it is told otherwise. A refusal of
/// one that is far from it has another reason.
const LARGE_REQUEST: usize = 1 << 20;
const RETRY_FIRST: Duration = Duration::from_millis(10);
const RETRY_MAX: Duration = Duration::from_secs(15);

/// Keeps `sink` up to date until `cancel` drains. `on_synced` is called once, when every type was answered.
///
/// What was received stays in force while there is no connection.
pub async fn run<S, F>(config: ClientConfig, sink: S, metrics: ClientMetrics, on_synced: F, cancel: Cancel)
where
    S: ResourceSink,
    F: FnOnce() + Send,
{
    let (_no_one, demands) = super::demand::channel();
    run_on_demand(config, sink, metrics, on_synced, demands, cancel).await;
}

/// [`run`], with others asking for single resources.
pub async fn run_on_demand<S, F>(
    config: ClientConfig,
    sink: S,
    metrics: ClientMetrics,
    on_synced: F,
    demands: Demands,
    cancel: Cancel,
) where
    S: ResourceSink,
    F: FnOnce() + Send,
{
    let client = Client {
        session: Session::new(config.watches.iter().cloned(), config.node.clone()),
        config,
        sink,
        metrics,
        on_synced: Some(on_synced),
        demands: Some(demands),
        waiting: Vec::new(),
        told: 0,
    };
    tokio::select! {
        biased; // The end that was asked for comes before more work.
        () = cancel.drained() => {}
        () = client.run() => {}
    }
}

struct Client<S, F> {
    config: ClientConfig,
    session: Session,
    sink: S,
    metrics: ClientMetrics,
    on_synced: Option<F>,
    demands: Option<Demands>,
    waiting: Vec<Demand>,
    /// Bytes of the longest of the first requests.
    told: usize,
}

/// How a stream ended, and whether it ever brought something.
struct Ended {
    reason: Termination,
    fruitful: bool,
}

impl<S: ResourceSink, F: FnOnce() + Send> Client<S, F> {
    async fn run(mut self) {
        // The spread keeps a fleet of clients from coming back in step.
        let mut backoff = Backoff::new(RETRY_FIRST, RETRY_MAX, 2.0, 0.2);
        loop {
            let ended = match self.connect().await {
                Ok((requests, responses)) => self.converse(requests, responses).await,
                Err(error) => {
                    tracing::warn!(address = self.config.address, %error, "xds connection failed");
                    if let ConnectError::Stream(status) = &error {
                        self.refused(status);
                    }
                    Ended { reason: Termination::ConnectionError, fruitful: false }
                }
            };
            self.metrics.ended(ended.reason);
            self.session.reconnect();
            // A server that ends each stream at once would otherwise be called a hundred times a second.
            if ended.fruitful && ended.reason != Termination::Error {
                backoff.reset();
            }
            let delay = backoff.next(&mut rand::rng());
            tokio::time::sleep(delay).await;
        }
    }

    async fn connect(
        &mut self,
    ) -> Result<(mpsc::Sender<DeltaDiscoveryRequest>, Streaming<DeltaDiscoveryResponse>), ConnectError> {
        let config = &self.config;
        let metadata = metadata(config)?;
        let channel = channel(config).await?;
        let initial = self.session.initial_requests();
        self.told = initial.iter().map(Message::encoded_len).max().unwrap_or_default();
        let (tx, rx) = mpsc::channel(initial.len().max(1) + 32);
        for request in initial {
            // There is a place for each, and the receiver is alive.
            let _ = tx.try_send(request);
        }
        let mut request = Request::new(ReceiverStream::new(rx));
        *request.metadata_mut() = metadata;
        let response = AggregatedDiscoveryServiceClient::new(channel)
            .max_decoding_message_size(MAX_MESSAGE)
            .delta_aggregated_resources(request)
            .await
            .map_err(ConnectError::Stream)?;
        let served = response.metadata().get(SERVED_TYPES).and_then(|types| types.to_str().ok()).unwrap_or_default();
        let served: Vec<&str> = served.split(',').map(str::trim).collect();
        for request in self.session.served(&served, &mut self.sink) {
            // There is place for more than there are types, and whoever is gone tells why on the receiving half.
            let _ = tx.try_send(request);
        }
        let responses = response.into_inner();
        tracing::info!(address = config.address, "xds stream established");
        Ok((tx, responses))
    }

    async fn converse(
        &mut self,
        requests: mpsc::Sender<DeltaDiscoveryRequest>,
        mut responses: Streaming<DeltaDiscoveryResponse>,
    ) -> Ended {
        let mut fruitful = false;
        loop {
            let request = tokio::select! {
                response = responses.message() => match response {
                    Ok(Some(response)) => {
                        fruitful = true;
                        Some(self.received(response))
                    }
                    Ok(None) => return Ended { reason: Termination::Complete, fruitful },
                    Err(status) => {
                        self.refused(&status);
                        return Ended { reason: self.failed(&status), fruitful };
                    }
                },
                demand = next_demand(&mut self.demands) => self.demanded(demand),
            };
            // A stream whose sending half is gone tells why on its receiving half.
            if let Some(request) = request {
                let _ = requests.send(request).await;
            }
        }
    }

    fn received(&mut self, response: DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
        self.metrics.received(&response.type_url, response.encoded_len());
        tracing::debug!(
            type_url = response.type_url,
            resources = response.resources.len(),
            removed = response.removed_resources.len(),
            "xds response"
        );
        let ack = self.session.handle(response, &mut self.sink);
        if let Some(error) = &ack.error_detail {
            tracing::warn!(type_url = ack.type_url, error = error.message, "xds resources rejected");
        }
        if self.session.synced()
            && let Some(on_synced) = self.on_synced.take()
        {
            on_synced();
        }
        self.wake();
        ack
    }

    fn demanded(&mut self, demand: Option<Demand>) -> Option<DeltaDiscoveryRequest> {
        let Some(demand) = demand else {
            self.demands = None; // Nobody is left who could ask.
            return None;
        };
        let request = self.session.demand(&demand.type_url, &demand.name);
        self.waiting.push(demand);
        self.wake();
        request
    }

    fn wake(&mut self) {
        for (type_url, name) in self.session.take_answered() {
            let is_answered = |d: &mut Demand| d.type_url == type_url && d.name == name;
            for demand in self.waiting.extract_if(.., is_answered) {
                demand.answer();
            }
        }
        self.waiting.retain(|demand| !demand.answered.is_closed());
    }

    /// Who holds more than the server reads is sent everything anew, rather than refused for good.
    fn refused(&mut self, status: &tonic::Status) {
        // Limits of rates have the same code. Go and Rust servers word it so.
        let too_large = ["larger than", "too large"].iter().any(|words| status.message().contains(words));
        if status.code() == Code::ResourceExhausted && too_large && self.told >= LARGE_REQUEST {
            tracing::warn!(
                bytes = self.told,
                "the server refuses to read what is held here: asking for everything anew. If it is istiod, \
                 ISTIO_GPRC_MAXRECVMSGSIZE sets how much it reads"
            );
            self.session.start_over();
        }
    }

    fn failed(&self, status: &tonic::Status) -> Termination {
        // What proxies, load balancers and restarts do to long streams is no one's fault.
        let benign =
            matches!(status.code(), Code::Unknown | Code::Cancelled | Code::DeadlineExceeded | Code::Unavailable);
        let (code, error) = (status.code(), status.message());
        if benign {
            tracing::info!(?code, error, "xds stream ended");
            Termination::Reconnect
        } else {
            tracing::warn!(?code, error, "xds stream failed");
            Termination::Error
        }
    }
}

async fn next_demand(demands: &mut Option<Demands>) -> Option<Demand> {
    match demands {
        Some(demands) => demands.next().await,
        None => std::future::pending().await,
    }
}

async fn channel(config: &ClientConfig) -> Result<Channel, ConnectError> {
    let bad_address = |why| ConnectError::Address(config.address.clone(), why);
    let endpoint = Endpoint::from_shared(config.address.clone()).map_err(|_| bad_address("not a URL"))?;
    if endpoint.uri().scheme_str() != Some("https") {
        return Err(bad_address("only https is spoken"));
    }
    let host = endpoint.uri().host().ok_or_else(|| bad_address("has no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = config.alt_hostname.as_deref().unwrap_or(host).to_owned();
    let tls = ClientTlsConfig::new().domain_name(name).timeout(CONNECT_TIMEOUT);
    let tls = match &config.root_ca {
        RootCa::File(path) => {
            let pem = tokio::fs::read(path).await.map_err(|e| ConnectError::Root(path.clone(), e))?;
            tls.ca_certificate(Certificate::from_pem(pem))
        }
        RootCa::Pem(pem) => tls.ca_certificate(Certificate::from_pem(pem)),
        RootCa::System => tls.with_native_roots(),
    };
    let endpoint = endpoint
        .tls_config(tls)
        .map_err(|e| match config.root_ca {
            RootCa::System => ConnectError::SystemRoots(e),
            RootCa::File(_) | RootCa::Pem(_) => e.into(),
        })?
        .connect_timeout(CONNECT_TIMEOUT)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true);
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false); // TLS is laid around it.
    tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_KEEPALIVE));
    tcp.set_keepalive_interval(Some(TCP_KEEPALIVE_INTERVAL));
    tcp.set_keepalive_retries(Some(TCP_KEEPALIVE_RETRIES));
    Ok(endpoint.connect_with_connector(Dialler(tcp)).await?)
}

fn metadata(config: &ClientConfig) -> Result<MetadataMap, ConnectError> {
    let mut metadata = MetadataMap::new();
    let cluster = ("clusterid".to_owned(), config.cluster_id.clone());
    for (name, value) in std::iter::once(&cluster).chain(&config.headers) {
        let bad = || ConnectError::Header(name.clone());
        let key: MetadataKey<Ascii> = name.to_ascii_lowercase().parse().map_err(|_| bad())?;
        metadata.insert(key, value.parse().map_err(|_| bad())?);
    }
    if let Some(token) = &config.token {
        let token = match token {
            // One short file on a memory file system, once a connection.
            Token::File(path) => std::fs::read_to_string(path).map_err(|e| ConnectError::Token(path.clone(), e))?,
            Token::Literal(token) => token.clone(),
        };
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {}", token.trim()).parse().map_err(|_| ConnectError::Header("authorization".to_owned()))?;
        value.set_sensitive(true);
        metadata.insert("authorization", value);
    }
    Ok(metadata)
}

/// tonic's own text is "transport error"; what happened stands in the sources.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(source) = next {
        text.push_str(": ");
        text.push_str(&source.to_string());
        next = source.source();
    }
    text
}
