//! Who is in the mesh, and how they get in and out.
//!
//! ```text
//!   objects ─► reconciler ─ decision (pure) ─► one worker a pod ─► effects: rules, ZDS, probe set, annotation
//!   /cmdadd ─────┘
//! ```
//!
//! In:  rules → ZDS add and its ack → probe set → annotation `enabled`, which alone makes peers use HBONE.
//! Out: annotation → rules → ZDS del → probe set. Peers go back to plain TCP first, then new connections are no
//! longer captured, and only then do the proxy's listeners close: at no point is a new connection captured by
//! nobody.
//!
//! Invariants:
//! - A pod is driven by one worker, one step at a time, whatever arrives meanwhile.
//! - What does not succeed is tried again, from the start; every step may be repeated.
//! - The agent's own end changes nothing for the pods.

pub mod cmdadd;
pub mod decision;
pub mod effects;
pub mod reconciler;
pub mod worker;

#[cfg(test)]
mod tests;
