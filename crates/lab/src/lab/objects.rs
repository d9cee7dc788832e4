//! Manifests in and out of a lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquifer_objects::{Folder, Kind, ObjectKey};

use super::{Lab, blocking};
use crate::error::{During, LabError, Result};
use crate::wire::Request;

impl Lab {
    /// Applies manifests (several documents allowed), as `kubectl apply` would.
    pub async fn apply(&self, yaml: &str) -> Result<Vec<ObjectKey>> {
        self.check_up()?;
        let (writer, yaml) = (Arc::clone(&self.writer), yaml.to_owned());
        blocking(move || writer.apply_manifest(&yaml).map_err(|error| LabError::Manifest(error.to_string()))).await
    }

    /// Applies a file, or every `.yaml` file of a folder in the order of their names.
    pub async fn apply_path(&self, path: impl AsRef<Path>) -> Result<Vec<ObjectKey>> {
        let mut keys = Vec::new();
        for file in manifest_files(path.as_ref())? {
            let text = fs::read_to_string(&file).during(|| format!("reading {}", file.display()))?;
            let applied = self.apply(&text).await;
            keys.extend(applied.map_err(|error| LabError::Manifest(format!("{}: {error}", file.display())))?);
        }
        Ok(keys)
    }

    /// Deletes an object; pods go gracefully, and the call returns when the deletion has begun.
    pub async fn delete(&self, kind: &str, namespace: &str, name: &str) -> Result<()> {
        let kind: Kind =
            kind.parse().map_err(|error: aquifer_objects::kinds::UnknownKind| LabError::Manifest(error.to_string()))?;
        if kind == Kind::Pod {
            return self.delete_pod(namespace, name, None).await;
        }
        self.check_up()?;
        let (writer, key) = (Arc::clone(&self.writer), ObjectKey::new(kind, namespace, name));
        blocking(move || writer.delete(&key).map_err(|error| LabError::Manifest(error.to_string()))).await
    }

    /// Deletes a pod with the grace period given, or its own. Returns when the deletion has begun.
    pub async fn delete_pod(&self, namespace: &str, name: &str, grace_seconds: Option<u64>) -> Result<()> {
        self.ask(Request::DeletePod { namespace: namespace.into(), name: name.into(), grace_seconds }).await.map(drop)
    }

    /// Sets or removes a label of a namespace.
    pub async fn label_namespace(&self, namespace: &str, key: &str, value: Option<&str>) -> Result<()> {
        self.patch_user(Kind::Namespace, "", namespace, serde_json::json!({"metadata": {"labels": {key: value}}})).await
    }

    /// Sets a Deployment's replicas.
    pub async fn scale(&self, namespace: &str, deployment: &str, replicas: u32) -> Result<()> {
        self.patch_user(Kind::Deployment, namespace, deployment, serde_json::json!({"spec": {"replicas": replicas}}))
            .await
    }

    /// Merges a patch (RFC 7386) into what the user has applied of an object.
    pub async fn patch_user(&self, kind: Kind, namespace: &str, name: &str, patch: serde_json::Value) -> Result<()> {
        self.check_up()?;
        check_labels(&patch)?;
        let (writer, key) = (Arc::clone(&self.writer), ObjectKey::new(kind, namespace, name));
        blocking(move || writer.patch(&key, patch).map_err(|error| LabError::Manifest(error.to_string()))).await
    }

    /// The objects of the kinds as they stand, merged from all field managers.
    pub async fn objects(&self, kinds: &[Kind]) -> Result<Vec<aquifer_objects::Object>> {
        self.check_up()?;
        let (root, kinds) = (self.paths.manifests(), kinds.to_vec());
        blocking(move || Ok(Folder::new(root).read(&kinds).0)).await
    }
}

/// The manifests that a path means: a file, or every `.yaml` file of a folder in the order of their names.
pub fn manifest_files(path: &Path) -> Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path).during(|| format!("reading {}", path.display()))? {
        let entry = entry.during(|| format!("reading {}", path.display()))?.path();
        if entry.extension().is_some_and(|ext| ext == "yaml" || ext == "yml") {
            files.push(entry);
        }
    }
    files.sort();
    Ok(files)
}

/// A patch of an object that somebody else made is not seen whole by the writer, so its labels are looked at here.
fn check_labels(patch: &serde_json::Value) -> Result<()> {
    let labels = patch.pointer("/metadata/labels").and_then(serde_json::Value::as_object);
    let set = labels.into_iter().flatten().map(|(key, value)| (key.as_str(), value.as_str().unwrap_or_default()));
    match aquifer_objects::validate::labels("metadata.labels", set).first() {
        Some(wrong) => Err(LabError::Manifest(wrong.to_string())),
        None => Ok(()),
    }
}
