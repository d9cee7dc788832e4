//! The lab against a real kernel: needs root, and the `aquifer` binary beside this test (`cargo build -p aquifer`).
//! Without them every test fails with one line that says so. Labs run side by side, so the tests do too.

// A helper of a test may fail as the test itself may.
#![allow(clippy::unwrap_used)]

mod life;
mod mesh;
mod net;
mod pods;
mod support;
