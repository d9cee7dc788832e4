//! A lab as its caller holds it. Nothing here needs more than the lab's folder and its control socket.

mod components;
mod objects;

use self::objects::Store;
pub use self::objects::manifest_files;

use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aquifer_objects::Kind;
use tokio::task::spawn_blocking;

use crate::api_server::kubectl;
use crate::capture::Capture;
use crate::error::{During, LabError, Result};
use crate::options::{Component, LabOptions, Netns};
use crate::paths::{LABS, Paths};
use crate::process::{ExecOutput, Process};
use crate::start::{self, Leaving};
use crate::status::{PodInfo, Status};
use crate::wire::{self, Reply, Request, Target};

/// How often a condition is looked at while waiting for it.
const POLL: Duration = Duration::from_millis(20);

/// How long a lab that ends may keep its lock after it hung up on us: the kernel ends its processes meanwhile.
const LAST_MOMENTS: Duration = Duration::from_secs(5);

/// How long the end of a lab may take: the kernel takes its time with hundreds of processes on a busy machine.
const LEAVING: Duration = Duration::from_secs(30);

/// A running lab. Dropping the one that started it ends the lab, unless it was started with `keep`.
#[derive(Debug)]
pub struct Lab {
    name: String,
    paths: Paths,
    store: Store,
    /// The lab ends when this closes; `None` for a kept or attached one.
    life: Option<std::io::PipeWriter>,
    start_took: Duration,
}

impl Lab {
    /// Starts a lab and waits until it is ready.
    pub async fn start(options: LabOptions) -> Result<Self> {
        let begin = Instant::now();
        let started = blocking(move || start::start(options)).await?;
        let store = Store::of(&started.paths);
        Ok(Self { name: started.name, paths: started.paths, store, life: started.life, start_took: begin.elapsed() })
    }

    /// Takes hold of a lab that is up, without owning its life.
    pub fn attach(name: &str) -> Result<Self> {
        let paths = Paths::of(name);
        if !start::alive(&paths) {
            return Err(LabError::NoSuchLab(name.to_owned()));
        }
        let store = Store::of(&paths);
        Ok(Self { name: name.to_owned(), paths, store, life: None, start_took: Duration::ZERO })
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

    /// Whether the lab is up still.
    pub fn is_up(&self) -> bool {
        start::alive(&self.paths)
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
            leaving.wait(LEAVING)
        })
        .await
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

    /// One pod, by its name or a Deployment's (its first that isn't being deleted); `pod/…` and `deploy/…` are
    /// understood too.
    pub async fn pod(&self, namespace: &str, name: &str) -> Result<PodInfo> {
        let name = pod_name(name)?;
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
        let target = Target::Pod { namespace: namespace.into(), name: pod_name(pod_or_deployment)?.into() };
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
        let name = pod_name(pod)?.to_owned();
        self.netns_exec(Netns::Pod { namespace: namespace.to_owned(), name }, args).await
    }

    /// Runs a command on the caller's own stdin, stdout and stderr; returns its exit code.
    pub async fn exec_attached<S: AsRef<str>>(
        &self,
        namespace: &str,
        pod_or_deployment: &str,
        args: &[S],
    ) -> Result<i32> {
        let target = Target::Pod { namespace: namespace.into(), name: pod_name(pod_or_deployment)?.into() };
        Process::attached(&self.paths, target, args).await
    }

    /// Runs kubectl against the lab's API server, on the caller's own stdin, stdout and stderr; its exit code.
    pub async fn kubectl<S: AsRef<str>>(&self, args: &[S]) -> Result<i32> {
        if !matches!(self.store, Store::Remote) {
            let how = "start one with `aquifer lab up --api-server`";
            return Err(LabError::Refused(format!("the lab `{}` has no API server: {how}", self.name)));
        }
        let kubeconfig = self.paths.kube().join("admin.conf").display().to_string();
        let program = kubectl()?.display().to_string();
        let mut command = vec![program, "--kubeconfig".to_owned(), kubeconfig];
        command.extend(args.iter().map(|arg| arg.as_ref().to_owned()));
        Process::attached(&self.paths, Target::Netns(Netns::Wire), &command).await
    }

    /// What a pod's containers wrote so far. Mesh components log under `istio-system` and their own names.
    pub async fn logs(&self, namespace: &str, pod: &str) -> Result<String> {
        self.read_log(&self.paths.log(namespace, pod))
    }

