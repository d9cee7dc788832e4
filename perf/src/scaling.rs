//! Throughput by number of workers, and how connections and bytes spread over them.
//!
//! ```text
//!   a lab for each number of workers, side by side
//!   the one with most workers ─▶ 1, 4, 32 connections, an elephant, 512 connections ─▶ ztunnel's metrics by worker
//!   all of them ─▶ works in rounds, the labs taking turns
//! ```

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aquifer_lab::{Component, sum_metric};
use serde::Serialize;

use crate::bed::{self, Bed, Place};
use crate::mode::Mode;
use crate::options::BenchOptions;
use crate::report::document::{Section, Table};
use crate::report::number;
use crate::results::Results;
use crate::run;
use crate::stats::Summary;
use crate::work::{Kind, WORKS, Work};

/// What is run with each number of workers, unless works are named.
const COMPARED: [&str; 4] = ["bulk4", "http32", "http512", "connect"];
/// What is run while the spread is looked at.
const SPREAD: [Work; 5] = [
    across("spread1", "1 connection", Kind::Http { connections: 1 }),
    across("spread4", "4 connections", Kind::Http { connections: 4 }),
    across("spread32", "32 connections", Kind::Http { connections: 32 }),
    across("spread-mice", "an elephant beside 1 000 requests/s", Kind::Mice { rate: 1000 }),
    across("spread512", "512 connections", Kind::Http { connections: 512 }),
];

const fn across(id: &'static str, title: &'static str, kind: Kind) -> Work {
    Work { id, title, kind, place: Place::Across, target: false }
}

/// Where the proxies are.
const NODES: [&str; 2] = ["node1", "node2"];
const ROUNDS: u32 = 3;
/// By then what connections have carried stands in the metrics.
const COUNTED: Duration = Duration::from_millis(1200);

/// A work with so many workers.
#[derive(Debug, Clone, Serialize)]
struct Throughput {
    work: &'static str,
    title: &'static str,
    unit: &'static str,
    /// By number of workers.
    workers: BTreeMap<usize, Summary>,
}

/// What the workers of one proxy did during a work. All by worker.
#[derive(Debug, Clone, Serialize)]
struct Spread {
    work: &'static str,
    title: &'static str,
    node: &'static str,
    /// Connections accepted and streams of tunnels, in the middle of the work.
    open: Vec<f64>,
    /// Bytes carried.
    bytes: Vec<f64>,
    /// The part of the time that it was busy, 0 to 1.
    busy: Vec<f64>,
    /// Tunnels between the client's pod and the server's.
    tunnels: usize,
}

/// Measures and makes a report of its own.
pub(crate) async fn measure(options: &BenchOptions) -> Result<Results> {
    let begin = Instant::now();
    let mut results = Results::begin(options);
    results.modes.push(Mode::Ambient);
    let mut beds = BTreeMap::new();
    for workers in numbers(options) {
        let options = BenchOptions { workers: Some(workers), ..options.clone() };
        beds.insert(workers, Bed::start(Mode::Ambient, &options).await?);
    }
    // First: what opens tunnels shows only where few stand.
    let (workers, most) = beds.last_key_value().context("no number of workers")?;
    println!("\nspread over {workers} workers");
    let mut spreads = Vec::new();
    for work in &SPREAD {
        match spread(most, *workers, work, options).await {
            Ok(found) => spreads.extend(found),
            Err(error) => results.failures.push(format!("spread at {}: {error:#}", work.title)),
        }
    }
    let mut compared = Vec::new();
    for work in works(options)? {
        println!("\n{}: {}", work.id, work.title);
        compared.push(compare(&beds, work, options, &mut results.failures).await);
    }
    for bed in beds.into_values() {
        bed.stop().await?;
    }
    results.sections.extend([throughput_section(&compared), spread_section(&spreads)]);
    results.more.insert("scaling", serde_json::json!({ "throughput": compared, "spread": spreads }));
    results.seconds = begin.elapsed().as_secs_f64();
    Ok(results)
}

/// 1, 2, 4, 8 and so on, up to the core count.
fn numbers(options: &BenchOptions) -> Vec<usize> {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let most = options.workers.unwrap_or(cores);
    let mut numbers: Vec<usize> = (0..).map(|power| 1 << power).take_while(|number| *number < most).collect();
    numbers.push(most);
    numbers
}

