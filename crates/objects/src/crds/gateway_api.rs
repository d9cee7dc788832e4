//! The kinds of the Gateway API (`gateway.networking.k8s.io`).
//!
//! We read them; their CRDs come from the Gateway API's own release, so no schemas are made here. The field lists are
//! those of its experimental channel, which holds the standard one.

pub mod common;
pub mod gateway;
pub mod gateway_class;
pub mod grpc_route;
pub mod http_route;
pub mod reference_grant;
pub mod tcp_route;
pub mod tls_route;

pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

pub use self::common::*;
pub use self::gateway::{Gateway, GatewaySpec, GatewayStatus};
pub use self::gateway_class::{GatewayClass, GatewayClassSpec, GatewayClassStatus};
pub use self::grpc_route::{GRPCRoute, GRPCRouteSpec};
pub use self::http_route::{HTTPRoute, HTTPRouteSpec};
pub use self::reference_grant::{ReferenceGrant, ReferenceGrantSpec};
pub use self::tcp_route::{TCPRoute, TCPRouteSpec};
pub use self::tls_route::{TLSRoute, TLSRouteSpec};
pub use super::Condition;
