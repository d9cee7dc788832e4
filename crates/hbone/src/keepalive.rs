use crate::config::Keepalive;
use h2::{Ping, PingPong};

/// Resolves when the peer is dead: a PING was not answered in time. Never when the connection ends otherwise, its
/// driver says that better.
pub(crate) async fn watch(pings: Option<PingPong>, config: Keepalive) {
    if let Some(mut pings) = pings {
        loop {
            tokio::time::sleep(config.interval).await;
            match tokio::time::timeout(config.timeout, pings.ping(Ping::opaque())).await {
                Ok(Ok(_)) => {}
                Ok(Err(_)) => break,
                Err(_) => return,
            }
        }
    }
    std::future::pending().await
}
