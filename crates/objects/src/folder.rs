//! The embedded store: a folder of manifests, several writers, many readers.
//!
//! ```text
//! <root>/shop.yaml                                     manifests: manager `user`; several documents and sub-folders allowed
//! <root>/shop_service_web.yaml                         the same, written by a Writer
//! <root>/.managed/lab/Pod/shop/web-1.yaml              an object that the manager `lab` created
//! <root>/.managed/istio-cni/Pod/shop/web-1.yaml        fields that `istio-cni` adds to it
//! ```
//!
//! How the reader merges:
//! * An object exists if a manifest holds it, or a managed file that carries `metadata.creationTimestamp`: that is
//!   the mark of the file that *creates* it. Any other managed file only adds fields, and is nothing by itself.
//! * Maps merge deeply; lists and scalars are replaced. Manifests come first, then the managers by name, so among
//!   managers the last name wins. A null in a managed file says nothing.
//! * Fields written for one life of an object don't outlive it: a managed file whose `metadata.uid` differs from the
//!   object's is ignored. (A manifest written by hand has no uid; there the next rule has to do.)
//! * `Writer::delete` removes every manager's file of the object. Who deletes a manifest by hand leaves the managers'
//!   files behind; each `Writer` sweeps those of its own manager when it first writes.
//! * When two manifests hold one object, the first path wins and an error names both.
//!
//! Names that begin with a dot are ignored, so a file is written under such a name and renamed: nobody reads half.

pub(crate) mod merge;
mod store;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use std::path::{Path, PathBuf};

pub use watch::Watch;
pub use write::{WriteError, Writer};

use crate::kinds::{Kind, Object, ObjectKey};
use crate::parse::ManifestError;

/// The folder of all managers' files but the manifests.
const MANAGED: &str = ".managed";
/// The folder that stands for "no namespace" below it.
const NO_NAMESPACE: &str = "_";

/// A folder of manifests.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

/// Why a folder cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot read {path}: {message}", path = path.display())]
pub struct FolderError {
    path: PathBuf,
    message: String,
}

impl Folder {
    /// The folder at `root`; it is created when it is watched or written to.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The folder at `root`, which must be there.
    pub fn existing(root: impl Into<PathBuf>) -> Result<Self, FolderError> {
        let root = root.into();
        match std::fs::metadata(&root) {
            Ok(found) if found.is_dir() => Ok(Self { root }),
            Ok(_) => Err(FolderError { path: root, message: "is not a folder".to_owned() }),
            Err(error) => Err(FolderError { path: root, message: error.to_string() }),
        }
    }

    /// Its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every object of the kinds as it stands now, sorted by key, and what could not be read.
    pub fn read(&self, kinds: &[Kind]) -> (Vec<Object>, Vec<ManifestError>) {
        let mut store = store::Store::new(self.root.clone(), kinds);
        store.refresh(&self.root, &mut |_| {});
        let _ = store.changes();
        (store.objects().cloned().collect(), store.problems().cloned().collect())
    }

    /// One object as it stands now.
    pub fn get(&self, key: &ObjectKey) -> Option<Object> {
        self.read(&[key.kind]).0.into_iter().find(|object| object.key() == *key)
    }

    /// Sends every object of the kinds, then `Synced`, then each change.
    ///
    /// What cannot be read is logged once as an error, with file, line and field; the last good objects stay.
    /// The work is done on a thread of its own, which ends when the [`Watch`] is dropped.
    pub fn watch(&self, kinds: &[Kind]) -> Result<Watch, FolderError> {
        Watch::start(self.root.clone(), kinds)
    }
}

/// Where a manager's fields of an object lie.
fn managed_path(root: &Path, manager: &str, key: &ObjectKey) -> PathBuf {
    let namespace = if key.namespace.is_empty() { NO_NAMESPACE } else { &key.namespace };
    root.join(MANAGED).join(manager).join(key.kind.as_str()).join(namespace).join(format!("{}.yaml", key.name))
}

/// What a path below the root is to the store.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    /// May hold manifests, or is one.
    Manifest,
    /// A folder on the way to managed files, of one kind from some depth on.
    ManagedFolder(Option<Kind>),
    /// A managed file.
    Managed { manager: String, kind: Kind, namespace: String, name: String },
    /// Not ours.
    Ignored,
}

/// What the path, relative to the root, is.
fn place(relative: &Path) -> Place {
    let Some(parts) = relative.iter().map(|part| part.to_str()).collect::<Option<Vec<&str>>>() else {
        return Place::Ignored;
    };
    match parts.as_slice() {
        [MANAGED, rest @ ..] => {
            if rest.iter().any(|part| part.starts_with('.')) {
                return Place::Ignored;
            }
            match rest {
                [manager, kind, namespace, file] => {
                    let kind = Kind::ALL.iter().find(|known| known.as_str() == *kind);
                    match (kind, file.strip_suffix(".yaml")) {
                        (Some(&kind), Some(name)) => Place::Managed {
                            manager: (*manager).to_owned(),
                            kind,
                            namespace: if *namespace == NO_NAMESPACE { String::new() } else { (*namespace).to_owned() },
                            name: name.to_owned(),
                        },
                        _ => Place::Ignored,
                    }
                }
                [] | [_] => Place::ManagedFolder(None),
                [_, kind] | [_, kind, _] => match Kind::ALL.iter().find(|known| known.as_str() == *kind) {
                    Some(&kind) => Place::ManagedFolder(Some(kind)),
                    None => Place::Ignored,
                },
                _ => Place::Ignored,
            }
        }
        parts if parts.iter().any(|part| part.starts_with('.')) => Place::Ignored,
        _ => Place::Manifest,
    }
}

/// Whether a file may hold manifests, by its name.
fn is_manifest_file(path: &Path) -> bool {
    path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml")
}
