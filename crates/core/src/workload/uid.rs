//! Names of workloads: the names of replicas differ in their last few characters, so the rest is held once.

use std::{
    cmp::Ordering,
    fmt,
    hash::{Hash, Hasher},
    sync::Arc,
};

use crate::intern::intern;

/// A workload's name among all resources, for example `Kubernetes//Pod/shop/web-1`.
#[derive(Clone)]
pub struct Uid {
    /// Up to the last hyphen or slash, shared with all that begin so.
    stem: Arc<str>,
    tail: Tail,
}

/// A text in two parts, of which either may be empty. Compares as the text of both, wherever it is parted.
#[derive(Clone, Copy)]
pub struct Text<'a> {
    stem: &'a str,
    tail: &'a str,
}

/// What fits into two words, else a pointer.
#[derive(Clone)]
enum Tail {
    Short { length: u8, bytes: [u8; SHORT] },
    Long(Box<Box<str>>),
}

const SHORT: usize = 14;

impl Uid {
    /// The whole text.
    pub fn text(&self) -> Text<'_> {
        Text { stem: &self.stem, tail: self.tail.text() }
    }

    /// What follows the last slash.
    pub fn last_segment(&self) -> Text<'_> {
        // The tail has no slash.
        let stem = self.stem.rsplit_once('/').map_or(&*self.stem, |(_, rest)| rest);
        Text { stem, tail: self.tail.text() }
    }

    /// Whether it names a pod, rather than an entry somebody wrote for one.
    pub fn is_pod(&self) -> bool {
        self.stem.contains("//Pod/")
    }
}

impl<'a> Text<'a> {
    /// Parts it where uids are parted: equal texts have equal parts then.
    fn of(text: &'a str) -> Self {
        let at = text.rfind(['-', '/']).map_or(0, |at| at + 1);
        let (stem, tail) = text.split_at(at);
        Self { stem, tail }
    }

    /// How often it has this ASCII character.
    pub fn count(self, ascii: u8) -> usize {
        self.bytes().filter(|byte| *byte == ascii).count()
    }

    fn bytes(self) -> impl Iterator<Item = u8> + 'a {
        self.stem.bytes().chain(self.tail.bytes())
    }

    fn len(self) -> usize {
        self.stem.len() + self.tail.len()
    }
}

impl Tail {
    fn new(text: &str) -> Self {
        let mut bytes = [0; SHORT];
        match (bytes.get_mut(..text.len()), u8::try_from(text.len())) {
            (Some(place), Ok(length)) => {
                place.copy_from_slice(text.as_bytes());
                Self::Short { length, bytes }
            }
            _ => Self::Long(Box::new(text.into())),
        }
    }

    fn text(&self) -> &str {
        match self {
            // It was a text.
            Self::Short { length, bytes } => str::from_utf8(&bytes[..usize::from(*length)]).unwrap_or_default(),
            Self::Long(text) => text,
        }
    }
}

impl From<&str> for Uid {
    fn from(text: &str) -> Self {
        let Text { stem, tail } = Text::of(text);
        Self { stem: intern(stem), tail: Tail::new(tail) }
    }
}

impl From<String> for Uid {
    fn from(text: String) -> Self {
        text.as_str().into()
    }
}

impl<'a> From<&'a Uid> for Text<'a> {
    fn from(uid: &'a Uid) -> Self {
        uid.text()
    }
}

impl<'a> From<&'a str> for Text<'a> {
    fn from(text: &'a str) -> Self {
        Self::of(text)
    }
}

impl fmt::Display for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.text().fmt(f)
    }
}

impl fmt::Debug for Uid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string(), f)
    }
}

impl fmt::Display for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.stem)?;
        f.write_str(self.tail)
    }
}

impl fmt::Debug for Text<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.to_string(), f)
    }
}

impl PartialEq for Uid {
    fn eq(&self, other: &Self) -> bool {
        // All are parted alike. The shared part is mostly the same, not just equal.
        self.tail.text() == other.tail.text() && (Arc::ptr_eq(&self.stem, &other.stem) || self.stem == other.stem)
    }
}

impl Eq for Uid {}

impl Ord for Uid {
    fn cmp(&self, other: &Self) -> Ordering {
        if Arc::ptr_eq(&self.stem, &other.stem) {
            return self.tail.text().cmp(other.tail.text());
        }
        self.text().cmp(&other.text())
    }
}

