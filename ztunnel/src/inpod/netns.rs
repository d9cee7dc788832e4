//! Entering a pod's network namespace, for as long as a plain closure runs.
//!
//! A namespace belongs to a thread, so nothing may be awaited inside: the closure isn't async, and a guard brings the
//! thread back even when it panics. A thread that can't come back ends the process: from then on it would put one
//! pod's sockets into another's namespace.

use std::cell::OnceCell;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};
use nix::sys::stat::fstat;

/// An open network namespace. Equal when it is the same namespace, however it was opened.
#[derive(Clone, Debug)]
pub struct Netns {
    fd: Arc<OwnedFd>,
    id: NetnsId,
}

/// Device and inode: what tells namespaces apart (namespaces(7)).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct NetnsId {
    device: u64,
    inode: u64,
}

impl NetnsId {
    /// Of a namespace in another process's words.
    #[must_use]
    pub const fn new(device: u64, inode: u64) -> Self {
        Self { device, inode }
    }

    /// One of `count` places, so that namespaces are spread evenly.
    #[must_use]
    pub fn spread(self, count: usize) -> usize {
        usize::try_from(self.inode).unwrap_or_default() % count.max(1)
    }
}

impl PartialEq for Netns {
    fn eq(&self, other: &Self) -> bool {
        self.id == other.id
    }
}

impl Eq for Netns {}

impl Netns {
    /// Takes a descriptor of a namespace file, as ZDS hands it over. Whether it really is one shows on entering.
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        let stat = fstat(&fd)?;
        Ok(Self { fd: Arc::new(fd), id: NetnsId { device: stat.st_dev, inode: stat.st_ino } })
    }

    /// The namespace that this thread is in.
    pub fn current() -> io::Result<Self> {
        Self::new(File::open("/proc/thread-self/ns/net")?.into())
    }

    /// Device and inode of the namespace.
    #[must_use]
    pub fn id(&self) -> NetnsId {
        self.id
    }

    /// Runs `f` with this thread inside the namespace.
    pub fn run<T>(&self, f: impl FnOnce() -> T) -> io::Result<T> {
        HOME.with(|home| {
            let home = match home.get() {
                Some(home) => home,
                None => {
                    let current = Self::current()?;
                    home.get_or_init(|| current)
                }
            };
            if *home == *self {
                return Ok(f());
            }
            let entered = enter(self.fd.as_fd());
            entered.map_err(|e| io::Error::new(e.kind(), format!("cannot enter its network namespace: {e}")))?;
            let _back = Back(home);
            Ok(f())
        })
    }
}

thread_local! {
    /// Where the thread belongs. Never nested: a closure given to `run` has no business in a second namespace.
    static HOME: OnceCell<Netns> = const { OnceCell::new() };
}

struct Back<'a>(&'a Netns);

impl Drop for Back<'_> {
    fn drop(&mut self) {
        if let Err(e) = enter(self.0.fd.as_fd()) {
            tracing::error!(error = %e, "thread cannot return from a pod's network namespace");
            std::process::abort();
        }
    }
}

fn enter(fd: BorrowedFd<'_>) -> io::Result<()> {
    Ok(setns(fd, CloneFlags::CLONE_NEWNET)?)
}
