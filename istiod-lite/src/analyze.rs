//! What a user should know about objects before, or after, he applies them: what their status would say, and what no
//! status can.
//!
//! ```text
//!   objects ──(of files: expected)──► Index ──► conditions, findings ──┐
//!      └────────────────► routes, hosts, selectors ────────────────────┴──► Finding, by code
//! ```
//! The translators are those that serve the mesh, so nothing is judged by two rules. Codes are listed in [`CODES`] and
//! in docs/analyze.md, and never change their meaning.

mod codes;
mod conditions;
mod deprecated;
mod expected;
mod registry;
mod routes;
mod selectors;
mod workload;

#[cfg(test)]
mod tests;

use aquifer_objects::{Event, Object, ObjectKey};

pub use self::codes::{CODES, Code};
use self::registry::Registry;
pub use self::workload::Workload;
use crate::index::{self, Index};
use crate::revision::Revision;
use crate::translate::Mesh;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Something does not work.
    Error,
    /// Something does not work as it seems to.
    Warning,
}

impl Level {
    /// As it is printed.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
        }
    }
}

/// Something that a user should know about one of his objects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub code: &'static Code,
    /// The object.
    pub object: ObjectKey,
    /// What is wrong, and what to do.
    pub message: String,
}

/// Where the objects come from.
#[derive(Clone, Debug, PartialEq)]
pub enum Origin {
    /// Manifests: what controllers would make of them, and of these workloads, is added.
    Manifests(Vec<Workload>),
    /// A cluster, which has made it.
    Cluster,
}

/// Everything that the control plane of a revision has to say about the objects, sorted by object and code. `mesh` is
/// what its environment says; the MeshConfig among the objects counts besides.
pub fn analyze(mut objects: Vec<Object>, mesh: Mesh, revision: &Revision, origin: Origin) -> Vec<Finding> {
    objects.retain(|object| revision.reads(object));
    let objects = match origin {
        Origin::Manifests(workloads) => expected::complete(objects, &workloads),
        Origin::Cluster => objects,
    };
    let mut index = Index::new(mesh);
    for object in &objects {
        // Nothing is read between the events.
        let _ = index.apply(Event::Applied(object.clone()));
    }
    index.flush();

    let mut found: Vec<Finding> = index.findings().into_iter().map(of_index).collect();
    let by_key: std::collections::BTreeMap<ObjectKey, &Object> =
        objects.iter().map(|object| (object.key(), object)).collect();
    for (key, conditions) in index.statuses() {
        let object = by_key.get(key).copied();
        found.extend(conditions.iter().filter_map(|condition| conditions::finding(key, object, condition)));
    }
    let registry = Registry::new(&objects, index.mesh());
    found.extend(routes::findings(&objects, &registry));
    found.extend(selectors::findings(&objects, &registry));
    found.extend(deprecated::findings(&objects));
    found.sort_by(|a, b| (&a.object, a.code.code, &a.message).cmp(&(&b.object, b.code.code, &b.message)));
    found.dedup();
    found
}

fn of_index(finding: index::Finding) -> Finding {
    Finding { code: codes::by_name(finding.code), object: finding.object, message: finding.message }
}
