//! A command that runs inside the lab, as its caller sees it.

use std::io::Read;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex};

use crate::error::{During, LabError, Result};
use crate::lab::{blocking, connect, hung_up};
use crate::paths::Paths;
use crate::wire::{self, Reply, Request, Target};

/// After the command's end, how long output of processes that it left behind is waited for.
const TRAILING_OUTPUT: Duration = Duration::from_millis(500);

/// What a command did.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutput {
    /// Its exit code; 128 + signal if one killed it.
    pub code: i32,
    /// What it wrote, bytes that are no UTF-8 replaced.
    pub stdout: String,
    /// What it complained.
    pub stderr: String,
}

impl ExecOutput {
    /// Whether it exited with 0.
    pub fn ok(&self) -> bool {
        self.code == 0
    }
}

/// A command that runs in the lab; dropping it kills its process group.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    control: UnixStream,
    stdin: Option<std::io::PipeWriter>,
    stdout: Output,
    stderr: Output,
    exit: Option<JoinHandle<Result<i32>>>,
}

impl Process {
    pub(crate) fn start<S: AsRef<str>>(paths: &Paths, target: Target, args: &[S]) -> Result<Self> {
        let pipe = || std::io::pipe().during(|| "making a pipe".into());
        let ((in_read, in_write), (out_read, out_write), (err_read, err_write)) = (pipe()?, pipe()?, pipe()?);
        let fds = [in_read.as_raw_fd(), out_write.as_raw_fd(), err_write.as_raw_fd()];
        let (control, pid) = exec(paths, target, args, fds)?;
        drop((in_read, out_write, err_write));
        let paths = paths.clone();
        let waiting = control.try_clone().during(|| "sharing the control connection".into())?;
        Ok(Self {
            pid,
            control,
            stdin: Some(in_write),
            stdout: Output::read(out_read),
            stderr: Output::read(err_read),
            exit: Some(std::thread::spawn(move || exit_code(&paths, &waiting))),
        })
    }

    pub(crate) async fn attached<S: AsRef<str>>(paths: &Paths, target: Target, args: &[S]) -> Result<i32> {
        let (control, _) = exec(paths, target, args, [0, 1, 2])?;
        let paths = paths.clone();
        blocking(move || exit_code(&paths, &control)).await
    }

    /// Its process id inside the lab.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its standard input; dropping what is taken closes it.
    pub fn take_stdin(&mut self) -> Option<std::io::PipeWriter> {
        self.stdin.take()
    }

    /// What it wrote so far.
    pub fn stdout_so_far(&self) -> String {
        self.stdout.text()
    }

    /// What it complained so far.
    pub fn stderr_so_far(&self) -> String {
        self.stderr.text()
    }

    /// Whether it still runs.
    pub fn is_running(&self) -> bool {
        self.exit.as_ref().is_some_and(|exit| !exit.is_finished())
    }

    /// Waits until its standard output or error holds the text.
    pub async fn wait_output(&self, text: &str, within: Duration) -> Result<()> {
        let begin = Instant::now();
        loop {
            let (out, err) = (self.stdout_so_far(), self.stderr_so_far());
            if out.contains(text) || err.contains(text) {
                return Ok(());
            }
            if begin.elapsed() > within || (!self.is_running() && begin.elapsed() > TRAILING_OUTPUT) {
                let what = format!("output with {text:?} (stdout {out:?}, stderr {err:?})");
                return Err(LabError::Timeout { what, after: begin.elapsed() });
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Sends a signal to its process group.
    pub fn signal(&self, signal: i32) -> Result<()> {
        wire::send(&self.control, &Request::Signal(signal), &[]).during(|| "signalling".into())
    }

    /// Kills it and returns what it wrote.
    pub async fn kill(self) -> Result<ExecOutput> {
        // A process that has just ended refuses the signal: the same outcome.
        let _ = self.signal(libc::SIGKILL);
        self.wait().await
    }

    /// Closes its input, unless it was taken, and waits for its end.
    pub async fn wait(mut self) -> Result<ExecOutput> {
        self.stdin.take();
        let exit = self.exit.take().expect("only wait takes it, and wait consumes self");
        let (stdout, stderr) = (self.stdout.clone(), self.stderr.clone());
        // `self` stays alive across this await: dropping the future kills the command.
        let output = blocking(move || {
            let code = exit.join().map_err(|_| LabError::Refused("the waiting thread died".into()))??;
            let deadline = Instant::now() + TRAILING_OUTPUT;
            stdout.wait_end(deadline);
            stderr.wait_end(deadline);
            Ok(ExecOutput { code, stdout: stdout.text(), stderr: stderr.text() })
        })
        .await;
        drop(self);
        output
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.control.shutdown(std::net::Shutdown::Both);
    }
}

fn exec<S: AsRef<str>>(paths: &Paths, target: Target, args: &[S], fds: [RawFd; 3]) -> Result<(UnixStream, i32)> {
    let control = connect(paths)?;
    let args = args.iter().map(|arg| arg.as_ref().to_owned()).collect();
    let request = Request::Exec { target, args, env: Vec::new() };
    let sent = wire::send(&control, &request, &fds);
    match sent.and_then(|()| wire::receive::<Reply>(&control)) {
        Ok(Some((Reply::Started { pid }, _))) => Ok((control, pid)),
        Ok(Some((Reply::Error(message), _))) => Err(LabError::Refused(message)),
        Ok(Some((other, _))) => Err(LabError::Refused(format!("unexpected answer of the lab: {other:?}"))),
        Ok(None) => Err(hung_up(paths, None)),
        Err(error) => Err(hung_up(paths, Some(error))),
    }
}

fn exit_code(paths: &Paths, control: &UnixStream) -> Result<i32> {
    match wire::receive::<Reply>(control) {
        Ok(Some((Reply::Exited { code }, _))) => Ok(code),
        Ok(Some((Reply::Error(message), _))) => Err(LabError::Refused(message)),
        Ok(Some((other, _))) => Err(LabError::Refused(format!("unexpected answer of the lab: {other:?}"))),
        Ok(None) => Err(hung_up(paths, None)),
        Err(error) => Err(hung_up(paths, Some(error))),
    }
}

/// Bytes that a thread collects from a pipe.
#[derive(Debug, Clone)]
struct Output(Arc<(Mutex<Collected>, Condvar)>);

#[derive(Debug, Default)]
struct Collected {
    bytes: Vec<u8>,
    ended: bool,
}

impl Output {
    fn read(mut pipe: std::io::PipeReader) -> Self {
        let shared = Arc::new((Mutex::new(Collected::default()), Condvar::new()));
        let collected = Arc::clone(&shared);
        std::thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            loop {
                match pipe.read(&mut buffer) {
                    Ok(0) => break,
                    Ok(read) => collected.0.lock().bytes.extend_from_slice(&buffer[..read]),
                    Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(_) => break,
                }
            }
            collected.0.lock().ended = true;
            collected.1.notify_all();
        });
        Self(shared)
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.0.0.lock().bytes).into_owned()
    }

    fn wait_end(&self, deadline: Instant) {
        let mut collected = self.0.0.lock();
        while !collected.ended {
            if self.0.1.wait_until(&mut collected, deadline).timed_out() {
                return;
            }
        }
    }
}
