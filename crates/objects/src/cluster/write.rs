//! Writing as one field manager: server-side apply, status subresources, merge patches.

use std::sync::Arc;
use std::time::Duration;

use http::{Method, Request, header};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::time::Instant;

use super::rest::collection;
use super::{Rest, RestError};
use crate::kinds::{Kind, ObjectKey};
use crate::source::{WriteError, key_of};

/// Writes a second that a process may send to the API server for long, and at once.
const RATE: f64 = 50.0;
const BURST: f64 = 100.0;

/// Writes one field manager's fields to an API server.
#[derive(Clone, Debug)]
pub struct ClusterWriter {
    rest: Rest,
    manager: &'static str,
    force: bool,
    pace: Arc<Mutex<Pace>>,
}

/// One write to come.
struct Write<'a> {
    key: &'a ObjectKey,
    method: Method,
    /// `status`, or nothing.
    subresource: &'static str,
    content: &'static str,
    /// Further query parameters.
    query: String,
    body: Value,
}

impl ClusterWriter {
    pub(super) fn new(rest: Rest, manager: &'static str, pace: Arc<Mutex<Pace>>) -> Self {
        Self { rest, manager, force: true, pace }
    }

    pub(crate) fn without_force(&self) -> Self {
        Self { force: false, ..self.clone() }
    }

    pub(crate) async fn apply(&self, partial: Value) -> Result<ObjectKey, WriteError> {
        let key = key_of(&partial)?;
        let body = addressed(&key, partial);
        self.send(self.applying(&key, "", body)).await.map(|()| key)
    }

    pub(crate) async fn create(&self, object: Value) -> Result<ObjectKey, WriteError> {
        let key = key_of(&object)?;
        let write = Write {
            key: &key,
            method: Method::POST,
            subresource: "",
            content: "application/json",
            query: self.named(),
            body: addressed(&key, object),
        };
        self.send(write).await.map(|()| key)
    }

    pub(crate) async fn apply_status(&self, key: &ObjectKey, status: Value) -> Result<(), WriteError> {
        let body = addressed(key, json!({ "status": status }));
        self.send(self.applying(key, "status", body)).await
    }

    pub(crate) async fn patch(&self, key: &ObjectKey, patch: Value) -> Result<(), WriteError> {
        self.send(self.merging(key, "", patch)).await
    }

    pub(crate) async fn patch_annotations(
        &self,
        key: &ObjectKey,
        uid: Option<&str>,
        annotations: &[(&str, Option<&str>)],
    ) -> Result<(), WriteError> {
        let values: Map<String, Value> =
            annotations.iter().map(|(name, value)| ((*name).to_owned(), json!(value))).collect();
        // The status of a pod carries its annotations, and the right to write it gives less away.
        let subresource = if key.kind == Kind::Pod { "status" } else { "" };
        let mut patch = json!({ "metadata": { "annotations": values } });
        if let Some(uid) = uid {
            // The API server refuses to change it: that is the condition.
            patch["metadata"]["uid"] = uid.into();
        }
        self.send(self.merging(key, subresource, patch)).await
    }

    pub(crate) async fn delete(&self, key: &ObjectKey, uid: Option<&str>) -> Result<(), WriteError> {
        let mut body = json!({ "apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background" });
        if let Some(uid) = uid {
            body["preconditions"] = json!({ "uid": uid });
        }
        let query = String::new();
        let content = "application/json";
        self.send(Write { key, method: Method::DELETE, subresource: "", content, query, body }).await
    }

    fn applying<'a>(&self, key: &'a ObjectKey, subresource: &'static str, body: Value) -> Write<'a> {
        let query = format!("{}&force={}", self.named(), self.force);
        Write { key, method: Method::PATCH, subresource, content: "application/apply-patch+yaml", query, body }
    }

    fn merging<'a>(&self, key: &'a ObjectKey, subresource: &'static str, body: Value) -> Write<'a> {
        let query = self.named();
        Write { key, method: Method::PATCH, subresource, content: "application/merge-patch+json", query, body }
    }

