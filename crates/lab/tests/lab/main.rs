//! The lab against a real kernel: needs root, and builds the binaries that a lab starts. Labs run side by side, so the
//! tests do too.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

mod life;
mod mesh;
mod net;
mod pods;
mod support;
