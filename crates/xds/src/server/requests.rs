//! Requests out of a gRPC stream, with a bound on what all clients together may have under way.

use std::fmt;
use std::pin::Pin;
use std::sync::Arc;

use aquifer_proto::xds::DeltaDiscoveryRequest;
use bytes::{Buf, BytesMut};
use http_body::Body;
use prost::Message;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Instant;
use tonic::Status;

/// A request of more than this waits until few others of its kind are being read. The rest of it stays with the client:
/// after a restart every client comes back with the names of all that it holds.
const LARGE: usize = 64 * 1024;

/// How many large ones are read and answered at a time.
const LARGE_AT_ONCE: usize = 4;

/// Places for large requests, shared by all streams.
#[derive(Clone, Debug)]
pub(super) struct LargeRequests(Arc<Semaphore>);

impl Default for LargeRequests {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LARGE_AT_ONCE)))
    }
}

/// A request, and its place if it is a large one.
pub(super) struct Received {
    pub(super) request: DeltaDiscoveryRequest,
    pub(super) _place: Option<OwnedSemaphorePermit>,
}

/// The client's half of a stream.
pub(super) struct Requests<B> {
    body: Pin<Box<B>>,
    buf: BytesMut,
    large: LargeRequests,
    place: Option<OwnedSemaphorePermit>,
    since: Option<Instant>,
}

/// A message begins with a flag (compressed or not) and its length.
const HEADER: usize = 5;

