//! [`Transport`] over tokio's byte streams.

use super::{BufList, Transport};
use aquifer_runtime::OwnThread;
use bytes::{Buf, Bytes, BytesMut};
use std::io::{self, IoSlice, Result};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_util::io::poll_read_buf;

#[cfg(test)]
mod tests;

/// Most slices of one vectored write. Above this the kernel gains little and the array costs stack.
const MAX_SLICES: usize = 32;

/// Receive buffer sizes by traffic so far: most connections are short or quiet and must stay small, while bulk
/// transfers want few system calls. The first takes a small page with its headers at once; a waiting connection holds
/// none.
#[derive(Default)]
struct ReadBuf {
    buf: BytesMut,
    received: u64,
    _own: OwnThread,
}

impl ReadBuf {
    fn step(&self) -> usize {
        match self.received {
            0..=0x1_FFFF => 2 << 10,
            0x2_0000..=0x9F_FFFF => 16 << 10,
            _ => 256 << 10,
        }
    }

    /// The buffer with room to read into. A small rest is not worth a system call of its own.
    fn spare(&mut self) -> &mut BytesMut {
        let step = self.step();
        if self.buf.capacity() - self.buf.len() < step / 4 {
            self.buf.reserve(step);
        }
        &mut self.buf
    }

    fn poll<T: AsyncRead + Unpin>(&mut self, io: &mut T, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        match poll_read_buf(Pin::new(io), cx, self.spare()) {
            Poll::Ready(Ok(0)) => Poll::Ready(Ok(None)),
            Poll::Ready(Ok(n)) => {
                self.received += n as u64;
                Poll::Ready(Ok(Some(self.buf.split().freeze())))
            }
            Poll::Ready(Err(e)) => Poll::Ready(Err(e)),
            Poll::Pending => {
                self.release();
                Poll::Pending
            }
        }
    }

    /// A waiting connection holds no buffer.
    fn release(&mut self) {
        self.buf = BytesMut::new();
    }
}

/// [`Transport`] over a TCP socket.
pub struct TcpTransport {
    io: TcpStream,
    read: ReadBuf,
}

impl TcpTransport {
    /// Wraps a connected socket.
    pub fn new(io: TcpStream) -> Self {
        Self { io, read: ReadBuf::default() }
    }

    /// The socket.
    pub fn get_ref(&self) -> &TcpStream {
        &self.io
    }

    /// Has the kernel send RST instead of FIN once the socket is closed. For callers that drop the transport
    /// later; [`Transport::abort`] does the same.
    pub fn set_reset_on_close(&self) {
        // Failure means that the socket is dead already.
        let _ = self.io.set_zero_linger();
    }
}

impl Transport for TcpTransport {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        // Readiness first: the buffer is made when there is something to read, so idle connections hold none.
        // The read itself goes through tokio's, which spares the second system call after a short read.
        if self.io.poll_read_ready(cx)?.is_pending() {
            self.read.release();
            return Poll::Pending;
        }
        self.read.poll(&mut self.io, cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bufs: &mut BufList) -> Poll<Result<usize>> {
        send_vectored(Pin::new(&mut self.io), cx, bufs)
    }

    fn poll_flush(&mut self, _cx: &mut Context<'_>) -> Poll<Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        shutdown(Pin::new(&mut self.io), cx)
    }

    fn abort(&mut self) {
        self.set_reset_on_close();
    }
}

/// [`Transport`] over any tokio byte stream: TLS, in-memory pipes.
pub struct IoTransport<T> {
    io: T,
    read: ReadBuf,
}

impl<T> IoTransport<T> {
    /// Wraps a stream.
    pub fn new(io: T) -> Self {
        Self { io, read: ReadBuf::default() }
    }

    /// The stream.
    pub fn get_ref(&self) -> &T {
        &self.io
    }
}

impl<T: AsyncRead + AsyncWrite + Unpin> Transport for IoTransport<T> {
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>>> {
        self.read.poll(&mut self.io, cx)
    }

    fn poll_send(&mut self, cx: &mut Context<'_>, bufs: &mut BufList) -> Poll<Result<usize>> {
        send_vectored(Pin::new(&mut self.io), cx, bufs)
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(&mut self, cx: &mut Context<'_>) -> Poll<Result<()>> {
        shutdown(Pin::new(&mut self.io), cx)
    }

    /// Dropping the stream without `poll_shutdown` is all that a general byte stream offers (for TLS, no
    /// close_notify: the peer reads a truncated stream).
    fn abort(&mut self) {}
}

fn send_vectored<T: AsyncWrite>(io: Pin<&mut T>, cx: &mut Context<'_>, bufs: &mut BufList) -> Poll<Result<usize>> {
    if bufs.is_empty() {
        return Poll::Ready(Ok(0));
    }
    let n = if bufs.chunks() == 1 || !io.is_write_vectored() {
        ready!(io.poll_write(cx, bufs.chunk()))?
    } else {
        let mut slices = [IoSlice::new(&[]); MAX_SLICES];
        let filled = bufs.chunks_vectored(&mut slices);
        ready!(io.poll_write_vectored(cx, &slices[..filled]))?
    };
    if n == 0 {
        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
    }
    bufs.advance(n);
    Poll::Ready(Ok(n))
}

/// A peer that is gone already leaves nothing to end.
fn shutdown<T: AsyncWrite>(io: Pin<&mut T>, cx: &mut Context<'_>) -> Poll<Result<()>> {
    match ready!(io.poll_shutdown(cx)) {
        Err(e) if e.kind() == io::ErrorKind::NotConnected => Poll::Ready(Ok(())),
        other => Poll::Ready(other),
    }
}