    fn named(&self) -> String {
        format!("fieldManager={}", self.manager.replace('/', "%2F"))
    }

    async fn send(&self, write: Write<'_>) -> Result<(), WriteError> {
        let nap = self.pace.lock().take(Instant::now());
        if !nap.is_zero() {
            tokio::time::sleep(nap).await;
        }
        let Write { key, method, subresource, content, query, body } = write;
        let version = self.rest.version(key.kind);
        let mut path = collection(key.kind, &version, Some(&key.namespace));
        if method != Method::POST {
            path = format!("{path}/{}", key.name);
        }
        if !subresource.is_empty() {
            path = format!("{path}/{subresource}");
        }
        let verb = match method {
            Method::POST => "create",
            Method::DELETE => "delete",
            _ => "patch",
        };
        let mut body = body;
        if body.get("apiVersion").is_some_and(|named| *named == key.kind.api_version()) {
            body["apiVersion"] = version.into();
        }
        let request = Request::builder()
            .method(method)
            .uri(format!("{path}?{query}"))
            .header(header::CONTENT_TYPE, content)
            .header(header::ACCEPT, "application/json")
            .body(body.to_string().into_bytes())
            .map_err(|error| WriteError::Invalid(format!("{key}: {error}")))?;
        match self.rest.call(request).await {
            Ok(_) => Ok(()),
            Err(error) => Err(mapped(key, verb, subresource, error)),
        }
    }
}

/// The object with what names it, as the API server wants to read it again in the body.
fn addressed(key: &ObjectKey, mut object: Value) -> Value {
    object["apiVersion"] = key.kind.api_version().into();
    object["kind"] = key.kind.manifest_name().into();
    object["metadata"]["name"] = (*key.name).into();
    if key.kind.namespaced() {
        object["metadata"]["namespace"] = (*key.namespace).into();
    }
    object
}

fn mapped(key: &ObjectKey, verb: &str, subresource: &str, error: RestError) -> WriteError {
    let key = key.clone();
    match error.code {
        404 => WriteError::NotFound(key),
        409 => WriteError::Conflict { key, message: error.message },
        403 => {
            let message = missing_rule(key.kind, verb, subresource, Some(&key.namespace), &error.message);
            WriteError::Forbidden { key, message }
        }
        400 | 405 | 413 | 415 | 422 => WriteError::Invalid(format!("{key}: {}", error.message)),
        _ => WriteError::Unavailable { key, message: error.to_string() },
    }
}

/// What someone has to add to a Role, and what the API server said.
pub(super) fn missing_rule(
    kind: Kind,
    verb: &str,
    subresource: &str,
    namespace: Option<&str>,
    message: &str,
) -> String {
    let group = kind.group();
    let slash = if subresource.is_empty() { "" } else { "/" };
    let place = match namespace.filter(|namespace| !namespace.is_empty()) {
        Some(namespace) => format!(" in namespace {namespace}"),
        None => String::new(),
    };
    format!(
        "the RBAC rule apiGroups: [\"{group}\"], resources: [\"{}{slash}{subresource}\"], verbs: [\"{verb}\"] is missing{place} \
         ({message})",
        kind.plural()
    )
}

/// A bucket of permissions to write, one for a process.
#[derive(Debug)]
pub(super) struct Pace {
    left: f64,
    at: Option<Instant>,
}

impl Default for Pace {
    fn default() -> Self {
        Self { left: BURST, at: None }
    }
}

impl Pace {
    /// Takes one permission; how long to wait until it counts.
    fn take(&mut self, now: Instant) -> Duration {
        let passed = self.at.map_or(0.0, |at| now.saturating_duration_since(at).as_secs_f64());
        self.at = Some(now);
        self.left = (self.left + passed * RATE).min(BURST) - 1.0;
        Duration::from_secs_f64((-self.left).max(0.0) / RATE)
    }
}
