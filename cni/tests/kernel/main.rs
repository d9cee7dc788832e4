//! The agent against the running kernel, in network namespaces of its own. Needs root, nft and iproute2.

// All of it is test code, helpers included.
#![allow(clippy::unwrap_used)]

mod lay;
mod namespace;
mod node;
mod packets;
mod reference;
mod repair;
mod table;
mod trouble;
mod uninstall;
mod wire;
