//! Section 2 from the other side: the node agent under a scripted proxy.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aquifer_lab::Component;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::cluster::{Asked, Cluster, answer, next, parse, snapshot};
use crate::peer::{DEADLINE, until, within};

/// Why a pod is left out, which the agent writes by itself, whatever it waits for.
const NOT_ENROLLED: &str = "ambient.istio.io/not-enrolled-reason";
/// Out by its own wish, until that is taken back: then by its container.
const SIDECAR: &str = "apiVersion: v1\nkind: Pod\n\
     metadata: { name: sidecar, namespace: raw, labels: { istio.io/dataplane-mode: none } }\n\
     spec: { nodeName: node1, terminationGracePeriodSeconds: 1, containers: [{ name: istio-proxy, image: busybox, command: [sleep, infinity] }] }\n";

/// 2.1-2.3: every enrolled pod in an Add with its namespace, one at a time, then SnapshotSent, then nothing.
#[tokio::test(flavor = "multi_thread")]
async fn snapshot_of_enrolled_pods() -> Result<()> {
    let cluster = Cluster::start(&["a", "b"], true).await?;
    let link = cluster.dial()?;
    let mut seen = Vec::new();
    loop {
        let asked = next(&link)?;
        // Lockstep: nothing more before the answer.
        ensure!(link.silent_for(Duration::from_millis(200))?, "a request before the answer");
        answer(&link, "")?;
        match asked {
            Asked::Add { uid, name, namespace, service_account, netns } => {
                let pod = cluster.pod(if service_account == "sa-a" { "a" } else { "b" }).await?;
                assert_eq!((uid, name, namespace.as_str()), (pod.uid.clone(), pod.name.clone(), "raw"));
                assert_eq!(service_account, pod.service_account);
                let (sent, own) = (File::from(netns).metadata()?, cluster.netns(&pod)?.fd().try_clone_to_owned()?);
                let own = File::from(own).metadata()?;
                assert_eq!((sent.ino(), sent.dev()), (own.ino(), own.dev()), "the pod's namespace");
                seen.push(pod.name);
            }
            Asked::SnapshotSent => break,
            other => anyhow::bail!("{other:?}"),
        }
    }
    assert_eq!(seen.len(), 2, "{seen:?}");
    ensure!(link.silent_for(Duration::from_secs(1))?, "more than the snapshot");
    Ok(())
}

/// 2.3, 2.5: a pod that is enrolled later comes in an Add, and the annotation is written after the ack; one that
/// leaves, in a Del.
#[tokio::test(flavor = "multi_thread")]
async fn live_add_and_del() -> Result<()> {
    let cluster = Cluster::start(&["a"], false).await?;
    cluster.lab.apply(SIDECAR).await?;
    let runs = |status: &aquifer_lab::Status| {
        status.pods.iter().any(|pod| pod.name == "sidecar" && pod.phase == "Running").then_some(())
    };
    cluster.lab.wait_status("the other pod runs", DEADLINE, runs).await?;
    let link = cluster.dial()?;
    ensure!(snapshot(&link)?.is_empty());
    cluster.enrol(true).await?;
    let Asked::Add { uid, .. } = next(&link)? else { anyhow::bail!("an Add expected") };
    let pod = cluster.pod("a").await?;
    assert_eq!(uid, pod.uid);
    // What happens to another pod now, the agent has seen and written before the ack comes.
    let wants_in = serde_json::json!({"metadata": {"labels": {"istio.io/dataplane-mode": "ambient"}}});
    cluster.lab.patch_user(aquifer_objects::Kind::Pod, "raw", "sidecar", wants_in).await?;
    until("another pod's annotation", async || {
        let pods = cluster.lab.objects(&[aquifer_objects::Kind::Pod]).await?;
        Ok(pods.iter().any(|pod| pod.name() == "sidecar" && pod.annotation(NOT_ENROLLED).is_some()))
    })
    .await?;
    ensure!(cluster.pod("a").await?.redirection.as_deref() != Some("enabled"), "annotated before the ack");
    answer(&link, "")?;
    cluster.lab.delete("Pod", "raw", "sidecar").await?;
    cluster
        .lab
        .wait_status("the other pod is gone", DEADLINE, |status| {
            status.pods.iter().all(|pod| pod.name != "sidecar").then_some(())
        })
        .await?;
    cluster.lab.wait_enrolled("raw", true).await?;
    cluster.enrol(false).await?;
    let Asked::Del(gone) = next(&link)? else { anyhow::bail!("a Del expected") };
    assert_eq!(gone, pod.uid);
    answer(&link, "")?;
    cluster.lab.wait_enrolled("raw", false).await?;
    Ok(())
}

