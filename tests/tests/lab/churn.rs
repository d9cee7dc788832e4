//! Every process of the mesh killed and started again, in every order, while traffic flows.

use std::time::Duration;

use anyhow::Result;
use aquifer_lab::{Component, LabOptions, Load};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{connect, eventually, get, meshed_shop, service_ips};

fn orders_of(components: &[Component]) -> Vec<Vec<Component>> {
    if components.len() <= 1 {
        return vec![components.to_vec()];
    }
    let mut all = Vec::new();
    for (at, first) in components.iter().enumerate() {
        let mut rest = components.to_vec();
        rest.remove(at);
        for mut tail in orders_of(&rest) {
            tail.insert(0, first.clone());
            all.push(tail);
        }
    }
    all
}

/// All three are killed in this order, then started in this order; after each return traffic flows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_is_killed_and_started_in_every_order() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let all = [Component::agent("node1"), Component::ztunnel("node1"), Component::Istiod];
    for order in orders_of(&all) {
        for component in &order {
            lab.kill(component.clone(), libc_kill()).await?;
        }
        for component in &order {
            lab.start_component(component.clone()).await?;
        }
        eventually(&format!("traffic flows after {order:?}"), Duration::from_secs(5), async || {
            Ok(get(&lab, "shop", "orders", "http://payments/").await?.ok())
        })
        .await?;
        lab.wait_enrolled("shop", true).await?;
    }
    for component in &all {
        lab.wait_component_ready(component).await?;
    }
    Ok(())
}

/// While istiod-lite or an agent is away nothing fails and nothing that is open is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_plane_and_agents_may_die_without_anybody_noticing() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let orders = lab.pod("shop", "orders").await?;
    let vip = service_ips(&lab, "shop", "cart").await?[0];
    let mut open = connect(&lab, &orders, (vip, 6379).into())?;
    let load = Load::start(&lab, "shop", "orders", "http://payments/", 2)?;
    load.wait_answers(10, Duration::from_secs(20)).await?;
    for component in [Component::Istiod, Component::agent("node1"), Component::agent("node2"), Component::Istiod] {
        lab.kill(component.clone(), libc_kill()).await?;
        let ended = load.report().total();
        load.wait_answers(ended + 20, Duration::from_secs(20)).await?;
        lab.start_component(component.clone()).await?;
        lab.wait_component_ready(&component).await?;
        let ended = load.report().total();
        load.wait_answers(ended + 20, Duration::from_secs(20)).await?;
    }
    open.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    open.read_exact(&mut answer).await?;
    assert_eq!(&answer, b"+PONG\r\n");
    let report = load.stop().await?;
    assert_eq!(report.failed(), 0, "of {}: {}", report.total(), report.first_failure());
    // What changed meanwhile arrives: a new pod is enrolled and reached.
    lab.scale("shop", "payments", 2).await?;
    lab.wait_ready("shop", "payments", 2).await?;
    lab.wait_enrolled("shop", true).await?;
    Ok(())
}

fn libc_kill() -> i32 {
    nix::sys::signal::Signal::SIGKILL as i32
}
