//! Every process of the mesh killed and started again, in every order, while traffic flows.

use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab, LabOptions, Load};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::harness::{connect, eventually, get, meshed_shop, service_ips};

const ONLY_ORDERS: &str = include_str!("../../../examples/shop/policies/payments-only-from-orders.yaml");
const KILL: i32 = Signal::SIGKILL as i32;

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

async fn redis(lab: &Lab, client: &str) -> Result<TcpStream> {
    let pod = lab.pod("shop", client).await?;
    let vip = service_ips(lab, "shop", "cart").await?[0];
    let mut stream = connect(lab, &pod, (vip, 6379).into())?;
    ping(&mut stream).await?;
    Ok(stream)
}

async fn ping(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    timeout(Duration::from_secs(30), stream.read_exact(&mut answer)).await.context("no answer in 30 s")??;
    assert_eq!(&answer, b"+PONG\r\n");
    Ok(())
}

/// Traffic flows again, and what a policy forbids is still forbidden.
async fn whole(lab: &Lab, after: &str) -> Result<()> {
    eventually(&format!("traffic flows after {after}"), Duration::from_secs(5), async || {
        Ok(get(lab, "shop", "orders", "http://payments/").await?.ok())
    })
    .await?;
    assert!(!get(lab, "shop", "web", "http://payments/").await?.ok(), "after {after} the policy is gone");
    Ok(())
}

/// node1's three processes, one after the other and all at once, in each of the six orders. A pair on node2 does not
/// notice; clients on node1 are refused at worst, and never heard in the clear.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_process_is_killed_and_started_in_every_order() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    lab.apply(ONLY_ORDERS).await?;
    let policy = async || Ok(!get(&lab, "shop", "web", "http://payments/").await?.ok());
    eventually("the policy holds", Duration::from_secs(1), policy).await?;
    let mut elsewhere = redis(&lab, "payments").await?;
    let capture = lab.capture("node1").await?;
    let load = Load::start(&lab, "shop", "orders", "http://payments/", 1)?;
    load.wait_answers(5, Duration::from_secs(60)).await?;
    let all = [Component::agent("node1"), Component::ztunnel("node1"), Component::Istiod];
    for order in orders_of(&all) {
        for component in &order {
            lab.kill(component.clone(), KILL).await?;
            lab.start_component(component.clone()).await?;
            whole(&lab, &format!("{component} alone")).await?;
        }
        for component in &order {
            lab.kill(component.clone(), KILL).await?;
        }
        ping(&mut elsewhere).await.context("a connection on node2 noticed")?;
        for component in &order {
            lab.start_component(component.clone()).await?;
        }
        whole(&lab, &format!("all of {order:?}")).await?;
        lab.wait_enrolled("shop", true).await?;
    }
    for component in &all {
        lab.wait_component_ready(component).await?;
    }
    ping(&mut elsewhere).await.context("a connection on node2 noticed")?;
    let report = load.stop().await?;
    println!("{} requests meanwhile, {} refused", report.total(), report.failed());
    assert!(report.answered() > 20, "the load hardly ran: {report:?}");
    let wire = capture.stop().await?;
    assert!(wire.tcp_payloads().count() > 100, "nothing was captured");
    assert!(!wire.contains(b"HTTP/1.1"), "readable on the wire while the proxy was away");
    Ok(())
}

/// While istiod-lite or an agent is away nothing fails and nothing that is open is cut.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn control_plane_and_agents_may_die_without_anybody_noticing() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let mut open = redis(&lab, "orders").await?;
    let load = Load::start(&lab, "shop", "orders", "http://payments/", 2)?;
    load.wait_answers(10, Duration::from_secs(60)).await?;
    for component in [Component::Istiod, Component::agent("node1"), Component::agent("node2"), Component::Istiod] {
        lab.kill(component.clone(), KILL).await?;
        let ended = load.report().total();
        load.wait_answers(ended + 20, Duration::from_secs(60)).await?;
        lab.start_component(component.clone()).await?;
        lab.wait_component_ready(&component).await?;
        let ended = load.report().total();
        load.wait_answers(ended + 20, Duration::from_secs(60)).await?;
    }
    ping(&mut open).await?;
    let report = load.stop().await?;
    assert_eq!(report.failed(), 0, "of {}: {}", report.total(), report.first_failure());
    // What changed meanwhile arrives: a new pod is enrolled and reached.
    lab.scale("shop", "payments", 2).await?;
    lab.wait_ready("shop", "payments", 2).await?;
    lab.wait_enrolled("shop", true).await?;
    Ok(())
}
