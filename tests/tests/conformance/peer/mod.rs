//! The other side of every wire, written from the contract alone.
//!
//! Nothing in here uses the product's own crates for messages, HTTP/2, TLS identities or ZDS: a misreading that both
//! ends share would not be found otherwise. Protobuf is written by field number, HTTP/2 by frame, ZDS by packet.

use std::future::Future;
use std::time::Duration;

use anyhow::{Context, Result};

pub(crate) mod dns;
pub(crate) mod grpc;
pub(crate) mod h2;
pub(crate) mod hello;
pub(crate) mod hpack;
mod huffman;
pub(crate) mod istiod;
pub(crate) mod net;
pub(crate) mod pki;
pub(crate) mod process;
pub(crate) mod protobuf;
pub(crate) mod tunnel;
pub(crate) mod wds;
pub(crate) mod world;
pub(crate) mod zds;

/// How long anything may take on a busy machine before the test gives up.
pub(crate) const DEADLINE: Duration = Duration::from_secs(40);

/// Fails if the future takes longer than anything may.
pub(crate) async fn within<T>(what: &str, future: impl Future<Output = T>) -> Result<T> {
    tokio::time::timeout(DEADLINE, future).await.with_context(|| format!("{what}: not within {DEADLINE:?}"))
}

/// Polls until true.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let poll = async {
        while !condition().await? {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    };
    within(what, poll).await?
}
