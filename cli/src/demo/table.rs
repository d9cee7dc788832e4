//! The table at the end: what the mesh costs.

use aquifer_lab::Component;

use super::Demo;

pub(super) async fn print(demo: &Demo) {
    println!("\nwhat it costs (wrk, 4 connections, orders → payments across nodes)");
    if let (Some(plain), Some(meshed)) = (demo.plain, demo.meshed) {
        let row = |name: &str, p50: std::time::Duration, p99: std::time::Duration| {
            println!("  {name:<12} p50 {:>8} µs   p99 {:>8} µs", p50.as_micros(), p99.as_micros());
        };
        row("plain", plain.p50, plain.p99);
        row("in the mesh", meshed.p50, meshed.p99);
        row("added", meshed.p50.saturating_sub(plain.p50), meshed.p99.saturating_sub(plain.p99));
    }
    println!("  {:<24} {:>10} {:>10} {:>9}", "process", "RSS MiB", "peak MiB", "CPU s");
    let components = [
        Component::Istiod,
        Component::ztunnel("node1"),
        Component::ztunnel("node2"),
        Component::agent("node1"),
        Component::agent("node2"),
    ];
    for component in components {
        let name = component.to_string();
        match demo.lab.stats(component).await {
            Ok(stats) => {
                let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
                let (rss, peak) = (mib(stats.rss_bytes), mib(stats.peak_rss_bytes));
                println!("  {name:<24} {rss:>10.1} {peak:>10.1} {:>9.2}", stats.cpu.as_secs_f64());
            }
            Err(error) => println!("  {name:<24} {error}"),
        }
    }
}
