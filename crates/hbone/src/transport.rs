//! The IO seam: owned buffers in, vectored writes out.
//!
//! `copy` sees only [`Transport`], so that a stream over HTTP/2 passes its `Bytes` on without a copy, and another
//! byte pump can replace any adapter here without touching the rest.

mod buf_list;
mod io;

pub use buf_list::BufList;
pub use io::{IoTransport, TcpTransport};

use bytes::Bytes;
use std::io::Result;
use std::task::{Context, Poll};

/// A two-way byte stream with independent directions.
pub trait Transport {
    /// The next received bytes; `None` once the peer has ended its direction. Never yields empty `Bytes`.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>>;

    /// Says that `n` received bytes have left the process, or at least this side of it: flow-control credit may
    /// go back to the sender. Streams without credit of their own ignore it.
    fn consumed(&mut self, n: usize) {
        let _ = n;
    }

    /// Whether the sender is held back by credit, which only [`consumed`](Self::consumed) gives: what is received and
    /// not consumed is then bounded, wherever it lies.
    fn is_credited(&self) -> bool {
        false
    }

    /// Writes from the front of `bufs` and takes off what was accepted. `Ready(Ok(n))` has `n > 0` unless `bufs`
    /// is empty.
    fn poll_send(&mut self, cx: &mut Context<'_>, bufs: &mut BufList) -> Poll<Result<usize>>;

    /// Pushes out what is buffered inside. Called when a copy has nothing more to write for the moment.
    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>>;

    /// Ends the sending direction (FIN, close_notify, END_STREAM); receiving goes on.
    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>>;

    /// Makes sure that the peer learns of a broken connection as such (a TCP RST, RST_STREAM CONNECT_ERROR) and
    /// not as an orderly end. The stream is of no use afterwards.
    fn abort(&mut self);
}
