//! `aquifer demo`: the main job, live, on real programs, one line for each thing that must be true.
//!
//! ```text
//!   lab up ─ shop applied ─ 1 before ─ 2 enrol ─ 3 authorize ─ 4 mtls ─ 5 scale ─ 6 rotate ─ 7 leave ─ table
//! ```
//! A step that finds something untrue says what it saw and the demo goes on; the exit code tells.

mod authorize;
mod before;
mod client;
mod enrol;
mod leave;
mod mtls;
mod rotate;
mod scale;
mod table;

use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab, LabOptions};

use client::Latency;

/// Certificates live this long in the demo, so that rotation is seen.
const CERTIFICATE_TTL: &str = "20s";
/// What a ztunnel that is replaced gives to open connections.
const DRAIN_SECONDS: &str = "15";

const NAMESPACES: &str = include_str!("../../../examples/shop/00-namespaces.yaml");
const SHOP: &str = include_str!("../../../examples/shop/10-shop.yaml");
const OUTSIDE: &str = include_str!("../../../examples/shop/20-outside.yaml");

/// What the steps share.
struct Demo {
    lab: Lab,
    failed: usize,
    ended: bool,
    plain: Option<Latency>,
    meshed: Option<Latency>,
    costs: Vec<table::Cost>,
}

/// Runs the demo on a runtime of its own; the exit code.
pub(crate) fn command(keep: bool, api_server: bool) -> Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let passed = runtime.block_on(run(keep, api_server))?;
    Ok(u8::from(!passed))
}

/// Runs the demo; returns whether everything was true.
async fn run(keep: bool, api_server: bool) -> Result<bool> {
    let begin = Instant::now();
    let options = LabOptions {
        keep,
        api_server,
        ..LabOptions::default()
            .ztunnel_var("SECRET_TTL", CERTIFICATE_TTL)
            .ztunnel_var("CONNECTION_TERMINATION_DEADLINE", format!("{DRAIN_SECONDS}s"))
    };
    let lab = Lab::start(options).await?;
    println!("lab `{}`: two nodes in network namespaces, up in {} ms", lab.name(), lab.start_took().as_millis());
    let applying = Instant::now();
    let mut demo = Demo { lab, failed: 0, ended: false, plain: None, meshed: None, costs: Vec::new() };
    demo.deploy().await.context("deploying examples/shop")?;
    println!(
        "examples/shop: nginx as web, orders and payments, redis as cart; ready in {} ms",
        applying.elapsed().as_millis()
    );

    demo.step("1 before: plain traffic", before::run).await;
    demo.step("2 the label: traffic rides mTLS HBONE", enrol::run).await;
    demo.step("3 AuthorizationPolicy: payments only from orders", authorize::run).await;
    demo.step("4 PeerAuthentication, and certificates that are not ours", mtls::run).await;
    demo.step("5 payments scaled to 3, one deleted under load", scale::run).await;
    // Before a ztunnel is replaced: the new process would not have done the work.
    demo.costs = table::costs(&demo.lab).await;
    demo.step("6 certificates rotated and a ztunnel replaced, under load", rotate::run).await;
    demo.step("7 the label removed: nothing of ours is left", leave::run).await;
    table::print(&demo);

    let passed = demo.failed == 0;
    println!();
    match demo.failed {
        0 => println!("everything held; {} s in all", begin.elapsed().as_secs()),
        n => println!("{n} things did NOT hold; {} s in all", begin.elapsed().as_secs()),
    }
    if keep {
        print_commands(demo.lab.name());
    } else {
        demo.lab.down().await.context("taking the lab down")?;
    }
    Ok(passed)
}

impl Demo {
    async fn deploy(&self) -> Result<()> {
        for manifests in [NAMESPACES, SHOP, OUTSIDE] {
            self.lab.apply(manifests).await?;
        }
        self.lab.wait_namespace_ready("shop").await?;
        self.lab.wait_namespace_ready("outside").await?;
        Ok(())
    }

    /// Runs one step; what keeps it from going on counts as a failure and is told.
    async fn step(&mut self, title: &str, run: impl AsyncFnOnce(&mut Self) -> Result<()>) {
        if self.ended {
            return;
        }
        println!("\n{title}");
        if let Err(error) = run(self).await {
            self.claim(false, format!("the step could not go on: {error:#}"));
            self.ended = self.lab.status().await.is_err();
            if self.ended {
                println!("  the lab ended: the steps that follow are left out");
            }
        }
    }

    /// One line: what must be true, with what was measured.
    fn claim(&mut self, holds: bool, text: impl std::fmt::Display) {
        println!("  {} {text}", if holds { "ok  " } else { "FAIL" });
        self.failed += usize::from(!holds);
    }

    /// Waits until `condition` holds or five times `bound` has passed; returns how long it took, if it came true.
    async fn within(
        &self,
        bound: Duration,
        mut condition: impl AsyncFnMut() -> Result<bool>,
    ) -> Result<Option<Duration>> {
        let begin = Instant::now();
        loop {
            let looked = begin.elapsed();
            if condition().await? {
                return Ok(Some(begin.elapsed()));
            }
            if looked >= bound * 5 {
                return Ok(None);
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    /// [`Demo::access_lines`], waited for: a line is written when its connection has ended, by a thread of its own.
    async fn access_lines_appear(&self, node: &str, from: usize, texts: &[&str]) -> Result<Vec<String>> {
        let mut lines = Vec::new();
        self.within(Duration::from_secs(1), async || {
            lines = self.access_lines(node, from, texts).await?;
            Ok(!lines.is_empty())
        })
        .await?;
        Ok(lines)
    }

    /// The access lines of a node's ztunnel that were written since `from` bytes and hold all the texts.
    async fn access_lines(&self, node: &str, from: usize, texts: &[&str]) -> Result<Vec<String>> {
        let log = self.lab.component_logs(&Component::ztunnel(node)).await?;
        let new = log.get(from..).unwrap_or_default();
        let lines =
            new.lines().filter(|line| line.contains("\taccess\t") && texts.iter().all(|text| line.contains(text)));
        Ok(lines.map(str::to_owned).collect())
    }

    /// How much a node's ztunnel has logged: a mark for [`Demo::access_lines`].
    async fn log_mark(&self, node: &str) -> Result<usize> {
        Ok(self.lab.component_logs(&Component::ztunnel(node)).await?.len())
    }
}

/// How long something asked for within a second took; [`Demo::within`] gives up after five.
fn show(took: Option<Duration>) -> String {
    took.map_or_else(|| "NOT within 5 s".to_owned(), |took| format!("{} ms", took.as_millis()))
}

fn print_commands(lab: &str) {
    let program = std::env::current_exe().map_or_else(|_| "aquifer".to_owned(), |path| path.display().to_string());
    println!("\nThe lab stays up. Try:");
    commands(lab).iter().for_each(|command| println!("  {program} {command}"));
}

/// What a person may try with a lab that stays up.
pub(crate) fn commands(lab: &str) -> Vec<String> {
    [
        "status",
        "exec -n shop deploy/orders -- curl -s http://payments/",
        "label namespace shop istio.io/dataplane-mode=ambient",
        "apply -f examples/shop/policies/payments-only-from-orders.yaml",
        "exec -n shop deploy/web -- curl -sv http://payments/",
        "delete -f examples/shop/policies/payments-only-from-orders.yaml",
        "logs ztunnel --node node2",
        "down",
    ]
    .iter()
    .map(|command| format!("lab --name {lab} {command}"))
    .collect()
}
