//! TLS over a byte stream, made for the tunnel: what is received is decrypted where it lies and handed on as it is, what
//! is sent is gathered into full records and leaves at a flush.
//!
//! ```text
//!   read:   socket ─▶ inbox ─▶ decrypt in place ─▶ Bytes ─▶ caller
//!   write:  caller ─▶ gathered (small writes) ─▶ encrypt ─▶ outbox (records) ─▶ one vectored write at a flush
//! ```
//!
//! Handshakes are rustls's; then it gives the keys, and key updates go on through it. General streams over rustls move
//! each byte twice more, and write a record for each write of their caller.
//!
//! Invariants:
//! - A write is only guaranteed to leave at `poll_flush` or `poll_shutdown`; unsent bytes are bounded by [`OUTBOX`].
//! - A waiting connection holds no buffers.
//! - Keys are renewed before their suite's limit of records, and after the peer's renewal if it asks for that.

mod handshake;
mod record;
#[cfg(test)]
mod tests;

use aquifer_runtime::OwnThread;
use bytes::{Buf, Bytes, BytesMut};
use rustls::pki_types::ServerName;
use rustls::{AlertDescription, ClientConfig, CommonState, ServerConfig};
use std::collections::VecDeque;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use record::{Keys, Opener, Received, Sealer};

/// Plaintext of a full record (RFC 8446, 5.1).
const RECORD: usize = 16 << 10;
/// Encrypted bytes that may wait for the socket; above it writes wait too.
const OUTBOX: usize = 256 << 10;
/// Slices of one vectored write.
const SLICES: usize = 32;
/// What is read at once at first, and at most: an idle tunnel stays small, a busy one makes few system calls.
const READ: (usize, usize) = (4 << 10, 128 << 10);

/// An established connection, and what was read of its peer.
pub struct TlsStream<Io, P = ()> {
    io: Io,
    peer: P,
    keys: Keys,
    opener: Opener,
    sealer: Sealer,
    inbox: BytesMut,
    /// How much the next read asks for.
    appetite: usize,
    /// Decrypted and not yet read.
    plain: VecDeque<Bytes>,
    /// The peer has ended its direction in order.
    ended: bool,
    failed: Option<io::Error>,
    /// Small writes, not yet encrypted.
    gathered: BytesMut,
    outbox: VecDeque<Bytes>,
    waiting: usize,
    closed: bool,
    _own: OwnThread,
}

aquifer_runtime::stays_on_its_thread!(TlsStream<tokio::net::TcpStream>);

/// Connects as `config` says. Anything that must be known of the peer is read by `inspect`, once, before the handshake's
/// state goes.
///
/// # Errors
/// Those of the socket; what rustls says lies inside an error of kind `InvalidData`.
pub async fn connect<Io: AsyncRead + AsyncWrite + Unpin, T>(
    config: Arc<ClientConfig>,
    name: ServerName<'static>,
    io: Io,
    inspect: impl FnOnce(&CommonState) -> T,
) -> io::Result<TlsStream<Io, T>> {
    handshake::client(config, name, io, inspect).await
}

/// Accepts as `config` says; see [`connect`].
pub async fn accept<Io: AsyncRead + AsyncWrite + Unpin, T>(
    config: Arc<ServerConfig>,
    io: Io,
    inspect: impl FnOnce(&CommonState) -> T,
) -> io::Result<TlsStream<Io, T>> {
    handshake::server(config, io, inspect).await
}

impl<Io, P> TlsStream<Io, P> {
    /// The byte stream below.
    pub fn get_ref(&self) -> &Io {
        &self.io
    }

    /// What `inspect` read in the handshake.
    pub fn peer(&self) -> &P {
        &self.peer
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin, P> TlsStream<Io, P> {
    /// The next decrypted bytes, as they came; `None` once the peer has said that it is done (close_notify).
    ///
    /// # Errors
    /// `UnexpectedEof` if the connection ended without that; `InvalidData` around a [`rustls::Error`].
    pub fn poll_chunk(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        loop {
            if let Some(bytes) = self.plain.pop_front() {
                return Poll::Ready(Ok(Some(bytes)));
            }
            if self.ended {
                return Poll::Ready(Ok(None));
            }
            if !self.open_one()? {
                ready!(self.fill(cx))?;
            }
        }
    }

    /// Deals with one record, if a whole one is there.
    fn open_one(&mut self) -> io::Result<bool> {
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        let Some(received) = self.opener.open(&mut self.inbox).map_err(tls_error)? else { return Ok(false) };
        match received {
            Received::Data(bytes) if bytes.is_empty() => {}
            Received::Data(bytes) => self.plain.push_back(bytes),
            Received::Closed => self.ended = true,
            Received::KeyUpdate { asked } => {
                self.opener.renew(&mut self.keys).map_err(tls_error)?;
                if asked {
                    self.seal_gathered()?;
                    self.renew_keys()?;
                }
            }
            Received::Ignored => {}
        }
        Ok(true)
    }

    fn fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let missing = self.opener.missing(&self.inbox);
        let room = self.inbox.capacity() - self.inbox.len();
        if self.inbox.is_empty() || room < missing {
            self.inbox.reserve(self.appetite.max(missing));
        }
        let read = tokio_util::io::poll_read_buf(Pin::new(&mut self.io), cx, &mut self.inbox);
        match read {
            Poll::Pending => {
                if self.inbox.is_empty() {
                    self.inbox = BytesMut::new();
                }
                Poll::Pending
            }
            Poll::Ready(Ok(0)) => Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into())),
            Poll::Ready(Ok(n)) => {
                let full = self.inbox.len() == self.inbox.capacity();
                self.appetite = match (full, n * 4 < self.appetite) {
                    (true, _) => (self.appetite * 2).min(READ.1),
                    (_, true) => (self.appetite / 2).max(READ.0),
                    _ => self.appetite,
                };
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
        }
    }

