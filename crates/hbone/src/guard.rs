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

const HEADERS: u8 = 0x1;
const SETTINGS: u8 = 0x4;
const ACK: u8 = 0x1;
/// Length of a client's preface, before its first frame (RFC 9113, 3.4).
const PREFACE_LEN: usize = 24;

/// Requests that wait inside HTTP/2 before more is read. Each read may bring a few dozens.
const UNTAKEN: usize = 8;

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
    /// HEADERS that have come and that nobody has taken from HTTP/2.
    headers: Cell<usize>,
    /// Nothing was read because of them.
    paused: Cell<bool>,
}

impl Watch {
    pub(crate) fn new() -> Self {
        Self(Rc::new(Seen {
            counts: RefCell::new(Counts::new(now())),
            flood: Cell::new(None),
            settings_come: Cell::new(0),
            settings_heard: Cell::new(0),
            headers: Cell::new(0),
            paused: Cell::new(false),
        }))
    }

    /// One request was taken from HTTP/2.
    pub(crate) fn taken(&self) {
        self.0.headers.set(self.0.headers.get().saturating_sub(1));
    }

    /// What has come was taken, or is for nobody. Whether there may be more, which was not read.
    pub(crate) fn all_taken(&self) -> bool {
        self.0.headers.set(0);
        self.0.paused.replace(false)
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
    /// HTTP/2 keeps the room for all requests that it has ever held at once, so it is given no more before these are
    /// taken.
    pauses: bool,
}

impl<Io> Guard<Io> {
    /// Below the connecting end.
    pub(crate) fn client(io: Io) -> Self {
        Self { io, incoming: Scanner::new(0), outgoing: Scanner::new(PREFACE_LEN), watch: Watch::new(), pauses: false }
    }

    /// Below the accepting end.
    pub(crate) fn server(io: Io) -> Self {
        Self { io, incoming: Scanner::new(PREFACE_LEN), outgoing: Scanner::new(0), watch: Watch::new(), pauses: true }
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
        if this.pauses && seen.headers.get() >= UNTAKEN {
            // Whoever polls takes them next, or asks again.
            seen.paused.set(true);
            return Poll::Pending;
        }
        let before = buf.filled().len();
        ready!(Pin::new(&mut this.io).poll_read(cx, buf))?;
        let (scanner, now) = (&mut this.incoming, now());
        let Seen { settings_come: come, headers, .. } = &*this.watch.0;
        this.watch.judge(|counts| {
            scanner.feed(&buf.filled()[before..], |head| {
                if head.kind == SETTINGS && head.flags & ACK != 0 {
                    come.set(come.get() + 1);
                }
                if head.kind == HEADERS {
                    headers.set(headers.get() + 1);
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::raw::{Frame, HEADERS};
    use futures_util::FutureExt;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    #[tokio::test]
    async fn no_more_is_read_while_requests_wait() {
        let (mut near, far) = duplex(1 << 16);
        let frame = Frame::new(HEADERS, 0, 1, &[0; 10]).encode();
        near.write_all(&[0; PREFACE_LEN]).await.unwrap();
        near.write_all(&frame.repeat(2 * UNTAKEN)).await.unwrap();
        let mut guard = Guard::server(far);
        let watch = guard.watch();
        let mut some = vec![0; PREFACE_LEN + UNTAKEN * frame.len()];
        guard.read_exact(&mut some).await.unwrap();
        assert!(guard.read_u8().now_or_never().is_none(), "as many wait as may");
        watch.taken();
        guard.read_exact(&mut some[..frame.len()]).await.unwrap();
        assert!(guard.read_u8().now_or_never().is_none());
        assert!(watch.all_taken(), "there was more");
        guard.read_exact(&mut some[..(UNTAKEN - 1) * frame.len()]).await.unwrap();
        assert!(!watch.all_taken());
    }
}
