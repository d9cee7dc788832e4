//! Pods as network namespaces behind a bridge, redirection rules laid with nft, and two nodes' data paths in one
//! process, with a CA of their own.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

pub(crate) mod net;
pub(crate) mod node;