    /// Takes over `chunks`, encrypted as soon as they fill a record, else at the next flush. Returns how many bytes were
    /// taken: all, or none while too much waits for the socket (then the task is woken when that changes).
    pub fn poll_send(&mut self, cx: &mut Context<'_>, chunks: &[IoSlice<'_>]) -> Poll<io::Result<usize>> {
        if self.closed {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        while self.waiting >= OUTBOX {
            ready!(self.poll_drain(cx))?;
        }
        let mut taken = 0;
        for chunk in chunks {
            self.gather(chunk)?;
            taken += chunk.len();
        }
        Poll::Ready(Ok(taken))
    }

    fn gather(&mut self, mut chunk: &[u8]) -> io::Result<()> {
        if self.gathered.len() + chunk.len() >= RECORD {
            // Tops up what is gathered, so that only the last record is a short one.
            if !self.gathered.is_empty() {
                let (head, rest) = chunk.split_at(RECORD - self.gathered.len());
                let gathered = std::mem::take(&mut self.gathered);
                self.seal(&[&gathered, head])?;
                chunk = rest;
            }
            while chunk.len() >= RECORD {
                let (full, rest) = chunk.split_at(RECORD);
                self.seal(&[full])?;
                chunk = rest;
            }
        }
        self.gathered.extend_from_slice(chunk);
        Ok(())
    }

    fn seal_gathered(&mut self) -> io::Result<()> {
        if self.gathered.is_empty() {
            return Ok(());
        }
        let gathered = std::mem::take(&mut self.gathered);
        self.seal(&[&gathered])
    }

    fn seal(&mut self, chunks: &[&[u8]]) -> io::Result<()> {
        if self.sealer.is_worn() {
            self.renew_keys()?;
        }
        let record = self.sealer.data(chunks).map_err(tls_error)?;
        self.queue(record);
        Ok(())
    }

    fn renew_keys(&mut self) -> io::Result<()> {
        let record = self.sealer.renew(&mut self.keys).map_err(tls_error)?;
        self.queue(record);
        Ok(())
    }

    fn queue(&mut self, record: Vec<u8>) {
        self.waiting += record.len();
        self.outbox.push_back(record.into());
    }

    /// Writes once, if anything waits.
    fn poll_drain(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let mut slices = [IoSlice::new(&[]); SLICES];
        let mut used = 0;
        for (slice, record) in slices.iter_mut().zip(&self.outbox) {
            *slice = IoSlice::new(record);
            used += 1;
        }
        let io = Pin::new(&mut self.io);
        let mut written = match used {
            0 => return Poll::Ready(Ok(())),
            1 => ready!(io.poll_write(cx, &slices[0]))?,
            _ => ready!(io.poll_write_vectored(cx, &slices[..used]))?,
        };
        if written == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        self.waiting -= written;
        while let Some(first) = self.outbox.front_mut() {
            if written < first.len() {
                first.advance(written);
                break;
            }
            written -= first.len();
            self.outbox.pop_front();
        }
        if self.outbox.is_empty() {
            self.outbox = VecDeque::new();
        }
        Poll::Ready(Ok(()))
    }

    /// Encrypts what is gathered and writes all that waits.
    pub fn poll_flush_all(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.seal_gathered()?;
        while self.waiting > 0 {
            ready!(self.poll_drain(cx))?;
        }
        Pin::new(&mut self.io).poll_flush(cx)
    }
}

fn tls_error(error: rustls::Error) -> io::Error {
    match error {
        // What the kernel would say of a peer that leaves.
        rustls::Error::AlertReceived(AlertDescription::UserCanceled) => io::ErrorKind::ConnectionAborted.into(),
        error => io::Error::new(io::ErrorKind::InvalidData, error),
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin, P: Unpin> AsyncRead for TlsStream<Io, P> {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let mut read = false;
        // All that is there without asking the socket again.
        while buf.remaining() > 0 {
            if let Some(first) = this.plain.front_mut() {
                let n = first.len().min(buf.remaining());
                buf.put_slice(&first[..n]);
                first.advance(n);
                if first.is_empty() {
                    this.plain.pop_front();
                }
                read = true;
            } else if this.ended {
                break;
            } else {
                match this.open_one() {
                    Ok(true) => {}
                    Ok(false) if read => break,
                    Ok(false) => ready!(this.fill(cx))?,
                    // What came before it is delivered before it.
                    Err(error) if read => {
                        this.failed = Some(error);
                        break;
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                }
            }
        }
        Poll::Ready(Ok(()))
    }
}

impl<Io: AsyncRead + AsyncWrite + Unpin, P: Unpin> AsyncWrite for TlsStream<Io, P> {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, &[IoSlice::new(buf)])
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_send(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll_flush_all(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.closed {
            this.seal_gathered()?;
            let goodbye = this.sealer.close_notify().map_err(tls_error)?;
            this.queue(goodbye);
            this.closed = true;
        }
        ready!(this.poll_flush_all(cx))?;
        Pin::new(&mut this.io).poll_shutdown(cx)
    }
}
