//! Step 2: the label goes on; new connections ride HBONE, nothing restarts, nothing is readable any more.

use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use aquifer_lab::Pcap;

use super::{Demo, client, show};

const ORDERS: &str = "spiffe://cluster.local/ns/shop/sa/orders";
const PAYMENTS: &str = "spiffe://cluster.local/ns/shop/sa/payments";
const WEB: &str = "spiffe://cluster.local/ns/shop/sa/web";
const HBONE: u16 = 15008;
const TLS13: u16 = 0x0304;

pub(super) async fn run(demo: &mut Demo) -> Result<()> {
    let before = pods(demo).await?;
    let mark = (demo.log_mark("node1").await?, demo.log_mark("node2").await?);
    let capture = demo.lab.capture("node1").await?;
    let begin = Instant::now();
    demo.lab.label_namespace("shop", "istio.io/dataplane-mode", Some("ambient")).await?;
    let took = demo
        .within(Duration::from_secs(1), async || {
            client::get(&demo.lab, "shop", "orders", "http://payments/").await?;
            let lines = demo.access_lines("node2", mark.1, &["direction=\"inbound\"", ORDERS, PAYMENTS]).await?;
            Ok(!lines.is_empty())
        })
        .await?;
    let elapsed = took.map(|_| begin.elapsed());
    demo.claim(elapsed.is_some(), format!("new connections ride HBONE {} after the label (asked: 1 s)", show(elapsed)));
    demo.lab.wait_enrolled("shop", true).await?;
    let mut known = true;
    for node in ["node1", "node2"] {
        known &= demo.within(Duration::from_secs(2), async || knows_all(demo, node).await).await?.is_some();
    }
    demo.claim(known, "both proxies know every pod of the shop as one of the mesh");
    demo.claim(pods(demo).await? == before, "no pod was restarted or replaced");
    let begun = SystemTime::now().duration_since(UNIX_EPOCH)?;

    let answer = client::get(&demo.lab, "shop", "orders", "http://payments/").await?;
    let local = client::get(&demo.lab, "shop", "orders", "http://web/").await?;
    // A pair that has not talked yet, so that a handshake is in the capture.
    let cart = demo.lab.exec("shop", "web", &["redis-cli", "-h", "cart", "ping"]).await?;
    let seen = capture.stop().await?;
    demo.claim(
        answer.ok() && local.ok() && cart.stdout.trim() == "PONG",
        format!(
            "orders → payments {}, orders → web {}, web → cart {}",
            answer.status,
            local.status,
            cart.stdout.trim()
        ),
    );
    let readable = after(&seen, begun).contains(b"HTTP/1.1") || after(&seen, begun).contains(b"PONG");
    demo.claim(!readable, "the capture shows nothing readable any more");
    // The node itself talks on the wire too, with the control plane and an API server.
    let members = addresses(demo).await?;
    let of_pods = after(&seen, begun).filter(|packet| members.iter().any(|ip| packet.has_ip(*ip)));
    let (sealed, other): (Vec<_>, Vec<_>) = of_pods.tcp_payloads().partition(|packet| packet.has_port(HBONE));
    let versions = seen.filter(|packet| packet.has_port(HBONE)).tls_versions();
    demo.claim(
        !sealed.is_empty()
            && other.is_empty()
            && !versions.is_empty()
            && versions.iter().all(|version| *version == TLS13),
        format!(
            "only TLS 1.3 to port 15008 between the pods of two nodes: {} packets with payload, {} to other ports{}, {} handshakes",
            sealed.len(),
            other.len(),
            other.first().map(|packet| format!(" (the first {} → {})", packet.src, packet.dst)).unwrap_or_default(),
            versions.len()
        ),
    );
    for (node, from, direction) in [("node1", mark.0, "outbound"), ("node2", mark.1, "inbound")] {
        let texts = [&*format!("direction=\"{direction}\""), ORDERS, PAYMENTS];
        let lines = demo.access_lines_appear(node, from, &texts).await?;
        demo.claim(
            !lines.is_empty(),
            format!("{direction} access lines on {node} name both identities: {} lines", lines.len()),
        );
    }
    let same_node = demo.access_lines_appear("node1", mark.0, &["direction=\"inbound\"", ORDERS, WEB]).await?;
    demo.claim(!same_node.is_empty(), "orders → web on one node is captured as well");

    let meshed = client::latency(&demo.lab, "shop", "orders", "http://payments/").await?;
    demo.meshed = Some(meshed);
    demo.claim(
        true,
        format!(
            "in the mesh: p50 {:?}, p99 {:?}, {:.0} requests/s on 4 connections",
            meshed.p50, meshed.p99, meshed.per_second
        ),
    );
    Ok(())
}

/// What was captured from a moment on.
fn after(pcap: &Pcap, moment: Duration) -> Pcap {
    pcap.filter(|packet| packet.at >= moment)
}

/// Whether a node's proxy takes every pod of the shop for one of the mesh: to others it sends in plaintext.
async fn knows_all(demo: &Demo, node: &str) -> Result<bool> {
    let dump: serde_json::Value = serde_json::from_str(&demo.lab.ztunnel_admin(node, "/config_dump").await?)?;
    let workloads = dump["workloads"].as_array().context("no workloads in the config dump")?;
    let hbone = |name: &str| {
        workloads.iter().any(|w| w["name"] == name && w["namespace"] == "shop" && w["protocol"] == "HBONE")
    };
    Ok(pods(demo).await?.iter().all(|(name, ..)| hbone(name)))
}

/// The addresses of the shop's pods.
async fn addresses(demo: &Demo) -> Result<Vec<IpAddr>> {
    let pods = demo.lab.status().await?.pods;
    Ok(pods.into_iter().filter(|pod| pod.namespace == "shop").flat_map(|pod| pod.ips).collect())
}

/// Names, uids and restarts of the shop's pods.
async fn pods(demo: &Demo) -> Result<Vec<(String, String, u32)>> {
    let mut pods: Vec<_> = demo.lab.status().await?.pods.into_iter().filter(|pod| pod.namespace == "shop").collect();
    pods.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(pods.into_iter().map(|pod| (pod.name, pod.uid, pod.restarts)).collect())
}
