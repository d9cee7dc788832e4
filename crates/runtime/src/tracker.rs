//! The one way to start a task: counted while it lives, and its panic is caught, counted and logged.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::FutureExt;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::metrics::Registry;

/// Starts tasks and waits for them. Clones share one set of tasks.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    tasks: TaskTracker,
    panics: Arc<AtomicU64>,
    by_task: Family<TaskLabels, Counter>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct TaskLabels {
    task: &'static str,
}

impl Tracker {
    /// A tracker without tasks.
    pub fn new() -> Self {
        Self::default()
    }

    /// Registers the counter of panicked tasks, by task name.
    pub fn register(&self, registry: &mut Registry) {
        registry.register("process_task_panics", "Tasks that ended in a panic", self.by_task.clone());
    }

    /// Starts `task` on the current runtime. `name` is for logs and metrics: few and fixed.
    #[allow(clippy::disallowed_methods)]
    pub fn spawn<F>(&self, name: &'static str, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        tokio::spawn(self.guarded(name, task))
    }

    /// Starts a task that need not be `Send` on the current `LocalSet` or local runtime.
    #[allow(clippy::disallowed_methods)]
    pub fn spawn_local<F>(&self, name: &'static str, task: F) -> JoinHandle<()>
    where
        F: Future<Output = ()> + 'static,
    {
        tokio::task::spawn_local(self.guarded(name, task))
    }

    /// Says that no more tasks are expected, so that [`Tracker::wait`] can end. Tasks can still be started.
    pub fn close(&self) {
        self.tasks.close();
    }

    /// Waits until the tracker is closed and all its tasks have ended.
    pub async fn wait(&self) {
        self.tasks.wait().await;
    }

    /// How many tasks are alive.
    pub fn len(&self) -> usize {
        self.tasks.len()
    }

    /// Whether no task is alive.
    pub fn is_empty(&self) -> bool {
        self.tasks.is_empty()
    }

    /// How many tasks ended in a panic.
    pub fn panics(&self) -> u64 {
        self.panics.load(Ordering::Relaxed)
    }

    fn guarded<F: Future<Output = ()>>(&self, name: &'static str, task: F) -> impl Future<Output = ()> + use<F> {
        let (panics, by_task) = (self.panics.clone(), self.by_task.clone());
        // The future is dropped with its state after a panic, so nothing half-changed is seen again.
        self.tasks.track_future(async move {
            if let Err(panic) = AssertUnwindSafe(task).catch_unwind().await {
                panics.fetch_add(1, Ordering::Relaxed);
                by_task.get_or_create(&TaskLabels { task: name }).inc();
                tracing::error!(task = name, error = panic_text(&*panic), "task panicked");
            }
        })
    }
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    if let Some(text) = panic.downcast_ref::<&'static str>() {
        text
    } else if let Some(text) = panic.downcast_ref::<String>() {
        text
    } else {
        "a value that is not text"
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::rc::Rc;

    #[tokio::test]
    async fn a_panicking_task_is_counted_and_the_others_live() {
        let tracker = Tracker::new();
        let (tx, rx) = tokio::sync::oneshot::channel::<()>();
        let (done_tx, done_rx) = tokio::sync::oneshot::channel();
        tracker.spawn("lives", async move {
            rx.await.unwrap();
            done_tx.send(7).unwrap();
        });
        tracker.spawn("dies", async { panic!("on purpose") }).await.unwrap();
        assert_eq!(tracker.panics(), 1);
        assert_eq!(tracker.len(), 1);
        tx.send(()).unwrap();
        assert_eq!(done_rx.await.unwrap(), 7);
        tracker.close();
        tracker.wait().await;
        assert!(tracker.is_empty());

        let mut registry = Registry::default();
        tracker.register(&mut registry);
        let text = crate::metrics::encode(&registry);
        assert!(text.contains("process_task_panics_total{task=\"dies\"} 1"), "{text}");
    }

    #[tokio::test]
    async fn local_tasks_are_tracked_alike() {
        let tracker = Tracker::new();
        let local = tokio::task::LocalSet::new();
        let inner = tracker.clone();
        local
            .run_until(async move {
                let shared = Rc::new(1);
                inner.spawn_local("local", async move { assert_eq!(*shared, 1) });
                inner.spawn_local("dies", async { panic!("{}", 1) }).await.unwrap();
                inner.close();
                inner.wait().await;
            })
            .await;
        assert_eq!(tracker.panics(), 1);
    }

    #[tokio::test]
    async fn an_aborted_task_is_no_longer_counted() {
        let tracker = Tracker::new();
        let task = tracker.spawn("stuck", std::future::pending());
        assert_eq!(tracker.len(), 1);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
        tracker.close();
        tracker.wait().await;
        assert_eq!((tracker.len(), tracker.panics()), (0, 0));
    }
}
