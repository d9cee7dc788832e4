//! The whole process on loopback: a folder of manifests on one side, real gRPC clients on the other.

use std::collections::BTreeMap;
use std::net::TcpListener as StdListener;
use std::path::PathBuf;

use aquifer_proto::ca::IstioCertificateRequest;
use aquifer_proto::ca::istio_certificate_service_client::IstioCertificateServiceClient;
use aquifer_proto::security::Authorization;
use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION, WORKLOAD};
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
mod discovery;
mod istioctl;
mod process;
mod rotation;
mod trust_domain;

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

    /// Asks for its node's own workloads, and later for single names.
    async fn on_demand(channel: Channel, token: &str) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(16);
        let star = vec!["*".to_owned()];
        let first = DeltaDiscoveryRequest {
            node: Some(node()),
            type_url: ADDRESS.into(),
            resource_names_subscribe: star.clone(),
            resource_names_unsubscribe: star,
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let call = with_headers(ReceiverStream::new(receiver), token);
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(call).await?.into_inner();
        Ok(Self { requests, responses, held: BTreeMap::new() })
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

async fn proxies(app: &App, expect: impl Fn(&Value) -> bool) -> Value {
    page(app, "/debug/proxies", expect).await
}

/// A debug page, once it shows what is expected.
async fn page(app: &App, path: &str, expect: impl Fn(&Value) -> bool) -> Value {
    let started = tokio::time::Instant::now();
    loop {
        let answer = http(app.addresses().http, path).await;
        let body: Value = serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap();
        if expect(&body) {
            return body;
        }
        assert!(started.elapsed() < PATIENCE, "{body}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
