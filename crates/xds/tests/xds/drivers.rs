//! The drivers over loopback, with real TLS.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION};
use aquifer_proto::xds::Node;
use aquifer_proto::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use aquifer_runtime::metrics::{Registry, encode};
use aquifer_runtime::{Cancel, Tracker};
use aquifer_xds::client::demand::{self, Demander};
use aquifer_xds::client::driver::{ClientConfig, RootCa, Token, run_on_demand};
use aquifer_xds::client::metrics::ClientMetrics;
use aquifer_xds::client::session::Watch;
use aquifer_xds::client::{Rejected, ResourceSink, ResourceUpdate};
use aquifer_xds::resource::{Resource, ResourceSet};
use aquifer_xds::server::driver::AllowAnonymous;
use aquifer_xds::server::{Authenticate, Caller, Limits, Publisher, Server, ServerMetrics};
use parking_lot::Mutex;
use rcgen::{CertificateParams, CertifiedIssuer, KeyPair};
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::metadata::MetadataMap;
use tonic::transport::{CertificateDer, Identity, ServerTlsConfig};
use tonic::{Code, Status};

/// Five times what any step here should take, on a busy machine.
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);
const SERVER_NAME: &str = "istiod.istio-system.svc";
pub(crate) const NODE: &str = "ztunnel~10.0.0.1~ztunnel-a.istio-system~istio-system.svc.cluster.local";

pub(crate) async fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let poll = async {
        while !is_so() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    assert!(tokio::time::timeout(DEADLINE, poll).await.is_ok(), "in vain: {what}");
}

pub(crate) struct Ca(CertifiedIssuer<'static, KeyPair>);

impl Ca {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        Self(CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap())
    }

    pub(crate) fn pem(&self) -> String {
        self.0.pem()
    }

    pub(crate) fn server(&self) -> ServerTlsConfig {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![SERVER_NAME.to_owned()]).unwrap();
        let cert = params.signed_by(&key, &self.0).unwrap();
        ServerTlsConfig::new().identity(Identity::from_pem(cert.pem(), key.serialize_pem()))
    }
}

/// Wants the token "good" and remembers the headers.
#[derive(Clone, Default)]
pub(crate) struct Guard(Arc<Mutex<Vec<MetadataMap>>>);

#[tonic::async_trait]
impl Authenticate for Guard {
    async fn authenticate(
        &self,
        metadata: &MetadataMap,
        _peer_certs: Option<Arc<Vec<CertificateDer<'static>>>>,
        _peer: Option<std::net::SocketAddr>,
    ) -> Result<Caller, Status> {
        self.0.lock().push(metadata.clone());
        match metadata.get("authorization").map(|v| v.as_bytes()) {
            Some(b"Bearer good") => Ok(Caller::workload("istio-system", "ztunnel")),
            _ => Err(Status::unauthenticated("who are you?")),
        }
    }
}

/// A server on a port of its own, until it is stopped.
pub(crate) struct Running {
    pub(crate) address: SocketAddr,
    pub(crate) cancel: Cancel,
    tracker: Tracker,
    pub(crate) registry: Registry,
}

impl Running {
    pub(crate) async fn start(
        port: u16,
        publisher: &Publisher,
        guard: Arc<dyn Authenticate>,
        tls: Option<ServerTlsConfig>,
    ) -> Self {
        Self::start_with(port, publisher, guard, tls, Limits::default()).await
    }

