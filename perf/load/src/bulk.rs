//! Elephants: streams that send, or receive, as much as they can.

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::{Value, json};

use crate::serve::{SINK, SOURCE};
use crate::tally::{CpuClock, Failure, Report, Steps, Tally, Window};

const BUFFER: usize = 128 * 1024;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// A sink or source of `serve`, or a port of kind auto.
    pub target: SocketAddr,
    /// Streams, a thread each.
    pub streams: usize,
    /// Receive instead of sending.
    pub receive: bool,
    /// Seconds that are counted.
    pub seconds: f64,
    /// Seconds before them.
    pub warmup: f64,
    /// A stream on which nothing goes for so long has failed.
    pub timeout: Duration,
    /// Draws what is sent.
    pub seed: u64,
}

/// Runs it. A request of the report is a stream that went on to its end.
///
/// # Errors
/// When the options make no sense.
pub fn run(options: &Options) -> Result<Report> {
    ensure!(options.streams > 0, "--streams is 0: take at least 1");
    let cpu = CpuClock::start();
    let window = Window::new(options.warmup, options.seconds);
    let (tally, steps) = run_within(options, window);
    let mut report = tally.report("bulk", options.seconds, &cpu);
    report.spread = steps.spread(options.seconds);
    report.more.extend(flow(options, &steps).as_object().cloned().unwrap_or_default());
    Ok(report)
}

/// The same, in a time that others share: streams that ended well or not, and bytes.
pub(crate) fn run_within(options: &Options, window: Window) -> (Tally, Steps) {
    let mut bytes = vec![0; BUFFER];
    StdRng::seed_from_u64(options.seed).fill_bytes(&mut bytes);
    let (mut tally, mut sum) = (Tally::new(window.from), Steps::default());
    let streams: Vec<_> = std::thread::scope(|scope| {
        let one = || {
            let began = Instant::now();
            let mut steps = Steps::default();
            let end = if options.receive {
                receive(options, window, &mut steps)
            } else {
                send(options, window, &bytes, &mut steps)
            };
            (began, end, steps)
        };
        let running: Vec<_> = (0..options.streams).map(|_| scope.spawn(one)).collect();
        running.into_iter().map(|thread| thread.join().expect("a stream's thread does not panic")).collect()
    });
    for (began, end, steps) in streams {
        match end {
            Ok(()) => tally.done(began, Instant::now()),
            Err(failure) => tally.failed(failure, Instant::now().max(window.from)),
        }
        sum.merge(&steps);
    }
    (tally, sum)
}

/// What of a bulk transfer is told.
pub(crate) fn flow(options: &Options, steps: &Steps) -> Value {
    json!({
        "streams": options.streams,
        "bytes": steps.sum(),
        "gbit_per_s": if options.seconds > 0.0 { steps.sum() as f64 * 8.0 / options.seconds / 1e9 } else { 0.0 },
    })
}

fn connect(options: &Options) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect_timeout(&options.target, options.timeout)?;
    stream.set_read_timeout(Some(options.timeout))?;
    stream.set_write_timeout(Some(options.timeout))?;
    Ok(stream)
}

fn send(options: &Options, window: Window, bytes: &[u8], steps: &mut Steps) -> Result<(), Failure> {
    let mut stream = connect(options)?;
    stream.write_all(SINK)?;
    let mut sent = SINK.len() as u64;
    loop {
        let now = Instant::now();
        if now >= window.until {
            break;
        }
        let written = stream.write(bytes).map_err(failure)?;
        sent += written as u64;
        if now >= window.from {
            steps.add(now - window.from, written as u64);
        }
    }
    // All that was sent has arrived, or it was no transfer.
    stream.shutdown(Shutdown::Write)?;
    let mut taken = [0; 8];
    stream.read_exact(&mut taken).map_err(failure)?;
    if u64::from_be_bytes(taken) == sent { Ok(()) } else { Err(Failure::Protocol) }
}

fn receive(options: &Options, window: Window, steps: &mut Steps) -> Result<(), Failure> {
    let mut stream = connect(options)?;
    stream.write_all(SOURCE)?;
    let mut buffer = vec![0; BUFFER];
    loop {
        let read = stream.read(&mut buffer).map_err(failure)?;
        let now = Instant::now();
        if read == 0 {
            return Err(Failure::Closed);
        }
        if now >= window.until {
            return Ok(());
        }
        if now >= window.from {
            steps.add(now - window.from, read as u64);
        }
    }
}

/// A blocking socket's timeout looks as if it would block.
fn failure(error: std::io::Error) -> Failure {
    if error.kind() == ErrorKind::WouldBlock { Failure::TimedOut } else { error.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::serve::Kind;
    use crate::serve::tests::start;

    fn options(target: SocketAddr) -> Options {
        let timeout = Duration::from_secs(20);
        Options { target, streams: 2, receive: false, seconds: 0.2, warmup: 0.05, timeout, seed: 1 }
    }

    #[test]
    fn both_ways_and_all_that_was_sent_arrived() {
        for (kind, receive) in [(Kind::Auto, false), (Kind::Auto, true), (Kind::Sink, false), (Kind::Source, true)] {
            let report = run(&Options { receive, ..options(start(&[kind])[0]) }).unwrap();
            assert_eq!((report.requests, report.errors), (2, 0), "{kind:?} {report:?}");
            assert!(report.more["bytes"].as_u64().unwrap() > 0 && report.more["gbit_per_s"].as_f64().unwrap() > 0.0);
        }
    }

    #[test]
    fn a_sink_that_loses_bytes_is_noticed() {
        // An echo gives back what was sent: not the count that a sink ends with.
        let timeout = Duration::from_millis(300);
        let report = run(&Options { timeout, ..options(start(&[Kind::Echo])[0]) }).unwrap();
        assert_eq!((report.requests, report.errors), (0, 2), "{report:?}");
    }
}
