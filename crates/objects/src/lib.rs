//! Kubernetes objects in and out, as one stream of events.
//!
//! ```text
//!   manifests/*.yaml ────────────┐
//!   manifests/.managed/<manager> ┴─ Folder ──┐
//!                                            ├─ Source::watch ──▶ Event ──▶ istiod-lite, cni, lab
//!   API server ── list, watch, prune ─ Cluster┘
//!        ▲                                       Source::writer ◀── fields, status (one field manager each)
//!        └──── server-side apply ── Writer ◀──┘  lease::Leadership: who of several replicas writes
//! ```
//!
//! Invariants:
//! * An [`Object`] that leaves this crate is typed. One of a folder passed [`validate::validate`] as well; what an API
//!   server took, its readers take, and say on it what is wrong.
//! * An [`Event`] means that something really changed: equal content is never sent twice.
//! * A file that cannot be read as objects changes nothing: its last good objects stay in force, and
//!   one message names file, line and field.
//! * What the API server said last stays in force while it is away; how old that is, is a metric.
//! * No two processes write one file; the reader merges what the field managers wrote.
//!
//! This crate knows nothing of the mesh: what an object *means* is decided by its readers.

pub mod cluster;
pub mod crds;
pub mod folder;
pub mod kinds;
pub mod lease;
pub mod mesh_config;
pub mod parse;
pub mod source;
pub mod validate;

pub use cluster::Cluster;
pub use folder::{Folder, FolderError};
pub use kinds::{Kind, Object, ObjectKey};
pub use source::{Selection, Source, SourceError, Watch, WriteError, Writer};

/// One change of the watched objects.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// The object is new or differs from what was last sent.
    Applied(Object),
    /// The object is gone.
    Deleted(ObjectKey),
    /// Everything that existed when the watch began has been sent. Comes exactly once.
    Synced,
}
