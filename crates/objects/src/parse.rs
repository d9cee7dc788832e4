//! YAML text to typed objects, with one error that names file, line and field.

mod locate;
#[cfg(test)]
mod tests;

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::kinds::{Kind, Object, ObjectKey, UnknownKind, known_kinds};
use crate::validate::{FieldError, schema, validate};

/// Why a file cannot be read as objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ManifestError {
    /// The file; empty if the text came from elsewhere.
    pub file: PathBuf,
    /// The line, counted from 1; 0 if unknown.
    pub line: usize,
    /// The field's path; empty if it is not about a field.
    pub field: String,
    /// What is wrong.
    pub message: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.as_os_str().is_empty() {
            write!(f, "{}: ", self.file.display())?;
        }
        if self.line != 0 {
            write!(f, "line {}: ", self.line)?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        f.write_str(&self.message)
    }
}

impl std::error::Error for ManifestError {}

/// Reads all documents of a manifest. `file` is only for the message.
///
/// Objects of namespaced kinds without a namespace are put into `default`, as kubectl does.
pub fn parse_manifest(file: &Path, text: &str) -> Result<Vec<Object>, ManifestError> {
    let documents = split(text);
    let mut objects = Vec::new();
    for document in documents {
        if let Some(value) = document.value(file)? {
            let key = document.key(file, &value)?;
            objects.push(document.typed(file, &key, &value)?);
        }
    }
    Ok(objects)
}

/// One object of a text that may hold others which cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub struct Found {
    /// The line where its document begins, counted from 1.
    pub line: usize,
    /// The object, or why there is none.
    pub object: Result<Object, Unread>,
}

/// Why a document gives no object.
#[derive(Clone, Debug, PartialEq)]
pub enum Unread {
    /// It is of a kind that the mesh does not read.
    Foreign {
        /// Its `apiVersion`.
        api_version: String,
        /// Its `kind`.
        kind: String,
        /// All of it, for whom the kind means something: see [`shaped_as`].
        value: Value,
    },
    /// It is wrong.
    Wrong(ManifestError),
}

/// Reads what can be read of a manifest, document by document, and says what cannot. Lists are taken apart.
pub fn parse_each(file: &Path, text: &str) -> Vec<Found> {
    let mut found = Vec::new();
    for document in split(text) {
        let blank = |line: &&str| line.trim().is_empty() || line.trim_start().starts_with('#');
        let line = document.lines_before + document.text.lines().take_while(blank).count() + 1;
        let objects = match document.value(file) {
            Ok(None) => Vec::new(),
            Ok(Some(value)) if value["kind"] == "List" && value["items"].is_array() => {
                let items = value["items"].as_array().cloned().unwrap_or_default();
                items.into_iter().map(|item| document.found(file, item)).collect()
            }
            Ok(Some(value)) => vec![document.found(file, value)],
            Err(error) => vec![Err(Unread::Wrong(error))],
        };
        found.extend(objects.into_iter().map(|object| Found { line, object }));
    }
    found
}

/// Whether nobody expects the mesh to read objects of the kind. A kind of Istio's that isn't known is misspelt.
fn is_foreign(api_version: &str, kind: &str) -> bool {
    let group = api_version.split_once('/').map_or("", |(group, _)| group);
    let known = Kind::ALL.iter().any(|known| known.group() == group && known.manifest_name() == kind);
    !known && !group.ends_with(".istio.io")
}

/// Reads one object from JSON, as an API server sends it: that it is valid is the server's affair.
pub fn parse_object(mut value: Value) -> Result<Object, ManifestError> {
    fill_in(&mut value);
    let object = key_of(&value).and_then(|key| shaped(key.kind, &value));
    object.map_err(|(field, message)| ManifestError { file: PathBuf::new(), line: 0, field, message })
}

/// Reads an object of a kind that is none of [`Kind`]'s; or the field that has not the type that it must have, and why.
pub fn shaped_as<T: DeserializeOwned>(value: &Value) -> Result<T, FieldError> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let (path, message) = path_and_message(error);
        FieldError { path, message }
    })
}

/// Reads one YAML value that is not an object of its own, such as a part that lies in a ConfigMap.
pub fn yaml(text: &str) -> Result<Value, String> {
    let syntax = |error: serde_norway::Error| match error.location() {
        Some(at) => format!("line {}: {}", at.line(), without_location(&error.to_string())),
        None => error.to_string(),
    };
    let mut yaml = serde_norway::Value::deserialize(serde_norway::Deserializer::from_str(text)).map_err(syntax)?;
    yaml.apply_merge().map_err(syntax)?;
    serde_json::to_value(&yaml).map_err(|error| error.to_string())
}

