//! Pods come and go: spread, deletion under load, the same address again.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::Result;
use aquifer_lab::{Lab, LabOptions, Load, LoadReport};

use crate::harness::{access_line_appears, eventually, get, meshed_shop, shop, wait_meshed};

async fn scaled(lab: &Lab) -> Result<()> {
    lab.scale("shop", "payments", 3).await?;
    lab.wait_ready("shop", "payments", 3).await?;
    Ok(())
}

async fn deletion_under_load(lab: &Lab) -> Result<LoadReport> {
    let load = Load::start(lab, "shop", "orders", "http://payments/", 2)?;
    load.wait_answers(20, Duration::from_secs(60)).await?;
    let victim = lab.pods("shop", "payments").await?.swap_remove(0);
    lab.delete("Pod", "shop", &victim.name).await?;
    lab.wait_status("the pod is gone and replaced", Duration::from_secs(40), |status| {
        let gone = status.pods.iter().all(|pod| pod.uid != victim.uid);
        let ready = status.pods.iter().filter(|pod| pod.deployment.as_deref() == Some("payments") && pod.ready).count();
        (gone && ready == 3).then_some(())
    })
    .await?;
    let ended = load.report().total();
    load.wait_answers(ended + 20, Duration::from_secs(60)).await?;
    Ok(load.stop().await?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_spread_and_a_pod_deleted_under_load_fails_nobody() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    scaled(&lab).await?;
    lab.wait_enrolled("shop", true).await?;
    let mut seen = BTreeSet::new();
    eventually("all three pods are reached", Duration::from_secs(5), async || {
        let answer = get(&lab, "shop", "orders", "http://payments/").await?;
        assert!(answer.ok(), "{answer:?}");
        seen.insert(answer.body);
        Ok(seen.len() == 3)
    })
    .await?;
    let report = deletion_under_load(&lab).await?;
    assert_eq!(report.failed(), 0, "{} of {}: {}", report.failed(), report.total(), report.first_failure());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_sequence_without_the_mesh_is_the_control() -> Result<()> {
    let lab = shop(LabOptions::plain()).await?;
    scaled(&lab).await?;
    let report = deletion_under_load(&lab).await?;
    assert_eq!(report.failed(), 0, "{} of {}: {}", report.failed(), report.total(), report.first_failure());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_re_created_with_the_same_address_is_served_as_itself() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let old = lab.pod("shop", "payments").await?;
    assert!(get(&lab, "shop", "orders", "http://payments/").await?.ok());
    lab.scale("shop", "payments", 0).await?;
    lab.wait_ready("shop", "payments", 0).await?;
    // Another identity takes over the address that `payments` had.
    let manifest =
        include_str!("successor.yaml").replace("ADDRESS", &old.ipv4().to_string()).replace("NODE", &old.node);
    lab.apply(&manifest).await?;
    lab.wait_ready("shop", "successor", 1).await?;
    wait_meshed(&lab, "shop").await?;
    let new = lab.pod("shop", "successor").await?;
    assert_eq!(new.ipv4(), old.ipv4(), "the lab did not give the address asked for");
    let url = format!("http://{}:8080/", new.ipv4());
    eventually("the successor answers at the old address", Duration::from_secs(2), async || {
        Ok(get(&lab, "shop", "orders", &url).await?.body == new.name)
    })
    .await?;
    // Under its own identity.
    access_line_appears(&lab, "node1", &["direction=\"outbound\"", "sa/successor"]).await?;
    Ok(())
}
