//! One mode, set up: a lab of two nodes with a client, a server beside it and a server on the other node.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use aquifer_lab::{Component, Lab, LabOptions, Netns, PodInfo, Process};

use crate::measure::counters::{self, Counters};
use crate::mode::Mode;
use crate::options::{BenchOptions, build_folder};
use crate::sidecar::{self, Keys, PodRef, Sidecars};
use crate::tools::load;
use crate::{manifests, tuning};

/// The namespace of everything that is measured.
pub(crate) const NAMESPACE: &str = "bench";

/// Its Deployments, a pod each.
const PODS: [&str; 4] = ["client", "neighbour", "near", "far"];

/// Why the mode with waypoints cannot be measured.
pub(crate) const NO_WAYPOINT: &str = "not measured: Aquifer has no waypoint yet";

/// The port of tunnels.
const HBONE: u16 = 15008;

/// How long the mesh may take to carry the first connection.
const IN_FORCE: Duration = Duration::from_secs(20);

/// Where the server is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    /// On the other node.
    Across,
    /// On the client's node.
    Near,
}

/// A mode's lab, ready for load.
#[derive(Debug)]
pub(crate) struct Bed {
    pub(crate) mode: Mode,
    pub(crate) lab: Lab,
    far: PodInfo,
    near: PodInfo,
    sidecars: Option<Sidecars>,
    servers: Vec<Process>,
    /// The lab's own /proc, as this process sees it.
    proc: PathBuf,
}

impl Bed {
    /// Starts the lab, its pods and what the mode needs.
    pub(crate) async fn start(mode: Mode, options: &BenchOptions) -> Result<Self> {
        Self::start_with(mode, options, Keys::default()).await
    }

    /// The same; sidecars get keys of this kind.
    pub(crate) async fn start_with(mode: Mode, options: &BenchOptions, keys: Keys) -> Result<Self> {
        ensure!(mode != Mode::Waypoint, NO_WAYPOINT);
        let lab = Lab::start(lab_options(mode, options)).await?;
        lab.apply(&manifests::bench(mode.is_mesh(), options.threads())).await?;
        lab.wait_namespace_ready(NAMESPACE).await?;
        if mode.is_mesh() {
            lab.wait_enrolled(NAMESPACE, true).await?;
        }
        let pod = async |deployment: &str| lab.pod(NAMESPACE, deployment).await;
        let (far, near) = (pod("far").await?, pod("near").await?);
        let proc = proc(&lab)?;
        let mut bed = Self { mode, lab, far, near, sidecars: None, servers: Vec::new(), proc };
        for netns in bed.netnses() {
            tuning::apply(&bed.lab, &netns).await?;
        }
        for deployment in PODS {
            tuning::check_interface(&bed.lab, &pod_netns(deployment), "eth0").await?;
        }
        if let Some(kind) = mode.sidecars() {
            let pods = PODS.map(|name| PodRef::new(NAMESPACE, name));
            bed.sidecars = Some(sidecar::install_with(&bed.lab, &envoy(options)?, &pods, kind, keys).await?);
        }
        if let Ok(load) = load_program() {
            let serve = format!("serve --listen 0.0.0.0:{} --threads {}", manifests::LOAD, options.threads());
            for server in ["near", "far"] {
                let process = bed.lab.netns_spawn(pod_netns(server), &command(&load, &serve))?;
                process.wait_output("serving", IN_FORCE).await?;
                bed.servers.push(process);
            }
        }
        bed.wait_in_force().await?;
        Ok(bed)
    }

    /// Ends the lab.
    pub(crate) async fn stop(self) -> Result<()> {
        drop((self.servers, self.sidecars));
        self.lab.down().await?;
        Ok(())
    }

    /// The server's address.
    pub(crate) fn server(&self, place: Place) -> String {
        let pod = if place == Place::Across { &self.far } else { &self.near };
        pod.ipv4().to_string()
    }

    /// Host and port of the web server.
    pub(crate) fn http(&self, place: Place) -> String {
        format!("{}:{}", self.server(place), manifests::HTTP)
    }

    /// The URL of its page of 1 KiB.
    pub(crate) fn url(&self, place: Place) -> String {
        format!("http://{}/", self.http(place))
    }

