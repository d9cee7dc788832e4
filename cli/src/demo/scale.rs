//! Step 5: connections spread over three pods; one is deleted under load and nobody notices.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Result;
use aquifer_lab::{Lab, LabOptions, Load, LoadReport};

use super::{Demo, client};

pub(super) async fn run(demo: &mut Demo) -> Result<()> {
    demo.lab.scale("shop", "payments", 3).await?;
    let pods = demo.lab.wait_ready("shop", "payments", 3).await?;
    demo.lab.wait_enrolled("shop", true).await?;
    let all =
        demo.within(Duration::from_secs(2), async || Ok(spread(&demo.lab, 30).await?.len() == pods.len())).await?;
    let counts = spread(&demo.lab, 60).await?;
    let shares: Vec<String> = counts.values().map(ToString::to_string).collect();
    demo.claim(
        all.is_some() && counts.len() == 3,
        format!("60 connections spread over {} pods: {}", counts.len(), shares.join(" + ")),
    );

    let report = delete_under_load(&demo.lab).await?;
    demo.claim(
        report.failed() == 0 && report.answered() > 0,
        format!(
            "one payments pod deleted under load: {} of {} requests failed {}",
            report.failed(),
            report.total(),
            report.first_failure()
        ),
    );
    let control = control().await?;
    demo.claim(
        control.answered() > 0,
        format!("control, the same without the mesh: {} of {} requests failed", control.failed(), control.total()),
    );
    Ok(())
}

/// The same sequence in a lab of its own that has no mesh.
async fn control() -> Result<LoadReport> {
    let lab = Lab::start(LabOptions::plain()).await?;
    for manifests in [super::NAMESPACES, super::SHOP, super::OUTSIDE] {
        lab.apply(manifests).await?;
    }
    lab.wait_namespace_ready("shop").await?;
    lab.scale("shop", "payments", 3).await?;
    lab.wait_ready("shop", "payments", 3).await?;
    let report = delete_under_load(&lab).await?;
    lab.down().await?;
    Ok(report)
}

/// Two clients that open a connection per request, while a pod is deleted with its grace period and replaced.
async fn delete_under_load(lab: &Lab) -> Result<LoadReport> {
    let load = Load::start(lab, "shop", "orders", "http://payments/", 2)?;
    load.wait_answers(20, Duration::from_secs(60)).await?;
    let victim = lab.pods("shop", "payments").await?.into_iter().next();
    if let Some(victim) = victim {
        lab.delete("Pod", "shop", &victim.name).await?;
        let what = format!("{} gone and replaced", victim.name);
        lab.wait_status(&what, Duration::from_secs(30), |status| {
            let gone = status.pods.iter().all(|pod| pod.uid != victim.uid);
            let ready =
                status.pods.iter().filter(|pod| pod.deployment.as_deref() == Some("payments") && pod.ready).count();
            (gone && ready == 3).then_some(())
        })
        .await?;
    }
    let so_far = load.report().total();
    load.wait_answers(so_far + 20, Duration::from_secs(60)).await?;
    Ok(load.stop().await?)
}

async fn spread(lab: &Lab, requests: usize) -> Result<BTreeMap<String, usize>> {
    let mut counts = BTreeMap::new();
    for _ in 0..requests {
        let answer = client::get(lab, "shop", "orders", "http://payments/").await?;
        if answer.ok() {
            *counts.entry(answer.body).or_default() += 1;
        }
    }
    Ok(counts)
}
