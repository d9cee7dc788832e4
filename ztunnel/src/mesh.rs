//! What the control plane sends, applied to the mesh state: one response, one publication.

pub mod grace;

use std::sync::Arc;

use aquifer_core::from_proto;
use aquifer_core::state::{MeshState, Update};
use aquifer_core::store::Writer;
use aquifer_proto::aquifer::RootBundle;
use aquifer_proto::{security, type_url, workload};
use aquifer_tls::TrustBundle;
use aquifer_xds::client::{Rejected, ResourceSink, ResourceUpdate};
use parking_lot::Mutex;
use prost::Message;
use tokio::sync::{Notify, mpsc, watch};
use tokio::time::{Instant, sleep_until};

use self::grace::Grace;
use crate::certs::Identities;

/// What kind of change was published.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// Policies among it.
    pub policies: bool,
}

/// Takes resources in. The only writer of the mesh state; clones share it.
#[derive(Clone)]
pub struct MeshSink {
    inner: Arc<Mutex<Inner>>,
    /// There is something else to wait for.
    regraced: Arc<Notify>,
}

struct Inner {
    writer: Writer,
    identities: Identities,
    grace: Grace,
    published: watch::Sender<u64>,
    changes: mpsc::UnboundedSender<Change>,
}

impl MeshSink {
    /// `published` ticks after each publication; `changes` is told what changed, for judging connections again.
    #[must_use]
    pub fn new(
        writer: Writer,
        identities: Identities,
        published: watch::Sender<u64>,
        changes: mpsc::UnboundedSender<Change>,
    ) -> Self {
        let grace = Grace::new(&identities.node(), grace::Settings::default());
        let inner = Inner { writer, identities, grace, published, changes };
        Self { inner: Arc::new(Mutex::new(inner)), regraced: Arc::default() }
    }

    /// With other settings for policies that are not known.
    #[must_use]
    pub fn with_grace(self, settings: grace::Settings) -> Self {
        {
            let inner = &mut *self.inner.lock();
            inner.grace = Grace::new(&inner.identities.node(), settings);
            inner.writer.update(|state| inner.grace.update(state, Instant::now()));
        }
        self
    }

    /// Applies changes and publishes them at once.
    pub fn publish(&mut self, updates: Vec<Update>) {
        if updates.is_empty() {
            return;
        }
        let policies = updates.iter().any(|u| matches!(u, Update::Policy(_) | Update::RemovePolicy(_)));
        self.inner.lock().publish(updates, policies);
        self.regraced.notify_one();
    }

    /// Gives up policies that were named and did not come in time. For one task, which never ends.
    pub async fn give_up_policies(self) {
        loop {
            let next = self.inner.lock().grace.next();
            let due = async {
                match next {
                    Some(at) => sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = due => self.inner.lock().publish(Vec::new(), true),
                () = self.regraced.notified() => {}
            }
        }
    }
}

impl Inner {
    fn publish(&mut self, updates: Vec<Update>, policies: bool) {
        let Self { writer, identities, grace, .. } = self;
        writer.update(|state: &mut MeshState| {
            for update in updates {
                state.apply(update);
            }
            // Before anybody can read the new state, and judge or want a certificate by it.
            grace.update(state, Instant::now());
            identities.follow(state);
        });
        self.published.send_modify(|n| *n += 1);
        // Nobody listens any more only while the process ends.
        let _ = self.changes.send(Change { policies });
    }
}

impl ResourceSink for MeshSink {
    fn apply(&mut self, type_url: &str, updates: Vec<ResourceUpdate>) -> Vec<Rejected> {
        if type_url == type_url::ROOT_BUNDLE {
            let identities = self.inner.lock().identities.clone();
            return updates.into_iter().filter_map(|update| trust(&identities, update).err()).collect();
        }
        let mut rejected = Vec::new();
        let mut accepted = Vec::with_capacity(updates.len());
        for update in updates {
            match convert(type_url, update) {
                Ok(update) => accepted.push(update),
                Err(refused) => rejected.push(refused),
            }
        }
        self.publish(accepted);
        rejected
    }
}

/// Adopts a bundle of roots: it is acknowledged when every handshake goes by it.
fn trust(identities: &Identities, update: ResourceUpdate) -> Result<(), Rejected> {
    let (name, body) = match update {
        ResourceUpdate::Upsert { name, body, .. } => (name, Some(body)),
        ResourceUpdate::Remove { name } => (name, None),
    };
    let adopted = match body {
        Some(body) => RootBundle::decode(body)
            .map_err(|e| e.to_string())
            .and_then(|message| TrustBundle::new(&message.roots, &message.renewal).map_err(|e| e.to_string()))
            .and_then(|bundle| {
                tracing::info!(roots = bundle.roots().len(), "the control plane says whom to trust");
                identities.trust(Some(bundle))
            }),
        None => identities.trust(None),
    };
    adopted.map_err(|error| Rejected { name, error })
}

fn convert(type_url: &str, update: ResourceUpdate) -> Result<Update, Rejected> {
    let (name, body) = match update {
        ResourceUpdate::Upsert { name, body, .. } => (name, Some(body)),
        ResourceUpdate::Remove { name } => (name, None),
    };
    let refuse = |error: &dyn std::fmt::Display| Rejected { name: name.clone(), error: error.to_string() };
    match (type_url, body) {
        (type_url::ADDRESS, Some(body)) => {
            let message = workload::Address::decode(body).map_err(|e| refuse(&e))?;
            let address = from_proto::address(&message).map_err(|e| refuse(&e))?;
            Ok(match address {
                from_proto::Address::Workload(workload) => Update::Workload(workload),
                from_proto::Address::Service(service) => Update::Service(service),
            })
        }
        (type_url::ADDRESS, None) => Ok(Update::RemoveAddress(name.into())),
        (type_url::AUTHORIZATION, Some(body)) => {
            let message = security::Authorization::decode(body).map_err(|e| refuse(&e))?;
            let policy = from_proto::authorization(&message).map_err(|e| refuse(&e))?;
            Ok(Update::Policy(policy.into()))
        }
        (type_url::AUTHORIZATION, None) => Ok(Update::RemovePolicy(name.into())),
        (other, _) => Err(refuse(&format_args!("unknown type {other}"))),
    }
}

#[cfg(test)]
mod tests;
