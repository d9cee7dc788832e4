//! Which kinds the API server has a CustomResourceDefinition of, by their metadata.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde_json::Value;
use tokio::sync::watch;

use super::follow::{Backoff, Follow, Sink};
use super::metrics::{Fresh, Freshness};
use super::prune::Pruned;
use super::reflect::reason;
use super::{Rest, RestError};
use crate::kinds::Kind;

const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const KIND: &str = "CustomResourceDefinition";

/// The names (`<plural>.<group>`) of those that there are; `None` before the first list.
pub(super) type Crds = Option<BTreeSet<String>>;

/// Follows them for good.
pub(super) async fn run(rest: Rest, freshness: Arc<Freshness>, names: watch::Sender<Crds>) {
    let follow = Follow::metadata(&rest, PATH, Pruned::of_names());
    let mut sink = Names { fresh: Fresh::begin(&freshness, KIND), listing: Some(BTreeSet::new()), names };
    let mut backoff = Backoff::default();
    loop {
        follow.run(&mut sink).await;
        tokio::time::sleep(backoff.next()).await;
    }
}

/// Whether the kind is there; waits until that is known.
pub(super) async fn is_there(crds: &mut watch::Receiver<Crds>, kind: Kind) -> bool {
    let name = name(kind);
    let there = match crds.wait_for(Option::is_some).await {
        Ok(names) => Some(names.as_ref().is_some_and(|names| names.contains(&name))),
        Err(_) => None,
    };
    match there {
        Some(there) => there,
        // The follower went with the watch that we are of.
        None => std::future::pending().await,
    }
}

/// Waits until the kind is there.
pub(super) async fn appears(crds: &mut watch::Receiver<Crds>, kind: Kind) {
    becomes(crds, kind, true).await;
}

/// Waits until the kind is no longer there.
pub(super) async fn goes(crds: &mut watch::Receiver<Crds>, kind: Kind) {
    becomes(crds, kind, false).await;
}

async fn becomes(crds: &mut watch::Receiver<Crds>, kind: Kind, there: bool) {
    let name = name(kind);
    let so = |names: &Crds| names.as_ref().is_some_and(|names| names.contains(&name) == there);
    let gone = crds.wait_for(so).await.is_err();
    if gone {
        std::future::pending::<()>().await;
    }
}

fn name(kind: Kind) -> String {
    format!("{}.{}", kind.plural(), kind.group())
}

struct Names {
    fresh: Fresh,
    /// The list under way.
    listing: Option<BTreeSet<String>>,
    names: watch::Sender<Crds>,
}

impl Names {
    fn publish(&self, change: impl FnOnce(&mut BTreeSet<String>) -> bool) {
        self.names.send_if_modified(|names| names.as_mut().is_some_and(change));
    }
}

impl Sink for Names {
    fn begin(&mut self) {
        self.listing = Some(BTreeSet::new());
    }

    async fn upsert(&mut self, object: Value) {
        let Some(name) = object["metadata"]["name"].as_str() else { return };
        match &mut self.listing {
            Some(listing) => {
                listing.insert(name.to_owned());
            }
            None => self.publish(|names| names.insert(name.to_owned())),
        }
    }

    async fn remove(&mut self, object: Value) {
        let Some(name) = object["metadata"]["name"].as_str() else { return };
        self.publish(|names| names.remove(name));
    }

    async fn complete(&mut self) {
        let listed = self.listing.take();
        self.names.send_if_modified(|names| {
            let differs = *names != listed;
            *names = listed;
            differs
        });
    }

    fn live(&mut self) {
        self.fresh.live();
    }

    fn failed(&mut self, error: &RestError, verb: &'static str) {
        let mut message = error.to_string();
        if error.code == 403 {
            message = format!(
                "the RBAC rule apiGroups: [\"apiextensions.k8s.io\"], resources: [\"customresourcedefinitions\"], verbs: \
                 [\"list\", \"watch\"] is missing ({})",
                error.message
            );
        }
        if self.fresh.failed(reason(error), &message, error.code == 0) && error.code != 410 {
            tracing::warn!("cannot {verb} custom resource definitions: {message}");
        }
    }
}
