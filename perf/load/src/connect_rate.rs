//! As many connections a second as the target lets: connect, one request with `Connection: close`, read to the end.
//!
//! One event loop per thread. A connection costs socket, connect, send, one registration, a receive or two and close:
//! the request is sent at once, since on one machine the handshake is usually over when connect returns. The peer
//! closes first, so that the waiting of TCP after the end (TIME_WAIT) is on its side and no port here is used up.
//!
//! With `hold`, connections stay after their request until all are open; then all are closed and opened anew.

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
    /// Keep every connection until all are open, at most so many being opened at a time.
    pub hold: Option<usize>,
}

/// Runs it.
///
/// # Errors
/// When the options do not fit each other or the machine.
pub fn run(options: &Options) -> Result<Report> {
    run_within(options, Window::new(options.warmup, options.seconds))
}

/// The same, in a time that others share.
pub(crate) fn run_within(options: &Options, window: Window) -> Result<Report> {
    ensure!(options.connections > 0, "--connections is 0: take at least 1");
    raise_descriptor_limit(options.connections)?;
    let threads = options.threads.clamp(1, options.connections);
    let cpu = CpuClock::start();
    let share =
        |total: u64, thread: usize| total / threads as u64 + u64::from((thread as u64) < total % threads as u64);
    let ends: Vec<(Tally, u64)> = std::thread::scope(|scope| {
        let running: Vec<_> = (0..threads)
            .map(|thread| {
                let connections = share(options.connections as u64, thread) as usize;
                let count = options.count.map_or(u64::MAX, |count| share(count, thread));
                scope.spawn(move || Loop::new(options, window, connections, count, threads)?.run())
            })
            .collect();
        running.into_iter().map(|thread| thread.join().expect("an event loop does not panic")).collect::<Result<_>>()
    })?;
    let seconds = window.until.min(Instant::now()).saturating_duration_since(window.from).as_secs_f64();
    let mut sum = Tally::new(window.from);
    ends.iter().for_each(|(tally, _)| sum.merge(tally));
    let report =
        sum.report("connect-rate", seconds, &cpu).with("connections", options.connections).with("threads", threads);
    let rounds: u64 = ends.iter().map(|(_, rounds)| rounds).sum();
    Ok(if options.hold.is_some() { report.with("rounds", rounds / threads as u64) } else { report })
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
    /// The response is whole and counted, and the connection stays.
    Held,
}

enum Step {
    /// More must arrive.
    Wait,
    /// The connection has ended as it should.
    Ended,
    /// The connection stays open.
    Held,
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
    /// Places without a connection.
    free: Vec<usize>,
    /// The last connection could not even be begun.
    stuck: bool,
    /// Connections that are neither held nor over.
    busy: usize,
    /// How many of these there may be.
    most_busy: usize,
    held: usize,
    /// How often all were held.
    rounds: u64,
    /// Connections that may still be begun.
    left: u64,
    buffer: Box<[u8]>,
    tally: Tally,
}

impl<'a> Loop<'a> {
    fn new(options: &'a Options, window: Window, connections: usize, count: u64, threads: usize) -> Result<Self> {
        Ok(Self {
            options,
            window,
            poll: Poll::new().context("making an epoll instance")?,
            sources: Sources::new(&options.sources),
            request: http1::request(options.target, &options.path, options.hold.is_none()),
            slots: (0..connections).map(|_| None).collect(),
            free: (0..connections).collect(),
            stuck: false,
            busy: 0,
            most_busy: options.hold.map_or(connections, |busy| (busy / threads).max(1)),
            held: 0,
            rounds: 0,
            left: count,
            buffer: vec![0; BUFFER].into(),
            tally: Tally::new(window.from),
        })
    }

    fn run(mut self) -> Result<(Tally, u64)> {
        let mut events = Events::with_capacity(1024);
        let mut swept = Instant::now();
        loop {
            self.fill();
            let now = Instant::now();
            if now >= self.window.until || (self.left == 0 && self.busy == 0) {
                return Ok((self.tally, self.rounds));
            }
            if now - swept >= SWEEP {
                swept = now;
                self.sweep(now);
            }
            let wait = if self.stuck { PAUSE } else { SWEEP };
            match self.poll.poll(&mut events, Some(wait.min(self.window.until - now))) {
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                polled => polled.context("waiting for events")?,
            }
            self.stuck = false;
            for event in &events {
                self.handle(event);
            }
        }
    }

