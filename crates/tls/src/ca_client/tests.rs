use super::*;
use crate::testing::*;
use aquifer_proto::ca::IstioCertificateResponse;
use aquifer_proto::ca::istio_certificate_service_server::{IstioCertificateService, IstioCertificateServiceServer};
use aquifer_runtime::Tracker;
use rcgen::{KeyPair, SanType};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio_stream::wrappers::TcpListenerStream;
use tonic::transport::{Identity as ServerIdentity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};

type Asked = Arc<Mutex<Vec<(BTreeMap<String, String>, IstioCertificateRequest)>>>;

/// Plays istiod: signs with `ca`, or answers as told.
struct FakeCa {
    ca: Arc<TestCa>,
    asked: Asked,
    answer: Option<Result<Vec<String>, Status>>,
}

#[tonic::async_trait]
impl IstioCertificateService for FakeCa {
    async fn create_certificate(
        &self,
        request: Request<IstioCertificateRequest>,
    ) -> Result<Response<IstioCertificateResponse>, Status> {
        let headers = request.metadata().clone().into_headers();
        let text = |v: &[u8]| String::from_utf8_lossy(v).into_owned();
        let headers = headers.iter().map(|(k, v)| (k.to_string(), text(v.as_bytes()))).collect();
        let request = request.into_inner();
        self.asked.lock().push((headers, request.clone()));
        let cert_chain = match &self.answer {
            Some(answer) => answer.clone()?,
            None => {
                let who = impersonated(&request).unwrap_or_else(|| server_id().to_string());
                self.ca.sign(&request.csr, &who, request.validity_duration)
            }
        };
        Ok(Response::new(IstioCertificateResponse { cert_chain }))
    }
}

fn impersonated(request: &IstioCertificateRequest) -> Option<String> {
    match &request.metadata.as_ref()?.fields.get("ImpersonatedIdentity")?.kind {
        Some(Kind::StringValue(text)) => Some(text.clone()),
        _ => None,
    }
}

struct Istiod {
    address: SocketAddr,
    asked: Asked,
    tracker: Tracker,
    task: tokio::task::JoinHandle<()>,
}

impl Istiod {
    /// Serves on loopback with a certificate for `istiod.istio-system.svc` of `tls`.
    async fn start(tls: &TestCa, answer: Option<Result<Vec<String>, Status>>) -> Self {
        Self::start_at(([127, 0, 0, 1], 0).into(), tls, answer).await
    }

