//! The accepting end: one HTTP/2 connection, a task per CONNECT.

use crate::config::{RESET_KEPT, RESETS_KEPT, ServerConfig};
use crate::credit::{Budget, now};
use crate::flood::{self, Flood};
use crate::guard::{Guard, Watch};
use crate::keepalive;
use crate::late_flush::late_flush;
use crate::stream::H2Stream;
use crate::tuning::{StreamCredit, Tuning};
use aquifer_runtime::{Cancel, Tracker};
use bytes::Bytes;
use h2::server::{Connection, SendResponse};
use h2::{Reason, RecvStream};
use http::{HeaderMap, Method, Request, Response, StatusCode, request};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};
use tokio::io::{AsyncRead, AsyncWrite};

#[cfg(test)]
mod honest;
#[cfg(test)]
mod hostile;
#[cfg(test)]
mod stalls;
#[cfg(test)]
mod tests;

/// Time to tell a peer why it is sent away.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// Why serving a connection ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// No HTTP/2 preface in time.
    #[error("no HTTP/2 handshake within {0:?}")]
    HandshakeTimeout(Duration),
    /// The peer, or the transport below, broke the connection.
    #[error("{0}")]
    Http2(#[from] h2::Error),
    /// No answer to a PING.
    #[error("no answer to PING within {0:?}")]
    PingTimeout(Duration),
    /// A connection, and nothing asked of it.
    #[error("no request within {0:?}")]
    RequestTimeout(Duration),
    /// Frames that cost more than they are worth.
    #[error("too many {0}")]
    Flood(Flood),
}

impl ServeError {
    /// Whether the peer went away, as peers do, rather than broke the protocol.
    pub fn is_disconnect(&self) -> bool {
        match self {
            Self::Http2(e) => e.is_io(),
            Self::HandshakeTimeout(_) | Self::PingTimeout(_) | Self::RequestTimeout(_) => true,
            Self::Flood(_) => false,
        }
    }
}

/// A request that is no plain CONNECT; it was answered 400.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unfit {
    /// Something else than CONNECT.
    #[error("{0} on the HBONE port: CONNECT expected")]
    Method(Method),
    /// A CONNECT to nowhere.
    #[error("CONNECT without an authority")]
    NoAuthority,
}

impl Unfit {
    /// Its place in the mesh's list of reasons.
    pub fn reason(&self) -> aquifer_core::reason::Reason {
        match self {
            Self::Method(_) => aquifer_core::reason::Reason::MethodNotAllowed,
            Self::NoAuthority => aquifer_core::reason::Reason::InvalidAuthority,
        }
    }
}

/// Serves one connection: `handler` runs as a task of its own for each CONNECT, and answers it.
///
/// On `cancel`'s drain the peer is told by GOAWAY, and this returns when the streams have ended. On force it
/// returns at once, and the streams break. Must run on a local runtime.
pub async fn serve<Io, H, F>(
    io: Io,
    config: &ServerConfig,
    handler: H,
    cancel: Cancel,
    tracker: &Tracker,
) -> Result<(), ServeError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    H: Fn(ConnectRequest) -> F,
    F: Future<Output = ()> + 'static,
{
    serve_within(io, config, &Budget::default(), handler, |_| {}, cancel, tracker).await
}

/// Like [`serve`], with what the pod's connections may hold together; `unfit` hears of each request that was answered
/// 400 without the handler.
pub async fn serve_within<Io, H, F>(
    io: Io,
    config: &ServerConfig,
    budget: &Budget,
    handler: H,
    unfit: impl Fn(&Unfit),
    cancel: Cancel,
    tracker: &Tracker,
) -> Result<(), ServeError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    H: Fn(ConnectRequest) -> F,
    F: Future<Output = ()> + 'static,
{
    let (io, flusher) = late_flush(io);
    flusher.drive(serve_guarded(Guard::server(io), config, budget, handler, unfit, cancel, tracker)).await
}

