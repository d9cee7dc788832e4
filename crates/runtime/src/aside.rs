//! A future that is waited for beside busy ones.
//!
//! Whatever wakes a task polls all that the task waits for. A cut or a shutdown is waited for by each connection, and
//! to ask costs a lock that all workers share: too much for each piece of data. [`aside`] asks only when the future
//! itself has called.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use futures_util::task::AtomicWaker;
use pin_project_lite::pin_project;

/// Polls `future` at first, and then when it has woken its task; not when something else has.
pub fn aside<F: Future>(future: F) -> Aside<F> {
    let bell = Arc::new(Bell { rung: AtomicBool::new(true), task: AtomicWaker::new() });
    Aside { future, waker: Waker::from(bell.clone()), bell }
}

pin_project! {
    /// See [`aside`].
    pub struct Aside<F> {
        #[pin]
        future: F,
        bell: Arc<Bell>,
        waker: Waker,
    }
}

struct Bell {
    rung: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Bell {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.rung.store(true, Ordering::Release);
        self.task.wake();
    }
}

impl<F: Future> Future for Aside<F> {
    type Output = F::Output;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<F::Output> {
        let this = self.project();
        // The waker first: a bell that is rung from here on wakes this task.
        this.bell.task.register(cx.waker());
        if !this.bell.rung.swap(false, Ordering::Acquire) {
            return Poll::Pending;
        }
        this.future.poll(&mut Context::from_waker(this.waker))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt;
    use std::cell::Cell;
    use std::future::poll_fn;
    use tokio::sync::oneshot;

    #[tokio::test]
    async fn it_ends_when_its_future_does() {
        let (sender, receiver) = oneshot::channel();
        let (ended, ()) = tokio::join!(aside(receiver), async {
            tokio::task::yield_now().await;
            let _ = sender.send(7);
        });
        assert_eq!(ended, Ok(7));
    }

    #[test]
    fn it_is_asked_when_it_has_called_and_not_otherwise() {
        let asked = Cell::new(0);
        let kept = Cell::new(None::<Waker>);
        let mut waiting = Box::pin(aside(poll_fn(|cx| {
            asked.set(asked.get() + 1);
            kept.set(Some(cx.waker().clone()));
            Poll::<()>::Pending
        })));
        for _ in 0..10 {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        assert_eq!(asked.get(), 1);
        kept.take().unwrap().wake();
        for _ in 0..10 {
            assert!(waiting.as_mut().now_or_never().is_none());
        }
        assert_eq!(asked.get(), 2);
    }
}
