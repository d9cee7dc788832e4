//! The label on and off: what changes for pods that run, and what the wire shows.

use std::time::Duration;

use anyhow::Result;
use aquifer_lab::LabOptions;

use crate::harness::{
    ORDERS, PAYMENTS, access_line_appears, access_lines, eventually, get, lab, meshed_shop, redirection, shop,
    wait_meshed,
};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_the_label_traffic_is_plain_and_readable() -> Result<()> {
    let lab = shop(LabOptions::default()).await?;
    let capture = lab.capture("node1").await?;
    let answer = get(&lab, "shop", "orders", "http://payments/").await?;
    let seen = capture.stop().await?;
    assert!(answer.ok(), "{answer:?}");
    assert!(seen.contains(b"GET / HTTP/1.1") && seen.contains(answer.body.as_bytes()));
    assert!(access_lines(&lab, "node1", &[]).await?.is_empty());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_label_puts_new_connections_on_hbone_without_a_restart() -> Result<()> {
    for workers in [1, 2] {
        let lab = shop(LabOptions { workers: Some(workers), ..LabOptions::default() }).await?;
        let names = async || -> Result<Vec<(String, u32)>> {
            let pods = lab.status().await?.pods;
            Ok(pods.into_iter().filter(|pod| pod.namespace == "shop").map(|pod| (pod.uid, pod.restarts)).collect())
        };
        let before = names().await?;
        lab.label_namespace("shop", "istio.io/dataplane-mode", Some("ambient")).await?;
        eventually("a connection rides HBONE after the label", Duration::from_secs(1), async || {
            get(&lab, "shop", "orders", "http://payments/").await?;
            Ok(!access_lines(&lab, "node2", &["direction=\"inbound\"", ORDERS, PAYMENTS]).await?.is_empty())
        })
        .await?;
        wait_meshed(&lab, "shop").await?;
        assert_eq!(names().await?, before, "a pod was restarted or replaced");

        let capture = lab.capture("node1").await?;
        let answer = get(&lab, "shop", "orders", "http://payments/").await?;
        let local = get(&lab, "shop", "orders", "http://web/").await?;
        // A pair that has not talked yet, so that a handshake is in the capture.
        let cart = lab.exec("shop", "web", &["redis-cli", "-h", "cart", "ping"]).await?;
        assert_eq!(cart.stdout.trim(), "PONG");
        let seen = capture.stop().await?;
        assert!(answer.ok() && local.ok(), "{answer:?} {local:?}");
        assert!(!seen.contains(b"HTTP/1.1") && !seen.contains(answer.body.as_bytes()), "readable on the wire");
        // The node itself talks on the wire too, with the control plane.
        let members: Vec<_> = lab
            .status()
            .await?
            .pods
            .into_iter()
            .filter(|pod| pod.namespace == "shop")
            .flat_map(|pod| pod.ips)
            .collect();
        let of_pods = seen.filter(|packet| packet.is_tcp() && members.iter().any(|ip| packet.has_ip(*ip)));
        assert!(of_pods.tcp_payloads().count() > 0, "nothing was captured");
        let beside: Vec<_> = of_pods.tcp_payloads().filter(|packet| !packet.has_port(15008)).collect();
        assert!(beside.is_empty(), "payload beside 15008: {beside:?}");
        let versions = of_pods.tls_versions();
        assert!(!versions.is_empty() && versions.iter().all(|version| *version == 0x0304), "{versions:x?}");
        for (node, direction) in [("node1", "direction=\"outbound\""), ("node2", "direction=\"inbound\"")] {
            access_line_appears(&lab, node, &[direction, ORDERS, PAYMENTS]).await?;
        }
        let web = "spiffe://cluster.local/ns/shop/sa/web";
        // On one node too.
        access_line_appears(&lab, "node1", &["direction=\"inbound\"", ORDERS, web]).await?;
        lab.down().await?;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn removing_the_label_leaves_nothing_behind() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    assert!(redirection(&lab, "shop", "orders").await?.contains("istio-ambient-nat"));
    lab.label_namespace("shop", "istio.io/dataplane-mode", None).await?;
    lab.wait_enrolled("shop", false).await?;
    let pods: Vec<String> =
        lab.status().await?.pods.into_iter().filter(|pod| pod.namespace == "shop").map(|pod| pod.name).collect();
    assert!(pods.len() >= 4);
    eventually("nothing of ours is left in any pod", Duration::from_secs(1), async || {
        for pod in &pods {
            if !redirection(&lab, "shop", pod).await?.is_empty() {
                return Ok(false);
            }
        }
        Ok(true)
    })
    .await?;
    // The rules go after the mark, when peers have heard of it.
    let capture = lab.capture("node1").await?;
    let answer = get(&lab, "shop", "orders", "http://payments/").await?;
    assert!(answer.ok(), "{answer:?}");
    assert!(capture.stop().await?.contains(b"GET / HTTP/1.1"), "not plain again");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rules_that_someone_flushed_are_laid_again() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
    let before = redirection(&lab, "shop", "orders").await?;
    lab.pod_netns_exec("shop", "orders", &["nft", "flush", "ruleset"]).await?;
    eventually("flushed tables are back", Duration::from_secs(1), async || {
        Ok(redirection(&lab, "shop", "orders").await? == before)
    })
    .await?;
    lab.pod_netns_exec("shop", "orders", &["sh", "-c", "ip rule del pref 32764; ip route flush table 100"]).await?;
    eventually("rule and route are back", Duration::from_secs(1), async || {
        Ok(redirection(&lab, "shop", "orders").await? == before)
    })
    .await?;
    assert!(get(&lab, "shop", "orders", "http://payments/").await?.ok());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_with_a_sidecar_stay_out_and_the_reason_is_named() -> Result<()> {
    let lab = lab(LabOptions::default()).await?;
    lab.apply(include_str!("sidecars.yaml")).await?;
    lab.wait_namespace_ready("mixed").await?;
    lab.label_namespace("mixed", "istio.io/dataplane-mode", Some("ambient")).await?;
    lab.wait_status("the plain pod is in", Duration::from_secs(10), |status| {
        let plain = status.pods.iter().find(|pod| pod.deployment.as_deref() == Some("plain"))?;
        (plain.redirection.as_deref() == Some("enabled")).then_some(())
    })
    .await?;
    for (deployment, name) in [("sidecar", "istio-proxy"), ("native", "linkerd-proxy"), ("opted-out", "")] {
        let pod = lab.pod("mixed", deployment).await?;
        if !name.is_empty() {
            eventually(&format!("the agent names {name}"), Duration::from_secs(1), async || {
                let log = lab.component_logs(&aquifer_lab::Component::agent("node1")).await?;
                Ok(log.lines().any(|line| line.contains(&pod.name) && line.contains(name)))
            })
            .await?;
        }
        let pod = lab.pod("mixed", deployment).await?;
        assert_eq!(pod.redirection, None, "{deployment} was enrolled");
        assert_eq!(redirection(&lab, "mixed", deployment).await?, "", "rules in {deployment}");
    }
    Ok(())
}

/// Whoever connects while the namespace comes and goes may be refused or cut, but learns of it: nobody waits for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_hangs_while_the_label_comes_and_goes() -> Result<()> {
    let lab = shop(LabOptions::default()).await?;
    // 28 is curl's time-out, long enough for a name that is asked for twice. The last line says that all of them were made.
    let script = "for i in $(seq 150); do curl -s -m 25 -o /dev/null http://payments/; [ $? = 28 ] && echo hung; done; echo done";
    let clients = async || lab.exec("shop", "orders", &["sh", "-c", script]).await;
    let toggles = async {
        for _ in 0..5 {
            lab.label_namespace("shop", "istio.io/dataplane-mode", Some("ambient")).await?;
            wait_meshed(&lab, "shop").await?;
            lab.label_namespace("shop", "istio.io/dataplane-mode", None).await?;
            lab.wait_enrolled("shop", false).await?;
        }
        anyhow::Ok(())
    };
    let (toggled, first, second, third) = tokio::join!(toggles, clients(), clients(), clients());
    toggled?;
    for said in [first?, second?, third?] {
        assert_eq!(said.stdout.trim(), "done", "{said:?}");
    }
    Ok(())
}
