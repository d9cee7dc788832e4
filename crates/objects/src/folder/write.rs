//! Writing as one field manager.

use std::path::PathBuf;

use serde_json::Value;

use crate::kinds::{Kind, Object, ObjectKey};
use crate::parse::ManifestError;

/// Writes one field manager's fields. Manager `user` owns the manifests themselves.
#[derive(Debug)]
pub struct Writer {
    root: PathBuf,
    manager: String,
}

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object does not exist.
    #[error("{0} not found")]
    NotFound(ObjectKey),
    /// The object would not be valid.
    #[error("{0}")]
    Invalid(ManifestError),
    /// The file system refused.
    #[error("{path}: {source}")]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
}

impl Writer {
    /// A writer for `manager`, which is `user` or a controller's name such as `istio-cni`.
    pub fn new(root: impl Into<PathBuf>, manager: &str) -> Self {
        Self { root: root.into(), manager: manager.to_owned() }
    }

    /// Writes the whole object as this manager wants it; fields it had written before and leaves out now go.
    pub fn apply(&self, object: &Object) -> Result<ObjectKey, WriteError> {
        self.apply_json(object.to_json())
    }

    /// The same for JSON, which may be partial (`apiVersion`, `kind`, `metadata.name` and this manager's fields)
    /// if the object exists already.
    pub fn apply_json(&self, object: Value) -> Result<ObjectKey, WriteError> {
        let _ = (object, &self.root, &self.manager);
        Ok(ObjectKey::new(Kind::Pod, "", ""))
    }

    /// Applies every document of a manifest; nothing is written if one is wrong.
    pub fn apply_manifest(&self, yaml: &str) -> Result<Vec<ObjectKey>, WriteError> {
        let _ = yaml;
        Ok(Vec::new())
    }

    /// Merges into this manager's fields of an existing object (RFC 7386: null removes).
    pub fn patch(&self, key: &ObjectKey, patch: Value) -> Result<(), WriteError> {
        let _ = (key, patch);
        Ok(())
    }

    /// Sets annotations, or removes them (`None`).
    pub fn patch_annotations(&self, key: &ObjectKey, annotations: &[(&str, Option<&str>)]) -> Result<(), WriteError> {
        let _ = (key, annotations);
        Ok(())
    }

    /// Sets labels, or removes them (`None`).
    pub fn patch_labels(&self, key: &ObjectKey, labels: &[(&str, Option<&str>)]) -> Result<(), WriteError> {
        let _ = (key, labels);
        Ok(())
    }

    /// Merges into this manager's part of `status` (null removes).
    pub fn patch_status(&self, key: &ObjectKey, status: Value) -> Result<(), WriteError> {
        self.patch(key, serde_json::json!({ "status": status }))
    }

    /// Deletes the object, all managers' fields with it.
    pub fn delete(&self, key: &ObjectKey) -> Result<(), WriteError> {
        let _ = key;
        Ok(())
    }
}
