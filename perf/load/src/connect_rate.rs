//! As many connections a second as the target lets: connect, one request with `Connection: close`, read to the end.
//!
//! One event loop per thread. A connection costs socket, connect, send, one registration, a receive or two and close:
//! the request is sent at once, since on one machine the handshake is usually over when connect returns. The peer
//! closes first, so that the waiting of TCP after the end (TIME_WAIT) is on its side and no port here is used up.

use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use mio::event::Event;
use mio::net::TcpStream;
use mio::{Events, Interest, Poll, Registry, Token};

use crate::http1::{self, Response};
use crate::socket::{Sources, raise_descriptor_limit};
use crate::tally::{CpuClock, Failure, Report, Tally, Window};

/// Between two looks at connections that take too long.
const SWEEP: Duration = Duration::from_millis(100);
/// After a connection that could not even be begun: a try of the next would fail likewise.
const PAUSE: Duration = Duration::from_millis(1);
const BUFFER: usize = 64 * 1024;

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to.
    pub target: SocketAddr,
    /// From where, by turns; empty: as the system chooses.
    pub sources: Vec<IpAddr>,
    /// The request's path.
    pub path: String,
    /// Connections at a time, of all threads together.
    pub connections: usize,
    /// Event loops.
    pub threads: usize,
    /// Seconds that are counted.
    pub seconds: f64,
    /// Seconds before them.
    pub warmup: f64,
    /// End after so many connections, if that is earlier.
    pub count: Option<u64>,
    /// A connection that takes longer has failed.
    pub timeout: Duration,
}

/// Runs it.
///
/// # Errors
/// When the options do not fit each other or the machine.
pub fn run(options: &Options) -> Result<Report> {
    ensure!(options.connections > 0, "--connections is 0: take at least 1");
    raise_descriptor_limit(options.connections)?;
    let threads = options.threads.clamp(1, options.connections);
    let cpu = CpuClock::start();
    let window = Window::new(options.warmup, options.seconds);
    let share =
        |total: u64, thread: usize| total / threads as u64 + u64::from((thread as u64) < total % threads as u64);
    let tallies: Vec<Tally> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let connections = share(options.connections as u64, thread) as usize;
                let count = options.count.map_or(u64::MAX, |count| share(count, thread));
                scope.spawn(move || Loop::new(options, window, connections, count)?.run())
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("an event loop does not panic")).collect::<Result<_>>()
    })?;
    let seconds = window.until.min(Instant::now()).saturating_duration_since(window.from).as_secs_f64();
    let mut sum = Tally::new(window.from);
    tallies.iter().for_each(|tally| sum.merge(tally));
    Ok(sum.report("connect-rate", seconds, &cpu).with("connections", options.connections).with("threads", threads))
}

/// One connection.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    began: Instant,
    phase: Phase,
}

#[derive(Debug)]
enum Phase {
    Connecting,
    Waiting(Response),
    /// The response is whole and counted, the end of the connection is not there.
    Ending,
}

enum Step {
    /// More must arrive.
    Wait,
    /// The connection has ended as it should.
    Ended,
    Failed(Failure),
}

struct Loop<'a> {
    options: &'a Options,
    window: Window,
    poll: Poll,
    sources: Sources,
    request: Vec<u8>,
    /// The token of a connection is its place here.
    slots: Vec<Option<Connection>>,
    /// Places whose connection could not be begun.
    again: Vec<usize>,
    live: usize,
    /// Connections that may still be begun.
    left: u64,
    buffer: Box<[u8]>,
    tally: Tally,
}

impl<'a> Loop<'a> {
    fn new(options: &'a Options, window: Window, connections: usize, count: u64) -> Result<Self> {
        Ok(Self {
            options,
            window,
            poll: Poll::new().context("making an epoll instance")?,
            sources: Sources::new(&options.sources),
            request: http1::request(options.target, &options.path, true),
            slots: (0..connections).map(|_| None).collect(),
            again: (0..connections).collect(),
            live: 0,
            left: count,
            buffer: vec![0; BUFFER].into(),
            tally: Tally::new(window.from),
        })
    }