    /// Runs a subcommand of `aquifer-load` as the client's process, to its end.
    pub(crate) async fn load(&self, line: &str) -> Result<String> {
        self.client(&command(&load_program()?, line)).await
    }

    /// Starts a subcommand of `aquifer-load` as the client's process.
    pub(crate) fn spawn_load(&self, line: &str) -> Result<Process> {
        Ok(self.lab.netns_spawn(pod_netns("client"), &command(&load_program()?, line))?)
    }

    /// Starts a subcommand of `aquifer-load` in the pod beside the client's.
    pub(crate) fn neighbour(&self, line: &str) -> Result<Process> {
        Ok(self.lab.netns_spawn(pod_netns("neighbour"), &command(&load_program()?, line))?)
    }

    /// Runs a program of the machine as the client's process, to its end.
    pub(crate) async fn client(&self, args: &[String]) -> Result<String> {
        let output = self.lab.netns_exec(pod_netns("client"), args).await?;
        // iperf3 tells what went wrong in its JSON.
        ensure!(
            output.ok() || output.stdout.starts_with('{'),
            "`{}` ended with {}: {}{}",
            args.join(" "),
            output.code,
            output.stderr.trim(),
            output.stdout.trim()
        );
        Ok(output.stdout)
    }

    /// The proxies that the traffic passes (both sides), as folders below /proc.
    pub(crate) async fn proxies(&self, place: Place) -> Result<Vec<PathBuf>> {
        if let Some(sidecars) = &self.sidecars {
            let server = if place == Place::Across { &self.far } else { &self.near };
            let passed = sidecars
                .iter()
                .filter(|sidecar| sidecar.pod.name == server.name || sidecar.pod.name.starts_with("client-"));
            return Ok(passed.map(|sidecar| Path::new("/proc").join(sidecar.pid.to_string())).collect());
        }
        let status = self.lab.status().await?;
        let ztunnels = status.components.iter().filter(|found| matches!(found.component, Component::Ztunnel(_)));
        Ok(ztunnels.filter_map(|found| found.pid).map(|pid| self.proc.join(pid.to_string())).collect())
    }

    /// The overflow counters of every network namespace that packets pass.
    pub(crate) async fn counters(&self) -> Result<Vec<(String, Counters)>> {
        let mut all = Vec::new();
        for netns in self.netnses() {
            let [tcp, conntrack] = counters::FILES;
            let script = format!("cat {tcp}; if [ -e {conntrack} ]; then cat {conntrack}; fi");
            let output = self.lab.netns_exec(netns.clone(), &["sh", "-c", &script]).await?;
            all.push((netns_name(&netns), Counters::parse(&output.stdout)));
        }
        Ok(all)
    }

    /// HBONE connections that the client's pod has open.
    pub(crate) async fn tunnels(&self) -> Result<usize> {
        let output = self.lab.netns_exec(pod_netns("client"), &["cat", "/proc/net/tcp"]).await?;
        Ok(established(&output.stdout, HBONE))
    }

    fn netnses(&self) -> Vec<Netns> {
        let mut all = vec![Netns::Wire, Netns::Node("node1".into()), Netns::Node("node2".into())];
        all.extend(PODS.map(pod_netns));
        if self.mode.is_mesh() {
            all.extend(["node1", "node2"].map(|node| Netns::Component(Component::ztunnel(node))));
        }
        all
    }

