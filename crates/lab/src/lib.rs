//! A cluster's worth of nodes and pods on one Linux machine, in network namespaces, from ordinary manifests.
//!
//! ```text
//!   starter ── pipe (life) ──▶ pid 1 `aquifer lab init`, in PID, mount, network, IPC and UTS namespaces of its own
//!      │                        │ watches manifests/, plays controllers, scheduler, kubelet and kube-proxy
//!      └─ control.sock ────────▶│
//!                               ├─ the wire: veths node1, node2, …
//!                               ├─ node1: netns; routes, Service DNAT, agent (istio-cni-node)
//!                               │    ├─ pod: netns + mounts + host name; its containers' commands
//!                               │    └─ ztunnel's pod
//!                               └─ node2 …
//! ```
//!
//! Invariants:
//! * Killing pid 1 ends everything; the kernel takes processes, namespaces, mounts and rules with it. What remains
//!   is a folder under `/run/aquifer/labs`, which the next start removes.
//! * No interface of the machine is in a lab, and no route leads out of it.
//! * Product binaries are told of nothing but files, sockets and variables that they have in a real cluster too.
//! * Decisions (addresses, endpoints, rules, names) are pure functions; the kernel is touched in `init` only.
//!
//! This crate knows nothing of what the mesh does with traffic.

mod addresses;
pub mod api_server;
mod capture;
mod error;
pub mod init;
mod lab;
mod load;
mod options;
mod paths;
pub mod pcap;
mod process;
mod start;
mod status;
mod wire;

pub use capture::Capture;
pub use error::{LabError, Result};
pub use lab::{Lab, manifest_files, node_ip, sum_metric};
pub use load::{Load, LoadReport};
pub use options::{Component, LabOptions, Netns};
pub use pcap::{Flow, Packet, Pcap};
pub use process::{ExecOutput, Process};
pub use status::{ComponentStatus, NodeStatus, PodInfo, ProcessStats, Status};
