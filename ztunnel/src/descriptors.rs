//! The process's file descriptors: as many as it may have, and a reserve for what must go on when they run out.
//!
//! Data connections use the numbers below a cap; discovery, certificates, the admin port and the node agent have the
//! rest to themselves. Nothing is counted: the kernel always gives the lowest free number (open(2)), so a socket whose
//! number reaches the cap says that all below it are taken. From then on listeners leave callers in their queues, and
//! nothing is dialled, until numbers are free again; other sockets of ours are none the wiser.
//!
//! Each listener learns of that by a connection that it has accepted already. These wait beyond the cap, a quarter of
//! the reserve at most; more of them are closed. One that is served in the end has a number below the cap by then.
//!
//! The limit belongs to the process, and so does what is kept here.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use nix::fcntl::{FcntlArg, fcntl};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio::net::{TcpListener, TcpStream};

use crate::socket;

/// How often a listener asks whether there are numbers again.
const AGAIN: Duration = Duration::from_millis(100);

static CAP: AtomicI32 = AtomicI32::new(RawFd::MAX);
static EXHAUSTED: AtomicBool = AtomicBool::new(false);
/// Connections that wait beyond the cap, and how many may.
static HELD: AtomicU64 = AtomicU64::new(0);
static MOST_HELD: AtomicU64 = AtomicU64::new(u64::MAX);

/// Raises the soft limit to the hard one, since the soft is often 1024, for programs that use select(2), and keeps a
/// reserve of it. Says both in the log.
pub fn raise_limit() {
    let (soft, hard) = match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok(limits) => limits,
        Err(error) => return tracing::warn!(%error, "the limit on open files is not known"),
    };
    let limit = match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(error) => {
            tracing::warn!(%error, soft, hard, "the limit on open files stays as it is");
            soft
        }
    };
    let reserve = keep_reserve(limit);
    tracing::info!(was = soft, hard, limit, reserve, "open files");
}

/// Keeps a part of this limit from data connections; how much.
pub fn keep_reserve(limit: u64) -> u64 {
    let reserve = reserve_of(limit);
    CAP.store(RawFd::try_from(limit - reserve).unwrap_or(RawFd::MAX), Relaxed);
    MOST_HELD.store(reserve / 4, Relaxed);
    reserve
}

/// An eighth, between 64 and 4096: each pod on the node costs a few, before any of its connections.
fn reserve_of(limit: u64) -> u64 {
    (limit / 8).clamp(64, 4096).min(limit / 2)
}

/// Accepts a data connection when there is a descriptor for it. [`libc::EMFILE`] stands for one that was closed since
/// too many wait already; the loop around pauses then.
pub async fn accept(listener: &TcpListener) -> io::Result<(TcpStream, SocketAddr)> {
    available().await;
    let (mut stream, peer) = listener.accept().await?;
    let Err(exhausted) = opened(&stream) else { return Ok((stream, peer)) };
    let Some(_held) = Held::new() else {
        socket::reset_on_close(&stream);
        return Err(exhausted);
    };
    loop {
        available().await;
        stream = renumbered(stream)?;
        if opened(&stream).is_ok() {
            return Ok((stream, peer));
        }
    }
}

/// A place beyond the cap.
struct Held;

impl Held {
    fn new() -> Option<Self> {
        let most = MOST_HELD.load(Relaxed);
        let one_more = |held| (held < most).then_some(held + 1);
        // Not `then_some`: a place that wasn't had would be given back.
        HELD.fetch_update(Relaxed, Relaxed, one_more).is_ok().then(|| Self)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.fetch_sub(1, Relaxed);
    }
}

/// The same connection by the lowest free number.
fn renumbered(stream: TcpStream) -> io::Result<TcpStream> {
    let stream = stream.into_std()?;
    TcpStream::from_std(lowest(&stream)?.into())
}

/// Waits while data connections have used up what is theirs.
pub async fn available() {
    while is_exhausted() {
        tokio::time::sleep(AGAIN).await;
    }
}

/// Takes note of a new data connection's socket. An error if it is one too many.
pub fn opened(socket: &impl AsRawFd) -> io::Result<()> {
    let cap = CAP.load(Relaxed);
    if socket.as_raw_fd() < cap {
        return Ok(());
    }
    if !EXHAUSTED.swap(true, Relaxed) {
        tracing::warn!(cap, "out of file descriptors for connections: new ones wait, the reserve is untouched");
    }
    Err(io::Error::from_raw_os_error(libc::EMFILE))
}

fn is_exhausted() -> bool {
    if !EXHAUSTED.load(Relaxed) {
        return false;
    }
    let cap = CAP.load(Relaxed);
    // Not at the first that comes free: for that one a whole queue would be woken.
    let free = lowest(io::stderr()).is_ok_and(|lowest| lowest.as_raw_fd() < cap - cap / 32);
    if free && EXHAUSTED.swap(false, Relaxed) {
        tracing::info!("file descriptors are free again");
    }
    !free
}

#[allow(unsafe_code)]
fn lowest(any: impl AsFd) -> io::Result<OwnedFd> {
    let number = fcntl(any.as_fd(), FcntlArg::F_DUPFD_CLOEXEC(0))?;
    // SAFETY: the kernel has just made it, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reserve_is_a_part_of_the_limit() {
        for (limit, reserve) in [(1 << 20, 4096), (65_536, 4096), (8192, 1024), (1024, 128), (256, 64), (64, 32)] {
            assert_eq!(reserve_of(limit), reserve, "{limit}");
        }
    }
}
