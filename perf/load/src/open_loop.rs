//! Requests at a constant rate, each of them due at a moment that does not depend on how the others went.
//!
//! Request `i` is due `i / rate` seconds after the start, on the connections by turns (in an order drawn by lot). When
//! its connection is still busy it waits there, and its latency counts from when it was due: a server that stalls for
//! a second cannot hide that by having been asked less (coordinated omission; wrk2 counts in the same way).

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use mio::net::TcpStream;
use mio::unix::SourceFd;
use mio::{Events, Interest, Poll, Token};
use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use rand::rngs::StdRng;
use rand::seq::SliceRandom;
use rand::{RngExt, SeedableRng};

use crate::http1::{self, Response};
use crate::socket::{Sources, raise_descriptor_limit};
use crate::tally::{CpuClock, Failure, Report, Tally, Window};

/// Between two looks at requests that take too long.
const SWEEP: Duration = Duration::from_millis(50);
const BUFFER: usize = 64 * 1024;
/// A schedule of more than this cannot be kept by one thread.
const FASTEST: f64 = 1e6;
const TIMER: Token = Token(usize::MAX);

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where to.
    pub target: SocketAddr,
    /// From where, by turns; empty: as the system chooses.
    pub sources: Vec<IpAddr>,
    /// The requests' path.
    pub path: String,
    /// Requests per second, of all connections together.
    pub rate: f64,
    /// Connections, all opened before the first request is due.
    pub connections: usize,
    /// Seconds that are counted.
    pub seconds: f64,
    /// Seconds before them.
    pub warmup: f64,
    /// A request that takes longer, once it is sent, has failed.
    pub timeout: Duration,
    /// Draws the order of the connections.
    pub seed: u64,
}

/// Runs it.
///
/// # Errors
/// When the connections cannot be opened.
pub fn run(options: &Options) -> Result<Report> {
    let ready = Ready::new(options)?;
    ready.run("open-loop", Window::new(options.warmup, options.seconds))
}

/// All connections are open.
pub(crate) struct Ready<'a> {
    options: &'a Options,
    cpu: CpuClock,
    poll: Poll,
    timer: TimerFd,
    sources: Sources,
    request: Vec<u8>,
    connections: Vec<Connection>,
    /// The order in which they are taken.
    order: Vec<usize>,
    buffer: Box<[u8]>,
    events: Events,
    swept: Instant,
}

struct Connection {
    stream: Option<TcpStream>,
    state: State,
    /// When the requests were due that wait for this connection.
    queue: VecDeque<Instant>,
}

enum State {
    Connecting { since: Instant },
    Idle,
    Waiting { due: Instant, sent: Instant, response: Response },
}

impl<'a> Ready<'a> {
    /// Opens the connections.
    pub(crate) fn new(options: &'a Options) -> Result<Self> {
        ensure!(options.connections > 0, "--connections is 0: take at least 1");
        ensure!(
            options.rate > 0.0 && options.rate <= FASTEST,
            "--rate {} is no rate to keep: take more than 0 and at most {FASTEST}",
            options.rate
        );
        raise_descriptor_limit(options.connections)?;
        let poll = Poll::new().context("making an epoll instance")?;
        // The timeout of epoll is in milliseconds; a timer's is not.
        let timer = TimerFd::new(ClockId::CLOCK_MONOTONIC, TimerFlags::TFD_NONBLOCK).context("making a timer")?;
        poll.registry().register(&mut SourceFd(&timer.as_fd().as_raw_fd()), TIMER, Interest::READABLE)?;
        let mut order: Vec<usize> = (0..options.connections).collect();
        order.shuffle(&mut StdRng::seed_from_u64(options.seed));
        let empty = |_| Connection { stream: None, state: State::Idle, queue: VecDeque::new() };
        let mut ready = Self {
            options,
            cpu: CpuClock::start(),
            poll,
            timer,
            sources: Sources::new(&options.sources),
            request: http1::request(options.target, &options.path, false),
            connections: (0..options.connections).map(empty).collect(),
            order,
            buffer: vec![0; BUFFER].into(),
            events: Events::with_capacity(1024),
            swept: Instant::now(),
        };
        ready.connect_all()?;
        Ok(ready)
    }

    fn connect_all(&mut self) -> Result<()> {
        let began = Instant::now();
        for n in 0..self.connections.len() {
            self.open(n);
        }
        let mut ignored = Tally::new(began);
        loop {
            let left = self.connections.iter().filter(|c| matches!(c.state, State::Connecting { .. })).count();
            if left == 0 {
                return Ok(());
            }
            if began.elapsed() > self.options.timeout || ignored.errors() > 0 {
                let kinds = serde_json::to_string(&ignored.report("", 0.0, &self.cpu).errors_by_kind)?;
                bail!(
                    "{left} of {} connections to {} were not opened {kinds}",
                    self.connections.len(),
                    self.options.target
                );
            }
            self.turn(SWEEP, &mut ignored, began)?;
        }
    }

