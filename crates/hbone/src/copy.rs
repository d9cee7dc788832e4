//! The byte copy: two [`Transport`]s, each direction on its own.

use crate::transport::{BufList, Transport};
use aquifer_runtime::OwnThread;
use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::task::{Context, Poll};

#[cfg(test)]
mod tests;

/// Bytes are gathered up to this many before a write, if they are there without waiting.
const GATHER: usize = 64 << 10;
/// And up to this many chunks, what one vectored write takes.
const GATHER_CHUNKS: usize = 32;
/// Writes of one direction before other tasks of the worker get their turn.
const ROUNDS: usize = 32;

/// Bytes moved so far; the worker reads them while the copy runs.
#[derive(Debug, Default)]
pub struct Counters {
    /// Downstream to upstream.
    pub sent: Cell<u64>,
    /// Upstream to downstream.
    pub received: Cell<u64>,
    _own: OwnThread,
}

impl Counters {
    /// `(sent, received)` now.
    pub fn get(&self) -> (u64, u64) {
        (self.sent.get(), self.received.get())
    }
}

/// Which of the two streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// Where the connection came from.
    Downstream,
    /// Where it was taken to.
    Upstream,
}

/// What was being done to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Receiving from it.
    Recv,
    /// Sending to it.
    Send,
    /// Ending its sending direction.
    Shutdown,
}

/// Why a copy ended early.
#[derive(Debug, thiserror::Error)]
#[error("{} {}: {source}", side_name(*.side), op_name(*.op))]
pub struct CopyError {
    /// The stream that failed.
    pub side: Side,
    /// What failed on it.
    pub op: Op,
    /// How.
    pub source: io::Error,
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Downstream => "downstream",
        Side::Upstream => "upstream",
    }
}

fn op_name(op: Op) -> &'static str {
    match op {
        Op::Recv => "receive",
        Op::Send => "send",
        Op::Shutdown => "shutdown",
    }
}

/// Copies both ways until both directions have ended, or one stream breaks.
///
/// An end in one direction is passed on and the other goes on. When a stream breaks while receiving, both are
/// aborted at once, so that each peer sees what it would see on a direct connection. When one no longer takes
/// data, what it still has to say is delivered first. The caller drops both streams afterwards.
pub async fn copy_bidirectional<D: Transport, U: Transport>(
    downstream: &mut D,
    upstream: &mut U,
    counters: &Counters,
) -> Result<(), CopyError> {
    let mut up = Half::new(Side::Downstream, Side::Upstream);
    let mut down = Half::new(Side::Upstream, Side::Downstream);
    let result = poll_fn(|cx| {
        let broken = down.send_failed();
        let sent = up.poll(cx, downstream, upstream, &counters.sent, broken);
        let broken = up.send_failed();
        let received = down.poll(cx, upstream, downstream, &counters.received, broken);
        match (sent, received) {
            (Err(e), _) | (_, Err(e)) => Poll::Ready(Err(e)),
            (Ok(Poll::Ready(())), Ok(Poll::Ready(()))) => Poll::Ready(Ok(())),
            _ => Poll::Pending,
        }
    })
    .await;
    if result.is_err() {
        // What was sent a moment ago may still lie in the HTTP/2 connection, whose task must run to write it: a
        // reset takes unwritten data back.
        tokio::task::yield_now().await;
        downstream.abort();
        upstream.abort();
        return result;
    }
    // A refused send is the outcome even though the other direction then ended well.
    match up.failed.or(down.failed) {
        Some(e) => Err(e),
        None => Ok(()),
    }
}

/// One direction.
struct Half {
    from: Side,
    to: Side,
    bufs: BufList,
    eof: bool,
    broken: Option<io::Error>,
    flushed: bool,
    done: bool,
    failed: Option<CopyError>,
}

impl Half {
    fn new(from: Side, to: Side) -> Self {
        Self { from, to, bufs: BufList::new(), eof: false, broken: None, flushed: true, done: false, failed: None }
    }

    /// Whether this direction's receiver broke, other than by an orderly end of the whole stream.
    fn send_failed(&self) -> bool {
        self.failed.as_ref().is_some_and(|e| e.source.kind() != io::ErrorKind::BrokenPipe)
    }

    /// `opposite_broken`: the stream we receive from no longer takes data, so its end is no orderly one.
    fn poll<F: Transport, T: Transport>(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut F,
        to: &mut T,
        counter: &Cell<u64>,
        opposite_broken: bool,
    ) -> Result<Poll<()>, CopyError> {
        if self.done {
            return Ok(Poll::Ready(()));
        }
        for _ in 0..ROUNDS {
            self.gather(cx, from);
            if self.bufs.is_empty() {
                return match self.broken.take() {
                    Some(source) => Err(self.broken(source)),
                    None => self.poll_idle(cx, to, opposite_broken),
                };
            }
            match (to.poll_send(cx, &mut self.bufs), self.broken.take()) {
                (Poll::Pending, None) => return Ok(Poll::Pending),
                // The sender's last words were offered; a stalled receiver must not keep a dead connection.
                (Poll::Pending | Poll::Ready(Err(_)), Some(source)) => return Err(self.broken(source)),
                (Poll::Ready(Ok(n)), broken) => {
                    from.consumed(n);
                    counter.set(counter.get() + n as u64);
                    self.flushed = false;
                    self.broken = broken;
                }
                (Poll::Ready(Err(e)), None) => return Ok(self.fail(Op::Send, e)),
            }
        }
        cx.waker().wake_by_ref();
        Ok(Poll::Pending)
    }

    fn gather<F: Transport>(&mut self, cx: &mut Context<'_>, from: &mut F) {
        let ended = self.eof || self.broken.is_some();
        // From HTTP/2 all that is there: left inside, small frames would weigh many times their bytes, and a few
        // thousand of them end the whole connection (h2's DATA frame budget). The stream's window is the bound.
        let credited = from.is_credited();
        while !ended && (credited || self.bufs.len() < GATHER && self.bufs.chunks() < GATHER_CHUNKS) {
            match from.poll_recv(cx) {
                Poll::Ready(Ok(Some(bytes))) => self.bufs.push(bytes),
                Poll::Ready(Ok(None)) => return self.eof = true,
                Poll::Ready(Err(e)) => return self.broken = Some(e),
                Poll::Pending => return,
            }
        }
    }

    fn broken(&self, source: io::Error) -> CopyError {
        CopyError { side: self.from, op: Op::Recv, source }
    }

    /// Nothing to send: flush, or end the direction.
    fn poll_idle<T: Transport>(
        &mut self,
        cx: &mut Context<'_>,
        to: &mut T,
        opposite_broken: bool,
    ) -> Result<Poll<()>, CopyError> {
        if self.eof {
            if opposite_broken {
                to.abort();
                self.done = true;
                return Ok(Poll::Ready(()));
            }
            return Ok(match to.poll_shutdown(cx) {
                Poll::Pending => Poll::Pending,
                Poll::Ready(Ok(())) => {
                    self.done = true;
                    Poll::Ready(())
                }
                Poll::Ready(Err(e)) => self.fail(Op::Shutdown, e),
            });
        }
        self.bufs.release();
        if !self.flushed {
            match to.poll_flush(cx) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.flushed = true,
                Poll::Ready(Err(e)) => return Ok(self.fail(Op::Send, e)),
            }
        }
        Ok(Poll::Pending)
    }

    fn fail(&mut self, op: Op, source: io::Error) -> Poll<()> {
        self.failed = Some(CopyError { side: self.to, op, source });
        self.done = true;
        Poll::Ready(())
    }
}
