//! Step 6: certificates rotate and a ztunnel is replaced while traffic flows.

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aquifer_lab::{Component, Load};

use super::client::Open;
use super::{CERTIFICATE_TTL, DRAIN_SECONDS, Demo};

const IDENTITY: &str = "spiffe://cluster.local/ns/shop/sa/orders";

pub(super) async fn run(demo: &mut Demo) -> Result<()> {
    rotation(demo).await?;
    replacement(demo).await
}

async fn rotation(demo: &mut Demo) -> Result<()> {
    let load = Load::start(&demo.lab, "shop", "orders", "http://payments/", 2)?;
    let mut open = Open::connect(&demo.lab, "shop", "orders", "cart", 6379)?;
    open.ask("PING\r\n", "PONG").await?;
    let first = serial(demo).await?;
    let begin = Instant::now();
    let mut serials = vec![first];
    while serials.len() < 3 && begin.elapsed() < Duration::from_secs(120) {
        let now = serial(demo).await?;
        if !serials.contains(&now) {
            serials.push(now);
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let kept = open.ask("PING\r\n", "PONG").await.is_ok();
    let report = load.stop().await?;
    demo.claim(
        serials.len() == 3 && report.failed() == 0,
        format!(
            "orders' certificate (TTL {CERTIFICATE_TTL}) renewed twice in {} s under load: {} of {} requests failed {}",
            begin.elapsed().as_secs(),
            report.failed(),
            report.total(),
            report.first_failure()
        ),
    );
    demo.claim(kept, "the redis connection that was open all the time still answers");
    Ok(())
}

async fn replacement(demo: &mut Demo) -> Result<()> {
    let load = Load::start(&demo.lab, "shop", "orders", "http://payments/", 2)?;
    load.wait_answers(20, Duration::from_secs(60)).await?;
    let mut open = Open::connect(&demo.lab, "shop", "orders", "cart", 6379)?;
    open.ask("PING\r\n", "PONG").await?;
    let old_pid = demo.lab.stats(Component::ztunnel("node1")).await?.pid;
    let begin = Instant::now();
    let old = demo.lab.replace_ztunnel("node1").await?;
    let new_pid = demo.lab.stats(Component::ztunnel("node1")).await?.pid;
    let answers = open.ask("PING\r\n", "PONG").await.is_ok();
    demo.claim(
        old_pid != new_pid && answers,
        format!(
            "{old} replaced under load in {} ms; the connection that was open still answers",
            begin.elapsed().as_millis()
        ),
    );
    drop(open);
    let deadline: u64 = DRAIN_SECONDS.parse().unwrap_or(15);
    let gone = demo
        .within(Duration::from_secs(deadline), async || {
            let pods = demo.lab.status().await?.pods;
            Ok(pods.iter().all(|pod| pod.name != old))
        })
        .await?;
    let so_far = load.report().total();
    load.wait_answers(so_far + 20, Duration::from_secs(60)).await?;
    let report = load.stop().await?;
    demo.claim(
        report.failed() == 0,
        format!(
            "new connections: {} of {} requests failed {}",
            report.failed(),
            report.total(),
            report.first_failure()
        ),
    );
    demo.claim(
        gone.is_some(),
        format!(
            "the old process ended {} after its connections did (deadline {DRAIN_SECONDS} s)",
            gone.map_or("NOT".into(), |took| format!("{} ms", took.as_millis()))
        ),
    );
    Ok(())
}

/// The serial number of the certificate that node1's ztunnel holds for orders.
async fn serial(demo: &Demo) -> Result<String> {
    let dump: serde_json::Value = serde_json::from_str(&demo.lab.ztunnel_admin("node1", "/config_dump").await?)?;
    let certificates = dump["certificates"].as_array().context("no certificates in the config dump")?;
    let ours = certificates.iter().find(|entry| entry["identity"] == IDENTITY).context("no certificate of orders")?;
    Ok(ours["certChain"][0]["serialNumber"].to_string())
}
