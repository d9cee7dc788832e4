//! The node proxy of an ambient mesh.
pub mod inpod;
pub mod socket;
