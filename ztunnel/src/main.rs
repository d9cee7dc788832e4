//! Reads the settings, sets up logging and the control runtime, and runs the proxy.

use std::io::ErrorKind;
use std::path::Path;
use std::process::ExitCode;

use anyhow::Context;
use aquifer_runtime::env::ProcessEnv;
use aquifer_runtime::telemetry;
use ztunnel::app;
use ztunnel::config::{Config, MESH_FILE, SETTINGS, Surroundings};
use ztunnel::descriptors;

const USAGE: &str = "\
Aquifer's node proxy: carries the traffic of enrolled pods over HBONE

Usage: ztunnel [proxy ztunnel]
       ztunnel --version";

#[cfg(feature = "jemalloc")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Heap profiling can be turned on at the admin port; until then it costs next to nothing. A sample every 512 KiB.
/// What is free for a second goes back to the kernel, by one thread, in one step (not ten seconds, and "muzzy" before).
#[cfg(feature = "jemalloc")]
#[allow(unsafe_code, non_upper_case_globals)]
// SAFETY: jemalloc looks for a symbol of this name and type (jemalloc(3), TUNING), which nothing else defines.
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static malloc_conf: &[u8; 108] =
    b"prof:true,prof_active:false,lg_prof_sample:19,dirty_decay_ms:1000,muzzy_decay_ms:0,max_background_threads:1\0";

fn main() -> ExitCode {
    // Istio's chart starts the proxy as `ztunnel proxy ztunnel`.
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] | ["proxy"] | ["proxy", _] => {}
        ["--version" | "-V" | "version"] => {
            println!(
                "ztunnel {} (aquifer), crypto provider {}",
                env!("CARGO_PKG_VERSION"),
                aquifer_tls::provider::NAME
            );
            return ExitCode::SUCCESS;
        }
        ["--help" | "-h" | "help"] => {
            println!("{USAGE}\n\n{SETTINGS}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprintln!("{USAGE}\nztunnel --help tells the settings, which are environment variables");
            return ExitCode::from(2);
        }
    }
    match start() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("ztunnel: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn start() -> anyhow::Result<()> {
    let around = Surroundings {
        mesh_file: mesh_file()?,
        cpus: std::thread::available_parallelism().map_or(1, usize::from),
        file_exists: |path| Path::new(path).is_file(),
    };
    let config = Config::read(&ProcessEnv, &around)?;
    let telemetry = telemetry::init(&config.log)?;
    aquifer_tls::provider::install(config.tls.policy);
    let level = telemetry.level.clone();
    tracing::info!(version = env!("CARGO_PKG_VERSION"), workers = config.workers, node = config.node.name, "ztunnel");
    descriptors::raise_limit();
    // One thread is enough for control; data has threads of its own.
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().thread_name("control").build()?;
    runtime.block_on(app::run(config, level))
}

/// Most have none. One that is there and cannot be read must not pass for that.
fn mesh_file() -> anyhow::Result<Option<String>> {
    match std::fs::read_to_string(MESH_FILE) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(MESH_FILE),
    }
}
