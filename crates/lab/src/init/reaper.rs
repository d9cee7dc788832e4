//! Processes: starts them in namespaces, and collects every exit as pid 1 must.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::sync::Arc;

use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use nix::sys::signal::{SigHandler, Signal, killpg};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Gid, Pid, Uid, setgid, setgroups, setsid, setuid};
use parking_lot::{Mutex, RwLock};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::ending;
use super::sandbox::Namespaces;
use super::shared::Shared;
use crate::error::{During, LabError, Result};

/// Who waits for which process.
#[derive(Debug, Default)]
pub(super) struct Reaper {
    /// Held for reading while a process is started, so that it is known before its exit is collected.
    starting: RwLock<()>,
    waiting: Mutex<HashMap<i32, watch::Sender<Option<i32>>>>,
}

/// A process that was started; dropping it does nothing to the process.
#[derive(Debug, Clone)]
pub(super) struct Running {
    pub(super) pid: i32,
    exit: watch::Receiver<Option<i32>>,
}

impl Running {
    /// Its exit code, or 128 + signal.
    pub(super) async fn wait(&mut self) -> i32 {
        match self.exit.wait_for(Option::is_some).await {
            Ok(code) => code.unwrap_or(-1),
            Err(_) => -1,
        }
    }

    /// The same on a thread that may block.
    pub(super) fn wait_blocking(&mut self) -> i32 {
        tokio::runtime::Handle::current().block_on(self.wait())
    }

    pub(super) fn has_exited(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// Signals the process alone.
    pub(super) fn signal(&self, signal: i32) {
        self.signal_pid(self.pid, signal);
    }

    /// Signals its process group.
    pub(super) fn signal_group(&self, signal: i32) {
        self.signal_pid(-self.pid, signal);
    }

    fn signal_pid(&self, pid: i32, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal) {
            // Somebody who has just ended needs no signal.
            let _ = if pid < 0 {
                killpg(Pid::from_raw(-pid), signal)
            } else {
                nix::sys::signal::kill(Pid::from_raw(pid), signal)
            };
        }
    }
}

/// Who a process runs as, and where.
#[derive(Debug, Clone, Default)]
pub(super) struct Place {
    pub(super) namespaces: Namespaces,
    pub(super) user: Option<u32>,
    pub(super) group: Option<u32>,
}

impl Place {
    pub(super) fn of(namespaces: &Namespaces) -> Self {
        Self { namespaces: namespaces.clone(), user: None, group: None }
    }
}

impl Reaper {
    /// Starts a command at a place, as leader of a session and process group of its own.
    #[allow(unsafe_code)]
    pub(super) fn start(&self, mut command: Command, place: &Place) -> std::io::Result<Running> {
        let place = place.clone();
        // SAFETY: only system calls that are async-signal-safe, on values made before the fork.
        unsafe {
            command.pre_exec(move || enter(&place));
        }
        let Some(_leave) = ending::leave_to_start() else {
            return Err(std::io::Error::other("the lab is ending"));
        };
        let _guard = self.starting.read();
        // The handle is dropped without waiting: `collect` waits for everybody.
        let child = command.spawn()?;
        let pid = child.id().cast_signed();
        let (sender, exit) = watch::channel(None);
        self.waiting.lock().insert(pid, sender);
        Ok(Running { pid, exit })
    }

    /// Runs a helper to its end on a thread that may block; fails with what it wrote if it failed.
    pub(super) fn run(&self, program: &str, args: &[&str], input: &str, place: &Place) -> Result<String> {
        let pipe = || std::io::pipe().during(|| "making a pipe".into());
        let ((in_read, mut in_write), (mut out_read, out_write), (mut err_read, err_write)) =
            (pipe()?, pipe()?, pipe()?);
        let mut command = Command::new(program);
        command.args(args).stdin(Stdio::from(OwnedFd::from(in_read)));
        command.stdout(OwnedFd::from(out_write)).stderr(OwnedFd::from(err_write));
        let mut running = self.start(command, place).during(|| format!("starting {program}"))?;
        // A helper that ends early closes its input; its own message says why.
        let _ = in_write.write_all(input.as_bytes());
        drop(in_write);
        let (mut out, mut err) = (String::new(), String::new());
        let _ = out_read.read_to_string(&mut out);
        let _ = err_read.read_to_string(&mut err);
        match running.wait_blocking() {
            0 => Ok(out),
            code => Err(LabError::Refused(format!("{program} {}: exit {code}: {}", args.join(" "), err.trim()))),
        }
    }

    fn collect(&self) {
        let _guard = self.starting.write();
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => return,
                Ok(_) | Err(Errno::EINTR) => continue,
                Err(error) => {
                    tracing::error!(%error, "collecting exits");
                    return;
                }
            };
            if let Some(waiter) = self.waiting.lock().remove(&pid.as_raw()) {
                waiter.send_replace(Some(code));
            }
        }
    }
}

/// Starts collecting.
pub(super) fn run(shared: &Arc<Shared>) -> Result<()> {
    let mut children = signal(SignalKind::child()).during(|| "listening for ended processes".into())?;
    let reaper = Arc::clone(&shared.reaper);
    shared.tracker.spawn("reaper", async move {
        loop {
            reaper.collect();
            if children.recv().await.is_none() {
                return;
            }
        }
    });
    Ok(())
}

/// What a new process does before it becomes the command.
fn enter(place: &Place) -> std::io::Result<()> {
    hear_all_signals()?;
    let namespaces = &place.namespaces;
    if let Some(net) = &namespaces.net {
        setns(net, CloneFlags::CLONE_NEWNET)?;
    }
    if let Some(uts) = &namespaces.uts {
        setns(uts, CloneFlags::CLONE_NEWUTS)?;
    }
    if let Some(mnt) = &namespaces.mnt {
        setns(mnt, CloneFlags::CLONE_NEWNS)?;
        // Relative names then land in the pod's private files, never in the machine's root.
        nix::unistd::chdir("/tmp")?;
    }
    setsid()?;
    if let Some(group) = place.group.or(place.user) {
        setgroups(&[])?;
        setgid(Gid::from_raw(group))?;
    }
    if let Some(user) = place.user {
        setuid(Uid::from_raw(user))?;
    }
    Ok(())
}

/// What whoever started the lab chose to ignore (a shell's background job ignores SIGINT and SIGQUIT) would be ignored
/// in the pods as well, for good: a container's program begins with nothing ignored.
#[allow(unsafe_code)]
fn hear_all_signals() -> std::io::Result<()> {
    for each in Signal::iterator().filter(|each| !matches!(each, Signal::SIGKILL | Signal::SIGSTOP)) {
        // SAFETY: the default action is no handler, so nothing of this process can run by it.
        unsafe { nix::sys::signal::signal(each, SigHandler::SigDfl) }?;
    }
    Ok(())
}

/// The number of a descriptor as `/proc/1/fd/…`, which helpers can open.
pub(super) fn proc_path(fd: &impl AsRawFd) -> String {
    let raw: RawFd = fd.as_raw_fd();
    format!("/proc/1/fd/{raw}")
}
