//! One TCP stream inside an HTTP/2 connection.

use crate::transport::{BufList, Transport};
use crate::tuning::StreamCredit;
use bytes::Bytes;
use h2::{Reason, RecvStream, SendStream};
use std::any::Any;
use std::fmt;
use std::io::{self, Result};
use std::rc::Rc;
use std::task::{Context, Poll, ready};

/// An established CONNECT stream, client or server side.
///
/// Bytes pass through without a copy. Credit goes back to the peer by [`Transport::consumed`] only.
pub struct H2Stream {
    send: SendStream<Bytes>,
    recv: RecvStream,
    recv_done: bool,
    /// The peer's credit for us that has been asked for and not yet used.
    reserved: usize,
    send_done: bool,
    credit: StreamCredit,
    pooled: Option<Box<dyn Pooled>>,
}

/// What a stream has of its pool.
trait Pooled {
    fn peer(&self) -> Option<&dyn Any>;
}

struct Tied<L> {
    /// What must live exactly as long as the stream: the pool's permit.
    _lease: L,
    peer: Option<Rc<dyn Any>>,
}

impl<L> Pooled for Tied<L> {
    fn peer(&self) -> Option<&dyn Any> {
        self.peer.as_deref()
    }
}

impl H2Stream {
    pub(crate) fn new(send: SendStream<Bytes>, mut recv: RecvStream, credit: StreamCredit) -> Self {
        credit.receives(&mut recv);
        Self { send, recv, recv_done: false, reserved: 0, send_done: false, credit, pooled: None }
    }

    /// Ties `lease` to the stream's life. `peer`: what the connector said of the other end.
    pub(crate) fn tie(&mut self, lease: impl Any, peer: Option<Rc<dyn Any>>) {
        self.pooled = Some(Box::new(Tied { _lease: lease, peer }));
    }

    /// What the connector said of the peer of this stream's connection.
    pub fn peer<T: Any>(&self) -> Option<&T> {
        self.pooled.as_ref()?.peer()?.downcast_ref()
    }

    /// Ends the stream at once in both directions. `CANCEL` and `NO_ERROR` read as an orderly end at the peer,
    /// anything else as a broken connection.
    pub fn reset(&mut self, reason: Reason) {
        self.send.send_reset(reason);
        self.send_done = true;
        self.recv_done = true;
    }

    /// The HTTP/2 stream id, for logs.
    pub fn id(&self) -> u32 {
        self.send.stream_id().as_u32()
    }
}

impl fmt::Debug for H2Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H2Stream").field("id", &self.id()).finish_non_exhaustive()
    }
}

/// `NO_ERROR` and `CANCEL` are how peers say "done" for a stream (ztunnel and Envoy alike), so they read as EOF. A GOAWAY
/// or a lost connection with the same code is none.
fn is_orderly(e: &h2::Error) -> bool {
    e.is_reset() && e.is_remote() && matches!(e.reason(), Some(Reason::NO_ERROR | Reason::CANCEL))
}

/// The same error kinds as a TCP socket would give.
fn to_io(e: h2::Error) -> io::Error {
    if e.is_io() {
        return e.into_io().unwrap_or_else(|| io::ErrorKind::ConnectionReset.into());
    }
    io::Error::new(io::ErrorKind::ConnectionReset, e)
}

impl Transport for H2Stream {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        if self.recv_done {
            return Poll::Ready(Ok(None));
        }
        loop {
            match ready!(self.recv.poll_data(cx)) {
                Some(Ok(bytes)) if bytes.is_empty() => {}
                Some(Ok(bytes)) => return Poll::Ready(Ok(Some(bytes))),
                Some(Err(e)) if !is_orderly(&e) => return Poll::Ready(Err(to_io(e))),
                None | Some(Err(_)) => {
                    self.recv_done = true;
                    return Poll::Ready(Ok(None));
                }
            }
        }
    }

    fn is_credited(&self) -> bool {
        true
    }

    fn consumed(&mut self, n: usize) {
        // An error means that the stream is gone, and its credit with it.
        let _ = self.recv.flow_control().release_capacity(n);
        self.credit.consumed(n, || self.recv.flow_control().used_capacity());
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bufs: &mut BufList) -> Poll<Result<usize>> {
        if bufs.is_empty() {
            return Poll::Ready(Ok(0));
        }
        if self.send_done {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        // Ask for all that is there, take what is granted: h2 never buffers more than the peer's window and the
        // send buffer limit allow.
        if self.reserved != bufs.len() {
            self.reserved = bufs.len();
            self.send.reserve_capacity(self.reserved);
        }
        while self.send.capacity() == 0 {
            match ready!(self.send.poll_capacity(cx)) {
                Some(Ok(_)) => {}
                Some(Err(e)) if is_orderly(&e) => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                Some(Err(e)) => return Poll::Ready(Err(to_io(e))),
                None => return Poll::Ready(Err(self.send_closed(cx))),
            }
        }
        let mut sent = 0;
        while !bufs.is_empty() {
            let granted = self.send.capacity();
            if granted == 0 {
                break;
            }
            let bytes = bufs.take_front(granted);
            let n = bytes.len();
            if let Err(e) = self.send.send_data(bytes, false) {
                return Poll::Ready(Err(if e.is_io() { to_io(e) } else { self.send_closed(cx) }));
            }
            sent += n;
            self.reserved = self.reserved.saturating_sub(n);
        }
        self.credit.sent(sent);
        Poll::Ready(Ok(sent))
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        if self.send_done {
            return Poll::Ready(Ok(()));
        }
        self.send_done = true;
        match self.send.send_data(Bytes::new(), true) {
            Ok(()) => Poll::Ready(Ok(())),
            // The peer ended the whole stream in order: nothing is left to tell it.
            Err(_) => match self.send.poll_reset(cx) {
                Poll::Ready(Ok(Reason::NO_ERROR | Reason::CANCEL)) => Poll::Ready(Ok(())),
                Poll::Ready(Ok(reason)) => Poll::Ready(Err(to_io(reason.into()))),
                Poll::Ready(Err(e)) => Poll::Ready(Err(to_io(e))),
                Poll::Pending => Poll::Ready(Ok(())),
            },
        }
    }

    fn abort(&mut self) {
        // RFC 9113, 8.5: a TCP error of the proxied connection is a stream error of type CONNECT_ERROR.
        self.reset(Reason::CONNECT_ERROR);
    }
}

impl H2Stream {
    /// Why a stream takes no more data.
    fn send_closed(&mut self, cx: &mut Context<'_>) -> io::Error {
        match self.send.poll_reset(cx) {
            Poll::Ready(Ok(Reason::NO_ERROR | Reason::CANCEL)) | Poll::Pending => io::ErrorKind::BrokenPipe.into(),
            Poll::Ready(Ok(reason)) => to_io(reason.into()),
            Poll::Ready(Err(e)) => to_io(e),
        }
    }
}
