//! Many connections that do nothing: each proves itself with a byte when it is opened, and with one more at the end.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::{StreamExt, stream};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

use crate::socket::raise_descriptor_limit;
use crate::tally::{CpuClock, Failure, Report, Tally};

/// Connections on their way at a time.
const AT_A_TIME: usize = 256;
/// Is none of the first bytes that `serve` knows.
const BYTE: u8 = b'.';

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// An echo.
    pub target: SocketAddr,
    /// From where, by turns; empty: as the system chooses.
    pub sources: Vec<IpAddr>,
    /// How many.
    pub connections: usize,
    /// A connection that takes longer to open, or for its last byte, has failed.
    pub timeout: Duration,
}

/// Opens them, tells `up`, holds them until `over`, and proves each. Requests of the report are bytes that came back;
/// its time, rate and latencies are those of the opening.
///
/// # Errors
/// When there are more than descriptors.
pub async fn run(options: &Options, up: impl FnOnce(Value), over: impl Future<Output = ()>) -> Result<Report> {
    ensure!(options.connections > 0, "--connections is 0: take at least 1");
    raise_descriptor_limit(options.connections)?;
    let cpu = CpuClock::start();
    let began = Instant::now();
    let mut opening = Tally::new(began);
    let mut held = Vec::with_capacity(options.connections);
    let mut opened = stream::iter(0..options.connections).map(|n| open(options, n)).buffer_unordered(AT_A_TIME);
    while let Some((since, end)) = opened.next().await {
        match end {
            Ok(stream) => {
                opening.done(since, Instant::now());
                held.push(stream);
            }
            Err(failure) => opening.failed(failure, Instant::now()),
        }
    }
    drop(opened);
    let seconds = began.elapsed().as_secs_f64();
    up(json!({ "work": "idle", "up": held.len(), "errors": opening.errors(), "seconds": seconds }));

    let holding = Instant::now();
    over.await;
    let held_seconds = holding.elapsed().as_secs_f64();

    let up = held.len();
    let proved = Instant::now();
    let mut tally = Tally::new(proved);
    let mut proving = stream::iter(held).map(|stream| prove(stream, options.timeout)).buffer_unordered(AT_A_TIME);
    while let Some(end) = proving.next().await {
        match end {
            Ok(()) => tally.done(proved, Instant::now()),
            Err(failure) => tally.failed(failure, Instant::now()),
        }
    }
    let alive = tally.requests();
    let mut report = opening.report("idle", seconds, &cpu);
    report.requests += alive;
    report.errors += tally.errors();
    for (failure, count) in tally.report("idle", seconds, &cpu).errors_by_kind {
        *report.errors_by_kind.entry(failure).or_default() += count;
    }
    Ok(report
        .with("connections", options.connections)
        .with("up", up)
        .with("alive", alive)
        .with("held_seconds", held_seconds))
}

async fn open(options: &Options, n: usize) -> (Instant, Result<TcpStream, Failure>) {
    let since = Instant::now();
    let opening = async {
        let mut stream = connect(options, n).await?;
        stream.set_nodelay(true)?;
        exchange(&mut stream).await?;
        Ok(stream)
    };
    (since, tokio::time::timeout(options.timeout, opening).await.unwrap_or(Err(Failure::TimedOut)))
}

async fn connect(options: &Options, n: usize) -> std::io::Result<TcpStream> {
    let Some(source) = n.checked_rem(options.sources.len()).map(|turn| options.sources[turn]) else {
        return TcpStream::connect(options.target).await;
    };
    let socket = if source.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    crate::socket::bind(&socket, source)?;
    socket.connect(options.target).await
}

async fn prove(mut stream: TcpStream, timeout: Duration) -> Result<(), Failure> {
    tokio::time::timeout(timeout, exchange(&mut stream)).await.unwrap_or(Err(Failure::TimedOut))
}

async fn exchange(stream: &mut TcpStream) -> Result<(), Failure> {
    stream.write_all(&[BYTE]).await?;
    let mut back = [0];
    stream.read_exact(&mut back).await?;
    if back == [BYTE] { Ok(()) } else { Err(Failure::Protocol) }
}

/// Runs it on a runtime of its own. Over is after that time, or else when standard input ends; a signal to end makes
/// it over too.
///
/// # Errors
/// As [`run`].
pub fn run_to_end(options: &Options, seconds: Option<f64>, up: impl FnOnce(Value)) -> Result<Report> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("making a runtime")?;
    let report = runtime.block_on(async {
        use tokio::signal::unix::{SignalKind, signal};
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let time = async {
            match seconds {
                Some(seconds) => tokio::time::sleep(Duration::from_secs_f64(seconds)).await,
                None => end_of_input().await,
            }
        };
        let over = async {
            tokio::select! {
                () = time => {}
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
        };
        run(options, up, over).await
    });
    // A thread may still be waiting for standard input.
    runtime.shutdown_background();
    report
}

async fn end_of_input() {
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    std::thread::spawn(move || {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        drop(end);
    });
    let _ = ended.await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Kind;
    use crate::serve::tests::start;

    fn options(target: SocketAddr) -> Options {
        Options { target, sources: Vec::new(), connections: 600, timeout: Duration::from_secs(20) }
    }

    #[tokio::test]
    async fn all_are_told_when_they_are_up_and_each_is_proved_at_the_end() {
        let sources = vec!["127.0.0.2".parse().unwrap(), "127.0.0.3".parse().unwrap()];
        for (kind, sources) in [(Kind::Auto, Vec::new()), (Kind::Echo, sources)] {
            let options = Options { sources, ..options(start(&[kind])[0]) };
            let mut told = Value::Null;
            let report = run(&options, |up| told = up, async {}).await.unwrap();
            assert_eq!((&told["up"], &told["errors"]), (&600.into(), &0.into()), "{told}");
            assert_eq!((report.requests, report.errors), (1200, 0), "{report:?}");
            assert_eq!((&report.more["up"], &report.more["alive"]), (&600.into(), &600.into()), "{report:?}");
        }
    }

    #[tokio::test]
    async fn one_that_died_meanwhile_is_an_error() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let few = Options { connections: 3, ..options(listener.local_addr().unwrap()) };
        let server = async {
            let mut kept = Vec::new();
            for _ in 0..3 {
                let (mut stream, _) = listener.accept().await.unwrap();
                let byte = stream.read_u8().await.unwrap();
                stream.write_u8(byte).await.unwrap();
                kept.push(stream);
            }
            // Two end, one echoes.
            let mut last = kept.pop().unwrap();
            drop(kept);
            let byte = last.read_u8().await.unwrap();
            last.write_u8(byte).await.unwrap();
            let _end = last.read_u8().await;
        };
        let (report, ()) = tokio::join!(run(&few, |_| {}, async {}), server);
        let report = report.unwrap();
        assert_eq!((&report.more["up"], &report.more["alive"]), (&3.into(), &1.into()), "{report:?}");
        assert_eq!((report.requests, report.errors), (4, 2));
    }

    #[tokio::test]
    async fn more_than_descriptors_are_refused_with_the_remedy() {
        let many = Options { connections: 1 << 40, ..options(SocketAddr::from(([127, 0, 0, 1], 1))) };
        let error = run(&many, |_| {}, async {}).await.unwrap_err().to_string();
        assert!(error.contains("raise the hard limit (ulimit -Hn), or run several processes"), "{error}");
    }
}
