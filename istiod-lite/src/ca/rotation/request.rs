//! The ConfigMap by which a rotation is asked for and told of: `aquifer-root-rotation` in the root namespace.
//!
//! `aquifer rotate-root` writes `goal` and `request`, the leading replica `status`. Any replica may lead, and none is
//! called: it works the same with a folder and with an API server.

use aquifer_objects::{Kind, Object, ObjectKey};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::{Goal, Lag};

/// The ConfigMap's name.
pub const NAME: &str = "aquifer-root-rotation";

/// What the operator has asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Names it among others: the same name is answered once.
    pub id: String,
    /// Which root shall be left.
    pub goal: Goal,
}

/// What is told of it.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The request that this is the answer to.
    pub request: String,
    /// `overlap`, `cut-over`, or how it ended: `completed`, `aborted`, `refused`.
    pub phase: String,
    /// In words: what is waited for, or why it was refused.
    pub message: String,
    /// When the phase began, in Unix seconds.
    pub since: i64,
    /// When this was said, in Unix seconds.
    pub at: i64,
    /// Fingerprint of what signs now.
    pub signer: String,
    /// Fingerprints of the roots that are trusted.
    pub trusted: Vec<String>,
    /// Who holds the next phase up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lagging: Vec<Lag>,
}

/// Lags in a status; more are counted in its message.
const MAX_LAGS: usize = 100;

impl Status {
    /// With who holds it up, and how many they are.
    #[must_use]
    pub fn waiting_for(mut self, mut lags: Vec<Lag>) -> Self {
        self.message = format!("waiting for {}", lags.len());
        lags.truncate(MAX_LAGS);
        self.lagging = lags;
        self
    }

    /// Whether it says the same, whenever that was.
    pub fn same(&self, other: &Self) -> bool {
        *self == Self { at: self.at, ..other.clone() }
    }

    /// Whether nothing follows it.
    pub fn is_final(&self) -> bool {
        matches!(self.phase.as_str(), "completed" | "aborted" | "refused")
    }
}

/// The ConfigMap's key.
pub fn key(root_namespace: &str) -> ObjectKey {
    ObjectKey::new(Kind::ConfigMap, root_namespace, NAME)
}

/// Reads the operator's part.
pub fn request(object: &Object) -> Result<Option<Request>, String> {
    let (Some(id), Some(goal)) = (entry(object, "request"), entry(object, "goal")) else { return Ok(None) };
    let goal = serde_json::from_value(Value::String(goal.clone()))
        .map_err(|_| format!("ConfigMap {NAME}: goal is {goal:?}, not complete or abort"))?;
    Ok(Some(Request { id, goal }))
}

/// Reads the leader's part.
pub fn status(object: &Object) -> Option<Status> {
    serde_json::from_str(&entry(object, "status")?).ok()
}

/// The operator's part, to be applied.
pub fn request_object(root_namespace: &str, request: &Request) -> Value {
    object(root_namespace, json!({ "goal": request.goal, "request": request.id }))
}

/// The leader's part, to be applied.
pub fn status_object(root_namespace: &str, status: &Status) -> Value {
    let text = serde_json::to_string(status).unwrap_or_default();
    object(root_namespace, json!({ "status": text }))
}

fn object(namespace: &str, data: Value) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": NAME, "namespace": namespace },
        "data": data,
    })
}

fn entry(object: &Object, name: &str) -> Option<String> {
    match object {
        Object::ConfigMap(map) => map.data.as_ref()?.get(name).cloned(),
        _ => None,
    }
}
