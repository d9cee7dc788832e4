//! From what the API server tells of one kind to events: nothing twice, nothing lost.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};
use tokio::sync::{mpsc, watch};
use tokio::time::sleep;

use super::crds::{self, Crds};
use super::follow::{Backoff, Follow, Sink};
use super::metrics::{Fresh, Freshness};
use super::write::missing_rule;
use super::{Rest, RestError};
use crate::Event;
use crate::folder::merge::content_hash;
use crate::kinds::{Kind, Object, ObjectKey};
use crate::parse;
use crate::source::Selection;

/// What a kind's follower says.
#[derive(Debug)]
pub(super) enum Step {
    Event(Event),
    /// All that existed of it was told. Said once.
    Listed,
}

/// The objects of one selection as they were told.
pub(super) struct Objects {
    selection: Selection,
    fresh: Fresh,
    events: mpsc::Sender<Step>,
    /// The hash of what was sent, and the list that last had the object.
    sent: HashMap<ObjectKey, (u64, u32)>,
    /// The number of the list under way or, between lists, of the last.
    list: u32,
    listed: bool,
    bad: HashMap<ObjectKey, String>,
}

impl Objects {
    pub(super) fn new(selection: Selection, freshness: &Arc<Freshness>, events: mpsc::Sender<Step>) -> Self {
        let fresh = Fresh::begin(freshness, selection.kind.as_str());
        let (sent, bad) = (HashMap::new(), HashMap::new());
        Self { selection, fresh, events, sent, list: 0, listed: false, bad }
    }

    /// Follows the kind for good, through every life of its CRD.
    pub(super) async fn run(mut self, rest: Rest, mut crds: watch::Receiver<Crds>) {
        let kind = self.selection.kind;
        if !kind.optional() {
            let follow = Follow::new(&rest, &self.selection, kind.api_version());
            let mut backoff = Backoff::default();
            loop {
                // Ends only when the collection itself is not found, which no API server says for long.
                follow.run(&mut self).await;
                sleep(backoff.next()).await;
            }
        }
        let mut backoff = Backoff::default();
        loop {
            if !crds::is_there(&mut crds, kind).await {
                self.absent().await;
                crds::appears(&mut crds, kind).await;
                backoff.reset();
            }
            match rest.find_version(kind).await {
                Ok(Some(version)) => {
                    let follow = Follow::new(&rest, &self.selection, &version);
                    tokio::select! {
                        biased;
                        () = crds::goes(&mut crds, kind) => continue,
                        () = follow.run(&mut self) => {}
                    }
                }
                Ok(None) => {}
                Err(error) => self.failed(&error, "get"),
            }
            // The CRD is there but not served (any more): in a moment one of both is so no longer.
            sleep(backoff.next()).await;
        }
    }

    /// Nobody serves the kind: it has no objects.
    async fn absent(&mut self) {
        if !self.sent.is_empty() {
            tracing::info!(kind = %self.selection.kind, objects = self.sent.len(), "no longer served: its objects are gone");
        }
        let gone: Vec<ObjectKey> = self.sent.drain().map(|(key, _)| key).collect();
        for key in gone {
            self.send(Step::Event(Event::Deleted(key))).await;
        }
        self.fresh.absent();
        self.told_all().await;
    }

    async fn told_all(&mut self) {
        if !std::mem::replace(&mut self.listed, true) {
            self.send(Step::Listed).await;
        }
    }

    async fn send(&self, step: Step) {
        // Fails only if the watch is gone, and then nobody polls this.
        let _ = self.events.send(step).await;
    }

    fn count(&self) {
        self.fresh.objects(self.sent.len());
    }
}

impl Sink for Objects {
    fn begin(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    async fn upsert(&mut self, mut object: Value) {
        let key = key(self.selection.kind, &object);
        // Whoever reads needs to know the object, not the hour of its last touch.
        if let Some(meta) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            meta.remove("resourceVersion");
        }
        // Stand in what is watched, but not in what is listed.
        if let Some(fields) = object.as_object_mut() {
            fields.remove("kind");
            fields.remove("apiVersion");
        }
        let hash = content_hash(&object);
        if let Some((sent, list)) = self.sent.get_mut(&key) {
            *list = self.list;
            if *sent == hash {
                self.bad.remove(&key);
                return;
            }
        }
        match typed(self.selection.kind, &mut object) {
            Ok(object) => {
                self.bad.remove(&key);
                self.sent.insert(key, (hash, self.list));
                self.send(Step::Event(Event::Applied(object))).await;
            }
            Err((_, message)) => {
                let stays = if self.sent.contains_key(&key) { "; what it said before stays" } else { "" };
                if self.bad.get(&key) != Some(&message) {
                    tracing::error!("{key}: {message}{stays}");
                    self.bad.insert(key, message);
                }
            }
        }
        self.count();
    }

    async fn remove(&mut self, object: Value) {
        let key = key(self.selection.kind, &object);
        self.bad.remove(&key);
        if self.sent.remove(&key).is_some() {
            self.send(Step::Event(Event::Deleted(key))).await;
        }
        self.count();
    }

    async fn complete(&mut self) {
        let list = self.list;
        let gone: Vec<ObjectKey> =
            self.sent.iter().filter(|(_, (_, seen))| *seen != list).map(|(key, _)| key.clone()).collect();
        for key in gone {
            self.sent.remove(&key);
            self.send(Step::Event(Event::Deleted(key))).await;
        }
        self.count();
        self.told_all().await;
    }

    fn live(&mut self) {
        if self.fresh.live() {
            tracing::info!(kind = %self.selection.kind, "watched again");
        }
    }

    fn failed(&mut self, error: &RestError, verb: &'static str) {
        let kind = self.selection.kind;
        let (reason, mut message) = (reason(error), error.to_string());
        if error.code == 403 {
            message = missing_rule(kind, verb, "", self.selection.namespace.as_deref(), &error.message);
        }
        // That nobody answers is said once for all kinds; a refusal for each.
        if !self.fresh.failed(reason, &message, error.code == 0) {
            return;
        }
        match reason {
            "gone" => {}
            "forbidden" | "unauthorized" => tracing::error!(%kind, "cannot {verb}: {message}"),
            _ => tracing::warn!(%kind, "cannot {verb}: {message}; what is known stays, and is tried again"),
        }
    }
}

/// What kind of trouble it is, for the metric.
pub(super) fn reason(error: &RestError) -> &'static str {
    match error.code {
        0 => "unreachable",
        401 => "unauthorized",
        403 => "forbidden",
        404 => "not_found",
        410 => "gone",
        429 => "throttled",
        _ => "server",
    }
}

fn key(kind: Kind, object: &Value) -> ObjectKey {
    let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default();
    ObjectKey::new(kind, text("namespace"), text("name"))
}

/// The object, or its name and what is wrong with its shape. What more a folder would refuse was taken here: whoever
/// reads it says so on the object.
pub(super) fn typed(kind: Kind, value: &mut Value) -> Result<Object, (String, String)> {
    value["apiVersion"] = json!(kind.api_version());
    value["kind"] = json!(kind.manifest_name());
    parse::fill_in(value);
    parse::shaped(kind, value).map_err(|(field, message)| {
        let message = if field.is_empty() { message } else { format!("{field}: {message}") };
        (key(kind, value).to_string(), message)
    })
}
