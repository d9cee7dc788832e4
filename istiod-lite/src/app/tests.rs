//! The whole process on loopback: a folder of manifests on one side, real gRPC clients on the other.

use std::collections::BTreeMap;
use std::net::TcpListener as StdListener;
use std::path::PathBuf;

use aquifer_proto::ca::IstioCertificateRequest;
use aquifer_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use aquifer_proto::security::Authorization;
use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION};
use aquifer_proto::workload::{self, Workload, address};
use aquifer_proto::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient;
use aquifer_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node};
use aquifer_runtime::env::MapEnv;
use prost::Message as _;
use prost_types::value::Kind as ValueKind;
use rustls_pki_types::pem::PemObject as _;
use rustls_pki_types::{CertificateDer, UnixTime};
use serde_json::Value;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::{Certificate, Channel, ClientTlsConfig, Endpoint};
use tonic::{Code, Request, Status, Streaming};

use super::*;
use crate::test_support::{ISSUER, Signer, claims, write_jwks};

mod clients;

/// Five times what a push may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(10);
const NAME: &str = "istiod.istio-system.svc";

const MESH: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: istio-system}
---
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}
---
apiVersion: v1
kind: Node
metadata: {name: node1}
---
apiVersion: v1
kind: Pod
metadata: {name: ztunnel-a, namespace: istio-system, uid: z1, labels: {app: ztunnel}}
spec: {nodeName: node1, serviceAccountName: ztunnel, containers: [{name: c}]}
status:
  phase: Running
  podIP: 198.18.17.2
  podIPs: [{ip: 198.18.17.2}]
  conditions: [{type: Ready, status: 'True'}]
---
apiVersion: v1
kind: Service
metadata: {name: payments, namespace: shop}
spec:
  clusterIP: 198.19.0.10
  clusterIPs: [198.19.0.10]
  ports: [{name: http, port: 80, targetPort: 8080}]
  selector: {app: payments}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: only-orders, namespace: shop}
spec:
  selector: {matchLabels: {app: payments}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/orders]}}]}]
";

fn payments(revision: &str) -> String {
    format!(
        "
apiVersion: v1
kind: Pod
metadata:
  name: payments-1
  namespace: shop
  uid: p1
  labels: {{app: payments, version: {revision}}}
  annotations: {{ambient.istio.io/redirection: enabled}}
spec: {{nodeName: node1, serviceAccountName: payments, containers: [{{name: c}}]}}
status:
  phase: Running
  podIP: 198.18.17.3
  podIPs: [{{ip: 198.18.17.3}}]
  conditions: [{{type: Ready, status: 'True'}}]
"
    )
}

/// A mesh's folders, and its token issuer.
struct World {
    dir: TempDir,
    signer: Signer,
}

impl World {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("manifests")).unwrap();
        let signer = Signer::ec("k1");
        write_jwks(&dir.path().join("jwks.json"), &[&signer]);
        let world = Self { dir, signer };
        world.write("mesh.yaml", MESH);
        world.write("payments.yaml", &payments("v1"));
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        let folder = self.path("manifests");
        std::fs::write(folder.join(".new"), text).unwrap();
        std::fs::rename(folder.join(".new"), folder.join(name)).unwrap();
    }

    fn config(&self) -> Config {
        let path = |name: &str| self.path(name).to_str().unwrap().to_owned();
        let mut vars: BTreeMap<&str, String> = BTreeMap::from([
            ("AQUIFER_MANIFESTS", path("manifests")),
            ("AQUIFER_DATA_DIR", path("data")),
            ("JWKS_FILE", path("jwks.json")),
            ("JWT_ISSUER", ISSUER.to_owned()),
        ]);
        for key in ["GRPC_ADDR", "SECURE_GRPC_ADDR", "MONITORING_ADDR", "HTTP_ADDR"] {
            vars.insert(key, "127.0.0.1:0".to_owned());
        }
        Config::from_env(&vars.into_iter().collect::<MapEnv>()).unwrap()
    }

    async fn start(&self) -> App {
        App::start(self.config()).await.unwrap()
    }

    fn token(&self) -> String {
        self.signer.sign(&claims("istio-system", "ztunnel", "ztunnel-a", "z1"))
    }

    fn root(&self) -> String {
        std::fs::read_to_string(self.path("data/root-cert.pem")).unwrap()
    }

    async fn channel(&self, app: &App, name: &str) -> Result<Channel, tonic::transport::Error> {
        let tls = ClientTlsConfig::new().ca_certificate(Certificate::from_pem(self.root())).domain_name(name);
        let address = format!("https://{}", app.addresses().secure);
        Endpoint::from_shared(address).unwrap().tls_config(tls).unwrap().connect().await
    }

    async fn plaintext(&self, app: &App) -> Channel {
        let address = format!("http://{}", app.addresses().plaintext);
        Endpoint::from_shared(address).unwrap().connect().await.unwrap()
    }
}

