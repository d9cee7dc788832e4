//! `istio-cni-node`: the node agent as a process; `istio-cni-node --uninstall` cleans a node that it has left.

use anyhow::Context;
use aquifer_cni::config::{Config, SETTINGS};
use aquifer_cni::{app, uninstall};
use aquifer_runtime::env::ProcessEnv;
use aquifer_runtime::signals::Signals;
use aquifer_runtime::{Cancel, Tracker, shutdown, telemetry};
use std::process::ExitCode;
use std::time::Duration;

const USAGE: &str = "\
Aquifer's node agent: redirects the traffic of enrolled pods, and hands the pods to ztunnel

Usage: istio-cni-node               look after the node's pods
       istio-cni-node --uninstall   take everything of ours off the node";

/// What is under way ends within one exchange with the proxy.
const GRACE: Duration = Duration::from_secs(6);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args_os().skip(1).map(|word| word.to_string_lossy().into_owned()).collect();
    let done = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => run(),
        ["--uninstall"] => clean(),
        ["--help" | "-h"] => {
            println!("{USAGE}\n\n{SETTINGS}");
            Ok(())
        }
        ["--version" | "-V"] => {
            println!("istio-cni-node {}", env!("CARGO_PKG_VERSION"));
            Ok(())
        }
        _ => {
            eprintln!("{USAGE}\nistio-cni-node --help tells the settings, which are environment variables");
            return ExitCode::from(2);
        }
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("istio-cni-node: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn clean() -> anyhow::Result<()> {
    let config = Config::read(&ProcessEnv)?;
    let _telemetry = telemetry::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(uninstall::uninstall(&config))
}

fn run() -> anyhow::Result<()> {
    let config = Config::read(&ProcessEnv)?;
    let _telemetry = telemetry::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let (tracker, cancel) = (Tracker::new(), Cancel::new());
        let mut signals = Signals::new().context("signal handlers")?;
        tokio::select! {
            biased;
            signal = signals.next() => {
                tracing::info!(signal = signal?, "stopped while starting");
                return Ok(());
            }
            started = app::start(config, &tracker, &cancel) => started?,
        }
        let signal = signals.next().await?;
        tracing::info!(signal, "stopping; pods stay as they are");
        shutdown(&cancel, &tracker, GRACE).await;
        Ok(())
    })
}
