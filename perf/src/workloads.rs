//! Memory of node proxies by the number of workloads in the mesh: pods of other nodes, written into the folder that the
//! control plane reads, and sent by it.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use aquifer_lab::{Component, Lab};

use crate::measure::Watch;

/// Pods of a Deployment, and of a file.
const REPLICAS: u32 = 10;
const FILE: u32 = 1000;

/// How long all of them may take to be known to the proxies.
const KNOWN: Duration = Duration::from_secs(60);
/// So long nothing more may come for all to be there.
const QUIET: Duration = Duration::from_secs(2);
/// How long proxies do nothing before they count as idle.
const IDLE: Duration = Duration::from_secs(5);
/// No resource of a workload is shorter.
const SHORTEST: u32 = 100;

const BYTES: &str = "istio_xds_message_bytes_total";
const NODES: [&str; 2] = ["node1", "node2"];

/// Makes so many workloads known. Growth of a proxy's PSS for each, in bytes; `watch` looks at the proxies of all nodes.
pub(crate) async fn growth(lab: &Lab, count: u32, watch: &Watch) -> Result<f64> {
    tokio::time::sleep(IDLE).await;
    let before = watch.pss();
    let received = bytes(lab).await?;
    write(&lab.manifests().join("workloads"), count).context("writing manifests")?;
    let begin = Instant::now();
    let (mut last, mut since) = (received, Instant::now());
    while last < received + f64::from(count * SHORTEST) * NODES.len() as f64 || since.elapsed() < QUIET {
        if begin.elapsed() > KNOWN {
            bail!("of {count} workloads the proxies received {} bytes within {KNOWN:?}", last - received);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
        let now = bytes(lab).await?;
        if now != last {
            (last, since) = (now, Instant::now());
        }
    }
    tokio::time::sleep(IDLE).await;
    Ok((watch.pss() as f64 - before as f64) / f64::from(count) / NODES.len() as f64)
}

/// What the proxies have received of the control plane.
async fn bytes(lab: &Lab) -> Result<f64> {
    let mut sum = 0.0;
    for node in NODES {
        sum += lab.metric(Component::ztunnel(node), BYTES, &[]).await?;
    }
    Ok(sum)
}

/// Writes each file whole: under a name that nobody reads, then under its own.
fn write(folder: &Path, count: u32) -> Result<()> {
    fs::create_dir_all(folder)?;
    for first in (0..count).step_by(FILE as usize) {
        let pods: Vec<String> = (first..count.min(first + FILE)).map(pod).collect();
        let unread = folder.join(".next");
        fs::write(&unread, pods.join("---\n"))?;
        fs::rename(&unread, folder.join(format!("{first}.yaml")))?;
    }
    Ok(())
}

/// The n-th pod. It is about to end, so that the lab, which has no such node, does not start it; for a mesh that makes
/// it an endpoint that takes nothing new, as long in memory as any other.
fn pod(n: u32) -> String {
    let app = n / REPLICAS;
    let (namespace, node) = (format!("many-{}", app / 10), format!("other-{}", n % 100));
    let [_, a, b, c] = n.to_be_bytes();
    format!(
        "apiVersion: v1
kind: Pod
metadata:
  name: application-{app}-5d8f7c9b6-{n:05x}
  namespace: {namespace}
  deletionTimestamp: 2026-01-01T00:00:00Z
  labels: {{app: application-{app}, pod-template-hash: 5d8f7c9b6}}
  ownerReferences:
  - {{apiVersion: apps/v1, kind: ReplicaSet, name: application-{app}-5d8f7c9b6, uid: set-{app}, controller: true}}
spec:
  nodeName: {node}
  serviceAccountName: application-{app}
  containers: [{{name: app, image: app}}]
status:
  phase: Running
  podIP: 10.{a}.{b}.{c}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_hold_all_pods_and_addresses_differ() {
        let folder = std::env::temp_dir().join(format!("aquifer-workloads-{}", std::process::id()));
        write(&folder, 1500).unwrap();
        let mut files: Vec<_> = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        files.sort();
        assert_eq!(files, ["0.yaml", "1000.yaml"]);
        let text = fs::read_to_string(folder.join("1000.yaml")).unwrap();
        assert_eq!(text.matches("kind: Pod").count(), 500);
        fs::remove_dir_all(&folder).unwrap();
        assert!(pod(258).contains("podIP: 10.0.1.2\n") && pod(258).contains("application-25-5d8f7c9b6-00102"));
    }
}
