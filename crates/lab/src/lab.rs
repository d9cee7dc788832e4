//! A lab as its caller holds it. Nothing here needs more than the lab's folder and its control socket.

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquifer_objects::{Folder, Kind, ObjectKey, Writer};
use tokio::task::spawn_blocking;

use crate::capture::Capture;
use crate::error::{During, LabError, Result};
use crate::options::{Component, LabOptions, Netns};
use crate::paths::{LABS, Paths};
use crate::process::{ExecOutput, Process};
use crate::start::{self, Leaving};
use crate::status::{PodInfo, ProcessStats, Status};
use crate::wire::{self, Reply, Request, Target};

/// The field manager of manifests that a person applies.
const USER: &str = "user";

/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(20);

/// A running lab. Dropping the one that started it ends the lab, unless it was started with `keep`.
#[derive(Debug)]
pub struct Lab {
    name: String,
    paths: Paths,
    writer: Arc<Writer>,
    /// The lab ends when this closes; `None` for a kept or attached one.
    life: Option<std::io::PipeWriter>,
    start_took: Duration,
}

impl Lab {
    /// Starts a lab and waits until it is ready.
    pub async fn start(options: LabOptions) -> Result<Self> {
        let begin = Instant::now();
        let started = blocking(move || start::start(options)).await?;
        let writer = Arc::new(Writer::new(started.paths.manifests(), USER));
        Ok(Self { name: started.name, paths: started.paths, writer, life: started.life, start_took: begin.elapsed() })
    }

    /// Takes hold of a lab that is up, without owning its life.
    pub fn attach(name: &str) -> Result<Self> {
        let paths = Paths::of(name);
        if !start::alive(&paths) {
            return Err(LabError::NoSuchLab(name.to_owned()));
        }
        let writer = Arc::new(Writer::new(paths.manifests(), USER));
        Ok(Self { name: name.to_owned(), paths, writer, life: None, start_took: Duration::ZERO })
    }

    /// The names of all labs that are up.
    pub fn list() -> Vec<String> {
        let Ok(entries) = fs::read_dir(LABS) else { return Vec::new() };
        let mut names: Vec<String> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .filter(|name| !name.starts_with('.') && start::alive(&Paths::of(name)))
            .collect();
        names.sort();
        names
    }

    /// The lab's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long [`Lab::start`] took.
    pub fn start_took(&self) -> Duration {
        self.start_took
    }

    /// The folder of manifests that everything in the lab watches.
    pub fn manifests(&self) -> PathBuf {
        self.paths.manifests()
    }

    /// The lab's folder: `manifests/`, `nodes/`, `istiod/`, `logs/`.
    pub fn state_dir(&self) -> &Path {
        self.paths.root()
    }

    /// The mesh's root certificate.
    pub fn root_cert(&self) -> PathBuf {
        self.paths.root_cert()
    }

    /// The process id, as the machine sees it, of the lab's pid 1: killing it ends everything.
    pub fn pid(&self) -> Result<i32> {
        let text = fs::read_to_string(self.paths.pid()).during(|| "reading the lab's pid".into())?;
        text.trim().parse().map_err(|_| LabError::Refused(format!("the lab's pid file holds {text:?}")))
    }

    /// Ends the lab and waits until nothing of it is left.
    pub async fn down(mut self) -> Result<()> {
        let paths = self.paths.clone();
        let life = self.life.take();
        blocking(move || {
            let leaving = Leaving::of(&paths);
            // Asking first covers a kept lab; the closed pipe covers one that doesn't answer.
            let _ = request(&paths, &Request::Down);
            drop(life);
            leaving.wait(Duration::from_secs(10))
        })
        .await
    }

    // --- Objects -----------------------------------------------------------------------------------------------

    /// Applies manifests (several documents allowed), as `kubectl apply` would.
    pub async fn apply(&self, yaml: &str) -> Result<Vec<ObjectKey>> {
        let (writer, yaml) = (Arc::clone(&self.writer), yaml.to_owned());
        blocking(move || writer.apply_manifest(&yaml).map_err(|error| LabError::Manifest(error.to_string()))).await
    }

