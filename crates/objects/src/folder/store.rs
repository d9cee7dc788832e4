//! What is in the files, and the objects that they make. Synchronous; who calls it decides when to look.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::{Place, is_manifest_file, merge, place};
use crate::Event;
use crate::kinds::{Kind, Object, ObjectKey};
use crate::parse::{self, ManifestError};

/// The files of a folder and the objects of some kinds in them.
#[derive(Debug)]
pub(super) struct Store {
    root: PathBuf,
    kinds: BTreeSet<Kind>,
    /// What each good file holds.
    files: BTreeMap<PathBuf, Vec<(ObjectKey, Origin)>>,
    /// The parts of each object.
    parts: BTreeMap<ObjectKey, BTreeMap<Origin, Value>>,
    /// What was last sent, with the hash of its content.
    sent: BTreeMap<ObjectKey, (u64, Object)>,
    dirty: BTreeSet<ObjectKey>,
    /// What could not be read, by file; and which objects could not be made.
    bad_files: BTreeMap<PathBuf, ManifestError>,
    bad_objects: BTreeMap<ObjectKey, ManifestError>,
}

/// Where a part comes from, in the order in which parts are laid over each other.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Origin {
    Manifest(PathBuf, usize),
    Managed(String, PathBuf),
}

impl Origin {
    fn path(&self) -> &Path {
        match self {
            Self::Manifest(path, _) | Self::Managed(_, path) => path,
        }
    }
}

impl Store {
    pub(super) fn new(root: PathBuf, kinds: &[Kind]) -> Self {
        Self {
            root,
            kinds: kinds.iter().copied().collect(),
            files: BTreeMap::new(),
            parts: BTreeMap::new(),
            sent: BTreeMap::new(),
            dirty: BTreeSet::new(),
            bad_files: BTreeMap::new(),
            bad_objects: BTreeMap::new(),
        }
    }

    /// The objects as last sent, by key.
    pub(super) fn objects(&self) -> impl Iterator<Item = &Object> {
        self.sent.values().map(|(_, object)| object)
    }

    /// What cannot be read at present.
    pub(super) fn problems(&self) -> impl Iterator<Item = &ManifestError> {
        self.bad_files.values().chain(self.bad_objects.values())
    }

    /// Looks at a path again: a file, or a folder and everything below it. `enter` is called with each folder
    /// *before* it is listed, so that a watch laid there misses nothing.
    pub(super) fn refresh(&mut self, path: &Path, enter: &mut dyn FnMut(&Path)) {
        let Ok(relative) = path.strip_prefix(&self.root) else {
            return;
        };
        let place = place(relative);
        let of_interest = match &place {
            Place::Manifest | Place::ManagedFolder(None) => true,
            Place::ManagedFolder(Some(kind)) | Place::Managed { kind, .. } => self.kinds.contains(kind),
            Place::Ignored => false,
        };
        if !of_interest {
            return;
        }
        if path.is_dir() {
            enter(path);
            let mut below = BTreeSet::new();
            for entry in fs::read_dir(path).into_iter().flatten().flatten() {
                let child = entry.path();
                self.refresh(&child, enter);
                below.insert(child);
            }
            let gone = |known: &&PathBuf| {
                known
                    .strip_prefix(path)
                    .is_ok_and(|rest| rest.iter().next().is_none_or(|first| !below.contains(&path.join(first))))
            };
            let gone: Vec<PathBuf> = self.known().filter(gone).cloned().collect();
            gone.iter().for_each(|path| self.forget(path));
            return;
        }
        let read = if is_manifest_file(path) { fs::read_to_string(path) } else { Err(io::ErrorKind::NotFound.into()) };
        let text = match read {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound || error.kind() == io::ErrorKind::NotADirectory => {
                let gone: Vec<PathBuf> = self.known().filter(|known| known.starts_with(path)).cloned().collect();
                gone.iter().for_each(|path| self.forget(path));
                return;
            }
            Err(error) => {
                let message = format!("cannot be read: {error}");
                self.refuse(ManifestError { file: path.to_owned(), line: 0, field: String::new(), message });
                return;
            }
        };
        let parts = match place {
            Place::Managed { manager, kind, namespace, name } => {
                managed(path, &text, &manager, &ObjectKey::new(kind, &namespace, &name))
            }
            _ => self.manifests(path, &text),
        };
        match parts {
            Ok(parts) => self.replace(path, parts),
            Err(error) => self.refuse(error),
        }
    }

    /// What changed since the last call.
    pub(super) fn changes(&mut self) -> Vec<Event> {
        let mut events = Vec::new();
        for key in std::mem::take(&mut self.dirty) {
            match self.make(&key) {
                Ok(None) => {
                    self.judge(&key, None);
                    if self.sent.remove(&key).is_some() {
                        events.push(Event::Deleted(key));
                    }
                }
                Ok(Some((hash, object))) => {
                    self.judge(&key, self.duplicate(&key));
                    if self.sent.get(&key).is_none_or(|(sent, _)| *sent != hash) {
                        self.sent.insert(key, (hash, object.clone()));
                        events.push(Event::Applied(object));
                    }
                }
                Err(error) => self.judge(&key, Some(error)),
            }
        }
        events
    }

