//! Counts every benchmark and sets the counts beside the last figures.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::benches;
use crate::figures::{Figures, Tools};
use crate::meter::{COUNTED, ROUNDS};

/// What a new file of figures tolerates.
const TOLERANCE_PERCENT: f64 = 5.0;

/// Prints the comparison. False when there is a regression; with `update` the new counts become the figures.
///
/// # Errors
/// When valgrind cannot be run, or there are no figures to compare with.
pub(crate) fn run(path: &Path, update: bool) -> Result<bool> {
    let kept = match Figures::read(path) {
        Err(_) if update => None,
        kept => Some(kept?),
    };
    let tools = tools()?;
    let mut now = BTreeMap::new();
    for (name, _) in benches::ALL {
        now.insert((*name).to_owned(), count(name).with_context(|| format!("counting {name}"))?);
    }
    let tolerance_percent = kept.as_ref().map_or(TOLERANCE_PERCENT, |kept| kept.tolerance_percent);
    let before = kept.as_ref().map(|kept| kept.instructions.clone()).unwrap_or_default();
    let comparison = compare(&before, &now, tolerance_percent);
    print!("{}", comparison.table);
    if let Some(kept) = kept.filter(|kept| kept.tools != tools) {
        println!(
            "\nThe figures are by other tools ({:?}) than these ({tools:?}): compare with the former code here.",
            kept.tools
        );
    }
    if update {
        Figures { tolerance_percent, tools, instructions: now }.write(path)?;
        println!("\nwritten: {}", path.display());
        return Ok(true);
    }
    for complaint in &comparison.complaints {
        println!("{complaint}");
    }
    Ok(comparison.complaints.is_empty())
}

struct Comparison {
    table: String,
    complaints: Vec<String>,
}

fn compare(before: &BTreeMap<String, u64>, now: &BTreeMap<String, u64>, tolerance_percent: f64) -> Comparison {
    let mut table = format!("{:<28} {:>12} {:>12} {:>9}\n", "instructions per round", "before", "now", "change");
    let mut complaints = Vec::new();
    for (name, now) in now {
        let Some(before) = before.get(name) else {
            let _ = writeln!(table, "{name:<28} {:>12} {now:>12} {:>9}", "-", "new");
            complaints.push(format!("{name} has no figure yet: `make icount UPDATE=1`"));
            continue;
        };
        let change = (*now as f64 / *before as f64 - 1.0) * 100.0;
        let _ = writeln!(table, "{name:<28} {before:>12} {now:>12} {change:>+8.2}%");
        if *now as f64 * 100.0 > *before as f64 * (100.0 + tolerance_percent) {
            complaints.push(format!(
                "{name} takes {change:.2} % more instructions than before, {tolerance_percent} % are tolerated: make it \
                 cheaper, or say in the commit why it must cost more and run `make icount UPDATE=1`"
            ));
        }
    }
    for name in before.keys().filter(|name| !now.contains_key(*name)) {
        complaints.push(format!("{name} has a figure and no benchmark: `make icount UPDATE=1`"));
    }
    Comparison { table, complaints }
}

/// Instructions of one round.
fn count(name: &str) -> Result<u64> {
    // Arguments and environment lie on the stack: their length moves what lies below, and memcpy takes other branches by
    // alignment. A path of always the same length and no environment leave it where it is.
    let folder = tempfile::tempdir_in("/tmp").context("making a folder for callgrind")?;
    let (out, program) = (folder.path().join("callgrind.out"), folder.path().join("icount"));
    let this = std::env::current_exe().context("finding this program")?;
    std::os::unix::fs::symlink(&this, &program).context("linking to this program")?;
    let run = Command::new("valgrind")
        .args(["--tool=callgrind", "--collect-atstart=no", &format!("--toggle-collect={COUNTED}")])
        .arg(format!("--callgrind-out-file={}", out.display()))
        .arg(&program)
        .args(["--bench", name])
        .env_clear()
        .output()
        .context("running valgrind: install the package valgrind")?;
    ensure!(run.status.success(), "valgrind: {}", String::from_utf8_lossy(&run.stderr).trim_end());
    let text = std::fs::read_to_string(&out).context("reading what callgrind wrote")?;
    let total = total(&text).context("callgrind counted nothing: is the program stripped of its symbols?")?;
    Ok(total / ROUNDS)
}

fn total(callgrind_out: &str) -> Option<u64> {
    let line = callgrind_out.lines().find_map(|line| line.strip_prefix("summary: "))?;
    line.trim().parse().ok().filter(|total| *total > 0)
}

fn tools() -> Result<Tools> {
    let version = |program: &str| {
        let run = Command::new(program)
            .arg("--version")
            .output()
            .with_context(|| format!("running {program}: install it"))?;
        if !run.status.success() {
            bail!("{program} --version: {}", String::from_utf8_lossy(&run.stderr).trim_end());
        }
        Ok(String::from_utf8_lossy(&run.stdout).trim().to_owned())
    };
    Ok(Tools { rustc: version("rustc")?, valgrind: version("valgrind")?, arch: std::env::consts::ARCH.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(of: &[(&str, u64)]) -> BTreeMap<String, u64> {
        of.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
    }

    #[test]
    fn more_than_tolerated_is_a_regression_and_less_is_none() {
        let check = |before: &[_], now: &[_]| compare(&figures(before), &figures(now), 5.0).complaints.join("\n");
        assert_eq!(check(&[("a", 1000), ("b", 1000)], &[("a", 1050), ("b", 10)]), "");
        assert!(check(&[("a", 1000)], &[("a", 1051)]).starts_with("a takes 5.10 % more instructions than before"));
        assert!(check(&[], &[("a", 1)]).starts_with("a has no figure yet"));
        assert!(check(&[("a", 1)], &[]).starts_with("a has a figure and no benchmark"));
    }

    #[test]
    fn the_total_is_read_from_what_callgrind_writes() {
        assert_eq!(total("version: 1\nevents: Ir\nsummary: 1234\n\nfn=x\n"), Some(1234));
        assert_eq!(total("summary: 0\n"), None);
    }
}
