//! Which selectors may select somebody, found by his labels.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::translate::Labels;
use crate::translate::labels::LabelSet;

/// Names of objects by one pair of their selector: that which the fewest others have.
#[derive(Debug, Default)]
pub(super) struct SelectorIndex {
    by_pair: HashMap<String, HashMap<String, BTreeSet<Arc<str>>>>,
    /// Those whose selector is empty.
    always: BTreeSet<Arc<str>>,
}

impl SelectorIndex {
    pub(super) fn insert(&mut self, selector: &Labels, name: &Arc<str>) {
        let size = |key: &str, value: &str| {
            self.by_pair.get(key).and_then(|values| values.get(value)).map_or(0, BTreeSet::len)
        };
        let Some((key, value)) = selector.iter().min_by_key(|(key, value)| size(key, value)) else {
            self.always.insert(name.clone());
            return;
        };
        let names = self.by_pair.entry(key.clone()).or_default().entry(value.clone()).or_default();
        names.insert(name.clone());
    }

    pub(super) fn remove(&mut self, selector: &Labels, name: &Arc<str>) {
        self.always.remove(name);
        for (key, value) in selector {
            let Some(values) = self.by_pair.get_mut(key) else { continue };
            let Some(names) = values.get_mut(value) else { continue };
            names.remove(name);
            if names.is_empty() {
                values.remove(value);
            }
            if values.is_empty() {
                self.by_pair.remove(key);
            }
        }
    }

    /// The names of those that may select who has these labels, each once.
    pub(super) fn candidates<'a>(&'a self, labels: &'a LabelSet) -> impl Iterator<Item = &'a Arc<str>> {
        let found = labels.iter().filter_map(|(key, value)| self.by_pair.get(key)?.get(value));
        found.flatten().chain(&self.always)
    }
}
