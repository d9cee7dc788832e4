//! Kubernetes objects in and out, as one stream of events.
//!
//! ```text
//!   manifests/*.yaml ────────────┐
//!   manifests/.managed/<manager> ┴─ Folder::watch ─▶ Event ─▶ istiod-lite, cni, lab
//!                 ▲
//!                 └──────────────── Writer (one field manager each)
//! ```
//!
//! Invariants:
//! * An [`Object`] that leaves this crate is typed and passed [`validate::validate`].
//! * An [`Event`] means that something really changed: equal content is never sent twice.
//! * A file that cannot be read as objects changes nothing: its last good objects stay in force, and
//!   one message names file, line and field.
//! * No two processes write one file; the reader merges what the field managers wrote.
//!
//! This crate knows nothing of the mesh: what an object *means* is decided by its readers.

pub mod crds;
pub mod folder;
pub mod kinds;
pub mod parse;
pub mod validate;

pub use folder::{Folder, FolderError, Watch, WriteError, Writer};
pub use kinds::{Kind, Object, ObjectKey};

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
