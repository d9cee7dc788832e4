//! What the mesh costs, measured in the lab against no mesh and against sidecars.
//!
//! ```text
//!   options ─▶ run ─▶ bed (one lab a mode, all up side by side) ─▶ sidecar, tuning, manifests
//!               │
//!               ├─ work by work, round by round, mode by mode: tools (wrk, iperf3, …) + measure (/proc)
//!               ▼
//!            results ─▶ stats ─▶ report
//! ```
//!
//! Invariants:
//! * Processes only: no code of the product is linked in here.
//! * Every mode gets the same kernel settings, client, server and turns; a run in which a queue overflowed fails.
//! * Parsing, statistics and reports are pure; `bed`, `run` and `measure` touch the machine.

mod bed;
mod control_plane;
mod estimate;
#[cfg(test)]
mod fixtures;
mod load;
mod machine;
mod manifests;
mod measure;
mod mode;
mod options;
mod pods;
mod profile;
mod report;
mod results;
mod run;
mod scaling;
pub mod sidecar;
mod stats;
mod targets;
mod tools;
mod tuning;
mod work;
mod workloads;

pub use mode::Mode;
pub use options::BenchOptions;

use anyhow::{Result, ensure};

/// Runs what the options choose, writes the reports and prints the table. Whether all runs were good.
pub async fn run(options: BenchOptions) -> Result<bool> {
    if options.list {
        print!("{}", report::list());
        return Ok(true);
    }
    ensure!(!(options.profile && options.scaling), "--profile and --scaling are two runs: name one");
    // Each kind of run has a folder of its own: none overwrites another's report.
    let (results, out) = if options.scaling {
        scaling::check(&options)?;
        (scaling::measure(&options).await?, options.out()?.join("scaling"))
    } else if options.profile {
        let out = options.out()?.join("profile");
        (profile::measure(&options, &out).await?, out)
    } else {
        (run::run(&options).await?, options.out()?)
    };
    report::write(&results, &out)?;
    print!("{}", report::terminal(&results));
    println!("\nwritten: {0}/results.json, {0}/report.md, {0}/report.html", out.display());
    Ok(results.failures.is_empty())
}
