//! Puts off flushes until a connection has done all that there was to do.
//!
//! h2 flushes after each DATA frame that it doesn't copy. Below it, each flush is a TLS record, a system call, a packet.
//! So a flush is only noted here, and happens when the connection, asked again after the worker's other tasks had their
//! turn, has no more to say, or [`BATCH`] has come together: what many streams have to say leaves together, a bulk
//! transfer in large pieces, and nothing waits while there is nothing else to do.

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io::{IoSlice, Result};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// Written bytes that are not kept waiting for more.
const BATCH: usize = 256 << 10;

struct Shared<Io> {
    io: RefCell<Io>,
    due: Cell<bool>,
    /// Bytes since the last flush.
    written: Cell<usize>,
    /// How a flush failed; h2 hears of it at its next call.
    failed: Cell<Option<std::io::Error>>,
}

/// What h2 writes to.
pub(crate) struct LateFlush<Io>(Rc<Shared<Io>>);

/// What flushes it.
pub(crate) struct Flusher<Io>(Rc<Shared<Io>>);

/// `io`, and the hand that flushes it.
pub(crate) fn late_flush<Io>(io: Io) -> (LateFlush<Io>, Flusher<Io>) {
    let shared =
        Rc::new(Shared { io: RefCell::new(io), due: Cell::new(false), written: Cell::new(0), failed: Cell::new(None) });
    (LateFlush(shared.clone()), Flusher(shared))
}

impl<Io: AsyncWrite + Unpin> Flusher<Io> {
    /// Runs the connection, and flushes after each of its steps.
    pub(crate) async fn drive<T>(self, connection: impl Future<Output = T>) -> T {
        let mut connection = pin!(connection);
        poll_fn(|cx| {
            let before = self.0.written.get();
            let polled = connection.as_mut().poll(cx);
            let now = self.0.written.get();
            if polled.is_pending() && before < now && now < BATCH {
                cx.waker().wake_by_ref();
            } else {
                self.flush(cx);
            }
            polled
        })
        .await
    }

    fn flush(&self, cx: &mut Context<'_>) {
        let Shared { io, due, written, failed } = &*self.0;
        if !due.get() {
            return;
        }
        written.set(0);
        match Pin::new(&mut *io.borrow_mut()).poll_flush(cx) {
            // The task is woken when the socket takes more.
            Poll::Pending => {}
            Poll::Ready(Ok(())) => due.set(false),
            Poll::Ready(Err(error)) => {
                due.set(false);
                failed.set(Some(error));
                cx.waker().wake_by_ref();
            }
        }
    }
}

impl<Io> LateFlush<Io> {
    fn check(&self) -> Result<()> {
        self.0.failed.take().map_or(Ok(()), Err)
    }

    fn note(&self, written: &Poll<Result<usize>>) {
        if let Poll::Ready(Ok(n)) = written {
            self.0.due.set(true);
            self.0.written.set(self.0.written.get() + n);
        }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for LateFlush<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        self.check()?;
        Pin::new(&mut *self.0.io.borrow_mut()).poll_read(cx, buf)
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for LateFlush<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        self.check()?;
        let written = Pin::new(&mut *self.0.io.borrow_mut()).poll_write(cx, buf);
        self.note(&written);
        written
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        self.check()?;
        let written = Pin::new(&mut *self.0.io.borrow_mut()).poll_write_vectored(cx, bufs);
        self.note(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.0.io.borrow().is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(self.check())
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        self.check()?;
        let io = &mut *self.0.io.borrow_mut();
        ready!(Pin::new(&mut *io).poll_flush(cx))?;
        Pin::new(io).poll_shutdown(cx)
    }
}
