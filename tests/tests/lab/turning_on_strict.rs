//! "Turning on STRICT" of docs/operations.md, step by step: with its manifests and its commands, as they stand there.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_lab::{Component, Lab, LabOptions, Netns};
use aquifer_objects::Kind;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::harness::{access_line_appears, access_lines, eventually, get, listen, meshed_shop};

const GUIDE: &str = include_str!("../../../docs/operations.md");
/// Who the guide speaks of besides the shop: Prometheus and an ingress, not enrolled yet.
const CALLERS: &str = include_str!("strict_callers.yaml");
const METRICS_PORT: u16 = 9102;

/// One numbered step: its blocks of a language, in order.
fn step(number: usize, language: &str) -> Result<Vec<String>> {
    let guide = GUIDE.split("\n## ").find(|section| section.starts_with("Turning on STRICT\n")).context("the guide")?;
    let title = format!("\n### {number}. ");
    let step = guide.split_once(&title).with_context(|| format!("step {number}"))?.1;
    let step = step.split("\n### ").next().unwrap_or(step);
    let fence = format!("\n```{language}\n");
    let blocks = step.split(&fence).skip(1).filter_map(|rest| rest.split_once("\n```"));
    Ok(blocks.map(|(block, _)| block.to_owned()).collect())
}

/// Applies a step's manifests as the guide says: merged into what is there, or new.
async fn follow(lab: &Lab, block: &str) -> Result<()> {
    let object: Value = serde_norway::from_str(block)?;
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let kind: Kind = text("/kind").parse()?;
    match kind {
        Kind::Namespace | Kind::Deployment => {
            lab.patch_user(kind, text("/metadata/namespace"), text("/metadata/name"), object.clone()).await?;
        }
        _ => drop(lab.apply(block).await?),
    }
    Ok(())
}

/// Runs a command of the guide where it says: in the network namespace of a node's ztunnel.
async fn ask_ztunnel(lab: &Lab, node: &str, command: &str) -> Result<String> {
    let output = lab.netns_exec(Netns::Component(Component::ztunnel(node)), &["sh", "-c", command]).await?;
    Ok(output.stdout)
}

