//! `aquifer bench`: what the mesh costs on this machine.

use anyhow::Result;
use aquifer_perf::BenchOptions;

/// Runs the benchmarks; the exit code.
pub(crate) fn command(options: BenchOptions) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let good = runtime.block_on(aquifer_perf::run(options))?;
    Ok(u8::from(!good))
}