/// One document of a file: its text and where it begins.
#[derive(Clone, Debug)]
pub(crate) struct Document<'a> {
    pub(crate) text: &'a str,
    /// Lines of the file before the document's first.
    pub(crate) lines_before: usize,
}

/// The documents of a YAML text. A line `---` separates them wherever it stands (YAML 1.2, 9.1.2).
pub(crate) fn split(text: &str) -> Vec<Document<'_>> {
    let mut documents = Vec::new();
    let (mut start, mut start_line, mut offset) = (0, 0, 0);
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let next = offset + line.len();
        let marker =
            line.strip_prefix("---").is_some_and(|rest| rest.is_empty() || rest.starts_with(char::is_whitespace));
        if marker {
            documents.push(Document { text: &text[start..offset], lines_before: start_line });
            (start, start_line) = (next, number + 1);
        }
        offset = next;
    }
    documents.push(Document { text: &text[start..], lines_before: start_line });
    documents
}

impl Document<'_> {
    /// The document as JSON, with what the API server would fill in; `None` if it is empty.
    pub(crate) fn value(&self, file: &Path) -> Result<Option<Value>, ManifestError> {
        let syntax = |error: serde_norway::Error| {
            let line = error.location().map_or(0, |at| at.line() + self.lines_before);
            ManifestError {
                file: file.to_owned(),
                line,
                field: String::new(),
                message: without_location(&error.to_string()),
            }
        };
        let mut yaml =
            serde_norway::Value::deserialize(serde_norway::Deserializer::from_str(self.text)).map_err(syntax)?;
        yaml.apply_merge().map_err(syntax)?;
        if yaml.is_null() {
            return Ok(None);
        }
        let mut value = serde_json::to_value(&yaml)
            .map_err(|error| self.error(file, &[], format!("cannot be read as an object: {error}")))?;
        if !value.is_object() {
            return Err(self.error(file, &[], "is not an object with apiVersion, kind and metadata".to_owned()));
        }
        fill_in(&mut value);
        Ok(Some(value))
    }

    fn found(&self, file: &Path, mut value: Value) -> Result<Object, Unread> {
        fill_in(&mut value);
        let text = |key: &str| value[key].as_str().unwrap_or_default().to_owned();
        let (api_version, kind) = (text("apiVersion"), text("kind"));
        if !api_version.is_empty() && !kind.is_empty() && is_foreign(&api_version, &kind) {
            return Err(Unread::Foreign { api_version, kind, value });
        }
        let object = self.key(file, &value).and_then(|key| self.typed(file, &key, &value));
        object.map_err(Unread::Wrong)
    }

    /// What the document's object is called.
    pub(crate) fn key(&self, file: &Path, value: &Value) -> Result<ObjectKey, ManifestError> {
        key_of(value).map_err(|(field, message)| {
            let path: Vec<&str> = field.split('.').collect();
            self.error(file, &path, message)
        })
    }

    /// The typed and validated object.
    pub(crate) fn typed(&self, file: &Path, key: &ObjectKey, value: &Value) -> Result<Object, ManifestError> {
        let refused = schema::check(key.kind, value);
        let first = |errors: Vec<FieldError>| match errors.into_iter().next() {
            Some(first) => Err((first.path, first.message)),
            None => Ok(()),
        };
        let object = first(refused.structure)
            .and_then(|()| typed(key.kind, value))
            .and_then(|object| first(refused.rules).map(|()| object));
        object.map_err(|(field, message)| {
            let segments = locate::segments(&field);
            let line = locate::line(self.text, &segments) + self.lines_before;
            ManifestError { file: file.to_owned(), line, field, message }
        })
    }

    fn error(&self, file: &Path, path: &[&str], message: String) -> ManifestError {
        let segments: Vec<locate::Segment> = path.iter().map(|name| locate::Segment::Key((*name).to_owned())).collect();
        let line = locate::line(self.text, &segments) + self.lines_before;
        ManifestError { file: file.to_owned(), line, field: path.join("."), message }
    }
}

