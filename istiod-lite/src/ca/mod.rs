//! The certificate authority: who may have which certificate, and the signing of it.
//!
//! ```text
//!   CreateCertificate ──► authn (who calls?) ──► node_auth (may it ask for that identity?)
//!        (service)                                        │
//!   [leaf, intermediates, bundle] ◄── issuer ◄── csr ◄────┘
//!                                       ▲
//!   store (folder, Secrets) ──► keeper ─┴─ authority: what signs now, whom all trust
//!     rotation: from one root to another ──► RootBundle, ConfigMaps, our own listener
//! ```
//!
//! Invariants: a leaf's identity comes from the authenticated caller or from an impersonation that
//! was checked against the pods of the caller's node, never from the CSR; nothing outlives the
//! signer; every certificate in use was signed by a root that every proxy trusts, at each moment of a
//! rotation; a private key is
//! never readable by other users, never shown, and leaves [`material`] only for [`store`].

pub mod authn;
pub mod authority;
pub mod client_cert;
pub mod csr;
pub mod fingerprint;
pub mod issuer;
pub mod jwt;
pub mod keeper;
pub mod ledger;
pub mod limits;
pub mod material;
pub mod node_auth;
pub mod pods;
pub mod root;
pub mod root_config_map;
pub mod rotation;
pub mod service;
pub mod serving;
pub mod start;
pub mod store;
pub mod token_review;
pub mod trust_domain;