/// 2.5, 12.9: a refused Add leaves `pending`, and comes again; when it is acked the annotation is `enabled`.
#[tokio::test(flavor = "multi_thread")]
async fn refused_add_comes_again() -> Result<()> {
    let cluster = Cluster::start(&["a"], false).await?;
    let link = cluster.dial()?;
    snapshot(&link)?;
    cluster.enrol(true).await?;
    let begin = Instant::now();
    let mut first = None;
    for _ in 0..4 {
        let Asked::Add { uid, .. } = next(&link)? else { anyhow::bail!("an Add expected") };
        ensure!(*first.get_or_insert(uid.clone()) == uid, "the same Add");
        answer(&link, "failure to start proxy")?;
    }
    ensure!(begin.elapsed() < Duration::from_secs(30), "four attempts took {:?}", begin.elapsed());
    // Who doesn't answer for five seconds is given up: meanwhile the others are refused too.
    until("pending", async || {
        if cluster.pod("a").await?.redirection.as_deref() == Some("pending") {
            return Ok(true);
        }
        let Asked::Add { .. } = next(&link)? else { anyhow::bail!("an Add expected") };
        answer(&link, "failure to start proxy")?;
        Ok(false)
    })
    .await?;
    let Asked::Add { .. } = next(&link)? else { anyhow::bail!("an Add expected") };
    answer(&link, "")?;
    cluster.lab.wait_enrolled("raw", true).await?;
    Ok(())
}

/// 2.5: without any proxy the pod is `pending`; when one comes it is in the snapshot or added after it.
#[tokio::test(flavor = "multi_thread")]
async fn pending_without_a_proxy() -> Result<()> {
    let cluster = Cluster::start(&["a"], false).await?;
    cluster.enrol(true).await?;
    until("pending", async || Ok(cluster.pod("a").await?.redirection.as_deref() == Some("pending"))).await?;
    let link = cluster.dial()?;
    let uid = cluster.pod("a").await?.uid;
    let mut added = snapshot(&link)?.contains_key(&uid);
    // 12.9: the Add may come again although the snapshot held it.
    until("enabled", async || {
        if let Some(packet) = link.receive_within(Duration::from_millis(50))? {
            let asked = parse(packet.context("the agent closed")?)?;
            added |= matches!(asked, Asked::Add { uid: ref found, .. } if *found == uid);
            answer(&link, "")?;
        }
        Ok(cluster.pod("a").await?.redirection.as_deref() == Some("enabled"))
    })
    .await?;
    ensure!(added, "enabled without an Add");
    Ok(())
}

/// 2.3: with two proxies an Add goes to the newest alone, a Del to both.
#[tokio::test(flavor = "multi_thread")]
async fn two_proxies() -> Result<()> {
    let cluster = Cluster::start(&["a"], false).await?;
    let old = cluster.dial()?;
    snapshot(&old)?;
    let new = cluster.dial()?;
    snapshot(&new)?;
    cluster.enrol(true).await?;
    let Asked::Add { uid, .. } = next(&new)? else { anyhow::bail!("an Add expected") };
    answer(&new, "")?;
    cluster.lab.wait_enrolled("raw", true).await?;
    ensure!(old.silent_for(Duration::from_millis(500))?, "the older one was asked too");
    cluster.enrol(false).await?;
    for link in [&old, &new] {
        let Asked::Del(gone) = next(link)? else { anyhow::bail!("a Del expected") };
        assert_eq!(gone, uid);
        answer(link, "")?;
    }
    Ok(())
}

