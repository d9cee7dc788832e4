//! The mesh's own pods: istiod-lite on node1, an agent and a ztunnel on each node, with what a cluster would mount.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{SeedableRng, rng};
use serde_json::{Value, json};
use tokio::sync::oneshot;
use tokio::task::spawn_blocking;

use super::accounts;
use super::cluster::{Event, NewPod};
use super::deployments::suffix;
use super::pod::{Extra, Order, PodState};
use super::sandbox::Mount;
use super::shared::{Shared, new_uid};
use super::tokens::{AUDIENCE, ISSUER, Subject, Tokens};
use crate::error::{During, LabError, Result};
use crate::options::Component;
use crate::start::sibling;

const NAMESPACE: &str = "istio-system";

/// Where our binaries are in a component's pod. Its /tmp is its own, so that the machine's path may not lead there.
const BIN: &str = "/run/aquifer/bin";

/// The whole mesh must be up in less than two seconds; a loaded machine gets more.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// A ztunnel's grace period, from which it takes its drain deadline.
const ZTUNNEL_GRACE: u64 = 30;

/// Starts the mesh, and returns when all of it is ready.
pub(super) async fn start(shared: &Arc<Shared>) -> Result<()> {
    if shared.store().remote().is_none() {
        let jwks = shared.paths.jwks();
        let tokens =
            spawn_blocking(move || Tokens::new(&jwks)).await.map_err(|panic| LabError::Start(panic.to_string()))??;
        shared.tokens.set(tokens).map_err(|_| LabError::Start("the mesh was started twice".into()))?;
    }
    fs::create_dir_all(shared.paths.istiod()).during(|| "making istiod's folder".into())?;
    accounts::start(shared).await?;
    apply(shared, service_json()).await?;
    let istiod = create(shared, istiod(shared)?).await?;
    let mut pods = Vec::new();
    for node in shared.nodes() {
        pods.push(create(shared, agent(shared, &node.name)?).await?);
    }
    // A ztunnel that finds no control plane would try again a second later only.
    wait_ready(shared, &istiod).await?;
    in_force(shared).await;
    for node in shared.nodes() {
        pods.push(create(shared, ztunnel(shared, &node.name, &[])?).await?);
    }
    keep_tokens_fresh(shared);
    for pod in &pods {
        wait_ready(shared, pod).await?;
    }
    Ok(())
}

/// Returns when everything said so far is in force, Service rules included.
async fn in_force(shared: &Shared) {
    let (question, answer) = oneshot::channel();
    shared.send(Event::Status(question));
    // Without a cluster nothing more comes into force.
    let _ = answer.await;
}

/// A new ztunnel beside the old one; when it is ready the old one is told to go. Returns the old one's name.
pub(super) async fn replace_ztunnel(shared: &Arc<Shared>, node: &str, env: &[(String, String)]) -> Result<String> {
    let old = shared.component(&Component::ztunnel(node))?;
    let new = create(shared, ztunnel(shared, node, env)?).await?;
    wait_ready(shared, &new).await?;
    old.delete(None);
    Ok(old.name.clone())
}

/// A second istiod-lite beside the first; when it is ready the first is told to go. Returns the first one's name.
pub(super) async fn replace_istiod(shared: &Arc<Shared>) -> Result<String> {
    let old = shared.component(&Component::Istiod)?;
    let new = create(shared, istiod(shared)?).await?;
    wait_ready(shared, &new).await?;
    old.delete(None);
    Ok(old.name.clone())
}

/// Tells a component's process something.
pub(super) fn order(shared: &Shared, component: &Component, order: Order) -> Result<()> {
    let pod = shared.component(component)?;
    let running = pid(&pod).is_some();
    match (&order, running) {
        (Order::Signal(_), false) => return Err(LabError::Refused(format!("{component} is not running"))),
        (Order::Start(_), true) => return Err(LabError::Refused(format!("{component} runs already"))),
        _ => {}
    }
    pod.orders.send(order).map_err(|_| LabError::Refused(format!("{component} is going away")))
}

/// A component's process, if it runs.
pub(super) fn pid(pod: &PodState) -> Option<i32> {
    pod.live.lock().containers.values().find_map(|container| container.pid)
}

