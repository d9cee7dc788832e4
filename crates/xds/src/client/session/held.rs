//! Names and versions of what is held, kept for the day the stream breaks: read seldom, and as many as there are
//! workloads. So they are packed: sorted, each name without what it shares with the one before, some dozens to a piece.

use std::collections::BTreeMap;

/// How many entries a piece has at most. A change rewrites the pieces that it falls into.
const PIECE: usize = 64;
/// A piece with fewer is joined to the next.
const FEW: usize = PIECE / 4;

/// Name to version, in the order of names.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Held {
    /// In order, none empty.
    pieces: Vec<Piece>,
}

/// Each entry: length of what is shared with the name before, rest of the name, version. Versions are mostly hashes: of
/// hexadecimal digits two make a byte.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Piece(Box<[u8]>);

impl Held {
    /// The version of this name.
    pub fn get(&self, name: &str) -> Option<String> {
        let piece = self.pieces.get(self.piece_of(name))?;
        piece.entries().find(|(held, _)| held == name).map(|(_, version)| version)
    }

    /// All names with their versions.
    pub fn iter(&self) -> impl Iterator<Item = (String, String)> {
        self.pieces.iter().flat_map(Piece::entries)
    }

    /// Makes these changes, one after the other: a new version, or none.
    pub(super) fn change(&mut self, changes: impl IntoIterator<Item = (String, Option<String>)>) {
        let mut changes = BTreeMap::from_iter(changes).into_iter().peekable();
        while let Some((name, _)) = changes.peek() {
            let at = self.piece_of(name);
            let next = self.pieces.get(at + 1).and_then(|piece| piece.entries().next());
            let mut entries: BTreeMap<_, _> = self.pieces.get(at).into_iter().flat_map(Piece::entries).collect();
            let here = |(name, _): &(String, _)| next.as_ref().is_none_or(|(first, _)| name < first);
            while let Some((name, version)) = changes.next_if(here) {
                match version {
                    Some(version) => drop(entries.insert(name, version)),
                    None => drop(entries.remove(&name)),
                }
            }
            let mut end = self.pieces.len().min(at + 1);
            if entries.len() < FEW && next.is_some() {
                entries.extend(self.pieces[end].entries());
                end += 1;
            }
            self.pieces.splice(at..end, pieces(&entries));
        }
    }

    /// The piece where this name is, or would be.
    fn piece_of(&self, name: &str) -> usize {
        self.pieces.partition_point(|piece| piece.first() <= name.as_bytes()).saturating_sub(1)
    }
}

/// Packs entries into pieces of like size.
fn pieces(entries: &BTreeMap<String, String>) -> Vec<Piece> {
    let each = entries.len().div_ceil(entries.len().div_ceil(PIECE).max(1));
    let mut entries = entries.iter().peekable();
    let mut pieces = Vec::new();
    while entries.peek().is_some() {
        let (mut bytes, mut before) = (Vec::new(), "");
        for (name, version) in entries.by_ref().take(each) {
            let shared = before.bytes().zip(name.bytes()).take_while(|(a, b)| a == b).count();
            put(&mut bytes, shared);
            let rest = &name.as_bytes()[shared..];
            put(&mut bytes, rest.len());
            bytes.extend_from_slice(rest);
            put_version(&mut bytes, version);
            before = name;
        }
        pieces.push(Piece(bytes.into()));
    }
    pieces
}

impl Piece {
    /// Its first name, which shares nothing.
    fn first(&self) -> &[u8] {
        let mut rest = &self.0[..];
        take(&mut rest);
        part(&mut rest)
    }

    fn entries(&self) -> impl Iterator<Item = (String, String)> {
        let (mut rest, mut name) = (&self.0[..], Vec::new());
        std::iter::from_fn(move || {
            if rest.is_empty() {
                return None;
            }
            name.truncate(take(&mut rest));
            name.extend_from_slice(part(&mut rest));
            Some((text(&name), take_version(&mut rest)))
        })
    }
}

/// Seven bits a byte, the least first; the eighth says that more follow.
fn put(bytes: &mut Vec<u8>, mut number: usize) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(bytes: &mut &[u8]) -> usize {
    let (mut number, mut shift) = (0, 0);
    while let Some((byte, rest)) = bytes.split_first() {
        *bytes = rest;
        number |= usize::from(byte & 0x7f) << shift;
        shift += 7;
        if byte & 0x80 == 0 {
            break;
        }
    }
    number
}

/// Twice the length, one more if it is packed, and the bytes.
fn put_version(bytes: &mut Vec<u8>, version: &str) {
    let digits = version.as_bytes();
    let packed = digits.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
    put(bytes, 2 * digits.len() + usize::from(packed));
    if packed {
        let value = |digit: Option<&u8>| digit.and_then(|byte| char::from(*byte).to_digit(16)).unwrap_or(0) as u8;
        bytes.extend(digits.chunks(2).map(|pair| value(pair.first()) << 4 | value(pair.get(1))));
    } else {
        bytes.extend_from_slice(digits);
    }
}

fn take_version(bytes: &mut &[u8]) -> String {
    let length = take(bytes);
    let (length, packed) = (length / 2, length % 2 == 1);
    let (version, rest) = bytes.split_at(if packed { length.div_ceil(2) } else { length });
    *bytes = rest;
    if !packed {
        return text(version);
    }
    let digits = version.iter().flat_map(|byte| [byte >> 4, byte & 0xf]);
    digits.take(length).filter_map(|digit| char::from_digit(digit.into(), 16)).collect()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// A length and so many bytes.
fn part<'a>(bytes: &mut &'a [u8]) -> &'a [u8] {
    let length = take(bytes);
    let (part, rest) = bytes.split_at(length);
    *bytes = rest;
    part
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn names_that_are_alike_cost_few_bytes() {
        let mut held = Held::default();
        let name = |n: u32| format!("Kubernetes//Pod/namespace-{}/application-{}-5d8f7c9b6-{n:05x}", n / 100, n / 10);
        held.change(
            (0..10_000).map(|n| (name(n), Some(format!("{:x}", u64::from(n + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15))))),
        );
        let bytes: usize = held.pieces.iter().map(|piece| piece.0.len() + size_of::<Piece>()).sum();
        assert!(bytes <= 40 * 10_000, "{} bytes each", bytes / 10_000);
        assert!(held.pieces.len() < 2 * 10_000 / PIECE, "{} pieces", held.pieces.len());
        held.change((0..10_000).filter(|n| n % 100 != 0).map(|n| (name(n), None)));
        assert!(held.iter().count() == 100 && held.pieces.len() <= 100 / FEW + 1, "{} pieces", held.pieces.len());
    }

    proptest! {
        #[test]
        fn is_a_map(
            steps in proptest::collection::vec(
                proptest::collection::vec(("[ab/é]{0,4}", proptest::option::of("[0-9]{0,200}|[0-9a-f]{0,17}|[0-9A-G]{0,17}|é")), 0..150), 0..12,
            ),
        ) {
            let (mut held, mut model) = (Held::default(), BTreeMap::new());
            for step in steps {
                held.change(step.clone());
                for (name, version) in step {
                    match version {
                        Some(version) => drop(model.insert(name, version)),
                        None => drop(model.remove(&name)),
                    }
                }
                let all: Vec<_> = held.iter().collect();
                prop_assert_eq!(all, Vec::from_iter(model.clone()));
                prop_assert!(held.pieces.iter().all(|piece| (1..=PIECE).contains(&piece.entries().count())));
            }
            for name in ["", "a", "b/", "é", "ab"] {
                prop_assert_eq!(held.get(name), model.get(name).cloned());
            }
        }
    }
}
