//! Child processes that end with their handle, and with this process whatever happens to it.
#![allow(unsafe_code)]

use std::fs::OpenOptions;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{OnceLock, mpsc};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// A program that runs. Dropping it kills it.
#[derive(Debug)]
pub(crate) struct Process {
    child: Child,
    log: PathBuf,
}

impl Process {
    /// Starts a program with these arguments and more variables; what it says is added to the file.
    pub(crate) fn start(program: &Path, arguments: &[String], variables: &[(String, String)], log: &Path) -> Self {
        let out = OpenOptions::new().create(true).append(true).open(log).expect("the log");
        let mut command = Command::new(program);
        command.args(arguments).envs(variables.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(out.try_clone().expect("the log")).stderr(out);
        let child = spawn(command).unwrap_or_else(|error| panic!("starting {}: {error}", program.display()));
        Self { child, log: log.to_owned() }
    }

    /// Whether it runs still.
    pub(crate) fn runs(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Its process id.
    pub(crate) fn id(&self) -> u32 {
        self.child.id()
    }

    /// What it said so far.
    pub(crate) fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"));
        kill(pid, signal).expect("a signal to a child");
    }

    /// SIGTERM, and waits for its end.
    pub(crate) fn terminate(mut self, within: Duration) {
        self.signal(Signal::SIGTERM);
        let begin = Instant::now();
        while self.runs() {
            assert!(begin.elapsed() < within, "did not end within {within:?}: {}", self.said());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// One of our own binaries, which lie beside the folder of the tests.
pub(crate) fn binary(name: &str) -> PathBuf {
    let own = std::env::current_exe().expect("our own path");
    let path = own.ancestors().nth(2).expect("the folder of binaries").join(name);
    assert!(path.is_file(), "{} is missing: `cargo build --workspace --bins` first", path.display());
    path
}

type Job = (Command, mpsc::Sender<std::io::Result<Child>>);

/// Starts it from a thread that lives as long as the process: a child is told of the end of the thread that it
/// comes from, and a test's thread ends with its test.
fn spawn(mut command: Command) -> std::io::Result<Child> {
    static STARTER: OnceLock<mpsc::Sender<Job>> = OnceLock::new();
    let starter = STARTER.get_or_init(|| {
        let (sender, jobs) = mpsc::channel::<Job>();
        std::thread::spawn(move || {
            for (mut command, answer) in jobs {
                let _ = answer.send(command.spawn());
            }
        });
        sender
    });
    // SAFETY: prctl is async-signal-safe and touches this child only.
    unsafe {
        command.pre_exec(|| nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).map_err(Into::into));
    }
    let (answer, child) = mpsc::channel();
    starter.send((command, answer)).expect("the starter lives");
    child.recv().expect("the starter answers")
}
