//! Policies: who gets through, who is told why not, and what becomes of open connections.

use std::time::Duration;

use anyhow::Result;
use aquifer_lab::{Component, LabOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{access_line_appears, connect, counted, eventually, get, meshed_shop, service_ips};

const ONLY_ORDERS: &str = include_str!("../../../examples/shop/policies/payments-only-from-orders.yaml");

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn payments_only_from_orders() -> Result<()> {
    for workers in [1, 2] {
        let lab = meshed_shop(LabOptions { workers: Some(workers), ..LabOptions::default() }).await?;
        let web = lab.pod("shop", "web").await?;
        let vip = service_ips(&lab, "shop", "payments").await?[0];
        let mut open = connect(&lab, &web, (vip, 80).into())?;
        open.write_all(b"GET / HTTP/1.1\r\nHost: payments\r\n\r\n").await?;
        let mut answer = [0; 12];
        open.read_exact(&mut answer).await?;
        assert_eq!(&answer, b"HTTP/1.1 200");

        lab.apply(ONLY_ORDERS).await?;
        // The connection is idle now: only the proxy can end it.
        let mut rest = Vec::new();
        let begin = std::time::Instant::now();
        let cut = tokio::time::timeout(Duration::from_secs(5), open.read_to_end(&mut rest)).await;
        println!("web's open connection was cut after {:?} (bound 1 s): {cut:?}", begin.elapsed());
        assert!(cut.is_ok(), "web's open connection was not cut within 5 s");

        assert!(get(&lab, "shop", "orders", "http://payments/").await?.ok());
        let refused = get(&lab, "shop", "web", "http://payments/").await?;
        assert!(!refused.ok(), "{refused:?}");
        let policy = "policy=\"shop/payments-only-from-orders\"";
        access_line_appears(&lab, "node2", &["reason=", policy, "sa/web"]).await?;
        let proxy = Component::ztunnel("node2");
        counted(&lab, &proxy, "aquifer_connections_refused_total", &[policy], |n| n >= 1.0).await?;
        eventually("the refusal is in Istio's own counters", Duration::from_secs(1), async || {
            let failed = lab.metric(proxy.clone(), "istio_tcp_connections_failed_total", &[]).await?;
            let denied = ["response_flags=\"DENY\""];
            Ok(failed + lab.metric(proxy.clone(), "istio_tcp_connections_closed_total", &denied).await? >= 1.0)
        })
        .await?;

        lab.delete("AuthorizationPolicy", "shop", "payments-only-from-orders").await?;
        eventually("web gets through again", Duration::from_secs(1), async || {
            Ok(get(&lab, "shop", "web", "http://payments/").await?.ok())
        })
        .await?;
        lab.down().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_malformed_policy_changes_nothing_and_is_named() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    lab.apply(ONLY_ORDERS).await?;
    eventually("the policy holds", Duration::from_secs(1), async || {
        Ok(!get(&lab, "shop", "web", "http://payments/").await?.ok())
    })
    .await?;
    let file = lab.manifests().join("broken.yaml");
    std::fs::write(
        &file,
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata:\n  name: broken\n  namespace: shop\nspec:\n  acton: DENY\n",
    )?;
    eventually("the message names file and field", Duration::from_secs(1), async || {
        let log = lab.component_logs(&Component::Istiod).await?;
        Ok(log.lines().any(|line| line.contains("broken.yaml") && line.contains("acton")))
    })
    .await?;
    assert!(get(&lab, "shop", "orders", "http://payments/").await?.ok());
    assert!(!get(&lab, "shop", "web", "http://payments/").await?.ok(), "the last good policy was lost");
    Ok(())
}