    /// What a component wrote so far, over all its restarts and replacements.
    pub async fn component_logs(&self, component: &Component) -> Result<String> {
        self.read_log(&self.log_path(component))
    }

    /// The file that a component's lines go to.
    pub fn log_path(&self, component: &Component) -> PathBuf {
        self.paths.log("istio-system", &component.to_string())
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

    /// Fails if the lab has ended: its folder is not to be made anew.
    fn check_up(&self) -> Result<()> {
        if self.is_up() { Ok(()) } else { Err(ended(&self.paths)) }
    }

    fn read_log(&self, path: &Path) -> Result<String> {
        let text = fs::read(path).during(|| format!("reading {}", path.display()));
        match text {
            Ok(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
            Err(error) => self.check_up().and(Err(error)),
        }
    }

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
            let _ = leaving.wait(LEAVING);
        }
    }
}

/// The node's address as the plan of addresses has it.
pub fn node_ip(node: u8) -> IpAddr {
    crate::addresses::Plan::new(true).node(node)[0]
}

pub(crate) fn connect(paths: &Paths) -> Result<UnixStream> {
    UnixStream::connect(paths.control()).map_err(|error| {
        // Nobody listens, and pid 1 does so all its life: it may be just ending.
        let may_end = error.kind() == std::io::ErrorKind::ConnectionRefused;
        let lives = if may_end { outlives_its_last_moments(paths) } else { start::alive(paths) };
        if lives {
            LabError::Refused(format!("the lab `{}` does not answer: {error}", paths.name()))
        } else {
            ended(paths)
        }
    })
}

fn request(paths: &Paths, message: &Request) -> Result<Reply> {
    let stream = connect(paths)?;
    let sent = wire::send(&stream, message, &[]);
    match sent.and_then(|()| wire::receive::<Reply>(&stream)) {
        Ok(Some((Reply::Error(message), _))) => Err(LabError::Refused(message)),
        Ok(Some((reply, _))) => Ok(reply),
        Ok(None) => Err(hung_up(paths, None)),
        Err(error) => Err(hung_up(paths, Some(error))),
    }
}

/// Why the lab hung up: it ended, or somebody failed there.
pub(crate) fn hung_up(paths: &Paths, error: Option<std::io::Error>) -> LabError {
    if outlives_its_last_moments(paths) {
        let why = error.map_or_else(String::new, |error| format!(": {error}"));
        return LabError::Refused(format!("the lab `{}` hung up{why}", paths.name()));
    }
    ended(paths)
}

/// Blocks while a lab that has closed a socket may be about to end; its lock goes after its sockets.
fn outlives_its_last_moments(paths: &Paths) -> bool {
    let begin = Instant::now();
    while start::alive(paths) {
        if begin.elapsed() > LAST_MOMENTS {
            return true;
        }
        std::thread::sleep(POLL);
    }
    false
}

fn ended(paths: &Paths) -> LabError {
    LabError::Ended(paths.name())
}

/// A pod's or deployment's name without the kind before it, as kubectl takes both.
fn pod_name(text: &str) -> Result<&str> {
    let Some((kind, name)) = text.split_once('/') else { return Ok(text) };
    match kind.parse() {
        Ok(Kind::Pod | Kind::Deployment) => Ok(name),
        _ => {
            Err(LabError::Refused(format!("`{text}`: commands run in a pod (`pod/…`) or a deployment's (`deploy/…`)")))
        }
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
    fn pods_and_deployments_are_named_with_or_without_their_kind() {
        let cases = [
            ("orders", "orders"),
            ("deploy/orders", "orders"),
            ("deployment/orders", "orders"),
            ("pod/x", "x"),
            ("pods/x", "x"),
        ];
        for (text, expect) in cases {
            assert_eq!(pod_name(text).unwrap(), expect);
        }
        for text in ["svc/orders", "nothing/orders"] {
            assert!(pod_name(text).unwrap_err().to_string().contains(text));
        }
    }

    #[test]
    fn metrics_add_up_by_label() {
        let text = "# HELP x y\nx_total{a=\"1\",b=\"2\"} 3\nx_total{a=\"1\",b=\"3\"} 4\nx_total_more{a=\"1\"} 9\nx_total{a=\"2\"} 5\n";
        assert_eq!(sum_metric(text, "x_total", &["a=\"1\""]), 7.0);
        assert_eq!(sum_metric(text, "x_total", &[]), 12.0);
        assert_eq!(sum_metric(text, "y", &[]), 0.0);
    }
}
