//! The mesh in the lab: real namespaces, the real kernel, the real binaries, programs that we did not write.
//!
//! ```text
//! harness      a lab with the shop or the raw pods in it; sockets inside a pod's network namespace
//! enrolment    the label on and off          authorization  policies and their effect on open connections
//! mtls         STRICT, PERMISSIVE            endpoints      scaling, deletion under load, re-created addresses
//! rotation     certificates, replacement     transfer       bytes: half-close, volume, many at once, IPv6, refusals
//! root_rotation  another root for the mesh, under load
//! revocation   a certificate that is no longer good
//! churn        every process killed, in every order, under load
//! upgrade      control plane and agents replaced in turn: nobody fails
//! restart      a proxy replaced or killed: nobody fails
//! zero_trust   all pairs of examples/zero-trust          lifecycle      what a killed lab leaves: nothing
//! turning_on_strict  the guide of docs/operations.md, followed
//! dns          names: who answers, and that applications see no difference
//! hostile      peers that mean harm, at the pods, the CA and the wire
//! stalls       readers that stop, and the others on their connection          bytes     long streams that are known
//! same_node    two pods of one node, with and without a tunnel; NetworkPolicies
//! xds          the control plane away, back, and wrong      mint      certificates of every kind
//! ```
//! Needs root. One lab per test, side by side.

#![allow(clippy::disallowed_methods)] // tests read the environment and spawn tasks of their own

mod authorization;
mod bytes;
mod churn;
mod dns;
mod endpoints;
mod enrolment;
mod harness;
mod hostile;
mod lifecycle;
mod mint;
mod mtls;
mod restart;
mod revocation;
mod root_rotation;
mod rotation;
mod same_node;
mod stalls;
mod transfer;
mod turning_on_strict;
mod upgrade;
mod xds;
mod zero_trust;
