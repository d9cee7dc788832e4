//! The control plane's process: settings from the environment, then [`app::run`].

use std::process::ExitCode;

use anyhow::Context as _;
use aquifer_istiod_lite::app;
use aquifer_istiod_lite::config::{Config, SETTINGS};
use aquifer_runtime::env::ProcessEnv;
use aquifer_runtime::telemetry;
use clap::Parser;

/// Aquifer's control plane: Kubernetes objects to workload discovery, and the certificate authority.
#[derive(Parser)]
#[command(name = "istiod-lite", version, after_help = SETTINGS)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("istiod-lite: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let config = Config::from_env(&ProcessEnv)?;
    let _telemetry = telemetry::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(app::run(config))
}
