//! A Kubernetes API server: its objects as events, and writing them by server-side apply.
//!
//! ```text
//!   GET /apis/…?limit ──pages──► prune ──► differs from what was sent? ──► Event
//!   GET /apis/…?watch ──lines──►   │            (content hash)
//!        ▲                         └ what nobody reads never becomes an object
//!        └ bookmarks · 410: list again · trouble: back off, go on where we were
//!   CustomResourceDefinitions (metadata) ──► kinds that come and go
//! ```
//!
//! Invariants:
//! * A watch does its work only while it is polled: no tasks of its own, and who is slow slows the API server's stream.
//! * What was sent stands until the API server says otherwise: its absence costs nothing but staleness.

mod connect;
mod crds;
mod follow;
mod install;
mod metrics;
mod prune;
mod reflect;
mod rest;
mod stream;
#[cfg(test)]
mod tests;
mod write;

use std::path::Path;
use std::sync::Arc;

use futures_util::Stream;
use parking_lot::Mutex;
use prometheus_client::registry::Registry;

use self::follow::{Follow, List};
pub use self::install::Installed;
pub(crate) use self::metrics::Asking;
use self::metrics::Freshness;
use self::prune::Pruned;
pub(crate) use self::rest::{Rest, RestError, get};
pub use self::write::ClusterWriter;
use crate::Event;
use crate::kinds::{Object, ObjectKey};
use crate::source::Selection;

/// An API server and how to reach it. Cloning is cheap.
#[derive(Clone, Debug)]
pub struct Cluster {
    rest: Rest,
    freshness: Arc<Freshness>,
    pace: Arc<Mutex<write::Pace>>,
}

/// Why an API server cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ClusterError {
    /// Where it is, or who we are, cannot be told.
    #[error("{0}")]
    Settings(String),
    /// It did not answer as it should.
    #[error("{0}")]
    Answer(String),
}

impl From<RestError> for ClusterError {
    fn from(error: RestError) -> Self {
        Self::Answer(error.to_string())
    }
}

impl Cluster {
    /// The API server of the pod that we run in, as its service account.
    pub fn in_cluster() -> Result<Self, ClusterError> {
        connect::in_cluster().map(Self::new)
    }

    /// The API server of a kubeconfig's current context.
    pub async fn from_kubeconfig(file: &Path) -> Result<Self, ClusterError> {
        connect::kubeconfig(file).await.map(Self::new)
    }

    /// Through a client of the caller's: another stack of layers, or a test's script.
    pub fn new(client: kube::Client) -> Self {
        Self { rest: Rest::new(client), freshness: Arc::default(), pace: Arc::default() }
    }

    /// The client, for what is not an object: reviews of tokens and of rights.
    pub fn client(&self) -> kube::Client {
        self.rest.client()
    }

    pub(crate) fn rest(&self) -> Rest {
        self.rest.clone()
    }

    /// For whoever asks the API server's store itself, every few seconds, until it is dropped.
    pub(crate) fn asking(&self) -> Asking {
        Asking::new(&self.freshness)
    }

    /// Adds how old the objects are, and what went wrong, to the registry.
    pub fn register(&self, registry: &mut Registry) {
        metrics::register(&self.freshness, registry);
    }

    /// Sends every object of the selections, then `Synced`, then each change. Never ends.
    pub fn watch(&self, selections: Vec<Selection>) -> impl Stream<Item = Event> + Send + use<> {
        stream::Watched::new(&self.rest, &self.freshness, selections)
    }

    /// Every object of the selections as it stands now, and what could not be read, as sentences.
    pub async fn read(&self, selections: &[Selection]) -> Result<(Vec<Object>, Vec<String>), ClusterError> {
        let (mut objects, mut problems) = (Vec::new(), Vec::new());
        for selection in selections {
            let Some(version) = self.rest.find_version(selection.kind).await? else { continue };
            let mut list = List::default();
            let follow = Follow::new(&self.rest, selection, &version);
            while let Some(values) = follow.page(&mut list).await? {
                for mut value in values {
                    match reflect::typed(selection.kind, &mut value) {
                        Ok(object) => objects.push(object),
                        Err((name, message)) => problems.push(format!("{} {name}: {message}", selection.kind)),
                    }
                }
            }
        }
        objects.sort_by_cached_key(Object::key);
        Ok((objects, problems))
    }

    /// One object as it stands now.
    pub async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, ClusterError> {
        let Some(version) = self.rest.find_version(key.kind).await? else { return Ok(None) };
        let path = format!("{}/{}", rest::collection(key.kind, &version, Some(&key.namespace)), key.name);
        let body = match self.rest.call(rest::get(&path)).await {
            Ok(body) => body,
            Err(error) if error.code == 404 => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let mut value = Pruned::all().read(&body).map_err(|error| ClusterError::Answer(error.to_string()))?;
        let typed = reflect::typed(key.kind, &mut value);
        typed.map(Some).map_err(|(_, message)| ClusterError::Answer(format!("{key}: {message}")))
    }

    /// A writer of one field manager's fields.
    pub fn writer(&self, manager: &'static str) -> ClusterWriter {
        ClusterWriter::new(self.rest.clone(), manager, Arc::clone(&self.pace))
    }
}
