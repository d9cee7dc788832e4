//! The life of a process: how it starts its tasks, tells what it does, and ends.
//!
//! ```text
//!  env ──► settings          signals ──► Cancel (drain, force)
//!                                          │ child per pod, per connection
//!  telemetry (log lines, /logging)         ▼
//!  metrics   (:15020, :15014)           Tracker: every task, its panics
//!  readiness (:15021)                      │
//!  admin     (:15000)                   accept_loop, Backoff
//! ```
//!
//! Invariants:
//! - Every task is started through a [`Tracker`], so that a shutdown can wait for it and a panic is counted.
//! - Cancellation only ever goes down the tree, and dropping a handle cancels nothing.
//! - Everything here runs on a multi-thread runtime and on a current-thread one alike.
//! - This crate knows nothing of meshes: no workload, no identity, no xDS.

pub mod accept;
pub mod admin;
pub mod aside;
pub mod backoff;
pub mod cancel;
pub mod env;
pub mod http;
pub mod metrics;
pub mod own_thread;
pub mod process;
pub mod readiness;
#[cfg(test)]
mod recorded;
pub mod signals;
pub mod telemetry;
pub mod tracker;

pub use accept::accept_loop;
pub use aside::aside;
pub use backoff::Backoff;
pub use cancel::{Cancel, Drained, shutdown};
pub use own_thread::OwnThread;
pub use tracker::{OnItsWay, Tracker, holding};
