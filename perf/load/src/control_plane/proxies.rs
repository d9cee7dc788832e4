//! Proxies that ask for the whole mesh and acknowledge what they get.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::Instant;

use anyhow::{Context, Result, bail};
use http::{Method, Request};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, SignatureScheme};
use tokio::net::TcpSocket;
use tokio::runtime::Runtime;
use tokio_rustls::TlsConnector;

use super::proto::{self, ADDRESS, AUTHORIZATION, Reader};
use super::{api, objects};

// As tonic's client has them.
const STREAM_WINDOW: u32 = 2 << 20;
const CONNECTION_WINDOW: u32 = 5 << 20;
const PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";

/// Connected proxies. Dropped, they go.
pub(super) struct Proxies {
    count: usize,
    heard: Receiver<Heard>,
    _runtime: Runtime,
}

enum Heard {
    /// Both types are answered.
    Synced(Synced),
    /// A change is here: its marker and when.
    Marker(String, Instant),
    Lost(String),
}

/// What the first answers were.
pub(super) struct Synced {
    pub(super) at: Instant,
    pub(super) resources: u32,
    pub(super) bytes: usize,
}

impl Proxies {
    /// All at once, each on a connection of its own.
    pub(super) fn connect(address: SocketAddr, count: usize) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
        let (tell, heard) = channel();
        let tls = TlsConnector::from(Arc::new(tls()?));
        for node in 0..count {
            let (tell, tls) = (tell.clone(), tls.clone());
            runtime.spawn(async move {
                if let Err(error) = proxy(address, node as u32, tls, &tell).await {
                    let _ = tell.send(Heard::Lost(format!("proxy {node}: {error:#}")));
                }
            });
        }
        Ok(Self { count, heard, _runtime: runtime })
    }

    pub(super) fn wait_synced(&mut self, until: Instant) -> Result<Vec<Synced>> {
        let mut synced = Vec::new();
        while synced.len() < self.count {
            match self.next(until).with_context(|| format!("{} of {} are synced", synced.len(), self.count))? {
                Heard::Synced(one) => synced.push(one),
                Heard::Marker(..) => {}
                Heard::Lost(why) => bail!(why),
            }
        }
        Ok(synced)
    }

    /// When each proxy saw a change.
    pub(super) fn wait_for(&mut self, marker: &str, until: Instant) -> Result<Vec<Instant>> {
        let mut arrived = Vec::new();
        while arrived.len() < self.count {
            match self.next(until).with_context(|| format!("{} of {} have seen {marker}", arrived.len(), self.count))? {
                Heard::Marker(seen, at) if seen == marker => arrived.push(at),
                Heard::Marker(..) | Heard::Synced(_) => {}
                Heard::Lost(why) => bail!(why),
            }
        }
        Ok(arrived)
    }

    fn next(&self, until: Instant) -> Result<Heard> {
        match self.heard.recv_timeout(until.saturating_duration_since(Instant::now())) {
            Ok(heard) => Ok(heard),
            Err(RecvTimeoutError::Timeout) => bail!("it takes too long"),
            Err(RecvTimeoutError::Disconnected) => bail!("all proxies are gone"),
        }
    }
}

async fn proxy(address: SocketAddr, node: u32, tls: TlsConnector, tell: &Sender<Heard>) -> Result<()> {
    // Each node has an address of its own, by which a control plane may tell callers apart.
    let socket = TcpSocket::new_v4()?;
    let [high, low] = (node as u16 + 256).to_be_bytes();
    socket.bind(SocketAddr::from(([127, 1, high, low], 0))).context("binding")?;
    let tcp = socket.connect(address).await.context("connecting")?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("istiod.istio-system.svc")?;
    let tls = tls.connect(name, tcp).await.context("TLS")?;
    let (client, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .handshake::<_, bytes::Bytes>(tls)
        .await
        .context("HTTP/2")?;
    tokio::select! {
        ended = connection => bail!("the connection ended: {ended:?}"),
        ended = converse(client, node, tell) => ended,
    }
}

async fn converse(client: h2::client::SendRequest<bytes::Bytes>, node: u32, tell: &Sender<Heard>) -> Result<()> {
    let mut client = client.ready().await?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("https://istiod.istio-system.svc:15012{PATH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("clusterid", "Kubernetes")
        .header("authorization", format!("Bearer {}", api::token(node)))
        .body(())?;
    let (response, mut send) = client.send_request(request, false)?;
    let name = objects::proxy_name(node);
    let id = format!("ztunnel~{}~{name}.istio-system~istio-system.svc.cluster.local", objects::proxy_ip(node));
    let node_name = objects::node_name(node);
    let metadata = [
        ("NAME", name.as_str()),
        ("NAMESPACE", "istio-system"),
        ("NODE_NAME", &node_name),
        ("CLUSTER_ID", "Kubernetes"),
        ("ISTIO_VERSION", "load"),
    ];
    for type_url in [ADDRESS, AUTHORIZATION] {
        send.send_data(proto::first_request(type_url, &id, &metadata), false)?;
    }
    let response = response.await.context("waiting for the answer")?;
    if let Some(status) = response.headers().get("grpc-status") {
        bail!("refused: {status:?} {:?}", response.headers().get("grpc-message"));
    }
    let mut body = response.into_body();
    let (mut reader, mut first) = (Reader::default(), HashMap::new());
    while let Some(data) = body.data().await {
        let data = data.context("the stream broke")?;
        body.flow_control().release_capacity(data.len())?;
        for response in reader.feed(&data) {
            let at = Instant::now();
            send.send_data(proto::acknowledgement(&response.type_url, &response.nonce), false)?;
            if first.len() < 2 && !first.contains_key(&response.type_url) {
                first.insert(response.type_url.clone(), (response.resources, response.bytes));
                if let (2, Some((resources, bytes))) = (first.len(), first.get(ADDRESS).copied()) {
                    let _ = tell.send(Heard::Synced(Synced { at, resources, bytes }));
                }
                continue;
            }
            for marker in markers(&response.text) {
                let _ = tell.send(Heard::Marker(marker, at));
            }
        }
    }
    bail!("the stream ended: {:?}", body.trailers().await)
}

/// The revisions that a response tells of.
fn markers(text: &[u8]) -> Vec<String> {
    const PREFIX: &[u8] = b"rev-";
    let starts = text.windows(PREFIX.len()).enumerate().filter(|(_, window)| *window == PREFIX).map(|(at, _)| at);
    starts
        .filter_map(|at| text.get(at..at + objects::marker(0).len()))
        .map(|m| String::from_utf8_lossy(m).into_owned())
        .collect()
}

fn tls() -> Result<ClientConfig> {
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anybody))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(config)
}

/// Whoever listens on the port was started for this.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        rustls::crypto::aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
