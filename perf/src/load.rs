//! How each kind of work is done in a bed.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::bed::Bed;
use crate::manifests::{BULK, LOAD};
use crate::measure::{Watch, memory};
use crate::options::BenchOptions;
use crate::results::Metric;
use crate::tools::{Outcome, iperf3, load, wrk};
use crate::work::{Busy, Kind, Work, extra};
use crate::workloads;

const KIB: f64 = 1024.0;
const MIB: f64 = 1024.0 * 1024.0;

/// How long connections that do nothing may take to come up.
const ALL_UP: Duration = Duration::from_secs(60);
/// How long what they cost may take to show.
const SETTLED: Duration = Duration::from_millis(500);
/// How long proxies do nothing before they count as idle: what their start needed is given back by then.
const IDLE: Duration = Duration::from_secs(5);
/// How long a neighbour is at it before it counts.
const WARM: Duration = Duration::from_millis(500);

/// Connections of open-loop clients.
const OPEN_LOOP_CONNECTIONS: u32 = 64;
/// Connections that gRPC streams share.
const GRPC_CONNECTIONS: u32 = 10;

/// Does the work once. Figures of this kind of work alone go into `found`.
pub(crate) async fn run(
    bed: &Bed,
    work: &Work,
    options: &BenchOptions,
    watch: &Watch,
    found: &mut BTreeMap<String, f64>,
) -> Result<Outcome> {
    let (seconds, threads, seed) = (options.seconds(), options.threads(), options.seed);
    let host = bed.server(work.place);
    let load_at = format!("{host}:{LOAD}");
    let open_loop = |rate: u32| {
        format!(
            "open-loop {load_at} --rate {rate} --connections {OPEN_LOOP_CONNECTIONS} --seconds {seconds} --warmup 0.3 --seed {seed}"
        )
    };
    match work.kind {
        Kind::Bulk { streams } => iperf3::parse(&bed.client(&iperf3::args(&host, BULK, streams, seconds)).await?),
        Kind::Http { connections } => {
            let url = bed.url(work.place);
            wrk::parse(&bed.client(&wrk::args(&url, connections, threads, seconds, true)).await?)
        }
        Kind::Connect { at_once } | Kind::ConnectRsa { at_once } => {
            let line = format!(
                "connect-rate {} --connections {at_once} --threads {threads} --seconds {seconds} --seed {seed}",
                bed.http(work.place)
            );
            load::parse(&bed.load(&line).await?)
        }
        Kind::Grpc { streams } => {
            let line = format!(
                "grpc-streams {load_at} --streams {streams} --connections {GRPC_CONNECTIONS} --seconds {seconds} --seed {seed}"
            );
            load::parse(&bed.load(&line).await?)
        }
        Kind::OpenLoop { rate } => load::parse(&bed.load(&open_loop(rate)).await?),
        Kind::Mice { rate } => {
            let line = format!(
                "mice-and-elephant {load_at} --rate {rate} --connections {OPEN_LOOP_CONNECTIONS} --seconds {seconds} \
                 --warmup 0.3 --seed {seed} --neighbour bulk"
            );
            load::parse(&bed.load(&line).await?)
        }
        Kind::Neighbour { busy, rate } => {
            let alone = load::parse(&bed.load(&open_loop(rate)).await?)?;
            let busy = match busy {
                Busy::Bulk => format!("bulk {load_at} --connections 1 --seconds 60 --seed {seed}"),
                Busy::Connect { connections } => {
                    format!("connect-rate {load_at} --connections {connections} --hold --seconds 60 --seed {seed}")
                }
            };
            let neighbour = bed.neighbour(&busy)?;
            tokio::time::sleep(WARM).await;
            let beside = load::parse(&bed.load(&open_loop(rate)).await?)?;
            ensure!(
                neighbour.is_running(),
                "the neighbour ended before its time: {}",
                neighbour.stderr_so_far().trim()
            );
            neighbour.kill().await?;
            let p99 = |outcome: &Outcome| outcome.latency.map(|latency| latency.p99).unwrap_or_default();
            note(found, extra::ALONE, p99(&alone));
            note(found, extra::MOVED, p99(&beside) / p99(&alone).max(1.0));
            Ok(beside)
        }
        Kind::Idle { connections } => idle(bed, &load_at, connections, watch, found).await,
        Kind::Memory { connections } => {
            tokio::time::sleep(IDLE).await;
            note(found, extra::IDLE, watch.pss() as f64 / MIB);
            let url = bed.url(work.place);
            let outcome = wrk::parse(&bed.client(&wrk::args(&url, connections, threads, seconds, true)).await?)?;
            note(found, extra::AFTER, watch.pss() as f64 / MIB);
            Ok(outcome)
        }
        Kind::Workloads { count } => {
            let begin = Instant::now();
            let each = workloads::growth(&bed.lab, count, watch).await?;
            note(found, extra::PER_WORKLOADS, each * 10_000.0 / MIB);
            let seconds = begin.elapsed().as_secs_f64();
            Ok(Outcome { requests: 0, bytes: 0, errors: 0, seconds, latency: None })
        }
    }
}

/// Opens the connections, looks at what they cost, and closes them.
async fn idle(
    bed: &Bed,
    target: &str,
    connections: u32,
    watch: &Watch,
    found: &mut BTreeMap<String, f64>,
) -> Result<Outcome> {
    let (memory, sockets) = (watch.pss(), memory::tcp_sockets()?);
    let mut process = bed.spawn_load(&format!("idle {target} --connections {connections} --timeout 30"))?;
    let stdin = process.take_stdin().context("the client's input")?;
    process.wait_output("\"up\"", ALL_UP).await?;
    tokio::time::sleep(SETTLED).await;
    let per = |now: u64, before: u64| (now as f64 - before as f64) / KIB / f64::from(connections);
    note(found, extra::PER_CONNECTION, per(watch.pss(), memory));
    note(found, extra::SOCKETS_PER_CONNECTION, per(memory::tcp_sockets()?, sockets));
    // The end of its input ends the client.
    drop(stdin);
    let output = process.wait().await?;
    if !output.ok() {
        bail!("{}", output.stderr.trim());
    }
    load::parse(&output.stdout)
}

fn note(found: &mut BTreeMap<String, f64>, metric: Metric, value: f64) {
    if let Metric::Extra(name) = metric {
        found.insert(name.to_owned(), value);
    }
}
