use aquifer_runtime::OwnThread;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// A queue of byte chunks that reads as one [`Buf`], so that many frames leave in one vectored write.
///
/// Small chunks that have to wait behind others are copied together: each would keep the buffer alive that it was
/// received into. A chunk alone needs no memory beside its own.
#[derive(Default)]
pub struct BufList {
    /// Empty only if all is.
    first: Bytes,
    /// What comes behind it.
    more: Option<Box<More>>,
    len: usize,
    _own: OwnThread,
}

#[derive(Default)]
struct More {
    bufs: VecDeque<Bytes>,
    /// The end of the list.
    small: BytesMut,
}

/// Chunks below this are copied if they have to wait.
const SMALL: usize = 1 << 10;
/// Copied chunks come in pieces of this size.
const PIECE: usize = 16 << 10;

impl More {
    fn push(&mut self, bytes: Bytes) {
        if bytes.len() < SMALL {
            self.small.extend_from_slice(&bytes);
            if self.small.len() >= PIECE {
                self.close_small();
            }
        } else {
            self.close_small();
            self.bufs.push_back(bytes);
        }
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.bufs.push_back(self.small.split().freeze());
        }
    }

    fn pop(&mut self) -> Bytes {
        match self.bufs.pop_front() {
            Some(next) => next,
            // What is split off, be it empty, keeps the whole buffer alive.
            None if self.small.is_empty() => Bytes::new(),
            None => self.small.split().freeze(),
        }
    }

    fn chunks(&self) -> usize {
        self.bufs.len() + usize::from(!self.small.is_empty())
    }
}

impl BufList {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a chunk; an empty one is dropped.
    pub fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if self.first.is_empty() {
            self.first = bytes;
        } else if !bytes.is_empty() {
            self.more.get_or_insert_default().push(bytes);
        }
    }

    /// Bytes in all chunks.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Number of chunks.
    pub fn chunks(&self) -> usize {
        usize::from(self.len > 0) + self.more.as_ref().map_or(0, |more| more.chunks())
    }

    /// Gives back the memory of an empty list.
    pub(crate) fn release(&mut self) {
        if self.len == 0 {
            self.more = None;
        }
    }

    fn pop(&mut self) -> Bytes {
        let next = self.more.as_mut().map_or_else(Bytes::new, |more| more.pop());
        std::mem::replace(&mut self.first, next)
    }

    /// Takes at most `max` bytes off the front, without copying and from one chunk only.
    pub fn take_front(&mut self, max: usize) -> Bytes {
        let taken = if self.first.len() <= max { self.pop() } else { self.first.split_to(max) };
        self.len -= taken.len();
        taken
    }
}

impl Buf for BufList {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        &self.first
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        let mut n = 0;
        let more = self.more.iter().flat_map(|more| more.bufs.iter().map(|b| &b[..]).chain([&more.small[..]]));
        let chunks = [&self.first[..]].into_iter().chain(more).filter(|chunk| !chunk.is_empty());
        for (slot, buf) in dst.iter_mut().zip(chunks) {
            *slot = IoSlice::new(buf);
            n += 1;
        }
        n
    }

    fn advance(&mut self, mut n: usize) {
        assert!(n <= self.len, "advance past the end of a BufList");
        self.len -= n;
        while n > 0 {
            if self.first.len() > n {
                return self.first.advance(n);
            }
            n -= self.pop().len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn list(parts: &[&'static str]) -> BufList {
        let mut l = BufList::new();
        for p in parts {
            l.push(Bytes::from_static(p.as_bytes()));
        }
        l
    }

    #[test]
    fn advance_crosses_chunks() {
        let mut l = list(&["abc", "", "de", "f"]);
        assert_eq!((l.len(), l.chunks()), (6, 2), "those that wait are copied together");
        l.advance(4);
        assert_eq!(l.chunk(), b"ef");
        l.advance(2);
        assert!(l.is_empty());
        assert_eq!(l.chunk(), b"");
    }

    #[test]
    fn take_front_stays_in_one_chunk() {
        let mut l = list(&["abcd", "ef"]);
        assert_eq!(l.take_front(3), "abc");
        assert_eq!(l.take_front(3), "d");
        assert_eq!(l.take_front(3), "ef");
        assert_eq!(l.take_front(3), "");
        assert_eq!(l.len(), 0);
    }

    #[test]
    fn vectored_view_shows_the_chunks() {
        let l = list(&["ab", "c", "d"]);
        let mut dst = [IoSlice::new(&[]); 2];
        assert_eq!(l.chunks_vectored(&mut dst), 2);
        assert_eq!((&*dst[0], &*dst[1]), (&b"ab"[..], &b"cd"[..]));
    }

    proptest::proptest! {
        /// Whatever is pushed and taken in whatever pieces: the bytes come out in order, and small chunks don't pile up.
        #[test]
        fn reads_as_one(ops in proptest::collection::vec((0..5000_usize, 0..9000_usize, 0..3), 1..60)) {
            let (mut list, mut model, mut next) = (BufList::new(), VecDeque::new(), 0_u8);
            for (push, take, how) in ops {
                let chunk: Vec<u8> = (0..push / 4).map(|_| { next = next.wrapping_add(7); next }).collect();
                model.extend(&chunk);
                list.push(chunk.into());
                let took = match how {
                    0 => list.take_front(take).to_vec(),
                    1 => {
                        let mut dst = [IoSlice::new(&[]); 4];
                        let n = list.chunks_vectored(&mut dst);
                        let all: Vec<u8> = dst[..n].iter().flat_map(|s| s.to_vec()).take(take).collect();
                        list.advance(all.len());
                        all
                    }
                    _ => {
                        let some: Vec<u8> = list.chunk().iter().copied().take(take).collect();
                        list.advance(some.len());
                        some
                    }
                };
                proptest::prop_assert_eq!(took.clone(), model.drain(..took.len()).collect::<Vec<u8>>());
                proptest::prop_assert_eq!(list.len(), model.len());
                proptest::prop_assert_eq!(list.is_empty(), list.chunk().is_empty());
            }
        }
    }

    #[test]
    fn an_empty_list_gives_its_memory_back() {
        let mut l = list(&["ab", "c"]);
        l.release();
        assert_eq!(l.len(), 3, "what waits stays");
        l.advance(3);
        l.release();
        assert!(l.more.is_none() && l.is_empty());
        assert!(!l.first.is_unique(), "an empty rest holds a buffer");
        l.push(Bytes::from_static(b"alone"));
        assert!(l.more.is_none());
    }

    #[test]
    fn ten_thousand_single_bytes_are_few_chunks() {
        let mut l = BufList::new();
        (0..40_000).for_each(|_| l.push(Bytes::from_static(b"x")));
        assert_eq!((l.len(), l.chunks()), (40_000, 4));
    }
}
