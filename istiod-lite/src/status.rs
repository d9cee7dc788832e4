//! What users are told about their policies: conditions in `status`, written when they change and
//! only then. The pure part decides, a small task writes.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_objects::crds::{PolicyCondition, PolicyStatus};
use aquifer_objects::{Object, ObjectKey, WriteError, Writer};
use aquifer_runtime::{Cancel, Tracker};
use parking_lot::Mutex;
use serde_json::json;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;

/// The field manager under which conditions are written.
pub const MANAGER: &str = "istiod";
/// Writes come in batches, this far apart: a storm of changes must not become a storm of writes.
const INTERVAL: Duration = Duration::from_millis(200);

/// The conditions that are ours to write, and to take away.
const OURS: [&str; 2] = ["WaypointAccepted", "ZtunnelAccepted"];

/// The whole status to write so that `wanted` stands in it, or `None` when it does already.
///
/// Conditions of other types are kept; `lastTransitionTime` changes only with the status itself.
pub fn update(
    current: Option<&PolicyStatus>,
    generation: Option<i64>,
    wanted: &[PolicyCondition],
    now: OffsetDateTime,
) -> Option<PolicyStatus> {
    let observed = generation.map(|g| json!(g));
    let old = current.map(|s| s.conditions.as_slice()).unwrap_or_default();
    let now = now.format(&Rfc3339).unwrap_or_default();
    let mut conditions: Vec<PolicyCondition> =
        old.iter().filter(|c| !OURS.contains(&c.type_.as_str())).cloned().collect();
    for condition in wanted {
        let since = old
            .iter()
            .find(|c| c.type_ == condition.type_ && c.status == condition.status)
            .and_then(|c| c.last_transition_time.clone())
            .unwrap_or_else(|| now.clone());
        conditions.push(PolicyCondition { last_transition_time: Some(since), ..condition.clone() });
    }
    conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    let next = PolicyStatus { conditions, observed_generation: observed, ..current.cloned().unwrap_or_default() };
    let mut before = current.cloned().unwrap_or_default();
    before.conditions.sort_by(|a, b| a.type_.cmp(&b.type_));
    (next != before).then_some(next)
}

/// Where the publisher leaves what is to be written. The last word on an object counts.
#[derive(Clone, Default)]
pub struct StatusQueue(Arc<Queue>);

#[derive(Default)]
struct Queue {
    pending: Mutex<BTreeMap<ObjectKey, PolicyStatus>>,
    wake: Notify,
}

impl StatusQueue {
    /// Conditions of a policy: queued if they differ from what stands in the object.
    pub fn set(&self, object: &Object, wanted: &[PolicyCondition]) {
        let (current, generation) = match object {
            Object::AuthorizationPolicy(p) => (p.status.as_ref(), p.metadata.generation),
            Object::PeerAuthentication(p) => (p.status.as_ref(), p.metadata.generation),
            _ => return,
        };
        let key = object.key();
        match update(current, generation, wanted, OffsetDateTime::now_utc()) {
            Some(status) => {
                self.0.pending.lock().insert(key, status);
                self.0.wake.notify_one();
            }
            None => self.forget(&key),
        }
    }

    /// The object is gone, or says already what it should.
    pub fn forget(&self, key: &ObjectKey) {
        self.0.pending.lock().remove(key);
    }

    /// Starts the task that writes.
    pub fn start(&self, writer: Writer, tracker: &Tracker, cancel: &Cancel) {
        let (queue, cancel) = (self.clone(), cancel.clone());
        tracker.spawn("status", async move {
            loop {
                tokio::select! {
                    biased; // What is not written at the end is written at the next start.
                    () = cancel.drained() => return,
                    () = queue.0.wake.notified() => {}
                }
                let batch = std::mem::take(&mut *queue.0.pending.lock());
                write(&writer, batch).await;
                tokio::select! {
                    biased;
                    () = cancel.drained() => return,
                    () = tokio::time::sleep(INTERVAL) => {}
                }
            }
        });
    }
}

async fn write(writer: &Writer, batch: BTreeMap<ObjectKey, PolicyStatus>) {
    for (key, status) in batch {
        match writer.apply_status(&key, json!(status)).await {
            // An object that was deleted meanwhile has no status; the next change tries again.
            Err(error @ WriteError::NotFound(_)) => tracing::debug!(%error, "status not written"),
            Err(error) => tracing::warn!(%error, "status not written"),
            Ok(()) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: i64) -> OffsetDateTime {
        OffsetDateTime::from_unix_timestamp(seconds).unwrap()
    }

    fn accepted(status: &str, reason: &str) -> PolicyCondition {
        PolicyCondition {
            type_: "ZtunnelAccepted".into(),
            status: status.into(),
            reason: reason.into(),
            ..Default::default()
        }
    }

    #[test]
    fn written_when_it_changes_and_only_then() {
        let first = update(None, Some(1), &[accepted("True", "Accepted")], at(0)).unwrap();
        assert_eq!(first.conditions[0].status, "True");
        assert_eq!(first.conditions[0].last_transition_time.as_deref(), Some("1970-01-01T00:00:00Z"));
        assert_eq!(update(Some(&first), Some(1), &[accepted("True", "Accepted")], at(9)), None);

        // Another reason keeps the time, another status does not.
        let reason = update(Some(&first), Some(1), &[accepted("True", "UnsupportedValue")], at(9)).unwrap();
        assert_eq!(reason.conditions[0].last_transition_time, first.conditions[0].last_transition_time);
        let status = update(Some(&first), Some(1), &[accepted("False", "UnsupportedValue")], at(9)).unwrap();
        assert_eq!(status.conditions[0].last_transition_time.as_deref(), Some("1970-01-01T00:00:09Z"));

        // A new generation is seen even if nothing else is.
        let seen = update(Some(&first), Some(2), &[accepted("True", "Accepted")], at(9)).unwrap();
        assert_eq!(seen.observed_generation, Some(json!(2)));
        assert_eq!(seen.conditions, first.conditions);
    }

    #[test]
    fn conditions_of_others_are_kept() {
        let theirs = PolicyCondition { type_: "Audited".into(), status: "True".into(), ..Default::default() };
        let current = PolicyStatus { conditions: vec![theirs.clone()], ..PolicyStatus::default() };
        let next = update(Some(&current), None, &[accepted("True", "Accepted")], at(0)).unwrap();
        assert_eq!(next.conditions.len(), 2);
        assert_eq!(next.conditions[0], theirs);
        // One of ours that no longer applies goes.
        let waypoint = PolicyCondition { type_: "WaypointAccepted".into(), ..accepted("False", "TargetNotFound") };
        let moved = update(Some(&next), None, &[waypoint], at(0)).unwrap();
        let types: Vec<_> = moved.conditions.iter().map(|c| c.type_.as_str()).collect();
        assert_eq!(types, ["Audited", "WaypointAccepted"]);
        assert_eq!(update(Some(&next), None, &[accepted("True", "Accepted")], at(5)), None);
    }
}
