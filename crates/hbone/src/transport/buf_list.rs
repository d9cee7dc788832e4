use bytes::{Buf, Bytes};
use std::collections::VecDeque;
use std::io::IoSlice;

/// A queue of byte chunks that reads as one [`Buf`], so that many frames leave in one vectored write.
#[derive(Default)]
pub struct BufList {
    bufs: VecDeque<Bytes>,
    len: usize,
}

impl BufList {
    /// An empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends a chunk; an empty one is dropped.
    pub fn push(&mut self, bytes: Bytes) {
        if !bytes.is_empty() {
            self.len += bytes.len();
            self.bufs.push_back(bytes);
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
        self.bufs.len()
    }

    /// Takes at most `max` bytes off the front, without copying and from one chunk only.
    pub fn take_front(&mut self, max: usize) -> Bytes {
        let Some(front) = self.bufs.front_mut() else {
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
        self.bufs.front().map_or(&[], |b| b.as_ref())
    }

    fn chunks_vectored<'a>(&'a self, dst: &mut [IoSlice<'a>]) -> usize {
        let mut n = 0;
        for (slot, buf) in dst.iter_mut().zip(&self.bufs) {
            *slot = IoSlice::new(buf);
            n += 1;
        }
        n
    }

    fn advance(&mut self, mut n: usize) {
        assert!(n <= self.len, "advance past the end of a BufList");
        self.len -= n;
        while n > 0 {
            let front = self.bufs.front_mut().expect("len counts the bytes of all chunks");
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
        assert_eq!((l.len(), l.chunks()), (6, 3));
        l.advance(4);
        assert_eq!(l.chunk(), b"e");
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
        assert_eq!((&*dst[0], &*dst[1]), (&b"ab"[..], &b"c"[..]));
    }
}
