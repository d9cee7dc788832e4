//! What is worth a word besides the findings.

use std::collections::BTreeMap;

use aquifer_istiod_lite::revision::{LABEL, Revision};
use aquifer_objects::{Kind, Object};

/// What the revision leaves to others, by the revision or tag that a label names: nobody shall take for judged what was
/// passed over because of a label.
pub(super) fn of_other_revisions(objects: &[Object], revision: &Revision) -> Vec<String> {
    let (mut passed_over, mut namespaces) = (BTreeMap::<&str, usize>::new(), BTreeMap::<&str, Vec<&str>>::new());
    for object in objects {
        let Some(label) = object.label(LABEL).filter(|label| !revision.owns(None, Some(label))) else { continue };
        if object.kind() == Kind::Namespace {
            namespaces.entry(label).or_default().push(object.name());
        } else if !revision.reads(object) {
            *passed_over.entry(label).or_default() += 1;
        }
    }
    let name = revision.name();
    let remedy = |label: &str| {
        format!(
            "since {label} is neither {name} nor known as a tag of it: call with --revision {label}, or with \
             --revision-tags {label} if {name} has that tag"
        )
    };
    let passed_over = passed_over.into_iter().map(|(label, count)| {
        format!("{count} objects labelled {LABEL}: {label} are not looked at, {}", remedy(label))
    });
    let namespaces = namespaces.into_iter().map(|(label, names)| {
        let names = names.join(", ");
        format!("{name} writes no status in {names}, labelled {LABEL}: {label}, {}", remedy(label))
    });
    passed_over.chain(namespaces).collect()
}
