//! One node for one test: the binary on trial between a scripted control plane, a scripted node agent and pods.
//!
//! ```text
//!   ztunnel's own pod (1): ztunnel, the scripted istiod on loopback 15012
//!   local pods: enrolled by ZDS, redirected by the rules of 1.2, on node `node-a`
//!   remote pods: plain namespaces in which the test plays whoever it likes
//! ```

use std::fs;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::istiod::{Ads, Istiod};
use super::net::{self, Netns, Wire};
use super::pki::{self, Ca, Certified};
use super::process::{self, Process};
use super::tunnel::{Client, Server};
use super::wds::{ADDRESS, AUTHORIZATION, Policy, Resource, Workload};
use super::zds::{self, Link, Listener};
use super::{until, within};

pub(crate) const NODE: &str = "node-a";
pub(crate) const TOKEN: &str = "a-token-of-the-test";

/// A pod.
#[derive(Debug, Clone)]
pub(crate) struct Pod {
    pub(crate) netns: Netns,
    pub(crate) number: u8,
    pub(crate) workload: Workload,
}

impl Pod {
    pub(crate) fn ip(&self) -> IpAddr {
        net::ipv4(self.number)
    }

    pub(crate) fn ip6(&self) -> IpAddr {
        net::ipv6(self.number)
    }

    pub(crate) fn at(&self, port: u16) -> SocketAddr {
        (self.ip(), port).into()
    }

    /// The uid by which ZDS knows it.
    pub(crate) fn uid(&self) -> String {
        format!("uid-of-{}", self.workload.name)
    }

    pub(crate) fn identity(&self) -> String {
        format!("spiffe://cluster.local/ns/{}/sa/{}", self.workload.namespace, self.workload.service_account)
    }

    pub(crate) fn add(&self) -> super::protobuf::Message {
        let Workload { name, namespace, service_account, .. } = &self.workload;
        zds::add(&self.uid(), name, namespace, service_account)
    }
}

/// What surrounds the binary, before it is started.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) folder: TempDir,
    pub(crate) wire: Wire,
    /// ztunnel's own pod.
    pub(crate) host: Netns,
    pub(crate) ca: Arc<Ca>,
    pub(crate) istiod: Istiod,
    pub(crate) agent: Listener,
    env: Vec<(String, String)>,
}

impl Stage {
    pub(crate) fn set() -> Result<Self> {
        let folder = TempDir::new()?;
        let wire = Wire::new()?;
        let host = wire.pod(1)?;
        let ca = Arc::new(Ca::new()?);
        let certificate = ca.certify(vec![pki::dns("localhost")?, pki::dns("istiod.istio-system.svc")?])?;
        let istiod = Istiod::start(&host, Arc::clone(&ca), certificate)?;
        // The defaults of section 9 are paths below the working folder.
        for (path, content) in [
            ("var/run/secrets/istio/root-cert.pem", ca.pem.as_str()),
            ("var/run/secrets/tokens/istio-token", TOKEN),
            ("resolv.conf", "nameserver 198.18.9.9\nsearch nowhere.example\n"),
            ("hosts", "127.0.0.1 localhost\n::1 localhost\n"),
        ] {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(path, content)?;
        }
        let socket = folder.path().join("ztunnel.sock");
        let agent = Listener::bind(&socket)?;
        let mut stage = Self { folder, wire, host, ca, istiod, agent, env: Vec::new() };
        for (name, value) in [
            ("XDS_ADDRESS", "https://localhost:15012"),
            ("CA_ADDRESS", "https://localhost:15012"),
            ("NODE_NAME", NODE),
            ("POD_NAME", "ztunnel-abc"),
            ("POD_NAMESPACE", "istio-system"),
            ("INSTANCE_IP", "198.18.1.1"),
            ("CLUSTER_ID", "Kubernetes"),
            ("ZTUNNEL_WORKER_THREADS", "1"),
            ("INPOD_UDS", &socket.display().to_string()),
        ] {
            stage.var(name, value);
        }
        Ok(stage)
    }

    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.folder.path().join(path)
    }

    /// Sets a variable of the binary's environment.
    pub(crate) fn var(&mut self, name: &str, value: &str) {
        self.unset(name);
        self.env.push((name.to_owned(), value.to_owned()));
    }

    pub(crate) fn unset(&mut self, name: &str) {
        self.env.retain(|(found, _)| found != name);
    }

    /// Starts the binary.
    pub(crate) fn start(&self) -> Result<Process> {
        Process::start(&process::ztunnel(), &self.host, self.folder.path(), "ztunnel.log", &self.env)
    }

    /// A namespace with redirection and a workload of the mesh on this node.
    pub(crate) fn local(&self, number: u8, name: &str) -> Result<Pod> {
        let netns = self.wire.pod(number)?;
        net::redirect(&netns)?;
        Ok(Pod { netns, number, workload: workload(name, number, NODE, 1) })
    }

    /// A plain namespace with a workload of the mesh on another node.
    pub(crate) fn remote(&self, number: u8, name: &str) -> Result<Pod> {
        Ok(Pod { netns: self.wire.pod(number)?, number, workload: workload(name, number, "node-b", 1) })
    }

    /// One HTTP request to a port of ztunnel's; head and body.
    pub(crate) async fn http(&self, port: u16, request: &str) -> Result<(String, Vec<u8>)> {
        let mut stream = self.host.connect(SocketAddr::from(([127, 0, 0, 1], port))).await?;
        stream.write_all(format!("{request}\r\nHost: localhost\r\nConnection: close\r\n\r\n").as_bytes()).await?;
        let mut answer = Vec::new();
        within("an HTTP answer", stream.read_to_end(&mut answer)).await??;
        let at = answer.windows(4).position(|part| part == b"\r\n\r\n").context("a head")?;
        let head = String::from_utf8(answer[..at].to_vec())?;
        let body = answer.split_off(at + 4);
        match head.to_ascii_lowercase().contains("transfer-encoding: chunked") {
            true => Ok((head, dechunk(&body)?)),
            false => Ok((head, body)),
        }
    }

    /// GET; status and text.
    pub(crate) async fn get(&self, port: u16, path: &str) -> Result<(u16, String)> {
        let (head, body) = self.http(port, &format!("GET {path} HTTP/1.1")).await?;
        let status = head.split(' ').nth(1).context("a status")?.parse()?;
        Ok((status, String::from_utf8_lossy(&body).into_owned()))
    }
}

