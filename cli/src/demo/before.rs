//! Step 1: a request across nodes by Service address, readable on the wire.

use anyhow::Result;

use super::{Demo, client};

pub(super) async fn run(demo: &mut Demo) -> Result<()> {
    let capture = demo.lab.capture("node1").await?;
    let answer = client::get(&demo.lab, "shop", "orders", "http://payments/").await?;
    let seen = capture.stop().await?;
    demo.claim(
        answer.ok(),
        format!(
            "orders (node1) → payments (node2) by its Service: {} from {} in {:?}",
            answer.status, answer.body, answer.took
        ),
    );
    let readable = seen.contains(b"GET / HTTP/1.1") && seen.contains(answer.body.as_bytes());
    demo.claim(readable, "the capture on the wire shows readable HTTP: `GET / HTTP/1.1` and the answer");
    let plain = client::latency(&demo.lab, "shop", "orders", "http://payments/").await?;
    demo.plain = Some(plain);
    demo.claim(
        true,
        format!(
            "without the mesh: p50 {:?}, p99 {:?}, {:.0} requests/s on 4 connections",
            plain.p50, plain.p99, plain.per_second
        ),
    );
    Ok(())
}