fn works(options: &BenchOptions) -> Result<Vec<&'static Work>> {
    let named: Vec<&str> = options.works.iter().map(String::as_str).collect();
    let names = if named.is_empty() { COMPARED.as_slice() } else { named.as_slice() };
    let find = |name: &&str| {
        let found = WORKS.iter().find(|work| work.id == *name).with_context(|| format!("`{name}` is no work"))?;
        ensure!(!found.is_fresh(), "`{name}` says nothing of throughput");
        Ok(found)
    };
    names.iter().map(find).collect()
}

async fn compare(
    beds: &BTreeMap<usize, Bed>,
    work: &'static Work,
    options: &BenchOptions,
    failures: &mut Vec<String>,
) -> Throughput {
    let primary = work.primary();
    let mut values: BTreeMap<usize, Vec<f64>> = BTreeMap::new();
    for round in 0..options.rounds.unwrap_or(ROUNDS) {
        let first = round as usize % beds.len();
        for (workers, bed) in beds.iter().cycle().skip(first).take(beds.len()) {
            match run::once(bed, work, options, round).await {
                Ok(sample) if sample.overflows.is_empty() => {
                    println!("  {} workers {workers:>3}: {}", round + 1, run::line(&sample, primary));
                    values.entry(*workers).or_default().extend(primary.of(&sample));
                }
                Ok(sample) => failures.push(format!("{} {workers} workers: {}", work.id, sample.overflows.join(", "))),
                Err(error) => failures.push(format!("{} {workers} workers: {error:#}", work.id)),
            }
        }
    }
    let workers = values.into_iter().filter_map(|(workers, values)| Some((workers, Summary::of(values)?))).collect();
    Throughput { work: work.id, title: work.title, unit: primary.unit(), workers }
}

/// Does the work once and looks at the workers of both proxies before, during and after it.
async fn spread(bed: &Bed, workers: usize, work: &'static Work, options: &BenchOptions) -> Result<Vec<Spread>> {
    let before = all(bed, workers).await?;
    let begin = Instant::now();
    let half = Duration::from_secs(u64::from(options.seconds())) / 2;
    let during = async {
        tokio::time::sleep(half).await;
        anyhow::Ok((all(bed, workers).await?, bed.tunnels().await?))
    };
    let (sample, during) = tokio::join!(run::once(bed, work, options, 0), during);
    sample?;
    let (during, tunnels) = during?;
    let seconds = begin.elapsed().as_secs_f64();
    tokio::time::sleep(COUNTED).await;
    let after = all(bed, workers).await?;
    let mut found = Vec::new();
    for (index, node) in NODES.into_iter().enumerate() {
        let since = |of: fn(&Seen) -> &Vec<f64>| -> Vec<f64> {
            of(&after[index]).iter().zip(of(&before[index])).map(|(after, before)| after - before).collect()
        };
        let busy = since(|seen| &seen.busy).into_iter().map(|busy| busy / seconds).collect();
        let (open, bytes) = (during[index].open.clone(), since(|seen| &seen.bytes));
        let spread = Spread { work: work.id, title: work.title, node, open, bytes, busy, tunnels };
        println!("  {}", spread.cells().join("  "));
        found.push(spread);
    }
    Ok(found)
}

/// What a proxy says of its workers, in their order.
#[derive(Debug)]
struct Seen {
    open: Vec<f64>,
    bytes: Vec<f64>,
    busy: Vec<f64>,
}

impl Seen {
    fn parse(text: &str, workers: usize) -> Self {
        let of = |name: &str| -> Vec<f64> {
            (0..workers).map(|worker| sum_metric(text, name, &[&format!("worker=\"{worker}\"")])).collect()
        };
        Self {
            open: of("aquifer_worker_open"),
            bytes: of("aquifer_worker_bytes_total"),
            busy: of("tokio_worker_total_busy_duration_seconds_total"),
        }
    }
}

async fn all(bed: &Bed, workers: usize) -> Result<Vec<Seen>> {
    let mut seen = Vec::new();
    for node in NODES {
        seen.push(Seen::parse(&bed.lab.metrics(Component::ztunnel(node)).await?, workers));
    }
    Ok(seen)
}

