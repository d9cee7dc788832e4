//! Which of several replicas writes: the one that holds a Lease.
//!
//! ```text
//!   holder gone or silent for 15 s (by our own clock) ──► taken ──► renewed every 2 s
//!                                                              └ not for 10 s: steps down, 5 s before anyone may take it
//! ```
//!
//! Times and record are those of client-go, so that `kubectl get lease` reads as usual. A folder is led by who holds
//! the lock of a file in it.

mod folder;
mod record;
#[cfg(test)]
mod tests;

use std::time::Duration;

use tokio::sync::watch;
use tokio::time::Instant;

use self::folder::FileLock;
use self::record::{Held, Record, Stored};
use crate::source::Source;

/// Others may take a lease that was not renewed for so long.
pub const DURATION: Duration = Duration::from_secs(15);
/// Who could not renew for so long leads no longer.
pub const RENEW_DEADLINE: Duration = Duration::from_secs(10);
/// How often it is renewed, and how often others look.
pub const RETRY: Duration = Duration::from_secs(2);
/// Giving it back must not hold up an end.
const RELEASE: Duration = Duration::from_secs(2);

/// The endeavour to lead. Nothing happens but in [`Leadership::run`].
#[derive(Debug)]
pub struct Leadership {
    store: Store,
    leading: watch::Sender<bool>,
}

#[derive(Debug)]
enum Store {
    Lease(Box<Lease<Stored>>),
    Folder(FileLock),
}

impl Leadership {
    /// For the lease `name` in `namespace`, as `identity`, which no other process has, nor an earlier life of this one.
    /// The receiver tells whether we lead.
    pub fn new(source: &Source, namespace: &str, name: &str, identity: String) -> (Self, watch::Receiver<bool>) {
        let store = match source {
            Source::Folder(folder) => Store::Folder(FileLock::new(folder.root(), name)),
            Source::Cluster(cluster) => {
                let stored = Stored::new(cluster.rest(), cluster.asking(), namespace, name);
                Store::Lease(Box::new(Lease::new(stored, identity)))
            }
        };
        let (leading, receiver) = watch::channel(false);
        (Self { store, leading }, receiver)
    }

    /// Seeks to lead, and leads, until `end`; then gives it back, so that the next one leads at once.
    pub async fn run(self, end: impl Future<Output = ()>) {
        match self.store {
            Store::Lease(lease) => lease.run(&self.leading, end).await,
            Store::Folder(lock) => lock.run(&self.leading, end).await,
        }
    }
}

/// Where a record lies; only one who has read the last one can write the next.
trait Leases: Send {
    async fn read(&self) -> Result<Option<Held>, String>;
    /// Writes over what was read (`None`: nothing). `false` if another was faster.
    async fn write(&self, over: Option<&Held>, record: &Record) -> Result<bool, String>;
}

/// One candidate.
#[derive(Debug)]
struct Lease<S> {
    leases: S,
    identity: String,
    /// The record as last seen, and since when it has looked so.
    seen: Option<(Record, Instant)>,
}

impl<S: Leases> Lease<S> {
    fn new(leases: S, identity: String) -> Self {
        Self { leases, identity, seen: None }
    }

    async fn run(mut self, leading: &watch::Sender<bool>, end: impl Future<Output = ()>) {
        let mut end = std::pin::pin!(end);
        // Until when we lead, if we do.
        let mut until: Option<Instant> = None;
        loop {
            let begun = Instant::now();
            let patience = until.map_or(RENEW_DEADLINE, |until| until.saturating_duration_since(begun));
            let tried = tokio::select! {
                biased;
                () = &mut end => break,
                tried = tokio::time::timeout(patience, self.attempt()) => tried,
            };
            match tried {
                Ok(Ok(true)) => {
                    // From before it was written: nobody saw it earlier.
                    until = Some(begun + RENEW_DEADLINE);
                    if !leading.send_replace(true) {
                        tracing::info!(identity = self.identity, "leads");
                    }
                }
                Ok(Ok(false)) if until.take().is_some() => {
                    leading.send_replace(false);
                    tracing::warn!(identity = self.identity, "another replica leads: this one was taken for gone");
                }
                Ok(Ok(false)) => {}
                Ok(Err(error)) if until.is_some() => tracing::warn!(%error, "leadership not renewed yet"),
                Ok(Err(error)) => tracing::debug!(%error, "the lease cannot be read"),
                Err(_) => {}
            }
            let nap = RETRY.mul_f64(rand::random_range(1.0..=1.2));
            let wake = Instant::now() + nap;
            tokio::select! {
                biased;
                () = &mut end => break,
                () = tokio::time::sleep_until(until.map_or(wake, |until| until.min(wake))) => {}
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                until = None;
                leading.send_replace(false);
                tracing::warn!(identity = self.identity, "leads no longer: not renewed within {RENEW_DEADLINE:?}");
            }
        }
        if leading.send_replace(false) {
            let _ = tokio::time::timeout(RELEASE, self.release()).await;
        }
    }

    /// Takes or renews it, if it may be; whether we hold it.
    async fn attempt(&mut self) -> Result<bool, String> {
        let held = self.leases.read().await?;
        let now = Instant::now();
        let Some(held) = held else {
            let record = Record::taken(&self.identity, None);
            return self.leases.write(None, &record).await;
        };
        if self.seen.as_ref().is_none_or(|(record, _)| *record != held.record) {
            self.seen = Some((held.record.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, since)| *since);
        let free = held.record.holder.is_empty() || since + held.record.duration <= now;
        if held.record.holder == self.identity {
            let record = Record::renewed(&held.record);
            return match self.leases.write(Some(&held), &record).await? {
                true => Ok(true),
                false => Err("the lease changed meanwhile".to_owned()),
            };
        }
        if !free {
            return Ok(false);
        }
        let record = Record::taken(&self.identity, Some(&held.record));
        self.leases.write(Some(&held), &record).await
    }

    async fn release(&mut self) {
        let Ok(Some(held)) = self.leases.read().await else { return };
        if held.record.holder == self.identity {
            let released = self.leases.write(Some(&held), &Record::released(&held.record)).await;
            tracing::info!(released = released == Ok(true), "leads no longer");
        }
    }
}
