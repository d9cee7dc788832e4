//! Pods of one node: what their proxy does without a tunnel must look as it does with one, but on the wire; and a
//! NetworkPolicy has to see it there.

use std::time::Duration;

use anyhow::{Context, Result};
use aquifer_lab::{Component, Lab, LabOptions};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::harness::{access_lines_appear, connect, counted, eventually, listen, raw, service_ips};

const COUNTER: &str = "add table inet seen; add chain inet seen out { type filter hook output priority 0; policy accept; }; \
                       add rule inet seen out tcp dport 15008 counter";

/// The proxies' own choice; the control plane permits it, whatever the run says of fast paths.
fn fast_path(on: &str) -> LabOptions {
    LabOptions::default().istiod_var("SAME_NODE_FAST_PATH", "true").ztunnel_var("SAME_NODE_FAST_PATH", on)
}

/// Packets to 15008 that have left a pod so far.
async fn tunnelled(lab: &Lab, pod: &str) -> Result<u64> {
    let list = lab.pod_netns_exec("raw", pod, &["nft", "list", "table", "inet", "seen"]).await?.stdout;
    let (_, rest) = list.split_once("packets ").with_context(|| format!("a counter in {list:?}"))?;
    Ok(rest.split(' ').next().unwrap_or_default().parse()?)
}

/// An access line without what differs from one connection to the next.
fn comparable(line: &str) -> String {
    let fields = line.split_whitespace().skip(1).map(|field| match field.split_once('=') {
        Some((
            key @ ("src.addr" | "src.workload" | "dst.workload" | "duration" | "dst.addr" | "dst.hbone_addr"),
            value,
        )) => {
            // Ports of clients, names of pods.
            let value = value.trim_matches('"');
            let kept = match key {
                "dst.addr" | "dst.hbone_addr" => value.rsplit_once(':').map_or("", |(_, port)| port),
                "src.workload" | "dst.workload" => value.split('-').next().unwrap_or_default(),
                _ => "",
            };
            format!("{key}={kept}")
        }
        _ => field.to_owned(),
    });
    fields.collect::<Vec<_>>().join(" ")
}

/// Waits until a node's proxy holds certificates of these service accounts.
async fn certified(lab: &Lab, node: &str, accounts: &[&str]) -> Result<()> {
    eventually(&format!("{node} has certificates of {accounts:?}"), Duration::from_secs(2), async || {
        let dump: serde_json::Value = serde_json::from_str(&lab.ztunnel_admin(node, "/config_dump").await?)?;
        let held = dump["certificates"].as_array().context("certificates in the config dump")?;
        let available = |account: &&str| {
            held.iter().any(|one| {
                one["state"] == "Available" && one["identity"].as_str().is_some_and(|id| id.ends_with(*account))
            })
        };
        Ok(accounts.iter().all(available))
    })
    .await
    .map(drop)
}

/// Accepts one connection, which says whom it sees, and echoes one byte.
async fn through(lab: &Lab, listener: &tokio::net::TcpListener) -> Result<(TcpStream, TcpStream)> {
    let a = lab.pod("raw", "a").await?;
    let to = service_ips(lab, "raw", "c").await?[0];
    let mut client = connect(lab, &a, (to, 7).into())?;
    let (mut server, peer) = tokio::time::timeout(Duration::from_secs(60), listener.accept()).await??;
    assert!(a.ips.contains(&peer.ip().to_canonical()), "{peer} is not of {:?}", a.ips);
    client.write_all(b"?").await?;
    assert_eq!(server.read_u8().await?, b'?');
    server.write_all(b"!").await?;
    assert_eq!(client.read_u8().await?, b'!');
    Ok((client, server))
}

