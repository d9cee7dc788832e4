//! A lab with something in it, and sockets inside its pods.

use std::fs::File;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aquifer_lab::{Component, ExecOutput, Lab, LabOptions, PodInfo};
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::Signal;

pub(crate) const SHOP: [&str; 3] = [
    include_str!("../../../examples/shop/00-namespaces.yaml"),
    include_str!("../../../examples/shop/10-shop.yaml"),
    include_str!("../../../examples/shop/20-outside.yaml"),
];
pub(crate) const RAW: &str = include_str!("raw.yaml");
/// When what has happened stands in logs and metrics: no requirement, a fifth of what is waited.
const TOLD: Duration = Duration::from_secs(2);
pub(crate) const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
pub(crate) const PAYMENTS: &str = "spiffe://cluster.local/ns/shop/sa/payments";

/// The binaries that the lab starts, built once per run: a test must not try yesterday's.
pub(crate) fn build_binaries() {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        assert!(nix::unistd::Uid::effective().is_root(), "the lab tests make network namespaces: run them as root");
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let status = std::process::Command::new(cargo)
            .args(["build", "--quiet", "--workspace", "--bins"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
            .status()
            .expect("cargo to run");
        assert!(status.success(), "cargo build of the binaries");
    });
}

/// A lab with these options. `FAST_PATHS=off` turns off what a proxy may do beside the tunnel, unless the test says
/// otherwise: everything must hold without it too.
pub(crate) async fn lab(mut options: LabOptions) -> Result<Lab> {
    tokio::task::spawn_blocking(build_binaries).await?;
    if std::env::var_os("FAST_PATHS").is_some_and(|value| value == "off") {
        for env in [&mut options.ztunnel_env, &mut options.istiod_env] {
            // What comes later counts.
            env.insert(0, ("SAME_NODE_FAST_PATH".to_owned(), "false".to_owned()));
        }
    }
    Ok(Lab::start(options).await?)
}

/// A lab with `examples/shop` in it, nothing enrolled yet.
pub(crate) async fn shop(options: LabOptions) -> Result<Lab> {
    let lab = lab(options).await?;
    for manifests in SHOP {
        lab.apply(manifests).await?;
    }
    lab.wait_namespace_ready("shop").await?;
    lab.wait_namespace_ready("outside").await?;
    Ok(lab)
}

/// The same, with the namespace `shop` in the mesh.
pub(crate) async fn meshed_shop(options: LabOptions) -> Result<Lab> {
    let lab = shop(options).await?;
    enrol(&lab, "shop").await?;
    Ok(lab)
}

/// A lab with the pods `a` (node1), `b` and `c` (node2, node1) in the enrolled namespace `raw`.
pub(crate) async fn raw(options: LabOptions) -> Result<Lab> {
    let lab = lab(options).await?;
    lab.apply(RAW).await?;
    lab.wait_namespace_ready("raw").await?;
    enrol(&lab, "raw").await?;
    Ok(lab)
}

/// Labels the namespace, waits until its pods are in and both proxies know of it.
pub(crate) async fn enrol(lab: &Lab, namespace: &str) -> Result<()> {
    lab.label_namespace(namespace, "istio.io/dataplane-mode", Some("ambient")).await?;
    wait_meshed(lab, namespace).await
}

/// Waits until the namespace's pods are in and both proxies know of it: a proxy that has not heard of a pod yet sends
/// to it in plaintext.
pub(crate) async fn wait_meshed(lab: &Lab, namespace: &str) -> Result<()> {
    lab.wait_enrolled(namespace, true).await?;
    let pods: Vec<PodInfo> = lab.status().await?.pods.into_iter().filter(|pod| pod.namespace == namespace).collect();
    for node in ["node1", "node2"] {
        eventually(&format!("{node} knows every pod of {namespace} as HBONE"), Duration::from_secs(2), async || {
            let dump: serde_json::Value = serde_json::from_str(&lab.ztunnel_admin(node, "/config_dump").await?)?;
            let workloads = dump["workloads"].as_array().context("workloads in the config dump")?;
            let hbone = |pod: &PodInfo| {
                workloads
                    .iter()
                    .any(|w| w["name"] == pod.name.as_str() && w["namespace"] == namespace && w["protocol"] == "HBONE")
            };
            Ok(pods.iter().all(hbone))
        })
        .await?;
    }
    Ok(())
}

