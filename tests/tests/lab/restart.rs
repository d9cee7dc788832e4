//! A node proxy that is replaced, or dies: who is served by whom, and who notices.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aquifer_lab::{Component, Lab, LabOptions, Load};
use nix::sys::signal::Signal;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::harness::{connect, eventually, freeze, get, meshed_shop, redirection, service_ips};

const REPLACEMENTS: usize = 20;
/// Of the old proxy for what is open, counted from its SIGTERM.
const DEADLINE: Duration = Duration::from_secs(12);
/// For so long we look, from when we know of the SIGTERM: sure to end before the deadline.
const HELD: Duration = Duration::from_secs(3);

async fn open(lab: &Lab) -> Result<TcpStream> {
    let pod = lab.pod("shop", "orders").await?;
    let vip = service_ips(lab, "shop", "cart").await?[0];
    connect(lab, &pod, (vip, 6379).into())
}

async fn ping(stream: &mut TcpStream) -> Result<()> {
    stream.write_all(b"PING\r\n").await?;
    let mut answer = [0; 7];
    timeout(Duration::from_secs(30), stream.read_exact(&mut answer)).await.context("no answer in 30 s")??;
    ensure!(&answer == b"+PONG\r\n", "{answer:?}");
    Ok(())
}

/// Both nodes' proxies by turns, while requests go to and fro: no new connection fails, and one that is open lives on
/// in the old proxy.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_replacements_fail_nobody() -> Result<()> {
    let deadline = format!("{}s", DEADLINE.as_secs());
    let lab = meshed_shop(LabOptions::default().ztunnel_var("CONNECTION_TERMINATION_DEADLINE", deadline)).await?;
    let load = Load::start(&lab, "shop", "orders", "http://payments/", 2)?;
    load.wait_answers(10, Duration::from_secs(60)).await?;
    let mut held = JoinSet::new();
    let (begin, mut took) = (Instant::now(), Vec::new());
    for round in 0..REPLACEMENTS {
        let mut stream = open(&lab).await?;
        ping(&mut stream).await?;
        let started = Instant::now();
        lab.replace_ztunnel(["node1", "node2"][round % 2]).await?;
        took.push(started.elapsed());
        let told = Instant::now();
        held.spawn(async move {
            while told.elapsed() < HELD {
                ping(&mut stream)
                    .await
                    .with_context(|| format!("round {round}, {:?} after SIGTERM", told.elapsed()))?;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            anyhow::Ok(())
        });
        let ended = load.report().total();
        load.wait_answers(ended + 5, Duration::from_secs(60)).await?;
    }
    let all = begin.elapsed();
    while let Some(kept) = held.join_next().await {
        kept??;
    }
    let report = load.stop().await?;
    took.sort();
    println!(
        "{REPLACEMENTS} replacements in {all:?} (each {:?} in the middle, {:?} at most): {} requests, {} failed",
        took[REPLACEMENTS / 2],
        took[REPLACEMENTS - 1],
        report.total(),
        report.failed()
    );
    assert_eq!(report.failed(), 0, "of {}: {}", report.total(), report.first_failure());
    Ok(())
}

/// The old proxy is frozen, so that its queue fills; then it is replaced. Whoever waits there is served: by the old one
/// if it wakes for its drain, by the new one if it dies (`tcp_migrate_req`).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_in_the_old_queue_is_served() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    for end in ["-CONT", "-KILL"] {
        // A thread that still runs would take the first of them out of the queue.
        let old = freeze(&lab, "node1").await?.to_string();
        let mut waiting = Vec::new();
        for _ in 0..40 {
            waiting.push(open(&lab).await?);
        }
        lab.replace_ztunnel("node1").await?;
        let output = lab.node_exec("node1", &["kill", end, &old]).await?;
        ensure!(output.code == 0, "{output:?}");
        let begin = Instant::now();
        for (number, stream) in waiting.iter_mut().enumerate() {
            ping(stream).await.with_context(|| format!("kill {end}: connection {number} of the queue"))?;
        }
        println!("kill {end}: {} that waited are served after {:?}", waiting.len(), begin.elapsed());
    }
    Ok(())
}

/// Also when the control plane is just back itself. The rules in the pods are not touched.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_proxys_successor_serves_within_a_second() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let kill = Signal::SIGKILL as i32;
    let rules = redirection(&lab, "shop", "orders").await?;
    ensure!(rules.contains("istio"), "{rules}");
    for with_istiod in [false, true, false, true] {
        if with_istiod {
            lab.kill(Component::Istiod, kill).await?;
            lab.start_component(Component::Istiod).await?;
            lab.wait_component_ready(&Component::Istiod).await?;
        }
        lab.kill(Component::ztunnel("node1"), kill).await?;
        lab.start_component(Component::ztunnel("node1")).await?;
        let what = format!("pods are served by the successor (control plane restarted before: {with_istiod})");
        let served = async || Ok(get(&lab, "shop", "orders", "http://payments/").await?.ok());
        eventually(&what, Duration::from_secs(1), served).await?;
        assert_eq!(redirection(&lab, "shop", "orders").await?, rules);
    }
    Ok(())
}
