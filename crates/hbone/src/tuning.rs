//! Carries a ledger's decisions out on a connection of h2.

use crate::config::Windows;
use crate::credit::{Budget, Ledger, now};
use crate::guard::Watch;
use bytes::Bytes;
use h2::{FlowControl, RecvStream};
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(test)]
mod tests;

/// Streams that begin before the connection gets its turn.
const AT_ONCE: usize = 16;
/// Turns that a stream waits: enough for all that a connection may have.
const TURNS: usize = 16;

/// What both ends of h2 offer.
pub(crate) trait Tunable {
    fn set_target(&mut self, bytes: u32);
    /// False while the peer has not acknowledged the SETTINGS before.
    fn set_window(&mut self, bytes: u32) -> bool;
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Tunable for h2::server::Connection<Io, Bytes> {
    fn set_target(&mut self, bytes: u32) {
        self.set_target_window_size(bytes);
    }

    fn set_window(&mut self, bytes: u32) -> bool {
        self.set_initial_window_size(bytes).is_ok()
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Tunable for h2::client::Connection<Io, Bytes> {
    fn set_target(&mut self, bytes: u32) {
        self.set_target_window_size(bytes);
    }

    fn set_window(&mut self, bytes: u32) -> bool {
        self.set_initial_window_size(bytes).is_ok()
    }
}

/// The windows of a connection, between its streams, its ledger and its peer. Clones share them.
#[derive(Clone)]
pub(crate) struct Tuning(Rc<Inner>);

struct Inner {
    ledger: RefCell<Ledger>,
    flows: RefCell<HashMap<u32, FlowControl>>,
    watch: Watch,
    /// SETTINGS sent, and those of them whose acknowledgement has been seen to.
    sent: Cell<u64>,
    heard: Cell<u64>,
    /// When a stream was last seen to carry bulk.
    bulk: Cell<Option<Instant>>,
    /// Streams that were begun since the connection was last polled.
    begun: Cell<usize>,
}

impl Tuning {
    /// `windows` are legal.
    pub(crate) fn new(windows: Windows, budget: &Budget, watch: Watch) -> Self {
        Self(Rc::new(Inner {
            ledger: RefCell::new(Ledger::new(windows, budget.clone(), now())),
            flows: RefCell::default(),
            watch,
            sent: Cell::new(1),
            heard: Cell::new(0),
            bulk: Cell::new(None),
            begun: Cell::new(0),
        }))
    }

    /// Stream window and connection window to begin with.
    pub(crate) fn initial(&self) -> (u32, u32) {
        let ledger = self.0.ledger.borrow();
        (ledger.window(), ledger.target())
    }

    /// Ends when the connection has seen to those that began before: HTTP/2 keeps the room for all requests that it has
    /// ever held at once. Not for long: a connection that is not polled says itself why.
    pub(crate) async fn turn(&self) {
        for _ in 0..TURNS {
            if self.0.begun.get() < AT_ONCE {
                return;
            }
            tokio::task::yield_now().await;
        }
    }

    /// A stream begins.
    pub(crate) fn open(&self, stream: u32) -> StreamCredit {
        self.0.begun.set(self.0.begun.get() + 1);
        self.0.ledger.borrow_mut().opened(stream, now());
        StreamCredit { connection: self.clone(), stream, load: Load::new(now()) }
    }

    pub(crate) fn last_bulk(&self) -> Option<Instant> {
        self.0.bulk.get()
    }

    /// To be called before the connection is polled.
    pub(crate) fn before_poll(&self, connection: &mut impl Tunable) {
        let Inner { ledger, sent, heard, begun, .. } = &*self.0;
        begun.set(0);
        let mut ledger = ledger.borrow_mut();
        if heard.get() == sent.get() {
            let now = now();
            if let Some(window) = ledger.window_due(now)
                && connection.set_window(window)
            {
                ledger.window_told(window, now);
                sent.set(sent.get() + 1);
            }
        }
        if let Some(target) = ledger.target_due() {
            connection.set_target(target);
        }
    }

    /// To be called after it.
    pub(crate) fn after_poll(&self) {
        let Inner { ledger, flows, watch, sent, heard, .. } = &*self.0;
        let now_heard = watch.settings_heard().min(sent.get());
        if now_heard > heard.replace(now_heard) {
            ledger.borrow_mut().window_heard();
            // When a window became narrower, what a stream had consumed and not yet reported may be all that the peer
            // waits for; h2 looks at it only when more is released.
            for flow in flows.borrow_mut().values_mut() {
                let _ = flow.release_capacity(0);
            }
        }
    }
}

/// A stream's place among the windows of its connection.
pub(crate) struct StreamCredit {
    connection: Tuning,
    stream: u32,
    load: Load,
}

impl StreamCredit {
    /// Data may come.
    pub(crate) fn receives(&self, recv: &mut RecvStream) {
        self.connection.0.flows.borrow_mut().insert(self.stream, recv.flow_control().clone());
    }

    /// Bytes have left us; `held` of the stream have not.
    pub(crate) fn consumed(&self, bytes: usize, held: impl FnOnce() -> usize) {
        self.connection.0.ledger.borrow_mut().consumed(self.stream, bytes, held, now);
        self.moved(bytes);
    }

    /// Bytes were handed to HTTP/2.
    pub(crate) fn sent(&self, bytes: usize) {
        self.moved(bytes);
    }

    fn moved(&self, bytes: usize) {
        if let Some(at) = self.load.moved(bytes, now) {
            self.connection.0.bulk.set(Some(at));
        }
    }
}

/// Tells bulk from exchanges, in both directions of a stream together. The clock is asked once in [`BULK`] bytes.
struct Load {
    moved: Cell<usize>,
    since: Cell<Instant>,
}

/// Bytes that a stream moves within [`BULK_TIME`] when it carries bulk: 16 Mbit/s.
const BULK: usize = 2 << 20;
const BULK_TIME: Duration = Duration::from_secs(1);
/// What comes in smaller pieces are messages, however many.
const PIECE: usize = 4 << 10;

impl Load {
    fn new(now: Instant) -> Self {
        Self { moved: Cell::new(0), since: Cell::new(now) }
    }

    /// The time if this is bulk.
    fn moved(&self, bytes: usize, now: impl FnOnce() -> Instant) -> Option<Instant> {
        if bytes < PIECE {
            return None;
        }
        self.moved.set(self.moved.get() + bytes);
        if self.moved.get() < BULK {
            return None;
        }
        let now = now();
        self.moved.set(0);
        (now.saturating_duration_since(self.since.replace(now)) <= BULK_TIME).then_some(now)
    }
}

impl Drop for StreamCredit {
    fn drop(&mut self) {
        let flow = self.connection.0.flows.borrow_mut().remove(&self.stream);
        self.connection.0.ledger.borrow_mut().closed(self.stream);
        drop(flow);
    }
}
