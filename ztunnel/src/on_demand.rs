//! Workloads and services that are asked for one by one (`XDS_ON_DEMAND`).
//!
//! An answer is in the mesh state by the time that it is told here; all that is kept is that there was one. What does not
//! exist may come into being without our being told (Istio's control plane does not), so it is asked for again now and
//! then, by whoever comes next, who does not wait for that.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::demand::Key;
use aquifer_proto::type_url;
use aquifer_runtime::Tracker;
use aquifer_xds::client::demand::Demander;
use parking_lot::Mutex;
use tokio::time::{Instant, timeout};

/// How long an answer is waited for.
const PATIENCE: Duration = Duration::from_secs(5);

/// For how long "there is no such thing" needs no second question.
const FRESH: Duration = Duration::from_secs(30);

/// Answers that are remembered; beyond, all are forgotten and asked for anew.
const REMEMBERED: usize = 16_384;

/// Asks for resources, for all workers.
#[derive(Debug)]
pub struct OnDemand {
    demander: Demander,
    tasks: Tracker,
    /// When each was answered, or asked for again.
    answered: Mutex<HashMap<Key, Instant>>,
}

/// Why there is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The control plane is away, or slow.
    #[error("the control plane did not answer in time")]
    Timeout,
    /// This process is about to end.
    #[error("the control plane is not asked any more")]
    Closed,
}

impl OnDemand {
    /// Asks through `demander`; `tasks` are for what nobody waits for.
    #[must_use]
    pub fn new(demander: Demander, tasks: Tracker) -> Self {
        Self { demander, tasks, answered: Mutex::default() }
    }

    /// Whether there was an answer for this key: if it isn't in the state, it doesn't exist.
    pub fn is_known(self: &Arc<Self>, key: &Key) -> bool {
        let now = Instant::now();
        {
            let mut answered = self.answered.lock();
            let Some(at) = answered.get_mut(key) else { return false };
            if now.duration_since(*at) < FRESH {
                return true;
            }
            // One asks, the others go by what is known.
            *at = now;
        }
        let (this, key) = (self.clone(), key.clone());
        self.tasks.spawn("ask-again", async move {
            if let Err(error) = this.ask(&key).await {
                tracing::debug!(%key, %error, "asked again in vain");
            }
        });
        true
    }

    /// Waits for the answer.
    pub async fn ask(&self, key: &Key) -> Result<(), AskError> {
        let name = key.to_string();
        match timeout(PATIENCE, self.demander.demand(type_url::ADDRESS, &name)).await {
            Ok(true) => {
                let mut answered = self.answered.lock();
                if answered.len() >= REMEMBERED {
                    answered.clear();
                }
                answered.insert(key.clone(), Instant::now());
                Ok(())
            }
            Ok(false) => Err(AskError::Closed),
            Err(_) => Err(AskError::Timeout),
        }
    }
}

#[cfg(test)]
mod tests;
