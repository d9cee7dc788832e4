//! The run: labs up side by side, each work in rounds, the modes taking turns in each round.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::bed::{self, Bed};
use crate::control_plane::scale;
use crate::measure::Watch;
use crate::measure::cpu::Machine;
use crate::mode::Mode;
use crate::options::BenchOptions;
use crate::results::{Metric, Results, Sample, WorkResult};
use crate::work::{WORKS, Work, extra};
use crate::{control_plane, estimate, load, pods};

/// More failed requests than this share spoil a run.
const ERRORS: f64 = 0.001;

/// How long nothing is done before the first work.
const BACKGROUND: Duration = Duration::from_secs(1);

/// Runs what the options choose.
pub(crate) async fn run(options: &BenchOptions) -> Result<Results> {
    let begin = Instant::now();
    let works = chosen(options)?;
    if let Some(folder) = &options.bin {
        bed::check_binaries(folder)?;
    }
    let mut results = Results::begin(options);
    let estimate = estimate::Plan::of(&works, &modes(options), options);
    println!("about {}", estimate::minutes(estimate.seconds()));
    let mut beds = Vec::new();
    for mode in modes(options) {
        if works.is_empty() && mode != Mode::Waypoint {
            // What is left makes labs of its own.
            results.modes.push(mode);
            continue;
        }
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
    if results.modes.is_empty() {
        bail!("no mode can be measured: {:?}", results.not_available);
    }
    results.background_cores = background().await?;
    for (index, work) in works.iter().enumerate() {
        let (number, count, left) = (index + 1, works.len(), estimate::minutes(estimate.left(index)));
        println!("\n[{number}/{count}] {}: {} ({:.0} s so far, about {left} left)", work.id, work.title, secs(begin));
        let result = rounds(&beds, work, options, &mut results.failures).await;
        results.works.push(result);
    }
    for bed in beds {
        if let Some(why) = bed.is_open().await? {
            results.failures.push(format!("mode {}: not all traffic was protected: {why}", bed.mode));
        }
        bed.stop().await?;
    }
    if options.wants(pods::NAME) {
        println!("\n{}: memory by number of pods on a node ({:.0} s so far)", pods::NAME, secs(begin));
        for mode in results.modes.clone() {
            match pods::measure(mode, options).await {
                Ok(series) => results.pods.extend(series),
                Err(error) => results.failures.push(format!("{} {mode}: {error:#}", pods::NAME)),
            }
        }
    }
    if options.wants(control_plane::NAME) {
        println!("\n{}: {} ({:.0} s so far)", control_plane::NAME, control_plane::TITLE, secs(begin));
        for mode in results.modes.clone().into_iter().filter(|mode| mode.is_mesh()) {
            match control_plane::measure(mode, options).await {
                Ok(found) => results.add_control_plane(mode, &found),
                Err(error) => results.failures.push(format!("{} {mode}: {error:#}", control_plane::NAME)),
            }
        }
    }
    if options.wants(scale::NAME) {
        println!("\n{}: {} ({:.0} s so far)", scale::NAME, scale::TITLE, secs(begin));
        match scale::measure(options).await {
            Ok(found) => results.add_scale(&found),
            Err(error) => results.failures.push(format!("{}: {error:#}", scale::NAME)),
        }
    }
    results.seconds = secs(begin);
    Ok(results)
}

/// Cores in use while nothing is done: probes, clocks, and whatever else runs on the machine.
async fn background() -> Result<f64> {
    let (begin, before) = (Instant::now(), Machine::now()?);
    tokio::time::sleep(BACKGROUND).await;
    Ok(Machine::now()?.since(&before).total() / secs(begin))
}

fn secs(since: Instant) -> f64 {
    since.elapsed().as_secs_f64()
}

/// All rounds of one work. What fails is told, and the rest goes on.
async fn rounds(beds: &[Bed], work: &Work, options: &BenchOptions, failures: &mut Vec<String>) -> WorkResult {
    let primary = work.primary();
    let mut samples: BTreeMap<Mode, Vec<Sample>> = BTreeMap::new();
    let rounds = options.rounds.unwrap_or_else(|| work.rounds(options.quick));
    for round in 0..rounds {
        for bed in turns(beds, round, options.seed).filter(|bed| work.suits(bed.mode)) {
            let sample = if work.is_fresh() {
                fresh(bed.mode, work, options, round).await
            } else {
                once(bed, work, options, round).await
            };
            match sample {
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

/// One run in a lab of its own.
async fn fresh(mode: Mode, work: &Work, options: &BenchOptions, round: u32) -> Result<Sample> {
    let bed = Bed::start_with(mode, options, work.keys()).await?;
    let sample = once(&bed, work, options, round).await;
    bed.stop().await?;
    sample
}

/// One run, with what it cost.
pub(crate) async fn once(bed: &Bed, work: &Work, options: &BenchOptions, round: u32) -> Result<Sample> {
    let counters = bed.counters().await?;
    let watch = Watch::start(bed.proxies(work.place).await?)?;
    let mut found = BTreeMap::new();
    let outcome = watch.during(load::run(bed, work, options, &watch, &mut found)).await?;
    let cost = watch.stop()?;
    if let Metric::Extra(name) = extra::PEAK {
        found.insert(name.to_owned(), cost.peak_pss as f64 / f64::from(1 << 20));
    }
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
    Ok(Sample {
        round,
        outcome,
        machine: cost.machine,
        proxies: cost.proxies,
        proxies_pss: cost.pss,
        overflows,
        extra: found,
    })
}

/// One run in one line.
pub(crate) fn line(sample: &Sample, primary: Metric) -> String {
    let value = |metric: Metric| metric.of(sample).unwrap_or(0.0);
    let mut line = format!("{:>10.1} {:<6}", value(primary), primary.unit());
    if sample.outcome.latency.is_some() {
        line += &format!("  p50 {:>7.0} p99 {:>8.0} µs", value(Metric::P50), value(Metric::P99));
    }
    let (per, machine, proxies) = if sample.outcome.requests > 0 {
        ("µs/request", Metric::MachinePerRequest, Metric::ProxiesPerRequest)
    } else {
        ("s/GiB", Metric::MachinePerGib, Metric::ProxiesPerGib)
    };
    line += &format!("  machine {:>6.2} proxies {:>6.2} {per}", value(machine), value(proxies));
    line += &format!("  PSS {:>5.1} MiB", value(Metric::ProxiesPss));
    if sample.outcome.errors > 0 {
        line += &format!("  {} errors", sample.outcome.errors);
    }
    if !sample.overflows.is_empty() {
        line += &format!("  OVERFLOW: {}", sample.overflows.join(", "));
    }
    line
}

/// Those that the options choose.
pub(crate) fn modes(options: &BenchOptions) -> Vec<Mode> {
    let base = options.base.is_some() || !options.base_env.is_empty();
    let wanted = |mode: &Mode| match options.modes.as_slice() {
        [] if *mode == Mode::Base => base,
        [] if options.quick => !matches!(mode, Mode::Waypoint | Mode::SidecarHttp),
        [] => true,
        some => some.contains(mode),
    };
    Mode::ALL.into_iter().filter(wanted).collect()
}

/// The works that the options choose.
pub(crate) fn chosen(options: &BenchOptions) -> Result<Vec<&'static Work>> {
    if options.works.is_empty() {
        return Ok(WORKS.iter().filter(|work| work.target || !options.quick).collect());
    }
    let find = |name: &String| {
        let found = WORKS.iter().find(|work| work.id == name);
        found.with_context(|| {
            let names: Vec<_> = WORKS.iter().map(|work| work.id).collect();
            let parts = [pods::NAME, control_plane::NAME, scale::NAME].join(", ");
            format!("`{name}` is no work: {}, {parts}", names.join(", "))
        })
    };
    let of_their_own = [pods::NAME, control_plane::NAME, scale::NAME];
    options.works.iter().filter(|name| !of_their_own.contains(&name.as_str())).map(find).collect()
}
