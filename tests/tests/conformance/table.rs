//! `tests/conformance.toml`: each statement of the contract has a test, and each test that it names exists.
//!
//! A test is named `module::function` of this binary, or `folder::path::function` of a package: `cni::rules::f`,
//! `core::inbound::tests::f` (crates/core), `tests::lab::mtls::f` (tests/tests/lab).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Table {
    statement: Vec<Statement>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Statement {
    id: String,
    says: String,
    test: Tests,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Tests {
    One(String),
    Many(Vec<String>),
}

impl Statement {
    fn tests(&self) -> &[String] {
        match &self.test {
            Tests::One(test) => std::slice::from_ref(test),
            Tests::Many(tests) => tests,
        }
    }
}

const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The folders of sources by the name that a statement gives them.
fn packages() -> Result<BTreeMap<String, PathBuf>> {
    let root = Path::new(ROOT);
    let mut packages: BTreeMap<String, PathBuf> = BTreeMap::new();
    for name in ["ztunnel", "cni", "istiod-lite", "cli", "proto"] {
        packages.insert(name.to_owned(), root.join(name));
    }
    for entry in fs::read_dir(root.join("crates"))? {
        let entry = entry?;
        packages.insert(entry.file_name().to_string_lossy().into_owned(), entry.path());
    }
    packages.insert("tests".to_owned(), root.join("tests/tests"));
    Ok(packages)
}

fn sources(folder: &Path, into: &mut Vec<PathBuf>) -> Result<()> {
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, into)?;
        } else if path.extension().is_some_and(|ext| ext == "rs") {
            into.push(path);
        }
    }
    Ok(())
}

/// The names of the test functions of a source; those that a `cfg` leaves out are none.
fn tests_in(source: &str) -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    let (mut test, mut left_out) = (false, false);
    for line in source.lines().map(str::trim) {
        if line.starts_with("#[") {
            test |= line.starts_with("#[test]") || line.starts_with("#[tokio::test");
            left_out |= line.starts_with("#[cfg(any())]") || line.starts_with("#[ignore");
        } else if let Some(at) = line.find("fn ").filter(|_| test) {
            let name: String = line[at + 3..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
            if !left_out {
                names.insert(name);
            }
            (test, left_out) = (false, false);
        } else if !line.starts_with("//") {
            (test, left_out) = (false, false);
        }
    }
    names
}

/// Whether the modules (`proxy::tests`) may stand for the file (`src/proxy/tests.rs`, or `src/proxy.rs` with an inner
/// `mod tests`).
fn stands_for(modules: &[&str], file: &Path) -> bool {
    let file = file.with_extension("");
    let mut parts: Vec<&str> = file.iter().filter_map(|part| part.to_str()).collect();
    parts.retain(|part| !matches!(*part, "src" | "tests" | "main" | "lib" | "mod"));
    let modules: Vec<&str> = modules.iter().copied().filter(|module| *module != "tests").collect();
    parts == modules
}

#[test]
fn every_statement_has_a_test_that_exists() -> Result<()> {
    let text = fs::read_to_string(Path::new(ROOT).join("tests/conformance.toml"))?;
    let table: Table = toml::from_str(&text)?;
    let packages = packages()?;
    let mut faults = Vec::new();
    let mut ids = BTreeSet::new();
    let mut files: BTreeMap<&str, Vec<(PathBuf, BTreeSet<String>)>> = BTreeMap::new();
    for statement in &table.statement {
        if !ids.insert(statement.id.as_str()) {
            faults.push(format!("{}: twice in the table", statement.id));
        }
        if statement.says.trim().is_empty() || statement.tests().is_empty() {
            faults.push(format!("{}: says nothing, or has no test", statement.id));
        }
        for test in statement.tests() {
            let parts: Vec<&str> = test.split("::").collect();
            let (name, path) = parts.split_last().context("a name")?;
            let package = path.first().filter(|first| packages.contains_key(**first)).copied();
            // `dns` and `zds` are modules here; a package's tests are named by two parts before the function or more.
            let (package, modules) = match package {
                Some(package) if path.len() > 1 => (package, path[1..].to_vec()),
                _ => ("tests", [&["conformance"], path].concat()),
            };
            if !files.contains_key(package) {
                let folder = &packages[package];
                let mut found = Vec::new();
                if package == "tests" {
                    sources(folder, &mut found)?;
                } else {
                    for part in ["src", "tests"].map(|part| folder.join(part)).iter().filter(|part| part.is_dir()) {
                        sources(part, &mut found)?;
                    }
                }
                let read = |file: PathBuf| -> Result<(PathBuf, BTreeSet<String>)> {
                    let names = tests_in(&fs::read_to_string(&file)?);
                    Ok((file.strip_prefix(folder)?.to_owned(), names))
                };
                files.insert(package, found.into_iter().map(read).collect::<Result<_>>()?);
            }
            let exists = files[package].iter().any(|(file, names)| names.contains(*name) && stands_for(&modules, file));
            if !exists {
                faults.push(format!("{}: there is no test {test}", statement.id));
            }
        }
    }
    ensure!(faults.is_empty(), "tests/conformance.toml:\n{}", faults.join("\n"));
    ensure!(ids.len() > 150, "{} statements", ids.len());
    Ok(())
}

#[test]
fn tests_are_found_as_they_are_written() {
    let source = "#[test]\nfn one() {}\n#[tokio::test(flavor = \"multi_thread\")]\nasync fn two() {}\n\
                  #[cfg(any())]\n#[test]\nfn three() {}\nfn four() {}\n#[test]\n// why\n#[allow(x)]\npub(crate) fn five() {}\n";
    assert_eq!(tests_in(source).into_iter().collect::<Vec<_>>(), ["five", "one", "two"]);
    assert!(stands_for(&["proxy", "tests"], Path::new("src/proxy/tests.rs")));
    assert!(stands_for(&["kernel", "table"], Path::new("tests/kernel/table.rs")));
    assert!(!stands_for(&["proxy"], Path::new("src/proxy/other.rs")));
}
