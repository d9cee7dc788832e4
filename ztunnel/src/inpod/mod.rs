//! In-pod mode: which pods this node proxy serves, told by the node agent over ZDS.

pub mod driver;
pub mod handover;
pub mod netns;
pub mod packet;
pub mod state;
pub mod zds;
