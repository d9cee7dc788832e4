//! The certificate authority: who may have which certificate, and the signing of it.
//!
//! ```text
//!   CreateCertificate ──► authn (who calls?) ──► node_auth (may it ask for that identity?)
//!        (service)                                        │
//!   [leaf, root bundle] ◄── issuer (root key) ◄── csr ◄───┘
//! ```
//!
//! Invariants: a leaf's identity comes from the authenticated caller or from an impersonation that
//! was checked against the pods of the caller's node, never from the CSR; nothing outlives the
//! signer; the root's private key is never readable by other users and never leaves [`root`].

pub mod authn;
pub mod csr;
pub mod issuer;
pub mod jwt;
pub mod node_auth;
pub mod pods;
pub mod root;
pub mod service;
pub mod serving;
