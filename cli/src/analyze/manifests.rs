//! Manifests from files, folders and standard input.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aquifer_istiod_lite::analyze::Code;
use aquifer_lab::manifest_files;
use aquifer_objects::parse::{Unread, parse_each};
use aquifer_objects::{Object, ObjectKey};

use super::Line;

/// Where an object stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) file: PathBuf,
    /// Counted from 1; 0 if unknown.
    pub(super) line: usize,
}

/// What was read.
#[derive(Debug, Default)]
pub(super) struct Read {
    pub(super) objects: Vec<Object>,
    pub(super) places: BTreeMap<ObjectKey, Place>,
    pub(super) wrong: Vec<Line>,
    /// Kinds that the mesh doesn't read, and how many there are of each.
    pub(super) foreign: BTreeMap<String, usize>,
}

pub(super) fn read(paths: &[PathBuf]) -> Result<Read> {
    let mut read = Read::default();
    for path in paths {
        if path == Path::new("-") {
            let mut text = String::new();
            std::io::stdin().read_to_string(&mut text).context("reading standard input")?;
            read.take(Path::new("(standard input)"), &text);
            continue;
        }
        for file in manifest_files(path)? {
            let text = std::fs::read_to_string(&file).with_context(|| format!("reading {}", file.display()))?;
            read.take(&file, &text);
        }
    }
    Ok(read)
}

impl Read {
    pub(super) fn take(&mut self, file: &Path, text: &str) {
        for found in parse_each(file, text) {
            match found.object {
                Ok(object) => {
                    let key = object.key();
                    // As with kubectl: what is applied last stays.
                    if self.places.contains_key(&key) {
                        self.objects.retain(|known| known.key() != key);
                    }
                    self.places.insert(key, Place { file: file.to_owned(), line: found.line });
                    self.objects.push(object);
                }
                Err(Unread::Foreign { api_version, kind }) => {
                    *self.foreign.entry(format!("{kind} ({api_version})")).or_default() += 1;
                }
                Err(Unread::Wrong(error)) => {
                    let line = if error.line == 0 { found.line } else { error.line };
                    let field = if error.field.is_empty() { String::new() } else { format!("{}: ", error.field) };
                    self.wrong.push(Line {
                        code: Code::manifest_invalid(),
                        object: None,
                        place: Some(Place { file: file.to_owned(), line }),
                        message: format!("{field}{}", error.message),
                    });
                }
            }
        }
    }
}
