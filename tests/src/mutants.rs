//! `tests/mutants.toml`: lines of the product, each with a change that a test must notice.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// Where the list lies, from the root of the tree.
pub const LIST: &str = "tests/mutants.toml";

/// One change, and the test that must fail with it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Mutant {
    /// What breaks, in a few words joined by dashes.
    pub name: String,
    /// From the root of the tree.
    pub file: PathBuf,
    /// A text that occurs once in the file.
    pub find: String,
    /// What stands there instead.
    pub replace: String,
    /// What follows `cargo test`: a package, and a filter.
    pub test: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    mutant: Vec<Mutant>,
}

/// A list, or an entry of it, that cannot be used.
#[derive(Debug)]
pub struct Unusable(String);

impl fmt::Display for Unusable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Unusable {}

/// The root of the tree that these tests belong to.
#[must_use]
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

/// Reads the list of a tree.
pub fn read(root: &Path) -> Result<Vec<Mutant>, Unusable> {
    let fault = |error: &dyn fmt::Display| Unusable(format!("{LIST}: {error}"));
    let text = std::fs::read_to_string(root.join(LIST)).map_err(|e| fault(&e))?;
    let list: List = toml::from_str(&text).map_err(|e| fault(&e))?;
    Ok(list.mutant)
}

impl Mutant {
    /// The file as it is, and as the mutant has it.
    pub fn texts(&self, root: &Path) -> Result<(String, String), Unusable> {
        let fault = |what: &dyn fmt::Display| Unusable(format!("{}: {}: {what}", self.name, self.file.display()));
        let text = std::fs::read_to_string(root.join(&self.file)).map_err(|e| fault(&e))?;
        match text.matches(&self.find).count() {
            1 => {}
            count => return Err(fault(&format_args!("{:?} occurs {count} times, not once", self.find))),
        }
        if self.find == self.replace {
            return Err(fault(&"nothing is changed"));
        }
        let changed = text.replacen(&self.find, &self.replace, 1);
        Ok((text, changed))
    }
}
