//! What the process uses: descriptors, memory, processor time, and what its runtimes do. Read at each scrape.

use std::fmt;
use std::fs;

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use tokio::runtime::{Handle, RuntimeMetrics};

use crate::metrics::Registry;

/// Registers the `process_*` metrics.
pub fn register(registry: &mut Registry) {
    registry.register_collector(Box::new(Process));
}

/// Registers the `tokio_*` metrics of these runtimes together. Workers are numbered through all of them in order.
pub fn register_runtimes(registry: &mut Registry, runtimes: impl IntoIterator<Item = Handle>) {
    let runtimes = runtimes.into_iter().map(|handle| handle.metrics()).collect();
    registry.register_collector(Box::new(Runtimes(runtimes)));
}

#[derive(Debug)]
struct Runtimes(Vec<RuntimeMetrics>);

impl Collector for Runtimes {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut sum = |name: &str, help: &str, of: fn(&RuntimeMetrics) -> usize| {
            let gauge = ConstGauge::new(self.0.iter().map(of).sum::<usize>() as i64);
            gauge.encode(encoder.encode_descriptor(name, help, None, gauge.metric_type())?)
        };
        let workers = RuntimeMetrics::num_workers;
        sum("tokio_num_workers", "Number of worker threads of the runtimes", workers)?;
        let help = "Number of tasks that wait in the runtimes' shared queues";
        sum("tokio_global_queue_depth", help, RuntimeMetrics::global_queue_depth)?;
        let help = "Number of tasks that are alive";
        sum("tokio_num_alive_tasks", help, RuntimeMetrics::num_alive_tasks)?;

        let mut by_worker = |name: &str, help: &str, of: fn(&RuntimeMetrics, usize) -> f64| {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            let all = self.0.iter().flat_map(|m| (0..m.num_workers()).map(move |worker| of(m, worker)));
            for (number, value) in all.enumerate() {
                let worker = [("worker", number.to_string())];
                ConstCounter::new(value).encode(family.encode_family(&worker)?)?;
            }
            Ok(())
        };
        let name = "tokio_worker_total_busy_duration_seconds";
        by_worker(name, "Time that a worker was busy", |m, w| m.worker_total_busy_duration(w).as_secs_f64())?;
        let help = "How often a worker went to sleep";
        by_worker("tokio_worker_park_count", help, |m, w| m.worker_park_count(w) as f64)?;
        let help = "How often a worker went to sleep or was woken";
        by_worker("tokio_worker_park_unpark_count", help, |m, w| m.worker_park_unpark_count(w) as f64)
    }
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

    #[test]
    fn runtimes_are_told_together() {
        let build = |mut builder: tokio::runtime::Builder| builder.enable_all().build().unwrap();
        let control = build(tokio::runtime::Builder::new_current_thread());
        let mut pool = tokio::runtime::Builder::new_multi_thread();
        pool.worker_threads(2);
        let data = build(pool);
        let mut registry = Registry::default();
        register_runtimes(&mut registry, [control.handle().clone(), data.handle().clone()]);
        let text = crate::metrics::encode(&registry);
        assert!(text.contains("\ntokio_num_workers 3\n"), "{text}");
        assert!(text.contains("\ntokio_num_alive_tasks 0\n"), "{text}");
        for worker in 0..3 {
            let line = format!("\ntokio_worker_park_count_total{{worker=\"{worker}\"}} ");
            assert!(text.contains(&line), "{text}");
        }
    }
}
