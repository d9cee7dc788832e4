//! The run: labs up side by side, each work in rounds, the modes taking turns in each round.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use crate::bed::{self, Bed};
use crate::manifests;
use crate::measure::cpu::Cpu;
use crate::measure::memory;
use crate::mode::Mode;
use crate::options::BenchOptions;
use crate::results::{Metric, Results, Sample, WorkResult};
use crate::tools::{Outcome, iperf3, wrk};
use crate::work::{Kind, WORKS, Work};

/// More failed requests than this share spoil a run.
const ERRORS: f64 = 0.001;

/// Runs what the options choose.
pub(crate) async fn run(options: &BenchOptions) -> Result<Results> {
    let begin = Instant::now();
    let works = chosen(options)?;
    if let Some(folder) = &options.bin {
        bed::check_binaries(folder)?;
    }
    let mut results = Results { command: std::env::args().collect::<Vec<_>>().join(" "), ..Results::default() };
    let mut beds = Vec::new();
    for mode in modes(options) {
        let starting = Instant::now();
        match Bed::start(mode, options).await {
            Ok(bed) => {
                println!("lab up: {:<13} {:>5.1} s", mode, starting.elapsed().as_secs_f64());
                results.modes.push(mode);
                beds.push(bed);
            }
            Err(error) => {
                println!("lab not up: {mode}: {error:#}");
                results.not_available.insert(mode, format!("{error:#}"));
            }
        }
    }
    if beds.is_empty() {
        bail!("no mode can be measured");
    }
    for (index, work) in works.iter().enumerate() {
        println!("\n[{}/{}] {}: {}", index + 1, works.len(), work.id, work.title);
        let result = rounds(&beds, work, options, &mut results.failures).await;
        results.works.push(result);
    }
    for bed in beds {
        bed.stop().await?;
    }
    results.seconds = begin.elapsed().as_secs_f64();
    Ok(results)
}

/// All rounds of one work. What fails is told, and the rest goes on.
async fn rounds(beds: &[Bed], work: &Work, options: &BenchOptions, failures: &mut Vec<String>) -> WorkResult {
    let primary = work.primary();
    let mut samples: BTreeMap<Mode, Vec<Sample>> = BTreeMap::new();
    let rounds = options.rounds.unwrap_or(if options.quick || !work.target { 3 } else { 5 });
    for round in 0..rounds {
        for bed in turns(beds, round, options.seed).filter(|bed| work.suits(bed.mode)) {
            match once(bed, work, options, round).await {
                Ok(sample) => {
                    println!("  {}/{rounds} {:<13} {}", round + 1, bed.mode, line(&sample, primary));
                    for overflow in &sample.overflows {
                        failures.push(format!("{} {} round {}: {overflow}", work.id, bed.mode, round + 1));
                    }
                    samples.entry(bed.mode).or_default().push(sample);
                }
                Err(error) => {
                    println!("  {}/{rounds} {:<13} FAILED: {error:#}", round + 1, bed.mode);
                    failures.push(format!("{} {} round {}: {error:#}", work.id, bed.mode, round + 1));
                }
            }
        }
    }
    WorkResult { id: work.id, title: work.title, primary, samples }
}

/// The beds in this round's order: none is always first.
fn turns(beds: &[Bed], round: u32, seed: u64) -> impl Iterator<Item = &Bed> {
    let first = (u64::from(round) + seed) as usize % beds.len().max(1);
    beds.iter().cycle().skip(first).take(beds.len())
}

/// One run, with what it cost.
async fn once(bed: &Bed, work: &Work, options: &BenchOptions, round: u32) -> Result<Sample> {
    let proxies = bed.proxies(work.place).await?;
    let counters = bed.counters().await?;
    let (machine, own) = (Cpu::of_machine()?, Cpu::of_processes(&proxies));
    let outcome = load(bed, work, options).await?;
    let (machine, own) = (Cpu::of_machine()? - machine, Cpu::of_processes(&proxies) - own);
    let proxies_pss = memory::pss(&proxies);
    let mut overflows = Vec::new();
    for ((place, before), (_, after)) in counters.iter().zip(bed.counters().await?) {
        for (name, by) in after.growth(before) {
            overflows.push(format!("{name} grew by {by} in {place}"));
        }
    }
    let tried = outcome.requests + outcome.errors;
    if outcome.errors as f64 > tried as f64 * ERRORS {
        bail!("{} of {tried} requests failed", outcome.errors);
    }
    Ok(Sample { round, outcome, machine, proxies: own, proxies_pss, overflows, extra: BTreeMap::new() })
}

async fn load(bed: &Bed, work: &Work, options: &BenchOptions) -> Result<Outcome> {
    let (seconds, threads) = (options.seconds(), options.threads());
    match work.kind {
        Kind::Bulk { streams } => {
            let args = iperf3::args(&bed.server(work.place), manifests::BULK, streams, seconds);
            iperf3::parse(&bed.client(&args).await?)
        }
        Kind::Http { connections } => {
            let args = wrk::args(&bed.url(work.place), connections, threads, seconds, true);
            wrk::parse(&bed.client(&args).await?)
        }
        Kind::Connect { at_once } => {
            let args = wrk::args(&bed.url(work.place), at_once, threads, seconds, false);
            wrk::parse(&bed.client(&args).await?)
        }
    }
}

/// One run in one line.
fn line(sample: &Sample, primary: Metric) -> String {
    let value = |metric: Metric| metric.of(sample).unwrap_or(0.0);
    let mut line = format!("{:>10.1} {}", value(primary), primary.unit());
    if sample.outcome.latency.is_some() {
        line += &format!(
            "  p50 {:>7.0} p99 {:>8.0} µs  machine {:>5.1} proxies {:>5.1} µs/request",
            value(Metric::P50),
            value(Metric::P99),
            value(Metric::MachinePerRequest),
            value(Metric::ProxiesPerRequest)
        );
    } else {
        line += &format!(
            "  machine {:>5.2} proxies {:>5.2} s/GiB",
            value(Metric::MachinePerGib),
            value(Metric::ProxiesPerGib)
        );
    }
    line += &format!("  PSS {:>5.1} MiB", value(Metric::ProxiesPss));
    if sample.outcome.errors > 0 {
        line += &format!("  {} errors", sample.outcome.errors);
    }
    if !sample.overflows.is_empty() {
        line += &format!("  OVERFLOW: {}", sample.overflows.join(", "));
    }
    line
}

fn modes(options: &BenchOptions) -> Vec<Mode> {
    let base = options.base.is_some() || !options.base_env.is_empty();
    let wanted = |mode: &Mode| match options.modes.as_slice() {
        [] if *mode == Mode::Base => base,
        [] if options.quick => !matches!(mode, Mode::Waypoint | Mode::SidecarHttp),
        [] => true,
        some => some.contains(mode),
    };
    Mode::ALL.into_iter().filter(wanted).collect()
}

fn chosen(options: &BenchOptions) -> Result<Vec<&'static Work>> {
    if options.works.is_empty() {
        return Ok(WORKS.iter().filter(|work| work.target || !options.quick).collect());
    }
    let find = |name: &String| {
        let found = WORKS.iter().find(|work| work.id == name);
        found.with_context(|| {
            let names: Vec<_> = WORKS.iter().map(|work| work.id).collect();
            format!("`{name}` is no work: {}", names.join(", "))
        })
    };
    options.works.iter().map(find).collect()
}