    /// Returns when requests pass, and in a mesh, when they pass it encrypted.
    async fn wait_in_force(&self) -> Result<()> {
        let begin = Instant::now();
        loop {
            let mut why = None;
            for place in [Place::Across, Place::Near] {
                let curl = ["curl", "-sS", "-m", "2", "-o", "/dev/null", &self.url(place)];
                let output = self.lab.netns_exec(pod_netns("client"), &curl).await?;
                if !output.ok() {
                    why = Some(format!("{}: {}", self.url(place), output.stderr.trim()));
                }
            }
            if why.is_none() {
                why = self.is_open().await?;
            }
            match why {
                None => return Ok(()),
                Some(why) if begin.elapsed() > IN_FORCE => {
                    bail!("mode {} carries no requests after {IN_FORCE:?}: {why}", self.mode)
                }
                Some(_) => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    /// Why what passed was not encrypted, if it was not.
    pub(crate) async fn is_open(&self) -> Result<Option<String>> {
        if let Some(sidecars) = &self.sidecars {
            return Ok(sidecars.verify(&self.lab).await.err().map(|error| error.to_string()));
        }
        if !self.mode.is_mesh() {
            return Ok(None);
        }
        let labels = ["reporter=\"destination\"", "connection_security_policy=\"mutual_tls\""];
        let seen = self.lab.metric(Component::ztunnel("node2"), "istio_tcp_connections_opened_total", &labels).await?;
        Ok((seen == 0.0).then(|| "ztunnel on node2 saw no connection with mutual TLS".to_owned()))
    }
}

/// Open connections to a port of others, in proc_net_tcp(5)'s words.
fn established(text: &str, port: u16) -> usize {
    let (port, open) = (format!(":{port:04X}"), "01");
    let is = |line: &&str| {
        let mut words = line.split_whitespace().skip(2);
        words.next().is_some_and(|remote| remote.ends_with(&port)) && words.next() == Some(open)
    };
    text.lines().filter(is).count()
}

/// `aquifer-load`, beside this program.
fn load_program() -> Result<PathBuf> {
    let path = std::env::current_exe().context("finding the running binary")?.with_file_name("aquifer-load");
    ensure!(path.is_file(), "{} is missing: build it with `cargo build --release -p aquifer-load`", path.display());
    Ok(path)
}

fn command(program: &Path, line: &str) -> Vec<String> {
    let mut words = vec![program.display().to_string()];
    words.extend(load::words(line));
    words
}

/// A lab's own /proc, as this process sees it.
pub(crate) fn proc(lab: &Lab) -> Result<PathBuf> {
    Ok(Path::new("/proc").join(lab.pid()?.to_string()).join("root/proc"))
}

/// The Envoy asked for, or the one beside the build folder's profiles.
pub(crate) fn envoy(options: &BenchOptions) -> Result<PathBuf> {
    if let Some(path) = &options.envoy {
        return Ok(path.clone());
    }
    sidecar::find_envoy(&build_folder()?.join("bench/venv")).context("not available (or say --envoy)")
}

pub(crate) fn lab_options(mode: Mode, options: &BenchOptions) -> LabOptions {
    let (folder, env) = match mode {
        Mode::Base => (options.base.as_ref().or(options.bin.as_ref()), &options.base_env),
        _ => (options.bin.as_ref(), &options.ambient_env),
    };
    LabOptions {
        mesh: mode.is_mesh(),
        ipv6: false,
        workers: options.workers,
        bin: folder.cloned(),
        ztunnel_env: env.clone(),
        ..LabOptions::default()
    }
}

/// The network namespace of a Deployment's pod.
pub(crate) fn pod_netns(deployment: &str) -> Netns {
    Netns::Pod { namespace: NAMESPACE.to_owned(), name: deployment.to_owned() }
}

fn netns_name(netns: &Netns) -> String {
    match netns {
        Netns::Wire => "the wire".to_owned(),
        Netns::Node(node) => node.clone(),
        Netns::Pod { name, .. } => format!("pod {name}"),
        Netns::Component(component) => component.to_string(),
    }
}

/// Fails unless the folder holds what a mode runs.
pub(crate) fn check_binaries(folder: &Path) -> Result<()> {
    for name in ["aquifer", "ztunnel", "istio-cni-node", "istiod-lite"] {
        let path = folder.join(name);
        std::fs::metadata(&path).with_context(|| {
            format!("{} is missing: build it with `cargo build --release --workspace --bins`", path.display())
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_open_connections_to_their_port() {
        let text = "  sl  local_address rem_address   st tx_queue
   0: 020012C6:B0C2 030012C6:3AA0 01 00000000:00000000
   1: 020012C6:B0C4 030012C6:3AA0 06 00000000:00000000
   2: 020012C6:3AA0 030012C6:B0C2 01 00000000:00000000
";
        assert_eq!(established(text, HBONE), 1);
    }
}
