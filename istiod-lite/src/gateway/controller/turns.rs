//! Whose turn it is, and when.

use std::time::Duration;

use aquifer_objects::ObjectKey;
use tokio::time::Instant;

use super::Controller;

/// So many rounds of one Gateway in [`WINDOW`] before it has to wait: somebody fights us.
const ROUNDS: u32 = 100;
const WINDOW: Duration = Duration::from_secs(30);

impl Controller {
    /// When there is something to do; nothing before everything was seen.
    pub(in crate::gateway) fn next_due(&self, now: Instant) -> Option<Instant> {
        if !self.synced {
            return None;
        }
        if self.classes_due { Some(now) } else { self.due.first().map(|(at, _)| *at) }
    }

    /// The Gateway whose turn it is, if any. Who comes too often waits.
    pub(in crate::gateway) fn next(&mut self, now: Instant) -> Option<ObjectKey> {
        loop {
            let (at, _) = self.due.first()?;
            if *at > now {
                return None;
            }
            let (_, key) = self.due.pop_first()?;
            self.due.retain(|(_, other)| *other != key);
            let (since, rounds) = self.rounds.entry(key.clone()).or_insert((now, 0));
            if now - *since > WINDOW {
                (*since, *rounds) = (now, 0);
            }
            *rounds += 1;
            if *rounds <= ROUNDS {
                return Some(key);
            }
            if *rounds == ROUNDS + 1 {
                tracing::warn!(gateway = %key, "changes all the time; it is looked at every {WINDOW:?} until it rests");
            }
            self.due.insert((*since + WINDOW + Duration::from_millis(1), key));
        }
    }

    /// It is to be looked at again after `pause`.
    pub(in crate::gateway) fn again(&mut self, key: &ObjectKey, now: Instant, pause: Duration) {
        self.due.insert((now + pause, key.clone()));
    }
}