/// A fresh token for a pod's service account.
pub(super) async fn token(shared: &Shared, pod: &PodState, ttl: Duration) -> Result<String> {
    if let Some(remote) = shared.store().remote() {
        let account = (pod.namespace.as_str(), pod.service_account.as_str());
        return remote.token(account, Some(AUDIENCE), Some((&pod.name, &pod.uid)), ttl.as_secs()).await;
    }
    let tokens = shared.tokens.get().ok_or_else(|| LabError::Refused("a lab without mesh has no tokens".into()))?;
    let node = &shared.node(pod.node).name;
    let account_uid = stable_uid("serviceaccount", &pod.namespace, &pod.service_account);
    let subject = Subject {
        namespace: &pod.namespace,
        service_account: (&pod.service_account, &account_uid),
        pod: (&pod.name, &pod.uid),
        node: (node, &stable_uid("node", "", node)),
    };
    tokens.issue(&subject, ttl)
}

pub(super) async fn create(shared: &Arc<Shared>, new: NewPod) -> Result<Arc<PodState>> {
    let (answer, created) = oneshot::channel();
    shared.send(Event::Create(Box::new(new), answer));
    created.await.map_err(|_| LabError::Start("the cluster is gone".into()))?
}

pub(super) async fn wait_ready(shared: &Shared, pod: &PodState) -> Result<()> {
    let begin = tokio::time::Instant::now();
    loop {
        {
            let live = pod.live.lock();
            if live.ready {
                return Ok(());
            }
            if begin.elapsed() > START_DEADLINE {
                let what = match (live.message.is_empty(), live.containers.values().any(|c| c.pid.is_some())) {
                    (false, _) => live.message.clone(),
                    (true, true) => "it runs but its readiness probe fails".to_owned(),
                    (true, false) => "its process does not run".to_owned(),
                };
                let log = fs::read_to_string(pod.log(shared)).unwrap_or_default();
                let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("nothing");
                let what = format!("{} ready ({what}; it last said: {last})", pod.name);
                return Err(LabError::Timeout { what, after: START_DEADLINE });
            }
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub(super) async fn apply(shared: &Shared, object: Value) -> Result<()> {
    shared.store().apply(object).await.map_err(|error| LabError::Start(error.to_string()))
}

fn service_json() -> Value {
    let port = |name: &str, port: u16| json!({"name": name, "port": port, "protocol": "TCP", "targetPort": port});
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": "istiod", "namespace": NAMESPACE, "labels": {"app": "istiod"}},
        "spec": {
            "selector": {"app": "istiod"},
            "ports": [port("grpc-xds", 15010), port("https-dns", 15012), port("http-monitoring", 15014)],
        },
    })
}

fn istiod(shared: &Shared) -> Result<NewPod> {
    let mut env = vec![
        ("TRUST_DOMAIN", "cluster.local".to_owned()),
        ("CLUSTER_ID", "Kubernetes".to_owned()),
        ("ROOT_NAMESPACE", NAMESPACE.to_owned()),
        ("CA_TRUSTED_NODE_ACCOUNTS", format!("{NAMESPACE}/ztunnel")),
    ];
    let paths = &shared.paths;
    let mut mounts = Vec::new();
    if shared.store().remote().is_some() {
        mounts.push(mount(accounts::folder(shared, accounts::ISTIOD), accounts::FOLDER));
        env.push(("KUBECONFIG", format!("{}/config", accounts::FOLDER)));
    } else {
        mounts.push(mount(paths.istiod(), "/run/aquifer/istiod"));
        mounts.push(mount(paths.manifests(), "/run/aquifer/manifests"));
        env.push(("AQUIFER_DATA_DIR", "/run/aquifer/istiod".to_owned()));
        mounts.push(mount(paths.jwks().with_file_name(""), "/run/aquifer/tokens"));
        env.push(("AQUIFER_MANIFESTS", "/run/aquifer/manifests".to_owned()));
        env.push(("JWKS_FILE", "/run/aquifer/tokens/jwks.json".to_owned()));
        env.push(("JWT_ISSUER", ISSUER.to_owned()));
        env.push(("JWT_AUDIENCES", AUDIENCE.to_owned()));
    }
    let command = binary("istiod-lite", &mut mounts)?;
    let mut variables = with(&env, &shared.options.istiod_env);
    variables.extend(of_the_pod(&[POD_NAME, POD_NAMESPACE]));
    let spec = Spec {
        name: format!("istiod-{}", name_suffix()),
        app: "istiod",
        account: "istiod",
        node: &shared.nodes()[0].name,
        container: "discovery",
        command,
        env: variables,
        probe: ("/ready", 8080),
        grace: 5,
        host_network: false,
    };
    Ok(NewPod {
        pod: spec.json(),
        uid: new_uid(),
        extra: Extra { component: Some(Component::Istiod), mounts, ..Extra::default() },
    })
}

fn agent(shared: &Shared, node: &str) -> Result<NewPod> {
    let paths = &shared.paths;
    let env = [
        ("NODE_NAME", node.to_owned()),
        ("ZTUNNEL_UDS", paths.ztunnel_socket(node).display().to_string()),
        ("CNI_EVENT_SOCKET", paths.plugin_socket(node).display().to_string()),
        match shared.store().remote() {
            Some(_) => ("KUBECONFIG", accounts::folder(shared, accounts::AGENT).join("config").display().to_string()),
            None => ("AQUIFER_MANIFESTS", paths.manifests().display().to_string()),
        },
        ("AQUIFER_NETNS_DIR", paths.netns(node).display().to_string()),
    ];
    let command = own_binary("istio-cni-node")?.display().to_string();
    let spec = Spec {
        name: format!("istio-cni-node-{}", name_suffix()),
        app: "istio-cni-node",
        account: "istio-cni",
        node,
        container: "install-cni",
        command,
        env: with(&env, &shared.options.agent_env),
        probe: ("/healthz/ready", 8000),
        grace: 5,
        host_network: true,
    };
    let extra = Extra { component: Some(Component::agent(node)), lab_mounts: true, ..Extra::default() };
    Ok(NewPod { pod: spec.json(), uid: new_uid(), extra })
}

fn ztunnel(shared: &Shared, node: &str, more: &[(String, String)]) -> Result<NewPod> {
    let address = "https://istiod.istio-system.svc:15012".to_owned();
    let root = "/var/run/secrets/istio/root-cert.pem".to_owned();
    let mut env = vec![
        ("XDS_ADDRESS", address.clone()),
        ("CA_ADDRESS", address),
        ("XDS_ROOT_CA", root.clone()),
        ("CA_ROOT_CA", root),
        ("AUTH_TOKEN", "/var/run/secrets/tokens/istio-token".to_owned()),
        ("NODE_NAME", node.to_owned()),
        ("SERVICE_ACCOUNT", "ztunnel".to_owned()),
        ("CLUSTER_ID", "Kubernetes".to_owned()),
        ("INPOD_UDS", "/var/run/ztunnel/ztunnel.sock".to_owned()),
        ("TERMINATION_GRACE_PERIOD_SECONDS", ZTUNNEL_GRACE.to_string()),
    ];
    if let Some(workers) = shared.options.workers {
        env.push(("ZTUNNEL_WORKER_THREADS", workers.to_string()));
    }
    let uid = new_uid();
    let own = shared.paths.pod(&uid);
    for folder in ["tokens", "istio"] {
        fs::create_dir_all(own.join(folder)).during(|| "making a ztunnel's folders".into())?;
    }
    let mut mounts = vec![
        mount(own.join("tokens"), "/var/run/secrets/tokens"),
        mount(own.join("istio"), "/var/run/secrets/istio"),
        mount(shared.paths.node(node), "/var/run/ztunnel"),
    ];
    let command = binary("ztunnel", &mut mounts)?;
    let mut all = shared.options.ztunnel_env.clone();
    all.extend(more.iter().cloned());
    let mut variables = with(&env, &all);
    variables.extend(of_the_pod(&[POD_NAME, POD_NAMESPACE, ("INSTANCE_IP", "status.podIP")]));
    let spec = Spec {
        name: format!("ztunnel-{}", name_suffix()),
        app: "ztunnel",
        account: "ztunnel",
        node,
        container: "istio-proxy",
        command,
        env: variables,
        probe: ("/healthz/ready", 15021),
        grace: ZTUNNEL_GRACE,
        host_network: false,
    };
    let extra = Extra {
        component: Some(Component::ztunnel(node)),
        mounts,
        copy: Some((shared.paths.root_cert(), own.join("istio/root-cert.pem"))),
        ..Extra::default()
    };
    Ok(NewPod { pod: spec.json(), uid, extra })
}

/// A component's pod, as a manifest would say it.
struct Spec<'a> {
    name: String,
    app: &'static str,
    account: &'static str,
    node: &'a str,
    container: &'static str,
    command: String,
    env: Vec<Value>,
    probe: (&'static str, u16),
    grace: u64,
    host_network: bool,
}

impl Spec<'_> {
    fn json(self) -> Value {
        let (path, port) = self.probe;
        json!({
            "apiVersion": "v1", "kind": "Pod",
            "metadata": {"name": self.name, "namespace": NAMESPACE, "labels": {"app": self.app}},
            "spec": {
                "nodeName": self.node,
                "serviceAccountName": self.account,
                "hostNetwork": self.host_network,
                "terminationGracePeriodSeconds": self.grace,
                "containers": [{
                    "name": self.container,
                    "image": format!("aquifer/{}", self.app),
                    "command": [self.command],
                    "env": self.env,
                    "readinessProbe": {"httpGet": {"path": path, "port": port}, "periodSeconds": 1, "timeoutSeconds": 1},
                }],
            },
        })
    }
}

