//! The node agent: which pods are in the mesh, their redirection rules, and their network namespaces handed to
//! the node's proxy.
mod descriptor;
pub mod migrate_req;
pub mod netlink;
pub mod netns;
pub mod redirection;
pub mod rules;
pub mod state;
pub mod zds;
