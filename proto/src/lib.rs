//! Wire types: what Aquifer and its peers say to each other, generated from `protos/`.
//!
//! ```text
//!   protos/*.proto --(tests/generated.rs)--> src/gen/*.rs --> xds, workload, security, ca, zds, aquifer
//! ```
//!
//! Invariants:
//! - The generated code is committed and a test proves it current; a build needs no protoc.
//! - Field numbers are the field's own (Istio, Envoy); names follow Istio's.
//! - No behaviour lives here. Values are as the peer sent them: `aquifer_core::from_proto` validates.

// Generated code answers to its generator's taste, not to our lints.
macro_rules! generated {
    ($(#[$doc:meta])* $name:ident, $file:literal) => {
        $(#[$doc])*
        #[allow(clippy::all, clippy::use_self, clippy::unwrap_used, missing_docs, unreachable_pub, rust_2018_idioms)]
        #[rustfmt::skip]
        pub mod $name {
            include!(concat!("gen/", $file, ".rs"));
        }
    };
}

generated!(
    /// Aggregated discovery, client and server (`envoy.service.discovery.v3`), and the status of its clients.
    xds,
    "envoy.service.discovery.v3"
);
generated!(
    /// Workloads and services (`istio.workload`).
    workload,
    "istio.workload"
);
generated!(
    /// Authorization policies (`istio.security`).
    security,
    "istio.security"
);
generated!(
    /// The certificate authority, client and server (`istio.v1.auth`).
    ca,
    "istio.v1.auth"
);
generated!(
    /// Node agent and ztunnel (`istio.workload.zds`).
    zds,
    "istio.workload.zds"
);
generated!(
    /// Our own resources (`aquifer.v1`).
    aquifer,
    "aquifer.v1"
);

/// Response header of a discovery stream: type URLs of ours that the server has, separated by commas. Real istiods send
/// no such header, and may end a stream that asks for a type unknown to them; so nobody asks without it.
pub const SERVED_TYPES: &str = "aquifer-types";

/// The resource types of discovery.
pub mod type_url {
    /// A workload or a service: [`crate::workload::Address`].
    pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
    /// A policy: [`crate::security::Authorization`].
    pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
    /// A workload alone: [`crate::workload::Workload`].
    pub const WORKLOAD: &str = "type.googleapis.com/istio.workload.Workload";
    /// Whom to trust: [`crate::aquifer::RootBundle`]. Only asked of a server that says it has it ([`crate::SERVED_TYPES`]).
    pub const ROOT_BUNDLE: &str = "type.googleapis.com/aquifer.v1.RootBundle";
    /// How far a client is: [`crate::xds::ClientConfig`].
    pub const CLIENT_CONFIG: &str = "type.googleapis.com/envoy.service.status.v3.ClientConfig";
    /// Asks for the debug page that the one resource name names. The page lies in an Any of this very type.
    pub const DEBUG: &str = "istio.io/debug";
}