    pub(crate) async fn start_with(
        port: u16,
        publisher: &Publisher,
        guard: Arc<dyn Authenticate>,
        tls: Option<ServerTlsConfig>,
        limits: Limits,
    ) -> Self {
        // One that comes back to its port may find there what will be gone in a moment: a client that has met itself, or
        // a child between fork and exec.
        let free = async {
            loop {
                match TcpListener::bind(("127.0.0.1", port)).await {
                    Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    bound => return bound.unwrap(),
                }
            }
        };
        let listener = tokio::time::timeout(DEADLINE, free).await.expect("its port");
        let address = listener.local_addr().unwrap();
        let (cancel, tracker, mut registry) = (Cancel::new(), Tracker::new(), Registry::default());
        let metrics = ServerMetrics::register(&mut registry);
        let service =
            Server::new(publisher.clone(), guard, metrics, tracker.clone(), cancel.child()).with_limits(limits);
        let mut builder = tonic::transport::Server::builder();
        if let Some(tls) = tls {
            builder = builder.tls_config(tls).unwrap();
        }
        let stop = cancel.child();
        let serve = builder
            .add_service(service.into_service())
            .serve_with_incoming_shutdown(TcpListenerStream::new(listener), async move { stop.drained().await });
        tracker.spawn("server", async move { serve.await.unwrap() });
        Self { address, cancel, tracker, registry }
    }

    pub(crate) async fn stop(self) {
        self.cancel.drain();
        self.tracker.close();
        tokio::time::timeout(DEADLINE, self.tracker.wait()).await.expect("streams end with the drain");
        assert_eq!(self.tracker.panics(), 0);
    }
}

#[derive(Clone, Default)]
pub(crate) struct Sink(Arc<Mutex<Applied>>);

#[derive(Default)]
struct Applied {
    held: BTreeMap<(String, String), Vec<u8>>,
    updates: Vec<String>,
}

impl Sink {
    pub(crate) fn body(&self, name: &str) -> Option<Vec<u8>> {
        self.0.lock().held.get(&(ADDRESS.to_owned(), name.to_owned())).cloned()
    }

    pub(crate) fn take_updates(&self) -> Vec<String> {
        std::mem::take(&mut self.0.lock().updates)
    }
}

impl ResourceSink for Sink {
    fn apply(&mut self, type_url: &str, updates: Vec<ResourceUpdate>) -> Vec<Rejected> {
        let (mut applied, mut rejected) = (self.0.lock(), Vec::new());
        for update in updates {
            match update {
                ResourceUpdate::Upsert { name, .. } if name.starts_with("bad") => {
                    rejected.push(Rejected { name, error: "is bad".to_owned() });
                }
                ResourceUpdate::Upsert { name, body, .. } => {
                    applied.updates.push(format!("+{name}"));
                    applied.held.insert((type_url.to_owned(), name), body.to_vec());
                }
                ResourceUpdate::Remove { name } => {
                    applied.updates.push(format!("-{name}"));
                    applied.held.remove(&(type_url.to_owned(), name));
                }
            }
        }
        rejected
    }
}

pub(crate) struct Client {
    pub(crate) sink: Sink,
    registry: Registry,
    synced: Arc<Mutex<u32>>,
    demander: Demander,
    tracker: Tracker,
    cancel: Cancel,
}

impl Client {
    pub(crate) fn start(config: ClientConfig) -> Self {
        let (sink, mut registry) = (Sink::default(), Registry::default());
        let (synced, tracker, cancel) = (Arc::default(), Tracker::new(), Cancel::new());
        let (demander, demands) = demand::channel();
        let on_synced = {
            let synced: Arc<Mutex<u32>> = Arc::clone(&synced);
            move || *synced.lock() += 1
        };
        let metrics = ClientMetrics::register(&mut registry);
        let client = run_on_demand(config, sink.clone(), metrics, on_synced, demands, cancel.child());
        tracker.spawn("client", client);
        Self { sink, registry, synced, demander, tracker, cancel }
    }

    pub(crate) fn is_synced(&self) -> bool {
        *self.synced.lock() == 1
    }

    fn counts(&self, line: &str) -> bool {
        counted(&self.registry, line) > 0
    }

    pub(crate) async fn stop(self) {
        self.cancel.drain();
        self.tracker.close();
        tokio::time::timeout(DEADLINE, self.tracker.wait()).await.expect("it ends with the drain");
        assert_eq!(self.tracker.panics(), 0);
    }
}

pub(crate) fn counted(registry: &Registry, metric: &str) -> u64 {
    let text = encode(registry);
    let line = text.lines().find_map(|line| line.strip_prefix(metric));
    line.map_or(0, |value| value.trim().parse().unwrap())
}

