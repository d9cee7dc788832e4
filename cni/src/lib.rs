//! The node agent: which pods are in the mesh, their redirection rules, and their network namespaces handed to
//! the node's proxy.
//!
//! ```text
//!   Namespaces, Pods ──► agent ── decision ──► worker a pod ─┬─► redirection (nf_tables, routes)  in the pod
//!   CNI plugin ─/cmdadd──┘                                   ├─► zds ──netns──► ztunnel
//!                                                            ├─► probes (nf_tables)               on the node
//!                                                            └─► annotation ──► control plane
//!                        keeper: rules that someone flushed are laid again
//! ```
//!
//! Invariants:
//! - Kernel changes go by netlink, and what belongs together in one transaction; no program is run.
//! - A pod is marked `enabled` last: until then peers use plain TCP.
//! - Pods run on without the agent, and stay redirected until they leave or the node is cleaned ([`uninstall`]).
//!   A new agent takes over what it finds, without a gap.
//! - The environment is read in [`config`] only. Nothing here knows of identities or policies.

pub mod agent;
pub mod app;
pub mod config;
mod descriptor;
pub mod finder;
pub mod keeper;
pub mod metrics;
pub mod migrate_req;
pub mod netlink;
pub mod netns;
pub mod probes;
pub mod redirection;
pub mod rules;
pub mod state;
pub mod uninstall;
pub mod zds;
