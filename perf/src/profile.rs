//! Where CPU goes: `perf record` beside a work, folded by component into flame graphs.
//!
//! ```text
//!   perf record -a -e cpu-clock -g ─▶ perf script ─▶ fold (stacks by component) ─▶ flame (one SVG each), report
//! ```
//!
//! All processes of the machine are sampled by a clock, since virtual machines have no counters for it, and their stacks
//! walked by frame pointers, which only the binaries of profile `profiling` keep.

mod flame;
mod fold;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};

use self::fold::Folded;
use crate::bed::{self, Bed};
use crate::mode::Mode;
use crate::options::BenchOptions;
use crate::report::document::{Section, Table};
use crate::results::Results;
use crate::run;
use crate::work::{WORKS, Work};

/// What is recorded unless works are named.
const WORKS_RECORDED: [&str; 3] = ["http32", "bulk1", "connect"];
/// Samples a second and core; no divisor of what else happens regularly.
const FREQUENCY: &str = "997";
/// Rows of the report for one component.
const TOP: usize = 12;
/// What the linker leaves in binaries that know their functions' names.
const SYMBOLS: &[u8] = b".symtab\0";
const HOW: &str =
    "`make bench BENCH_ARGS=--profile` builds the binaries with symbols and frame pointers, and measures with them";

/// Records what the options choose, and writes the graphs into `out`.
pub(crate) async fn measure(options: &BenchOptions, out: &Path) -> Result<Results> {
    let begin = Instant::now();
    fs::create_dir_all(out).with_context(|| format!("making {}", out.display()))?;
    let data = out.join("perf.data");
    options.bin.as_deref().map_or(Ok(()), bed::check_binaries)?;
    permitted(&data)?;
    symbols(options)?;
    forget(out)?;
    let works: Vec<&Work> = match options.works.as_slice() {
        [] => WORKS.iter().filter(|work| WORKS_RECORDED.contains(&work.id)).collect(),
        _ => run::chosen(options)?,
    };
    let mut results = Results::begin(options);
    for mode in run::modes(options).into_iter().filter(|mode| *mode != Mode::Waypoint) {
        let bed = match Bed::start(mode, options).await {
            Ok(bed) => bed,
            Err(error) => {
                println!("lab not up: {mode}: {error:#}");
                results.not_available.insert(mode, format!("{error:#}"));
                continue;
            }
        };
        results.modes.push(mode);
        for work in works.iter().filter(|work| work.suits(mode) && !work.is_fresh()) {
            match record(&bed, work, options, &data).await {
                Ok(folded) => {
                    let name = format!("{mode}-{}", work.id);
                    write(&folded, out, &name, &format!("{}: {}", mode.title(), work.title))?;
                    println!("  {name}: {}", shares(&folded));
                    results.sections.push(section(&folded, mode, work));
                }
                Err(error) => results.failures.push(format!("profile of {} {mode}: {error:#}", work.id)),
            }
        }
        bed.stop().await?;
    }
    results.seconds = begin.elapsed().as_secs_f64();
    Ok(results)
}

/// Fails with the reason where perf is missing or may not record.
fn permitted(data: &Path) -> Result<()> {
    let tried = Command::new("perf")
        .args(["record", "-q", "-a", "-e", "cpu-clock", "-g", "-o"])
        .arg(data)
        .args(["--", "true"])
        .stdin(Stdio::null())
        .output();
    match tried {
        Ok(output) if output.status.success() => Ok(fs::remove_file(data)?),
        Ok(output) => {
            let said = String::from_utf8_lossy(&output.stderr);
            let why = said.lines().map(str::trim).filter(|line| !line.is_empty()).take(3).collect::<Vec<_>>().join(" ");
            bail!("no profile: this machine does not let perf record (kernel.perf_event_paranoid? a container?): {why}")
        }
        Err(error) => bail!("no profile: perf cannot be run ({error}): Debian has it in `linux-perf`"),
    }
}