    fn make(&self, key: &ObjectKey) -> Result<Option<(u64, Object)>, ManifestError> {
        let Some(parts) = self.parts.get(key) else {
            return Ok(None);
        };
        let manifest = parts.iter().find(|(origin, _)| matches!(origin, Origin::Manifest(..)));
        let managed = parts.iter().filter(|(origin, _)| matches!(origin, Origin::Managed(..))).map(|(_, value)| value);
        let Some(mut merged) = merge::merge(manifest.map(|(_, value)| value), managed) else {
            return Ok(None);
        };
        let hash = merge::content_hash(&merged);
        merged["metadata"]["resourceVersion"] = format!("{hash:016x}").into();
        match parse::typed(key.kind, &merged) {
            Ok(object) => Ok(Some((hash, object))),
            Err((field, message)) => {
                // A manifest was checked when it was read: the fault is in the last part laid over it.
                let file = parts.keys().next_back().map(|origin| origin.path().to_owned()).unwrap_or_default();
                Err(ManifestError { file, line: 0, field, message })
            }
        }
    }

    /// That a second manifest holds the object, which does not count.
    fn duplicate(&self, key: &ObjectKey) -> Option<ManifestError> {
        let mut manifests = self.parts.get(key)?.keys().filter(|origin| matches!(origin, Origin::Manifest(..)));
        let (first, second) = (manifests.next()?, manifests.next()?);
        let message = format!("{key} stands in {} already, which counts", first.path().display());
        Some(ManifestError { file: second.path().to_owned(), line: 0, field: String::new(), message })
    }

    /// Remembers what is wrong with an object, and says it once.
    fn judge(&mut self, key: &ObjectKey, error: Option<ManifestError>) {
        match error {
            None => {
                self.bad_objects.remove(key);
            }
            Some(error) if self.bad_objects.get(key) == Some(&error) => {}
            Some(error) => {
                tracing::error!("{error}");
                self.bad_objects.insert(key.clone(), error);
            }
        }
    }

    fn manifests(&self, path: &Path, text: &str) -> Result<Vec<(ObjectKey, Origin, Value)>, ManifestError> {
        let mut parts: Vec<(ObjectKey, Origin, Value)> = Vec::new();
        for (index, document) in parse::split(text).iter().enumerate() {
            let Some(value) = document.value(path)? else {
                continue;
            };
            let key = document.key(path, &value)?;
            if self.kinds.contains(&key.kind) {
                document.typed(path, &key, &value)?;
                parts.push((key, Origin::Manifest(path.to_owned(), index), value));
            }
        }
        Ok(parts)
    }

    fn replace(&mut self, path: &Path, parts: Vec<(ObjectKey, Origin, Value)>) {
        self.forget(path);
        let mut held = Vec::with_capacity(parts.len());
        for (key, origin, value) in parts {
            self.dirty.insert(key.clone());
            held.push((key.clone(), origin.clone()));
            self.parts.entry(key).or_default().insert(origin, value);
        }
        self.files.insert(path.to_owned(), held);
    }

    fn forget(&mut self, path: &Path) {
        self.bad_files.remove(path);
        for (key, origin) in self.files.remove(path).into_iter().flatten() {
            if let Some(parts) = self.parts.get_mut(&key) {
                parts.remove(&origin);
                if parts.is_empty() {
                    self.parts.remove(&key);
                }
            }
            self.dirty.insert(key);
        }
    }

    /// What the file held before stays in force.
    fn refuse(&mut self, error: ManifestError) {
        if self.bad_files.get(&error.file) != Some(&error) {
            let stays = if self.files.contains_key(&error.file) { "; its last good objects stay" } else { "" };
            tracing::error!("{error}{stays}");
            self.bad_files.insert(error.file.clone(), error);
        }
    }

    fn known(&self) -> impl Iterator<Item = &PathBuf> {
        self.files.keys().chain(self.bad_files.keys())
    }
}

fn managed(
    path: &Path,
    text: &str,
    manager: &str,
    key: &ObjectKey,
) -> Result<Vec<(ObjectKey, Origin, Value)>, ManifestError> {
    let mut documents = parse::split(text).into_iter();
    let Some(document) = documents.next() else {
        return Ok(Vec::new());
    };
    let Some(value) = document.value(path)? else {
        return Ok(Vec::new());
    };
    let held = document.key(path, &value)?;
    if held != *key {
        let message = format!("holds {held}, but its path says {key}");
        return Err(ManifestError { file: path.to_owned(), line: 0, field: String::new(), message });
    }
    Ok(vec![(held, Origin::Managed(manager.to_owned(), path.to_owned()), value)])
}
