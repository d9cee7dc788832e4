//! A control plane that says what the test tells it to: delta ADS and the CA on one TLS port.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use anyhow::{Context, Result, ensure};
use parking_lot::Mutex;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

use super::grpc::{Call, Status};
use super::h2::Connection;
use super::hpack::{self, Headers};
use super::net::Netns;
use super::pki::{Ca, Certified, Tls};
use super::protobuf::{Fields, Message};
use super::wds::{ADDRESS, AUTHORIZATION, Resource};
use super::{until, within};

const ADS_PATH: &str = "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
const CA_PATH: &str = "/istio.v1.auth.IstioCertificateService/CreateCertificate";

/// How the CA answers.
#[derive(Debug, Clone)]
pub(crate) enum CaMode {
    /// Leaf, then root, valid for this many seconds.
    Issue { seconds: i64 },
    /// The leaf alone: a reply without roots.
    LeafOnly,
    /// Leaf, and a last element with two roots.
    TwoRoots,
    /// Another identity than was asked for.
    OtherIdentity(&'static str),
    /// A gRPC error.
    Refuse(u32, &'static str),
    /// As `Issue` for a day, but each call waits until it is let go ([`Istiod::release`]).
    Held,
}

/// A CreateCertificate call as it came.
#[derive(Debug, Clone)]
pub(crate) struct CaRequest {
    pub(crate) headers: Headers,
    pub(crate) csr: String,
    pub(crate) seconds: u64,
    pub(crate) metadata: serde_json::Value,
    pub(crate) fields: Fields,
}

impl CaRequest {
    pub(crate) fn identity(&self) -> &str {
        self.metadata["ImpersonatedIdentity"].as_str().unwrap_or_default()
    }
}

#[derive(Debug)]
struct Shared {
    mode: Mutex<CaMode>,
    requests: Mutex<Vec<CaRequest>>,
    count: watch::Sender<usize>,
    /// Only one call is answered at a time while set; used to see what waits.
    other_root: Mutex<Option<Arc<Ca>>>,
    open: Mutex<Vec<super::grpc::Ender>>,
    /// Handshakes that came to nothing.
    failed_handshakes: AtomicUsize,
    gate: Semaphore,
    held: AtomicUsize,
    most_held: AtomicUsize,
}

/// The running control plane.
#[derive(Debug)]
pub(crate) struct Istiod {
    shared: Arc<Shared>,
    config: Arc<Mutex<Arc<ServerConfig>>>,
    streams: mpsc::UnboundedReceiver<Ads>,
    connections: Arc<Mutex<JoinSet<()>>>,
    _tasks: JoinSet<()>,
}

impl Istiod {
    /// Serves on loopback in the namespace.
    pub(crate) fn start(netns: &Netns, ca: Arc<Ca>, certificate: Certified) -> Result<Self> {
        let config = Arc::new(Mutex::new(config(certificate)?));
        let (found, streams) = mpsc::unbounded_channel();
        let (count, _) = watch::channel(0);
        let shared = Arc::new(Shared {
            mode: Mutex::new(CaMode::Issue { seconds: 86_400 }),
            requests: Mutex::default(),
            count,
            other_root: Mutex::default(),
            open: Mutex::default(),
            failed_handshakes: AtomicUsize::default(),
            gate: Semaphore::new(0),
            held: AtomicUsize::default(),
            most_held: AtomicUsize::default(),
        });
        let connections = Arc::new(Mutex::new(JoinSet::new()));
        let mut tasks = JoinSet::new();
        for address in ["127.0.0.1:15012", "[::1]:15012"] {
            let listener = netns.listen(address.parse::<SocketAddr>()?)?;
            let serve = Serve {
                config: Arc::clone(&config),
                ca: Arc::clone(&ca),
                shared: Arc::clone(&shared),
                found: found.clone(),
            };
            let connections = Arc::clone(&connections);
            tasks.spawn(async move { serve.accept(listener, &connections).await });
        }
        Ok(Self { shared, config, streams, connections, _tasks: tasks })
    }

    /// Shows another certificate from now on.
    pub(crate) fn show(&self, certificate: Certified) -> Result<()> {
        *self.config.lock() = config(certificate)?;
        Ok(())
    }

    /// The next ADS stream.
    pub(crate) async fn ads(&mut self) -> Result<Ads> {
        within("an ADS stream", self.streams.recv()).await?.context("the control plane ended")
    }

    /// Ends every open ADS stream with this status.
    pub(crate) fn end_streams(&self, status: &Status) {
        for end in self.shared.open.lock().drain(..) {
            end.finish(status.code, &status.message);
        }
    }

    /// An ADS stream that is there already.
    pub(crate) fn ads_now(&mut self) -> Option<Ads> {
        self.streams.try_recv().ok()
    }

    /// Cuts every connection, as a crash would.
    pub(crate) fn cut(&self) {
        self.connections.lock().abort_all();
    }

    pub(crate) fn ca_mode(&self, mode: CaMode) {
        *self.shared.mode.lock() = mode;
    }

    /// Waits until so many clients have hung up instead of finishing their handshake.
    pub(crate) async fn handshakes_failed(&self, count: usize) -> Result<()> {
        until("failed handshakes", async || Ok(self.shared.failed_handshakes.load(SeqCst) >= count)).await
    }

    /// Lets one call go that [`CaMode::Held`] holds, or the next that comes.
    pub(crate) fn release(&self) {
        self.shared.gate.add_permits(1);
    }

    /// How many calls were held at once, at most.
    pub(crate) fn most_held(&self) -> usize {
        self.shared.most_held.load(SeqCst)
    }

    /// Leaves are signed by this root from now on.
    pub(crate) fn sign_with(&self, ca: Arc<Ca>) {
        *self.shared.other_root.lock() = Some(ca);
    }

    pub(crate) fn ca_requests(&self) -> Vec<CaRequest> {
        self.shared.requests.lock().clone()
    }

    /// Waits until the CA was asked for this identity `times` times; the last request.
    pub(crate) async fn asked(&self, identity: &str, times: usize) -> Result<CaRequest> {
        let found =
            || self.ca_requests().into_iter().filter(|request| request.identity() == identity).collect::<Vec<_>>();
        until(&format!("{times} CA requests for {identity}"), async || Ok(found().len() >= times)).await?;
        found().pop().context("a request")
    }
}

fn config(certificate: Certified) -> Result<Arc<ServerConfig>> {
    let (config, _) = Tls::default().server(certificate, false)?;
    Ok(Arc::new(config))
}

#[derive(Clone)]
struct Serve {
    config: Arc<Mutex<Arc<ServerConfig>>>,
    ca: Arc<Ca>,
    shared: Arc<Shared>,
    found: mpsc::UnboundedSender<Ads>,
}

impl Serve {
    async fn accept(self, listener: TcpListener, connections: &Mutex<JoinSet<()>>) {
        while let Ok((stream, _)) = listener.accept().await {
            let serve = self.clone();
            connections.lock().spawn(async move {
                let accepting = TlsAcceptor::from(Arc::clone(&serve.config.lock())).accept(stream);
                let Ok(tls) = accepting.await else {
                    serve.shared.failed_handshakes.fetch_add(1, SeqCst);
                    return;
                };
                let mut connection = Connection::server(tls, &[(3, 100)]);
                let mut calls = JoinSet::new();
                while let Some((stream, headers)) = connection.accept_any().await {
                    let call = Call::new(stream);
                    match hpack::value(&headers, ":path") {
                        Some(ADS_PATH) => {
                            call.accept();
                            serve.shared.open.lock().push(call.ender());
                            let _ = serve.found.send(Ads { headers, call, sent: 0 });
                        }
                        Some(CA_PATH) => {
                            let serve = serve.clone();
                            calls.spawn(async move {
                                // A caller that went away is no failure of the CA's.
                                let _ = serve.certify(headers, call).await;
                            });
                        }
                        _ => call.refuse(12, "unimplemented"),
                    }
                }
            });
        }
    }

    async fn certify(&self, headers: Headers, mut call: Call) -> Result<()> {
        let fields = call.receive_any().await?.map_err(|status| anyhow::anyhow!("{status:?}"))?;
        let request = CaRequest {
            headers,
            csr: fields.string(1),
            seconds: fields.number(3),
            metadata: fields.message(4)?.json()?,
            fields,
        };
        let (csr, identity) = (request.csr.clone(), request.identity().to_owned());
        self.shared.requests.lock().push(request);
        self.shared.count.send_modify(|count| *count += 1);
        let mode = self.shared.mode.lock().clone();
        let ca = self.shared.other_root.lock().clone().unwrap_or_else(|| Arc::clone(&self.ca));
        let chain = match mode {
            CaMode::Issue { seconds } => vec![ca.sign(&csr, &identity, seconds)?, ca.pem.clone()],
            CaMode::LeafOnly => vec![ca.sign(&csr, &identity, 86_400)?],
            CaMode::TwoRoots => {
                let second = Ca::new()?;
                vec![ca.sign(&csr, &identity, 86_400)?, format!("{}{}", second.pem, ca.pem)]
            }
            CaMode::OtherIdentity(other) => vec![ca.sign(&csr, other, 86_400)?, ca.pem.clone()],
            CaMode::Refuse(code, message) => {
                call.refuse(code, message);
                return Ok(());
            }
            CaMode::Held => {
                let held = self.shared.held.fetch_add(1, SeqCst) + 1;
                self.shared.most_held.fetch_max(held, SeqCst);
                self.shared.gate.acquire().await?.forget();
                self.shared.held.fetch_sub(1, SeqCst);
                vec![ca.sign(&csr, &identity, 86_400)?, ca.pem.clone()]
            }
        };
        call.accept();
        call.send(&Message::new().strings(1, chain));
        call.finish(0, "");
        Ok(())
    }
}

/// One ADS stream.
#[derive(Debug)]
pub(crate) struct Ads {
    pub(crate) headers: Headers,
    call: Call,
    sent: u64,
}

/// A DeltaDiscoveryRequest.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) fields: Fields,
    pub(crate) type_url: String,
    pub(crate) subscribe: Vec<String>,
    pub(crate) unsubscribe: Vec<String>,
    pub(crate) initial_versions: Vec<(String, String)>,
    pub(crate) nonce: String,
    /// The error's code and message.
    pub(crate) error: Option<(u64, String)>,
}

impl Ads {
    /// The next request.
    pub(crate) async fn request(&mut self) -> Result<Request> {
        let fields = self.call.receive().await?.map_err(|status| anyhow::anyhow!("the client ended: {status:?}"))?;
        let mut initial_versions = fields.map(5)?;
        initial_versions.sort();
        Ok(Request {
            type_url: fields.string(2),
            subscribe: fields.strings(3),
            unsubscribe: fields.strings(4),
            initial_versions,
            nonce: fields.string(6),
            error: match fields.has(7) {
                true => Some(fields.message(7).map(|status| (status.number(1), status.string(2)))?),
                false => None,
            },
            fields,
        })
    }

