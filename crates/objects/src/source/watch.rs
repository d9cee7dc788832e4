//! One stream of events, wherever they come from.

use std::collections::HashSet;
use std::fmt;
use std::pin::Pin;
use std::task::{Context, Poll};

use futures_util::{FutureExt, Stream, StreamExt};

use super::Selection;
use crate::kinds::ObjectKey;
use crate::{Event, folder};

/// A stream of [`Event`]s; it ends only if what feeds it died.
pub struct Watch(Inner);

enum Inner {
    Folder { watch: folder::Watch, filter: Option<Filter> },
    Stream(Pin<Box<dyn Stream<Item = Event> + Send>>),
}

impl Watch {
    /// A watch whose events come from `stream`: a test's script, or a load's generator.
    pub fn of_stream(stream: impl Stream<Item = Event> + Send + 'static) -> Self {
        Self(Inner::Stream(Box::pin(stream)))
    }

    pub(super) fn of_folder(watch: folder::Watch, selections: Vec<Selection>) -> Self {
        let narrow = selections.iter().any(|selection| *selection != Selection::from(selection.kind));
        let filter = narrow.then(|| Filter { selections, sent: HashSet::new() });
        Self(Inner::Folder { watch, filter })
    }

    /// The next event. May be dropped and called again without losing one.
    pub async fn next(&mut self) -> Option<Event> {
        StreamExt::next(self).await
    }

    /// The next event if one is ready.
    pub fn try_next(&mut self) -> Option<Event> {
        StreamExt::next(self).now_or_never().flatten()
    }
}

impl Stream for Watch {
    type Item = Event;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Event>> {
        match &mut self.0 {
            Inner::Stream(stream) => stream.as_mut().poll_next(cx),
            Inner::Folder { watch, filter } => loop {
                let event = std::task::ready!(Pin::new(&mut *watch).poll_next(cx));
                let passed = match (event, filter.as_mut()) {
                    (Some(event), Some(filter)) => filter.pass(event),
                    (event, _) => return Poll::Ready(event),
                };
                if passed.is_some() {
                    return Poll::Ready(passed);
                }
            },
        }
    }
}

impl fmt::Debug for Watch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Watch").finish_non_exhaustive()
    }
}

/// What a folder cannot leave out by itself. An object that is selected no longer is one that is gone.
struct Filter {
    selections: Vec<Selection>,
    sent: HashSet<ObjectKey>,
}

impl Filter {
    fn pass(&mut self, event: Event) -> Option<Event> {
        match event {
            Event::Applied(object) if self.selections.iter().any(|selection| selection.matches(&object)) => {
                self.sent.insert(object.key());
                Some(Event::Applied(object))
            }
            Event::Applied(object) => {
                let key = object.key();
                self.sent.remove(&key).then_some(Event::Deleted(key))
            }
            Event::Deleted(key) => self.sent.remove(&key).then_some(Event::Deleted(key)),
            Event::Synced => Some(Event::Synced),
        }
    }
}