/// Removes an earlier run's graphs: they would stand beside a report that does not speak of them.
fn forget(out: &Path) -> Result<()> {
    for entry in fs::read_dir(out).with_context(|| format!("reading {}", out.display()))? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "svg" || ending == "folded") {
            fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// Fails unless the proxy's functions have names.
fn symbols(options: &BenchOptions) -> Result<()> {
    let beside = || std::env::current_exe().ok().and_then(|own| own.parent().map(Path::to_owned));
    let folder = options.bin.clone().or_else(beside).context("finding the running binary")?;
    let ztunnel = folder.join("ztunnel");
    let bytes = fs::read(&ztunnel).with_context(|| format!("reading {}", ztunnel.display()))?;
    let named = bytes.windows(SYMBOLS.len()).any(|part| part == SYMBOLS);
    ensure!(named, "no profile: {} has no symbols; {HOW}", ztunnel.display());
    Ok(())
}

/// One run of the work with perf beside it.
async fn record(bed: &Bed, work: &Work, options: &BenchOptions, data: &Path) -> Result<Folded> {
    let seconds = options.seconds().to_string();
    let mut perf = Command::new("perf")
        .args(["record", "-q", "-a", "-e", "cpu-clock", "-F", FREQUENCY, "-g", "-o"])
        .arg(data)
        .args(["--", "sleep", &seconds])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .context("starting perf")?;
    let done = run::once(bed, work, options, 0).await;
    let ended = perf.wait().context("waiting for perf")?;
    let sample = done?;
    ensure!(ended.success(), "perf ended with {ended}");
    println!("  {:<13} {}", bed.mode, run::line(&sample, work.primary()));
    // While the processes live: their files are named in their own mounts.
    let output = Command::new("perf")
        .args(["script", "-F", "comm,pid,tid,ip,sym", "--show-task-events", "-i"])
        .arg(data)
        .stdin(Stdio::null())
        .output()
        .context("reading what perf recorded")?;
    fs::remove_file(data).with_context(|| format!("removing {}", data.display()))?;
    ensure!(output.status.success(), "perf script: {}", String::from_utf8_lossy(&output.stderr).trim());
    let mut names: BTreeMap<u32, Option<String>> = BTreeMap::new();
    let name = |pid: u32| names.entry(pid).or_insert_with(|| program(pid)).clone();
    let folded = fold::fold(&String::from_utf8_lossy(&output.stdout), name);
    ensure!(!folded.is_empty(), "perf took no samples");
    Ok(folded)
}

/// The name of the file that a process runs. One that has ended has none, nor has the kernel.
fn program(pid: u32) -> Option<String> {
    let file: PathBuf = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
    Some(file.file_name()?.to_string_lossy().trim_end_matches(" (deleted)").to_owned())
}

/// An SVG and the folded stacks of each component.
fn write(folded: &Folded, out: &Path, name: &str, title: &str) -> Result<()> {
    for (component, stacks) in folded.components() {
        // A thread may be called anything.
        let plain = component.replace(|letter: char| !letter.is_ascii_alphanumeric() && letter != '-', "_");
        let file = |ending: &str| out.join(format!("{name}-{plain}.{ending}"));
        let lines: String = stacks.iter().map(|(stack, count)| format!("{} {count}\n", stack.join(";"))).collect();
        let svg = flame::svg(&format!("{title}: {component}"), stacks);
        for (path, text) in [(file("svg"), svg), (file("folded"), lines)] {
            fs::write(&path, text).with_context(|| format!("writing {}", path.display()))?;
        }
    }
    Ok(())
}

fn shares(folded: &Folded) -> String {
    let parts = folded.shares().into_iter().filter(|(_, share)| *share >= 0.01);
    parts.map(|(component, share)| format!("{component} {:.0} %", 100.0 * share)).collect::<Vec<_>>().join(", ")
}

fn section(folded: &Folded, mode: Mode, work: &Work) -> Section {
    let mut by_component = Table::new(["component", "of all CPU, %", "of it in the kernel, %"]);
    for (component, share) in folded.shares() {
        by_component.row([
            component.to_owned(),
            format!("{:.1}", 100.0 * share),
            format!("{:.0}", 100.0 * folded.in_kernel(component)),
        ]);
    }
    let mut section = Section::new(format!("{}: {}", mode.name(), work.title)).table(by_component);
    for proxy in ["ztunnel", "envoy"] {
        let mut top = Table::new([&format!("{proxy}: function"), "alone, %", "with what it calls, %"]);
        for (function, alone, whole) in folded.functions(proxy).into_iter().take(TOP) {
            top.row([function, format!("{:.1}", 100.0 * alone), format!("{:.1}", 100.0 * whole)]);
        }
        section = section.table(top);
    }
    section
}