fn with_headers<T>(message: T, token: &str) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {token}").parse().unwrap());
    request.metadata_mut().insert("clusterid", "Kubernetes".parse().unwrap());
    request
}

fn text_value(text: &str) -> prost_types::Value {
    prost_types::Value { kind: Some(ValueKind::StringValue(text.into())) }
}

fn node() -> Node {
    let fields = [("NAME", "ztunnel-a"), ("NAMESPACE", "istio-system"), ("NODE_NAME", "node1")];
    Node {
        id: "ztunnel~198.18.17.2~ztunnel-a.istio-system~istio-system.svc.cluster.local".into(),
        cluster: String::new(),
        metadata: Some(prost_types::Struct {
            fields: fields.map(|(k, v)| (k.to_owned(), text_value(v))).into_iter().collect(),
        }),
    }
}

/// A delta client as ztunnel is one.
struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    /// What it holds, by type and name: version and bytes.
    held: BTreeMap<String, BTreeMap<String, (String, Vec<u8>)>>,
}

impl Client {
    async fn connect(channel: Channel, token: &str, held: &Self) -> Result<Self, Status> {
        Self::open(channel, token, held.held.clone()).await
    }

    async fn fresh(channel: Channel, token: &str) -> Result<Self, Status> {
        Self::open(channel, token, BTreeMap::new()).await
    }

    async fn open(
        channel: Channel,
        token: &str,
        held: BTreeMap<String, BTreeMap<String, (String, Vec<u8>)>>,
    ) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        for type_url in [ADDRESS, AUTHORIZATION] {
            let versions = held.get(type_url).into_iter().flatten();
            let first = DeltaDiscoveryRequest {
                node: Some(node()),
                type_url: type_url.into(),
                initial_resource_versions: versions.map(|(n, (v, _))| (n.clone(), v.clone())).collect(),
                ..Default::default()
            };
            requests.send(first).await.unwrap();
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let call = with_headers(ReceiverStream::new(receiver), token);
        let responses = client.delta_aggregated_resources(call).await?.into_inner();
        Ok(Self { requests, responses, held })
    }

    /// The next response, acknowledged and applied.
    async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let message = tokio::time::timeout(PATIENCE, self.responses.message());
        let ended = || Status::unavailable("the stream has ended");
        let response = message.await.expect("a response in time")?.ok_or_else(ended)?;
        let ack = DeltaDiscoveryRequest {
            type_url: response.type_url.clone(),
            response_nonce: response.nonce.clone(),
            ..Default::default()
        };
        let _ = self.requests.send(ack).await;
        let held = self.held.entry(response.type_url.clone()).or_default();
        for resource in &response.resources {
            let body = resource.resource.as_ref().unwrap();
            assert_eq!(body.type_url, response.type_url);
            held.insert(resource.name.clone(), (resource.version.clone(), body.value.clone()));
        }
        for name in &response.removed_resources {
            held.remove(name);
        }
        Ok(response)
    }

    /// Both first answers.
    async fn sync(&mut self) -> BTreeMap<String, DeltaDiscoveryResponse> {
        let mut first = BTreeMap::new();
        while first.len() < 2 {
            let response = self.next().await.unwrap();
            first.entry(response.type_url.clone()).or_insert(response);
        }
        first
    }

    fn workload(&self, uid: &str) -> Option<Workload> {
        let (_, bytes) = self.held.get(ADDRESS)?.get(uid)?;
        match workload::Address::decode(bytes.as_slice()).unwrap().r#type.unwrap() {
            address::Type::Workload(workload) => Some(workload),
            address::Type::Service(_) => None,
        }
    }

    async fn until(&mut self, mut done: impl FnMut(&Self) -> bool) {
        while !done(self) {
            self.next().await.unwrap();
        }
    }
}