impl<B> Requests<B>
where
    B: Body,
    B::Error: fmt::Display,
{
    pub(super) fn new(body: B, large: LargeRequests) -> Self {
        Self { body: Box::pin(body), buf: BytesMut::new(), large, place: None, since: None }
    }

    /// The next one of at most that many bytes; `None` at the end. May be dropped and called again at any time.
    pub(super) async fn next(&mut self, limit: usize) -> Result<Option<Received>, Status> {
        loop {
            if let Some(length) = self.length(limit)? {
                if self.buf.len() - HEADER >= length {
                    return self.take(length).map(Some);
                }
                if length > LARGE && self.place.is_none() {
                    let place = Arc::clone(&self.large.0).acquire_owned().await;
                    self.place = Some(place.map_err(|_| Status::unavailable("shutting down"))?);
                    self.since = Some(Instant::now());
                }
            }
            let frame = std::future::poll_fn(|cx| self.body.as_mut().poll_frame(cx)).await;
            match frame {
                Some(Ok(frame)) => {
                    if let Ok(mut data) = frame.into_data() {
                        // What isn't contiguous is put in piece by piece.
                        while data.has_remaining() {
                            let chunk = data.chunk();
                            let length = chunk.len();
                            self.buf.extend_from_slice(chunk);
                            data.advance(length);
                        }
                    }
                }
                Some(Err(error)) => return Err(Status::cancelled(error.to_string())),
                None if self.buf.is_empty() => return Ok(None),
                None => return Err(Status::internal("the stream ended within a message")),
            }
        }
    }

    /// Since when a place has been taken for a large one that is still being sent.
    pub(super) fn large_since(&self) -> Option<Instant> {
        self.since
    }

    /// The length of the message at the front, once its header is there.
    fn length(&self, limit: usize) -> Result<Option<usize>, Status> {
        let Some(&[flag, a, b, c, d]) = self.buf.get(..HEADER) else {
            return Ok(None);
        };
        if flag != 0 {
            return Err(Status::unimplemented("compressed requests are not taken"));
        }
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        if length > limit {
            let text = format!("the request is larger than what is taken: {length} bytes, at most {limit}");
            return Err(Status::resource_exhausted(text));
        }
        Ok(Some(length))
    }

    fn take(&mut self, length: usize) -> Result<Received, Status> {
        self.buf.advance(HEADER);
        let bytes = self.buf.split_to(length);
        let request = DeltaDiscoveryRequest::decode(bytes);
        if self.buf.is_empty() {
            self.buf = BytesMut::new(); // A large one's buffer must not stay.
        }
        self.since = None;
        let request = request.map_err(|error| Status::invalid_argument(format!("no discovery request: {error}")))?;
        Ok(Received { request, _place: self.place.take() })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::VecDeque;
    use std::convert::Infallible;
    use std::task::{Context, Poll};

    use bytes::{BufMut, Bytes};
    use futures_util::FutureExt;
    use http_body::Frame;

    use super::*;

    /// Gives these pieces, then nothing more, or the end.
    struct Fed(VecDeque<Bytes>, bool);

    impl Body for Fed {
        type Data = Bytes;
        type Error = Infallible;

        fn poll_frame(
            mut self: Pin<&mut Self>,
            _cx: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
            match self.0.pop_front() {
                Some(piece) => Poll::Ready(Some(Ok(Frame::data(piece)))),
                None if self.1 => Poll::Ready(None),
                None => Poll::Pending,
            }
        }
    }

    fn framed(request: &DeltaDiscoveryRequest) -> Vec<u8> {
        let message = request.encode_to_vec();
        let mut bytes = vec![0];
        bytes.put_u32(message.len() as u32);
        bytes.extend(message);
        bytes
    }

    fn named(name: &str) -> DeltaDiscoveryRequest {
        DeltaDiscoveryRequest { type_url: name.to_owned(), ..Default::default() }
    }

    fn fed(bytes: &[u8], piece: usize, ends: bool) -> Requests<Fed> {
        let pieces = bytes.chunks(piece).map(Bytes::copy_from_slice).collect();
        Requests::new(Fed(pieces, ends), LargeRequests::default())
    }

    #[test]
    fn messages_are_read_however_they_are_cut() {
        let bytes: Vec<u8> = ["a", "", "ccc"].iter().flat_map(|name| framed(&named(name))).collect();
        for piece in 1..bytes.len() {
            let mut requests = fed(&bytes, piece, true);
            for name in ["a", "", "ccc"] {
                let received = requests.next(100).now_or_never().unwrap().unwrap().unwrap();
                assert_eq!(received.request.type_url, name);
            }
            assert!(requests.next(100).now_or_never().unwrap().unwrap().is_none());
        }
    }

    #[test]
    fn what_is_no_request_ends_the_stream_with_a_reason() {
        use tonic::Code;
        let long = framed(&named(&"x".repeat(200)));
        let mut compressed = framed(&named("x"));
        compressed[0] = 1;
        let table = [
            (long.clone(), Code::ResourceExhausted),
            (compressed, Code::Unimplemented),
            (vec![0, 0, 0, 0, 2, 0xff, 0xff], Code::InvalidArgument),
            (framed(&named("abc"))[..6].to_vec(), Code::Internal),
        ];
        for (bytes, code) in table {
            let Some(Err(status)) = fed(&bytes, 1000, true).next(100).now_or_never() else { panic!("no error") };
            assert_eq!(status.code(), code, "{}", status.message());
        }
    }

    #[test]
    fn few_large_requests_are_read_at_a_time() {
        let large = framed(&named(&"x".repeat(2 * LARGE)));
        let places = LargeRequests::default();
        let mut all: Vec<Requests<Fed>> = (0..LARGE_AT_ONCE + 1)
            .map(|_| {
                let pieces = large.chunks(LARGE).map(Bytes::copy_from_slice).collect();
                Requests::new(Fed(pieces, false), places.clone())
            })
            .collect();
        let mut read = |at: usize| all[at].next(usize::MAX).now_or_never();
        let first: Vec<_> = (0..LARGE_AT_ONCE).map(|at| read(at).unwrap().unwrap().unwrap()).collect();
        assert!(read(LARGE_AT_ONCE).is_none(), "it waits for a place");
        drop(first);
        assert!(read(LARGE_AT_ONCE).is_some());
    }
}
