//! `aquifer`: the one command a person types.
//!
//! ```text
//!   aquifer demo     the main job, live, in a lab of its own
//!   aquifer lab …    a cluster in network namespaces of this machine
//!   aquifer bench    what the mesh costs, against no mesh and against sidecars
//!   aquifer crds      Istio's kinds for an API server
//!   aquifer waypoint …  make, show and remove waypoints
//!   aquifer analyze  what is wrong with manifests, or with what a cluster holds
//!   aquifer status   who is connected to the control plane, and how far
//!   aquifer rotate-root  another root for the mesh, without a failed handshake
//! ```
//! One file a subcommand. Errors are one line that says what to do.

mod analyze;
mod bench;
mod cluster;
mod crds;
mod demo;
mod lab;
mod rotate;
mod status;
mod waypoint;

use std::io::ErrorKind;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use tracing_subscriber::EnvFilter;

/// Kubernetes ambient service mesh.
#[derive(Debug, Parser)]
#[command(name = "aquifer", version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Walk through the main job, live, in a lab of its own; exits non-zero if anything does not hold
    Demo {
        /// Leave the lab up and print commands to try
        #[arg(long)]
        keep: bool,
        /// Objects lie in a real Kubernetes API server (`make kube` builds it) instead of a folder of manifests
        #[arg(long)]
        api_server: bool,
    },
    /// A cluster of nodes and pods in network namespaces of this machine
    Lab(lab::Command),
    /// Measure what the mesh costs, against no mesh and against sidecars, in labs of its own
    Bench(aquifer_perf::BenchOptions),
    /// Print the definitions of Istio's kinds, or install them in a cluster
    Crds(crds::Command),
    /// Make, show and remove waypoints
    Waypoint(waypoint::Command),
    /// Find what is wrong with manifests, or with what a cluster holds
    Analyze(analyze::Command),
    /// Show who is connected to the control plane, and how far each proxy is with it
    Status(status::Command),
    RotateRoot(rotate::Command),
}

fn main() -> ExitCode {
    end_with_reader();
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level(&cli.command)));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let result = match cli.command {
        Command::Demo { keep, api_server } => demo::command(keep, api_server),
        Command::Lab(command) => lab::run(command),
        Command::Bench(options) => bench::command(options),
        Command::Crds(command) => crds::run(&command),
        Command::Waypoint(command) => waypoint::run(&command),
        Command::Analyze(command) => analyze::run(&command),
        Command::Status(command) => status::run(&command),
        Command::RotateRoot(command) => rotate::run(&command),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) if is_closed_output(&error) => ExitCode::from(CLOSED_OUTPUT),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a person reads on a terminal is less than what a log keeps.
fn default_level(command: &Command) -> &'static str {
    match command {
        Command::Lab(lab) if lab.is_init() => "info",
        _ => "warn",
    }
}

/// What a shell makes of SIGPIPE: 128 + 13.
const CLOSED_OUTPUT: u8 = 141;

/// Ends quietly when nobody reads our output any more (`aquifer lab status | head -1`). SIGPIPE itself stays ignored:
/// the demo writes to programs that may have ended.
fn end_with_reader() {
    let usual = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // What `println!` panics with.
        if panic.payload_as_str().is_some_and(|text| text.starts_with("failed printing to std")) {
            std::process::exit(i32::from(CLOSED_OUTPUT));
        }
        usual(panic);
    }));
}

fn is_closed_output(error: &anyhow::Error) -> bool {
    error.downcast_ref::<std::io::Error>().is_some_and(|error| error.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests;
