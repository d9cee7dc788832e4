//! A response that is written while the client reads it.
//!
//! What a response says is held as pointers to resources that all clients share; its bytes exist a piece at a time. So
//! the first answer to a client, which may have some megabytes, costs a piece of 16 KiB and no more.

use std::sync::Arc;

use aquifer_proto::xds::DeltaDiscoveryResponse;
use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::resource::wire::{Entry, field_len, put_field};
use crate::resource::{Delta, Resource, TypeSet, Walk};

/// A piece has at least this, unless it is the last: one HTTP/2 frame, one TLS record.
const PIECE: usize = 16 * 1024;

// Fields of DeltaDiscoveryResponse.
const TYPE_URL: u32 = 4;
const NONCE: u32 = 5;
const REMOVED: u32 = 6;

/// A response to one client.
#[derive(Clone, Debug)]
pub struct Answer {
    pub(super) type_url: Arc<str>,
    pub(super) nonce: String,
    pub(super) content: Content,
}

/// What it says.
#[derive(Clone, Debug)]
pub(super) enum Content {
    /// All there is.
    All(TypeSet),
    /// What all wildcard clients get.
    Shared(Arc<Delta>, Half),
    /// What this client alone gets.
    Own(Own),
}

/// Which half of a difference to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    Both,
    Upserts,
    Removals,
}

/// Resources for one client.
#[derive(Clone, Debug, Default)]
pub(super) struct Own {
    /// Under which name, and what.
    pub(super) upserts: Vec<(Arc<str>, Arc<Resource>)>,
    pub(super) removed: Vec<String>,
    pub(super) with_aliases: bool,
}

impl Own {
    pub(super) fn is_empty(&self) -> bool {
        self.upserts.is_empty() && self.removed.is_empty()
    }
}

impl Answer {
    /// Of which type its resources are.
    pub fn type_url(&self) -> &str {
        &self.type_url
    }

    /// By which the client acknowledges it.
    pub fn nonce(&self) -> &str {
        &self.nonce
    }

    /// Bytes of the message.
    pub fn encoded_len(&self) -> usize {
        self.upserts_len() + self.tail_len()
    }

    /// The message's bytes, a piece at a time.
    pub fn pieces(self) -> Pieces {
        Pieces::new(self)
    }

    /// The message as a whole.
    pub fn to_message(&self) -> DeltaDiscoveryResponse {
        let mut bytes = BytesMut::new();
        self.clone().pieces().for_each(|piece| bytes.extend_from_slice(&piece));
        // These are our own bytes: what doesn't decode is an empty message, which no test takes for the right one.
        DeltaDiscoveryResponse::decode(bytes).unwrap_or_default()
    }

    fn upserts_len(&self) -> usize {
        match &self.content {
            Content::All(set) => set.encoded_len(),
            Content::Shared(_, Half::Removals) => 0,
            Content::Shared(delta, _) => delta.upserts_len,
            Content::Own(own) => own.entries().map(|entry| entry.len()).sum(),
        }
    }

    fn tail_len(&self) -> usize {
        let removed: usize = self.removed().map(|name| field_len(REMOVED, name.len())).sum();
        field_len(TYPE_URL, self.type_url.len()) + field_len(NONCE, self.nonce.len()) + removed
    }

    fn put_tail(&self, buf: &mut BytesMut) {
        put_field(TYPE_URL, self.type_url.as_bytes(), buf);
        put_field(NONCE, self.nonce.as_bytes(), buf);
        self.removed().for_each(|name| put_field(REMOVED, name.as_bytes(), buf));
    }

    fn removed(&self) -> impl Iterator<Item = &str> {
        let (shared, own): (&[Arc<Resource>], &[String]) = match &self.content {
            Content::All(_) | Content::Shared(_, Half::Upserts) => (&[], &[]),
            Content::Shared(delta, _) => (&delta.removed, &[]),
            Content::Own(own) => (&[], &own.removed),
        };
        shared.iter().map(|r| &*r.name).chain(own.iter().map(String::as_str))
    }
}

impl Own {
    fn entry(&self, at: usize) -> Option<Entry<'_>> {
        let (name, resource) = self.upserts.get(at)?;
        Some(Entry { resource, name, with_aliases: self.with_aliases })
    }

    fn entries(&self) -> impl Iterator<Item = Entry<'_>> {
        (0..self.upserts.len()).filter_map(|at| self.entry(at))
    }
}

/// See [`Answer::pieces`].
#[derive(Debug)]
pub struct Pieces {
    answer: Answer,
    upserts: Upserts,
    /// What comes before the next of them.
    buf: BytesMut,
    done: bool,
}

#[derive(Debug)]
enum Upserts {
    Walk(Walk<Arc<Resource>>),
    /// Of the shared difference, or of the client's own: the next one.
    At(usize),
    /// Made before.
    Ready(Bytes),
}

