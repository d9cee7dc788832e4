//! Manifests from files, folders and standard input.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Result;
use aquifer_istiod_lite::analyze::{Code, Workload};
use aquifer_objects::parse::{Unread, parse_each};
use aquifer_objects::{Object, ObjectKey};

use super::{Line, files};

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
    /// Files without any object.
    pub(super) empty: Vec<PathBuf>,
    /// What pods are made of, by what names it.
    workloads: BTreeMap<(String, String, String), Workload>,
}

pub(super) fn read(paths: &[PathBuf]) -> Result<Read> {
    let mut read = Read::default();
    for path in paths {
        for file in files::manifests(path)? {
            match files::text(&file)? {
                Ok(text) => read.take(&file, &text),
                Err(message) => read.refuse(&file, 0, message),
            }
        }
    }
    Ok(read)
}

impl Read {
    pub(super) fn take(&mut self, file: &Path, text: &str) {
        let found = parse_each(file, text);
        if found.is_empty() {
            self.empty.push(file.to_owned());
        }
        for found in found {
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
                Err(Unread::Foreign { api_version, kind, value }) => match Workload::read(&value) {
                    Some(Ok(workload)) => {
                        let (kind, namespace, name) = workload.key();
                        let key = (kind.to_owned(), namespace.to_owned(), name.to_owned());
                        self.workloads.insert(key, workload);
                    }
                    Some(Err(wrong)) => self.refuse(file, found.line, about(&wrong.path, &wrong.message)),
                    None => *self.foreign.entry(format!("{kind} ({api_version})")).or_default() += 1,
                },
                Err(Unread::Wrong(error)) => {
                    let line = if error.line == 0 { found.line } else { error.line };
                    self.refuse(file, line, about(&error.field, &error.message));
                }
            }
        }
    }

    /// What makes pods.
    pub(super) fn workloads(&self) -> Vec<Workload> {
        self.workloads.values().cloned().collect()
    }

    fn refuse(&mut self, file: &Path, line: usize, message: String) {
        let place = Some(Place { file: file.to_owned(), line });
        self.wrong.push(Line { code: Code::manifest_invalid(), object: None, place, message });
    }
}

fn about(field: &str, message: &str) -> String {
    if field.is_empty() { message.to_owned() } else { format!("{field}: {message}") }
}
