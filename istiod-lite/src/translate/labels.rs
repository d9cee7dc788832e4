//! Labels, held once for all who carry the same, and selectors over them.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

/// Labels or annotations as Kubernetes types carry them, and the plain selectors that name some of them.
pub type Labels = BTreeMap<String, String>;

/// The labels of an object, sorted by key.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LabelSet(Box<[(Arc<str>, Arc<str>)]>);

impl LabelSet {
    /// The value of a label.
    pub fn get(&self, key: &str) -> Option<&Arc<str>> {
        let at = self.0.binary_search_by(|(held, _)| (**held).cmp(key)).ok()?;
        Some(&self.0[at].1)
    }

    /// The value of a label that says something.
    pub fn said(&self, key: &str) -> Option<&Arc<str>> {
        self.get(key).filter(|value| !value.is_empty())
    }

    /// All of them, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.0.iter().map(|(key, value)| (&**key, &**value))
    }

    /// Whether all of `selector` are among them.
    pub fn has(&self, selector: &Labels) -> bool {
        selector.iter().all(|(key, value)| self.get(key).is_some_and(|held| **held == **value))
    }
}

impl From<&Labels> for LabelSet {
    fn from(labels: &Labels) -> Self {
        Self(labels.iter().map(|(key, value)| (key.as_str().into(), value.as_str().into())).collect())
    }
}

/// Holds each string and each set of labels once. Clusters have few of them and many of each.
#[derive(Debug, Default)]
pub struct Interner {
    strings: Pool<Arc<str>>,
    labels: Pool<Arc<LabelSet>>,
}

impl Interner {
    /// The one copy of a string.
    pub fn string(&mut self, text: &str) -> Arc<str> {
        if let Some(held) = self.strings.held.get(text) {
            return held.clone();
        }
        self.strings.add(text.into())
    }

    /// The one copy of some labels.
    pub fn labels(&mut self, labels: Option<&Labels>) -> Arc<LabelSet> {
        let pairs = labels.into_iter().flatten();
        let set = LabelSet(pairs.map(|(key, value)| (self.string(key), self.string(value))).collect());
        if let Some(held) = self.labels.held.get(&set) {
            return held.clone();
        }
        self.labels.add(Arc::new(set))
    }
}

/// Shared values. What nobody else holds any more goes when the pool has doubled, so that a pool is never more than
/// twice what is used.
#[derive(Debug)]
struct Pool<T> {
    held: HashSet<T>,
    sweep_at: usize,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { held: HashSet::new(), sweep_at: 1024 }
    }
}

impl<T: Clone + Eq + std::hash::Hash + Counted> Pool<T> {
    fn add(&mut self, value: T) -> T {
        if self.held.len() >= self.sweep_at {
            self.held.retain(|value| value.holders() > 1);
            self.sweep_at = (self.held.len() * 2).max(1024);
        }
        self.held.insert(value.clone());
        value
    }
}

trait Counted {
    fn holders(&self) -> usize;
}

impl<T: ?Sized> Counted for Arc<T> {
    fn holders(&self) -> usize {
        Self::strong_count(self)
    }
}

/// A selector with expressions. What cannot be understood selects nothing, unless it is told otherwise.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Selector {
    labels: Labels,
    expressions: Vec<Requirement>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Operator {
    In,
    NotIn,
    Exists,
    DoesNotExist,
    Unknown,
}

impl Selector {
    /// A selector of these labels alone; none of them selects everything.
    pub fn of_labels(labels: Labels) -> Self {
        Self { labels, expressions: Vec::new() }
    }

    /// With one more requirement: `key operator values`.
    #[must_use]
    pub fn and(mut self, key: &str, operator: &str, values: &[String]) -> Self {
        let operator = match operator {
            "In" => Operator::In,
            "NotIn" => Operator::NotIn,
            "Exists" => Operator::Exists,
            "DoesNotExist" => Operator::DoesNotExist,
            _ => Operator::Unknown,
        };
        self.expressions.push(Requirement { key: key.to_owned(), operator, values: values.to_vec() });
        self
    }

    /// Whether it selects who has these labels.
    pub fn selects(&self, labels: &LabelSet) -> bool {
        self.meets(labels, false)
    }

    /// The same, but an expression that cannot be understood is taken for met.
    pub fn may_select(&self, labels: &LabelSet) -> bool {
        self.meets(labels, true)
    }

    fn meets(&self, labels: &LabelSet, unknown: bool) -> bool {
        labels.has(&self.labels) && self.expressions.iter().all(|requirement| requirement.met(labels, unknown))
    }
}

impl Requirement {
    fn met(&self, labels: &LabelSet, unknown: bool) -> bool {
        let value = labels.get(&self.key);
        let among = || value.is_some_and(|value| self.values.iter().any(|allowed| **allowed == **value));
        match self.operator {
            Operator::In => among(),
            // Who lacks the label is none of them.
            Operator::NotIn => !among(),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Unknown => unknown,
        }
    }
}

impl From<&LabelSelector> for Selector {
    fn from(selector: &LabelSelector) -> Self {
        let labels = selector.match_labels.clone().unwrap_or_default();
        selector.match_expressions.iter().flatten().fold(Self::of_labels(labels), |made, requirement| {
            made.and(&requirement.key, &requirement.operator, requirement.values.as_deref().unwrap_or_default())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(pairs: &[(&str, &str)]) -> Labels {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn what_nobody_holds_goes() {
        let mut interner = Interner::default();
        let kept = interner.labels(Some(&labels(&[("app", "kept")])));
        for i in 0..10_000 {
            let _ = interner.labels(Some(&labels(&[("app", &i.to_string())])));
        }
        assert!(Arc::ptr_eq(&kept, &interner.labels(Some(&labels(&[("app", "kept")])))));
        assert!(interner.labels.held.len() < 2048 && interner.strings.held.len() < 4096);
    }

    #[test]
    fn selectors() {
        let set = LabelSet::from(&labels(&[("app", "web"), ("tier", "front")]));
        let with = |key: &str, operator: &str, values: &[&str]| {
            let values: Vec<String> = values.iter().map(|value| (*value).to_owned()).collect();
            Selector::default().and(key, operator, &values)
        };
        let cases = [
            (Selector::default(), true),
            (Selector::of_labels(labels(&[("app", "web")])), true),
            (Selector::of_labels(labels(&[("app", "web"), ("x", "")])), false),
            (with("tier", "In", &["front", "back"]), true),
            (with("tier", "In", &["back"]), false),
            (with("tier", "NotIn", &["front"]), false),
            (with("zone", "NotIn", &["a"]), true),
            (with("tier", "Exists", &[]), true),
            (with("tier", "DoesNotExist", &[]), false),
            (with("tier", "Gt", &["1"]), false),
        ];
        for (selector, expect) in cases {
            assert_eq!(selector.selects(&set), expect, "{selector:?}");
        }
        assert!(with("tier", "Gt", &["1"]).may_select(&set));
    }
}