/// Writes each ztunnel's token before the old one ends, and copies a root certificate that changed.
fn keep_tokens_fresh(shared: &Arc<Shared>) {
    let ttl = Duration::from_secs(shared.options.token_ttl_seconds);
    let shared = Arc::clone(shared);
    let tracker = shared.tracker.clone();
    tracker.spawn("tokens", async move {
        // The step between looks also bounds how old a copied root certificate may be.
        let step = (ttl / 10).clamp(Duration::from_millis(100), Duration::from_secs(1));
        let mut written = std::collections::HashMap::new();
        loop {
            let pods: Vec<_> = shared.pods.lock().values().filter(|pod| has_token(pod)).cloned().collect();
            written.retain(|uid, _| pods.iter().any(|pod| pod.uid == *uid));
            for pod in pods {
                let due = written.get(&pod.uid).is_none_or(|at: &tokio::time::Instant| at.elapsed() > ttl * 4 / 5);
                if due {
                    match write_token(&shared, &pod, ttl).await {
                        Ok(()) => _ = written.insert(pod.uid.clone(), tokio::time::Instant::now()),
                        Err(error) => tracing::warn!(pod = pod.name, %error, "no token"),
                    }
                }
                if let Some((wanted, copy)) = &pod.extra.copy
                    && fs::read(wanted).ok() != fs::read(copy).ok()
                    && let Err(error) = replace(copy, &fs::read(wanted).unwrap_or_default(), 0o644)
                {
                    tracing::warn!(pod = pod.name, %error, "the root certificate was not copied");
                }
            }
            tokio::time::sleep(step).await;
        }
    });
}

