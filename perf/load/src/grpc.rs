//! gRPC-like streams: each sends a message and waits until it is back, over and over. HTTP/2 with prior knowledge.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use bytes::{BufMut, Bytes, BytesMut};
use h2::client::SendRequest;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, Request};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use crate::tally::{CpuClock, Failure, Report, Tally, Window};

/// Wide enough that flow control is not what is measured.
const STREAM_WINDOW: u32 = 1 << 20;
const CONNECTION_WINDOW: u32 = 1 << 24;
const PATH: &str = "/aquifer.load.Echo/Stream";

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// A gRPC port of `serve`, or one of kind auto.
    pub target: SocketAddr,
    /// Connections, on which the streams are by turns.
    pub connections: usize,
    /// Streams, of all connections together.
    pub streams: usize,
    /// Bytes of a message, without its five of framing.
    pub size: usize,
    /// Seconds that are counted.
    pub seconds: f64,
    /// Seconds before them.
    pub warmup: f64,
    /// A stream that has not ended that long after its time has failed.
    pub timeout: Duration,
    /// Draws the message.
    pub seed: u64,
}

/// Runs it. A request of the report is a message that came back.
///
/// # Errors
/// When the connections cannot be opened.
pub fn run(options: &Options) -> Result<Report> {
    ensure!(options.connections > 0 && options.streams > 0, "--connections and --streams are at least 1");
    let size = u32::try_from(options.size).ok().filter(|size| *size < STREAM_WINDOW);
    let size = size.with_context(|| format!("--size {} is too much: take less than {STREAM_WINDOW}", options.size))?;
    let mut message = BytesMut::new();
    message.put_u8(0);
    message.put_u32(size);
    message.resize(5 + options.size, 0);
    StdRng::seed_from_u64(options.seed).fill_bytes(&mut message[5..]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("making a runtime")?;
    LocalSet::new().block_on(&runtime, streams(options, message.freeze()))
}

async fn streams(options: &Options, message: Bytes) -> Result<Report> {
    let cpu = CpuClock::start();
    let mut drivers = JoinSet::new();
    let mut connections = Vec::new();
    for _ in 0..options.connections {
        let connecting = tokio::time::timeout(options.timeout, connect(options, &mut drivers));
        let connection = connecting.await.unwrap_or_else(|late| Err(late.into()));
        connections.push(connection.with_context(|| format!("speaking HTTP/2 with {}", options.target))?);
    }
    let window = Window::new(options.warmup, options.seconds);
    let tally = Rc::new(RefCell::new(Tally::new(window.from)));
    let mut running = JoinSet::new();
    for n in 0..options.streams {
        let connection = connections[n % connections.len()].clone();
        let (message, tally) = (message.clone(), Rc::clone(&tally));
        running.spawn_local(async move { ping_pong(connection, request(), message, window, &tally).await });
    }
    let ends = async {
        while let Some(end) = running.join_next().await {
            if let Err(failure) = end.unwrap_or(Err(Failure::Other)) {
                tally.borrow_mut().failed(failure, Instant::now().max(window.from));
            }
        }
    };
    let deadline = tokio::time::Instant::from_std(window.until + options.timeout);
    let late = tokio::time::timeout_at(deadline, ends).await.is_err();
    if late {
        (0..running.len()).for_each(|_| tally.borrow_mut().failed(Failure::TimedOut, Instant::now()));
    }
    let report = tally.borrow().report("grpc-streams", options.seconds, &cpu);
    Ok(report.with("connections", options.connections).with("streams", options.streams).with("size", options.size))
}

async fn connect(options: &Options, drivers: &mut JoinSet<()>) -> Result<SendRequest<Bytes>> {
    let stream = TcpStream::connect(options.target).await?;
    stream.set_nodelay(true)?;
    let (requests, connection) = h2::client::Builder::new()
        .initial_window_size(STREAM_WINDOW)
        .initial_connection_window_size(CONNECTION_WINDOW)
        .initial_max_send_streams(options.streams)
        .handshake(stream)
        .await?;
    // Its end is told by the streams that are on it.
    drivers.spawn_local(async move { drop(connection.await) });
    Ok(requests)
}

async fn ping_pong(
    connection: SendRequest<Bytes>,
    request: Request<()>,
    message: Bytes,
    window: Window,
    tally: &RefCell<Tally>,
) -> Result<(), Failure> {
    let mut connection = connection.ready().await.map_err(failure)?;
    let (response, mut to) = connection.send_request(request, false).map_err(failure)?;
    // The answer's head may wait for the first message.
    let mut due = Instant::now();
    send(&mut to, message.clone()).await?;
    let response = response.await.map_err(failure)?;
    if !response.status().is_success() {
        return Err(Failure::Status);
    }
    let mut from = response.into_body();
    loop {
        back(&mut from, &message).await?;
        let now = Instant::now();
        tally.borrow_mut().done(due, now);
        if now >= window.until {
            break;
        }
        due = now;
        send(&mut to, message.clone()).await?;
    }
    to.send_data(Bytes::new(), true).map_err(failure)?;
    match from.data().await {
        None => {}
        Some(_) => return Err(Failure::Protocol),
    }
    let trailers = from.trailers().await.map_err(failure)?;
    let status = trailers.as_ref().and_then(|trailers: &HeaderMap| trailers.get("grpc-status"));
    if status.is_some_and(|status| status == "0") { Ok(()) } else { Err(Failure::Status) }
}

fn request() -> Request<()> {
    Request::post(format!("http://aquifer-load{PATH}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .expect("a request")
}

async fn send(to: &mut SendStream<Bytes>, mut message: Bytes) -> Result<(), Failure> {
    while !message.is_empty() {
        to.reserve_capacity(message.len());
        let room = std::future::poll_fn(|cx| to.poll_capacity(cx)).await.ok_or(Failure::Closed)?.map_err(failure)?;
        to.send_data(message.split_to(room.min(message.len())), false).map_err(failure)?;
    }
    Ok(())
}

/// Waits until the whole message is back.
async fn back(from: &mut RecvStream, message: &[u8]) -> Result<(), Failure> {
    let mut left = message;
    while !left.is_empty() {
        let data = from.data().await.ok_or(Failure::Closed)?.map_err(failure)?;
        from.flow_control().release_capacity(data.len()).map_err(failure)?;
        left = left.strip_prefix(&data[..]).ok_or(Failure::Protocol)?;
    }
    Ok(())
}

fn failure(error: h2::Error) -> Failure {
    match error.into_io() {
        Some(error) => error.into(),
        None => Failure::Reset,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Kind;
    use crate::serve::tests::start;

    fn options(target: SocketAddr) -> Options {
        let timeout = Duration::from_secs(20);
        Options { target, connections: 2, streams: 10, size: 100, seconds: 0.3, warmup: 0.0, timeout, seed: 1 }
    }

    #[test]
    fn every_stream_exchanges_messages_and_ends_well() {
        for (kind, size) in [(Kind::Grpc, 100), (Kind::Auto, 100_000)] {
            let report = run(&Options { size, ..options(start(&[kind])[0]) }).unwrap();
            assert!(report.requests >= 10 && report.errors == 0, "{report:?}");
            let json = serde_json::to_value(&report).unwrap();
            assert_eq!((&json["streams"], &json["connections"], &json["size"]), (&10.into(), &2.into(), &size.into()));
            assert!(json["latency_us"]["p99"].as_f64().unwrap() > 0.0 && json["rate"].as_f64().unwrap() > 0.0);
        }
    }

    #[test]
    fn a_server_that_speaks_something_else_fails_every_stream() {
        let report = run(&options(start(&[Kind::Http])[0])).unwrap();
        assert_eq!((report.requests, report.errors), (0, 10), "{report:?}");
    }

    #[test]
    fn a_target_that_is_not_there_is_told() {
        let (_held, closed) = crate::serve::tests::closed();
        let error = format!("{:#}", run(&options(closed)).unwrap_err());
        assert!(error.starts_with(&format!("speaking HTTP/2 with {closed}: ")), "{error}");
    }
}