    /// Applies a file, or every `.yaml` file of a folder in the order of their names.
    pub async fn apply_path(&self, path: impl AsRef<Path>) -> Result<Vec<ObjectKey>> {
        let path = path.as_ref();
        let mut files = Vec::new();
        if path.is_dir() {
            for entry in fs::read_dir(path).during(|| format!("reading {}", path.display()))? {
                let entry = entry.during(|| format!("reading {}", path.display()))?.path();
                if entry.extension().is_some_and(|ext| ext == "yaml" || ext == "yml") {
                    files.push(entry);
                }
            }
            files.sort();
        } else {
            files.push(path.to_owned());
        }
        let mut keys = Vec::new();
        for file in files {
            let text = fs::read_to_string(&file).during(|| format!("reading {}", file.display()))?;
            let applied = self.apply(&text).await;
            keys.extend(applied.map_err(|error| LabError::Manifest(format!("{}: {error}", file.display())))?);
        }
        Ok(keys)
    }

    /// Deletes an object; pods go gracefully, and the call returns when the deletion has begun.
    pub async fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let kind: Kind =
            kind.parse().map_err(|error: aquifer_objects::kinds::UnknownKind| LabError::Manifest(error.to_string()))?;
        if kind == Kind::Pod {
            return self.delete_pod(namespace, name, None).await;
        }
        let (writer, key) = (Arc::clone(&self.writer), ObjectKey::new(kind, namespace, name));
        blocking(move || writer.delete(&key).map_err(|error| LabError::Manifest(error.to_string()))).await
    }

    /// Deletes a pod with the grace period given, or its own. Returns when the deletion has begun.
    pub async fn delete_pod(&self, namespace: &str, name: &str, grace_seconds: Option<u64>) -> Result<()> {
        self.ask(Request::DeletePod { namespace: namespace.into(), name: name.into(), grace_seconds }).await.map(drop)
    }

    /// Sets or removes a label of a namespace.
    pub async fn label_namespace(&self, namespace: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.patch_user(Kind::Namespace, "", namespace, serde_json::json!({"metadata": {"labels": {key: value}}})).await
    }

    /// Sets a Deployment's replicas.
    pub async fn scale(&self, namespace: &str, deployment: &str, replicas: u32) -> Result<()> {
        self.patch_user(Kind::Deployment, namespace, deployment, serde_json::json!({"spec": {"replicas": replicas}}))
            .await
    }

    /// Merges a patch (RFC 7386) into what the user has applied of an object.
    pub async fn patch_user(&self, kind: Kind, namespace: &str, name: &str, patch: serde_json::Value) -> Result<()> {
        let (writer, key) = (Arc::clone(&self.writer), ObjectKey::new(kind, namespace, name));
        blocking(move || writer.patch(&key, patch).map_err(|error| LabError::Manifest(error.to_string()))).await
    }

    /// The objects of the kinds as they stand, merged from all field managers.
    pub async fn objects(&self, kinds: &[Kind]) -> Result<Vec<aquifer_objects::Object>> {
        let (root, kinds) = (self.paths.manifests(), kinds.to_vec());
        blocking(move || Ok(Folder::new(root).read(&kinds).0)).await
    }

    // --- Status ------------------------------------------------------------------------------------------------

    /// The lab as it stands.
    pub async fn status(&self) -> Result<Status> {
        match self.ask(Request::Status).await? {
            Reply::Status(status) => Ok(*status),
            other => Err(unexpected(&other)),
        }
    }

    /// The pods of a Deployment that are not being deleted.
    pub async fn pods(&self, namespace: &str, deployment: &str) -> Result<Vec<PodInfo>> {
        let mut pods = self.status().await?.pods;
        pods.retain(|pod| {
            pod.namespace == namespace && pod.deployment.as_deref() == Some(deployment) && !pod.terminating
        });
        Ok(pods)
    }

    /// One pod, by its name or a Deployment's (its first that isn't being deleted).
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<PodInfo> {
        let pods = self.status().await?.pods;
        let in_namespace = || pods.iter().filter(|pod| pod.namespace == namespace);
        let found = in_namespace()
            .find(|pod| pod.name == name)
            .or_else(|| in_namespace().find(|pod| pod.deployment.as_deref() == Some(name) && !pod.terminating));
        found
            .cloned()
            .ok_or_else(|| LabError::Refused(format!("no pod or deployment `{name}` in namespace `{namespace}`")))
    }

    /// Waits until exactly this many pods of the Deployment are ready and none is on its way out.
    pub async fn wait_ready(&self, namespace: &str, deployment: &str, replicas: usize) -> Result<Vec<PodInfo>> {
        let what = format!("{replicas} ready pods of {namespace}/{deployment}");
        self.wait_status(&what, Duration::from_secs(60), |status| {
            let of_it: Vec<PodInfo> = status
                .pods
                .iter()
                .filter(|pod| pod.namespace == namespace && pod.deployment.as_deref() == Some(deployment))
                .cloned()
                .collect();
            let ready = of_it.len() == replicas && of_it.iter().all(|pod| pod.ready && !pod.terminating);
            ready.then_some(of_it)
        })
        .await
    }

    /// Waits until every pod of every Deployment of the namespace is ready.
    pub async fn wait_namespace_ready(&self, namespace: &str) -> Result<()> {
        let objects = self.objects(&[Kind::Deployment]).await?;
        for object in objects.iter().filter(|object| object.namespace() == namespace) {
            if let aquifer_objects::Object::Deployment(deployment) = object {
                let replicas = deployment.spec.replicas.unwrap_or(1);
                self.wait_ready(namespace, object.name(), usize::try_from(replicas).unwrap_or(0)).await?;
            }
        }
        Ok(())
    }

    /// Waits until every running pod of the namespace is (or, with `false`, is not) in the mesh.
    pub async fn wait_enrolled(&self, namespace: &str, enrolled: bool) -> Result<()> {
        let what = format!("every pod of {namespace} {} the mesh", if enrolled { "in" } else { "out of" });
        self.wait_status(&what, Duration::from_secs(30), |status| {
            let mut pods = status.pods.iter().filter(|pod| pod.namespace == namespace && !pod.terminating);
            pods.all(|pod| match enrolled {
                true => pod.redirection.as_deref() == Some("enabled"),
                false => pod.redirection.is_none(),
            })
            .then_some(())
        })
        .await
    }

    /// Polls the status until `found` answers, or fails after `within`, telling what stands.
    pub async fn wait_status<T>(
        &self,
        what: &str,
        within: Duration,
        mut found: impl FnMut(&Status) -> Option<T>,
    ) -> Result<T> {
        let begin = Instant::now();
        loop {
            let status = self.status().await?;
            if let Some(found) = found(&status) {
                return Ok(found);
            }
            if begin.elapsed() > within {
                let pods: Vec<String> = status.pods.iter().map(describe).collect();
                return Err(LabError::Timeout { what: format!("{what}; pods: {}", pods.join("; ")), after: within });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    // --- Processes ---------------------------------------------------------------------------------------------

    /// Runs a command in a pod (by its name or its Deployment's) to its end.
    pub async fn exec<S: AsRef<str>>(
        &self,
        namespace: &str,
        pod_or_deployment: &str,
        args: &[S],
    ) -> Result<ExecOutput> {
        self.spawn(namespace, pod_or_deployment, args)?.wait().await
    }

    /// Starts a command in a pod; it is killed when the handle is dropped.
    pub fn spawn<S: AsRef<str>>(&self, namespace: &str, pod_or_deployment: &str, args: &[S]) -> Result<Process> {
        let target = Target::Pod { namespace: namespace.into(), name: pod_or_deployment.into() };
        Process::start(&self.paths, target, args)
    }

    /// Runs a command with the machine's files in one of the lab's network namespaces.
    pub async fn netns_exec<S: AsRef<str>>(&self, netns: Netns, args: &[S]) -> Result<ExecOutput> {
        self.netns_spawn(netns, args)?.wait().await
    }

    /// Starts a command with the machine's files in one of the lab's network namespaces.
    pub fn netns_spawn<S: AsRef<str>>(&self, netns: Netns, args: &[S]) -> Result<Process> {
        Process::start(&self.paths, Target::Netns(netns), args)
    }

    /// Runs a command in a node's network namespace.
    pub async fn node_exec<S: AsRef<str>>(&self, node: &str, args: &[S]) -> Result<ExecOutput> {
        self.netns_exec(Netns::Node(node.to_owned()), args).await
    }

    /// Runs a command in a pod's network namespace, with the machine's files (`nft -j list ruleset`, …).
    pub async fn pod_netns_exec<S: AsRef<str>>(&self, namespace: &str, pod: &str, args: &[S]) -> Result<ExecOutput> {
        self.netns_exec(Netns::Pod { namespace: namespace.to_owned(), name: pod.to_owned() }, args).await
    }

    /// Runs a command on the caller's own stdin, stdout and stderr; returns its exit code.
    pub async fn exec_attached<S: AsRef<str>>(
        &self,
        namespace: &str,
        pod_or_deployment: &str,
        args: &[S],
    ) -> Result<i32> {
        let target = Target::Pod { namespace: namespace.into(), name: pod_or_deployment.into() };
        Process::attached(&self.paths, target, args).await
    }

    /// What a pod's containers wrote so far. Mesh components log under `istio-system` and their own names.
    pub async fn logs(&self, namespace: &str, pod: &str) -> Result<String> {
        let path = self.paths.log(namespace, pod);
        read_text(&path)
    }

    /// What a component wrote so far, over all its restarts and replacements.
    pub async fn component_logs(&self, component: &Component) -> Result<String> {
        read_text(&self.log_path(component))
    }

    /// The file that a component's lines go to.
    pub fn log_path(&self, component: &Component) -> PathBuf {
        self.paths.log("istio-system", &component.to_string())
    }

    // --- Components --------------------------------------------------------------------------------------------

    /// Sends a signal to a component's process. It stays down until it is started again.
    pub async fn kill(&self, component: Component, signal: i32) -> Result<()> {
        self.ask(Request::SignalComponent { component, signal }).await.map(drop)
    }

    /// Starts a component that is down, in the pod it was in, and returns when its process runs.
    pub async fn start_component(&self, component: Component) -> Result<()> {
        self.start_component_with(component, &[]).await
    }

    /// The same, with variables that replace or add to those it had.
    pub async fn start_component_with(&self, component: Component, env: &[(&str, &str)]) -> Result<()> {
        let env = owned(env);
        self.ask(Request::StartComponent { component, env }).await.map(drop)
    }

    /// Waits until a component's readiness probe passes.
    pub async fn wait_component_ready(&self, component: &Component) -> Result<()> {
        self.wait_status(&format!("{component} ready"), Duration::from_secs(30), |status| {
            status.components.iter().any(|found| found.component == *component && found.ready).then_some(())
        })
        .await
    }

    /// Starts a new ztunnel on the node, waits until it is ready, then stops the old one with its grace period.
    /// Returns when the old one has been told; its name.
    pub async fn replace_ztunnel(&self, node: &str) -> Result<String> {
        match self.ask(Request::ReplaceZtunnel { node: node.to_owned(), env: Vec::new() }).await? {
            Reply::Text(old) => Ok(old),
            other => Err(unexpected(&other)),
        }
    }

    /// What a component's process has used.
    pub async fn stats(&self, component: Component) -> Result<ProcessStats> {
        match self.ask(Request::Stats { component }).await? {
            Reply::Stats(stats) => Ok(stats),
            other => Err(unexpected(&other)),
        }
    }

    /// GET on a ztunnel's admin port (15000, on its own loopback).
    pub async fn ztunnel_admin(&self, node: &str, path: &str) -> Result<String> {
        let (status, body) = self.http(Netns::Component(Component::ztunnel(node)), "GET", 15000, path).await?;
        match status {
            200 => Ok(body),
            _ => Err(LabError::Refused(format!("ztunnel on {node} answered {status} to {path}: {body}"))),
        }
    }

    /// A component's metrics.
    pub async fn metrics(&self, component: Component) -> Result<String> {
        let port = if matches!(component, Component::Ztunnel(_)) { 15020 } else { 15014 };
        let (_, body) = self.http(Netns::Component(component), "GET", port, "/metrics").await?;
        Ok(body)
    }

    /// The sum of a metric's samples whose line holds every one of `labels` (each as `name="value"`).
    pub async fn metric(&self, component: Component, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum_metric(&self.metrics(component).await?, name, labels))
    }

    /// One HTTP request to localhost in a network namespace; status and body.
    pub async fn http(&self, netns: Netns, method: &str, port: u16, path: &str) -> Result<(u16, String)> {
        match self.ask(Request::Http { netns, method: method.into(), port, path: path.into() }).await? {
            Reply::Http { status, body } => Ok((status, body)),
            other => Err(unexpected(&other)),
        }
    }

    /// A token for the service account of a pod, as its projected volume would hold.
    pub async fn token(&self, namespace: &str, pod: &str, ttl: Duration) -> Result<String> {
        let request = Request::Token { namespace: namespace.into(), pod: pod.into(), ttl_seconds: ttl.as_secs() };
        match self.ask(request).await? {
            Reply::Text(token) => Ok(token),
            other => Err(unexpected(&other)),
        }
    }

    // --- Captures ----------------------------------------------------------------------------------------------

    /// Captures packets on the wire between the nodes: interface `node1`, `node2`, … or `any`.
    pub async fn capture(&self, interface: &str) -> Result<Capture> {
        self.capture_in(Netns::Wire, interface).await
    }

    /// Captures packets in any of the lab's network namespaces.
    pub async fn capture_in(&self, netns: Netns, interface: &str) -> Result<Capture> {
        Capture::start(&self.paths, netns, interface).await
    }

    // --- Inside ------------------------------------------------------------------------------------------------

    async fn ask(&self, message: Request) -> Result<Reply> {
        let paths = self.paths.clone();
        blocking(move || request(&paths, &message)).await
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Some(life) = self.life.take() {
            let leaving = Leaving::of(&self.paths);
            drop(life);
            // So that a test that ends leaves nothing; on error the next start cleans up.
            let _ = leaving.wait(Duration::from_secs(5));
        }
    }
}

/// The node's address as the plan of addresses has it.
pub fn node_ip(node: u8) -> IpAddr {
    crate::addresses::Plan::new(true).node(node)[0]
}

pub(crate) fn connect(paths: &Paths) -> Result<UnixStream> {
    UnixStream::connect(paths.control()).map_err(|_| {
        let name = paths.root().file_name().unwrap_or_default().to_string_lossy().into_owned();
        LabError::NoSuchLab(name)
    })
}

fn request(paths: &Paths, message: &Request) -> Result<Reply> {
    let stream = connect(paths)?;
    wire::send(&stream, message, &[]).during(|| "asking the lab".into())?;
    let reply = wire::receive::<Reply>(&stream).during(|| "waiting for the lab's answer".into())?;
    match reply {
        Some((Reply::Error(message), _)) => Err(LabError::Refused(message)),
        Some((reply, _)) => Ok(reply),
        None => Err(LabError::Refused("the lab went away".into())),
    }
}

/// Runs blocking work off the async threads.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match spawn_blocking(work).await {
        Ok(result) => result,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(error) => Err(LabError::Refused(error.to_string())),
        },
    }
}