fn dechunk(mut body: &[u8]) -> Result<Vec<u8>> {
    let mut whole = Vec::new();
    loop {
        let at = body.windows(2).position(|part| part == b"\r\n").context("a chunk's size")?;
        let size = usize::from_str_radix(std::str::from_utf8(&body[..at])?.trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        whole.extend_from_slice(body.get(at + 2..at + 2 + size).context("a chunk")?);
        body = &body[at + 4 + size..];
    }
}

fn workload(name: &str, number: u8, node: &str, tunnel_protocol: u64) -> Workload {
    Workload {
        name: name.to_owned(),
        namespace: "app".to_owned(),
        service_account: format!("sa-{name}"),
        addresses: vec![net::ipv4(number), net::ipv6(number)],
        node: node.to_owned(),
        tunnel_protocol,
        ..Workload::default()
    }
}

/// A started node.
#[derive(Debug)]
pub(crate) struct World {
    pub(crate) ztunnel: Process,
    pub(crate) ads: Ads,
    pub(crate) link: Link,
    pub(crate) stage: Stage,
}

impl World {
    /// Starts the binary with these pods enrolled and these resources known.
    pub(crate) async fn start(stage: Stage, pods: &[&Pod], resources: &[Resource]) -> Result<Self> {
        let ztunnel = stage.start()?;
        Self::enter(stage, ztunnel, pods, resources).await
    }

    /// The same for a binary that was started already.
    pub(crate) async fn enter(
        mut stage: Stage,
        ztunnel: Process,
        pods: &[&Pod],
        resources: &[Resource],
    ) -> Result<Self> {
        let of = |type_url: &str| resources.iter().filter(|r| r.type_url == type_url).cloned().collect::<Vec<_>>();
        let mut ads = stage.istiod.ads().await?;
        ads.first(&of(ADDRESS), &of(AUTHORIZATION)).await?;
        let link = stage.agent.accept()?;
        link.hello()?;
        for pod in pods {
            link.accepted(&pod.add(), &[pod.netns.fd()])?;
        }
        link.accepted(&zds::snapshot_sent(), &[])?;
        let world = Self { ztunnel, ads, link, stage };
        world.ready().await?;
        Ok(world)
    }

    pub(crate) async fn ready(&self) -> Result<()> {
        until("readiness", async || {
            Ok(self.stage.get(15021, "/healthz/ready").await.is_ok_and(|(status, _)| status == 200))
        })
        .await
    }

    /// Pushes resources of one type.
    pub(crate) async fn push(&mut self, resources: &[Resource]) -> Result<()> {
        let type_url = resources.first().context("something to push")?.type_url;
        self.ads.accepted(type_url, resources, &[]).await
    }

    /// Replaces the policies: what was known of `before` and is not among `after` is removed.
    pub(crate) async fn policies(&mut self, before: &[Policy], after: &[Policy]) -> Result<()> {
        let gone = before.iter().map(Policy::key).filter(|key| !after.iter().any(|policy| policy.key() == *key));
        let gone: Vec<String> = gone.collect();
        let resources: Vec<Resource> = after.iter().map(Policy::resource).collect();
        self.ads.accepted(AUTHORIZATION, &resources, &gone).await
    }

    pub(crate) async fn remove(&mut self, type_url: &str, names: &[String]) -> Result<()> {
        self.ads.accepted(type_url, &[], names).await
    }

    /// A certificate of the mesh.
    pub(crate) fn certificate(&self, pod: &Pod) -> Result<Certified> {
        self.stage.ca.workload(&pod.identity())
    }

    /// An HBONE connection from a remote pod to a local one.
    pub(crate) async fn dial(&self, from: &Pod, to: &Pod) -> Result<Client> {
        Client::dial(&from.netns, to.at(15008), Some(self.certificate(from)?)).await
    }

    /// A scripted ztunnel in a remote pod.
    pub(crate) fn serve(&self, pod: &Pod) -> Result<Server> {
        Server::bind(&pod.netns, SocketAddr::from(([0; 16], 15008)), self.certificate(pod)?)
    }

    /// The metrics.
    pub(crate) async fn metrics(&self) -> Result<String> {
        let (status, text) = self.stage.get(15020, "/metrics").await?;
        ensure!(status == 200, "/metrics answered {status}");
        Ok(text)
    }

    /// The sum of a metric's samples whose line holds all of these.
    pub(crate) async fn metric(&self, name: &str, labels: &[&str]) -> Result<f64> {
        Ok(sum(&self.metrics().await?, name, labels))
    }

    pub(crate) async fn config_dump(&self) -> Result<serde_json::Value> {
        Ok(serde_json::from_str(&self.stage.get(15000, "/config_dump").await?.1)?)
    }
}

/// The sum of a metric's samples whose line holds all of these.
pub(crate) fn sum(text: &str, name: &str, labels: &[&str]) -> f64 {
    let lines = text.lines().filter(|line| {
        line.strip_prefix(name).is_some_and(|rest| rest.starts_with(['{', ' ']))
            && labels.iter().all(|l| line.contains(l))
    });
    lines.filter_map(|line| line.rsplit_once(' ')?.1.parse::<f64>().ok()).sum()
}

/// Whether a TCP connection gives bytes, or an end, or a reset: what a client sees first.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Seen {
    Bytes(Vec<u8>),
    End,
    Reset,
}

