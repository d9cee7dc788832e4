//! Step 7: the label is removed; traffic is plain again and nothing of ours is left in the pods.

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Demo, client};

pub(super) async fn run(demo: &mut Demo) -> Result<()> {
    let begin = Instant::now();
    demo.lab.label_namespace("shop", "istio.io/dataplane-mode", None).await?;
    demo.lab.wait_enrolled("shop", false).await?;
    demo.claim(true, format!("out of the mesh {} ms after the label went", begin.elapsed().as_millis()));

    // The rules go after the mark, when peers have heard of it.
    let clean = demo.within(Duration::from_secs(1), async || Ok(leftovers(demo).await?.is_empty())).await?;
    let left = leftovers(demo).await?;
    demo.claim(
        clean.is_some() && left.is_empty(),
        format!("no nftables table, rule or route of ours in any pod {}", left.join(", ")),
    );

    let capture = demo.lab.capture("node1").await?;
    let answer = client::get(&demo.lab, "shop", "orders", "http://payments/").await?;
    let seen = capture.stop().await?;
    demo.claim(
        answer.ok() && seen.contains(b"GET / HTTP/1.1"),
        format!("orders → payments: {}, readable on the wire again", answer.status),
    );
    Ok(())
}

/// What is still there of redirection, by pod.
async fn leftovers(demo: &Demo) -> Result<Vec<String>> {
    let mut left = Vec::new();
    let pods: Vec<_> = demo.lab.status().await?.pods.into_iter().filter(|pod| pod.namespace == "shop").collect();
    for pod in &pods {
        for (what, command) in [
            ("tables", "nft list ruleset"),
            ("rules", "ip rule; ip -6 rule"),
            ("routes", "ip route show table 100 2>/dev/null; ip -6 route show table 100 2>/dev/null"),
        ] {
            let output = demo.lab.pod_netns_exec("shop", &pod.name, &["sh", "-c", command]).await?;
            let ours = output.stdout.lines().any(|line| match what {
                "rules" => line.contains("lookup 100") || line.contains("0x111"),
                _ => !line.trim().is_empty(),
            });
            if ours {
                left.push(format!("{what} in {}", pod.name));
            }
        }
    }
    Ok(left)
}
