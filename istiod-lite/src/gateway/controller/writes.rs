//! What was written, so that what stands is not written again.

use std::time::Duration;

use aquifer_objects::{Object, ObjectKey};
use serde_json::Value;
use tokio::time::Instant;

use super::Controller;
use crate::gateway::reconcile::Action;

/// An own write takes so long at most to come back as an event.
const ECHO: Duration = Duration::from_secs(5);

/// What we last applied to an object.
pub(super) struct Applied {
    content: u64,
    at: Instant,
    /// What stood when it came back.
    stands: Option<u64>,
}

impl Controller {
    pub(super) fn is_needed(&mut self, action: &Action, now: Instant) -> bool {
        let Action::Apply(key, object) = action else { return true };
        let stands = self.children.get(key).map(fingerprint);
        let Some(applied) = self.applied.get_mut(key) else { return true };
        if applied.content != content(object) {
            return true;
        }
        match (stands, applied.stands) {
            (None, _) => now - applied.at > ECHO,
            (Some(stands), None) => {
                applied.stands = Some(stands);
                false
            }
            (Some(stands), Some(before)) => stands != before,
        }
    }

    /// It was applied.
    pub(in crate::gateway) fn applied(&mut self, key: &ObjectKey, object: &Value, now: Instant) {
        self.applied.insert(key.clone(), Applied { content: content(object), at: now, stands: None });
    }
}

/// A hash of what we say; the uid is a condition, not content.
fn content(object: &Value) -> u64 {
    let mut object = object.clone();
    if let Some(metadata) = object["metadata"].as_object_mut() {
        metadata.remove("uid");
    }
    hash(&object)
}

/// A hash of what stands, as far as it is somebody's wish.
fn fingerprint(object: &Object) -> u64 {
    let mut json = object.to_json();
    if let Some(fields) = json.as_object_mut() {
        fields.remove("status");
    }
    if let Some(metadata) = json["metadata"].as_object_mut() {
        metadata
            .retain(|key, _| ["labels", "annotations", "ownerReferences", "uid", "generation"].contains(&key.as_str()));
        // The Deployment's controller counts its rollouts here.
        if let Some(annotations) = metadata.get_mut("annotations").and_then(Value::as_object_mut) {
            annotations.remove("deployment.kubernetes.io/revision");
        }
    }
    hash(&json)
}

fn hash(value: &Value) -> u64 {
    xxhash_rust::xxh64::xxh64(value.to_string().as_bytes(), 0)
}
