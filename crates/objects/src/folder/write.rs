//! Writing as one field manager.

mod files;

use std::path::{Path, PathBuf};

use k8s_openapi::jiff::Timestamp;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};

use self::files::{Manifests, read_value, remove, write_value};
use super::{MANAGED, merge};
use crate::kinds::{Object, ObjectKey};
use crate::parse::{self, ManifestError};

/// The manager of the manifests themselves.
const USER: &str = "user";

/// Writes one field manager's fields. Manager `user` owns the manifests.
///
/// Calls block for the time of a few small file operations. One manager belongs to one process at a time.
#[derive(Debug)]
pub struct Writer {
    root: PathBuf,
    manager: String,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    manifests: Manifests,
    swept: bool,
}

/// Why something could not be written.
#[derive(Debug, thiserror::Error)]
pub enum WriteError {
    /// The object does not exist.
    #[error("{0} not found")]
    NotFound(ObjectKey),
    /// The object is another than was meant: it exists already, or has another uid.
    #[error("{0}: {1}")]
    Conflict(ObjectKey, String),
    /// The object would not be valid.
    #[error("{0}")]
    Invalid(ManifestError),
    /// The file system refused.
    #[error("{path}: {source}", path = path.display())]
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
        Self { root: root.into(), manager: manager.to_owned(), state: Mutex::default() }
    }

    /// Writes the whole object as this manager wants it; fields it had written before and leaves out now go.
    ///
    /// Applying what was *read* claims all managers' fields: apply what you built.
    pub fn apply(&self, object: &Object) -> Result<ObjectKey, WriteError> {
        self.apply_json(object.to_json())
    }

    /// The same for JSON, which may be partial (`apiVersion`, `kind`, `metadata.name` and this manager's fields)
    /// if the object exists already.
    pub fn apply_json(&self, mut object: Value) -> Result<ObjectKey, WriteError> {
        parse::fill_in(&mut object);
        let key = parse::key_of(&object).map_err(|(field, message)| invalid(field, message))?;
        let mut state = self.begin()?;
        self.apply_one(&mut state, &key, object)?;
        Ok(key)
    }

    /// Writes an object that must not exist yet.
    pub fn create_json(&self, mut object: Value) -> Result<ObjectKey, WriteError> {
        parse::fill_in(&mut object);
        let key = parse::key_of(&object).map_err(|(field, message)| invalid(field, message))?;
        let mut state = self.begin()?;
        if self.owner(&mut state, &key)?.is_some() {
            return Err(WriteError::Conflict(key, "exists already".to_owned()));
        }
        self.apply_one(&mut state, &key, object)?;
        Ok(key)
    }

    /// Applies every document of a manifest; nothing is written if one is wrong.
    pub fn apply_manifest(&self, yaml: &str) -> Result<Vec<ObjectKey>, WriteError> {
        let mut values = Vec::new();
        for document in parse::split(yaml) {
            if let Some(value) = document.value(Path::new("")).map_err(WriteError::Invalid)? {
                let key = document.key(Path::new(""), &value).map_err(WriteError::Invalid)?;
                document.typed(Path::new(""), &key, &value).map_err(WriteError::Invalid)?;
                values.push((key, value));
            }
        }
        let mut state = self.begin()?;
        let mut keys = Vec::with_capacity(values.len());
        for (key, value) in values {
            self.apply_one(&mut state, &key, value)?;
            keys.push(key);
        }
        Ok(keys)
    }

    /// Merges into this manager's fields of an existing object (RFC 7386: null removes).
    pub fn patch(&self, key: &ObjectKey, patch: Value) -> Result<(), WriteError> {
        self.edit(key, |value| merge::patch(value, &patch))
    }

    /// Writes this manager's part of `status` anew: what it had written there before and leaves out now goes.
    pub fn apply_status(&self, key: &ObjectKey, status: &Value) -> Result<(), WriteError> {
        self.edit(key, |value| {
            if let Some(fields) = value.as_object_mut() {
                fields.remove("status");
            }
            merge::patch(value, &json!({ "status": status }));
        })
    }

    fn edit(&self, key: &ObjectKey, change: impl Fn(&mut Value)) -> Result<(), WriteError> {
        let mut state = self.begin()?;
        if self.manager == USER
            && let Some(mut manifest) = state.manifests.find(&self.root, key)?
        {
            let before = manifest.value.clone();
            change(&mut manifest.value);
            if manifest.value != before {
                check(key, &manifest.value)?;
                state.manifests.put(&manifest)?;
            }
            return Ok(());
        }
        let Some(owner) = self.owner(&mut state, key)? else {
            return Err(WriteError::NotFound(key.clone()));
        };
        let path = super::managed_path(&self.root, &self.manager, key);
        let before = read_value(&path)?;
        // Fields of an earlier life of the object are not ours to keep.
        let fresh = before
            .as_ref()
            .filter(|value| merge::creates(value) || owner.uid.is_none() || merge::uid(value) == owner.uid.as_deref());
        let mut value = fresh.cloned().unwrap_or_else(|| owner.partial(key));
        change(&mut value);
        if !merge::creates(&value) && value == owner.partial(key) {
            return if before.is_some() { remove(&path).map(|_| ()) } else { Ok(()) };
        }
        if before.as_ref() == Some(&value) {
            return Ok(());
        }
        write_value(&path, &value)
    }

    /// Sets annotations, or removes them (`None`).
    pub fn patch_annotations(&self, key: &ObjectKey, annotations: &[(&str, Option<&str>)]) -> Result<(), WriteError> {
        self.patch(key, json!({ "metadata": { "annotations": strings(annotations) } }))
    }

    /// The same, but only if the object has this uid.
    pub fn patch_annotations_if(
        &self,
        key: &ObjectKey,
        uid: Option<&str>,
        annotations: &[(&str, Option<&str>)],
    ) -> Result<(), WriteError> {
        {
            let mut state = self.begin()?;
            self.demand(&mut state, key, uid)?;
        }
        self.patch_annotations(key, annotations)
    }

    /// Sets labels, or removes them (`None`).
    pub fn patch_labels(&self, key: &ObjectKey, labels: &[(&str, Option<&str>)]) -> Result<(), WriteError> {
        self.patch(key, json!({ "metadata": { "labels": strings(labels) } }))
    }

    /// Merges into this manager's part of `status` (null removes).
    pub fn patch_status(&self, key: &ObjectKey, status: Value) -> Result<(), WriteError> {
        self.patch(key, json!({ "status": status }))
    }

    /// Takes back all fields of this manager; an object that it created is gone unless a manifest holds it.
    pub fn release(&self, key: &ObjectKey) -> Result<(), WriteError> {
        let _state = self.begin()?;
        remove(&super::managed_path(&self.root, &self.manager, key)).map(|_| ())
    }

    /// Deletes the object, all managers' fields with it.
    pub fn delete(&self, key: &ObjectKey) -> Result<(), WriteError> {
        self.delete_if(key, None)
    }

    /// The same, but only if the object has this uid.
    pub fn delete_if(&self, key: &ObjectKey, uid: Option<&str>) -> Result<(), WriteError> {
        let mut state = self.begin()?;
        self.demand(&mut state, key, uid)?;
        let mut found = false;
        while let Some(manifest) = state.manifests.find(&self.root, key)? {
            state.manifests.take(&manifest)?;
            found = true;
        }
        // The creator's file goes first, so that no reader sees the object without what others added to it.
        let mut adding = Vec::new();
        for manager in self.managers() {
            let path = super::managed_path(&self.root, &manager, key);
            if read_value(&path)?.as_ref().is_some_and(merge::creates) {
                found |= remove(&path)?;
            } else {
                adding.push(path);
            }
        }
        for path in adding {
            found |= remove(&path)?;
        }
        if found { Ok(()) } else { Err(WriteError::NotFound(key.clone())) }
    }

    fn apply_one(&self, state: &mut State, key: &ObjectKey, mut object: Value) -> Result<(), WriteError> {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("resourceVersion");
            metadata.retain(|_, value| !value.is_null());
        }
        if self.manager == USER {
            check(key, &object)?;
            let old = state.manifests.find(&self.root, key)?;
            give_birth(&mut object, old.as_ref().map(|manifest| &manifest.value));
            let manifest = match old {
                Some(manifest) if manifest.value == object => return Ok(()),
                Some(manifest) => files::Manifest { value: object, ..manifest },
                None => files::Manifest::new(&self.root, key, object),
            };
            return state.manifests.put(&manifest);
        }
        let path = super::managed_path(&self.root, &self.manager, key);
        let before = read_value(&path)?;
        match self.owner(state, key)? {
            Some(owner) if owner.manager != self.manager => {
                if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
                    metadata.remove("creationTimestamp");
                    metadata.remove("uid");
                    metadata.extend(owner.uid.map(|uid| ("uid".to_owned(), uid.into())));
                }
            }
            _ => {
                check(key, &object)?;
                give_birth(&mut object, before.as_ref().filter(|value| merge::creates(value)));
            }
        }
        if before.as_ref() == Some(&object) {
            return Ok(());
        }
        write_value(&path, &object)
    }

    /// Takes the lock, and sweeps on the first call: removes our fields of objects that are gone.
    fn begin(&self) -> Result<parking_lot::MutexGuard<'_, State>, WriteError> {
        let mut state = self.state.lock();
        if !std::mem::replace(&mut state.swept, true) {
            for (path, key) in files::managed_files(&self.root, &self.manager) {
                if self.owner(&mut state, &key)?.is_none() {
                    remove(&path)?;
                }
            }
        }
        Ok(state)
    }

    /// Fails if the object has another uid than is meant.
    fn demand(&self, state: &mut State, key: &ObjectKey, uid: Option<&str>) -> Result<(), WriteError> {
        let Some(meant) = uid else { return Ok(()) };
        match self.owner(state, key)? {
            Some(Owner { uid: Some(found), .. }) if found != meant => {
                Err(WriteError::Conflict(key.clone(), format!("has uid {found}, not {meant}")))
            }
            _ => Ok(()),
        }
    }

    /// Who created the object, if it exists.
    fn owner(&self, state: &mut State, key: &ObjectKey) -> Result<Option<Owner>, WriteError> {
        if let Some(manifest) = state.manifests.find(&self.root, key)? {
            return Ok(Some(Owner { manager: USER.to_owned(), uid: merge::uid(&manifest.value).map(str::to_owned) }));
        }
        for manager in self.managers() {
            if let Some(value) = read_value(&super::managed_path(&self.root, &manager, key))?.filter(merge::creates) {
                return Ok(Some(Owner { uid: merge::uid(&value).map(str::to_owned), manager }));
            }
        }
        Ok(None)
    }

    /// The managers that have written so far, by name.
    fn managers(&self) -> Vec<String> {
        files::names(&self.root.join(MANAGED))
    }
}

