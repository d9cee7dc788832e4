//! The mesh's own processes as a lab runs them. What they do with traffic is tested with the mesh.

use std::time::{Duration, Instant};

use aquifer_lab::{Component, LabOptions};
use aquifer_objects::Kind;

use crate::support::{aquifer, idle, start, until, web};

#[tokio::test(flavor = "multi_thread")]
async fn the_mesh_is_up_with_ten_pods_in_two_seconds() {
    aquifer();
    let begin = Instant::now();
    let lab = start(LabOptions::default()).await;
    let started = begin.elapsed();
    lab.apply(&web("default", "web", 10, None)).await.unwrap();
    lab.wait_ready("default", "web", 10).await.unwrap();
    let took = begin.elapsed();
    println!("lab with the mesh: {started:?}; with 10 ready pods: {took:?}");
    assert!(took < Duration::from_secs(10), "{took:?}");
    let status = lab.status().await.unwrap();
    let names: Vec<String> = status.components.iter().map(|component| component.component.to_string()).collect();
    assert_eq!(names, ["istiod", "istio-cni-node-node1", "istio-cni-node-node2", "ztunnel-node1", "ztunnel-node2"]);
    assert!(status.components.iter().all(|component| component.ready && component.pid.is_some()));
    // As pods of a cluster they are objects, with what a cluster mounts into them.
    let ztunnel = lab.pod("istio-system", &status.components[3].pod).await.unwrap();
    assert_eq!((ztunnel.service_account.as_str(), ztunnel.node.as_str()), ("ztunnel", "node1"));
    let files = ["/var/run/secrets/tokens/istio-token", "/var/run/secrets/istio/root-cert.pem"];
    for file in files {
        assert!(lab.exec("istio-system", &ztunnel.name, &["test", "-s", file]).await.unwrap().ok(), "{file}");
    }
    let mode = lab.exec("istio-system", &ztunnel.name, &["stat", "-c", "%a", files[0]]).await.unwrap();
    assert_eq!(mode.stdout.trim(), "600", "a token is its owner's");
    assert!(lab.ztunnel_admin("node1", "/config_dump").await.unwrap().contains("\"workloads\""));
    for component in status.components.iter().map(|component| component.component.clone()) {
        assert!(lab.metrics(component.clone()).await.unwrap().contains("# TYPE"), "{component}");
        let stats = lab.stats(component.clone()).await.unwrap();
        assert!(stats.rss_bytes > 1 << 20 && stats.threads > 0, "{component}: {stats:?}");
        assert!(!lab.component_logs(&component).await.unwrap().is_empty(), "{component}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn components_die_and_come_back_where_they_were() {
    let lab = start(LabOptions::default()).await;
    for component in [Component::Istiod, Component::agent("node1"), Component::ztunnel("node2")] {
        let find = async || {
            lab.status().await.unwrap().components.into_iter().find(|found| found.component == component).unwrap()
        };
        let before = find().await;
        lab.kill(component.clone(), libc::SIGKILL).await.unwrap();
        let dead = find().await;
        assert!(dead.pid.is_none() && !dead.ready, "it stays down: {dead:?}");
        assert!(lab.kill(component.clone(), libc::SIGKILL).await.is_err(), "nothing is there to kill");
        lab.start_component(component.clone()).await.unwrap();
        lab.wait_component_ready(&component).await.unwrap();
        let after = find().await;
        assert_eq!((&after.pod, &after.ips), (&before.pod, &before.ips));
        assert_ne!(after.pid, before.pid);
        assert!(lab.start_component(component.clone()).await.is_err(), "it runs already");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_ztunnel_is_replaced_by_a_new_pod() {
    let lab =
        start(LabOptions { nodes: 1, ..LabOptions::default() }.ztunnel_var("TERMINATION_GRACE_PERIOD_SECONDS", "3"))
            .await;
    let ztunnel = async || {
        let status = lab.status().await.unwrap();
        let of_component =
            status.components.iter().find(|component| component.component == Component::ztunnel("node1"));
        (of_component.unwrap().pod.clone(), status.pods.iter().filter(|pod| pod.name.starts_with("ztunnel-")).count())
    };
    let (before, _) = ztunnel().await;
    let old = lab.replace_ztunnel("node1").await.unwrap();
    assert_eq!(old, before);
    let (after, _) = ztunnel().await;
    assert_ne!(after, before);
    until("the old one gone", Duration::from_secs(30), async || ztunnel().await.1 == 1).await;
    until("its object gone", Duration::from_secs(10), async || {
        let keys = lab.objects(&[Kind::Pod]).await.unwrap();
        keys.iter().any(|object| object.name() == after) && !keys.iter().any(|object| object.name() == old)
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_before_they_end() {
    let lab = start(LabOptions { nodes: 1, token_ttl_seconds: 2, ..LabOptions::default() }).await;
    let pod = lab.status().await.unwrap().components.pop().unwrap().pod;
    let read =
        async || lab.exec("istio-system", &pod, &["cat", "/var/run/secrets/tokens/istio-token"]).await.unwrap().stdout;
    let first = read().await;
    assert_eq!(first.split('.').count(), 3);
    until("a new token", Duration::from_secs(10), async || read().await != first).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn pods_start_only_with_their_agents_consent() {
    let lab = start(LabOptions { nodes: 1, ..LabOptions::default() }).await;
    lab.kill(Component::agent("node1"), libc::SIGKILL).await.unwrap();
    lab.apply(&idle("default", "idle", 1, None)).await.unwrap();
    let message = "the node agent is not there";
    let waiting = |status: &aquifer_lab::Status| {
        status.pods.iter().any(|pod| pod.deployment.is_some() && pod.message.contains(message)).then_some(())
    };
    lab.wait_status("a pod that waits for the agent", Duration::from_secs(20), waiting).await.unwrap();
    lab.start_component(Component::agent("node1")).await.unwrap();
    lab.wait_ready("default", "idle", 1).await.unwrap();
}
