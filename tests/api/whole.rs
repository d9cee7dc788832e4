//! istiod-lite as a process under its own rights, with a proxy that asks it as a ztunnel does.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquifer_objects::Kind;
use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION};
use aquifer_proto::xds::Node;
use aquifer_runtime::Cancel;
use aquifer_runtime::metrics::Registry;
use aquifer_xds::client::driver::{ClientConfig, RootCa, Token, run};
use aquifer_xds::client::metrics::ClientMetrics;
use aquifer_xds::client::session::Watch;
use aquifer_xds::client::{Rejected, ResourceSink, ResourceUpdate};
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use prost_types::{Struct, Value as Field, value};
use serde_json::json;
use tokio::task::JoinHandle;

use crate::harness::{ApiServer, Process, binary, eventually, free_ports, ready_pod};

const ROOT: &str = "istio-system";

/// How long the API server is away.
const OUTAGE: Duration = Duration::from_secs(30);

/// A lease may be taken when it was not renewed for 15 s.
const TAKE_OVER: Duration = Duration::from_secs(18);

/// The cluster's API server with what an installation brings, and one node proxy's pod.
pub(crate) struct Mesh {
    pub(crate) server: ApiServer,
    token: String,
}

impl Mesh {
    pub(crate) async fn start() -> Self {
        let server = ApiServer::start().await;
        server.install_crds().await;
        server.apply(&format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {ROOT}}}\n")).await;
        for file in ["istiod-lite", "istio-cni", "ztunnel"] {
            let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("../../deploy/rbac/{file}.yaml"));
            let rights = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
            server.apply(&rights).await;
        }
        server.apply("apiVersion: v1\nkind: Node\nmetadata: {name: node1}\n").await;
        let labels = json!({"app": "ztunnel"});
        let pod = server.apply_object(ready_pod(ROOT, "ztunnel-1", "ztunnel", "node1", "10.0.0.9", &labels)).await;
        let uid = pod["metadata"]["uid"].as_str().expect("a uid");
        let token = server.token(ROOT, "ztunnel", &["istio-ca"], Some(("ztunnel-1", uid)), 3600).await;
        Self { server, token }
    }

    /// A replica with the rights that the installation gives it, and no more.
    pub(crate) async fn replica(&self, name: &str) -> Replica {
        // What was written a moment ago, the API server judges by once it has heard of it itself.
        for (verb, resource, namespace) in [("list", "pods", ""), ("create", "secrets", ROOT)] {
            eventually(&format!("istiod may {verb} {resource}"), Duration::from_secs(10), async || {
                let may = crate::rbac::may(&self.server, "istiod", verb, "", resource, namespace).await;
                if may { Ok(()) } else { Err("it may not".to_owned()) }
            })
            .await;
        }
        let kubeconfig = self.server.kubeconfig_of(ROOT, "istiod").await;
        let [grpc, secure, monitoring, http] = free_ports();
        let mut variables = vec![
            ("KUBECONFIG".to_owned(), kubeconfig.display().to_string()),
            ("POD_NAME".to_owned(), name.to_owned()),
            ("POD_NAMESPACE".to_owned(), ROOT.to_owned()),
        ];
        let ports =
            [("GRPC_ADDR", grpc), ("SECURE_GRPC_ADDR", secure), ("MONITORING_ADDR", monitoring), ("HTTP_ADDR", http)];
        variables.extend(ports.map(|(name, port)| (name.to_owned(), format!("127.0.0.1:{port}"))));
        let log = self.server.folder().join(format!("{name}.log"));
        let process = Process::start(&binary("istiod-lite"), &[], &variables, &log);
        let replica = Replica { process, secure, http };
        let tcp = || async move {
            tokio::net::TcpStream::connect(("127.0.0.1", secure)).await.map(drop).map_err(|error| error.to_string())
        };
        eventually(&format!("{name} serves"), Duration::from_secs(10), tcp).await;
        replica
    }

    /// The root that the control plane publishes.
    pub(crate) async fn root(&self) -> String {
        eventually("the root is published", Duration::from_secs(5), async || {
            let found = self.server.get("v1", "ConfigMap", ROOT, "istio-ca-root-cert").await;
            let root = found.and_then(|map| map["data"]["root-cert.pem"].as_str().map(str::to_owned));
            root.ok_or_else(|| "no ConfigMap with it".to_owned())
        })
        .await
    }

    pub(crate) async fn proxy(&self, replica: &Replica) -> Proxy {
        let id = format!("ztunnel~10.0.0.9~ztunnel-1.{ROOT}~{ROOT}.svc.cluster.local");
        let text = |text: &str| Field { kind: Some(value::Kind::StringValue(text.to_owned())) };
        let fields = [("NAMESPACE", ROOT), ("NODE_NAME", "node1")];
        let metadata = Struct { fields: fields.map(|(name, value)| (name.to_owned(), text(value))).into() };
        let config = ClientConfig {
            address: format!("https://127.0.0.1:{}", replica.secure),
            alt_hostname: Some("istiod.istio-system.svc".to_owned()),
            root_ca: RootCa::Pem(self.root().await),
            token: Some(Token::Literal(self.token.clone())),
            cluster_id: "Kubernetes".to_owned(),
            headers: Vec::new(),
            node: Node { id, metadata: Some(metadata), ..Node::default() },
            watches: vec![Watch::wildcard(ADDRESS), Watch::wildcard(AUTHORIZATION)],
        };
        let held = Held::default();
        let metrics = ClientMetrics::register(&mut Registry::default());
        let cancel = Cancel::new();
        let task = tokio::spawn(run(config, held.clone(), metrics, || {}, cancel.clone()));
        Proxy { held, task, _cancel: cancel }
    }

    /// Two pods behind a Service.
    pub(crate) async fn shop(&self) {
        self.server
            .apply(
                "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop, labels: {istio.io/dataplane-mode: ambient}}\n---\n\
                 apiVersion: v1\nkind: Service\nmetadata: {name: web, namespace: shop}\n\
                 spec: {selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}\n",
            )
            .await;
        self.pod("web-1", "10.244.0.11").await;
    }

    async fn pod(&self, name: &str, ip: &str) {
        self.server.apply_object(ready_pod("shop", name, "default", "node1", ip, &json!({"app": "web"}))).await;
    }
}