/// 2.3: anything unsolicited is a protocol error: the agent probes an idle connection every five seconds and drops it.
#[tokio::test(flavor = "multi_thread")]
async fn unsolicited_is_dropped() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let link = cluster.dial()?;
    snapshot(&link)?;
    ensure!(link.silent_for(Duration::from_secs(7))?, "the probe itself is not seen");
    answer(&link, "")?;
    ensure!(link.receive()?.is_none(), "the connection goes on");
    // Another one is served.
    let link = cluster.dial()?;
    assert_eq!(snapshot(&link)?.len(), 1);
    Ok(())
}

/// 2.3: a proxy that does not answer within five seconds is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn silence_is_dropped() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let begin = Instant::now();
    let link = cluster.dial()?;
    let Asked::Add { .. } = next(&link)? else { anyhow::bail!("an Add expected") };
    ensure!(link.receive()?.is_none(), "the connection goes on");
    let took = begin.elapsed();
    ensure!((Duration::from_secs(4)..Duration::from_secs(25)).contains(&took), "dropped after {took:?}");
    Ok(())
}

/// 2.2: the hello comes first: one that says something else, or nothing of the kind, is dropped.
#[tokio::test(flavor = "multi_thread")]
async fn bad_hello_is_dropped() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    for hello in [&[0xff, 0xff][..], &[8, 9]] {
        let link = crate::peer::zds::Link::dial(&cluster.lab.state_dir().join("nodes/node1/ztunnel.sock"))?;
        link.send(hello, &[])?;
        ensure!(link.receive()?.is_none(), "served after {hello:?}");
    }
    snapshot(&cluster.dial()?)?;
    Ok(())
}

/// 2.3: a refusal within the snapshot is only noted: the snapshot goes on.
#[tokio::test(flavor = "multi_thread")]
async fn refusal_within_the_snapshot() -> Result<()> {
    let cluster = Cluster::start(&["a", "b"], true).await?;
    let link = cluster.dial()?;
    let mut adds = 0;
    loop {
        match next(&link)? {
            Asked::Add { .. } => {
                adds += 1;
                answer(&link, "failure to start proxy")?;
            }
            Asked::SnapshotSent => break answer(&link, "")?,
            other => anyhow::bail!("{other:?}"),
        }
    }
    ensure!(adds >= 2, "{adds} Adds before the snapshot's end");
    Ok(())
}

/// 2.3: after a restart the agent sends what is enrolled, as it stands.
#[tokio::test(flavor = "multi_thread")]
async fn agent_restart() -> Result<()> {
    let cluster = Cluster::start(&["a", "b"], true).await?;
    let link = cluster.dial()?;
    let before = snapshot(&link)?;
    cluster.lab.kill(Component::agent("node1"), 9).await?;
    ensure!(link.receive()?.is_none());
    cluster.lab.start_component(Component::agent("node1")).await?;
    let mut link = None;
    until("the agent's socket", async || {
        link = cluster.dial().ok();
        Ok(link.is_some())
    })
    .await?;
    let link = link.context("a connection")?;
    let mut after = snapshot(&link)?;
    // Pods that were not found at once follow.
    while after.len() < before.len() {
        let asked = next(&link)?;
        answer(&link, "")?;
        if let Asked::Add { uid, name, .. } = asked {
            after.insert(uid, name);
        }
    }
    assert_eq!(after, before);
    Ok(())
}

/// 2.5: the plugin's call answers when the pod is in the mesh, and refuses what it cannot read.
#[tokio::test(flavor = "multi_thread")]
async fn plugin_event() -> Result<()> {
    let cluster = Cluster::start(&["a"], true).await?;
    let socket = cluster.lab.state_dir().join("nodes/node1/pluginevent.sock");
    let post = async |path: &str, body: &str| -> Result<String> {
        let mut stream = tokio::net::UnixStream::connect(&socket).await?;
        let head = format!(
            "POST {path} HTTP/1.1\r\nHost: unix\r\nConnection: close\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        stream.write_all(format!("{head}{body}").as_bytes()).await?;
        let mut answer = String::new();
        within("an answer", stream.read_to_string(&mut answer)).await??;
        Ok(answer.lines().next().unwrap_or_default().to_owned())
    };
    ensure!(post("/cmdadd", "no JSON").await?.contains(" 4") || post("/cmdadd", "no JSON").await?.contains(" 5"));
    ensure!(!post("/elsewhere", "{}").await?.contains(" 200"));
    Ok(())
}
