//! Breaks the lines of `tests/mutants.toml` one by one and expects the named tests to fail.
//!
//! ```text
//! tree ── what git knows and does not ignore ──▶ <target>/mutants/tree     with a target folder of its own
//!   1. each named test passes as the tree is, and runs at least one test
//!   2. per mutant: change the line, build, run the test: it must fail; put the line back
//! ```
//! With arguments: only the mutants of these names.

#![allow(clippy::disallowed_methods)] // a tool of the developer's, not of the product: it reads the environment

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Output};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use aquifer_tests::mutants::{Mutant, read, root};

/// A mutant may make a test wait for ever, which is noticed as well.
const PATIENCE: Duration = Duration::from_secs(300);
/// What `timeout` exits with when it had to end the command.
const TIMED_OUT: i32 = 124;

fn main() -> Result<ExitCode> {
    let root = root().canonicalize()?;
    let only: BTreeSet<String> = std::env::args().skip(1).collect();
    let mut mutants = read(&root)?;
    ensure!(only.iter().all(|name| mutants.iter().any(|m| m.name == *name)), "no mutant of that name: {only:?}");
    mutants.retain(|mutant| only.is_empty() || only.contains(&mutant.name));

    let bench = Bench::new(&root)?;
    bench.copy_tree(&root)?;
    let tests: BTreeSet<&str> = mutants.iter().map(|mutant| &*mutant.test).collect();
    let sound: BTreeMap<&str, Result<()>> = tests.iter().map(|test| (*test, bench.passes(test))).collect();
    for (test, error) in sound.iter().filter_map(|(test, sound)| Some((test, sound.as_ref().err()?))) {
        println!("cargo test {test}: without any mutant it {error}");
    }

    let width = mutants.iter().map(|mutant| mutant.name.len()).max().unwrap_or(0);
    let (mut passed, mut failed) = (0, 0);
    for mutant in &mutants {
        let begin = Instant::now();
        let outcome = match &sound[&*mutant.test] {
            Ok(()) => bench.noticed(mutant),
            Err(_) => Err(anyhow!("its test does not pass without it")),
        };
        let (verdict, by) = match &outcome {
            Ok(by) => ("noticed", by.clone()),
            Err(error) => ("FAILED", format!("{error:#}")),
        };
        *(if outcome.is_ok() { &mut passed } else { &mut failed }) += 1;
        println!("{:width$}  {verdict:7}  {:>4} s  {by}", mutant.name, begin.elapsed().as_secs());
    }
    println!("mutants result: {passed} passed, {failed} failed");
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A copy of the tree to break, and what it is built into.
struct Bench {
    tree: PathBuf,
    target: PathBuf,
}

impl Bench {
    fn new(root: &Path) -> Result<Self> {
        let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
        let home = target.join("mutants");
        fs::create_dir_all(home.join("tree"))?;
        let home = home.canonicalize()?;
        Ok(Self { tree: home.join("tree"), target: home.join("target") })
    }

    /// Brings the copy up to date. Files that are the same stay untouched: cargo goes by their times.
    fn copy_tree(&self, root: &Path) -> Result<()> {
        let git = ["ls-files", "--cached", "--others", "--exclude-standard", "-z"];
        let listed = Command::new("git").args(git).current_dir(root).output().context("git ls-files")?;
        ensure!(listed.status.success(), "git ls-files: {}", String::from_utf8_lossy(&listed.stderr));
        let mut wanted = BTreeMap::new();
        for name in String::from_utf8(listed.stdout)?.split_terminator('\0') {
            // Listed and deleted since: a change that is not committed yet.
            if let Ok(content) = fs::read(root.join(name)) {
                wanted.insert(self.tree.join(name), (content, fs::metadata(root.join(name))?.permissions()));
            }
        }
        for stale in files(&self.tree)?.into_iter().filter(|path| !wanted.contains_key(path)) {
            fs::remove_file(stale)?;
        }
        for (path, (content, permissions)) in wanted {
            if fs::read(&path).is_ok_and(|old| old == content) {
                continue;
            }
            fs::create_dir_all(path.parent().context("a folder")?)?;
            fs::write(&path, content)?;
            fs::set_permissions(&path, permissions)?;
        }
        Ok(())
    }

    fn cargo_test(&self, test: &str, build_only: bool) -> Result<Output> {
        let mut command = Command::new("timeout");
        // Only the tests are waited for with impatience; a build may have a machine to share.
        let patience = if build_only { 3600 } else { PATIENCE.as_secs() };
        command.arg(patience.to_string()).args(["cargo", "test", "--quiet"]).args(test.split_whitespace());
        if build_only {
            command.arg("--no-run");
        }
        let output = command
            .current_dir(&self.tree)
            .env("CARGO_TARGET_DIR", &self.target)
            // Half the time and a quarter of the space; nobody debugs a mutant.
            .env("CARGO_PROFILE_DEV_DEBUG", "0")
            .env("CARGO_TERM_COLOR", "never")
            // Property tests remember what failed; that is the mutant's fault.
            .env("PROPTEST_FAILURE_PERSISTENCE", "off")
            .output();
        output.context("cargo test")
    }

    fn passes(&self, test: &str) -> Result<()> {
        let built = self.cargo_test(test, true)?;
        ensure!(built.status.success(), "does not build:\n{}", String::from_utf8_lossy(&built.stderr));
        let output = self.cargo_test(test, false)?;
        let said = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "fails:\n{said}{}", String::from_utf8_lossy(&output.stderr));
        ensure!(said.contains("test result: ok. ") && !said.contains("ok. 0 passed"), "runs no test:\n{said}");
        Ok(())
    }

    /// Which test noticed.
    fn noticed(&self, mutant: &Mutant) -> Result<String> {
        let path = self.tree.join(&mutant.file);
        let (text, changed) = mutant.texts(&self.tree)?;
        fs::write(&path, changed)?;
        let outcome = self.try_out(mutant);
        fs::write(&path, text)?;
        outcome
    }

    fn try_out(&self, mutant: &Mutant) -> Result<String> {
        let built = self.cargo_test(&mutant.test, true)?;
        if !built.status.success() {
            let said = String::from_utf8_lossy(&built.stderr);
            bail!("does not build: {}", said.lines().find(|line| line.starts_with("error")).unwrap_or(&said));
        }
        let output = self.cargo_test(&mutant.test, false)?;
        if output.status.code() == Some(TIMED_OUT) {
            return Ok(format!("no end within {PATIENCE:?}"));
        }
        ensure!(!output.status.success(), "cargo test {} passes with {:?}", mutant.test, mutant.replace);
        let said = String::from_utf8_lossy(&output.stdout);
        let failures = said.rsplit("\nfailures:\n").next().unwrap_or_default();
        let names: Vec<&str> = failures.lines().map_while(|line| line.strip_prefix("    ")).collect();
        ensure!(!names.is_empty(), "cargo test {} ended without a failing test:\n{said}", mutant.test);
        Ok(match names[..] {
            [one] => one.to_owned(),
            [first, ..] => format!("{first} and {} more", names.len() - 1),
            [] => String::new(),
        })
    }
}

/// All files below a folder.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        if entry.file_type()?.is_dir() {
            found.extend(files(&entry.path())?);
        } else {
            found.push(entry.path());
        }
    }
    Ok(found)
}
