//! The one way to start a task: counted while it lives, and its panic is caught, counted and logged.

use std::any::Any;
use std::future::Future;
use std::panic::AssertUnwindSafe;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll, ready};

use futures_util::FutureExt;
use futures_util::future::CatchUnwind;
use pin_project_lite::pin_project;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;
use tokio_util::task::task_tracker::{TaskTrackerToken, TrackedFuture};

use crate::metrics::Registry;

/// Starts tasks and waits for them. Clones share one set of tasks.
#[derive(Clone, Debug, Default)]
pub struct Tracker {
    tasks: TaskTracker,
    panics: Arc<Panics>,
}

#[derive(Debug, Default)]
struct Panics {
    count: AtomicU64,
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
        registry.register("process_task_panics", "Tasks that ended in a panic", self.panics.by_task.clone());
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

    /// Counts as a task while it lives: for what is on its way to another thread, to become a task there.
    pub fn on_its_way(&self) -> OnItsWay {
        OnItsWay(self.tasks.token())
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
        self.panics.count.load(Ordering::Relaxed)
    }

    fn guarded<F: Future<Output = ()>>(&self, name: &'static str, task: F) -> TrackedFuture<Guarded<F>> {
        let task = AssertUnwindSafe(task).catch_unwind();
        self.tasks.track_future(Guarded { task, name, panics: self.panics.clone() })
    }
}

/// What will be a task; [`Tracker::wait`] waits for it too.
#[derive(Debug)]
pub struct OnItsWay(#[allow(dead_code)] TaskTrackerToken);

pin_project! {
    /// A task whose panic ends it and nothing else.
    ///
    /// No async block: one that awaits what it was given keeps room for it twice, and there are thousands of these.
    struct Guarded<F> {
        // Dropped with its state after a panic, so nothing half-changed is seen again.
        #[pin]
        task: CatchUnwind<AssertUnwindSafe<F>>,
        name: &'static str,
        panics: Arc<Panics>,
    }
}

impl<F: Future<Output = ()>> Future for Guarded<F> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        if let Err(panic) = ready!(this.task.poll(cx)) {
            this.panics.count.fetch_add(1, Ordering::Relaxed);
            this.panics.by_task.get_or_create(&TaskLabels { task: this.name }).inc();
            tracing::error!(task = this.name, error = panic_text(&*panic), "task panicked");
        }
        Poll::Ready(())
    }
}

/// `task`, which takes `guard` along and lets it go when it has ended.
///
/// The same as `async move { task.await; drop(guard) }`, which would keep room for the task twice.
pub fn holding<F: Future<Output = ()>, G>(guard: G, task: F) -> impl Future<Output = ()> + use<F, G> {
    Holding { task, guard: Some(guard) }
}

pin_project! {
    struct Holding<F, G> {
        // First, so that it is dropped first.
        #[pin]
        task: F,
        guard: Option<G>,
    }
}

impl<F: Future<Output = ()>, G> Future for Holding<F, G> {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.project();
        ready!(this.task.poll(cx));
        *this.guard = None;
        Poll::Ready(())
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

    #[test]
    fn a_task_costs_little_more_than_its_future() {
        let future = async {
            let held = [0_u8; 4096];
            tokio::task::yield_now().await;
            std::hint::black_box(&held);
        };
        let size = size_of_val(&future);
        assert!(size_of_val(&Tracker::new().guarded("sized", holding((), future))) <= size + 64);
    }

    #[tokio::test]
    async fn a_guard_is_let_go_after_the_task() {
        struct Note(&'static str, Rc<std::cell::RefCell<Vec<&'static str>>>);
        impl Drop for Note {
            fn drop(&mut self) {
                self.1.borrow_mut().push(self.0);
            }
        }
        let notes = Rc::default();
        let (task, guard) = (Note("task", Rc::clone(&notes)), Note("guard", Rc::clone(&notes)));
        holding(guard, async move { drop(task) }).await;
        let (task, guard) = (Note("unpolled task", Rc::clone(&notes)), Note("its guard", Rc::clone(&notes)));
        drop(holding(guard, async move { drop(task) }));
        assert_eq!(*notes.borrow(), ["task", "guard", "unpolled task", "its guard"]);
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