impl Pieces {
    fn new(answer: Answer) -> Self {
        let upserts = match &answer.content {
            Content::All(set) => Upserts::Walk(set.walk()),
            Content::Shared(_, Half::Removals) => Upserts::Ready(Bytes::new()),
            Content::Shared(delta, _) => delta.encoded().cloned().map_or(Upserts::At(0), Upserts::Ready),
            Content::Own(_) => Upserts::At(0),
        };
        Self { answer, upserts, buf: BytesMut::new(), done: false }
    }

    /// With these bytes before the first piece.
    #[must_use]
    pub(super) fn after(mut self, prefix: &[u8]) -> Self {
        self.buf.extend_from_slice(prefix);
        self
    }

    /// Appends the next resource; says whether there was one.
    fn put_next(&mut self) -> bool {
        match (&mut self.upserts, &self.answer.content) {
            (Upserts::Walk(walk), _) => {
                let next = walk.next();
                next.inspect(|r| Entry::plain(r).put(&mut self.buf)).is_some()
            }
            (Upserts::At(at), Content::Shared(delta, _)) => {
                let next = delta.upserts.get(*at).map(|r| Entry::plain(r).put(&mut self.buf));
                *at += 1;
                next.is_some()
            }
            (Upserts::At(at), Content::Own(own)) => {
                let next = own.entry(*at).map(|entry| entry.put(&mut self.buf));
                *at += 1;
                next.is_some()
            }
            (Upserts::At(_), Content::All(_)) => false,
            (Upserts::Ready(bytes), _) => {
                let next = bytes.split_to(bytes.len().min(PIECE));
                self.buf.put_slice(&next);
                !next.is_empty()
            }
        }
    }
}

impl Iterator for Pieces {
    type Item = Bytes;

    fn next(&mut self) -> Option<Bytes> {
        if self.done {
            return None;
        }
        let left = self.answer.encoded_len().min(2 * PIECE);
        self.buf.reserve(left);
        while self.buf.len() < PIECE {
            if !self.put_next() {
                self.done = true;
                self.answer.put_tail(&mut self.buf);
                break;
            }
        }
        Some(std::mem::take(&mut self.buf).freeze())
    }
}

#[cfg(test)]
mod tests {
    use aquifer_proto::type_url::ADDRESS;

    use super::*;
    use crate::resource::ResourceSet;

    fn set(count: u32, body: u8) -> ResourceSet {
        let mut set = ResourceSet::of_types([ADDRESS]);
        for n in 0..count {
            set.upsert(Resource::from_bytes(ADDRESS, format!("name{n}"), vec![body; n as usize % 3000]));
        }
        set
    }

    fn answer(content: Content) -> Answer {
        Answer { type_url: ADDRESS.into(), nonce: "7".to_owned(), content }
    }

    /// Comes whole, in pieces of bounded size, of the length that was told.
    fn check(answer: &Answer, upserts: usize, removed: usize) {
        let pieces: Vec<Bytes> = answer.clone().pieces().collect();
        assert_eq!(pieces.iter().map(Bytes::len).sum::<usize>(), answer.encoded_len());
        let largest = pieces.iter().map(Bytes::len).max().unwrap();
        assert!(largest < PIECE + 4096 + 20 * removed, "{largest}");
        let message = answer.to_message();
        assert_eq!((message.resources.len(), message.removed_resources.len()), (upserts, removed));
        assert_eq!((message.type_url.as_str(), message.nonce.as_str()), (ADDRESS, "7"));
    }

    #[test]
    fn every_kind_is_written_in_pieces() {
        let (small, large) = (set(3, 1), set(1000, 1));
        let all = |set: &ResourceSet| set.of_type(ADDRESS).unwrap().clone();
        check(&answer(Content::All(all(&small))), 3, 0);
        check(&answer(Content::All(all(&large))), 1000, 0);
        for count in [10, 1000] {
            let (older, mut newer) = (set(count + 5, 1), set(count, 2));
            newer.upsert(Resource::from_bytes(ADDRESS, "more", vec![3]));
            let delta = all(&newer).since(&all(&older));
            // One without a body is equal in both; the last five are gone, and one is new.
            let upserts = (0..count).filter(|n| n % 3000 != 0).count() + 1;
            check(&answer(Content::Shared(delta.clone(), Half::Both)), upserts, 5);
            check(&answer(Content::Shared(delta.clone(), Half::Upserts)), upserts, 0);
            check(&answer(Content::Shared(delta.clone(), Half::Removals)), 0, 5);
            assert_eq!(delta.encoded().is_some(), count == 10);
            let upserts = all(&newer).iter().map(|r| ("other".into(), r.clone())).collect();
            let own = Own { upserts, removed: vec!["x".into()], with_aliases: true };
            check(&answer(Content::Own(own)), count as usize + 1, 1);
        }
    }
}