    /// Keeps the schedule to its end, and waits for the answers.
    pub(crate) fn run(mut self, work: &'static str, window: Window) -> Result<Report> {
        let gap = 1.0 / self.options.rate;
        // The first is due somewhere within the first gap.
        let phase = StdRng::seed_from_u64(self.options.seed).random_range(0.0..1.0);
        let due = |n: u64| window.start + Duration::from_secs_f64((n as f64 + phase) * gap);
        let mut tally = Tally::new(window.from);
        let (mut next, mut armed) = (0, None);
        let mut last = window.until;
        loop {
            let now = Instant::now();
            while due(next) <= now && due(next) < window.until {
                let n = self.order[(next % self.order.len() as u64) as usize];
                self.connections[n].queue.push_back(due(next));
                self.go_on(n, &mut tally);
                next += 1;
            }
            let scheduled = due(next);
            if scheduled >= window.until {
                if self.connections.iter().all(|c| c.queue.is_empty() && matches!(c.state, State::Idle)) {
                    break;
                }
                last = Instant::now();
                if last > window.until + self.options.timeout {
                    self.give_up(&mut tally, last);
                    break;
                }
            } else if armed != Some(next) {
                let wait = scheduled.saturating_duration_since(Instant::now()).max(Duration::from_nanos(1));
                self.timer.set(Expiration::OneShot(TimeSpec::from_duration(wait)), TimerSetTimeFlags::empty())?;
                armed = Some(next);
            }
            self.turn(SWEEP, &mut tally, window.from)?;
        }
        let seconds = last.saturating_duration_since(window.from).as_secs_f64();
        Ok(tally
            .report(work, seconds, &self.cpu)
            .with("asked_rate", self.options.rate)
            .with("connections", self.connections.len()))
    }

    /// Handles what happens until then; the timer is one of the things that do.
    fn turn(&mut self, wait: Duration, tally: &mut Tally, from: Instant) -> Result<()> {
        match self.poll.poll(&mut self.events, Some(wait)) {
            Err(error) if error.kind() != ErrorKind::Interrupted => return Err(error).context("waiting for events"),
            _ => {}
        }
        let connections = self.events.iter().filter(|event| event.token() != TIMER);
        let events: Vec<_> = connections.map(|event| (event.token().0, event.is_read_closed())).collect();
        for (n, closed) in events {
            if let Err(failure) = self.read(n, closed, tally, from) {
                self.broken(n, failure, tally);
            }
            self.go_on(n, tally);
        }
        if self.swept.elapsed() > SWEEP {
            self.swept = Instant::now();
            self.sweep(tally);
        }
        Ok(())
    }

    /// Sends the request that is next on this connection, if it is free.
    fn go_on(&mut self, n: usize, tally: &mut Tally) {
        let connection = &mut self.connections[n];
        if let (State::Idle, Some(due)) = (&connection.state, connection.queue.front().copied()) {
            let sent = match connection.stream.as_mut().map(|stream| stream.write(&self.request)) {
                Some(Ok(sent)) if sent == self.request.len() => Ok(()),
                Some(Ok(_)) => Err(Failure::Protocol),
                Some(Err(error)) => Err(error.into()),
                None => Err(Failure::Closed),
            };
            connection.queue.pop_front();
            connection.state = State::Waiting { due, sent: Instant::now(), response: Response::default() };
            if let Err(failure) = sent {
                self.broken(n, failure, tally);
            }
        }
    }

    fn read(&mut self, n: usize, closed: bool, tally: &mut Tally, from: Instant) -> Result<(), Failure> {
        let connection = &mut self.connections[n];
        let Some(stream) = connection.stream.as_mut() else { return Ok(()) };
        if matches!(connection.state, State::Connecting { .. }) {
            if let Some(error) = stream.take_error()? {
                return Err(error.into());
            }
            match stream.peer_addr() {
                Ok(_) => {
                    stream.set_nodelay(true)?;
                    connection.state = State::Idle;
                }
                Err(error) if error.kind() == ErrorKind::NotConnected => return Ok(()),
                Err(error) => return Err(error.into()),
            }
        }
        loop {
            let read = match stream.read(&mut self.buffer) {
                Ok(0) => return Err(Failure::Closed),
                Ok(read) => read,
                Err(error) if error.kind() == ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == ErrorKind::Interrupted => continue,
                Err(error) => return Err(error.into()),
            };
            let State::Waiting { due, response, .. } = &mut connection.state else { return Err(Failure::Protocol) };
            if response.feed(&self.buffer[..read])? {
                if *due >= from {
                    tally.done(*due, Instant::now());
                }
                connection.state = State::Idle;
                // The end may have come with the answer, and would not be told again.
                if !closed {
                    return Ok(());
                }
            }
        }
    }

    /// Counts what was under way on a connection, and opens it anew. What waits for it goes on waiting.
    fn broken(&mut self, n: usize, failure: Failure, tally: &mut Tally) {
        // One that ends while nothing is asked of it has the right to.
        if !(matches!(self.connections[n].state, State::Idle) && failure == Failure::Closed) {
            tally.failed(failure, Instant::now());
        }
        self.open(n);
    }

    fn open(&mut self, n: usize) {
        let connection = &mut self.connections[n];
        connection.state = State::Connecting { since: Instant::now() };
        // What could not be begun is found and tried again by the sweep.
        connection.stream = self.sources.connect(self.options.target).ok().and_then(|mut stream| {
            let both = Interest::READABLE | Interest::WRITABLE;
            self.poll.registry().register(&mut stream, Token(n), both).ok().map(|()| stream)
        });
    }

    fn sweep(&mut self, tally: &mut Tally) {
        let timeout = self.options.timeout;
        for n in 0..self.connections.len() {
            let connection = &self.connections[n];
            let failure = match connection.state {
                State::Connecting { since } if connection.stream.is_none() && since.elapsed() > SWEEP => {
                    Failure::NoPort
                }
                State::Connecting { since } if since.elapsed() > timeout => Failure::TimedOut,
                State::Waiting { sent, .. } if sent.elapsed() > timeout => Failure::TimedOut,
                _ => continue,
            };
            self.broken(n, failure, tally);
        }
    }

    /// What was due and has no answer yet gets none.
    fn give_up(&mut self, tally: &mut Tally, now: Instant) {
        for connection in &self.connections {
            let under_way = usize::from(!matches!(connection.state, State::Idle));
            (0..connection.queue.len() + under_way).for_each(|_| tally.failed(Failure::TimedOut, now));
        }
    }
}

#[cfg(test)]
mod tests;