    /// Sends a response; its nonce.
    pub(crate) fn respond(&mut self, type_url: &str, resources: &[Resource], removed: &[String]) -> String {
        self.sent += 1;
        let nonce = format!("nonce-{}", self.sent);
        let response = Message::new()
            .string(1, &format!("version-{}", self.sent))
            .messages(2, resources.iter().map(Resource::message))
            .string(4, type_url)
            .string(5, &nonce)
            .strings(6, removed);
        self.call.send(&response);
        nonce
    }

    /// Sends a response and takes its answer: `Err` for a NACK.
    pub(crate) async fn push(
        &mut self,
        type_url: &str,
        resources: &[Resource],
        removed: &[String],
    ) -> Result<Result<(), (u64, String)>> {
        let nonce = self.respond(type_url, resources, removed);
        let answer = self.request().await?;
        ensure!(answer.nonce == nonce && answer.type_url == type_url, "an answer to {nonce}, not {answer:?}");
        Ok(answer.error.map_or(Ok(()), Err))
    }

    /// The same where nothing may be refused.
    pub(crate) async fn accepted(&mut self, type_url: &str, resources: &[Resource], removed: &[String]) -> Result<()> {
        let answer = self.push(type_url, resources, removed).await?;
        answer.map_err(|(code, message)| anyhow::anyhow!("NACK {code}: {message}"))
    }

    /// Answers the first requests of both types with these, and takes the answers.
    pub(crate) async fn first(&mut self, addresses: &[Resource], policies: &[Resource]) -> Result<()> {
        for type_url in [ADDRESS, AUTHORIZATION] {
            let request = self.request().await?;
            ensure!(request.type_url == type_url, "the first request for {type_url}, not {request:?}");
        }
        self.accepted(ADDRESS, addresses, &[]).await?;
        self.accepted(AUTHORIZATION, policies, &[]).await
    }

    /// Ends the stream with a status.
    pub(crate) fn finish(&self, status: &Status) {
        self.call.finish(status.code, &status.message);
    }
}
