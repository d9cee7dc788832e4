//! The control plane on a real API server: etcd and kube-apiserver on the loopback, nothing else of Kubernetes.
//!
//! ```text
//! harness   servers that stop and start, objects from YAML, tokens, links that are cut
//! ca        tokens that are reviewed, signers in Secrets, a rotation of two replicas
//! commands  `aquifer analyze` and `status` as a person types them
//! crds      `aquifer crds apply`, beside Istio's own and over our older ones
//! gateways  waypoints, conflicts, status, leaders and revisions
//! whole     istiod-lite as a process under its own RBAC, with a proxy that asks it
//! lab       the lab on an API server (root); demo.rs, a target of its own, walks through the main job there
//! ```
//! `make test-api` builds the API server and runs these; `cargo test --workspace` leaves them out. By hand:
//! `cargo build --workspace --bins && cargo test -p aquifer-api-tests --features api`.
//!
//! Tests share one pair of servers and keep to namespaces of their own (a namespace is cheap, a server takes
//! seconds); a test that stops a server or changes what is cluster-wide starts a pair of its own.

#![allow(clippy::disallowed_methods)] // tests read the environment and spawn tasks of their own

mod ca;
mod commands;
mod crds;
mod gateways;
mod harness;
mod itself;
mod lab;
mod lease;
mod rbac;
mod samples;
mod source;
mod whole;