/// What comes first.
pub(crate) async fn first(stream: &mut tokio::net::TcpStream) -> Result<Seen> {
    let mut buffer = vec![0; 4096];
    Ok(match within("an answer", stream.read(&mut buffer)).await? {
        Ok(0) => Seen::End,
        Ok(length) => Seen::Bytes(buffer[..length].to_vec()),
        Err(_) => Seen::Reset,
    })
}

/// Sends bytes and says what came back until the end.
pub(crate) async fn exchange(stream: &mut tokio::net::TcpStream, send: &[u8]) -> Result<Vec<u8>> {
    stream.write_all(send).await?;
    stream.shutdown().await?;
    let mut all = Vec::new();
    within("the end", stream.read_to_end(&mut all)).await??;
    Ok(all)
}

/// An application that greets each caller with the caller's address, then echoes.
#[derive(Debug)]
pub(crate) struct App {
    _task: tokio::task::JoinSet<()>,
}

impl App {
    /// Greets with the caller's address.
    pub(crate) fn start(netns: &Netns, at: SocketAddr) -> Result<Self> {
        Self::greet(netns, at, None)
    }

    /// Greets with its own name.
    pub(crate) fn named(netns: &Netns, at: SocketAddr, name: &str) -> Result<Self> {
        Self::greet(netns, at, Some(name.to_owned()))
    }

    fn greet(netns: &Netns, at: SocketAddr, name: Option<String>) -> Result<Self> {
        let listener = netns.listen(at)?;
        let mut task = tokio::task::JoinSet::new();
        task.spawn(async move {
            let mut callers = tokio::task::JoinSet::new();
            while let Ok((mut stream, from)) = listener.accept().await {
                let greeting = name.clone().unwrap_or_else(|| format!("hello {}", from.ip().to_canonical()));
                callers.spawn(async move {
                    // A caller that goes away ends its echo, no more.
                    let _ = stream.write_all(format!("{greeting}\n").as_bytes()).await;
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                    let _ = write.shutdown().await;
                });
            }
        });
        Ok(Self { _task: task })
    }
}

/// Connects and takes the greeting of an [`App`]; `None` if the connection was refused, reset or ended without one.
pub(crate) async fn greeted(from: &Netns, to: SocketAddr) -> Result<Option<String>> {
    match from.connect(to).await {
        Ok(mut stream) => greeting(&mut stream).await,
        // A reset may come before the connect returns.
        Err(_) => Ok(None),
    }
}

/// The greeting of an [`App`], or that the connection ended without one.
pub(crate) async fn greeting(stream: &mut tokio::net::TcpStream) -> Result<Option<String>> {
    Ok(match first(stream).await? {
        Seen::Bytes(bytes) => Some(String::from_utf8(bytes)?.trim().to_owned()),
        Seen::End | Seen::Reset => None,
    })
}
