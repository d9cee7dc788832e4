//! Both sessions together and against what the real peers sent; the drivers over loopback.

// Clippy takes only functions marked as tests for tests; here everything is one.
#![allow(clippy::unwrap_used)]

mod converge;
mod drivers;
mod harm;
mod recording;
mod replay_client;
mod replay_server;
