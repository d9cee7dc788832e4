//! The agent against the running kernel, in network namespaces of its own. Needs root, nft and iproute2.

mod lay;
mod namespace;
mod node;
mod packets;
mod repair;
