//! istiod-lite: the control plane. Kubernetes objects in, workload discovery and certificates out.
//!
//! ```text
//!   objects ──Event──► publish (one task) ──► index ──dirty──► translate ──► ResourceSet ──► xDS
//!                         │                                                   (15010, 15012)
//!                         ├──► pods (who runs where) ──► ca: authn, node_auth ──► CA (15012)
//!                         └──► status ◄── gateway (waypoints; the leader alone, with a watch of its own)
//! ```
//!
//! Invariants:
//! - One task owns the index; what it publishes is immutable, and only what changed is published.
//! - Nobody is served before the first full read of the objects: half a mesh is a wrong mesh.
//! - Every caller is authenticated, on every port that hands out resources or certificates.
//! - `index` and `translate` are pure, so that the command line can analyze manifests with them.

pub mod analyze;
pub mod app;
pub mod ca;
pub mod config;
pub mod debounce;
pub mod debug;
pub mod follow;
pub mod gateway;
pub mod index;
pub mod leader;
pub mod metrics;
pub mod publish;
pub mod revision;
pub mod serve;
pub mod status;
pub mod translate;
pub mod xds;

#[cfg(test)]
mod test_support;
