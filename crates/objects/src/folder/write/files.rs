//! Small file operations of the writer.

use std::collections::HashMap;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde_json::Value;

use super::WriteError;
use crate::folder::{MANAGED, NO_NAMESPACE, is_manifest_file};
use crate::kinds::{Kind, ObjectKey};
use crate::parse;

/// One object in a manifest.
#[derive(Debug, Clone)]
pub(super) struct Manifest {
    pub(super) path: PathBuf,
    /// Which document of the file.
    pub(super) index: usize,
    pub(super) value: Value,
}

impl Manifest {
    /// The file that a writer makes for an object.
    pub(super) fn new(root: &Path, key: &ObjectKey, value: Value) -> Self {
        let kind = key.kind.as_str().to_ascii_lowercase();
        let file = if key.namespace.is_empty() {
            format!("{kind}_{}.yaml", key.name)
        } else {
            format!("{}_{kind}_{}.yaml", key.namespace, key.name)
        };
        Self { path: root.join(file), index: 0, value }
    }
}

/// The manifests of a folder, read again only where a file changed.
#[derive(Debug, Default)]
pub(super) struct Manifests {
    files: HashMap<PathBuf, Read>,
}

/// A file as it was read.
#[derive(Debug)]
struct Read {
    stamp: Stamp,
    /// Each object and which document of the file it is.
    objects: Vec<(ObjectKey, usize, Value)>,
}

/// Tells whether a file is still the one that was read.
type Stamp = (u64, u64, i64, i64);

impl Manifests {
    /// The object's place; the first path, should there be several.
    pub(super) fn find(&mut self, root: &Path, key: &ObjectKey) -> Result<Option<Manifest>, WriteError> {
        let mut paths = Vec::new();
        collect(root, &mut paths);
        self.files.retain(|path, _| paths.contains(path));
        for path in paths {
            self.read(&path)?;
            let held = self.files.get(&path).into_iter().flat_map(|read| &read.objects);
            if let Some((_, index, value)) = held.into_iter().find(|(held, ..)| held == key) {
                return Ok(Some(Manifest { path, index: *index, value: value.clone() }));
            }
        }
        Ok(None)
    }

    /// Writes the object into its file; other documents of the file keep their text.
    pub(super) fn put(&mut self, manifest: &Manifest) -> Result<(), WriteError> {
        self.rewrite(manifest, Some(&manifest.value))
    }

    /// Takes the object out of its file; a file without objects goes.
    pub(super) fn take(&mut self, manifest: &Manifest) -> Result<(), WriteError> {
        self.rewrite(manifest, None)
    }

    fn rewrite(&mut self, manifest: &Manifest, value: Option<&Value>) -> Result<(), WriteError> {
        let path = &manifest.path;
        let text = match fs::read_to_string(path) {
            Ok(text) => text,
            Err(error) if error.kind() == ErrorKind::NotFound => String::new(),
            Err(source) => return Err(WriteError::Io { path: path.clone(), source }),
        };
        let mut documents: Vec<String> = parse::split(&text).iter().map(|document| document.text.to_owned()).collect();
        match value {
            Some(value) => documents[manifest.index] = yaml(value),
            None => documents[manifest.index].clear(),
        }
        let is_text =
            |document: &String| document.lines().any(|line| !line.trim().is_empty() && !line.starts_with('#'));
        let objects = documents.iter().filter(|document| is_text(document)).count();
        self.files.remove(path);
        if objects == 0 {
            return remove(path).map(|_| ());
        }
        for document in &mut documents {
            if !document.is_empty() && !document.ends_with('\n') {
                document.push('\n');
            }
        }
        // An empty document is kept between markers: it is the head of most files.
        write_text(path, &documents.join("---\n"))
    }