/// A replica of istiod-lite.
pub(crate) struct Replica {
    process: Process,
    secure: u16,
    http: u16,
}

impl Replica {
    /// Where its debug pages are.
    pub(crate) fn debug_address(&self) -> String {
        format!("127.0.0.1:{}", self.http)
    }

    /// Where it serves discovery over TLS.
    pub(crate) fn secure_address(&self) -> String {
        format!("https://127.0.0.1:{}", self.secure)
    }

    /// Ends it in good order.
    pub(crate) fn terminate(self) {
        self.process.terminate(Duration::from_secs(20));
    }
}

/// What a proxy holds, and how often something was taken from it.
#[derive(Debug, Clone, Default)]
struct Held(Arc<Mutex<(BTreeMap<String, String>, usize)>>);

impl ResourceSink for Held {
    fn apply(&mut self, _: &str, updates: Vec<ResourceUpdate>) -> Vec<Rejected> {
        let (resources, removals) = &mut *self.0.lock();
        for update in updates {
            match update {
                ResourceUpdate::Upsert { name, version, .. } => _ = resources.insert(name, version),
                ResourceUpdate::Remove { name } => *removals += usize::from(resources.remove(&name).is_some()),
            }
        }
        Vec::new()
    }
}

pub(crate) struct Proxy {
    held: Held,
    task: JoinHandle<()>,
    _cancel: Cancel,
}

