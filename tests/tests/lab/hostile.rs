//! Peers that mean harm: at the pods' ports, at the CA, on the wire. What is refused is refused with a reason, and
//! nobody else notices.
//!
//! ```text
//! handshake   what TLS on 15008 lets in            tunnel   HTTP/2 behind it: wrong requests, floods, silence
//! frames      HTTP/2 as no library would send it   ports    15001, 15006, 15008 from inside and outside
//! theft       tokens and identities at the CA      wire     what a capture between the nodes shows
//! ```

mod frames;
mod handshake;
mod ports;
mod theft;
mod tunnel;
mod wire;

use std::time::Duration;

use anyhow::Result;
use aquifer_lab::{Component, Lab, Load};

/// Traffic of the mesh that nothing here may disturb.
struct Bystander(Load);

impl Bystander {
    async fn start(lab: &Lab) -> Result<Self> {
        let load = Load::start(lab, "shop", "orders", "http://payments/", 1)?;
        load.wait_answers(3, Duration::from_secs(60)).await?;
        Ok(Self(load))
    }

    /// Nobody was disturbed, up to the end.
    async fn unharmed(self) -> Result<()> {
        let more = self.0.report().total() + 5;
        self.0.wait_answers(more, Duration::from_secs(60)).await?;
        let report = self.0.stop().await?;
        println!("bystander: {} requests, {} failed", report.total(), report.failed());
        assert_eq!(report.failed(), 0, "of {}: {}", report.total(), report.first_failure());
        Ok(())
    }
}

/// Resident memory of a node's proxy in KiB.
async fn rss(lab: &Lab, node: &str) -> Result<u64> {
    Ok(lab.stats(Component::ztunnel(node)).await?.rss_bytes >> 10)
}
