//! A pair of etcd and kube-apiserver, and what tests do with it.

#![allow(dead_code, unused_imports)] // a toolbox: which test uses what changes

mod link;
mod objects;
mod process;

use std::future::Future;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use aquifer_lab::api_server::{ApiServerPlan, Listen, Programs};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

pub(crate) use self::link::Link;
pub(crate) use self::objects::ready_pod;
pub(crate) use self::process::{Process, binary};

/// How long a server may take to become ready: it takes four seconds on an idle machine.
const READY: Duration = Duration::from_secs(120);

/// etcd and kube-apiserver. Both end with this process at the latest.
#[derive(Debug)]
pub(crate) struct ApiServer {
    folder: PathBuf,
    plan: ApiServerPlan,
    programs: Programs,
    etcd: Mutex<Option<Process>>,
    server: Mutex<Option<Process>>,
}

impl ApiServer {
    /// A pair of this test's own, without any CRD.
    pub(crate) async fn start() -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let programs = Programs::find().unwrap_or_else(|error| panic!("{error}"));
        let folders = Path::new(env!("CARGO_TARGET_TMPDIR")).join("api");
        remove_left_over(&folders);
        for attempt in 1.. {
            let number = NUMBER.fetch_add(1, Ordering::Relaxed);
            let folder = folders.join(format!("{}-{number}", std::process::id()));
            let [port, clients, peers] = free_ports();
            let listen = Listen {
                address: Ipv4Addr::LOCALHOST.into(),
                names: Vec::new(),
                port,
                etcd: [clients, peers],
                services: vec!["10.96.0.0/16".to_owned()],
            };
            let plan = ApiServerPlan::prepare(&folder, listen).unwrap_or_else(|error| panic!("{error}"));
            let own =
                Self { folder, plan, programs: programs.clone(), etcd: Mutex::default(), server: Mutex::default() };
            own.start_etcd();
            own.launch();
            match own.wait_ready().await {
                Ok(()) => return own,
                // Somebody else may have taken a port between our look and the server's.
                Err(why) if attempt < 3 => eprintln!("another start, since {why}"),
                Err(why) => panic!("{why}"),
            }
        }
        unreachable!("a pair is up or has failed")
    }

    /// The pair that tests share, with our CRDs and the Gateway API's. Nobody stops it.
    pub(crate) async fn shared() -> &'static Self {
        static SHARED: OnceCell<ApiServer> = OnceCell::const_new();
        SHARED
            .get_or_init(|| async {
                let own = Self::start().await;
                own.install_crds().await;
                own.install_gateway_api().await;
                own
            })
            .await
    }

    // --- Who calls ---------------------------------------------------------------------------------------------

    /// The administrator's kubeconfig.
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.plan.kubeconfig()
    }

    /// A client with all rights. It belongs to the runtime that asks.
    pub(crate) async fn client(&self) -> Client {
        client_of(&self.kubeconfig()).await
    }

    /// The kubeconfig of a service account, with a fresh token. The account must be there.
    pub(crate) async fn kubeconfig_of(&self, namespace: &str, account: &str) -> PathBuf {
        let token = self.token(namespace, account, &[], None, 3600).await;
        let name = format!("{namespace}-{account}-{}.conf", rand_suffix());
        self.plan.token_kubeconfig(&name, &token).unwrap_or_else(|error| panic!("{error}"))
    }

    /// A token of a service account, for these audiences (none: the API server itself), bound to a pod (name and
    /// uid) or to nothing.
    pub(crate) async fn token(
        &self,
        namespace: &str,
        account: &str,
        audiences: &[&str],
        pod: Option<(&str, &str)>,
        seconds: i64,
    ) -> String {
        let bound = pod.map(|(name, uid)| json!({"apiVersion": "v1", "kind": "Pod", "name": name, "uid": uid}));
        let request = json!({
            "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
            "spec": {"audiences": audiences, "boundObjectRef": bound, "expirationSeconds": seconds},
        });
        let path = format!("/api/v1/namespaces/{namespace}/serviceaccounts/{account}/token");
        let answer = self.post(&path, &request).await;
        let answer = answer.unwrap_or_else(|error| panic!("a token of {namespace}/{account}: {error}"));
        answer["status"]["token"].as_str().expect("the answer has the token").to_owned()
    }

    /// Posts what is no object of its own: a review, a token request.
    pub(crate) async fn post(&self, path: &str, body: &Value) -> kube::Result<Value> {
        let body = serde_json::to_vec(body).expect("JSON");
        let ask = http::Request::post(path).header("content-type", "application/json").body(body);
        self.client().await.request(ask.expect("a request")).await
    }

    /// A kubeconfig that leads to this server through the link.
    pub(crate) fn through(&self, kubeconfig: &Path, link: &Link) -> PathBuf {
        let text = std::fs::read_to_string(kubeconfig).expect("the kubeconfig");
        let path = self.folder.join(format!("link-{}.conf", rand_suffix()));
        std::fs::write(&path, text.replace(&self.plan.url(), &link.url())).expect("writing a kubeconfig");
        path
    }

    /// Where the API server listens, `127.0.0.1:PORT`.
    pub(crate) fn address(&self) -> String {
        self.plan.url().trim_start_matches("https://").to_owned()
    }

    /// A folder of this pair's, for what belongs to its tests. It goes with the pair.
    pub(crate) fn folder(&self) -> &Path {
        &self.folder
    }

    // --- Outages -----------------------------------------------------------------------------------------------

    /// Kills the API server. Its watches break.
    pub(crate) fn stop(&self) {
        self.server.lock().take();
    }

    /// Starts the API server again where it was, and waits until it is ready.
    pub(crate) async fn start_again(&self) {
        self.launch();
        self.wait_ready().await.unwrap_or_else(|why| panic!("{why}"));
    }

    /// Kills etcd. The API server stays, and cannot serve.
    pub(crate) fn stop_etcd(&self) {
        self.etcd.lock().take();
    }

    /// Starts etcd again with what it held.
    pub(crate) fn start_etcd(&self) {
        let log = self.folder.join("etcd.log");
        *self.etcd.lock() = Some(Process::start(&self.programs.etcd, &self.plan.etcd_arguments(), &[], &log));
    }

    /// Forgets all past revisions, and restarts the API server, so that its own memory of them goes too: a watch
    /// from before gets `410 Gone`.
    pub(crate) async fn compact(&self) {
        let status = self.etcdctl(&["endpoint", "status", "--write-out=json"]);
        let status: serde_json::Value = serde_json::from_slice(&status).expect("etcdctl's JSON");
        let revision = status[0]["Status"]["header"]["revision"].to_string();
        self.etcdctl(&["compaction", "--physical", &revision]);
        self.stop();
        self.start_again().await;
    }

    fn etcdctl(&self, arguments: &[&str]) -> Vec<u8> {
        let run = std::process::Command::new("etcdctl")
            .env("ETCDCTL_API", "3")
            .arg(format!("--endpoints={}", self.plan.etcd_url()))
            .args(arguments)
            .output();
        let output = run.expect("etcdctl (Debian's package etcd-client)");
        assert!(output.status.success(), "etcdctl {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    }

    fn launch(&self) {
        let log = self.folder.join("apiserver.log");
        let arguments = self.plan.api_server_arguments();
        *self.server.lock() = Some(Process::start(&self.programs.api_server, &arguments, &[], &log));
    }

    /// Returns when the API server calls itself ready.
    pub(crate) async fn wait_ready(&self) -> Result<(), String> {
        let begin = Instant::now();
        let client = self.client().await;
        loop {
            let ask = http::Request::get("/readyz").body(Vec::new()).expect("a request");
            let why = match client.request_text(ask).await {
                Ok(text) if text == "ok" => return Ok(()),
                Ok(text) => text,
                Err(error) => error.to_string(),
            };
            let ended = self.server.lock().as_mut().is_none_or(|server| !server.runs());
            if ended || begin.elapsed() > READY {
                let log = std::fs::read_to_string(self.folder.join("apiserver.log")).unwrap_or_default();
                let last: Vec<&str> = log.lines().rev().take(5).collect();
                return Err(format!("the API server is not ready: {why}; it last said: {}", last.join(" / ")));
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        self.stop();
        self.stop_etcd();
        // A test that fails leaves its servers' logs.
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.folder);
        }
    }
}

/// A client by a kubeconfig.
pub(crate) async fn client_of(kubeconfig: &Path) -> Client {
    static PROVIDER: Once = Once::new();
    // Others may have installed the same one already.
    PROVIDER.call_once(|| _ = rustls::crypto::aws_lc_rs::default_provider().install_default());
    let kubeconfig = Kubeconfig::read_from(kubeconfig).expect("the kubeconfig");
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    Client::try_from(config.expect("a configuration")).expect("a client")
}

/// Looks until it is so, and says how long that took. Fails at five times the bound, with what was seen last.
pub(crate) async fn eventually<T, F, Fut>(what: &str, bound: Duration, mut look: F) -> T
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<T, String>>,
{
    let begin = Instant::now();
    loop {
        let seen = match look().await {
            Ok(found) => {
                println!("{what}: after {:.1} s", begin.elapsed().as_secs_f64());
                return found;
            }
            Err(seen) => seen,
        };
        assert!(begin.elapsed() < bound * 5, "{what}: not within {:?}; last: {seen}", bound * 5);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Letters that nobody else has.
pub(crate) fn rand_suffix() -> String {
    use std::hash::{BuildHasher, Hasher};
    let random = std::collections::hash_map::RandomState::new().build_hasher().finish();
    format!("{:08x}", random as u32)
}

/// Ports that nobody has, and that are given to nobody else: below those that the kernel gives to whoever asks for any,
/// and each once in this process.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    const RANGE: std::ops::Range<u32> = 12_000..32_000;
    static TAKEN: AtomicU32 = AtomicU32::new(0);
    [(); N].map(|()| {
        loop {
            // Test processes side by side begin at different places.
            let at = std::process::id() * 97 + TAKEN.fetch_add(1, Ordering::Relaxed);
            let port = u16::try_from(RANGE.start + at % (RANGE.end - RANGE.start)).expect("a port");
            if TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok() {
                return port;
            }
        }
    })
}

/// What test runs that are over left.
fn remove_left_over(folders: &Path) {
    for entry in std::fs::read_dir(folders).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let pid = name.split('-').next().unwrap_or_default();
        if !Path::new("/proc").join(pid).exists() {
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}