async fn serve_guarded<Io, H, F>(
    io: Guard<Io>,
    config: &ServerConfig,
    budget: &Budget,
    handler: H,
    unfit: impl Fn(&Unfit),
    cancel: Cancel,
    tracker: &Tracker,
) -> Result<(), ServeError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
    H: Fn(ConnectRequest) -> F,
    F: Future<Output = ()> + 'static,
{
    let watch = io.watch();
    let tuning = Tuning::new(config.windows.legal(), budget, watch.clone());
    let Some(mut connection) = handshake(io, config, tuning.initial(), &cancel).await? else {
        return Ok(());
    };
    let mut dead = pin!(keepalive::watch(connection.ping_pong(), config.keepalive));
    let mut unused = pin!(tokio::time::sleep(config.request_timeout));
    let (mut draining, mut asked) = (false, false);
    loop {
        tokio::select! {
            // The end first: a busy peer must not keep a connection that is to go.
            biased;
            () = cancel.forced() => return Ok(()),
            () = cancel.drained(), if !draining => {
                draining = true;
                connection.graceful_shutdown();
            }
            accepted = next(&mut connection, &tuning, &watch) => match accepted {
                Next::End => return Ok(()),
                Next::Request(request) => {
                    asked = true;
                    let (request, respond) = (*request)?;
                    let credit = tuning.open(request.body().stream_id().as_u32());
                    if watch.worn() && !draining {
                        // The client makes another connection; its streams here go on.
                        draining = true;
                        connection.graceful_shutdown();
                    }
                    match ConnectRequest::new(request, respond, credit, &watch) {
                        Ok(request) => {
                            tracker.spawn_local("hbone-stream", handler(request));
                        }
                        Err(refused) => unfit(&refused),
                    }
                }
                Next::Flood(flood) => {
                    dismiss(connection, Reason::ENHANCE_YOUR_CALM, &cancel).await;
                    return Err(ServeError::Flood(flood));
                }
            },
            () = &mut dead => return Err(ServeError::PingTimeout(config.keepalive.timeout)),
            () = &mut unused, if !asked => {
                dismiss(connection, Reason::NO_ERROR, &cancel).await;
                return Err(ServeError::RequestTimeout(config.request_timeout));
            }
        }
    }
}

/// What h2 accepts.
type Asked = Result<(Request<RecvStream>, SendResponse<Bytes>), h2::Error>;

enum Next {
    Request(Box<Asked>),
    End,
    Flood(Flood),
}

/// Lets the connection go on until there is something to do for it.
async fn next<Io>(connection: &mut Connection<Io, Bytes>, tuning: &Tuning, watch: &Watch) -> Next
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    poll_fn(|cx| {
        tuning.before_poll(connection);
        let accepted = pin!(connection.accept()).poll(cx);
        tuning.after_poll();
        if let Some(flood) = watch.flood() {
            return Poll::Ready(Next::Flood(flood));
        }
        accepted.map(|accepted| accepted.map_or(Next::End, |request| Next::Request(Box::new(request))))
    })
    .await
}

/// Closes with GOAWAY; the streams break.
async fn dismiss<Io>(mut connection: Connection<Io, Bytes>, reason: Reason, cancel: &Cancel)
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    connection.abrupt_shutdown(reason);
    let written = async { while connection.accept().await.is_some() {} };
    tokio::select! {
        biased;
        () = cancel.forced() => {}
        // It may not even read.
        _ = tokio::time::timeout(LAST_WORDS, written) => {}
    }
}

