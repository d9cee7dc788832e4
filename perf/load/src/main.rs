//! `aquifer-load`: one subcommand for each kind of load. Standard output is JSON.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Result, bail};
use aquifer_load::neighbour::{Kind, Neighbour};
use aquifer_load::serve::{Listen, Server};
use aquifer_load::tally::Report;
use aquifer_load::{bulk, connect_rate, control_plane, grpc, idle, mice, open_loop, raise_descriptor_limit, resolve};
use clap::{Args, Parser, Subcommand, ValueEnum};

/// Load for measuring, and the server it talks to. Prints one JSON object a run.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    #[command(subcommand)]
    work: Work,
}

#[derive(Debug, Subcommand)]
enum Work {
    /// Serve HTTP/1.1, echo, sink, source and gRPC-like echo. Says on standard error when it is ready.
    Serve(Serve),
    /// As many connections as can be, a request each.
    ConnectRate(ConnectRate),
    /// Requests at a constant rate, each due at its own time whatever became of the others.
    OpenLoop(OpenLoop),
    /// Many connections that do nothing. Prints a line when all are up, and the report when the time is over: after
    /// --seconds, or without it when standard input ends.
    Idle(Idle),
    /// Streams on HTTP/2 connections that send a message and wait for it to come back.
    GrpcStreams(GrpcStreams),
    /// As many bytes as can be.
    Bulk(Bulk),
    /// Requests at a constant rate, and beside them a neighbour who is busy.
    MiceAndElephant(MiceAndElephant),
    /// What a control plane talks to: an API server of made-up objects and proxies that follow it. Takes commands on
    /// standard input: `connect ADDRESS N`, `change N MILLIS`, `churn N PER_SECOND`, `disconnect`.
    ControlPlane(ControlPlane),
}

#[derive(Debug, Args)]
struct Serve {
    /// address:port, or kind=address:port with kind auto, http, echo, sink, source or grpc. Several may be given.
    #[arg(long, required = true)]
    listen: Vec<Listen>,
    /// Threads, each with listeners of its own.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Length of the page that answers a GET, in bytes.
    #[arg(long, default_value_t = 1024)]
    body: usize,
}

#[derive(Debug, Args)]
struct ControlPlane {
    /// Services, each with an EndpointSlice.
    #[arg(long, default_value_t = 1000)]
    services: u32,
    /// Pods, spread over services and nodes.
    #[arg(long, default_value_t = 20_000)]
    pods: u32,
    /// Nodes, each with a proxy's pod besides.
    #[arg(long, default_value_t = 200)]
    nodes: u32,
    /// Where to write the kubeconfig that leads here.
    #[arg(long, value_name = "FILE")]
    kubeconfig: PathBuf,
}

/// What all clients take.
#[derive(Debug, Args)]
struct Common {
    /// host:port
    target: String,
    /// Seconds that are counted.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    seconds: f64,
    /// Seconds of the same load before them.
    #[arg(long, default_value_t = 0.0, value_parser = seconds)]
    warmup: f64,
    /// Connections at a time; when it is left out, 32, and 1 of a bulk transfer.
    #[arg(long)]
    connections: Option<usize>,
    /// What is drawn by lot is drawn alike for the same seed.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds after which a request has failed.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,
    /// A local address to connect from; several are taken by turns.
    #[arg(long)]
    source: Vec<IpAddr>,
}

impl Common {
    fn connections(&self) -> usize {
        self.connections.unwrap_or(32)
    }

    fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

#[derive(Debug, Args)]
struct ConnectRate {
    #[command(flatten)]
    common: Common,
    /// Event loops.
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// End after so many connections, if that is earlier.
    #[arg(long)]
    count: Option<u64>,
    /// Path of the request.
    #[arg(long, default_value = "/")]
    path: String,
    /// Keep every connection until all are open, then close all and begin anew; at most so many on their way at a time.
    #[arg(long, value_name = "OPENING", num_args = 0..=1, default_missing_value = "512")]
    hold: Option<usize>,
}

#[derive(Debug, Args)]
struct OpenLoop {
    #[command(flatten)]
    common: Common,
    /// Requests per second, of all connections together.
    #[arg(long)]
    rate: f64,
    /// Path of the requests.
    #[arg(long, default_value = "/")]
    path: String,
}

#[derive(Debug, Args)]
struct Idle {
    /// host:port of an echo.
    target: String,
    /// Connections.
    #[arg(long, default_value_t = 1000)]
    connections: usize,
    /// Hold them that long. Without it: until standard input ends.
    #[arg(long, value_parser = seconds)]
    seconds: Option<f64>,
    /// Is only reported: nothing is drawn by lot.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Seconds after which the opening of a connection, or its last byte, has failed.
    #[arg(long, default_value_t = 10.0, value_parser = seconds)]
    timeout: f64,
    /// A local address to connect from; several are taken by turns.
    #[arg(long)]
    source: Vec<IpAddr>,
}

#[derive(Debug, Args)]
struct GrpcStreams {
    #[command(flatten)]
    common: Common,
    /// Streams, of all connections together.
    #[arg(long, default_value_t = 100)]
    streams: usize,
    /// Bytes of a message.
    #[arg(long, default_value_t = 128)]
    size: usize,
}

#[derive(Debug, Args)]
struct Bulk {
    #[command(flatten)]
    common: Common,
    /// Receive instead of sending.
    #[arg(long)]
    receive: bool,
}

#[derive(Debug, Args)]
struct MiceAndElephant {
    #[command(flatten)]
    mice: OpenLoop,
    /// What the neighbour does.
    #[arg(long, value_enum, default_value_t = Busy::Bulk)]
    neighbour: Busy,
    /// host:port that the neighbour goes to, if it is another.
    #[arg(long)]
    neighbour_target: Option<String>,
    /// How many connections a neighbour opens that opens connections.
    #[arg(long, default_value_t = 8000)]
    neighbour_connections: usize,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Busy {
    /// One bulk transfer.
    Bulk,
    /// Connections opened as fast as possible, a request on each, all held until they are open, then opened anew.
    Connections,
    /// Nothing: the measure without a neighbour.
    None,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds between 0 and 86400".into()),
    }
}

fn main() -> ExitCode {
    match run(Cli::parse().work) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("aquifer-load: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(work: Work) -> Result<()> {
    match work {
        Work::Serve(args) => serve(&args),
        Work::ConnectRate(args) => print(args.common.seed, connect_rate(&args)?),
        Work::OpenLoop(args) => print(args.common.seed, open_loop::run(&args.options()?)?),
        Work::Idle(args) => print(args.seed, idle(&args)?),
        Work::GrpcStreams(args) => print(args.common.seed, grpc_streams(&args)?),
        Work::Bulk(args) => print(args.common.seed, bulk(&args)?),
        Work::MiceAndElephant(args) => print(args.mice.common.seed, mice_and_elephant(&args)?),
        Work::ControlPlane(args) => {
            raise_descriptor_limit(0)?;
            let size = control_plane::Size { services: args.services, pods: args.pods, nodes: args.nodes };
            control_plane::run(size, &args.kubeconfig)
        }
    }
}

fn print(seed: u64, report: Report) -> Result<()> {
    println!("{}", serde_json::to_string(&report.with("seed", seed))?);
    Ok(())
}

fn serve(args: &Serve) -> Result<()> {
    raise_descriptor_limit(0)?;
    let server = Server::bind(&args.listen, args.threads, args.body)?;
    for (listen, address) in args.listen.iter().zip(&server.addresses) {
        eprintln!("serving {:?} on {address}", listen.kind);
    }
    server.run()
}

fn connect_rate(args: &ConnectRate) -> Result<Report> {
    let common = &args.common;
    connect_rate::run(&connect_rate::Options {
        target: resolve(&common.target)?,
        sources: common.source.clone(),
        path: args.path.clone(),
        connections: common.connections(),
        threads: args.threads,
        seconds: common.seconds,
        warmup: common.warmup,
        count: args.count,
        timeout: common.timeout(),
        hold: args.hold,
    })
}

impl OpenLoop {
    fn options(&self) -> Result<open_loop::Options> {
        let common = &self.common;
        Ok(open_loop::Options {
            target: resolve(&common.target)?,
            sources: common.source.clone(),
            path: self.path.clone(),
            rate: self.rate,
            connections: common.connections(),
            seconds: common.seconds,
            warmup: common.warmup,
            timeout: common.timeout(),
            seed: common.seed,
        })
    }
}

fn idle(args: &Idle) -> Result<Report> {
    let options = idle::Options {
        target: resolve(&args.target)?,
        sources: args.source.clone(),
        connections: args.connections,
        timeout: Duration::from_secs_f64(args.timeout),
    };
    idle::run_to_end(&options, args.seconds, |up| println!("{up}"))
}

fn grpc_streams(args: &GrpcStreams) -> Result<Report> {
    let common = &args.common;
    no_sources(common)?;
    grpc::run(&grpc::Options {
        target: resolve(&common.target)?,
        connections: common.connections().min(args.streams),
        streams: args.streams,
        size: args.size,
        seconds: common.seconds,
        warmup: common.warmup,
        timeout: common.timeout(),
        seed: common.seed,
    })
}

/// A stream of a bulk transfer is a connection.
fn bulk(args: &Bulk) -> Result<Report> {
    let common = &args.common;
    no_sources(common)?;
    bulk::run(&bulk::Options {
        target: resolve(&common.target)?,
        streams: common.connections.unwrap_or(1),
        receive: args.receive,
        seconds: common.seconds,
        warmup: common.warmup,
        timeout: common.timeout(),
        seed: common.seed,
    })
}

fn mice_and_elephant(args: &MiceAndElephant) -> Result<Report> {
    let mice = args.mice.options()?;
    let neighbour = Neighbour {
        kind: match args.neighbour {
            Busy::Bulk => Kind::Bulk,
            Busy::Connections => Kind::Connections(args.neighbour_connections),
            Busy::None => Kind::None,
        },
        target: args.neighbour_target.as_deref().map_or(Ok(mice.target), resolve)?,
        seconds: mice.seconds,
        timeout: mice.timeout,
        seed: mice.seed,
    };
    mice::run(&mice, &neighbour)
}

fn no_sources(common: &Common) -> Result<()> {
    if common.source.is_empty() {
        return Ok(());
    }
    bail!("--source is of no use with so few connections: leave it out");
}
