//! The cancellation tree: process → pod → connection, each with a soft end (drain) and a hard one (force).

use std::time::Duration;

use tokio_util::sync::CancellationToken;

use crate::Tracker;

/// One node of the tree. Clones are the same node; [`Cancel::child`] makes one below it.
///
/// Dropping a handle signals nothing: whoever waits on [`Cancel::drained`] keeps waiting.
#[derive(Clone, Debug, Default)]
pub struct Cancel {
    drain: CancellationToken,
    force: CancellationToken,
}

impl Cancel {
    /// A root that nothing has cancelled.
    pub fn new() -> Self {
        Self::default()
    }

    /// A node that ends with this one, but can be ended alone.
    pub fn child(&self) -> Self {
        Self { drain: self.drain.child_token(), force: self.force.child_token() }
    }

    /// Asks everything below to take no new work and to end what it has in its own time.
    pub fn drain(&self) {
        self.drain.cancel();
    }

    /// Tells everything below to end now. Includes the drain.
    pub fn force(&self) {
        self.drain.cancel();
        self.force.cancel();
    }

    /// Ends when a drain was asked for.
    pub async fn drained(&self) {
        self.drain.cancelled().await;
    }

    /// Ends when the end is forced.
    pub async fn forced(&self) {
        self.force.cancelled().await;
    }

    /// Whether a drain was asked for.
    pub fn is_draining(&self) -> bool {
        self.drain.is_cancelled()
    }

    /// Whether the end is forced.
    pub fn is_forced(&self) -> bool {
        self.force.is_cancelled()
    }
}

/// How a shutdown went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// All tasks ended in their own time.
    InTime,
    /// The deadline passed and this many tasks had to be forced.
    Forced(usize),
}

/// Ends everything below `cancel`: drains, waits for the tracker's tasks up to `deadline`, then forces.
pub async fn shutdown(cancel: &Cancel, tracker: &Tracker, deadline: Duration) -> Drained {
    cancel.drain();
    tracker.close();
    if tokio::time::timeout(deadline, tracker.wait()).await.is_ok() {
        return Drained::InTime;
    }
    let left = tracker.len();
    cancel.force();
    // A task that ignores the force must not hold the process.
    let _ = tokio::time::timeout(FORCE_GRACE, tracker.wait()).await;
    Drained::Forced(left)
}

const FORCE_GRACE: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;

    #[test]
    fn signals_go_down_and_never_up_or_sideways() {
        let process = Cancel::new();
        let (pod, other) = (process.child(), process.child());
        let connection = pod.child();
        pod.drain();
        assert!(pod.is_draining() && connection.is_draining());
        assert!(!process.is_draining() && !other.is_draining());
        assert!(!connection.is_forced());
        process.force();
        assert!(connection.is_forced() && other.is_draining() && other.is_forced());
    }

    #[test]
    fn a_child_of_a_drained_node_is_drained() {
        let process = Cancel::new();
        process.drain();
        assert!(process.child().drained().now_or_never().is_some());
        assert!(process.child().forced().now_or_never().is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_dropped_handle_is_silent() {
        let parent = Cancel::new();
        let child = parent.child();
        drop(parent);
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, child.drained()).await.is_err());
        assert!(tokio::time::timeout(hour, child.forced()).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn shutdown_waits_then_forces() {
        let (cancel, tracker) = (Cancel::new(), Tracker::new());
        let task = cancel.child();
        tracker.spawn("polite", async move { task.drained().await });
        assert_eq!(shutdown(&cancel, &tracker, Duration::from_secs(5)).await, Drained::InTime);

        let (cancel, tracker) = (Cancel::new(), Tracker::new());
        let task = cancel.child();
        tracker.spawn("stubborn", async move { task.forced().await });
        let outcome = shutdown(&cancel, &tracker, Duration::from_secs(5)).await;
        assert_eq!(outcome, Drained::Forced(1));
        assert!(tracker.is_empty());
    }
}