/// The plaintext callers of all nodes, as step 1 lists them.
async fn plaintext_callers(lab: &Lab) -> Result<Vec<String>> {
    let commands = step(1, "sh")?;
    let [command] = &commands[..] else { anyhow::bail!("step 1 has one command") };
    let mut lines = Vec::new();
    for node in ["node1", "node2"] {
        lines.extend(ask_ztunnel(lab, node, command).await?.lines().map(str::to_owned));
    }
    ensure!(lines.iter().all(|line| line.contains(" → ")), "lines that the guide's sed does not know: {lines:?}");
    Ok(lines)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_guide_leads_to_strict_without_a_surprise() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    lab.apply(CALLERS).await?;
    for namespace in ["monitoring", "ingress"] {
        lab.wait_namespace_ready(namespace).await?;
    }
    let payments = lab.pod("shop", "payments").await?;
    let metrics = listen(&lab, &payments, METRICS_PORT)?;
    tokio::spawn(async move {
        while let Ok((mut client, _)) = metrics.accept().await {
            let _ = client.read(&mut [0; 1024]).await;
            let _ = client.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\nup 1\n").await;
        }
    });
    let scrape = format!("http://{}:{METRICS_PORT}/metrics", payments.ipv4());
    let application = "http://payments.shop/";
    // The ingress answers with what the shop answered it.
    let entry = "http://gateway.ingress/";
    let ok = async |namespace: &str, pod: &str, url: &str| Ok(get(&lab, namespace, pod, url).await?.ok());
    for (namespace, pod, url) in [
        ("monitoring", "prometheus", &*scrape),
        ("outside", "client", &scrape),
        ("outside", "client", application),
        ("outside", "client", entry),
    ] {
        eventually(&format!("{namespace}/{pod} reaches {url}"), Duration::from_secs(2), async || {
            ok(namespace, pod, url).await
        })
        .await?;
    }

    // Step 1: all three callers are on the list; the mesh's own pods are not.
    ok("shop", "orders", "http://payments/").await?;
    let mut callers = Vec::new();
    for (from, to, (namespace, pod, url)) in [
        ("monitoring/prometheus", "shop/payments", ("monitoring", "prometheus", &*scrape)),
        ("outside/client", "shop/payments", ("outside", "client", application)),
        ("ingress/gateway", "shop/web", ("outside", "client", entry)),
    ] {
        eventually(&format!("{from} → {to} is on the list"), Duration::from_secs(1), async || {
            // A caller that the destination's proxy has not heard of yet is counted as unknown: those call again.
            ok(namespace, pod, url).await?;
            callers = plaintext_callers(&lab).await?;
            Ok(callers.iter().any(|line| line.starts_with(&format!("{from} → {to}: "))))
        })
        .await?;
    }
    assert!(!callers.iter().any(|line| line.starts_with("shop/")), "{callers:?}");

    // Step 2: Prometheus and the ingress join; they call with their identities, and clients still reach the ingress.
    let manifests = step(2, "yaml")?;
    assert_eq!(manifests.len(), 3, "step 2");
    let before = lab.pod("ingress", "gateway").await?;
    for block in &manifests {
        follow(&lab, block).await?;
    }
    eventually("the ingress is rolled over", Duration::from_secs(5), async || {
        let pods = lab.pods("ingress", "gateway").await?;
        Ok(pods.iter().all(|pod| pod.ready && pod.uid != before.uid) && pods.len() == 1)
    })
    .await?;
    for namespace in ["monitoring", "ingress"] {
        lab.wait_enrolled(namespace, true).await?;
    }
    for (who, namespace, pod, url) in [
        ("ns/monitoring/sa/prometheus", "monitoring", "prometheus", &*scrape),
        ("ns/ingress/sa/gateway", "outside", "client", entry),
    ] {
        eventually(&format!("{who} calls over mTLS"), Duration::from_secs(2), async || {
            let answered = ok(namespace, pod, url).await?;
            let mut lines = access_lines(&lab, "node1", &[who, "direction=\"inbound\""]).await?;
            lines.extend(access_lines(&lab, "node2", &[who, "direction=\"inbound\""]).await?);
            Ok(answered && !lines.is_empty())
        })
        .await?;
    }
    let before = plaintext_callers(&lab).await?;
    for (namespace, pod, url) in [("monitoring", "prometheus", &*scrape), ("outside", "client", entry)] {
        assert!(ok(namespace, pod, url).await?, "{namespace}/{pod} at {url}");
    }
    assert_eq!(plaintext_callers(&lab).await?, before, "somebody enrolled still calls in plaintext");

    // Step 3 changes nothing yet.
    let manifests = step(3, "yaml")?;
    assert_eq!(manifests.len(), 1, "step 3");
    follow(&lab, &manifests[0]).await?;

    // Step 4: the namespace, then the mesh. Only the plaintext caller of the application is refused.
    let manifests = step(4, "yaml")?;
    assert_eq!(manifests.len(), 2, "step 4");
    for (scope, block) in ["the namespace", "the mesh"].into_iter().zip(&manifests) {
        follow(&lab, block).await?;
        eventually(&format!("STRICT holds for {scope}"), Duration::from_secs(1), async || {
            Ok(!ok("outside", "client", application).await?)
        })
        .await?;
        for (namespace, pod, url) in [
            ("shop", "orders", "http://payments/"),
            ("monitoring", "prometheus", &scrape),
            ("outside", "client", &scrape),
            ("outside", "client", entry),
        ] {
            let answer = get(&lab, namespace, pod, url).await?;
            assert!(answer.ok(), "STRICT for {scope}: {namespace}/{pod} at {url}: {answer:?}");
        }
        // Behind the other node's proxy.
        eventually(
            &format!("plaintext to a pod without exceptions: STRICT for {scope}"),
            Duration::from_secs(1),
            async || Ok(!ok("outside", "client", "http://web.shop/").await?),
        )
        .await?;
    }

    // Step 5: each refusal names the pod outside, the policy and the remedy, and the guide's command counts it.
    let client = lab.pod("outside", "client").await?;
    for (node, policy) in [
        ("node2", "shop/converted_peer_authentication_payments-metrics"),
        ("node1", "istio-system/istio_converted_static_strict"),
    ] {
        let told = [
            format!("src.workload=\"{}\"", client.name),
            "src.namespace=\"outside\"".to_owned(),
            "reason=\"policy_denied\"".to_owned(),
            format!("policy=\"{policy}\""),
            "remedy=\"enrol the client (istio.io/dataplane-mode=ambient) or allow plaintext".to_owned(),
        ];
        let told: Vec<&str> = told.iter().map(String::as_str).collect();
        access_line_appears(&lab, node, &told).await?;
        let commands = step(5, "sh")?;
        assert_eq!(commands.len(), 1, "step 5");
        eventually(&format!("{node} counts what {policy} refuses"), Duration::from_secs(1), async || {
            Ok(ask_ztunnel(&lab, node, &commands[0]).await?.contains(&format!("policy=\"{policy}\"")))
        })
        .await?;
    }
    Ok(())
}
