//! The connecting end of one HBONE connection, without the pool.

use crate::config::{ClientConfig, RESET_KEPT, RESETS_KEPT};
use crate::credit::Budget;
use crate::error::ConnectError;
use crate::flood::{self, Flood};
use crate::guard::{Guard, Watch};
use crate::keepalive;
use crate::late_flush::{Flusher, LateFlush, late_flush};
use crate::stream::H2Stream;
use crate::tuning::Tuning;
use bytes::Bytes;
use h2::client::{Connection, SendRequest};
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(test)]
mod tests;

/// Streams assumed to be allowed until the peer's SETTINGS say how many.
pub(crate) const INITIAL_MAX_STREAMS: usize = 100;

/// One CONNECT.
#[derive(Clone, Debug)]
pub struct HboneRequest {
    /// `ip:port`, `[v6]:port` or `hostname:port`.
    pub authority: String,
    /// `baggage`, `forwarded`, `traceparent` and the like, sent as they are.
    pub headers: HeaderMap,
}

/// A handle to a connection that [`handshake`] made. Clones share the connection; when all handles and streams
/// are gone, the connection closes itself in order.
#[derive(Clone)]
pub struct Client {
    send: SendRequest<Bytes>,
    tuning: Tuning,
    watch: Watch,
    response_timeout: Duration,
}

impl Client {
    /// Opens a stream: sends CONNECT and waits for 200.
    pub async fn connect(&self, request: &HboneRequest) -> Result<(H2Stream, HeaderMap), ConnectError> {
        let timeout = self.response_timeout;
        tokio::time::timeout(timeout, self.exchange(request)).await.map_err(|_| ConnectError::Timeout(timeout))?
    }

    async fn exchange(&self, request: &HboneRequest) -> Result<(H2Stream, HeaderMap), ConnectError> {
        let request = head(request)?;
        self.tuning.turn().await;
        let mut ready = self.send.clone().ready().await?;
        let (response, send) = ready.send_request(request, false)?;
        let credit = self.tuning.open(send.stream_id().as_u32());
        let (head, recv) = response.await?.into_parts();
        if head.status != StatusCode::OK {
            return Err(ConnectError::Status { status: head.status, headers: Box::new(head.headers) });
        }
        self.watch.served();
        Ok((H2Stream::new(send, recv, credit), head.headers))
    }

    /// Whether the connection takes new streams. False after a GOAWAY or a failure, and when another should be made.
    pub fn is_open(&self) -> bool {
        self.clone().probe()
    }

    /// The same for whoever owns this handle alone, without another.
    pub(crate) fn probe(&mut self) -> bool {
        let mut cx = Context::from_waker(std::task::Waker::noop());
        !self.watch.worn() && !matches!(self.send.poll_ready(&mut cx), Poll::Ready(Err(_)))
    }

    /// When one of the streams was last seen to carry bulk.
    pub(crate) fn last_bulk(&self) -> Option<std::time::Instant> {
        self.tuning.last_bulk()
    }

    /// Streams that the peer allows at once, as far as known.
    pub fn max_streams(&self) -> usize {
        self.send.current_max_send_streams()
    }
}

fn head(request: &HboneRequest) -> Result<Request<()>, ConnectError> {
    let invalid = |e: http::Error| ConnectError::InvalidRequest(std::sync::Arc::new(e));
    // Only an authority: no :scheme, no :path (RFC 9113, 8.5; not the extended CONNECT of RFC 8441).
    let uri = Uri::builder().authority(request.authority.as_str()).build().map_err(invalid)?;
    let mut head = Request::builder().method(Method::CONNECT).uri(uri).body(()).map_err(invalid)?;
    *head.headers_mut() = request.headers.clone();
    Ok(head)
}

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// The peer, or the transport below, broke it.
    #[error("{0}")]
    Http2(#[from] h2::Error),
    /// No answer to a PING.
    #[error("no answer to PING within {0:?}")]
    PingTimeout(Duration),
    /// Frames that cost more than they are worth.
    #[error("too many {0}")]
    Flood(Flood),
}

/// Starts HTTP/2 on an authenticated byte stream. The [`Driver`] must be polled for anything to happen.
pub async fn handshake<Io>(io: Io, config: &ClientConfig) -> Result<(Client, Driver<Io>), h2::Error>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    handshake_within(io, config, &Budget::default()).await
}

/// Like [`handshake`], with what the pod's connections may hold together.
pub async fn handshake_within<Io>(
    io: Io,
    config: &ClientConfig,
    budget: &Budget,
) -> Result<(Client, Driver<Io>), h2::Error>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let windows = config.windows.legal();
    let (io, flusher) = late_flush(io);
    let io = Guard::client(io);
    let watch = io.watch();
    let tuning = Tuning::new(windows, budget, watch.clone());
    let (stream_window, connection_window) = tuning.initial();
    let (send, connection) = h2::client::Builder::new()
        .enable_push(false)
        .initial_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_frame_size(windows.frame)
        .max_header_list_size(config.max_header_list)
        .max_send_buffer_size(windows.send_buffer)
        .initial_max_send_streams(INITIAL_MAX_STREAMS)
        .max_concurrent_reset_streams(RESETS_KEPT)
        .reset_stream_duration(RESET_KEPT)
        .max_local_error_reset_streams(Some(flood::FAULTS))
        .data_frame_budget(windows.connection as usize)
        .handshake(io)
        .await?;
    let client =
        Client { send, tuning: tuning.clone(), watch: watch.clone(), response_timeout: config.response_timeout };
    Ok((client, Driver { connection, flusher, tuning, watch, keepalive: config.keepalive }))
}

/// What moves a connection's frames.
#[must_use = "the connection stands still unless the driver runs"]
pub struct Driver<Io> {
    connection: Connection<Guard<LateFlush<Io>>, Bytes>,
    flusher: Flusher<Io>,
    tuning: Tuning,
    watch: Watch,
    keepalive: crate::config::Keepalive,
}

impl<Io: AsyncRead + AsyncWrite + Unpin> Driver<Io> {
    /// Runs the connection to its end. Dropping the future closes it at once.
    pub async fn run(self) -> Result<(), ConnectionError> {
        self.run_observed(|| {}).await
    }

    /// Like [`run`](Self::run), and calls `progress` after each step, when limits or the connection's openness
    /// may have changed.
    pub(crate) async fn run_observed(mut self, mut progress: impl FnMut()) -> Result<(), ConnectionError> {
        let timeout = self.keepalive.timeout;
        let mut dead = pin!(keepalive::watch(self.connection.ping_pong(), self.keepalive));
        let (mut connection, tuning, watch) = (self.connection, self.tuning, self.watch);
        let steps = std::future::poll_fn(move |cx| {
            tuning.before_poll(&mut connection);
            let polled = Pin::new(&mut connection).poll(cx);
            tuning.after_poll();
            progress();
            if let Poll::Ready(result) = polled {
                return Poll::Ready(result.map_err(ConnectionError::from));
            }
            if let Some(flood) = watch.flood() {
                return Poll::Ready(Err(ConnectionError::Flood(flood)));
            }
            match dead.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(ConnectionError::PingTimeout(timeout))),
                Poll::Pending => Poll::Pending,
            }
        });
        self.flusher.drive(steps).await
    }
}
