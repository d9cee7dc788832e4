//! The lab's end: nothing new begins, every process is killed, the folder goes, and pid 1 exits.
//!
//! Whoever finds the lab over calls [`end`]: who watches the starter, a caller's `down`, or `run` itself. The
//! runtime may still be busy with containers then, so it is kept from starting processes and from writing files.

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;
use parking_lot::{RwLock, RwLockReadGuard};

use crate::paths::Paths;
use crate::start::remove_folder;

const PATIENCE: Duration = Duration::from_secs(2);

/// Whether the lab has begun to end. Held for reading while a process is started.
static ENDING: RwLock<bool> = RwLock::new(false);

/// Leave to start a process, held until it is started; none once the lab ends.
pub(super) fn leave_to_start() -> Option<RwLockReadGuard<'static, bool>> {
    let ending = ENDING.read();
    (!*ending).then_some(ending)
}

/// Ends all of the lab's processes, removes its folder, and exits: the kernel removes the rest.
pub(super) fn end(paths: &Paths) -> ! {
    static BEGUN: AtomicBool = AtomicBool::new(false);
    if BEGUN.swap(true, Ordering::SeqCst) {
        // Another thread is at it, and takes this one along.
        loop {
            std::thread::park();
        }
    }
    if std::process::id() == 1 {
        // A start that hangs for longer than this is killed below.
        if let Some(mut ending) = ENDING.try_write_for(PATIENCE) {
            *ending = true;
        }
        kill_all();
        remove(paths);
    }
    std::process::exit(0)
}

/// Whoever waits for the lab's end finds no process of it. What is left when we give up dies with us.
fn kill_all() {
    let begin = Instant::now();
    while begin.elapsed() < PATIENCE {
        // From pid 1, -1 means everybody else in the namespace.
        let _ = kill(Pid::from_raw(-1), Signal::SIGKILL);
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) => std::thread::sleep(Duration::from_millis(1)),
            _ => {}
        }
    }
}

fn remove(paths: &Paths) {
    let (Some(labs), Some(name)) = (paths.root().parent(), paths.root().file_name()) else { return };
    if let Ok(nodes) = fs::read_dir(paths.root().join("nodes")) {
        for node in nodes.flatten() {
            let _ = umount2(&node.path().join("netns"), MntFlags::MNT_DETACH);
        }
    }
    let Ok(folder) = File::open(labs) else { return };
    cover(labs);
    remove_folder(&PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(name));
}

/// Hides all labs' folders from our own threads: what one of them still writes goes with our mounts.
fn cover(labs: &Path) {
    let none: Option<&str> = None;
    // A lab that failed early may still share its mounts with the machine, which must not be covered.
    let private = mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none);
    let covered = private.and_then(|()| mount(Some("tmpfs"), labs, Some("tmpfs"), MsFlags::empty(), none));
    if let Err(error) = covered {
        tracing::debug!(%error, "the labs' folder is not covered");
    }
}
