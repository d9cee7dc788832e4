//! Writing as one field manager, into a folder or to an API server.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;

use crate::cluster::ClusterWriter;
use crate::folder;
use crate::kinds::ObjectKey;

/// Writes one field manager's fields. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Writer(Inner);

#[derive(Clone, Debug)]
enum Inner {
    Folder(Arc<folder::Writer>),
    Cluster(ClusterWriter),
}

/// Why something could not be written: one sentence each.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// The object, or its kind, does not exist.
    #[error("{0} not found")]
    NotFound(ObjectKey),
    /// The object is another than was meant (uid, existence), or another manager holds a field that was not forced.
    #[error("{key}: conflict: {message}")]
    Conflict {
        /// The object.
        key: ObjectKey,
        /// What stands against it.
        message: String,
    },
    /// We may not. The message names the rule that is missing.
    #[error("{key}: forbidden: {message}")]
    Forbidden {
        /// The object.
        key: ObjectKey,
        /// What would permit it.
        message: String,
    },
    /// The object would not be valid; trying again is of no use.
    #[error("{0}")]
    Invalid(String),
    /// The store did not do it now; trying again may help.
    #[error("{key}: not written: {message}")]
    Unavailable {
        /// The object.
        key: ObjectKey,
        /// Why.
        message: String,
    },
}

impl Writer {
    pub(super) fn folder(root: &Path, manager: &str) -> Self {
        Self(Inner::Folder(Arc::new(folder::Writer::new(root, manager))))
    }

    pub(super) fn cluster(writer: ClusterWriter) -> Self {
        Self(Inner::Cluster(writer))
    }

    /// The same writer, which takes no field from another manager but fails with [`WriteError::Conflict`].
    #[must_use]
    pub fn without_force(&self) -> Self {
        match &self.0 {
            // Managers of a folder overlay each other and never conflict.
            Inner::Folder(_) => self.clone(),
            Inner::Cluster(writer) => Self(Inner::Cluster(writer.without_force())),
        }
    }

    /// Makes the object's fields of this manager what `partial` says (`apiVersion`, `kind`, `metadata.name` and the
    /// fields); the object is created if it isn't there. Fields that this manager had set before and leaves out go.
    pub async fn apply(&self, partial: Value) -> Result<ObjectKey, WriteError> {
        match &self.0 {
            Inner::Folder(writer) => {
                let key = key_of(&partial)?;
                blocking(writer, &key, move |writer| writer.apply_json(partial)).await
            }
            Inner::Cluster(writer) => writer.apply(partial).await,
        }
    }

    /// Creates the object; [`WriteError::Conflict`] if there is one already.
    pub async fn create(&self, object: Value) -> Result<ObjectKey, WriteError> {
        match &self.0 {
            Inner::Folder(writer) => {
                let key = key_of(&object)?;
                blocking(writer, &key, move |writer| writer.create_json(object)).await
            }
            Inner::Cluster(writer) => writer.create(object).await,
        }
    }

    /// Makes this manager's fields of `status` what `status` says. The object must be there.
    pub async fn apply_status(&self, key: &ObjectKey, status: Value) -> Result<(), WriteError> {
        match &self.0 {
            Inner::Folder(writer) => {
                let named = key.clone();
                blocking(writer, key, move |writer| writer.apply_status(&named, &status)).await
            }
            Inner::Cluster(writer) => writer.apply_status(key, status).await,
        }
    }

    /// Merges into the object (RFC 7386: null removes). The object must be there.
    pub async fn patch(&self, key: &ObjectKey, merge_patch: Value) -> Result<(), WriteError> {
        match &self.0 {
            Inner::Folder(writer) => {
                let named = key.clone();
                blocking(writer, key, move |writer| writer.patch(&named, merge_patch)).await
            }
            Inner::Cluster(writer) => writer.patch(key, merge_patch).await,
        }
    }

    /// Sets annotations, or removes them (`None`); if `uid` is given, only of the object that has it
    /// ([`WriteError::Conflict`] otherwise). Those of a pod need no more than the right to write its status.
    pub async fn patch_annotations(
        &self,
        key: &ObjectKey,
        uid: Option<&str>,
        annotations: &[(&str, Option<&str>)],
    ) -> Result<(), WriteError> {
        match &self.0 {
            Inner::Folder(writer) => {
                let (named, uid) = (key.clone(), uid.map(str::to_owned));
                let owned: Vec<(String, Option<String>)> =
                    annotations.iter().map(|(name, value)| ((*name).to_owned(), value.map(str::to_owned))).collect();
                blocking(writer, key, move |writer| {
                    let annotations: Vec<(&str, Option<&str>)> =
                        owned.iter().map(|(name, value)| (name.as_str(), value.as_deref())).collect();
                    writer.patch_annotations_if(&named, uid.as_deref(), &annotations)
                })
                .await
            }
            Inner::Cluster(writer) => writer.patch_annotations(key, uid, annotations).await,
        }
    }

    /// Deletes the object; if `uid` is given, only the one that has it ([`WriteError::Conflict`] otherwise).
    pub async fn delete(&self, key: &ObjectKey, uid: Option<&str>) -> Result<(), WriteError> {
        match &self.0 {
            Inner::Folder(writer) => {
                let (named, uid) = (key.clone(), uid.map(str::to_owned));
                blocking(writer, key, move |writer| writer.delete_if(&named, uid.as_deref())).await
            }
            Inner::Cluster(writer) => writer.delete(key, uid).await,
        }
    }
}

/// Files are written with blocking calls.
async fn blocking<T: Send + 'static>(
    writer: &Arc<folder::Writer>,
    key: &ObjectKey,
    write: impl FnOnce(&folder::Writer) -> Result<T, folder::WriteError> + Send + 'static,
) -> Result<T, WriteError> {
    let writer = Arc::clone(writer);
    let done = tokio::task::spawn_blocking(move || write(&writer)).await;
    let unavailable = |message: String| WriteError::Unavailable { key: key.clone(), message };
    match done.map_err(|error| unavailable(error.to_string()))? {
        Ok(done) => Ok(done),
        Err(folder::WriteError::NotFound(key)) => Err(WriteError::NotFound(key)),
        Err(folder::WriteError::Conflict(key, message)) => Err(WriteError::Conflict { key, message }),
        Err(folder::WriteError::Invalid(error)) => Err(WriteError::Invalid(error.to_string())),
        Err(folder::WriteError::Io { path, source }) => Err(unavailable(io_message(&path, &source))),
    }
}

fn io_message(path: &Path, error: &std::io::Error) -> String {
    format!("{}: {error}", path.display())
}

/// What names the object that shall be written.
pub(crate) fn key_of(object: &Value) -> Result<ObjectKey, WriteError> {
    let mut named = serde_json::json!({
        "apiVersion": object["apiVersion"],
        "kind": object["kind"],
        "metadata": { "name": object["metadata"]["name"], "namespace": object["metadata"]["namespace"] },
    });
    crate::parse::fill_in(&mut named);
    let key = crate::parse::key_of(&named);
    key.map_err(|(field, message)| WriteError::Invalid(format!("{field}: {message}")))
}
