//! CPU of the mesh's own processes while things change, and while nothing does.

use std::time::{Duration, Instant};

use anyhow::Result;
use aquifer_lab::Lab;

use super::cpu_of;
use super::figures::Churn;
use crate::bed::NAMESPACE;
use crate::manifests;

/// How long nothing is done, and how long objects are rewritten.
const SECONDS: u32 = 3;
/// How often one is, a second.
const PER_SECOND: u32 = 50;
/// Pods that come and go.
const PODS: u32 = 15;
/// What has been asked for may still be in the making.
const TAIL: Duration = Duration::from_millis(500);

/// Nothing, objects, pods: with so many pods in the mesh.
pub(super) async fn measure(lab: &Lab, pods: u32) -> Result<[Churn; 3]> {
    let idle = watched(lab, "nothing changes".into(), async {
        tokio::time::sleep(Duration::from_secs(SECONDS.into())).await;
        Ok(0)
    });
    let idle = idle.await?;
    let objects = watched(lab, format!("a policy rewritten {PER_SECOND} times a second"), rewrite(lab)).await?;
    lab.delete("AuthorizationPolicy", NAMESPACE, "churn").await?;
    let scaled = watched(lab, format!("{PODS} pods more, then fewer"), scale(lab, pods)).await?;
    Ok([idle, objects, scaled])
}

/// What the processes used while something was done, which says how many changes it made.
async fn watched(lab: &Lab, what: String, work: impl Future<Output = Result<u32>>) -> Result<Churn> {
    let (begin, before) = (Instant::now(), cpu_of(lab).await?);
    let changes = work.await?;
    tokio::time::sleep(TAIL).await;
    let (seconds, after) = (begin.elapsed().as_secs_f64(), cpu_of(lab).await?);
    let cpu = after.into_iter().map(|(kind, cpu)| (kind, cpu - before.get(kind).copied().unwrap_or(0.0)));
    Ok(Churn { what, changes, seconds, cpu: cpu.collect() })
}

/// Each time with another content, each when it is due.
async fn rewrite(lab: &Lab) -> Result<u32> {
    let mut due = tokio::time::interval(Duration::from_secs(1) / PER_SECOND);
    let count = PER_SECOND * SECONDS;
    for number in 0..count {
        due.tick().await;
        lab.apply(&numbered(number)).await?;
    }
    Ok(count)
}

/// A policy for all pods that closes a port on which nobody listens.
fn numbered(number: u32) -> String {
    format!(
        "apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata:
  name: churn
  namespace: {NAMESPACE}
spec:
  action: DENY
  rules:
  - to:
    - operation:
        ports: [\"{}\"]
",
        20_000 + number
    )
}

/// Up and down again; each pod that starts or ends is a change.
async fn scale(lab: &Lab, pods: u32) -> Result<u32> {
    for count in [pods + PODS, pods] {
        lab.apply(&manifests::filler(true, count)).await?;
        lab.wait_ready(NAMESPACE, "filler", count as usize).await?;
        lab.wait_enrolled(NAMESPACE, true).await?;
    }
    Ok(2 * PODS)
}
