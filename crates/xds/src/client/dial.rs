//! Connecting without waiting for a lost packet.
//!
//! A SYN that meets a node just when its Service has no endpoint is often dropped (the refusal is an ICMP message, and
//! the kernel limits their rate); the kernel repeats it a second later. A proxy that was restarted together with the
//! control plane has no second: so while a connection doesn't come about another is tried beside it, with its own SYN.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hyper_util::client::legacy::connect::HttpConnector;
use tonic::transport::Uri;
use tower_service::Service;

/// How long one try has before the next begins beside it.
const NEXT_AFTER: Duration = Duration::from_millis(200);

/// Tries at once. Past them a second is over, and the kernel repeats by itself.
const TRIES: usize = 5;

/// TCP by several tries at once, of which the first that ends counts.
#[derive(Clone, Debug)]
pub(super) struct Dialler(pub(super) HttpConnector);

impl Service<Uri> for Dialler {
    type Response = <HttpConnector as Service<Uri>>::Response;
    type Error = <HttpConnector as Service<Uri>>::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.0.poll_ready(cx)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut connector = self.0.clone();
        Box::pin(side_by_side(move || connector.call(uri.clone())))
    }
}

/// A refusal counts too: it is an answer, and whoever called tries again by its own pace.
async fn side_by_side<T, F: Future<Output = T>>(mut attempt: impl FnMut() -> F) -> T {
    let mut attempts = FuturesUnordered::from_iter([attempt()]);
    loop {
        let may_begin = attempts.len() < TRIES;
        tokio::select! {
            biased;
            Some(ended) = attempts.next() => return ended,
            () = tokio::time::sleep(NEXT_AFTER), if may_begin => attempts.push(attempt()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::time::{Instant, sleep};

    /// Each try takes as long as the table says; which one ended, when, and how many were begun.
    async fn race(took: &[u64]) -> (usize, u128, usize) {
        let (since, mut begun) = (Instant::now(), 0);
        let winner = side_by_side(|| {
            let (number, millis) = (begun, took[begun]);
            begun += 1;
            async move {
                sleep(Duration::from_millis(millis)).await;
                number
            }
        })
        .await;
        (winner, since.elapsed().as_millis(), begun)
    }

    #[tokio::test(start_paused = true)]
    async fn a_lost_packet_costs_one_step() {
        const LOST: u64 = 1030;
        assert_eq!(race(&[50]).await, (0, 50, 1), "what answers in time is asked once");
        assert_eq!(race(&[LOST, 20]).await, (1, 220, 2));
        assert_eq!(race(&[LOST, LOST, LOST, LOST, 20]).await, (4, 820, 5));
        assert_eq!(race(&[5000; TRIES]).await, (0, 5000, TRIES), "never more than so many");
    }
}