pub(crate) fn config(port: u16, folder: &Path) -> ClientConfig {
    ClientConfig {
        address: format!("https://127.0.0.1:{port}"),
        alt_hostname: Some(SERVER_NAME.to_owned()),
        root_ca: RootCa::File(folder.join("root-cert.pem")),
        token: Some(Token::File(folder.join("istio-token"))),
        cluster_id: "Kubernetes".to_owned(),
        headers: vec![("X-Custom".to_owned(), "1".to_owned())],
        node: Node { id: NODE.to_owned(), ..Node::default() },
        watches: vec![Watch::wildcard(ADDRESS), Watch::wildcard(AUTHORIZATION)],
    }
}

pub(crate) fn set(addresses: &[(&str, u8)]) -> ResourceSet {
    let mut set = ResourceSet::of_types([ADDRESS, AUTHORIZATION]);
    for (name, body) in addresses {
        set.upsert(Resource::from_bytes(ADDRESS, *name, vec![*body]));
    }
    set
}

/// A CA, a folder with its root and a good token.
pub(crate) fn files() -> (Ca, tempfile::TempDir) {
    let (ca, folder) = (Ca::new(), tempfile::tempdir().unwrap());
    std::fs::write(folder.path().join("root-cert.pem"), ca.pem()).unwrap();
    std::fs::write(folder.path().join("istio-token"), "good\n").unwrap();
    (ca, folder)
}

/// Names and types of the lines that begin with `prefix`, as a recorded page or ours has them.
fn families<'a>(page: &'a str, prefix: &str) -> Vec<(&'a str, &'a str)> {
    let types = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
    types.filter(|(name, _)| name.starts_with(prefix)).collect()
}

/// Names of the series, without labels.
fn series<'a>(page: &'a str, prefix: &str) -> BTreeSet<&'a str> {
    page.lines().filter(|line| line.starts_with(prefix)).filter_map(|line| line.split(['{', ' ']).next()).collect()
}