fn unexpected(reply: &Reply) -> LabError {
    LabError::Refused(format!("unexpected answer of the lab: {reply:?}"))
}

fn owned(env: &[(&str, &str)]) -> Vec<(String, String)> {
    env.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn read_text(path: &Path) -> Result<String> {
    let bytes = fs::read(path).during(|| format!("reading {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn describe(pod: &PodInfo) -> String {
    let state = if pod.terminating { "Terminating" } else { &pod.phase };
    let ready = if pod.ready { "ready" } else { "not ready" };
    let enrolled = pod.redirection.as_deref().map(|value| format!(" mesh {value}")).unwrap_or_default();
    let message = if pod.message.is_empty() { String::new() } else { format!(" ({})", pod.message) };
    format!("{}/{} {state} {ready}{enrolled}{message}", pod.namespace, pod.name)
}

/// Adds up the samples of a metric that carry all the labels.
pub fn sum_metric(text: &str, name: &str, labels: &[&str]) -> f64 {
    text.lines()
        .filter(|line| {
            let rest = line.strip_prefix(name);
            rest.is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
        })
        .filter(|line| labels.iter().all(|label| line.contains(label)))
        .filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok())
        .sum()
}

/// The lock of a lab's folder, if nobody alive holds it.
pub(crate) fn try_lock(file: &File) -> bool {
    file.try_lock().is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metrics_add_up_by_label() {
        let text = "# HELP x y\nx_total{a=\"1\",b=\"2\"} 3\nx_total{a=\"1\",b=\"3\"} 4\nx_total_more{a=\"1\"} 9\nx_total{a=\"2\"} 5\n";
        assert_eq!(sum_metric(text, "x_total", &["a=\"1\""]), 7.0);
        assert_eq!(sum_metric(text, "x_total", &[]), 12.0);
        assert_eq!(sum_metric(text, "y", &[]), 0.0);
    }
}
