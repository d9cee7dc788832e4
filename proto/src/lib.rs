//! Wire types: what Aquifer and its peers say to each other, generated from `protos/`.
//!
//! ```text
//!   protos/*.proto --(tests/generated.rs)--> src/gen/*.rs --> xds, workload, security, ca, zds
//! ```
//!
//! Invariants:
//! - The generated code is committed and a test proves it current; a build needs no protoc.
//! - Field numbers are the field's own (Istio, Envoy); names follow Istio's.
//! - No behaviour lives here. Values are as the peer sent them: `aquifer_core::from_proto` validates.