    /// A file that cannot be read holds nothing as far as the writer is concerned; the reader reports it.
    fn read(&mut self, path: &Path) -> Result<(), WriteError> {
        let stamp = match fs::metadata(path) {
            Ok(meta) => (meta.ino(), meta.len(), meta.ctime(), meta.ctime_nsec()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                self.files.remove(path);
                return Ok(());
            }
            Err(source) => return Err(WriteError::Io { path: path.to_owned(), source }),
        };
        if self.files.get(path).is_some_and(|read| read.stamp == stamp) {
            return Ok(());
        }
        let text = fs::read_to_string(path).unwrap_or_default();
        let mut held = Vec::new();
        for (index, document) in parse::split(&text).iter().enumerate() {
            if let Ok(Some(value)) = document.value(path)
                && let Ok(key) = parse::key_of(&value)
            {
                held.push((key, index, value));
            }
        }
        self.files.insert(path.to_owned(), Read { stamp, objects: held });
        Ok(())
    }
}

fn collect(folder: &Path, paths: &mut Vec<PathBuf>) {
    for name in names(folder) {
        let path = folder.join(&name);
        if path.is_dir() {
            collect(&path, paths);
        } else if is_manifest_file(&path) {
            paths.push(path);
        }
    }
}

/// The names in a folder that don't begin with a dot, sorted; none if it doesn't exist.
pub(super) fn names(folder: &Path) -> Vec<String> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .filter_map(|entry| entry.file_name().into_string().ok())
        .filter(|name| !name.starts_with('.'))
        .collect();
    names.sort_unstable();
    names
}

/// A manager's files and the objects that they are about.
pub(super) fn managed_files(root: &Path, manager: &str) -> Vec<(PathBuf, ObjectKey)> {
    let mut files = Vec::new();
    let top = root.join(MANAGED).join(manager);
    for &kind in Kind::ALL {
        let of_kind = top.join(kind.as_str());
        for namespace in names(&of_kind) {
            let folder = of_kind.join(&namespace);
            for file in names(&folder) {
                if let Some(name) = file.strip_suffix(".yaml") {
                    let namespace = if namespace == NO_NAMESPACE { "" } else { &namespace };
                    files.push((folder.join(&file), ObjectKey::new(kind, namespace, name)));
                }
            }
        }
    }
    files
}

/// What a managed file holds; `None` if it is missing or broken (then it is written anew).
pub(super) fn read_value(path: &Path) -> Result<Option<Value>, WriteError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(serde_norway::from_str(&text).ok()),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        Err(source) => Err(WriteError::Io { path: path.to_owned(), source }),
    }
}

pub(super) fn write_value(path: &Path, value: &Value) -> Result<(), WriteError> {
    write_text(path, &yaml(value))
}

/// Writes under a hidden name and renames. Without fsync: what a crash of the machine would lose, its lab loses too.
pub(super) fn write_text(path: &Path, text: &str) -> Result<(), WriteError> {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let fail = |source: io::Error| WriteError::Io { path: path.to_owned(), source };
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let number = COUNTER.fetch_add(1, Ordering::Relaxed);
    let hidden = folder.join(format!(".{name}.{}.{number}", std::process::id()));
    let written = match fs::write(&hidden, text) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            fs::create_dir_all(folder).map_err(fail)?;
            fs::write(&hidden, text)
        }
        other => other,
    };
    written.and_then(|()| fs::rename(&hidden, path)).map_err(|error| {
        let _ = fs::remove_file(&hidden);
        fail(error)
    })
}

/// Removes a file; says whether there was one.
pub(super) fn remove(path: &Path) -> Result<bool, WriteError> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(false),
        Err(source) => Err(WriteError::Io { path: path.to_owned(), source }),
    }
}

/// A random uid (RFC 4122, version 4), from the kernel.
pub(super) fn new_uid() -> String {
    let uid = fs::read_to_string("/proc/sys/kernel/random/uuid").unwrap_or_default();
    uid.trim().to_owned()
}

fn yaml(value: &Value) -> String {
    serde_norway::to_string(value).expect("JSON always has a YAML form")
}
