//! A rolling upgrade of the control plane and of the agents: what comes meanwhile is served, what is open stays open.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_lab::{Component, Lab, LabOptions, Load};
use nix::sys::signal::Signal;

use crate::harness::{eventually, get, meshed_shop};

const ROUNDS: usize = 4;
const LONG: Duration = Duration::from_secs(60);

async fn more(load: &Load, count: usize) -> Result<()> {
    Ok(load.wait_answers(load.report().total() + count, LONG).await?)
}

/// Pods of the control plane that there are.
async fn replicas(lab: &Lab) -> Result<Vec<String>> {
    let pods = lab.status().await?.pods;
    Ok(pods.into_iter().filter(|pod| pod.name.starts_with("istiod-")).map(|pod| pod.name).collect())
}

/// Two replicas at a time, then the older one is told to go. What changes before, between and after arrives.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_control_plane_is_replaced_and_no_connection_fails() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let load = Load::start(&lab, "shop", "orders", "http://payments/", 2)?;
    load.wait_answers(10, LONG).await?;
    for round in 0..ROUNDS {
        let old = lab.replace_istiod().await?;
        more(&load, 10).await?;
        // A pod that nobody has seen is made while the old one goes: it needs addresses and a certificate.
        let wanted = [3, 1][round % 2];
        lab.scale("shop", "web", wanted).await?;
        lab.wait_ready("shop", "web", wanted as usize).await?;
        lab.wait_enrolled("shop", true).await?;
        for pod in lab.pods("shop", "web").await? {
            ensure!(get(&lab, "shop", &pod.name, "http://payments/").await?.ok(), "{} in round {round}", pod.name);
        }
        eventually("the old one is gone", Duration::from_secs(10), async || {
            let there = replicas(&lab).await?;
            Ok(there.len() == 1 && !there.contains(&old))
        })
        .await?;
        more(&load, 10).await?;
    }
    let report = load.stop().await?;
    println!("{ROUNDS} replacements: {} requests, {} failed", report.total(), report.failed());
    assert_eq!(report.failed(), 0, "of {}: {}", report.total(), report.first_failure());
    Ok(())
}

/// An agent ends in good order and another begins, as a DaemonSet does it, while pods come and go on its node. Pods
/// that are there don't notice; those that come meanwhile are enrolled before they are ready, or soon after.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_replaced_while_pods_come_and_go() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let load = Load::start(&lab, "shop", "orders", "http://payments/", 2)?;
    load.wait_answers(10, LONG).await?;
    for round in 0..ROUNDS {
        let agent = Component::agent(["node1", "node2"][round % 2]);
        let replicas = [3, 1][round % 2];
        lab.kill(agent.clone(), Signal::SIGTERM as i32).await?;
        lab.scale("shop", "web", replicas).await?;
        more(&load, 10).await.context("without an agent")?;
        lab.start_component(agent.clone()).await?;
        lab.wait_component_ready(&agent).await?;
        lab.wait_ready("shop", "web", replicas as usize).await?;
        lab.wait_enrolled("shop", true).await?;
        for pod in lab.pods("shop", "web").await? {
            ensure!(get(&lab, "shop", &pod.name, "http://payments/").await?.ok(), "{} after round {round}", pod.name);
        }
        more(&load, 10).await?;
    }
    let report = load.stop().await?;
    println!("{ROUNDS} agents replaced: {} requests, {} failed", report.total(), report.failed());
    assert_eq!(report.failed(), 0, "of {}: {}", report.total(), report.first_failure());
    Ok(())
}
