//! `aquifer`: the one command a person types.
//!
//! ```text
//!   aquifer demo     the main job, live, in a lab of its own
//!   aquifer lab …    a cluster in network namespaces of this machine
//! ```
//! One file a subcommand. Errors are one line that says what to do.

mod demo;
mod lab;

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
    },
    /// A cluster of nodes and pods in network namespaces of this machine
    #[command(subcommand)]
    Lab(lab::Command),
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default_level(&cli.command)));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(false).init();
    let result = match cli.command {
        Command::Demo { keep } => demo::command(keep),
        Command::Lab(command) => lab::run(command),
    };
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// What a person reads on a terminal is less than what a log keeps.
fn default_level(command: &Command) -> &'static str {
    match command {
        Command::Lab(lab::Command::Init { .. }) => "info",
        Command::Demo { .. } | Command::Lab(_) => "warn",
    }
}
