//! The server side: light enough not to be what is measured.
//!
//! A few threads, each with a runtime and listeners (SO_REUSEPORT) of its own. An idle connection is one small task
//! and no buffer: each thread reads into one buffer that all its connections share.

mod grpc;
mod stream;

use std::net::{SocketAddr, TcpListener};
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Error, Result, bail};
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::TcpStream;
use tokio::runtime::{Builder, Runtime};

pub use stream::{SINK, SOURCE};

/// What the kernel may queue of connections that are not accepted yet; it takes at most `net.core.somaxconn`.
const BACKLOG: i32 = 65_535;
/// After an accept that failed for lack of something.
const EXHAUSTED: Duration = Duration::from_millis(20);

/// What is served on a port.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// By the first bytes: `GET ` is HTTP/1.1, `PRI ` is gRPC, [`SINK`] and [`SOURCE`] are those, all else is an echo.
    Auto,
    /// HTTP/1.1: every GET is answered by the same page.
    Http,
    /// What comes goes back.
    Echo,
    /// Takes all, and says at the end how many bytes (64 bit, big endian).
    Sink,
    /// Sends until the peer goes.
    Source,
    /// HTTP/2 with prior knowledge: every stream echoes its messages and ends with `grpc-status: 0`.
    Grpc,
}

/// One port: `address:port`, or `kind=address:port`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listen {
    /// What is served.
    pub kind: Kind,
    /// Where. Port 0 is one that the system chooses.
    pub address: SocketAddr,
}

impl FromStr for Listen {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (kind, address) = match text.split_once('=') {
            None => (Kind::Auto, text),
            Some(("auto", address)) => (Kind::Auto, address),
            Some(("http", address)) => (Kind::Http, address),
            Some(("echo", address)) => (Kind::Echo, address),
            Some(("sink", address)) => (Kind::Sink, address),
            Some(("source", address)) => (Kind::Source, address),
            Some(("grpc", address)) => (Kind::Grpc, address),
            Some((kind, _)) => bail!("{kind:?} is not served: take auto, http, echo, sink, source or grpc"),
        };
        let address =
            address.parse().with_context(|| format!("{address:?} is not an address:port, as in 0.0.0.0:8080"))?;
        Ok(Self { kind, address })
    }
}

/// A server whose ports are open.
#[derive(Debug)]
pub struct Server {
    /// The ports, in the order asked for, with the numbers that the system chose.
    pub addresses: Vec<SocketAddr>,
    threads: Vec<(Runtime, Vec<(Kind, TcpListener)>)>,
    page: Arc<Page>,
}

/// The answers to a GET.
#[derive(Debug)]
pub(crate) struct Page {
    /// The connection stays.
    keep: Vec<u8>,
    /// The connection ends.
    close: Vec<u8>,
}

impl Page {
    fn new(body: usize) -> Self {
        let page = |fields: &str| {
            let mut page =
                format!("HTTP/1.1 200 OK\r\nContent-Length: {body}\r\nContent-Type: text/plain\r\n{fields}\r\n");
            page.extend(std::iter::repeat_n('x', body));
            page.into_bytes()
        };
        Self { keep: page(""), close: page("Connection: close\r\n") }
    }
}

impl Server {
    /// Opens the ports, on every one of `threads`. `body` is the length of the page in bytes.
    ///
    /// # Errors
    /// When a port cannot be had.
    pub fn bind(listen: &[Listen], threads: usize, body: usize) -> Result<Self> {
        let mut addresses: Vec<SocketAddr> = listen.iter().map(|listen| listen.address).collect();
        let mut all = Vec::new();
        for _ in 0..threads.max(1) {
            let mut listeners = Vec::new();
            for (listen, address) in listen.iter().zip(&mut addresses) {
                let listener = open(*address).with_context(|| format!("listening on {address}"))?;
                *address = listener.local_addr()?;
                listeners.push((listen.kind, listener));
            }
            all.push((Builder::new_current_thread().enable_all().build()?, listeners));
        }
        Ok(Self { addresses, threads: all, page: Arc::new(Page::new(body)) })
    }

    /// Serves for as long as the process lives.
    ///
    /// # Errors
    /// When a thread cannot be started, or a port is lost.
    pub fn run(self) -> Result<()> {
        let running: Vec<_> = self
            .threads
            .into_iter()
            .enumerate()
            .map(|(n, (runtime, listeners))| {
                let page = Arc::clone(&self.page);
                std::thread::Builder::new()
                    .name(format!("serve-{n}"))
                    .spawn(move || runtime.block_on(all(listeners, page)))
            })
            .collect::<std::io::Result<_>>()
            .context("starting a thread")?;
        running.into_iter().try_for_each(|thread| thread.join().expect("a serving thread does not panic"))
    }
}

fn open(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM.nonblocking(), Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    socket.set_reuse_port(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

async fn all(listeners: Vec<(Kind, TcpListener)>, page: Arc<Page>) -> Result<()> {
    let ports = listeners.into_iter().map(|(kind, listener)| accept(kind, listener, &page));
    futures_util::future::try_join_all(ports).await.map(drop)
}

async fn accept(kind: Kind, listener: TcpListener, page: &Arc<Page>) -> Result<()> {
    let listener = tokio::net::TcpListener::from_std(listener)?;
    loop {
        match listener.accept().await {
            // An end that the peer brought about is no news: the client counts it.
            Ok((stream, _)) => spawn(serve(stream, kind, Arc::clone(page))),
            Err(error) if matches!(error.kind(), std::io::ErrorKind::ConnectionAborted) => {}
            Err(error) => {
                eprintln!("accepting: {error}");
                tokio::time::sleep(EXHAUSTED).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, kind: Kind, page: Arc<Page>) {
    let _ = stream.set_nodelay(true);
    let kind = match kind {
        Kind::Auto => stream::sniff(&stream).await.unwrap_or(Kind::Echo),
        kind => kind,
    };
    let _ended = match kind {
        Kind::Http => stream::http(&stream, &page).await,
        Kind::Echo | Kind::Auto => stream::echo(&stream).await,
        Kind::Sink => stream::sink(&stream).await,
        Kind::Source => stream::source(&stream).await,
        // Far larger than the others, which need not carry its room with them.
        Kind::Grpc => Box::pin(grpc::connection(stream)).await,
    };
}

/// Starts a task that nobody waits for.
#[allow(clippy::disallowed_methods)] // The tracker is part of the product, of which nothing is linked in here.
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    drop(tokio::spawn(task));
}

#[cfg(test)]
pub(crate) mod tests;
