//! What a caller chooses about a run.

use std::path::PathBuf;

use anyhow::{Context, Result};
use clap::Args;

use crate::control_plane;
use crate::mode::Mode;

/// Options of `aquifer bench`.
#[derive(Debug, Clone, Args)]
pub struct BenchOptions {
    /// Only what the targets need, in less than three minutes
    #[arg(long)]
    pub quick: bool,
    /// Record where CPU goes: flame graphs of each component for each mode and work chosen [default: all modes; http32,
    /// bulk1, connect]. Needs `perf` and binaries with symbols, which `make bench BENCH_ARGS=--profile` builds
    #[arg(long)]
    pub profile: bool,
    /// Throughput by number of ztunnel's workers (1, 2, 4, … up to the cores), and how connections and bytes spread
    #[arg(long)]
    pub scaling: bool,
    /// Where results.json, report.md and report.html go [default: the build folder's bench/]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// Only these works (`--list` names them)
    #[arg(long, value_delimiter = ',', value_name = "WORK")]
    pub works: Vec<String>,
    /// Only these modes
    #[arg(long, value_delimiter = ',', value_name = "MODE")]
    pub modes: Vec<Mode>,
    /// Rounds of each work; the modes take turns in each [default: 5 for what has a target, 3 for the rest]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=100))]
    pub rounds: Option<u32>,
    /// Length of each run [default: 3, with --quick 2]
    #[arg(long, value_name = "SECONDS", value_parser = clap::value_parser!(u32).range(1..=60))]
    pub seconds: Option<u32>,
    /// Same seed, same order of modes and same requests
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Folder of the binaries under test [default: beside this one]
    #[arg(long, value_name = "DIR")]
    pub bin: Option<PathBuf>,
    /// Folder of other binaries, measured beside as mode `base`: two builds in one run
    #[arg(long, value_name = "DIR")]
    pub base: Option<PathBuf>,
    /// A ztunnel variable of mode `ambient`, as NAME=VALUE
    #[arg(long = "set", value_name = "NAME=VALUE", value_parser = variable)]
    pub ambient_env: Vec<(String, String)>,
    /// A ztunnel variable of mode `base`; with `--bin` alone the same binaries are compared with other settings
    #[arg(long = "set-base", value_name = "NAME=VALUE", value_parser = variable)]
    pub base_env: Vec<(String, String)>,
    /// Worker threads of each ztunnel [default: its own]
    #[arg(long, value_name = "N")]
    pub workers: Option<usize>,
    /// Threads of the client and of the web server, each [default: a quarter of the cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=256))]
    pub threads: Option<u32>,
    /// The Envoy of the sidecar modes [default: the one that `make bench` installs]
    #[arg(long, value_name = "FILE")]
    pub envoy: Option<PathBuf>,
    /// Name works and modes, and end
    #[arg(long)]
    pub list: bool,
}

impl BenchOptions {
    /// Whether this part of a run, which makes labs of its own, is chosen.
    pub(crate) fn wants(&self, part: &str) -> bool {
        match self.works.as_slice() {
            // No target rests on the control plane.
            [] => !self.quick || ![control_plane::NAME, control_plane::scale::NAME].contains(&part),
            some => some.iter().any(|name| name == part),
        }
    }

    /// Threads of the client and of the web server. The proxies are what is measured: they get the other half.
    pub(crate) fn threads(&self) -> u32 {
        self.threads.unwrap_or_else(|| {
            let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
            u32::try_from(cores / 4).unwrap_or(1).max(1)
        })
    }

    /// Where the reports go.
    pub(crate) fn out(&self) -> Result<PathBuf> {
        match &self.out {
            Some(folder) => Ok(folder.clone()),
            None => Ok(build_folder()?.join("bench")),
        }
    }

    /// The length of each run.
    pub(crate) fn seconds(&self) -> u32 {
        self.seconds.unwrap_or(if self.quick { 2 } else { 3 })
    }
}

/// The folder that holds the folders of all profiles.
pub(crate) fn build_folder() -> Result<PathBuf> {
    let own = std::env::current_exe().context("finding the running binary")?;
    let folder = own.ancestors().nth(2).context("the running binary lies in no build folder: say --out and --envoy")?;
    Ok(folder.to_owned())
}

fn variable(text: &str) -> std::result::Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err(format!("`{text}` is no variable: write NAME=VALUE")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_have_a_name() {
        assert_eq!(variable("A=b=c"), Ok(("A".into(), "b=c".into())));
        assert!(variable("=b").is_err());
        assert!(variable("A").unwrap_err().contains("NAME=VALUE"));
    }
}
