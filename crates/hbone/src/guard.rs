//! The byte stream below HTTP/2, with a count of the frames in it.

use crate::credit::now;
use crate::flood::{Counts, Flood, Scanner};
use std::cell::{Cell, RefCell};
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const SETTINGS: u8 = 0x4;
const ACK: u8 = 0x1;

/// What is known of a connection's peer. Clones share it.
#[derive(Clone, Debug)]
pub(crate) struct Watch(Rc<Seen>);

#[derive(Debug)]
struct Seen {
    counts: RefCell<Counts>,
    flood: Cell<Option<Flood>>,
    /// Acknowledgements of SETTINGS that have come, and those that HTTP/2 has seen too.
    settings_come: Cell<u64>,
    settings_heard: Cell<u64>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self(Rc::new(Seen {
            counts: RefCell::new(Counts::new(now())),
            flood: Cell::new(None),
            settings_come: Cell::new(0),
            settings_heard: Cell::new(0),
        }))
    }

    /// Whether the peer has gone too far; nothing more is read from it then.
    pub(crate) fn flood(&self) -> Option<Flood> {
        self.0.flood.get()
    }

    /// How many of our SETTINGS the peer has acknowledged.
    pub(crate) fn settings_heard(&self) -> u64 {
        self.0.settings_heard.get()
    }

    /// Tells of a stream that was reset before its answer.
    pub(crate) fn early_reset(&self) {
        self.judge(|counts| counts.early_reset(now()));
    }

    fn judge(&self, count: impl FnOnce(&mut Counts) -> std::result::Result<(), Flood>) {
        if let Err(flood) = count(&mut self.0.counts.borrow_mut()) {
            self.0.flood.set(Some(flood));
        }
    }
}

/// Passes bytes on, until there was a flood: then it reads no more.
pub(crate) struct Guard<Io> {
    io: Io,
    scanner: Scanner,
    watch: Watch,
}

impl<Io> Guard<Io> {
    /// `preface`: bytes that come before the first frame.
    pub(crate) fn new(io: Io, preface: usize) -> Self {
        Self { io, scanner: Scanner::new(preface), watch: Watch::new() }
    }

    pub(crate) fn watch(&self) -> Watch {
        self.watch.clone()
    }

    fn count(&mut self, written: &Poll<Result<usize>>) {
        if let Poll::Ready(Ok(n)) = written {
            self.watch.0.counts.borrow_mut().written(*n);
        }
    }
}

impl<Io: AsyncRead + Unpin> AsyncRead for Guard<Io> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<Result<()>> {
        let this = self.get_mut();
        if this.watch.flood().is_some() {
            // Whoever polls looks at the watch next.
            return Poll::Pending;
        }
        // Whoever asks for more has dealt with all frames that were complete.
        let seen = &this.watch.0;
        seen.settings_heard.set(seen.settings_come.get());
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let (scanner, now, come) = (&mut this.scanner, now(), &this.watch.0.settings_come);
        this.watch.judge(|counts| {
            scanner.feed(&buf.filled()[before..], |kind, flags| {
                if kind == SETTINGS && flags & ACK != 0 {
                    come.set(come.get() + 1);
                }
                counts.frame(kind, now)
            })
        });
        if this.watch.flood().is_some() {
            buf.set_filled(before);
            return Poll::Pending;
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncWrite + Unpin> AsyncWrite for Guard<Io> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write(cx, buf);
        this.count(&written);
        written
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.count(&written);
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.get_mut().io).poll_shutdown(cx)
    }
}
