//! What the control plane costs: the time from an object to its enforcement, memory by pods, CPU under churn.
//!
//! ```text
//!   2 pods ─▶ label to HBONE, policy to refusal, memory ─▶ 50 pods ─▶ memory, churn ─▶ 200 pods ─▶ memory, policy again
//! ```
//!
//! One lab, in which nothing else is done. Clocks start before the object is written and stop when a client in a pod
//! sees the effect, so everything between counts: the file, istiod-lite, xDS, the proxies, the connection itself.

mod churn;
mod enforce;
mod figures;
mod inside;
pub(crate) mod scale;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab, PodInfo};

pub(crate) use self::figures::{Found, section};

use self::enforce::Before;
use self::figures::{Memory, Time};
use crate::bed::{self, NAMESPACE};
use crate::manifests;
use crate::measure::cpu::Cpu;
use crate::measure::memory;
use crate::mode::Mode;
use crate::options::BenchOptions;

/// As options name it.
pub(crate) const NAME: &str = "control-plane";
/// As the report names it.
pub(crate) const TITLE: &str = "control plane: object to enforcement, memory, CPU under churn";

/// Pods of the mesh, beside the server, at which memory is looked at.
const COUNTS: [u32; 3] = [2, 50, 200];
/// How many of them there are while things change.
const CHURN_AT: u32 = 50;
/// How often a time is taken with few pods, and with many.
const ROUNDS: u32 = 7;
const ROUNDS_AT_MANY: u32 = 5;
/// How long nothing happens before memory is looked at.
const SETTLED: Duration = Duration::from_millis(1500);

const MIB: f64 = 1024.0 * 1024.0;

/// Measures it in a lab of its own, and tells each figure as it comes.
pub(crate) async fn measure(mode: Mode, options: &BenchOptions) -> Result<Found> {
    let lab = Lab::start(bed::lab_options(mode, options)).await?;
    let mut found = Found::new(mode);
    let result = all(&lab, &mut found).await;
    lab.down().await?;
    result.map(|()| found)
}

async fn all(lab: &Lab, found: &mut Found) -> Result<()> {
    let few = COUNTS[0];
    lab.apply(&manifests::filler(false, few)).await?;
    lab.wait_ready(NAMESPACE, "filler", few as usize).await?;
    lab.wait_ready(NAMESPACE, "far", 1).await?;
    let ends = Ends::find(lab).await?;
    found.tell(Time::new("label to HBONE", few, enforce::label_to_hbone(lab, &ends, ROUNDS).await?));
    for count in COUNTS {
        lab.apply(&manifests::filler(true, count)).await?;
        lab.wait_ready(NAMESPACE, "filler", count as usize).await?;
        lab.wait_enrolled(NAMESPACE, true).await?;
        tokio::time::sleep(SETTLED).await;
        found.remember(memory_of(lab, count).await?);
        if count == CHURN_AT {
            for churn in churn::measure(lab, count).await? {
                found.burnt(churn);
            }
            continue;
        }
        let ends = Ends::find(lab).await?;
        let rounds = if count == few { ROUNDS } else { ROUNDS_AT_MANY };
        let [refused, cut, served] = enforce::policy(lab, &ends, Before::Quiet, rounds).await?;
        found.tell(Time::new("policy to a new connection refused", count, refused));
        found.tell(Time::new("policy to an open connection cut", count, cut));
        found.tell(Time::new("policy deleted to a new connection served", count, served));
        let [refused, ..] = enforce::policy(lab, &ends, Before::Change, rounds).await?;
        found.tell(Time::new("policy right after another change to a new connection refused", count, refused));
    }
    Ok(())
}

/// A client's network namespace and the server that it talks to.
#[derive(Debug, Clone)]
struct Ends {
    client: PathBuf,
    server: std::net::SocketAddr,
}

impl Ends {
    async fn find(lab: &Lab) -> Result<Self> {
        let (client, server) = (lab.pod(NAMESPACE, "filler").await?, lab.pod(NAMESPACE, "far").await?);
        Ok(Self { client: netns(lab, &client)?, server: (server.ipv4(), manifests::HTTP).into() })
    }
}

/// The file of a pod's network namespace, seen through the lab's pid 1: it is named in the lab's mounts only.
fn netns(lab: &Lab, pod: &PodInfo) -> Result<PathBuf> {
    let file = lab.state_dir().join("nodes").join(&pod.node).join("netns").join(&pod.uid);
    let root = PathBuf::from(format!("/proc/{}/root", lab.pid()?));
    Ok(root.join(file.strip_prefix("/").context("the lab's folder has no whole path")?))
}

/// The mesh's processes by kind, as folders below /proc.
async fn processes(lab: &Lab) -> Result<BTreeMap<&'static str, Vec<PathBuf>>> {
    let proc = bed::proc(lab)?;
    let mut found: BTreeMap<&'static str, Vec<PathBuf>> = BTreeMap::new();
    for component in lab.status().await?.components {
        let kind = match component.component {
            Component::Istiod => "istiod-lite",
            Component::Agent(_) => "agents",
            Component::Ztunnel(_) => "ztunnels",
        };
        let pid = component.pid.with_context(|| format!("{} does not run", component.component))?;
        found.entry(kind).or_default().push(proc.join(pid.to_string()));
    }
    Ok(found)
}

/// CPU of each kind of process since its start, seconds.
async fn cpu_of(lab: &Lab) -> Result<BTreeMap<&'static str, f64>> {
    let found = processes(lab).await?;
    Ok(found.into_iter().map(|(kind, processes)| (kind, Cpu::of_processes(&processes).total())).collect())
}

async fn memory_of(lab: &Lab, pods: u32) -> Result<Memory> {
    let found = processes(lab).await?;
    let mib = found.into_iter().map(|(kind, processes)| (kind, memory::pss(&processes) as f64 / MIB)).collect();
    Ok(Memory { pods, mib })
}