/// Polls until true; fails at five times the bound and prints what was measured. The last look begins after that time, so
/// that one look which takes long is not the end.
pub(crate) async fn eventually(
    what: &str,
    bound: Duration,
    mut condition: impl AsyncFnMut() -> Result<bool>,
) -> Result<Duration> {
    let begin = Instant::now();
    loop {
        let looked = begin.elapsed();
        if condition().await? {
            println!("{what}: after {:?} (bound {bound:?})", begin.elapsed());
            return Ok(begin.elapsed());
        }
        ensure!(looked < bound * 5, "{what}: not within {:?}", bound * 5);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Stops a node's ztunnel (SIGSTOP) and returns when none of its threads runs; its process id inside the lab.
pub(crate) async fn freeze(lab: &Lab, node: &str) -> Result<i32> {
    let pid = lab.stats(Component::ztunnel(node)).await?.pid;
    lab.kill(Component::ztunnel(node), Signal::SIGSTOP as i32).await?;
    let states = format!("sed 's/.*) //' /proc/{pid}/task/*/stat | cut -c1 | sort -u");
    eventually("every thread stands still", Duration::from_secs(2), async || {
        Ok(lab.node_exec(node, &["sh", "-c", &states]).await?.stdout.trim() == "T")
    })
    .await?;
    Ok(pid)
}

/// One request with a connection of its own; curl's exit code, HTTP status, body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Answer {
    pub(crate) exit: i32,
    pub(crate) status: u16,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn ok(&self) -> bool {
        self.exit == 0 && self.status == 200
    }
}

/// GET with curl in a pod.
pub(crate) async fn get(lab: &Lab, namespace: &str, pod: &str, url: &str) -> Result<Answer> {
    let output = lab.exec(namespace, pod, &["curl", "-gs", "-m", "10", "-w", "\n%{http_code}", url]).await?;
    let (body, status) = output.stdout.rsplit_once('\n').with_context(|| format!("curl said {output:?}"))?;
    Ok(Answer { exit: output.code, status: status.trim().parse()?, body: body.trim().to_owned() })
}

/// Waits for access lines of a node's ztunnel that hold all the texts: a line is written when the connection has ended,
/// by a thread of its own, so maybe after the client has its answer.
pub(crate) async fn access_lines_appear(lab: &Lab, node: &str, count: usize, texts: &[&str]) -> Result<Vec<String>> {
    let (what, mut lines) = (format!("{node} logs {texts:?} {count} times"), Vec::new());
    let found = eventually(&what, TOLD, async || {
        lines = access_lines(lab, node, texts).await?;
        Ok(lines.len() >= count)
    })
    .await;
    if found.is_err() {
        println!("all access lines of {node}:\n{}", access_lines(lab, node, &[]).await?.join("\n"));
    }
    found.with_context(|| format!("{} found", lines.len()))?;
    Ok(lines)
}

/// Waits for one access line; the last.
pub(crate) async fn access_line_appears(lab: &Lab, node: &str, texts: &[&str]) -> Result<String> {
    access_lines_appear(lab, node, 1, texts).await?.pop().context("a line")
}

/// Waits until the samples of a component's metric, whose lines hold all of these, add up to what is asked for.
pub(crate) async fn counted(
    lab: &Lab,
    component: &Component,
    metric: &str,
    labels: &[&str],
    enough: impl Fn(f64) -> bool,
) -> Result<()> {
    let (what, mut last) = (format!("{component} counts {metric} {labels:?}"), 0.0);
    let reached = eventually(&what, TOLD, async || {
        last = lab.metric(component.clone(), metric, labels).await?;
        Ok(enough(last))
    })
    .await;
    reached.map(drop).with_context(|| format!("{last} in the end"))
}

/// The access lines of a node's ztunnel that hold all the texts, so far: for what must not be there, or is polled for.
pub(crate) async fn access_lines(lab: &Lab, node: &str, texts: &[&str]) -> Result<Vec<String>> {
    let log = lab.component_logs(&Component::ztunnel(node)).await?;
    // The last line may be half written.
    let log = log.rsplit_once('\n').map_or("", |(whole, _)| whole);
    let lines = log.lines().filter(|line| line.contains("\taccess\t") && texts.iter().all(|text| line.contains(text)));
    Ok(lines.map(str::to_owned).collect())
}

/// What a pod's network namespace holds of redirection: tables, rules, routes.
pub(crate) async fn redirection(lab: &Lab, namespace: &str, pod: &str) -> Result<String> {
    let script = "nft list ruleset; ip rule | grep -v -E 'lookup (local|main|default)'; ip -6 rule | grep -v -E 'lookup (local|main)'; \
                  ip route show table 100 2>/dev/null; ip -6 route show table 100 2>/dev/null; true";
    let output: ExecOutput = lab.pod_netns_exec(namespace, pod, &["sh", "-c", script]).await?;
    Ok(output.stdout.trim().to_owned())
}

/// The file of a pod's network namespace, seen through the lab's pid 1: it is named in the lab's mounts only.
pub(crate) fn netns(lab: &Lab, pod: &PodInfo) -> Result<PathBuf> {
    let inside = lab.state_dir().join("nodes").join(&pod.node).join("netns").join(&pod.uid);
    let outside = PathBuf::from(format!("/proc/{}/root", lab.pid()?));
    Ok(outside.join(inside.strip_prefix("/")?))
}

/// The network namespace of a node: its agent's.
pub(crate) async fn node_netns(lab: &Lab, node: &str) -> Result<PathBuf> {
    let agent = lab.stats(Component::agent(node)).await?.pid;
    Ok(PathBuf::from(format!("/proc/{}/root/proc/{agent}/ns/net", lab.pid()?)))
}

/// Runs a closure on a thread that has entered a network namespace. Sockets made there stay there.
pub(crate) fn in_netns<T: Send + 'static>(path: &Path, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
    let file = File::open(path).with_context(|| format!("opening {}", path.display()))?;
    let thread = std::thread::spawn(move || -> Result<T> {
        setns(&file, CloneFlags::CLONE_NEWNET).context("entering a network namespace")?;
        Ok(work())
    });
    // What the other tasks of the test do goes on meanwhile.
    match tokio::task::block_in_place(|| thread.join()) {
        Ok(result) => result,
        Err(_) => bail!("the thread in the network namespace panicked"),
    }
}