struct Owner {
    manager: String,
    uid: Option<String>,
}

impl Owner {
    /// A part without fields: it names the object and the life of it that is meant.
    fn partial(&self, key: &ObjectKey) -> Value {
        let mut metadata = Map::new();
        metadata.insert("name".to_owned(), (*key.name).into());
        if key.kind.namespaced() {
            metadata.insert("namespace".to_owned(), (*key.namespace).into());
        }
        metadata.extend(self.uid.clone().map(|uid| ("uid".to_owned(), uid.into())));
        json!({ "apiVersion": key.kind.api_version(), "kind": key.kind.manifest_name(), "metadata": metadata })
    }
}

/// Keeps uid and creation time of the object's present life, or begins one.
fn give_birth(object: &mut Value, old: Option<&Value>) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return;
    };
    let of_old =
        |field: &str| old.and_then(|old| old["metadata"].get(field)).filter(|value| value.is_string()).cloned();
    for field in ["uid", "creationTimestamp"] {
        if let Some(value) = of_old(field) {
            metadata.insert(field.to_owned(), value);
        }
    }
    metadata.entry("uid").or_insert_with(|| files::new_uid().into());
    let now = || format!("{:.0}", Timestamp::now());
    metadata.entry("creationTimestamp").or_insert_with(|| now().into());
}

fn check(key: &ObjectKey, value: &Value) -> Result<(), WriteError> {
    parse::typed(key.kind, value).map(|_| ()).map_err(|(field, message)| invalid(field, format!("{message} ({key})")))
}

fn invalid(field: String, message: String) -> WriteError {
    WriteError::Invalid(ManifestError { file: PathBuf::new(), line: 0, field, message })
}

fn strings(pairs: &[(&str, Option<&str>)]) -> Value {
    pairs.iter().map(|(key, value)| ((*key).to_owned(), Value::from(value.map(str::to_owned)))).collect()
}
