//! The table at the end: what the mesh costs.

use aquifer_lab::{Component, Lab, ProcessStats};

use super::Demo;

/// What a process of the mesh has used.
pub(super) struct Cost {
    name: String,
    used: Result<ProcessStats, String>,
}

/// What the processes of the mesh have used so far.
pub(super) async fn costs(lab: &Lab) -> Vec<Cost> {
    let components = [
        Component::Istiod,
        Component::ztunnel("node1"),
        Component::ztunnel("node2"),
        Component::agent("node1"),
        Component::agent("node2"),
    ];
    let mut costs = Vec::new();
    for component in components {
        let name = component.to_string();
        costs.push(Cost { name, used: lab.stats(component).await.map_err(|error| error.to_string()) });
    }
    costs
}

pub(super) fn print(demo: &Demo) {
    println!("\nwhat it costs (wrk, 4 connections that are kept, orders → payments across nodes, one machine for all)");
    if let (Some(plain), Some(meshed)) = (demo.plain, demo.meshed) {
        let row = |name: &str, p50: std::time::Duration, p99: std::time::Duration| {
            println!("  {name:<12} p50 {:>6} µs   p99 {:>6} µs", p50.as_micros(), p99.as_micros());
        };
        row("plain", plain.p50, plain.p99);
        row("in the mesh", meshed.p50, meshed.p99);
        row("added", meshed.p50.saturating_sub(plain.p50), meshed.p99.saturating_sub(plain.p99));
    }
    println!("  {:<24} {:>8} {:>8} {:>8}   (after step 5)", "process", "RSS MiB", "peak MiB", "CPU s");
    for cost in &demo.costs {
        let name = &cost.name;
        match &cost.used {
            Ok(stats) => {
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                let (rss, peak) = (mib(stats.rss_bytes), mib(stats.peak_rss_bytes));
                println!("  {name:<24} {rss:>8.1} {peak:>8.1} {:>8.2}", stats.cpu.as_secs_f64());
            }
            Err(error) => println!("  {name:<24} {error}"),
        }
    }
}