/// The same in a pod's network namespace.
pub(crate) fn in_pod<T: Send + 'static>(
    lab: &Lab,
    pod: &PodInfo,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T> {
    in_netns(&netns(lab, pod)?, work)
}

/// Connects from within a pod.
pub(crate) fn connect(lab: &Lab, pod: &PodInfo, to: SocketAddr) -> Result<tokio::net::TcpStream> {
    connect_from(&netns(lab, pod)?, to)
}

/// Connects from within a network namespace.
pub(crate) fn connect_from(netns: &Path, to: SocketAddr) -> Result<tokio::net::TcpStream> {
    let stream = in_netns(netns, move || TcpStream::connect_timeout(&to, Duration::from_secs(15)))??;
    stream.set_nonblocking(true)?;
    Ok(tokio::net::TcpStream::from_std(stream)?)
}

/// Listens within a pod, on all its addresses.
pub(crate) fn listen(lab: &Lab, pod: &PodInfo, port: u16) -> Result<tokio::net::TcpListener> {
    let listener = in_pod(lab, pod, move || TcpListener::bind((std::net::Ipv6Addr::UNSPECIFIED, port)))??;
    listener.set_nonblocking(true)?;
    Ok(tokio::net::TcpListener::from_std(listener)?)
}

/// The addresses of a Service.
pub(crate) async fn service_ips(lab: &Lab, namespace: &str, name: &str) -> Result<Vec<IpAddr>> {
    for object in lab.objects(&[aquifer_objects::Kind::Service]).await? {
        if let aquifer_objects::Object::Service(service) = &object
            && object.namespace() == namespace
            && object.name() == name
        {
            let spec = service.spec.as_ref().context("a spec")?;
            return spec.cluster_ips.iter().flatten().map(|ip| Ok(ip.parse()?)).collect();
        }
    }
    bail!("no service {namespace}/{name}")
}
