//! Where the lab's objects lie: a folder of manifests, or a real API server. The one place that knows which.
//!
//! ```text
//!   stand-ins ── apply, patch, publish, delete ─▶ Store ─▶ Folder: files        the lab gives uids, keeps deletions
//!             ◀── watch, get ────────────────────       └▶ Remote: API server   the server does
//! ```

mod api_server;
mod remote;

use std::sync::Arc;

use aquifer_objects::folder::{Folder, Writer};
use aquifer_objects::{Kind, Object, ObjectKey, Source, Watch};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use serde_json::{Value, json};

pub(crate) use self::api_server::documents;
pub(super) use self::api_server::start as start_api_server;
pub(super) use self::remote::Remote;
use crate::error::{LabError, Result};
use crate::paths::Paths;

/// The field manager that the lab writes as.
const MANAGER: &str = "lab";
/// The one that a person's manifests are written as.
const USER: &str = "user";

/// The lab's objects.
#[derive(Debug)]
pub(super) enum Store {
    Folder { writer: Writer, source: Source },
    Remote(Remote),
}

impl Store {
    pub(super) fn folder(paths: &Paths) -> Self {
        let source = Source::Folder(Folder::new(paths.manifests()));
        Self::Folder { writer: Writer::new(paths.manifests(), MANAGER), source }
    }

    /// The API server, if that is where they lie.
    pub(super) fn remote(&self) -> Option<&Remote> {
        match self {
            Self::Folder { .. } => None,
            Self::Remote(remote) => Some(remote),
        }
    }

    fn source(&self) -> &Source {
        match self {
            Self::Folder { source, .. } => source,
            Self::Remote(remote) => remote.source(),
        }
    }

    pub(super) fn watch(&self, kinds: &[Kind]) -> Result<Watch> {
        self.source().watch(kinds).map_err(|error| LabError::Start(error.to_string()))
    }

    /// One object as it stands now, whole.
    pub(super) async fn get(&self, key: &ObjectKey) -> Result<Option<Object>> {
        self.source().get(key).await.map_err(refused)
    }

    /// All objects of the kinds as they stand now.
    pub(super) async fn read(&self, kinds: &[Kind]) -> Result<Vec<Object>> {
        let selections: Vec<_> = kinds.iter().map(|kind| (*kind).into()).collect();
        self.source().read(&selections).await.map(|(objects, _)| objects).map_err(refused)
    }

    /// Writes an object as the lab wants it.
    pub(super) async fn apply(&self, object: Value) -> Result<()> {
        match self {
            Self::Folder { writer, .. } => writer.apply_json(object).map(drop).map_err(refused),
            Self::Remote(remote) => remote.apply(object, MANAGER).await.map(drop),
        }
    }

    /// Makes a pod and returns it with its uid, which in a folder is the one given.
    pub(super) async fn create_pod(&self, mut pod: Value, uid: &str) -> Result<Pod> {
        let made = match self {
            Self::Folder { writer, .. } => {
                pod["metadata"]["uid"] = json!(uid);
                writer.apply_json(pod.clone()).map_err(refused)?;
                pod
            }
            Self::Remote(remote) => remote.create_pod(pod).await?,
        };
        serde_json::from_value(made).map_err(|error| LabError::Manifest(format!("pod: {error}")))
    }

    /// The pod as it was applied: a watch brings less of it.
    pub(super) async fn whole_pod(&self, pod: Arc<Pod>) -> Result<Option<Arc<Pod>>> {
        let Self::Remote(_) = self else { return Ok(Some(pod)) };
        let text = |name: &Option<String>| name.clone().unwrap_or_default();
        let key = ObjectKey::new(Kind::Pod, &text(&pod.metadata.namespace), &text(&pod.metadata.name));
        match self.get(&key).await? {
            Some(Object::Pod(found)) if found.metadata.uid == pod.metadata.uid => Ok(Some(found)),
            _ => Ok(None),
        }
    }

    /// Says which node a pod is on and, where the store does not, which uid it has.
    pub(super) async fn bind_pod(&self, key: &ObjectKey, node: &str, new_uid: Option<&str>) -> Result<()> {
        match self {
            Self::Folder { writer, .. } => {
                let mut patch = json!({"spec": {"nodeName": node}});
                if let Some(uid) = new_uid {
                    patch["metadata"] = json!({"uid": uid});
                }
                writer.patch(key, patch).map_err(refused)
            }
            Self::Remote(remote) => remote.bind_pod(key, node).await,
        }
    }

    /// Merges into the object.
    pub(super) async fn patch(&self, key: &ObjectKey, patch: Value) -> Result<()> {
        match self {
            Self::Folder { writer, .. } => writer.patch(key, patch).map_err(refused),
            Self::Remote(remote) => remote.patch(key, &patch).await,
        }
    }

    /// Merges into the object's status.
    pub(super) async fn patch_status(&self, key: &ObjectKey, status: Value) -> Result<()> {
        match self {
            Self::Folder { writer, .. } => writer.patch_status(key, status).map_err(refused),
            Self::Remote(remote) => remote.patch_status(key, &status).await,
        }
    }

    /// The same, without waiting for a server; of several, the last will stand.
    pub(super) fn publish(&self, key: &ObjectKey, status: Value) -> Result<()> {
        match self {
            Self::Folder { writer, .. } => writer.patch_status(key, status).map_err(refused),
            Self::Remote(remote) => {
                remote.publish(key.clone(), status);
                Ok(())
            }
        }
    }

    /// Says that a pod is on its way out.
    pub(super) async fn begin_pods_end(&self, key: &ObjectKey, uid: &str, grace_seconds: u64) -> Result<()> {
        match self {
            Self::Folder { writer, .. } => {
                let patch = json!({"metadata": {
                    "deletionTimestamp": format!("{:.0}", Timestamp::now()),
                    "deletionGracePeriodSeconds": grace_seconds,
                }});
                writer.patch(key, patch).map_err(refused)
            }
            // No grace at all would be its end at once, while its containers stop.
            Self::Remote(remote) => remote.delete(key, Some(uid), Some(grace_seconds.max(1))).await,
        }
    }

    /// Says that nothing of a pod is left.
    pub(super) async fn end_pod(&self, key: &ObjectKey, uid: &str) -> Result<()> {
        match self {
            Self::Folder { writer, .. } => writer.delete(key).map_err(refused),
            Self::Remote(remote) => remote.delete(key, Some(uid), Some(0)).await,
        }
    }

    pub(super) async fn delete(&self, key: &ObjectKey) -> Result<()> {
        match self {
            Self::Folder { writer, .. } => writer.delete(key).map_err(refused),
            Self::Remote(remote) => remote.delete(key, None, None).await,
        }
    }

    /// Takes the lab's part of an object back, which a folder may keep without the person's.
    pub(super) fn release(&self, key: &ObjectKey) {
        if let Self::Folder { writer, .. } = self {
            // Nothing is left to take back, or the file system is at its end: the next write says so.
            let _ = writer.release(key);
        }
    }
}

fn refused(error: impl std::fmt::Display) -> LabError {
    LabError::Refused(error.to_string())
}
