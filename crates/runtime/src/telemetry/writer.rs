//! A writer that never blocks a task: lines gather in a buffer, and a thread writes out what has gathered.
//!
//! The buffer is as large as what waits in it, so a process that logs little holds next to nothing. The first line after
//! a quiet time leaves at once; after a write the thread rests, so that under load many lines leave with one system call
//! and hardly any of them has to wake it.

use std::io::{self, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};
use tracing_subscriber::fmt::MakeWriter;

/// Bytes of lines that may wait; what comes when it is full is lost, counted and told.
const LIMIT: usize = 4 << 20;
/// A buffer above this is given back once it is written.
const KEPT: usize = 16 << 10;
/// Between two writes.
const REST: Duration = Duration::from_millis(5);
/// How long the end of the process waits for the last lines.
const LAST_LINES: Duration = Duration::from_secs(1);

/// Where tasks write. Clones write to the same place.
#[derive(Clone, Debug)]
pub(super) struct Gathered(Arc<Shared>);

/// Writes out what has gathered when it is dropped.
pub(super) struct Flush(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    limit: usize,
    /// The thread waits for lines, or the end for the thread.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<u8>,
    lost: u64,
    /// The thread sleeps until it is told of lines.
    idle: bool,
    closed: bool,
    ended: bool,
}

/// Starts the thread that writes to `out`.
pub(super) fn gather(out: impl Write + Send + 'static) -> io::Result<(Gathered, Flush)> {
    gather_within(LIMIT, out)
}

fn gather_within(limit: usize, out: impl Write + Send + 'static) -> io::Result<(Gathered, Flush)> {
    let shared = Arc::new(Shared { state: Mutex::default(), limit, changed: Condvar::new() });
    let writing = shared.clone();
    std::thread::Builder::new().name("log".to_owned()).spawn(move || writing.write_out(out))?;
    Ok((Gathered(shared.clone()), Flush(shared)))
}

impl Shared {
    fn write_out(&self, mut out: impl Write) {
        let mut text = Vec::new();
        loop {
            let (lost, closed) = {
                let mut state = self.state.lock();
                while state.waiting.is_empty() && state.lost == 0 && !state.closed {
                    state.idle = true;
                    self.changed.wait(&mut state);
                }
                state.idle = false;
                std::mem::swap(&mut text, &mut state.waiting);
                (std::mem::take(&mut state.lost), state.closed)
            };
            // There is nobody else to tell that it cannot be written.
            let _ = out.write_all(&text).and_then(|()| out.flush());
            if text.capacity() > KEPT {
                text = Vec::new();
            }
            text.clear();
            if lost > 0 {
                tracing::warn!(lines = lost, "log lines were lost: what reads our output is too slow for this level");
            }
            let mut state = self.state.lock();
            if closed && state.waiting.is_empty() {
                state.ended = true;
                self.changed.notify_all();
                return;
            }
            let rested = Instant::now() + REST;
            while !state.closed && !self.changed.wait_until(&mut state, rested).timed_out() {}
        }
    }
}

impl Write for Gathered {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let mut state = self.0.state.lock();
        if state.waiting.len() + line.len() > self.0.limit {
            state.lost += 1;
        } else {
            state.waiting.extend_from_slice(line);
        }
        let wake = std::mem::take(&mut state.idle);
        drop(state);
        if wake {
            self.0.changed.notify_one();
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Gathered {
    type Writer = Self;

    fn make_writer(&'a self) -> Self {
        self.clone()
    }
}

impl Drop for Flush {
    fn drop(&mut self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        self.0.changed.notify_all();
        let deadline = Instant::now() + LAST_LINES;
        while !state.ended && !self.0.changed.wait_until(&mut state, deadline).timed_out() {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc;

    /// Hands over what is written, and waits for leave before each write.
    struct Slow {
        leave: mpsc::Receiver<()>,
        written: mpsc::Sender<Vec<u8>>,
    }

    impl Write for Slow {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            let _ = self.leave.recv();
            let _ = self.written.send(bytes.to_vec());
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn slow(limit: usize) -> (Gathered, Flush, mpsc::Sender<()>, mpsc::Receiver<Vec<u8>>) {
        let ((leave, left), (written, writes)) = (mpsc::channel(), mpsc::channel());
        let (lines, flush) = gather_within(limit, Slow { leave: left, written }).unwrap();
        (lines, flush, leave, writes)
    }

    fn wait_until(condition: impl Fn() -> bool) {
        let deadline = Instant::now() + Duration::from_secs(5);
        while !condition() {
            assert!(Instant::now() < deadline, "not within 5 s");
            std::thread::yield_now();
        }
    }

    #[test]
    fn lines_that_wait_leave_together_and_the_last_ones_at_the_end() {
        let (mut lines, flush, leave, writes) = slow(1000);
        lines.write_all(b"first\n").unwrap();
        wait_until(|| lines.0.state.lock().waiting.is_empty());
        // It is being written; these wait.
        lines.write_all(b"second\n").unwrap();
        lines.write_all(b"third\n").unwrap();
        (0..3).for_each(|_| leave.send(()).unwrap());
        drop(flush);
        assert_eq!(writes.try_iter().collect::<Vec<_>>(), [b"first\n".to_vec(), b"second\nthird\n".to_vec()]);
    }

    #[test]
    fn between_two_writes_there_is_a_rest() {
        let ((leave, left), (written, writes)) = (mpsc::channel(), mpsc::channel());
        (0..10_000).for_each(|_| leave.send(()).unwrap());
        let (mut lines, flush) = gather_within(LIMIT, Slow { leave: left, written }).unwrap();
        let start = Instant::now();
        for _ in 0..1000 {
            lines.write_all(b"line\n").unwrap();
            std::thread::yield_now();
        }
        drop(flush);
        // One more at the start, one at the end.
        let most = start.elapsed().as_millis() / REST.as_millis() + 2;
        let writes: Vec<_> = writes.try_iter().collect();
        assert!(writes.len() as u128 <= most, "{} writes, {most} are right", writes.len());
        assert_eq!(writes.concat(), b"line\n".repeat(1000));
    }

    #[test]
    fn a_writer_that_stands_still_costs_lines_and_neither_time_nor_memory() {
        let (mut lines, flush, leave, writes) = slow(64 << 10);
        lines.write_all(b"first\n").unwrap();
        wait_until(|| lines.0.state.lock().waiting.is_empty());
        for _ in 0..10_000 {
            lines.write_all(b"0123456789abcde\n").unwrap();
        }
        {
            let state = lines.0.state.lock();
            assert_eq!((state.waiting.len(), state.lost), (64 << 10, 10_000 - 4096));
        }
        (0..2).for_each(|_| leave.send(()).unwrap());
        wait_until(|| lines.0.state.lock().waiting.is_empty() && lines.0.state.lock().lost == 0);
        lines.write_all(b"last\n").unwrap();
        leave.send(()).unwrap();
        drop(flush);
        let written: Vec<_> = writes.try_iter().collect();
        assert_eq!(written.iter().map(Vec::len).collect::<Vec<_>>(), [6, 64 << 10, 5]);
        assert!(lines.0.state.lock().waiting.capacity() <= KEPT, "what was large is given back");
    }

    #[test]
    fn an_end_does_not_wait_for_a_writer_that_stands_still() {
        let (mut lines, flush, _leave, _writes) = slow(1000);
        lines.write_all(b"first\n").unwrap();
        let start = Instant::now();
        drop(flush);
        assert!(start.elapsed() < 5 * LAST_LINES, "{:?}", start.elapsed());
    }
}