fn has_token(pod: &PodState) -> bool {
    matches!(pod.extra.component, Some(Component::Ztunnel(_)))
}

/// Writes a ztunnel's token. The first one is there before its container starts.
pub(super) async fn write_token(shared: &Shared, pod: &PodState, ttl: Duration) -> Result<()> {
    let file = shared.paths.pod(&pod.folder).join("tokens/istio-token");
    replace(&file, token(shared, pod, ttl).await?.as_bytes(), 0o600).during(|| format!("writing {}", file.display()))
}

/// As a kubelet updates a volume: never half-written.
pub(super) fn replace(file: &std::path::Path, bytes: &[u8], mode: u32) -> std::io::Result<()> {
    let new = file.with_extension("new");
    // What an interrupted write left would keep its mode.
    let _ = fs::remove_file(&new);
    let mut open = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    open.write_all(bytes)?;
    fs::rename(new, file)
}

fn own_binary(name: &str) -> Result<PathBuf> {
    let own = std::env::current_exe().during(|| "finding the running binary".into())?;
    sibling(&own, name)
}

/// Mounts one of our binaries into a pod, and says where it is there.
fn binary(name: &str, mounts: &mut Vec<Mount>) -> Result<String> {
    let there = format!("{BIN}/{name}");
    mounts.push(mount(own_binary(name)?, &there));
    Ok(there)
}

pub(super) fn mount(source: PathBuf, target: &str) -> Mount {
    Mount { source, target: target.into() }
}

fn with(env: &[(&str, String)], more: &[(String, String)]) -> Vec<Value> {
    let own = env.iter().map(|(name, value)| ((*name).to_owned(), value.clone()));
    let all = own.chain(more.iter().cloned());
    all.map(|(name, value)| json!({"name": name, "value": value})).collect()
}

const POD_NAME: (&str, &str) = ("POD_NAME", "metadata.name");
const POD_NAMESPACE: (&str, &str) = ("POD_NAMESPACE", "metadata.namespace");

/// Variables that a kubelet takes from the pod itself.
fn of_the_pod(fields: &[(&str, &str)]) -> Vec<Value> {
    let variable =
        |(name, field): &(&str, &str)| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": field}}});
    fields.iter().map(variable).collect()
}

pub(super) fn name_suffix() -> String {
    suffix(&mut rng())
}

/// A uid that is always the same for the same thing: nodes and service accounts are not made twice in a lab.
pub(super) fn stable_uid(kind: &str, namespace: &str, name: &str) -> String {
    let text = format!("{kind}/{namespace}/{name}");
    let seed = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let bits: u128 = rand::RngExt::random(&mut StdRng::seed_from_u64(seed));
    let hex = format!("{bits:032x}");
    format!("{}-{}-4{}-a{}-{}", &hex[..8], &hex[8..12], &hex[13..16], &hex[17..20], &hex[20..])
}
