//! The text that rides on an HBONE CONNECT: authority, baggage, traceparent, forwarded.
//!
//! All of it comes from peers, so every parser has a limit and none trusts what it reads: only the authority
//! decides anything; the rest is telemetry.

pub mod authority;
pub mod baggage;
pub mod forwarded;
pub mod traceparent;

pub use authority::Authority;
pub use baggage::Baggage;
pub use forwarded::Forwarded;
pub use traceparent::Traceparent;

/// Why a header was not understood.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    #[error("longer than {0} bytes")]
    TooLong(usize),
    #[error("malformed")]
    Malformed,
}
