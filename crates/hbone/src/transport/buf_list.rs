use aquifer_runtime::OwnThread;
use bytes::{Buf, Bytes, BytesMut};
use std::collections::VecDeque;
use std::io::IoSlice;

/// A queue of byte chunks that reads as one [`Buf`], so that many frames leave in one vectored write.
///
/// Small chunks that have to wait behind others are copied together: each would keep the buffer alive that it was
/// received into.
#[derive(Default)]
pub struct BufList {
    bufs: VecDeque<Bytes>,
    /// The end of the list.
    small: BytesMut,
    len: usize,
    _own: OwnThread,
}

/// Chunks below this are copied if they have to wait.
const SMALL: usize = 1 << 10;
/// Copied chunks come in pieces of this size.
const PIECE: usize = 16 << 10;

impl BufList {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a chunk; an empty one is dropped.
    pub fn push(&mut self, bytes: Bytes) {
        self.len += bytes.len();
        if bytes.len() < SMALL && self.len > bytes.len() {
            self.small.extend_from_slice(&bytes);
            if self.small.len() >= PIECE {
                self.close_small();
            }
        } else if !bytes.is_empty() {
            self.close_small();
            self.bufs.push_back(bytes);
        }
    }

    fn close_small(&mut self) {
        if !self.small.is_empty() {
            self.bufs.push_back(self.small.split().freeze());
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
        self.bufs.len() + usize::from(!self.small.is_empty())
    }

    /// The first chunk, which is never among the small ones unless there is no other.
    fn front(&mut self) -> Option<&mut Bytes> {
        if self.bufs.is_empty() {
            self.close_small();
        }
        self.bufs.front_mut()
    }

    /// Takes at most `max` bytes off the front, without copying and from one chunk only.
    pub fn take_front(&mut self, max: usize) -> Bytes {
        let Some(front) = self.front() else {
            return Bytes::new();
        };
        let taken = if front.len() <= max { self.bufs.pop_front().unwrap_or_default() } else { front.split_to(max) };
        self.len -= taken.len();
        taken
    }
}

impl Buf for BufList {
    fn remaining(&self) -> usize {
        self.len
    }

    fn chunk(&self) -> &[u8] {
        self.bufs.front().map_or(&self.small, |b| b.as_ref())
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        let mut n = 0;
        let small = Some(&self.small[..]).filter(|small| !small.is_empty());
        for (slot, buf) in dst.iter_mut().zip(self.bufs.iter().map(|b| &b[..]).chain(small)) {
            *slot = IoSlice::new(buf);
            n += 1;
        }
        n
    }

    fn advance(&mut self, mut n: usize) {
        assert!(n <= self.len, "advance past the end of a BufList");
        self.len -= n;
        while n > 0 {
            let front = self.front().expect("len counts the bytes of all chunks");
            if front.len() > n {
                front.advance(n);
                return;
            }
            n -= front.len();
            self.bufs.pop_front();
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
    fn ten_thousand_single_bytes_are_few_chunks() {
        let mut l = BufList::new();
        (0..40_000).for_each(|_| l.push(Bytes::from_static(b"x")));
        assert_eq!((l.len(), l.chunks()), (40_000, 4));
    }
}