/// `None` when forced to end meanwhile.
async fn handshake<Io>(
    io: Io,
    config: &ServerConfig,
    (stream_window, connection_window): (u32, u32),
    cancel: &Cancel,
) -> Result<Option<Connection<Io, Bytes>>, ServeError>
where
    Io: AsyncRead + AsyncWrite + Unpin,
{
    let windows = config.windows.legal();
    let handshake = h2::server::Builder::new()
        .initial_window_size(stream_window)
        .initial_connection_window_size(connection_window)
        .max_frame_size(windows.frame)
        .max_header_list_size(config.max_header_list)
        .max_concurrent_streams(config.max_concurrent_streams)
        .max_send_buffer_size(windows.send_buffer)
        // All of an honest peer's streams may be given up while we are busy, and those that it opens instead.
        .max_pending_accept_reset_streams(4 * config.max_concurrent_streams as usize)
        .max_concurrent_reset_streams(RESETS_KEPT.max(2 * config.max_concurrent_streams as usize))
        .reset_stream_duration(RESET_KEPT)
        .max_local_error_reset_streams(Some(flood::FAULTS))
        .data_frame_budget(windows.connection as usize)
        .handshake::<_, Bytes>(io);
    tokio::select! {
        biased;
        () = cancel.forced() => Ok(None),
        done = tokio::time::timeout(config.handshake_timeout, handshake) => match done {
            Err(_) => Err(ServeError::HandshakeTimeout(config.handshake_timeout)),
            Ok(connection) => Ok(Some(connection?)),
        },
    }
}

/// A CONNECT that waits for its answer. Dropped without one, the stream is cancelled.
pub struct ConnectRequest {
    head: request::Parts,
    respond: SendResponse<Bytes>,
    recv: RecvStream,
    credit: StreamCredit,
    watch: Watch,
    asked: Instant,
}

impl ConnectRequest {
    /// Answers everything but a plain CONNECT with 400.
    fn new(
        request: Request<RecvStream>,
        respond: SendResponse<Bytes>,
        credit: StreamCredit,
        watch: &Watch,
    ) -> Result<Self, Unfit> {
        let (head, recv) = request.into_parts();
        // h2 itself refuses a CONNECT with :scheme or :path, and the extended one of RFC 8441.
        let unfit = if head.method != Method::CONNECT {
            Some(Unfit::Method(head.method.clone()))
        } else if head.uri.authority().is_none() {
            Some(Unfit::NoAuthority)
        } else {
            None
        };
        let request = Self { head, respond, recv, credit, watch: watch.clone(), asked: now() };
        let Some(unfit) = unfit else { return Ok(request) };
        request.refuse(StatusCode::BAD_REQUEST);
        Err(unfit)
    }

    /// Where the client wants to go, as it wrote it.
    pub fn authority(&self) -> &str {
        self.head.uri.authority().map_or("", |a| a.as_str())
    }

    /// `baggage`, `forwarded` and the others.
    pub fn headers(&self) -> &HeaderMap {
        &self.head.headers
    }

    /// Answers 200 with `headers`: send it after the connection to the application stands, clients take it as
    /// connected.
    pub fn accept(mut self, headers: HeaderMap) -> Result<H2Stream, h2::Error> {
        let mut response = Response::new(());
        *response.headers_mut() = headers;
        let send = self.respond.send_response(response, false).inspect_err(|_| self.given_up())?;
        self.watch.served();
        Ok(H2Stream::new(send, self.recv, self.credit))
    }

    /// Answers with an error status, which ends the stream: HEADERS with END_STREAM, then, as the client may
    /// still send, RST_STREAM NO_ERROR (RFC 9113, 8.1; h2 writes it when the request is dropped).
    pub fn refuse(mut self, status: StatusCode) {
        let mut response = Response::new(());
        *response.status_mut() = status;
        if self.respond.send_response(response, true).is_err() {
            self.given_up();
            self.respond.send_reset(Reason::NO_ERROR);
        }
    }

    /// Ends when the client has given up waiting for the answer.
    pub async fn abandoned(&mut self) {
        // Any outcome means that nobody waits: a reset, or a broken connection.
        if poll_fn(|cx| self.respond.poll_reset(cx)).await.is_ok() {
            self.given_up();
        }
    }

    fn given_up(&self) {
        self.watch.early_reset(now().saturating_duration_since(self.asked));
    }
}
