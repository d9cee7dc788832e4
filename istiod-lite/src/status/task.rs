//! The task that writes, and the handle by which others say what they want.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_objects::{Kind, Object, ObjectKey, Source, WriteError, Writer};
use aquifer_runtime::{Cancel, Tracker};
use parking_lot::Mutex;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::board::{Board, Turn};
use super::bucket::TokenBucket;
use super::{Condition, Wanted};
use crate::revision::{self, Revision};

/// Changes are gathered for so long: the conditions of one `apply` often change twice within it.
const GATHER: Duration = Duration::from_millis(100);

/// Where the publisher and the Gateway controller leave what they want to be read. Cloning is cheap.
#[derive(Clone)]
pub struct StatusQueue(Arc<Queue>);

struct Queue {
    board: Mutex<Board>,
    wake: Notify,
}

impl StatusQueue {
    /// A queue for this store, for the objects of this revision.
    pub fn new(source: &Source, revision: &Revision) -> Self {
        let board = Board::new(matches!(source, Source::Cluster(_)), revision.clone());
        Self(Arc::new(Queue { board: Mutex::new(board), wake: Notify::new() }))
    }

    /// The object as it stands; of a namespace, the revision that it names for its objects.
    pub fn observed(&self, object: &Object) {
        self.change(|board| match object {
            Object::Namespace(_) => board.namespace(object.name(), object.label(revision::LABEL)),
            _ => board.observed(object),
        });
    }

    /// The object is gone.
    pub fn forget(&self, key: &ObjectKey) {
        self.change(|board| board.forget(key));
    }

    /// Conditions that shall stand in the object; those of a route, for each of its parents that is ours.
    pub fn conditions(&self, key: &ObjectKey, conditions: Vec<Condition>) {
        self.change(|board| board.want_conditions(key, conditions));
    }

    /// What shall stand in the object's status.
    pub fn want(&self, key: &ObjectKey, wanted: Wanted) {
        self.change(|board| board.want(key, wanted));
    }

    /// The automatic addresses of a ServiceEntry: host and address.
    pub fn addresses(&self, key: &ObjectKey, addresses: Vec<(String, String)>) {
        self.change(|board| board.want_addresses(key, addresses));
    }

    /// What stands is no longer our business.
    pub fn release(&self, key: &ObjectKey) {
        self.change(|board| board.release(key));
    }

    fn change(&self, change: impl FnOnce(&mut Board)) {
        change(&mut self.0.board.lock());
        self.0.wake.notify_one();
    }

    /// Starts the task that writes while `leader` says so.
    pub fn start(&self, source: &Source, leader: watch::Receiver<bool>, tracker: &Tracker, cancel: &Cancel) {
        let task = Task {
            queue: self.clone(),
            source: source.clone(),
            writers: BTreeMap::new(),
            bucket: TokenBucket::new(Instant::now()),
            refused: BTreeSet::new(),
        };
        let cancel = cancel.clone();
        tracker.spawn("status", async move {
            tokio::select! {
                biased; // What is not written at the end is written by the next leader.
                () = cancel.drained() => {}
                () = task.run(leader) => {}
            }
        });
    }
}

struct Task {
    queue: StatusQueue,
    source: Source,
    writers: BTreeMap<&'static str, Writer>,
    bucket: TokenBucket,
    /// Kinds that we were told we may not write, so that it is said once.
    refused: BTreeSet<Kind>,
}

impl Task {
    async fn run(mut self, mut leader: watch::Receiver<bool>) {
        loop {
            if leader.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            self.queue.0.board.lock().examine_all();
            loop {
                tokio::select! {
                    biased;
                    lost = leader.wait_for(|leads| !*leads) => match lost {
                        Ok(_) => break,
                        Err(_) => return,
                    },
                    () = self.round() => {}
                }
            }
        }
    }

    /// Waits for something to do, and does it.
    async fn round(&mut self) {
        let due = self.queue.0.board.lock().next_due(Instant::now());
        match due {
            Some(at) if at <= Instant::now() => {}
            Some(at) => {
                tokio::select! {
                    () = tokio::time::sleep_until(at) => {}
                    () = self.queue.0.wake.notified() => {}
                }
                tokio::time::sleep(GATHER).await;
            }
            None => {
                self.queue.0.wake.notified().await;
                tokio::time::sleep(GATHER).await;
            }
        }
        loop {
            let wall = OffsetDateTime::now_utc().replace_nanosecond(0).unwrap_or(OffsetDateTime::UNIX_EPOCH);
            let wall = wall.format(&Rfc3339).unwrap_or_default();
            let Some(turn) = self.queue.0.board.lock().next(Instant::now(), &wall) else { return };
            self.write(turn).await;
        }
    }

    async fn write(&mut self, turn: Turn) {
        let Turn { key, writes, contested } = turn;
        if let Some(pause) = contested {
            tracing::warn!(%key, ?pause, "another controller overwrites our part of this status; ours is written again, ever more seldom");
        }
        for write in writes {
            while let Err(nap) = self.bucket.take(Instant::now()) {
                tokio::time::sleep(nap).await;
            }
            let source = &self.source;
            let writer = self.writers.entry(write.manager).or_insert_with(|| source.writer(write.manager)).clone();
            match writer.apply_status(&key, write.status).await {
                Ok(()) => {}
                // It was deleted meanwhile, and we shall be told.
                Err(WriteError::NotFound(_)) => self.queue.0.board.lock().failed(&key),
                Err(error) => {
                    self.queue.0.board.lock().failed(&key);
                    if self.refused.insert(key.kind) {
                        tracing::warn!(%key, %error, "status not written; it is tried again, and others of this kind are not named");
                    } else {
                        tracing::debug!(%key, %error, "status not written");
                    }
                }
            }
        }
    }
}
