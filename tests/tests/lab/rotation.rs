//! Certificates rotate and proxies are replaced while traffic flows.

use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab, LabOptions, Load};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{ORDERS, connect, eventually, meshed_shop, service_ips};

/// A redis connection of `orders`, kept open.
pub(crate) async fn redis(lab: &Lab) -> Result<TcpStream> {
    let orders = lab.pod("shop", "orders").await?;
    let vip = service_ips(lab, "shop", "cart").await?[0];
    let mut stream = connect(lab, &orders, (vip, 6379).into())?;
    ping(&mut stream).await?;
    Ok(stream)
}

pub(crate) async fn ping(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    tokio::time::timeout(Duration::from_secs(30), stream.read_exact(&mut answer))
        .await
        .context("no answer in 30 s")??;
    assert_eq!(&answer, b"+PONG\r\n");
    Ok(())
}

async fn serial(lab: &Lab) -> Result<String> {
    let dump: serde_json::Value = serde_json::from_str(&lab.ztunnel_admin("node1", "/config_dump").await?)?;
    let certificates = dump["certificates"].as_array().context("certificates in the config dump")?;
    let ours = certificates.iter().find(|entry| entry["identity"] == ORDERS).context("a certificate of orders")?;
    Ok(ours["certChain"][0]["serialNumber"].to_string())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_rotate_under_load_without_a_failure() -> Result<()> {
    let lab = meshed_shop(LabOptions::default().ztunnel_var("SECRET_TTL", "8s")).await?;
    let mut open = redis(&lab).await?;
    let load = Load::start(&lab, "shop", "orders", "http://payments/", 2)?;
    let mut serials = vec![serial(&lab).await?];
    eventually("the certificate was renewed three times", Duration::from_secs(15), async || {
        let now = serial(&lab).await?;
        if !serials.contains(&now) {
            serials.push(now);
        }
        Ok(serials.len() == 4)
    })
    .await?;
    ping(&mut open).await?;
    load.wait_answers(21, Duration::from_secs(60)).await?;
    let report = load.stop().await?;
    assert_eq!(report.failed(), 0, "of {}: {}", report.total(), report.first_failure());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ztunnel_is_replaced_under_load_without_a_failure() -> Result<()> {
    // At the same time: most of it is waiting for the deadline of what stays open.
    tokio::try_join!(replaced_under_load(1), replaced_under_load(2)).map(drop)
}

async fn replaced_under_load(workers: usize) -> Result<()> {
    let options = LabOptions { workers: Some(workers), ..LabOptions::default() };
    let lab = meshed_shop(options.ztunnel_var("CONNECTION_TERMINATION_DEADLINE", "8s")).await?;
    let load = Load::start(&lab, "shop", "orders", "http://payments/", 3)?;
    load.wait_answers(20, Duration::from_secs(60)).await?;
    for node in ["node1", "node2"] {
        let mut finishes = redis(&lab).await?;
        let mut stays = redis(&lab).await?;
        let old = lab.replace_ztunnel(node).await?;
        ping(&mut finishes).await?;
        ping(&mut stays).await?;
        drop(finishes);
        let mut rest = Vec::new();
        let cut = tokio::time::timeout(Duration::from_secs(40), stays.read_to_end(&mut rest)).await;
        assert!(cut.is_ok(), "a connection outlived the deadline of its proxy on {node}");
        lab.wait_status(&format!("{old} is gone"), Duration::from_secs(40), |status| {
            status.pods.iter().all(|pod| pod.name != old).then_some(())
        })
        .await?;
    }
    let report = load.stop().await?;
    assert_eq!(report.failed(), 0, "workers {workers}, of {}: {}", report.total(), report.first_failure());
    assert!(lab.stats(Component::ztunnel("node1")).await?.rss_bytes > 0);
    lab.down().await?;
    Ok(())
}