    fn run(mut self) -> Result<Tally> {
        let mut events = Events::with_capacity(1024);
        let mut swept = Instant::now();
        loop {
            for slot in std::mem::take(&mut self.again) {
                self.open(slot);
            }
            let now = Instant::now();
            if now >= self.window.until || (self.left == 0 && self.live == 0) {
                return Ok(self.tally);
            }
            if now - swept >= SWEEP {
                swept = now;
                self.sweep(now);
            }
            let wait = if self.again.is_empty() { SWEEP } else { PAUSE };
            match self.poll.poll(&mut events, Some(wait.min(self.window.until - now))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled.context("waiting for events")?,
            }
            for event in &events {
                self.handle(event);
            }
        }
    }

    fn handle(&mut self, event: &Event) {
        let slot = event.token().0;
        let Some(connection) = self.slots[slot].as_mut() else { return };
        match connection.step(event, &self.request, &mut self.buffer, &mut self.tally) {
            Step::Wait => {}
            Step::Ended => self.next(slot),
            Step::Failed(failure) => {
                self.tally.failed(failure, Instant::now());
                self.next(slot);
            }
        }
    }

    /// Puts the next connection in this one's place.
    fn next(&mut self, slot: usize) {
        if self.slots[slot].take().is_some() {
            self.live -= 1;
        }
        self.open(slot);
    }

    fn open(&mut self, slot: usize) {
        let Some(left) = self.left.checked_sub(1) else { return };
        let now = Instant::now();
        if now >= self.window.until {
            return;
        }
        self.left = left;
        match begin(&mut self.sources, self.options.target, &self.request, self.poll.registry(), slot, now) {
            Ok(connection) => {
                self.slots[slot] = Some(connection);
                self.live += 1;
            }
            Err(failure) => {
                self.tally.failed(failure, now);
                self.again.push(slot);
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        for slot in 0..self.slots.len() {
            let late = |c: &Connection| now.saturating_duration_since(c.began) > self.options.timeout;
            if self.slots[slot].as_ref().is_some_and(late) {
                self.tally.failed(Failure::TimedOut, now);
                self.next(slot);
            }
        }
    }
}

fn begin(
    sources: &mut Sources,
    target: SocketAddr,
    request: &[u8],
    registry: &Registry,
    slot: usize,
    now: Instant,
) -> Result<Connection, Failure> {
    let mut stream = sources.connect(target)?;
    let (phase, interest) = match stream.write(request) {
        Ok(sent) if sent == request.len() => (Phase::Waiting(Response::default()), Interest::READABLE),
        Ok(_) => return Err(Failure::Protocol),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::NotConnected) => {
            (Phase::Connecting, Interest::READABLE | Interest::WRITABLE)
        }
        Err(error) => return Err(error.into()),
    };
    registry.register(&mut stream, Token(slot), interest)?;
    Ok(Connection { stream, began: now, phase })
}

impl Connection {
    fn step(&mut self, event: &Event, request: &[u8], buffer: &mut [u8], tally: &mut Tally) -> Step {
        if matches!(self.phase, Phase::Connecting) && (event.is_writable() || event.is_error()) {
            match self.stream.write(request) {
                Ok(sent) if sent == request.len() => self.phase = Phase::Waiting(Response::default()),
                Ok(_) => return Step::Failed(Failure::Protocol),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Wait,
                Err(error) => return Step::Failed(error.into()),
            }
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(event, buffer, tally)
        } else {
            Step::Wait
        }
    }

    fn read(&mut self, event: &Event, buffer: &mut [u8], tally: &mut Tally) -> Step {
        loop {
            if matches!(self.phase, Phase::Ending) && event.is_read_closed() {
                return Step::Ended;
            }
            let read = match self.stream.read(buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Wait,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) if matches!(self.phase, Phase::Ending) => return Step::Ended,
                Err(error) => return Step::Failed(error.into()),
            };
            match &mut self.phase {
                Phase::Ending if read == 0 => return Step::Ended,
                _ if read == 0 => return Step::Failed(Failure::Closed),
                Phase::Waiting(response) => match response.feed(&buffer[..read]) {
                    Ok(true) => {
                        tally.done(self.began, Instant::now());
                        self.phase = Phase::Ending;
                    }
                    Ok(false) => {}
                    Err(failure) => return Step::Failed(failure),
                },
                Phase::Connecting | Phase::Ending => return Step::Failed(Failure::Protocol),
            }
            // Less than there was room for: the socket is empty, and more will come with an event of its own.
            if read < buffer.len() && !event.is_read_closed() {
                return Step::Wait;
            }
        }
    }
}

#[cfg(test)]
mod tests;