/// What names the object in `value`, or the field and why not.
pub(crate) fn key_of(value: &Value) -> Result<ObjectKey, (String, String)> {
    let text = |pointer: &str| value.pointer(pointer).and_then(Value::as_str);
    for pointer in ["/kind", "/apiVersion", "/metadata/name", "/metadata/namespace"] {
        if value.pointer(pointer).is_some_and(|value| !value.is_string() && !value.is_null()) {
            return Err((pointer[1..].replace('/', "."), "expected a string".to_owned()));
        }
    }
    let kind_name =
        text("/kind").ok_or_else(|| ("kind".to_owned(), format!("is missing; known kinds: {}", known_kinds())))?;
    let api_version = text("/apiVersion").ok_or_else(|| ("apiVersion".to_owned(), "is missing".to_owned()))?;
    let kind = Kind::from_manifest(api_version, kind_name).ok_or_else(|| {
        if Kind::ALL.iter().any(|kind| kind.manifest_name() == kind_name) {
            (
                "apiVersion".to_owned(),
                format!("{kind_name} is not known in {api_version}; known kinds: {}", known_kinds()),
            )
        } else {
            ("kind".to_owned(), UnknownKind(kind_name.to_owned()).to_string())
        }
    })?;
    let name = text("/metadata/name").filter(|name| !name.is_empty());
    let name = name.ok_or_else(|| ("metadata.name".to_owned(), "is missing".to_owned()))?;
    let namespace = text("/metadata/namespace").unwrap_or_default();
    if !kind.namespaced() && !namespace.is_empty() {
        return Err(("metadata.namespace".to_owned(), format!("a {kind} has no namespace")));
    }
    // Both become parts of file names.
    for (field, part) in [("metadata.name", name), ("metadata.namespace", namespace)] {
        if part.contains('/') || part.starts_with('.') || part.contains('\0') {
            return Err((field.to_owned(), format!("{part:?} is not a name")));
        }
    }
    Ok(ObjectKey::new(kind, namespace, name))
}

/// The typed and validated object, or the field and why not.
pub(crate) fn typed(kind: Kind, value: &Value) -> Result<Object, (String, String)> {
    let object = shaped(kind, value)?;
    match validate(&object).into_iter().next() {
        None => Ok(object),
        Some(first) => Err((first.path, first.message)),
    }
}

/// The typed object, or the field that has not the type that it must have.
pub(crate) fn shaped(kind: Kind, value: &Value) -> Result<Object, (String, String)> {
    Object::from_json(kind, value).map_err(path_and_message)
}

fn path_and_message(error: serde_path_to_error::Error<serde_json::Error>) -> (String, String) {
    let path = error.path().to_string();
    let field = if path == "." { String::new() } else { path };
    (field, error.into_inner().to_string())
}

/// What the API server fills in at admission, as far as readers depend on it.
pub(crate) fn fill_in(value: &mut Value) {
    let kind = value.get("kind").and_then(Value::as_str).unwrap_or_default();
    let api_version = value.get("apiVersion").and_then(Value::as_str).unwrap_or_default();
    let Some(kind) = Kind::from_manifest(api_version, kind) else {
        return;
    };
    if value["apiVersion"] != kind.api_version() {
        value["apiVersion"] = kind.api_version().into();
    }
    if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
        let namespace = metadata.get("namespace").and_then(Value::as_str).unwrap_or_default();
        if kind.namespaced() && namespace.is_empty() {
            metadata.insert("namespace".to_owned(), "default".into());
        }
        // Selectors by namespace name rest on this label.
        if kind == Kind::Namespace
            && let Some(name) = metadata.get("name").cloned()
        {
            let labels = metadata.entry("labels").or_insert_with(|| json!({}));
            if labels.is_null() {
                *labels = json!({});
            }
            if let Some(labels) = labels.as_object_mut() {
                labels.insert("kubernetes.io/metadata.name".to_owned(), name);
            }
        }
    }
    if kind.optional() {
        // As the API server prunes a null that no schema allows.
        for part in ["spec", "status"] {
            if let Some(part) = value.get_mut(part) {
                remove_nulls(part);
            }
        }
        // A spec is needed to be typed; the API takes an absent one as empty.
        if value.get("spec").is_none_or(Value::is_null) {
            value["spec"] = json!({});
        }
    }
}

/// Takes out every field that is null, at any depth; the items of lists stay.
pub(crate) fn remove_nulls(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.retain(|_, field| !field.is_null());
            fields.values_mut().for_each(remove_nulls);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_nulls),
        _ => {}
    }
}

/// The parser's text ends with a position within the document; the message has its own within the file.
fn without_location(text: &str) -> String {
    match text.rfind(" at line ") {
        Some(at) => text[..at].to_owned(),
        None => text.to_owned(),
    }
}