impl Spread {
    fn cells(&self) -> Vec<String> {
        let side = if self.node == "node1" { "client's" } else { "server's" };
        let each = |values: &[f64], digits: usize| -> String {
            values.iter().map(|value| format!("{value:.digits$}")).collect::<Vec<_>>().join(" / ")
        };
        let percent = |values: &[f64], whole: f64| -> Vec<f64> {
            values.iter().map(|value| if whole > 0.0 { 100.0 * value / whole } else { 0.0 }).collect()
        };
        vec![
            format!("{}, {side} proxy", self.title),
            each(&self.open, 0),
            each(&percent(&self.bytes, self.bytes.iter().sum()), 0),
            each(&percent(&self.busy, 1.0), 0),
            self.tunnels.to_string(),
        ]
    }
}

fn throughput_section(all: &[Throughput]) -> Section {
    let numbers: Vec<usize> = all.first().map(|one| one.workers.keys().copied().collect()).unwrap_or_default();
    let mut table = Table::new(["work"]);
    table.header.extend(numbers.iter().map(|workers| format!("workers: {workers}")));
    table.header.push("most against one".into());
    for one in all {
        let cell = |workers: &usize| one.workers.get(workers).map_or("–".into(), with_spread);
        let mut cells = vec![format!("{}, {}", one.title, one.unit)];
        cells.extend(numbers.iter().map(cell));
        let ratio = (|| one.workers.last_key_value()?.1.relative_to(one.workers.first_key_value()?.1))();
        cells.push(ratio.map_or("–".into(), |ratio| {
            format!("{:.2} ± {:.2}{}", ratio.value, ratio.noise, if ratio.tie { " (tie)" } else { "" })
        }));
        table.row(cells);
    }
    Section::new("Throughput by number of workers")
        .text(
            "Workers of each ztunnel. Client, server and both proxies share the machine's cores: with as many workers as \
             cores on each side nothing is left idle, and more workers show as shorter waits rather than as more work.",
        )
        .table(table)
}

fn with_spread(summary: &Summary) -> String {
    format!("{} ± {}", number(summary.median), number(summary.spread))
}

fn spread_section(all: &[Spread]) -> Section {
    let mut table = Table::new(["spread", "open, each worker", "bytes, %", "busy, % of the time", "tunnels"]);
    for one in all {
        table.row(one.cells());
    }
    Section::new("Spread over workers")
        .text(
            "From ztunnel's own metrics (aquifer_worker_open, aquifer_worker_bytes_total, \
             tokio_worker_total_busy_duration_seconds_total), worker by worker. Tunnels are those between the two pods.",
        )
        .table(table)
}

/// Fails early where a lab cannot be.
pub(crate) fn check(options: &BenchOptions) -> Result<()> {
    ensure!(options.modes.is_empty(), "--scaling compares numbers of workers in mode `ambient`: leave --modes out");
    if let Some(folder) = &options.bin {
        bed::check_binaries(folder)?;
    }
    works(options).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
aquifer_worker_open{worker=\"0\"} 3
aquifer_worker_open{worker=\"1\"} 1
aquifer_worker_bytes_total{worker=\"0\"} 100
aquifer_worker_bytes_total{worker=\"1\"} 300
tokio_worker_total_busy_duration_seconds_total{worker=\"0\"} 1.5
";

    #[test]
    fn workers_are_told_apart() {
        let seen = Seen::parse(TEXT, 2);
        assert_eq!((seen.open, seen.bytes, seen.busy), (vec![3.0, 1.0], vec![100.0, 300.0], vec![1.5, 0.0]));
    }

    #[test]
    fn shares_are_of_all_workers() {
        let spread = Spread {
            work: "http4",
            title: "four",
            node: "node2",
            open: vec![3.0, 1.0],
            bytes: vec![100.0, 300.0],
            busy: vec![0.5, 0.0],
            tunnels: 2,
        };
        assert_eq!(spread.cells(), ["four, server's proxy", "3 / 1", "25 / 75", "50 / 0", "2"]);
    }

    #[test]
    fn a_row_says_what_more_workers_bring() {
        let workers = [(1, [10.0, 10.0]), (2, [18.0, 18.0])];
        let workers = workers.into_iter().map(|(workers, values)| (workers, Summary::of(values).unwrap())).collect();
        let one = Throughput { work: "http32", title: "HTTP", unit: "/s", workers };
        let text = format!("{:?}", throughput_section(&[one]));
        for part in ["workers: 1", "workers: 2", "HTTP, /s", "18.0 ± 0.00", "1.80 ± 0.00"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }
}
