//! What the control plane costs at the size of a large mesh: memory, time from a change to every proxy, CPU of a change.
//!
//! ```text
//!   aquifer-load control-plane (API server of made-up objects) ──▶ istiod-lite ──▶ 200 proxies (of aquifer-load, too)
//! ```
//!
//! The objects are as an API server has them, 2 to 3 KiB a pod, and istiod-lite reads them by KUBECONFIG like real ones;
//! the proxies speak TLS and show tokens, which the API server reviews. Both run on this machine: their work is part of
//! every time. All of it is on loopback.

mod figures;
mod process;

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};

use self::figures::{Cost, Reached};
pub(crate) use self::figures::{Found, section};
use self::process::World;
use crate::options::BenchOptions;

/// As options name it.
pub(crate) const NAME: &str = "control-plane-scale";
/// As the report names it.
pub(crate) const TITLE: &str = "control plane at scale: memory, 200 proxies, cost of a change by size";

/// The mesh whose memory and times are measured.
const SERVICES: u32 = 1000;
const PODS: u32 = 20_000;
/// Proxies, each with a node.
const PROXIES: u32 = 200;
/// Lone changes, this far apart: longer than changes are held together.
const CHANGES: u32 = 200;
const APART: u32 = 150;
/// Pods at which the cost of a change is measured, and how many change how fast.
const SIZES: [u32; 4] = [1000, 5000, 20_000, 50_000];
const CHURN: u32 = 1000;
const PER_SECOND: u32 = 200;
/// How long nothing happens before memory is looked at.
const SETTLED: Duration = Duration::from_secs(2);

/// Measures it, and tells each figure as it comes.
pub(crate) async fn measure(options: &BenchOptions) -> Result<Found> {
    let own = std::env::current_exe().context("finding the running binary")?;
    let beside = own.parent().context("the running binary lies in no folder")?.to_owned();
    let product = options.bin.clone().unwrap_or_else(|| beside.clone());
    tokio::task::spawn_blocking(move || all(&product, &beside)).await.context("the measurement broke off")?
}

fn all(product: &Path, load: &Path) -> Result<Found> {
    let (istiod, load) = (product.join("istiod-lite"), load.join("aquifer-load"));
    let empty_mib = Some(World::start(&load, &istiod, [0, 0, 1])?.settled(SETTLED));
    let mut found = Found { empty_mib, ..Found::default() };
    large(&load, &istiod, &mut found)?;
    for pods in SIZES {
        found.costs.push(cost(&load, &istiod, pods)?);
    }
    found.tell();
    Ok(found)
}

fn large(load: &Path, istiod: &Path, found: &mut Found) -> Result<()> {
    let mut world = World::start(load, istiod, [SERVICES, PODS, PROXIES])?;
    found.ready_s = Some(world.ready_s);
    found.objects_mib = Some(world.settled(SETTLED));
    let one = world.ask(&format!("connect {} 1", world.discovery()))?;
    found.one_sync_ms = one["ms"]["last"].as_f64();
    found.resources = one["resources"].as_u64();
    found.sync_bytes = one["bytes"].as_u64();
    let many = world.ask(&format!("connect {} {PROXIES}", world.discovery()))?;
    found.all_sync_ms = many["ms"]["last"].as_f64();
    found.proxies_mib = Some(world.settled(SETTLED));
    found.proxies = many["proxies"].as_u64();
    let reached = world.ask(&format!("change {CHANGES} {APART}"))?;
    if let Some(slow) = reached["slow"].as_array() {
        slow.iter().take(10).for_each(|change| println!("  slow: {change}"));
    }
    found.reached = Some(Reached {
        p50: reached["ms"]["p50"].as_f64().unwrap_or_default(),
        p99: reached["ms"]["p99"].as_f64().unwrap_or_default(),
        max: reached["ms"]["max"].as_f64().unwrap_or_default(),
        slow: reached["slow"].as_array().map_or(0, Vec::len),
        changes: CHANGES,
    });
    Ok(())
}

/// One proxy is there, so that a change is encoded and sent as well.
fn cost(load: &Path, istiod: &Path, pods: u32) -> Result<Cost> {
    let mut world = World::start(load, istiod, [pods / 20, pods, PROXIES])?;
    world.ask(&format!("connect {} 1", world.discovery()))?;
    std::thread::sleep(SETTLED);
    let before = world.cpu();
    world.ask(&format!("churn {CHURN} {PER_SECOND}"))?;
    let micros = (world.cpu() - before) * 1e6 / f64::from(CHURN);
    Ok(Cost { pods, micros, mib: world.settled(Duration::ZERO), ready_s: world.ready_s })
}