    async fn start_at(at: SocketAddr, tls: &TestCa, answer: Option<Result<Vec<String>, Status>>) -> Self {
        let key = KeyPair::generate().unwrap();
        let name = SanType::DnsName("istiod.istio-system.svc".try_into().unwrap());
        let cert = tls.leaf(&key, vec![name], -60, 3600);
        // tonic's server takes the process's provider as its client does.
        provider::install(TlsPolicy::default());
        let tls = ServerTlsConfig::new().identity(ServerIdentity::from_pem(cert, key.serialize_pem()));
        let asked = Asked::default();
        let service = FakeCa { ca: Arc::new(TestCa::new()), asked: asked.clone(), answer };
        // One that comes back to its port may find there, for a moment, a child of another test between fork and exec.
        let free = async {
            loop {
                match TcpListener::bind(at).await {
                    Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => {
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                    bound => return bound.unwrap(),
                }
            }
        };
        let listener = tokio::time::timeout(Duration::from_secs(20), free).await.expect("its port");
        let address = listener.local_addr().unwrap();
        let server = Server::builder().tls_config(tls).unwrap();
        let tracker = Tracker::new();
        let task = tracker.spawn("istiod", async move {
            let service = IstioCertificateServiceServer::new(service);
            server.serve_with_incoming(service, TcpListenerStream::new(listener)).await.unwrap();
        });
        Self { address, asked, tracker, task }
    }

    fn config(&self, root: Source) -> CaConfig {
        CaConfig { root: root.into(), ..Self::config_at(&self.address.to_string()) }
    }

    fn config_at(address: &str) -> CaConfig {
        CaConfig {
            address: format!("https://{address}"),
            root: Roots::System,
            alt_hostname: Some("istiod.istio-system.svc".into()),
            token: Some(Source::Inline("the-token\n".into())),
            cluster_id: "Kubernetes".into(),
            headers: vec![("X-Extra".into(), "1".into())],
            ttl: Duration::from_secs(86400),
            impersonate: true,
            timeout: Duration::from_secs(10),
        }
    }

    fn last(&self) -> (BTreeMap<String, String>, IstioCertificateRequest) {
        self.asked.lock().last().cloned().unwrap()
    }

    async fn stop(self) {
        self.task.abort();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

fn recorded(name: &str) -> Vec<serde_json::Value> {
    let path = format!("{}/../../tests/recordings/ca/{name}", env!("CARGO_MANIFEST_DIR"));
    let recording: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap();
    recording["entries"].as_array().unwrap().clone()
}

/// The call has the headers and fields of the reference client's.
#[tokio::test]
async fn asks_like_the_reference() {
    let tls = TestCa::new();
    let istiod = Istiod::start(&tls, None).await;
    let client = IstioCaClient::new(istiod.config(Source::Inline(tls.pem())));
    let identity = id("spiffe://cluster.local/ns/amb/sa/server");
    let bundle = client.fetch(&identity).await.unwrap();
    let left = bundle.not_after() - time::OffsetDateTime::now_utc();
    assert!(left > time::Duration::hours(23) && left <= time::Duration::hours(24), "{left}");

    let entries = recorded("ca-real-ztunnel.json");
    let (headers, request) = istiod.last();
    let theirs = entries.iter().find(|e| e["headers"].is_object()).unwrap();
    for (name, value) in theirs["headers"].as_object().unwrap() {
        match name.as_str() {
            ":authority" => {}
            "authorization" => assert_eq!(headers[name], "Bearer the-token"),
            name => assert_eq!(headers[name], value[0].as_str().unwrap()),
        }
    }
    assert_eq!(headers["x-extra"], "1");
    let theirs = &entries.iter().find(|e| e["message"] == "IstioCertificateRequest").unwrap()["json"];
    assert_eq!(request.validity_duration.to_string(), theirs["validityDuration"].as_str().unwrap());
    assert_eq!(impersonated(&request).unwrap(), theirs["metadata"]["ImpersonatedIdentity"].as_str().unwrap());
    assert_eq!(request.metadata.unwrap().fields.len(), 1);
    istiod.stop().await;
}

/// Each answer of real istiod to a bad call: an error that says what istiod said.
#[tokio::test]
async fn recorded_refusals() {
    let tls = TestCa::new();
    let mut seen = 0;
    for entry in recorded("ca-cases.json") {
        let Some((code, message)) = entry["error"].as_str().and_then(|e| e.split_once(": ")) else { continue };
        let status = match code {
            "Unauthenticated" => Status::unauthenticated(message),
            "InvalidArgument" => Status::invalid_argument(message),
            other => panic!("{other}"),
        };
        let istiod = Istiod::start(&tls, Some(Err(status))).await;
        let client = IstioCaClient::new(istiod.config(Source::Inline(tls.pem())));
        let error = client.fetch(&server_id()).await.err().unwrap();
        assert!(matches!(&error, CaError::Call(_)) && error.to_string().ends_with(message), "{error}");
        seen += 1;
        istiod.stop().await;
    }
    assert!(seen >= 6, "{seen}");
}

#[tokio::test]
async fn answers_that_are_of_no_use() {
    let tls = TestCa::new();
    let other = TestCa::new();
    let foreign = other.leaf(&KeyPair::generate().unwrap(), vec![uri(&server_id().to_string())], -60, 600);
    for (chain, expect) in [
        (vec![], "certificate chain of 0 elements"),
        (vec![foreign.clone()], "certificate chain of 1 elements"),
        (vec![foreign.clone(), "nonsense".into()], "element 1 of the certificate chain holds 0"),
        (vec![foreign, other.pem()], "another key"),
    ] {
        let istiod = Istiod::start(&tls, Some(Ok(chain))).await;
        let client = IstioCaClient::new(istiod.config(Source::Inline(tls.pem())));
        let error = client.fetch(&server_id()).await.err().unwrap();
        assert!(matches!(&error, CaError::Bundle(_)) && error.to_string().contains(expect), "{error}");
        istiod.stop().await;
    }
}

#[tokio::test]
async fn without_impersonation_and_without_token() {
    let tls = TestCa::new();
    let istiod = Istiod::start(&tls, None).await;
    let config = CaConfig { impersonate: false, token: None, ..istiod.config(Source::Inline(tls.pem())) };
    IstioCaClient::new(config).fetch(&server_id()).await.unwrap();
    let (headers, request) = istiod.last();
    assert!(request.metadata.is_none() && !headers.contains_key("authorization"));
    istiod.stop().await;
}

/// The kubelet replaces both files; the next call uses what is there then.
#[tokio::test]
async fn root_and_token_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let (root, token) = (folder.path().join("root-cert.pem"), folder.path().join("istio-token"));
    let (old, new) = (TestCa::named("old"), TestCa::named("new"));
    std::fs::write(&root, old.pem()).unwrap();
    std::fs::write(&token, "first").unwrap();
    let istiod = Istiod::start(&old, None).await;
    let address = istiod.address;
    let config = CaConfig { token: Some(Source::Path(token.clone())), ..istiod.config(Source::Path(root.clone())) };
    let client = IstioCaClient::new(config);
    client.fetch(&server_id()).await.unwrap();
    assert_eq!(istiod.last().0["authorization"], "Bearer first");
    istiod.stop().await;

    let istiod = Istiod::start_at(address, &new, None).await;
    std::fs::write(&root, new.pem()).unwrap();
    std::fs::write(&token, "second").unwrap();
    client.fetch(&server_id()).await.unwrap();
    assert_eq!(istiod.last().0["authorization"], "Bearer second");

    std::fs::remove_file(&token).unwrap();
    let error = client.fetch(&server_id()).await.err().unwrap();
    assert!(error.to_string().contains("istio-token"), "{error}");
    istiod.stop().await;
}

#[tokio::test]
async fn a_server_that_is_not_istiod_gets_no_token() {
    let (tls, foreign) = (TestCa::new(), TestCa::named("foreign"));
    let istiod = Istiod::start(&foreign, None).await;
    let client = IstioCaClient::new(istiod.config(Source::Inline(tls.pem())));
    assert!(matches!(client.fetch(&server_id()).await, Err(CaError::Call(_))));
    let wrong_name = CaConfig { alt_hostname: Some("other".into()), ..istiod.config(Source::Inline(foreign.pem())) };
    assert!(IstioCaClient::new(wrong_name).fetch(&server_id()).await.is_err());
    assert!(istiod.asked.lock().is_empty());
    istiod.stop().await;
}

/// Where the system's authorities are is up to the environment, which belongs to the whole process: so in another one.
#[tokio::test]
async fn the_systems_authorities_are_trusted_if_so_set_and_no_others() {
    const ROOTS: &str = "SSL_CERT_FILE";
    const ADDRESS: &str = "AQUIFER_TEST_CA_ADDRESS";
    const NAME: &str = "ca_client::tests::the_systems_authorities_are_trusted_if_so_set_and_no_others";
    let env = aquifer_runtime::env::ProcessEnv;
    if let Some(address) = aquifer_runtime::env::Env::var(&env, ADDRESS) {
        let config = CaConfig { root: Roots::System, ..Istiod::config_at(&address) };
        match IstioCaClient::new(config).fetch(&server_id()).await {
            Ok(_) => println!("fetched"),
            Err(error) => println!("failed: {error}"),
        }
        return;
    }
    let (tls, other) = (TestCa::new(), TestCa::named("other"));
    let istiod = Istiod::start(&tls, None).await;
    let folder = tempfile::tempdir().unwrap();
    for (pem, expected) in [(tls.pem(), "fetched"), (other.pem(), "failed"), (String::new(), "CA_ROOT_CA=SYSTEM")] {
        let file = folder.path().join("roots.pem");
        std::fs::write(&file, pem).unwrap();
        let mut child = tokio::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", NAME, "--nocapture"]);
        child.env(ADDRESS, istiod.address.to_string()).env(ROOTS, &file).env_remove("SSL_CERT_DIR");
        let output = tokio::time::timeout(Duration::from_secs(30), child.output()).await.unwrap().unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains(expected), "{said}");
    }
    assert_eq!(istiod.asked.lock().len(), 1);
    istiod.stop().await;
}

#[tokio::test]
async fn settings_that_cannot_work_say_so_without_the_secret() {
    let base = CaConfig {
        address: "https://127.0.0.1:1".into(),
        root: Source::Inline(TestCa::new().pem()).into(),
        alt_hostname: None,
        token: Some(Source::Inline("se\u{1}cret".into())),
        cluster_id: "Kubernetes".into(),
        headers: vec![],
        ttl: Duration::from_secs(1),
        impersonate: true,
        timeout: Duration::from_secs(1),
    };
    let error = IstioCaClient::new(base.clone()).fetch(&server_id()).await.err().unwrap().to_string();
    assert!(error.contains("AUTH_TOKEN") && !error.contains("cret"), "{error}");
    let config = CaConfig { address: "not an address".into(), token: None, ..base };
    let error = IstioCaClient::new(config).fetch(&server_id()).await.err().unwrap();
    assert!(matches!(error, CaError::Setting(_)), "{error}");
}
