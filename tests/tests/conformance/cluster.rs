//! A lab in which the tests take a proxy's place: on the agent's socket and at the control plane.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_lab::{Component, Lab, LabOptions, PodInfo};

use crate::peer::net::Netns;
use crate::peer::process;
use crate::peer::protobuf::Fields;
use crate::peer::zds::{Link, Packet};

/// One node, pods `a`, `b` and `c` in the namespace `raw`, and no ztunnel.
pub(crate) struct Cluster {
    pub(crate) lab: Lab,
}

fn manifests(pods: &[&str]) -> String {
    let mut text = "apiVersion: v1\nkind: Namespace\nmetadata: { name: raw }\n".to_owned();
    for name in pods {
        text.push_str(&format!(
            "---\napiVersion: v1\nkind: ServiceAccount\nmetadata: {{ name: sa-{name}, namespace: raw }}\n\
             ---\napiVersion: apps/v1\nkind: Deployment\nmetadata: {{ name: {name}, namespace: raw }}\nspec:\n  replicas: 1\n  \
             selector: {{ matchLabels: {{ app: {name} }} }}\n  template:\n    metadata: {{ labels: {{ app: {name} }} }}\n    spec:\n      \
             serviceAccountName: sa-{name}\n      terminationGracePeriodSeconds: 1\n      \
             containers: [{{ name: sleep, image: busybox, command: [sleep, infinity] }}]\n"
        ));
    }
    text
}

impl Cluster {
    /// The pods run and, if so wished, are in the mesh; then the proxy is killed.
    pub(crate) async fn start(pods: &[&str], enrolled: bool) -> Result<Self> {
        tokio::task::spawn_blocking(process::build).await?;
        let lab = Lab::start(LabOptions { nodes: 1, ..LabOptions::default() }).await?;
        lab.apply(&manifests(pods)).await?;
        lab.wait_namespace_ready("raw").await?;
        let cluster = Self { lab };
        if enrolled {
            cluster.enrol(true).await?;
            cluster.lab.wait_enrolled("raw", true).await?;
        }
        cluster.lab.kill(Component::ztunnel("node1"), 9).await?;
        let gone = |status: &aquifer_lab::Status| {
            status
                .components
                .iter()
                .all(|c| c.component != Component::ztunnel("node1") || c.pid.is_none())
                .then_some(())
        };
        cluster.lab.wait_status("the proxy gone", Duration::from_secs(30), gone).await?;
        Ok(cluster)
    }

    pub(crate) async fn enrol(&self, enrolled: bool) -> Result<()> {
        let value = enrolled.then_some("ambient");
        Ok(self.lab.label_namespace("raw", "istio.io/dataplane-mode", value).await?)
    }

    fn socket(&self) -> PathBuf {
        self.lab.state_dir().join("nodes/node1/ztunnel.sock")
    }

    /// A proxy's connection to the agent, its hello said.
    pub(crate) fn dial(&self) -> Result<Link> {
        let link = Link::dial(&self.socket())?;
        link.send(&[8, 1], &[])?;
        Ok(link)
    }

    pub(crate) async fn pod(&self, deployment: &str) -> Result<PodInfo> {
        Ok(self.lab.pod("raw", deployment).await?)
    }

    /// The network namespace of the node.
    pub(crate) async fn node(&self) -> Result<Netns> {
        let agent = self.lab.stats(Component::agent("node1")).await?.pid;
        Netns::open(&PathBuf::from(format!("/proc/{}/root/proc/{agent}/ns/net", self.lab.pid()?)))
    }

    /// The network namespace of a pod.
    pub(crate) fn netns(&self, pod: &PodInfo) -> Result<Netns> {
        let inside = self.lab.state_dir().join("nodes").join(&pod.node).join("netns").join(&pod.uid);
        Netns::open(&PathBuf::from(format!("/proc/{}/root", self.lab.pid()?)).join(inside.strip_prefix("/")?))
    }
}

/// A request of the agent's.
#[derive(Debug)]
pub(crate) enum Asked {
    Add { uid: String, name: String, namespace: String, service_account: String, netns: OwnedFd },
    Del(String),
    SnapshotSent,
    Keep,
}

/// Reads a packet as the contract has it, strictly.
pub(crate) fn parse(packet: Packet) -> Result<Asked> {
    ensure!(packet.bytes.len() <= 1024, "a packet of {} bytes", packet.bytes.len());
    let request = Fields::read(&packet.bytes)?;
    let numbers = request.numbers();
    if numbers != [1] {
        ensure!(packet.fds.is_empty(), "descriptors with {numbers:?}");
    }
    match numbers[..] {
        [1] => {
            let add = request.message(1)?;
            let info = add.message(2)?;
            ensure!(add.numbers() == [1, 2] && info.numbers() == [1, 2, 3], "{add:?}");
            let mut fds = packet.fds;
            ensure!(fds.len() == 1, "{} descriptors with an Add", fds.len());
            Ok(Asked::Add {
                uid: add.string(1),
                name: info.string(1),
                namespace: info.string(2),
                service_account: info.string(3),
                netns: fds.remove(0),
            })
        }
        [2] => {
            let del = request.message(2)?;
            ensure!(del.numbers() == [2], "DelWorkload.uid is field 2: {del:?}");
            Ok(Asked::Del(del.string(2)))
        }
        [3] => {
            ensure!(request.bytes(3).is_empty());
            Ok(Asked::SnapshotSent)
        }
        [5] => {
            ensure!(!request.message(5)?.string(1).is_empty(), "a Keep without uid");
            Ok(Asked::Keep)
        }
        _ => anyhow::bail!("a request with fields {numbers:?}"),
    }
}

/// Takes the next request, without answering.
pub(crate) fn next(link: &Link) -> Result<Asked> {
    parse(link.receive()?.context("the agent closed")?)
}

/// Answers: an ack, or a refusal.
pub(crate) fn answer(link: &Link, error: &str) -> Result<()> {
    let ack = crate::peer::protobuf::Message::new().string(1, error);
    link.send(&crate::peer::protobuf::Message::new().message(1, &ack).0, &[])
}

/// Takes the snapshot, acking each request: the pods' uids with their names.
pub(crate) fn snapshot(link: &Link) -> Result<BTreeMap<String, String>> {
    let mut pods = BTreeMap::new();
    loop {
        let asked = next(link)?;
        answer(link, "")?;
        match asked {
            Asked::Add { uid, name, .. } => drop(pods.insert(uid, name)),
            Asked::SnapshotSent => return Ok(pods),
            other => anyhow::bail!("{other:?} within the snapshot"),
        }
    }
}
