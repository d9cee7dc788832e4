//! Memory of proxies by the number of pods on a node, and what follows for more pods than fit here.

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab};
use serde::Serialize;

use crate::bed::{self, NAMESPACE};
use crate::manifests;
use crate::measure::memory;
use crate::mode::Mode;
use crate::options::BenchOptions;
use crate::sidecar::{self, PodRef};
use crate::stats::Line;

/// As options name it.
pub(crate) const NAME: &str = "pods";

/// Pods on the node that is measured.
const COUNTS: [u32; 3] = [2, 10, 20];
/// The same in a quick run.
const QUICK_COUNTS: [u32; 2] = [2, 12];
/// The sizes that are worked out.
pub(crate) const SIZES: [u32; 3] = [10, 100, 500];

const MIB: f64 = 1024.0 * 1024.0;

/// Memory of one kind of process on a node, by pods.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Series {
    pub(crate) mode: Mode,
    /// What was measured.
    pub(crate) what: &'static str,
    /// Pods on the node, and MiB (PSS) of all such processes of the node.
    pub(crate) points: Vec<(f64, f64)>,
}

impl Series {
    /// The straight line through what was measured: MiB at no pod, and for each.
    pub(crate) fn line(&self) -> Option<Line> {
        Line::fit(&self.points)
    }
}

/// Measures a mode; nothing for one without proxies.
pub(crate) async fn measure(mode: Mode, options: &BenchOptions) -> Result<Vec<Series>> {
    let what: &[&'static str] = match mode {
        Mode::None => return Ok(Vec::new()),
        _ if mode.is_mesh() => &["ztunnel", "node agent"],
        _ => &["all sidecars"],
    };
    let mut series: Vec<Series> = what.iter().map(|what| Series { mode, what, points: Vec::new() }).collect();
    let counts = if options.quick { QUICK_COUNTS.as_slice() } else { COUNTS.as_slice() };
    for &count in counts {
        let found = with_pods(mode, count, options).await?;
        let told: Vec<String> = found.iter().zip(what).map(|(mib, what)| format!("{what} {mib:.1} MiB")).collect();
        println!("  {mode:<13} {count:>3} pods: {}", told.join(", "));
        for (series, mib) in series.iter_mut().zip(found) {
            series.points.push((f64::from(count), mib));
        }
    }
    Ok(series)
}

/// A lab with so many pods on node1: MiB of each kind of process there.
async fn with_pods(mode: Mode, count: u32, options: &BenchOptions) -> Result<Vec<f64>> {
    let lab = Lab::start(bed::lab_options(mode, options)).await?;
    lab.apply(&manifests::filler(mode.is_mesh(), count)).await?;
    let pods = lab.wait_ready(NAMESPACE, "filler", count as usize).await?;
    lab.wait_ready(NAMESPACE, "far", 1).await?;
    let proc = bed::proc(&lab)?;
    if let Some(kind) = mode.sidecars() {
        let mut refs: Vec<PodRef> = pods.iter().map(|pod| PodRef::new(NAMESPACE, &pod.name)).collect();
        refs.push(PodRef::new(NAMESPACE, "far"));
        let sidecars = sidecar::install(&lab, &bed::envoy(options)?, &refs, kind).await?;
        used(&lab, &pods).await?;
        let here = sidecars.iter().filter(|sidecar| sidecar.pod.name.starts_with("filler-"));
        let folders: Vec<_> = here.map(|sidecar| format!("/proc/{}", sidecar.pid).into()).collect();
        let mib = memory::pss(&folders) as f64 / MIB;
        drop(sidecars);
        lab.down().await?;
        return Ok(vec![mib]);
    }
    lab.wait_enrolled(NAMESPACE, true).await?;
    used(&lab, &pods).await?;
    let status = lab.status().await?;
    let mut found = Vec::new();
    for component in [Component::ztunnel("node1"), Component::agent("node1")] {
        let process = status.components.iter().find(|status| status.component == component);
        let pid = process.and_then(|process| process.pid).with_context(|| format!("{component} does not run"))?;
        found.push(memory::pss(&[proc.join(pid.to_string())]) as f64 / MIB);
    }
    lab.down().await?;
    Ok(found)
}

/// Each pod makes a request, so that it is in use.
async fn used(lab: &Lab, pods: &[aquifer_lab::PodInfo]) -> Result<()> {
    let far = lab.pod(NAMESPACE, "far").await?;
    let url = format!("http://{}:{}/", far.ipv4(), manifests::HTTP);
    for pod in pods {
        let curl = [
            "curl",
            "-sS",
            "-m",
            "5",
            "--retry",
            "10",
            "--retry-delay",
            "1",
            "--retry-all-errors",
            "-o",
            "/dev/null",
            &url,
        ];
        let output = lab.pod_netns_exec(NAMESPACE, &pod.name, &curl).await?;
        anyhow::ensure!(output.ok(), "{} cannot reach {url}: {}", pod.name, output.stderr.trim());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shared_proxy_and_one_a_pod_are_worked_out_alike() {
        let shared =
            Series { mode: Mode::Ambient, what: "ztunnel", points: vec![(2.0, 10.2), (10.0, 11.0), (20.0, 12.0)] };
        let line = shared.line().unwrap();
        assert!((line.at(500.0) - 60.0).abs() < 1e-6, "{line:?}");
        let each = Series { mode: Mode::SidecarTcp, what: "all sidecars", points: vec![(2.0, 100.0), (12.0, 600.0)] };
        assert!((each.line().unwrap().at(500.0) - 25_000.0).abs() < 1e-6);
    }
}
