//! Lets a registered connection in, or not; waits while that hangs on a policy that is on its way.

use std::sync::Arc;
use std::time::Duration;

use aquifer_core::state::MeshState;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};

use super::conn_table::{Guard, Refusal};
use crate::records::Failure;

/// Judges by what `load` gives, again after each publication as long as the answer is open, for `wait` at most.
pub(super) async fn admit(
    guard: &Guard,
    load: impl Fn() -> Arc<MeshState>,
    mut published: watch::Receiver<u64>,
    wait: Duration,
    info_logging: bool,
) -> Result<(), Failure> {
    let deadline = Instant::now() + wait;
    loop {
        // Seen first, read second: a publication in between wakes us again.
        published.borrow_and_update();
        match guard.authorize(&load(), info_logging) {
            Ok(()) => return Ok(()),
            Err(Refusal { failure, pending: false }) => return Err(failure),
            Err(Refusal { failure, pending: true }) => match timeout_at(deadline, published.changed()).await {
                Ok(Ok(())) => {}
                Ok(Err(_)) | Err(_) => return Err(failure),
            },
        }
    }
}

#[cfg(test)]
mod tests;
