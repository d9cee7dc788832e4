//! What the process uses: descriptors, memory, processor time. Read at each scrape.

use std::fmt;
use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

use crate::metrics::Registry;

/// Registers the `process_*` metrics.
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Process));
}

#[derive(Debug)]
struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut gauge = |name: &str, help: &str, value: Option<u64>| {
            let Some(value) = value.and_then(|v| i64::try_from(v).ok()) else {
                return Ok(());
            };
            let gauge = ConstGauge::new(value);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        gauge("process_open_fds", "Number of open file descriptors", open_descriptors())?;
        let max = getrlimit(Resource::RLIMIT_NOFILE).ok().map(|(soft, _)| soft);
        gauge("process_max_fds", "Maximum number of file descriptors", max)?;
        gauge("process_resident_memory_bytes", "Resident memory size in bytes", resident_bytes())?;
        if let Some(seconds) = cpu_seconds() {
            let counter = ConstCounter::new(seconds);
            let name = "process_cpu_seconds";
            let help = "Total user and system CPU time spent in seconds";
            counter.encode(encoder.encode_descriptor(name, help, None, counter.metric_type())?)?;
        }
        Ok(())
    }
}

fn open_descriptors() -> Option<u64> {
    let entries = fs::read_dir("/proc/self/fd").ok()?.count() as u64;
    Some(entries.saturating_sub(1)) // Less the one that reads the folder.
}

fn resident_bytes() -> Option<u64> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    let kilobytes: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kilobytes * 1024)
}

fn cpu_seconds() -> Option<f64> {
    let usage = getrusage(UsageWho::RUSAGE_SELF).ok()?;
    let (user, system) = (usage.user_time(), usage.system_time());
    let micros = (user.tv_usec() + system.tv_usec()) as f64 / 1e6;
    Some((user.tv_sec() + system.tv_sec()) as f64 + micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_what_the_process_uses() {
        let mut registry = Registry::default();
        register(&mut registry);
        let text = crate::metrics::encode(&registry);
        for name in ["process_open_fds ", "process_max_fds ", "process_resident_memory_bytes "] {
            let line = text.lines().find(|line| line.starts_with(name)).expect(name);
            assert!(line[name.len()..].parse::<u64>().unwrap() > 0, "{line}");
        }
        assert!(text.contains("# TYPE process_cpu_seconds counter"), "{text}");
    }
}