#[tokio::test]
async fn counters_have_the_names_of_the_originals() {
    let (ca, folder) = files();
    let publisher = Publisher::new(set(&[("bad", 1)]));
    let server = Running::start(0, &publisher, Arc::new(Guard::default()), Some(ca.server())).await;
    let client = Client::start(config(server.address.port(), folder.path()));
    until("synced", || client.is_synced()).await;
    until("the NACK arrives", || counted(&server.registry, "pilot_total_xds_rejects{type=\"wds\"}") == 1).await;

    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/recordings/ztunnel/metrics.txt");
    let recorded = std::fs::read_to_string(path).unwrap();
    let ours = encode(&client.registry);
    for family in families(&recorded, "istio_xds_") {
        assert!(families(&ours, "istio_xds_").contains(&family), "{family:?} not in\n{ours}");
    }
    assert!(series(&recorded, "istio_xds_").is_subset(&series(&ours, "istio_xds_")), "{ours}");
    // istiod is of another make: its counters bear their names as they are.
    let theirs = encode(&server.registry);
    assert!(series(&theirs, "pilot_").is_superset(&["pilot_xds_pushes", "pilot_total_xds_rejects"].into()), "{theirs}");
    assert!(!theirs.contains("_total{") && !theirs.contains("_total "), "{theirs}");
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn connects_follows_and_ends() {
    let (ca, folder) = files();
    let publisher = Publisher::new(set(&[("a", 1)]));
    let guard = Guard::default();
    let server = Running::start(0, &publisher, Arc::new(guard.clone()), Some(ca.server())).await;
    let client = Client::start(config(server.address.port(), folder.path()));

    until("synced", || client.is_synced()).await;
    assert_eq!(client.sink.body("a"), Some(vec![1]));
    {
        let seen = guard.0.lock();
        assert_eq!(seen[0].get("clusterid").unwrap(), "Kubernetes");
        assert_eq!(seen[0].get("x-custom").unwrap(), "1");
    }
    publisher.publish(set(&[("a", 2), ("bad", 1), ("b", 1)]));
    until("changed", || client.sink.body("b").is_some()).await;
    assert_eq!(client.sink.body("a"), Some(vec![2]));
    assert_eq!(client.sink.body("bad"), None);
    until("the NACK arrives", || counted(&server.registry, "pilot_total_xds_rejects{type=\"wds\"}") == 1).await;
    assert_eq!(counted(&server.registry, "pilot_xds{version=\"unknown\"}"), 1);
    assert_eq!(counted(&server.registry, "pilot_xds_pushes{type=\"wds\"}"), 2);
    assert_eq!(counted(&server.registry, "pilot_xds_pushes{type=\"wads\"}"), 1);
    let url = "{url=\"type.googleapis.com/istio.workload.Address\"}";
    assert_eq!(counted(&client.registry, &format!("istio_xds_message_total{url}")), 2);
    assert!(client.counts(&format!("istio_xds_message_bytes_total{url}")));

    client.stop().await;
    until("the server notices", || counted(&server.registry, "pilot_xds{version=\"unknown\"}") == 0).await;
    server.stop().await;
}

/// istiod reads 4 MiB of what a client says that it holds, which 40 000 workloads exceed.
#[tokio::test]
async fn who_holds_more_than_the_server_reads_gets_everything_anew() {
    let (ca, folder) = files();
    let names: Vec<String> = (0..12_000).map(|n| format!("{n:0>100}")).collect();
    let all: Vec<(&str, u8)> = names.iter().map(|name| (name.as_str(), 1)).collect();
    let publisher = Publisher::new(set(&all));
    let server = Running::start(0, &publisher, Arc::new(Guard::default()), Some(ca.server())).await;
    let port = server.address.port();
    let client = Client::start(config(port, folder.path()));
    until("synced", || client.is_synced()).await;
    server.stop().await;
    let mut fewer = all[1..].to_vec();
    fewer.push(("new", 1));
    publisher.publish(set(&fewer));
    let limits = Limits { first_request_bytes: 1 << 20, ..Limits::default() };
    let server = Running::start_with(port, &publisher, Arc::new(Guard::default()), Some(ca.server()), limits).await;
    until("it follows again", || client.sink.body("new").is_some()).await;
    assert_eq!((client.sink.body(&names[0]), client.sink.body(&names[1])), (None, Some(vec![1])));
    // Nothing is taken from those that follow.
    fewer.push(("newer", 1));
    publisher.publish(set(&fewer));
    until("it goes on following", || client.sink.body("newer").is_some()).await;
    assert_eq!(client.sink.body(&names[1]), Some(vec![1]));
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn an_unknown_server_is_refused_until_its_root_is_trusted() {
    let (_, folder) = files();
    let other = Ca::new();
    let publisher = Publisher::new(set(&[("a", 1)]));
    let guard = Guard::default();
    let server = Running::start(0, &publisher, Arc::new(guard.clone()), Some(other.server())).await;
    let client = Client::start(config(server.address.port(), folder.path()));
    let failed = "istio_xds_connection_terminations_total{reason=\"ConnectionError\"}";
    until("refused", || counted(&client.registry, failed) >= 2).await;
    assert!(guard.0.lock().is_empty(), "it never saw the token");
    assert!(!client.is_synced());

    std::fs::write(folder.path().join("root-cert.pem"), other.pem()).unwrap();
    until("trusted", || client.is_synced()).await;
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_server_of_another_name_is_refused() {
    let (ca, folder) = files();
    let publisher = Publisher::new(set(&[("a", 1)]));
    let server = Running::start(0, &publisher, Arc::new(Guard::default()), Some(ca.server())).await;
    let failed = "istio_xds_connection_terminations_total{reason=\"ConnectionError\"}";
    let mut impostor = config(server.address.port(), folder.path());
    impostor.alt_hostname = None;
    let mut plaintext = config(server.address.port(), folder.path());
    plaintext.address = plaintext.address.replace("https", "http");
    for config in [impostor, plaintext] {
        let client = Client::start(config);
        until("refused", || counted(&client.registry, failed) >= 2).await;
        assert!(!client.is_synced());
        client.stop().await;
    }
    server.stop().await;
}

/// Where the system's authorities are is up to the environment, which belongs to the whole process: so in another one.
#[tokio::test]
async fn the_systems_authorities_are_trusted_if_so_set_and_no_others() {
    const FOLDER: &str = "AQUIFER_TEST_FOLDER";
    const PORT: &str = "AQUIFER_TEST_PORT";
    const NAME: &str = "drivers::the_systems_authorities_are_trusted_if_so_set_and_no_others";
    let var = |name| aquifer_runtime::env::Env::var(&aquifer_runtime::env::ProcessEnv, name);
    if let (Some(folder), Some(port)) = (var(FOLDER), var(PORT)) {
        let config = ClientConfig { root_ca: RootCa::System, ..config(port.parse().unwrap(), folder.as_ref()) };
        let client = Client::start(config);
        let failed = "istio_xds_connection_terminations_total{reason=\"ConnectionError\"}";
        until("an end", || client.is_synced() || client.counts(failed)).await;
        println!("trusted: {}", client.is_synced());
        return client.stop().await;
    }
    let (ca, folder) = files();
    let publisher = Publisher::new(set(&[("a", 1)]));
    let server = Running::start(0, &publisher, Arc::new(Guard::default()), Some(ca.server())).await;
    let roots = folder.path().join("roots.pem");
    for (pem, trusted) in [(ca.pem(), true), (Ca::new().pem(), false), (String::new(), false)] {
        std::fs::write(&roots, pem).unwrap();
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", NAME, "--nocapture"]).env_remove("SSL_CERT_DIR").env("SSL_CERT_FILE", &roots);
        child.env(FOLDER, folder.path()).env(PORT, server.address.port().to_string());
        let output = tokio::time::timeout(2 * DEADLINE, child.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(&format!("trusted: {trusted}")), "{said}");
    }
    server.stop().await;
}

#[tokio::test]
async fn a_renewed_token_is_read_for_the_next_connection() {
    let (ca, folder) = files();
    std::fs::write(folder.path().join("istio-token"), "expired").unwrap();
    let publisher = Publisher::new(set(&[]));
    let server = Running::start(0, &publisher, Arc::new(Guard::default()), Some(ca.server())).await;
    let client = Client::start(config(server.address.port(), folder.path()));
    let failed = "istio_xds_connection_terminations_total{reason=\"ConnectionError\"}";
    until("refused", || counted(&client.registry, failed) >= 2).await;
    std::fs::write(folder.path().join("istio-token"), "good").unwrap();
    until("let in", || client.is_synced()).await;
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn a_reconnect_leaves_no_gap_and_sends_only_what_changed() {
    let (ca, folder) = files();
    let publisher = Publisher::new(set(&[("a", 1), ("b", 1), ("c", 1)]));
    let server = Running::start(0, &publisher, Arc::new(Guard::default()), Some(ca.server())).await;
    let port = server.address.port();
    let client = Client::start(config(port, folder.path()));
    until("synced", || client.is_synced()).await;
    server.stop().await;
    assert_eq!(client.sink.take_updates(), ["+a", "+b", "+c"]);
    let complete = "istio_xds_connection_terminations_total{reason=\"Complete\"}";
    until("the end in good order is seen", || client.counts(complete)).await;
    assert_eq!(client.sink.body("c"), Some(vec![1]), "what was received stays in force");

    publisher.publish(set(&[("a", 2), ("b", 1), ("d", 1)]));
    let server = Running::start(port, &publisher, Arc::new(Guard::default()), Some(ca.server())).await;
    until("caught up", || client.sink.body("d").is_some()).await;
    assert_eq!(client.sink.take_updates(), ["+a", "+d", "-c"]);
    assert!(client.is_synced(), "told once");
    client.stop().await;
    server.stop().await;
}

#[tokio::test]
async fn demands_wait_for_their_answer() {
    let (ca, folder) = files();
    let mut all = set(&[]);
    let vip = vec!["/10.96.0.1".to_owned()];
    all.upsert(Resource::from_bytes(ADDRESS, "shop/web", vec![1]).with_aliases(vip));
    let publisher = Publisher::new(all);
    let server = Running::start(0, &publisher, Arc::new(Guard::default()), Some(ca.server())).await;
    let mut config = config(server.address.port(), folder.path());
    config.watches = vec![Watch::on_demand(ADDRESS), Watch::wildcard(AUTHORIZATION)];
    let client = Client::start(config);
    until("synced", || client.is_synced()).await;
    assert_eq!(client.sink.body("shop/web"), None);
    for name in ["/10.96.0.1", "shop/web", "/203.0.113.9", "/203.0.113.9"] {
        let answered = client.demander.demand(ADDRESS, name);
        assert!(tokio::time::timeout(DEADLINE, answered).await.expect(name));
    }
    assert_eq!(client.sink.body("shop/web"), Some(vec![1]));
    let demander = client.demander.clone();
    client.stop().await;
    assert!(!demander.demand(ADDRESS, "x").await, "nobody is left to answer");
    server.stop().await;
}

pub(crate) type Requests = tokio::sync::mpsc::Sender<aquifer_proto::xds::DeltaDiscoveryRequest>;
pub(crate) type Responses = tonic::Streaming<aquifer_proto::xds::DeltaDiscoveryResponse>;

/// A client by hand, on the plaintext port.
pub(crate) async fn stream(address: SocketAddr, node: Node) -> (Requests, Responses) {
    let url = format!("http://{address}");
    let mut client = AggregatedDiscoveryServiceClient::connect(url).await.unwrap();
    let (tx, rx) = tokio::sync::mpsc::channel(8);
    let request = aquifer_proto::xds::DeltaDiscoveryRequest {
        node: Some(node),
        type_url: ADDRESS.to_owned(),
        ..Default::default()
    };
    tx.send(request).await.unwrap();
    let responses = client.delta_aggregated_resources(ReceiverStream::new(rx)).await.unwrap();
    (tx, responses.into_inner())
}

#[tokio::test]
async fn a_slow_client_gets_the_newest_state_and_not_every_step() {
    let publisher = Publisher::new(set(&[]));
    let server = Running::start(0, &publisher, Arc::new(AllowAnonymous), None).await;
    let node = Node { id: NODE.to_owned(), ..Node::default() };
    let (_requests, mut responses) = stream(server.address, node).await;
    assert!(responses.message().await.unwrap().is_some());
    // More than every window and buffer on the way holds: the stream stalls while nobody reads.
    const STEPS: u32 = 500;
    for step in 0..STEPS {
        let mut body = vec![0; 100_000];
        body[..4].copy_from_slice(&step.to_be_bytes());
        let mut set = set(&[]);
        set.upsert(Resource::from_bytes(ADDRESS, "a", body));
        publisher.publish(set);
        tokio::task::yield_now().await;
    }
    let read = async {
        let mut count = 0;
        loop {
            let response = responses.message().await.unwrap().unwrap();
            count += 1;
            let body = &response.resources[0].resource.as_ref().unwrap().value;
            if body[..4] == (STEPS - 1).to_be_bytes() {
                return count;
            }
        }
    };
    let count = tokio::time::timeout(DEADLINE, read).await.unwrap();
    assert!(count < STEPS / 2, "{count} of {STEPS} steps were sent");
    server.stop().await;
}

#[tokio::test]
async fn odd_clients_are_told_why() {
    let publisher = Publisher::new(set(&[]));
    let server = Running::start(0, &publisher, Arc::new(AllowAnonymous), None).await;
    let (_requests, mut responses) = stream(server.address, Node::default()).await;
    let status = responses.message().await.unwrap_err();
    assert_eq!(status.code(), Code::InvalidArgument);
    assert_eq!(status.message(), "missing node information");
    let node = Node { id: NODE.to_owned(), ..Node::default() };
    let (requests, mut responses) = stream(server.address, node).await;
    responses.message().await.unwrap();
    let unknown = aquifer_proto::xds::DeltaDiscoveryRequest {
        type_url: "type.googleapis.com/example.Unknown".to_owned(),
        ..Default::default()
    };
    requests.send(unknown).await.unwrap();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::Unauthenticated);
    server.stop().await;
}
