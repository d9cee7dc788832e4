//! The roots in every namespace, for whoever mounts them: ConfigMap `istio-ca-root-cert`, key `root-cert.pem`, as Istio's.
//!
//! The leader writes them, and writes them again when somebody has edited or deleted one. Writing is paced by the writer.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use aquifer_objects::{Event, Kind, Object, ObjectKey, Selection, Source, Watch, Writer};
use aquifer_runtime::{Cancel, Tracker};
use serde_json::{Value, json};
use tokio::sync::watch;

use super::authority::Authority;

/// The ConfigMap's name, in every namespace.
pub const NAME: &str = "istio-ca-root-cert";
/// Its key.
pub const KEY: &str = "root-cert.pem";
/// Istio's label on it.
const LABEL: &str = "istio.io/config";
const MANAGER: &str = "istiod-lite";
/// After a write that failed.
const RETRY: Duration = Duration::from_secs(5);

/// What is there and what is to be.
#[derive(Debug, Default)]
pub struct Plan {
    /// Namespaces that are not on their way out.
    namespaces: BTreeSet<String>,
    /// The bundle that stands in each namespace, if the ConfigMap is as it should be otherwise.
    present: BTreeMap<String, Option<String>>,
}

impl Plan {
    /// Takes an event of namespaces and of our ConfigMaps.
    pub fn take(&mut self, event: &Event) {
        match event {
            Event::Applied(Object::Namespace(namespace)) => {
                let name = namespace.metadata.name.clone().unwrap_or_default();
                if namespace.metadata.deletion_timestamp.is_some() {
                    self.namespaces.remove(&name);
                } else {
                    self.namespaces.insert(name);
                }
            }
            Event::Applied(object @ Object::ConfigMap(map)) if object.name() == NAME => {
                let labelled = object.label(LABEL) == Some("true");
                let bundle = map.data.as_ref().and_then(|data| data.get(KEY)).cloned();
                self.present.insert(object.namespace().to_owned(), bundle.filter(|_| labelled));
            }
            Event::Deleted(key) if key.kind == Kind::Namespace => {
                self.namespaces.remove(&*key.name);
                self.present.remove(&*key.name);
            }
            Event::Deleted(key) if key.kind == Kind::ConfigMap && *key.name == *NAME => {
                self.present.remove(&*key.namespace);
            }
            _ => {}
        }
    }

    /// Namespaces whose ConfigMap does not hold `bundle`.
    pub fn lacking(&self, bundle: &str) -> Vec<String> {
        let has = |namespace: &&String| self.present.get(*namespace).and_then(Option::as_deref) == Some(bundle);
        self.namespaces.iter().filter(|namespace| !has(namespace)).cloned().collect()
    }

    /// It was written there.
    pub fn written(&mut self, namespace: &str, bundle: &str) {
        self.present.insert(namespace.to_owned(), Some(bundle.to_owned()));
    }
}

/// Keeps them while this replica leads.
pub fn start(
    source: &Source,
    authority: Authority,
    leader: watch::Receiver<bool>,
    tracker: &Tracker,
    cancel: &Cancel,
) -> Result<(), aquifer_objects::SourceError> {
    let ours = Selection::from(Kind::ConfigMap).named(NAME);
    let watch = source.watch_selected(vec![Selection::from(Kind::Namespace), ours])?;
    let (writer, cancel) = (source.writer(MANAGER), cancel.clone());
    tracker.spawn("root certificates", async move {
        tokio::select! {
            biased;
            () = cancel.drained() => {}
            () = keep(watch, writer, authority, leader) => {}
        }
    });
    Ok(())
}

async fn keep(mut watch: Watch, writer: Writer, authority: Authority, mut leader: watch::Receiver<bool>) {
    let (mut plan, mut synced) = (Plan::default(), false);
    let mut changes = authority.subscribe();
    let mut told = String::new();
    loop {
        let mut failed = false;
        if synced && *leader.borrow_and_update() {
            changes.mark_unchanged();
            let bundle = authority.load().issuer.root_bundle().to_owned();
            for namespace in plan.lacking(&bundle) {
                // What has come meanwhile counts: a namespace may be gone, the bundle another.
                while let Some(event) = watch.try_next() {
                    plan.take(&event);
                }
                if changes.has_changed().unwrap_or(false) || !*leader.borrow() {
                    break;
                }
                match writer.apply(object(&namespace, &bundle)).await {
                    Ok(_) => plan.written(&namespace, &bundle),
                    Err(error) => {
                        failed = true;
                        let error = error.to_string();
                        if error != told {
                            tracing::warn!(namespace, %error, "root certificate not written");
                            told = error;
                        }
                    }
                }
            }
        }
        tokio::select! {
            event = watch.next() => match event {
                Some(Event::Synced) => synced = true,
                Some(event) => plan.take(&event),
                None => return,
            },
            changed = changes.changed() => if changed.is_err() { return },
            changed = leader.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

fn object(namespace: &str, bundle: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": { "name": NAME, "namespace": namespace, "labels": { LABEL: "true" } },
        "data": { KEY: bundle },
    })
}

/// The ConfigMap of a namespace.
pub fn key(namespace: &str) -> ObjectKey {
    ObjectKey::new(Kind::ConfigMap, namespace, NAME)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    fn namespace(name: &str, going: bool) -> Event {
        let mut value = json!({ "metadata": { "name": name } });
        if going {
            value["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
        }
        Event::Applied(Object::Namespace(Arc::new(serde_json::from_value(value).unwrap())))
    }

    fn map(namespace: &str, bundle: &str, edit: impl FnOnce(&mut Value)) -> Event {
        let mut value = object(namespace, bundle);
        edit(&mut value);
        Event::Applied(Object::ConfigMap(Arc::new(serde_json::from_value(value).unwrap())))
    }

    #[test]
    fn every_namespace_has_the_bundle_and_edits_are_undone() {
        let mut plan = Plan::default();
        let steps: Vec<(Event, &[&str])> = vec![
            (namespace("a", false), &["a"]),
            (namespace("b", false), &["a", "b"]),
            (map("a", "roots", |_| {}), &["b"]),
            (map("b", "old roots", |_| {}), &["b"]),
            (map("b", "roots", |_| {}), &[]),
            (map("a", "roots", |v| v["data"] = json!({})), &["a"]),
            (map("a", "roots", |v| v["metadata"]["labels"] = json!({})), &["a"]),
            (map("a", "roots", |v| v["metadata"]["name"] = json!("other")), &["a"]),
            (map("a", "roots", |_| {}), &[]),
            (Event::Deleted(key("a")), &["a"]),
            (namespace("a", true), &[]),
            (namespace("a", false), &["a"]),
            (Event::Deleted(ObjectKey::new(Kind::Namespace, "", "a")), &[]),
        ];
        for (number, (event, expect)) in steps.into_iter().enumerate() {
            plan.take(&event);
            assert_eq!(plan.lacking("roots"), expect, "step {number}");
        }
        assert_eq!(plan.lacking("new roots"), ["b"]);
        plan.written("b", "new roots");
        assert!(plan.lacking("new roots").is_empty());
    }
}
