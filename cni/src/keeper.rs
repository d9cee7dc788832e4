//! Rules stay: whoever flushes them gets them laid again.
//!
//! ```text
//!   nf_tables, rule and route events of the namespace ─► settle ─► what is missing? ─► lay, count, log
//! ```
//!
//! Events only say when to look; what is done depends on what is really missing, so our own changes and lost
//! events cost nothing but a look.

use crate::descriptor::register;
use crate::netlink::nft;
use crate::netlink::route;
use crate::netlink::socket::{Family, NetlinkError, Socket};
use crate::netns::NetNs;
use crate::redirection;
use crate::rules::pod::PodRules;
use aquifer_runtime::{Cancel, Tracker};
use nix::errno::Errno;
use nix::sys::socket::{MsgFlags, recv};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::{Instant, sleep};

/// A flush is a burst of events; look once.
const SETTLE: Duration = Duration::from_millis(10);
/// Looked at no more often than this, however busy the namespace is.
const PAUSE: Duration = Duration::from_millis(90);
/// Someone who flushes again and again is answered ever later, up to this.
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// Repairs further apart than this are not a fight.
const CALM: Duration = Duration::from_secs(10);

/// What is kept in place. Called inside the namespace.
pub trait Layout: Send + Sync + 'static {
    /// What is not there, by name.
    fn missing(&self) -> Result<Vec<String>, NetlinkError>;
    /// Puts it right.
    fn lay(&self) -> Result<(), NetlinkError>;
}

impl Layout for PodRules {
    fn missing(&self) -> Result<Vec<String>, NetlinkError> {
        redirection::missing(self)
    }

    fn lay(&self) -> Result<(), NetlinkError> {
        redirection::lay(self)
    }
}

/// Looks after one namespace until it is stopped or dropped.
pub struct Keeper {
    /// False once stopped. Held while laying, so that nothing is laid after a stop.
    active: Arc<Mutex<bool>>,
    cancel: Cancel,
}

impl Keeper {
    /// Starts to look after `layout`, which has been laid or is about to be.
    pub async fn start(
        name: String,
        netns: NetNs,
        layout: Arc<dyn Layout>,
        repairs: Counter,
        tracker: &Tracker,
    ) -> io::Result<Self> {
        let opened = netns.enter(|| {
            Ok::<_, NetlinkError>((
                Socket::subscribe(Family::Netfilter, &[nft::EVENTS])?,
                Socket::subscribe(Family::Route, &route::EVENTS)?,
            ))
        });
        let (tables, routes) = opened.await?.map_err(io::Error::other)?;
        let tables = register(tables.into_fd(), Interest::READABLE)?;
        let routes = register(routes.into_fd(), Interest::READABLE)?;
        let (active, cancel) = (Arc::new(Mutex::new(true)), Cancel::new());
        let watched = Watched { name, netns, layout, active: active.clone(), repairs };
        let stop = cancel.clone();
        tracker.spawn("rules keeper", async move {
            tokio::select! {
                biased;
                () = stop.drained() => {}
                () = watched.look_after(&tables, &routes) => {}
            }
        });
        Ok(Self { active, cancel })
    }

    /// From the return on, nothing is laid any more.
    pub async fn stop(self) {
        self.cancel.drain();
        let active = self.active.clone();
        let stopped = tokio::task::spawn_blocking(move || *active.lock() = false).await;
        debug_assert!(stopped.is_ok(), "setting a flag does not panic");
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        self.cancel.drain();
    }
}

struct Watched {
    name: String,
    netns: NetNs,
    layout: Arc<dyn Layout>,
    active: Arc<Mutex<bool>>,
    repairs: Counter,
}

impl Watched {
    async fn look_after(&self, tables: &AsyncFd<OwnedFd>, routes: &AsyncFd<OwnedFd>) {
        let mut pause = PAUSE;
        let mut last = None::<Instant>;
        // A first look without an event: something may have changed between laying and subscribing.
        loop {
            match self.repair().await {
                Ok(missing) if missing.is_empty() => {}
                Ok(missing) => {
                    self.repairs.inc();
                    tracing::warn!(namespace = %self.name, missing = %missing.join(", "), "laid rules again that someone had removed");
                    pause = match last.replace(Instant::now()) {
                        Some(last) if last.elapsed() < CALM => (pause * 2).min(MAX_PAUSE),
                        _ => PAUSE,
                    };
                }
                Err(error) => {
                    tracing::warn!(namespace = %self.name, %error, "cannot look after the rules");
                    pause = (pause * 2).min(MAX_PAUSE);
                    sleep(pause).await;
                    continue;
                }
            }
            sleep(pause).await;
            let ended = tokio::select! {
                ended = drained(tables) => ended,
                ended = drained(routes) => ended,
            };
            if let Err(error) = ended {
                tracing::warn!(namespace = %self.name, %error, "event socket");
                sleep(MAX_PAUSE).await;
            }
            sleep(SETTLE).await;
        }
    }

    /// What was missing and has been laid again.
    async fn repair(&self) -> io::Result<Vec<String>> {
        let (layout, active) = (self.layout.clone(), self.active.clone());
        let looked = self.netns.enter(move || {
            let active = active.lock();
            if !*active {
                return Ok(Vec::new());
            }
            let missing = layout.missing()?;
            if !missing.is_empty() {
                layout.lay()?;
            }
            Ok::<_, NetlinkError>(missing)
        });
        looked.await?.map_err(io::Error::other)
    }
}

/// Waits for events and takes all that are there. Lost ones (ENOBUFS) are a reason to look like any other.
async fn drained(socket: &AsyncFd<OwnedFd>) -> io::Result<()> {
    let mut buffer = [0; 8192];
    loop {
        let mut ready = socket.readable().await?;
        let mut some = false;
        loop {
            match recv(socket.get_ref().as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT) {
                Ok(_) | Err(Errno::ENOBUFS) => some = true,
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => break,
                Err(errno) => return Err(errno.into()),
            }
        }
        ready.clear_ready();
        if some {
            return Ok(());
        }
    }
}
