//! All followers of a watch as one stream, which works while it is polled.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use futures_util::stream::FuturesUnordered;
use futures_util::{Stream, StreamExt};
use tokio::sync::{mpsc, watch};

use super::Rest;
use super::crds;
use super::metrics::Freshness;
use super::reflect::{Objects, Step};
use crate::Event;
use crate::source::Selection;

/// So many events may lie ready before followers wait for the reader.
const READY: usize = 256;

/// A watch of an API server.
pub(super) struct Watched {
    followers: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>>,
    steps: mpsc::Receiver<Step>,
    /// Followers that have not told all that existed.
    listing: usize,
    synced: bool,
}

impl Watched {
    pub(super) fn new(rest: &Rest, freshness: &Arc<Freshness>, selections: Vec<Selection>) -> Self {
        let followers: FuturesUnordered<Pin<Box<dyn Future<Output = ()> + Send>>> = FuturesUnordered::new();
        let (sender, steps) = mpsc::channel(READY);
        let (names, crds) = watch::channel(None);
        let listing = selections.len();
        if selections.iter().any(|selection| selection.kind().optional()) {
            followers.push(Box::pin(crds::run(rest.clone(), Arc::clone(freshness), names)));
        }
        for selection in selections {
            let objects = Objects::new(selection, freshness, sender.clone());
            followers.push(Box::pin(objects.run(rest.clone(), crds.clone())));
        }
        Self { followers, steps, listing, synced: false }
    }
}

impl Stream for Watched {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        let mut worked = false;
        loop {
            if self.listing == 0 && !std::mem::replace(&mut self.synced, true) {
                return Poll::Ready(Some(Event::Synced));
            }
            match self.steps.poll_recv(cx) {
                Poll::Ready(Some(Step::Event(event))) => return Poll::Ready(Some(event)),
                Poll::Ready(Some(Step::Listed)) => self.listing -= 1,
                // Every follower has ended, which none does.
                Poll::Ready(None) => return Poll::Ready(None),
                // What the followers found wakes us, and so does the runtime if it is someone else's turn.
                Poll::Pending if worked => return Poll::Pending,
                Poll::Pending => worked = self.followers.poll_next_unpin(cx).is_pending(),
            }
        }
    }
}