/// Ends a connection in order.
async fn end((mut client, mut server): (TcpStream, TcpStream)) -> Result<()> {
    client.shutdown().await?;
    assert_eq!(server.read(&mut [0]).await?, 0);
    drop(server);
    assert_eq!(client.read(&mut [0]).await?, 0);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_and_counters_are_the_same_and_nothing_is_on_the_wire() -> Result<()> {
    let mut seen = Vec::new();
    for on in ["false", "true"] {
        let lab = raw(fast_path(on)).await?;
        let c = lab.pod("raw", "c").await?;
        let listener = listen(&lab, &c, 7007)?;
        // Who comes earlier goes through a tunnel, which stays open for a while.
        certified(&lab, "node1", &["sa/a", "sa/c"]).await?;
        end(through(&lab, &listener).await?).await?;
        access_lines_appear(&lab, "node1", 2, &["sa/a", "connection complete"]).await?;
        for pod in ["a", "c"] {
            lab.pod_netns_exec("raw", pod, &["nft", COUNTER]).await?;
        }
        end(through(&lab, &listener).await?).await?;
        let lines = access_lines_appear(&lab, "node1", 4, &["sa/a", "connection complete"]).await?;
        let mut lines: Vec<String> = lines[2..].iter().map(|line| comparable(line)).collect();
        lines.sort();
        let packets = tunnelled(&lab, "a").await? + tunnelled(&lab, "c").await?;
        assert_eq!(packets == 0, on == "true", "{packets} packets to 15008 with {on}");
        let proxy = Component::ztunnel("node1");
        let mut counts = Vec::new();
        for (name, expected) in [("opened", 2.0), ("closed", 2.0), ("failed", 0.0)] {
            for reporter in ["reporter=\"source\"", "reporter=\"destination\""] {
                let metric = format!("istio_tcp_connections_{name}_total");
                let labels = [reporter, "connection_security_policy=\"mutual_tls\"", "sa/a", "sa/c"];
                // A line may stand in the log before it is counted.
                counted(&lab, &proxy, &metric, &labels, |found| found >= expected).await?;
                counts.push(lab.metric(proxy.clone(), &metric, &labels).await?);
            }
        }
        seen.push((lines, counts));
        lab.down().await?;
    }
    assert_eq!(seen[0], seen[1]);
    assert_eq!(seen[1].1, [2.0, 2.0, 2.0, 2.0, 0.0, 0.0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_network_policy_that_selects_either_pod_sees_its_traffic() -> Result<()> {
    let lab = raw(fast_path("true")).await?;
    let c = lab.pod("raw", "c").await?;
    let listener = listen(&lab, &c, 7007)?;
    end(through(&lab, &listener).await?).await?;
    for pod in ["a", "c"] {
        lab.pod_netns_exec("raw", pod, &["nft", COUNTER]).await?;
    }
    for (selects, direction) in [("a", "Egress"), ("c", "Ingress")] {
        let (mut client, server) = through(&lab, &listener).await?;
        let before = tunnelled(&lab, "a").await?;
        lab.apply(&format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata: {{ name: seen, namespace: raw }}\n\
             spec: {{ podSelector: {{ matchLabels: {{ app: {selects} }} }}, policyTypes: [{direction}] }}\n"
        ))
        .await?;
        // What is open and unseen ends, though nothing is sent.
        let cut = tokio::time::timeout(Duration::from_secs(5), client.read(&mut [0])).await;
        assert!(!matches!(cut, Err(_) | Ok(Ok(1..))), "{selects}: an unseen connection lives on: {cut:?}");
        drop(server);
        end(through(&lab, &listener).await?).await?;
        assert!(tunnelled(&lab, "a").await? > before, "{selects}: a new connection wasn't seen");

        lab.delete("NetworkPolicy", "raw", "seen").await?;
        eventually(&format!("the policy for {selects} is gone"), Duration::from_secs(1), async || {
            let before = tunnelled(&lab, "a").await?;
            end(through(&lab, &listener).await?).await?;
            Ok(tunnelled(&lab, "a").await? == before)
        })
        .await?;
    }
    Ok(())
}
