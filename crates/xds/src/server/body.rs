//! The server's half of a stream: answers, written piece by piece as the client takes them.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};

use bytes::Bytes;
use http::HeaderMap;
use http_body::Frame;
use tokio::sync::mpsc;
use tonic::Status;

use super::answer::{Answer, Pieces};

/// What the stream's task sends: the next answer, or why there is none any more.
pub(super) type Item = Result<Answer, Status>;

/// How far the client is, for the task.
#[derive(Debug, Default)]
pub(super) struct Progress {
    pieces: AtomicU64,
    given_up: AtomicBool,
}

impl Progress {
    /// Pieces that it took.
    pub(super) fn pieces(&self) -> u64 {
        self.pieces.load(Ordering::Relaxed)
    }

    /// What it hasn't taken it needn't take.
    pub(super) fn give_up(&self) {
        self.given_up.store(true, Ordering::Relaxed);
    }
}

/// An HTTP body.
pub(super) struct ResponseBody {
    answers: mpsc::Receiver<Item>,
    current: Option<Pieces>,
    progress: Arc<Progress>,
    ended: bool,
}

impl ResponseBody {
    pub(super) fn new(answers: mpsc::Receiver<Item>, progress: Arc<Progress>) -> Self {
        Self { answers, current: None, progress, ended: false }
    }

    fn end(&mut self, status: &Status) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        self.ended = true;
        self.current = None;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(status.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }
}

impl http_body::Body for ResponseBody {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if this.progress.given_up.load(Ordering::Relaxed) {
            return this.end(&Status::deadline_exceeded("nothing was read for too long"));
        }
        loop {
            if let Some(piece) = this.current.as_mut().and_then(Iterator::next) {
                this.progress.pieces.fetch_add(1, Ordering::Relaxed);
                return Poll::Ready(Some(Ok(Frame::data(piece))));
            }
            this.current = None;
            match std::task::ready!(this.answers.poll_recv(cx)) {
                Some(Ok(answer)) => this.current = Some(framed(answer)),
                Some(Err(status)) => return this.end(&status),
                None => return this.end(&Status::ok("")),
            }
        }
    }
}

/// With gRPC's five bytes in front: not compressed, and the length.
fn framed(answer: Answer) -> Pieces {
    let mut header = [0; 5];
    // A set of 4 GiB would be refused by every client long before.
    let length = u32::try_from(answer.encoded_len()).unwrap_or(u32::MAX);
    header[1..].copy_from_slice(&length.to_be_bytes());
    answer.pieces().after(&header)
}
