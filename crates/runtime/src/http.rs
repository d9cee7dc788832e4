//! The small HTTP/1.1 server under the admin, metrics and readiness ports.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::{Cancel, Tracker, accept_loop};

/// An answer, whole in memory.
pub type Response = http::Response<Full<Bytes>>;

/// A request without its body, which no route here needs.
#[derive(Clone, Debug)]
pub struct Request {
    /// The method.
    pub method: Method,
    /// The path, without the query.
    pub path: String,
    /// The query's keys; one without `=` has an empty value.
    pub query: BTreeMap<String, String>,
    /// The headers.
    pub headers: HeaderMap,
    /// Who calls.
    pub peer: Option<SocketAddr>,
}

/// Answers requests.
pub type Handler = Arc<dyn Fn(Request) -> HandlerFuture + Send + Sync>;
/// An answer in the making.
pub type HandlerFuture = Pin<Box<dyn Future<Output = Response> + Send>>;

/// Makes a handler of an async function.
pub fn handler<H, F>(handle: H) -> Handler
where
    H: Fn(Request) -> F + Send + Sync + 'static,
    F: Future<Output = Response> + Send + 'static,
{
    Arc::new(move |request| Box::pin(handle(request)))
}

/// An answer in plain text.
pub fn text(status: StatusCode, body: impl Into<Bytes>) -> Response {
    with_type(status, "text/plain", body)
}

/// An answer in JSON.
pub fn json(status: StatusCode, value: &impl serde::Serialize) -> Response {
    match serde_json::to_vec_pretty(value) {
        Ok(body) => with_type(status, "application/json", body),
        Err(error) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}

/// An answer of the given content type.
pub fn with_type(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    let mut response = Response::new(Full::new(body.into()));
    *response.status_mut() = status;
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

/// A port that is bound but not served yet.
#[derive(Debug)]
pub struct Server {
    name: &'static str,
    listener: TcpListener,
    /// Of the other family, where one listener doesn't take both.
    second: Option<TcpListener>,
}

// A caller that sends its request too slowly would hold a descriptor for ever.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

impl Server {
    /// Binds `address`. An IPv6 wildcard takes IPv4 as well.
    pub async fn bind(name: &'static str, address: SocketAddr) -> io::Result<Self> {
        let listener = TcpListener::bind(address)
            .await
            .map_err(|e| io::Error::new(e.kind(), format!("{name} server on {address}: {e}")))?;
        Ok(Self::on(name, listener))
    }

    /// Binds `port` on 127.0.0.1 and, if `ipv6` is set and the machine's loopback has it, on ::1.
    pub async fn bind_loopback(name: &'static str, port: u16, ipv6: bool) -> io::Result<Self> {
        let mut server = Self::bind(name, (Ipv4Addr::LOCALHOST, port).into()).await?;
        if ipv6 {
            let chosen = server.local_addr()?.port();
            match Self::bind(name, (Ipv6Addr::LOCALHOST, chosen).into()).await {
                Ok(other) => server.second = Some(other.listener),
                // As with the wildcard: any other trouble is that there is no such address. A port that the kernel chose
                // (0 was asked) was free on the first address, and no more than that.
                Err(error) if error.kind() == io::ErrorKind::AddrInUse && port != 0 => return Err(error),
                Err(error) => tracing::debug!(%error, "no IPv6 on loopback"),
            }
        }
        Ok(server)
    }

    /// Binds `port` on all addresses, of both families where the machine has both.
    pub async fn bind_wildcard(name: &'static str, port: u16) -> io::Result<Self> {
        match Self::bind(name, (Ipv6Addr::UNSPECIFIED, port).into()).await {
            // Without IPv6 there is no such address; any other trouble is the port's.
            Err(error) if error.kind() != io::ErrorKind::AddrInUse => {
                Self::bind(name, (Ipv4Addr::UNSPECIFIED, port).into()).await
            }
            bound => bound,
        }
    }

    /// Serves a listener that somebody else bound.
    pub fn on(name: &'static str, listener: TcpListener) -> Self {
        Self { name, listener, second: None }
    }

    /// Where it listens; of two addresses that of IPv4.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// Serves on tasks of `tracker` until the drain; then open connections end after their current request.
    pub fn serve(self, handler: Handler, tracker: &Tracker, cancel: Cancel) {
        let name = self.name;
        for listener in [Some(self.listener), self.second].into_iter().flatten() {
            let (handler, connections, cancel) = (handler.clone(), tracker.clone(), cancel.clone());
            tracker.spawn(name, async move {
                let serve = |(stream, peer)| {
                    let (handler, cancel) = (handler.clone(), cancel.child());
                    connections.spawn(name, connection(name, stream, peer, handler, cancel));
                };
                if let Err(error) = accept_loop(name, || listener.accept(), serve, &cancel).await {
                    tracing::error!(server = name, %error, "server stopped");
                }
            });
        }
    }
}

async fn connection(name: &'static str, stream: TcpStream, peer: SocketAddr, handler: Handler, cancel: Cancel) {
    let service = service_fn(move |request| {
        let handler = handler.clone();
        async move { Ok::<_, Infallible>(handler(read(request, peer)).await) }
    });
    let mut connection = std::pin::pin!(
        hyper::server::conn::http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEADER_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service)
    );
    let result = tokio::select! {
        biased; // An end that was asked for comes before more requests.
        () = cancel.drained() => {
            connection.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                () = cancel.forced() => return,
                result = connection => result,
            }
        }
        result = connection.as_mut() => result,
    };
    if let Err(error) = result {
        tracing::debug!(server = name, %error, "connection ended early");
    }
}

fn read(request: http::Request<Incoming>, peer: SocketAddr) -> Request {
    let (parts, _body) = request.into_parts();
    Request {
        path: parts.uri.path().to_owned(),
        query: parts.uri.query().map(parse_query).unwrap_or_default(),
        method: parts.method,
        headers: parts.headers,
        peer: Some(peer),
    }
}

/// The keys and values of a query, as in [`Request::query`].
pub fn parse_query(query: &str) -> BTreeMap<String, String> {
    query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode(key), percent_decode(value))
        })
        .collect()
}

fn percent_decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut i = 0;
    while i < bytes.len() {
        let hex = (bytes[i] == b'%').then(|| bytes.get(i + 1..i + 3)).flatten();
        let byte = hex.and_then(|hex| std::str::from_utf8(hex).ok()).and_then(|hex| u8::from_str_radix(hex, 16).ok());
        match byte {
            Some(byte) => {
                out.push(byte);
                i += 3;
            }
            None => {
                out.push(if bytes[i] == b'+' { b' ' } else { bytes[i] });
                i += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

#[cfg(test)]
pub(crate) mod tests;
