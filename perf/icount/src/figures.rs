//! The file of figures: what was counted last, by which tools, and how much more is too much.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Deserialize;

/// The file.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Figures {
    /// More than this above the last figure is a regression.
    pub(crate) tolerance_percent: f64,
    /// What counted.
    pub(crate) tools: Tools,
    /// By benchmark: instructions of one round.
    pub(crate) instructions: BTreeMap<String, u64>,
}

/// What decides about counts beside the code.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Tools {
    pub(crate) rustc: String,
    pub(crate) valgrind: String,
    pub(crate) arch: String,
}

impl Figures {
    pub(crate) fn read(path: &Path) -> Result<Self> {
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("reading {}: write it with `make icount UPDATE=1`", path.display()))?;
        toml::from_str(&text).with_context(|| format!("{} is not a file of figures", path.display()))
    }

    pub(crate) fn write(&self, path: &Path) -> Result<()> {
        std::fs::write(path, self.text()).with_context(|| format!("writing {}", path.display()))
    }

    fn text(&self) -> String {
        let Tools { rustc, valgrind, arch } = &self.tools;
        let mut text = format!(
            "# Instructions of one round of each benchmark, profile `demo`. `make icount` compares, `make icount UPDATE=1` writes.\n\
             tolerance_percent = {:?}\n\n[tools]\nrustc = {rustc:?}\nvalgrind = {valgrind:?}\narch = {arch:?}\n\n\
             [instructions]\n",
            self.tolerance_percent
        );
        for (name, count) in &self.instructions {
            let _ = writeln!(text, "{name} = {count}");
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_back() {
        let tools = Tools { rustc: "rustc 1.0 (x \"y\")".into(), valgrind: "valgrind-3".into(), arch: "x86_64".into() };
        let instructions = [("b_1".to_owned(), 12), ("a".to_owned(), 3)].into();
        let figures = Figures { tolerance_percent: 5.0, tools, instructions };
        let file = tempfile::NamedTempFile::new().unwrap();
        figures.write(file.path()).unwrap();
        assert_eq!(Figures::read(file.path()).unwrap(), figures);
    }

    #[test]
    fn the_kept_figures_are_those_of_the_benchmarks() {
        let kept = Figures::read(Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/figures.toml"))).unwrap();
        let names: Vec<_> = kept.instructions.keys().map(String::as_str).collect();
        let mut benches: Vec<_> = crate::benches::ALL.iter().map(|(name, _)| *name).collect();
        benches.sort_unstable();
        assert_eq!(names, benches);
    }
}
