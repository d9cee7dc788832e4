//! The byte stream below HTTP/2, with a count of the frames in it.

use crate::credit::now;
use crate::flood::{Counts, Flood, Head, Scanner};
use std::cell::{Cell, RefCell};
use std::io::{IoSlice, Result};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

const SETTINGS: u8 = 0x4;
const ACK: u8 = 0x1;
/// Length of a client's preface, before its first frame (RFC 9113, 3.4).
const PREFACE_LEN: usize = 24;

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

    /// Tells of a stream that was reset before its answer, so long after it was asked for.
    pub(crate) fn early_reset(&self, waited: Duration) {
        self.judge(|counts| counts.early_reset(waited, now()));
    }

    /// Tells of a stream that was opened for good.
    pub(crate) fn served(&self) {
        self.0.counts.borrow_mut().served();
    }

    /// Whether the connection should take no more streams, and another be made.
    pub(crate) fn worn(&self) -> bool {
        self.0.counts.borrow().worn()
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
    incoming: Scanner,
    outgoing: Scanner,
    watch: Watch,
}

impl<Io> Guard<Io> {
    /// Below the connecting end.
    pub(crate) fn client(io: Io) -> Self {
        Self { io, incoming: Scanner::new(0), outgoing: Scanner::new(PREFACE_LEN), watch: Watch::new() }
    }

    /// Below the accepting end.
    pub(crate) fn server(io: Io) -> Self {
        Self { io, incoming: Scanner::new(PREFACE_LEN), outgoing: Scanner::new(0), watch: Watch::new() }
    }

    pub(crate) fn watch(&self) -> Watch {
        self.watch.clone()
    }

    fn count<'a>(&mut self, written: &Poll<Result<usize>>, bufs: impl IntoIterator<Item = &'a [u8]>) {
        let Poll::Ready(Ok(n)) = written else { return };
        let (outgoing, mut left) = (&mut self.outgoing, *n);
        let mut at = None;
        self.watch.judge(|counts| {
            counts.written(*n);
            for buf in bufs {
                let taken = left.min(buf.len());
                // Only a fault needs the time.
                outgoing.feed(&buf[..taken], |head: Head| counts.sent(head, || *at.get_or_insert_with(now)))?;
                left -= taken;
            }
            Ok(())
        });
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
        let (scanner, now, come) = (&mut this.incoming, now(), &this.watch.0.settings_come);
        this.watch.judge(|counts| {
            scanner.feed(&buf.filled()[before..], |head| {
                if head.kind == SETTINGS && head.flags & ACK != 0 {
                    come.set(come.get() + 1);
                }
                counts.received(head, now)
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
        this.count(&written, [buf]);
        written
    }

    fn poll_write_vectored(self: Pin<&mut Self>, cx: &mut Context<'_>, bufs: &[IoSlice<'_>]) -> Poll<Result<usize>> {
        let this = self.get_mut();
        let written = Pin::new(&mut this.io).poll_write_vectored(cx, bufs);
        this.count(&written, bufs.iter().map(|buf| &**buf));
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
