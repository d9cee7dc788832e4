//! Manifests in and out of a lab.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aquifer_objects::folder::Writer;
use aquifer_objects::parse::parse_object;
use aquifer_objects::{Folder, Kind, ObjectKey};

use super::{Lab, blocking, unexpected};
use crate::error::{During, LabError, Result};
use crate::init::documents;
use crate::options::LabOptions;
use crate::paths::Paths;
use crate::wire::{Named, Reply, Request};

/// The field manager of manifests that a person applies.
const USER: &str = "user";

/// Where a person's manifests go.
#[derive(Debug)]
pub(super) enum Store {
    Folder(Arc<Writer>),
    /// To an API server, by way of the lab's pid 1.
    Remote,
}

impl Store {
    pub(super) fn of(paths: &Paths) -> Self {
        let text = fs::read(paths.options()).unwrap_or_default();
        let options: Option<LabOptions> = serde_json::from_slice(&text).ok();
        match options.is_some_and(|options| options.api_server) {
            true => Self::Remote,
            false => Self::Folder(Arc::new(Writer::new(paths.manifests(), USER))),
        }
    }
}

impl Lab {
    /// Applies manifests (several documents allowed), as `kubectl apply` would.
    pub async fn apply(&self, yaml: &str) -> Result<Vec<ObjectKey>> {
        self.check_up()?;
        let yaml = yaml.to_owned();
        match &self.store {
            Store::Folder(writer) => {
                let writer = Arc::clone(writer);
                blocking(move || writer.apply_manifest(&yaml).map_err(manifest)).await
            }
            Store::Remote => {
                let mut keys = Vec::new();
                for object in documents(&yaml)? {
                    // Kinds that we do not know are for the server to judge.
                    let known = object["kind"].as_str().zip(object["apiVersion"].as_str());
                    if known.is_some_and(|(kind, version)| Kind::from_manifest(version, kind).is_some()) {
                        keys.push(parse_object(object.clone()).map_err(manifest)?.key());
                    }
                    self.ask(Request::Apply { object }).await?;
                }
                Ok(keys)
            }
        }
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
        let key = ObjectKey::new(kind, namespace, name);
        match &self.store {
            Store::Folder(writer) => {
                let writer = Arc::clone(writer);
                blocking(move || writer.delete(&key).map_err(manifest)).await
            }
            Store::Remote => self.ask(Request::Delete { object: Named::of(&key) }).await.map(drop),
        }
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
        let key = ObjectKey::new(kind, namespace, name);
        match &self.store {
            Store::Folder(writer) => {
                let writer = Arc::clone(writer);
                blocking(move || writer.patch(&key, patch).map_err(manifest)).await
            }
            Store::Remote => self.ask(Request::Patch { object: Named::of(&key), patch }).await.map(drop),
        }
    }

    /// The objects of the kinds as they stand, merged from all field managers.
    pub async fn objects(&self, kinds: &[Kind]) -> Result<Vec<aquifer_objects::Object>> {
        self.check_up()?;
        let (root, kinds) = (self.paths.manifests(), kinds.to_vec());
        if let Store::Folder(_) = &self.store {
            return blocking(move || Ok(Folder::new(root).read(&kinds).0)).await;
        }
        let kinds = kinds.iter().map(|kind| kind.as_str().to_owned()).collect();
        match self.ask(Request::Objects { kinds }).await? {
            Reply::Objects(objects) => {
                objects.into_iter().map(|object| parse_object(object).map_err(manifest)).collect()
            }
            other => Err(unexpected(&other)),
        }
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

fn manifest(error: impl std::fmt::Display) -> LabError {
    LabError::Manifest(error.to_string())
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
