//! The client's end: [`session`] decides, [`driver`] connects.

pub mod demand;
mod dial;
pub mod driver;
pub mod metrics;
pub mod session;

use bytes::Bytes;

/// One change of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourceUpdate {
    /// The resource is new or changed.
    Upsert {
        /// Its name.
        name: String,
        /// Its version; empty where the server has none.
        version: String,
        /// Other names for it (on-demand only).
        aliases: Vec<String>,
        /// The serialized message.
        body: Bytes,
    },
    /// The resource is gone, or never was.
    Remove {
        /// Its name.
        name: String,
    },
}

/// A resource that the sink could not take.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub error: String,
}

/// Where resources go. A whole response comes in one call and is to be published once.
pub trait ResourceSink: Send {
    /// Applies all it can and names the rest. What was refused stays as it was before.
    fn apply(&mut self, type_url: &str, updates: Vec<ResourceUpdate>) -> Vec<Rejected>;
}

impl<S: ResourceSink + ?Sized> ResourceSink for Box<S> {
    fn apply(&mut self, type_url: &str, updates: Vec<ResourceUpdate>) -> Vec<Rejected> {
        (**self).apply(type_url, updates)
    }
}