impl PartialOrd for Uid {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Hash for Uid {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        (&*self.stem, self.tail.text()).hash(hasher);
    }
}

impl PartialEq for Text<'_> {
    fn eq(&self, other: &Self) -> bool {
        match self.stem.len() == other.stem.len() {
            true => self.tail == other.tail && self.stem == other.stem,
            false => self.len() == other.len() && self.bytes().eq(other.bytes()),
        }
    }
}

impl Eq for Text<'_> {}

impl Ord for Text<'_> {
    fn cmp(&self, other: &Self) -> Ordering {
        // Where one stem is not the beginning of the other, the stems decide.
        let shorter = self.stem.len().min(other.stem.len());
        let (a, b) = (self.stem.as_bytes(), other.stem.as_bytes());
        a[..shorter].cmp(&b[..shorter]).then_with(|| {
            let rest = |text: &Self| text.stem.as_bytes()[shorter..].iter().chain(text.tail.as_bytes()).copied();
            rest(self).cmp(rest(other))
        })
    }
}

impl PartialOrd for Text<'_> {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq<str> for Text<'_> {
    fn eq(&self, other: &str) -> bool {
        self.len() == other.len() && self.bytes().eq(other.bytes())
    }
}

impl PartialEq<Text<'_>> for Uid {
    fn eq(&self, other: &Text<'_>) -> bool {
        self.text() == *other
    }
}

/// A uid and the text of one are one key.
#[derive(Clone, Copy)]
pub(crate) struct Key<'a>(Text<'a>);

impl<'a, T: Into<Text<'a>>> From<T> for Key<'a> {
    fn from(text: T) -> Self {
        Self(text.into())
    }
}

impl Key<'_> {
    /// Whether it is this one.
    pub(crate) fn is(self, uid: &Uid) -> bool {
        self.0.tail == uid.tail.text() && self.0.stem == &*uid.stem
    }
}

impl Hash for Key<'_> {
    fn hash<H: Hasher>(&self, hasher: &mut H) {
        // As `Uid` hashes itself.
        (self.0.stem, self.0.tail).hash(hasher);
    }
}

#[cfg(test)]
mod tests {
    use std::hash::{BuildHasher, RandomState};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn replicas_share_all_but_their_last_characters() {
        let name = |n: u32| Uid::from(format!("Kubernetes//Pod/shop/web-5d8f7c9b6-{n:05x}"));
        let (a, b) = (name(1), name(2));
        assert!(Arc::ptr_eq(&a.stem, &b.stem));
        assert!(matches!(a.tail, Tail::Short { .. }));
        assert_eq!(a.last_segment().to_string(), "web-5d8f7c9b6-00001");
        assert!(a.is_pod() && !Uid::from("c/networking.istio.io/WorkloadEntry/shop/Pod").is_pod());
        assert_eq!(Uid::from("plain").last_segment().to_string(), "plain");
        assert_eq!(size_of::<Uid>(), 32);
    }

    proptest! {
        #[test]
        fn is_its_text(a in "[ab/é-]{0,8}[xy]{0,20}", b in "[ab/é-]{0,8}[xy]{0,20}") {
            let (x, y) = (Uid::from(a.as_str()), Uid::from(b.as_str()));
            prop_assert_eq!(x.to_string(), a.clone());
            prop_assert_eq!(x == y, a == b);
            prop_assert_eq!(x.cmp(&y), a.cmp(&b));
            prop_assert!(x == Text::of(&a));
            let last = |text: &str| text.rsplit('/').next().unwrap().to_owned();
            prop_assert_eq!(x.last_segment().to_string(), last(&a));
            prop_assert!(x.last_segment() == *last(&a));
            prop_assert_eq!(x.last_segment() == y.last_segment(), last(&a) == last(&b));
            prop_assert_eq!(x.last_segment().cmp(&y.last_segment()), last(&a).cmp(&last(&b)));
            prop_assert_eq!(x.text().count(b'/'), a.matches('/').count());
            let hasher = RandomState::new();
            prop_assert_eq!(hasher.hash_one(&x), hasher.hash_one(Key::from(&*a)));
            prop_assert_eq!(Key::from(&*a).is(&y), a == b);
        }
    }
}