const PAYMENTS: &str = "Kubernetes//Pod/shop/payments-1";

async fn http(address: std::net::SocketAddr, path: &str) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

/// The debug page, once it shows what is expected.
async fn syncz(app: &App, expect: impl Fn(&Value) -> bool) -> Value {
    let started = tokio::time::Instant::now();
    loop {
        let answer = http(app.addresses().http, "/debug/syncz").await;
        let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        if expect(&body) {
            return body;
        }
        assert!(started.elapsed() < PATIENCE, "{body}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn objects_reach_clients_and_changes_are_pushed() {
    let world = World::new();
    let app = world.start().await;
    let channel = world.channel(&app, NAME).await.unwrap();
    let mut client = Client::fresh(channel, &world.token()).await.unwrap();
    client.sync().await;

    let payments_1 = client.workload(PAYMENTS).unwrap();
    assert_eq!(payments_1.canonical_revision, "v1");
    assert_eq!(payments_1.tunnel_protocol, workload::TunnelProtocol::Hbone as i32);
    assert_eq!(payments_1.authorization_policies, ["shop/only-orders"]);
    assert!(client.held[ADDRESS].contains_key("shop/payments.shop.svc.cluster.local"));
    let (_, policy) = &client.held[AUTHORIZATION]["shop/only-orders"];
    assert_eq!(Authorization::decode(policy.as_slice()).unwrap().name, "only-orders");

    // A change of one pod is one resource.
    world.write("payments.yaml", &payments("v2"));
    let response = client.next().await.unwrap();
    let names: Vec<_> = response.resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, [PAYMENTS]);
    assert_eq!(client.workload(PAYMENTS).unwrap().canonical_revision, "v2");

    // A file that cannot be read changes nothing; the next good one does.
    world.write("payments.yaml", "apiVersion: v1\nkind: Pod\nmetadata: [this is no pod\n");
    world.write("other.yaml", &payments("x").replace("payments-1", "other-1").replace("17.3", "17.4"));
    client.until(|c| c.workload("Kubernetes//Pod/shop/other-1").is_some()).await;
    assert_eq!(client.workload(PAYMENTS).unwrap().canonical_revision, "v2");
    world.write("payments.yaml", &payments("v3"));
    client.until(|c| c.workload(PAYMENTS).unwrap().canonical_revision == "v3").await;

    // A deleted file takes its objects with it.
    std::fs::remove_file(world.path("manifests/other.yaml")).unwrap();
    client.until(|c| c.workload("Kubernetes//Pod/shop/other-1").is_none()).await;
    app.shutdown().await;
}

#[tokio::test]
async fn a_storm_of_changes_is_few_pushes() {
    let world = World::new();
    let app = world.start().await;
    let mut client = Client::fresh(world.channel(&app, NAME).await.unwrap(), &world.token()).await.unwrap();
    client.sync().await;
    let before = syncz(&app, |_| true).await["generation"].as_u64().unwrap();
    for i in 0..300 {
        let pod = payments("v1").replace("payments-1", &format!("p-{i}")).replace("p1", &format!("u{i}"));
        world.write(&format!("p-{i}.yaml"), &pod.replace("198.18.17.3", &format!("198.18.18.{}", i % 250)));
    }
    world.write("last.yaml", &payments("v1").replace("payments-1", "last").replace("p1", "last"));
    client.until(|c| c.workload("Kubernetes//Pod/shop/last").is_some()).await;
    let after = syncz(&app, |_| true).await["generation"].as_u64().unwrap();
    let held = client.held[ADDRESS].keys().filter(|name| name.contains("/shop/p-")).count();
    assert_eq!(held, 300);
    assert!(after - before < 60, "{} publications", after - before);
    app.shutdown().await;
}

#[tokio::test]
async fn a_restart_keeps_the_root_and_resends_nothing() {
    let world = World::new();
    let app = world.start().await;
    let root = world.root();
    let channel = world.channel(&app, NAME).await.unwrap();
    let mut client = Client::fresh(channel, &world.token()).await.unwrap();
    client.sync().await;
    let held = client.held.clone();
    app.shutdown().await;
    assert!(client.next().await.is_err());

    world.write("payments.yaml", &payments("v2"));
    let app = world.start().await;
    assert_eq!(world.root(), root);
    let channel = world.channel(&app, NAME).await.unwrap();
    let mut client = Client::connect(channel, &world.token(), &client).await.unwrap();
    let first = client.sync().await;
    let names: Vec<_> = first[ADDRESS].resources.iter().map(|r| r.name.as_str()).collect();
    assert_eq!(names, [PAYMENTS]);
    assert!(first[ADDRESS].removed_resources.is_empty());
    assert_eq!(client.held[ADDRESS].len(), held[ADDRESS].len());
    app.shutdown().await;
}

#[tokio::test]
async fn only_known_callers_get_anything_on_either_port() {
    let world = World::new();
    let app = world.start().await;
    let good = world.token();
    let stranger = Signer::ec("k1").sign(&claims("istio-system", "ztunnel", "ztunnel-a", "z1"));
    let gone = world.signer.sign(&claims("istio-system", "ztunnel", "ztunnel-a", "z0"));
    for channel in [world.channel(&app, NAME).await.unwrap(), world.plaintext(&app).await] {
        Client::fresh(channel.clone(), &good).await.unwrap().sync().await;
        for bad in [stranger.as_str(), gone.as_str(), "not-a-token", ""] {
            let refused = match Client::fresh(channel.clone(), bad).await {
                Ok(mut client) => client.next().await.unwrap_err(),
                Err(status) => status,
            };
            assert_eq!(refused.code(), Code::Unauthenticated, "{bad}: {refused}");
        }
    }
    // The CA is served with TLS only.
    let mut ca = IstioCertificateServiceClient::new(world.plaintext(&app).await);
    let call = with_headers(IstioCertificateRequest::default(), &good);
    assert_eq!(ca.create_certificate(call).await.unwrap_err().code(), Code::Unimplemented);
    // And the listener's certificate is for its own names only.
    assert!(world.channel(&app, "elsewhere.example").await.is_err());
    app.shutdown().await;
}

#[tokio::test]
async fn certificates_for_the_pods_of_the_callers_node() {
    let world = World::new();
    let app = world.start().await;
    let mut ca = IstioCertificateServiceClient::new(world.channel(&app, NAME).await.unwrap());
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let csr = rcgen::CertificateParams::default().serialize_request(&key).unwrap().pem().unwrap();
    let identity = "spiffe://cluster.local/ns/shop/sa/payments";
    let ask = |identity: &str| {
        let fields = [("ImpersonatedIdentity".to_owned(), text_value(identity))].into();
        let metadata = Some(prost_types::Struct { fields });
        let request = IstioCertificateRequest { csr: csr.clone(), validity_duration: 600, metadata };
        with_headers(request, &world.token())
    };
    let chain = ca.create_certificate(ask(identity)).await.unwrap().into_inner().cert_chain;
    assert_eq!(chain.len(), 2);
    let der = |pem: &str| CertificateDer::from_pem_slice(pem.as_bytes()).unwrap();
    let (leaf, root) = (der(&chain[0]), der(&chain[1]));
    let anchor = webpki::anchor_from_trusted_cert(&root).unwrap();
    webpki::EndEntityCert::try_from(&leaf)
        .unwrap()
        .verify_for_usage(
            webpki::ALL_VERIFICATION_ALGS,
            &[anchor],
            &[],
            UnixTime::now(),
            webpki::KeyUsage::client_auth(),
            None,
            None,
        )
        .unwrap();
    let (_, parsed) = x509_parser::parse_x509_certificate(&leaf).unwrap();
    assert_eq!(parsed.public_key().raw, rcgen::PublicKeyData::subject_public_key_info(&key));
    let rustls_key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&rustls_pki_types::PrivateKeyDer::Pkcs8(
        key.serialize_der().into(),
    ))
    .unwrap();
    rustls::sign::CertifiedKey::new(vec![leaf.clone()], rustls_key).keys_match().unwrap();

    // A pod that leaves takes its identity with it, at once.
    std::fs::remove_file(world.path("manifests/payments.yaml")).unwrap();
    let started = tokio::time::Instant::now();
    while ca.create_certificate(ask(identity)).await.is_ok() {
        assert!(started.elapsed() < PATIENCE, "the pod is gone, its identity is not");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let refused = ca.create_certificate(ask(identity)).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    assert_eq!(refused.message(), "request impersonation authentication failure");
    app.shutdown().await;
}

#[tokio::test]
async fn pages_tell_of_readiness_clients_and_counts() {
    let world = World::new();
    let app = world.start().await;
    let addresses = app.addresses().clone();
    let mut client = Client::fresh(world.channel(&app, NAME).await.unwrap(), &world.token()).await.unwrap();
    client.sync().await;
    assert!(http(addresses.http, "/ready").await.starts_with("HTTP/1.1 200"));
    let body = syncz(&app, |body| body["clients"][0]["types"][AUTHORIZATION]["state"] == "SYNCED").await;
    assert_eq!(body["resources"][AUTHORIZATION], 1, "{body}");
    assert_eq!(body["clients"][0]["id"], node().id, "{body}");
    drop(client);
    syncz(&app, |body| body["clients"].as_array().unwrap().is_empty()).await;
    let metrics = http(addresses.monitoring, "/metrics").await;
    for name in [
        "pilot_xds",
        "pilot_xds_pushes",
        "pilot_debounce_time_count",
        "pilot_inbound_updates",
        "pilot_services 1",
        "pilot_info",
        "istio_build{component=\"pilot\"",
        "citadel_server_root_cert_expiry_timestamp",
        "citadel_server_root_cert_expiry_seconds 3153",
        "istiod_uptime_seconds",
        "process_resident_memory_bytes",
    ] {
        assert!(metrics.contains(name), "{name} not in\n{metrics}");
    }
    app.shutdown().await;
}

#[tokio::test]
async fn conditions_are_written_once() {
    let world = World::new();
    let app = world.start().await;
    let status = world.path("manifests/.managed/istiod/AuthorizationPolicy/shop/only-orders.yaml");
    let started = tokio::time::Instant::now();
    let text = loop {
        if let Ok(text) = std::fs::read_to_string(&status) {
            break text;
        }
        assert!(started.elapsed() < PATIENCE, "no status at {}", status.display());
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    assert!(text.contains("ZtunnelAccepted") && text.contains("Accepted"), "{text}");
    let written = std::fs::metadata(&status).unwrap().modified().unwrap();
    app.shutdown().await;
    // Nor does a restart write again what stands there already.
    let app = world.start().await;
    let mut client = Client::fresh(world.channel(&app, NAME).await.unwrap(), &world.token()).await.unwrap();
    client.sync().await;
    world.write("payments.yaml", &payments("v2"));
    client.until(|c| c.workload(PAYMENTS).unwrap().canonical_revision == "v2").await;
    app.shutdown().await;
    assert_eq!(std::fs::read_to_string(&status).unwrap(), text);
    assert_eq!(std::fs::metadata(&status).unwrap().modified().unwrap(), written);
}

#[tokio::test]
async fn one_line_says_why_it_cannot_start() {
    type Edit = Box<dyn FnOnce(&mut Config)>;
    let world = World::new();
    let taken = StdListener::bind("127.0.0.1:0").unwrap();
    let start = |edit: Edit| async {
        let mut config = world.config();
        edit(&mut config);
        format!("{:#}", App::start(config).await.err().expect("a refusal"))
    };
    let missing: PathBuf = world.path("nowhere");
    let file: PathBuf = world.path("jwks.json");
    let address = taken.local_addr().unwrap();
    let table: Vec<(Edit, Vec<String>)> = vec![
        (
            Box::new(move |c| c.listen.secure = address),
            vec!["SECURE_GRPC_ADDR".into(), address.to_string(), "in use".into()],
        ),
        (
            Box::new({
                let missing = missing.clone();
                move |c| c.manifests = missing
            }),
            vec!["AQUIFER_MANIFESTS".into(), missing.display().to_string()],
        ),
        (Box::new(move |c| c.ca.data_dir = file), vec!["AQUIFER_DATA_DIR".into(), "jwks.json".into()]),
    ];
    for (edit, words) in table {
        let line = start(edit).await;
        assert!(!line.contains('\n'), "{line}");
        for word in words {
            assert!(line.contains(&word), "{word:?} not in {line:?}");
        }
    }
}