    fn handle(&mut self, event: &Event) {
        let slot = event.token().0;
        let Some(connection) = self.slots[slot].as_mut() else { return };
        let was_held = matches!(connection.phase, Phase::Held);
        match connection.step(event, self.options.hold.is_some(), &self.request, &mut self.buffer, &mut self.tally) {
            Step::Wait => {}
            Step::Ended if was_held => {
                self.tally.failed(Failure::Closed, Instant::now());
                self.held -= 1;
                self.busy += 1;
                self.end(slot);
            }
            Step::Ended => self.end(slot),
            Step::Held => self.hold(),
            Step::Failed(failure) => {
                self.tally.failed(failure, Instant::now());
                self.end(slot);
            }
        }
    }

    /// Puts the next connection in this one's place.
    fn end(&mut self, slot: usize) {
        self.slots[slot] = None;
        self.free.push(slot);
        self.busy -= 1;
        self.fill();
    }

    /// One more is held. When all are, they are closed, and the next round begins.
    fn hold(&mut self) {
        self.busy -= 1;
        self.held += 1;
        if self.held == self.slots.len() {
            self.slots.iter_mut().for_each(|slot| *slot = None);
            self.free = (0..self.slots.len()).collect();
            self.held = 0;
            self.rounds += 1;
        }
        self.fill();
    }

    fn fill(&mut self) {
        while self.busy < self.most_busy && self.left > 0 && !self.stuck {
            let now = Instant::now();
            let Some(slot) = self.free.pop_if(|_| now < self.window.until) else { return };
            self.left -= 1;
            match begin(&mut self.sources, self.options.target, &self.request, self.poll.registry(), slot, now) {
                Ok(connection) => {
                    self.slots[slot] = Some(connection);
                    self.busy += 1;
                }
                Err(failure) => {
                    self.tally.failed(failure, now);
                    self.free.push(slot);
                    self.stuck = true;
                }
            }
        }
    }

    fn sweep(&mut self, now: Instant) {
        for slot in 0..self.slots.len() {
            let late = |c: &Connection| {
                !matches!(c.phase, Phase::Held) && now.saturating_duration_since(c.began) > self.options.timeout
            };
            if self.slots[slot].as_ref().is_some_and(late) {
                self.tally.failed(Failure::TimedOut, now);
                self.end(slot);
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
    fn step(&mut self, event: &Event, hold: bool, request: &[u8], buffer: &mut [u8], tally: &mut Tally) -> Step {
        if matches!(self.phase, Phase::Connecting) && (event.is_writable() || event.is_error()) {
            match self.stream.write(request) {
                Ok(sent) if sent == request.len() => self.phase = Phase::Waiting(Response::default()),
                Ok(_) => return Step::Failed(Failure::Protocol),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Wait,
                Err(error) => return Step::Failed(error.into()),
            }
        }
        if event.is_readable() || event.is_read_closed() || event.is_error() {
            self.read(event, hold, buffer, tally)
        } else {
            Step::Wait
        }
    }

    fn read(&mut self, event: &Event, hold: bool, buffer: &mut [u8], tally: &mut Tally) -> Step {
        loop {
            if matches!(self.phase, Phase::Ending) && event.is_read_closed() {
                return Step::Ended;
            }
            let read = match self.stream.read(buffer) {
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Step::Wait,
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(_) if matches!(self.phase, Phase::Ending | Phase::Held) => return Step::Ended,
                Err(error) => return Step::Failed(error.into()),
            };
            match &mut self.phase {
                Phase::Ending | Phase::Held if read == 0 => return Step::Ended,
                _ if read == 0 => return Step::Failed(Failure::Closed),
                Phase::Waiting(response) => match response.feed(&buffer[..read]) {
                    Ok(true) => {
                        tally.done(self.began, Instant::now());
                        if hold {
                            self.phase = Phase::Held;
                            return Step::Held;
                        }
                        self.phase = Phase::Ending;
                    }
                    Ok(false) => {}
                    Err(failure) => return Step::Failed(failure),
                },
                Phase::Connecting | Phase::Ending | Phase::Held => return Step::Failed(Failure::Protocol),
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
