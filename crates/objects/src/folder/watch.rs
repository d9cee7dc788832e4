//! One stream of events from a folder.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::mpsc as signals;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use futures_util::Stream;
use notify::event::{AccessKind, AccessMode, EventKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use super::FolderError;
use super::store::Store;
use crate::Event;
use crate::kinds::Kind;

/// A writer renames several files one after the other; what comes within this time is read together.
const QUIET: Duration = Duration::from_millis(2);
/// But nobody waits longer than this for a folder that never rests.
const PATIENCE: Duration = Duration::from_millis(20);

/// A stream of [`Event`]s; it ends only if the watching thread dies.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::UnboundedReceiver<Event>,
    signals: signals::Sender<Signal>,
}

/// What wakes the watching thread.
#[derive(Debug)]
enum Signal {
    Changed(Vec<PathBuf>),
    /// The kernel dropped notifications: look at everything.
    Lost,
    Stop,
}

impl Watch {
    pub(super) fn start(root: PathBuf, kinds: &[Kind]) -> Result<Self, FolderError> {
        let refuse = |path: &Path, error: &dyn std::fmt::Display| FolderError {
            path: path.to_owned(),
            message: error.to_string(),
        };
        fs::create_dir_all(&root).map_err(|error| refuse(&root, &error))?;
        // Notifications come with absolute paths.
        let root = root.canonicalize().map_err(|error| refuse(&root, &error))?;
        let (signal, woken) = signals::channel();
        let notified = signal.clone();
        let watcher = notify::recommended_watcher(move |event| {
            if let Some(signal) = signal_of(event) {
                // Fails only if the thread is gone already.
                let _ = notified.send(signal);
            }
        });
        let mut watcher = watcher.map_err(|error| refuse(&root, &error))?;
        // Proves now what would fail on the thread (inotify's limit of watches, for one).
        watcher.watch(&root, RecursiveMode::NonRecursive).map_err(|error| refuse(&root, &error))?;
        let (sender, events) = mpsc::unbounded_channel();
        let store = Store::new(root.clone(), kinds);
        let thread = Thread { root: root.clone(), store, watcher, woken, sender };
        let spawned = std::thread::Builder::new().name("manifests".to_owned()).spawn(move || thread.run());
        spawned.map_err(|error| refuse(&root, &error))?;
        Ok(Self { events, signals: signal })
    }

    /// The next event.
    pub async fn next(&mut self) -> Option<Event> {
        self.events.recv().await
    }

    /// The next event if one is ready.
    pub fn try_next(&mut self) -> Option<Event> {
        self.events.try_recv().ok()
    }
}

impl Stream for Watch {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        self.events.poll_recv(cx)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Fails only if the thread is gone already.
        let _ = self.signals.send(Signal::Stop);
    }
}

struct Thread {
    root: PathBuf,
    store: Store,
    watcher: RecommendedWatcher,
    woken: signals::Receiver<Signal>,
    sender: mpsc::UnboundedSender<Event>,
}

impl Thread {
    fn run(mut self) {
        self.look(&BTreeSet::from([self.root.clone()]));
        if self.sender.send(Event::Synced).is_err() {
            return;
        }
        while let Some(paths) = self.changed() {
            self.look(&paths);
        }
    }

    fn look(&mut self, paths: &BTreeSet<PathBuf>) {
        for path in paths {
            let watcher = &mut self.watcher;
            self.store.refresh(path, &mut |folder| {
                // A folder that vanished in between is no fault: its parent's notification is on the way.
                if let Err(error) = watcher.watch(folder, RecursiveMode::NonRecursive)
                    && folder.exists()
                {
                    tracing::error!("cannot watch {}: {error}", folder.display());
                }
            });
        }
        for event in self.store.changes() {
            // Fails only if the `Watch` is gone; then `Stop` is next.
            let _ = self.sender.send(event);
        }
    }

    /// Waits for changes and for them to calm down; `None` when it is time to end.
    fn changed(&mut self) -> Option<BTreeSet<PathBuf>> {
        let mut paths = BTreeSet::new();
        self.note(self.woken.recv().ok()?, &mut paths)?;
        let patience = Instant::now() + PATIENCE;
        while Instant::now() < patience {
            match self.woken.recv_timeout(QUIET) {
                Ok(signal) => self.note(signal, &mut paths)?,
                Err(signals::RecvTimeoutError::Timeout) => break,
                Err(signals::RecvTimeoutError::Disconnected) => return None,
            }
        }
        Some(paths)
    }

    fn note(&self, signal: Signal, paths: &mut BTreeSet<PathBuf>) -> Option<()> {
        match signal {
            Signal::Changed(changed) => paths.extend(changed),
            Signal::Lost => {
                paths.insert(self.root.clone());
            }
            Signal::Stop => return None,
        }
        Some(())
    }
}

/// What a notification means; `None` for reading, which is most of them and changes nothing.
fn signal_of(event: notify::Result<notify::Event>) -> Option<Signal> {
    match event {
        Ok(event) if event.need_rescan() => Some(Signal::Lost),
        Ok(event) => match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write)) => Some(Signal::Changed(event.paths)),
            EventKind::Access(_) => None,
            _ => Some(Signal::Changed(event.paths)),
        },
        Err(error) => {
            tracing::warn!("watching manifests: {error}; reading all of them again");
            Some(Signal::Lost)
        }
    }
}
