//! `aquifer-load`: one subcommand for each kind of load. Standard output is JSON.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::Result;
use aquifer_load::serve::{Listen, Server};
use aquifer_load::tally::Report;
use aquifer_load::{connect_rate, raise_descriptor_limit, resolve};
use clap::{Args, Parser, Subcommand};

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
    /// Connections at a time.
    #[arg(long, default_value_t = 32)]
    connections: usize,
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
    fn timeout(&self) -> Duration {
        Duration::from_secs_f64(self.timeout)
    }
}

#[derive(Debug, Args)]
struct ConnectRate {
    #[command(flatten)]
    common: Common,
    /// Event loops.
    #[arg(long, default_value_t = 1)]
    threads: usize,
    /// End after so many connections, if that is earlier.
    #[arg(long)]
    count: Option<u64>,
    /// Path of the request.
    #[arg(long, default_value = "/")]
    path: String,
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse() {
        Ok(seconds) if (0.0..=86_400.0).contains(&seconds) => Ok(seconds),
        _ => Err("not a number of seconds between 0 and 86400".into()),
    }
}

fn main() -> Result<()> {
    match Cli::parse().work {
        Work::Serve(args) => serve(&args),
        Work::ConnectRate(args) => print(args.common.seed, connect_rate(&args)?),
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
        connections: common.connections,
        threads: args.threads,
        seconds: common.seconds,
        warmup: common.warmup,
        count: args.count,
        timeout: common.timeout(),
    })
}
