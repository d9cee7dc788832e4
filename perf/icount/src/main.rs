//! How many instructions the hot functions take, counted by callgrind: exact where a clock only sees noise.
//!
//! ```text
//!  compare ── for each benchmark ──▶ valgrind --tool=callgrind aquifer-icount --bench <name>
//!     │                                  counts only inside meter::counted
//!     └── figures.toml (the last figures, kept in the repository)
//! ```
//!
//! Invariants:
//! - The same build gives the same count: what would be random is seeded, the keys of hash maps included.
//! - Only the function is counted: what it needs is made before, and one round runs uncounted.

mod benches;
mod compare;
mod figures;
mod fixed_random;
mod meter;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;

/// Count instructions of the hot functions, and compare them with the last figures.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Run one benchmark, to be counted by callgrind.
    #[arg(long, value_name = "NAME", conflicts_with_all = ["figures", "update"])]
    bench: Option<String>,
    /// The file of figures.
    #[arg(long, default_value = "perf/icount/figures.toml")]
    figures: PathBuf,
    /// Write the figures anew instead of comparing.
    #[arg(long)]
    update: bool,
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = match &cli.bench {
        Some(name) => benches::run(name).map(|()| true),
        None => compare::run(&cli.figures, cli.update),
    };
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("aquifer-icount: {error:#}");
            ExitCode::FAILURE
        }
    }
}