impl Proxy {
    pub(crate) async fn holds(&self, name: &str, bound: Duration) {
        eventually(&format!("the proxy holds {name}"), bound, async || {
            let held = self.held.0.lock();
            if held.0.contains_key(name) { Ok(()) } else { Err(format!("{:?}", held.0.keys().collect::<Vec<_>>())) }
        })
        .await;
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

const WEB_1: &str = "Kubernetes//Pod/shop/web-1";
const WEB_2: &str = "Kubernetes//Pod/shop/web-2";
const WEB_3: &str = "Kubernetes//Pod/shop/web-3";
const SERVICE: &str = "shop/web.shop.svc.cluster.local";

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_served_while_the_api_server_is_away() {
    let mesh = Mesh::start().await;
    let istiod = mesh.replica("istiod-1").await;
    let proxy = mesh.proxy(&istiod).await;
    mesh.shop().await;
    proxy.holds(WEB_1, Duration::from_secs(2)).await;
    proxy.holds(SERVICE, Duration::from_secs(2)).await;
    let said = istiod.process.said();
    assert!(!said.contains("forbidden") && !said.contains("RBAC rule"), "its rights are not enough: {said}");

    mesh.server.stop();
    let begin = Instant::now();
    // This outage is what is tested: nothing is waited for.
    while begin.elapsed() < OUTAGE {
        assert!(!proxy.task.is_finished(), "the proxy's client ended");
        let held = proxy.held.0.lock().clone();
        assert_eq!(held.1, 0, "nothing is taken from a proxy because the API server is away");
        assert!(held.0.contains_key(WEB_1) && held.0.contains_key(SERVICE));
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    mesh.server.start_again().await;
    mesh.pod("web-2", "10.244.0.12").await;
    // A watch that failed waits ten seconds at most.
    proxy.holds(WEB_2, Duration::from_secs(12)).await;
    assert_eq!(proxy.held.0.lock().1, 0, "nor because it came back");
    istiod.terminate();
}

#[tokio::test(flavor = "multi_thread")]
async fn another_replica_takes_over() {
    let mesh = Mesh::start().await;
    let first = mesh.replica("istiod-1").await;
    mesh.shop().await;
    let leads = async |name: &str| {
        let leases = mesh.server.list("coordination.k8s.io/v1", "Lease", ROOT).await;
        let holders: Vec<String> = leases.iter().map(|lease| lease["spec"]["holderIdentity"].to_string()).collect();
        if holders.iter().any(|holder| holder.contains(name)) { Ok(()) } else { Err(format!("{holders:?}")) }
    };
    eventually("istiod-1 leads", Duration::from_secs(5), || leads("istiod-1")).await;
    let second = mesh.replica("istiod-2").await;
    let proxy = mesh.proxy(&second).await;
    proxy.holds(WEB_1, Duration::from_secs(2)).await;

    // Whoever does not lead serves all the same, and writes nothing.
    first.process.signal(Signal::SIGKILL);
    eventually("istiod-2 leads", TAKE_OVER, || leads("istiod-2")).await;
    policy(&mesh).await;
    eventually("the new leader writes status", Duration::from_secs(5), async || {
        let found = mesh.server.get("security.istio.io/v1", "AuthorizationPolicy", "shop", "nothing").await;
        let conditions = found.map(|found| found["status"]["conditions"].clone()).unwrap_or_default();
        if conditions.as_array().is_some_and(|list| !list.is_empty()) { Ok(()) } else { Err(conditions.to_string()) }
    })
    .await;

    // One that goes in good order gives the lease back: nobody waits until it runs out.
    let third = mesh.replica("istiod-3").await;
    second.terminate();
    eventually("istiod-3 leads", Duration::from_secs(5), || leads("istiod-3")).await;
    mesh.pod("web-3", "10.244.0.13").await;
    let again = mesh.proxy(&third).await;
    again.holds(WEB_3, Duration::from_secs(2)).await;
}

async fn policy(mesh: &Mesh) {
    let kind = Kind::AuthorizationPolicy;
    mesh.server
        .apply_object(json!({
            "apiVersion": kind.api_version(), "kind": kind.manifest_name(),
            "metadata": {"name": "nothing", "namespace": "shop"}, "spec": {},
        }))
        .await;
}
