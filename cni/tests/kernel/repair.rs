//! Whoever flushes our rules gets them back.

use crate::lay::{plain, ruleset};
use crate::namespace::{fresh, sh};
use aquifer_cni::keeper::{Keeper, Layout};
use aquifer_cni::netns::NetNs;
use aquifer_cni::probes::Probes;
use aquifer_cni::rules::pod::ProbeAddresses;
use aquifer_runtime::Tracker;
use prometheus_client::metrics::counter::Counter;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Repairs take at most a second; wait five times that.
const DEADLINE: Duration = Duration::from_secs(5);

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let end = Instant::now() + DEADLINE;
    while !holds() {
        assert!(Instant::now() < end, "not within {DEADLINE:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn kept(namespace: &NetNs, layout: Arc<dyn Layout>, repairs: &Counter) -> (Keeper, Tracker) {
    let laid = layout.clone();
    namespace.enter(move || laid.lay()).await.unwrap().unwrap();
    let tracker = Tracker::new();
    let keeper = Keeper::start("pod".into(), namespace.clone(), layout, repairs.clone(), &tracker).await.unwrap();
    (keeper, tracker)
}

#[tokio::test]
async fn flushed_rules_come_back_and_are_counted() {
    let (pod, repairs) = (fresh(), Counter::default());
    let (_keeper, _tracker) = kept(&pod, Arc::new(plain()), &repairs).await;
    let whole = ruleset(&pod);
    let faults = ["nft flush ruleset", "ip rule del priority 32764", "ip -6 route flush table 100"];
    for (count, fault) in (1..).zip(faults) {
        sh(&pod, fault);
        until(fault, || repairs.get() >= count).await;
        until(fault, || pod.run(|| Layout::missing(&plain())).unwrap().unwrap().is_empty()).await;
        until(fault, || ruleset(&pod) == whole).await;
    }
    assert_eq!(repairs.get(), 3, "what is not ours to repair is not counted");
}

#[tokio::test]
async fn lo_going_down_takes_the_route_and_coming_up_brings_it_back() {
    let (pod, repairs) = (fresh(), Counter::default());
    let (_keeper, _tracker) = kept(&pod, Arc::new(plain()), &repairs).await;
    sh(&pod, "ip link set lo down");
    sh(&pod, "ip link set lo up");
    until("route", || pod.run(|| Layout::missing(&plain())).unwrap().unwrap().is_empty()).await;
}

#[tokio::test]
async fn after_a_stop_nothing_is_laid() {
    let (pod, repairs) = (fresh(), Counter::default());
    let (keeper, tracker) = kept(&pod, Arc::new(plain()), &repairs).await;
    sh(&pod, "nft flush ruleset");
    keeper.stop().await;
    sh(&pod, "nft flush ruleset");
    tracker.close();
    tokio::time::timeout(DEADLINE, tracker.wait()).await.unwrap();
    assert_eq!(sh(&pod, "nft list ruleset"), "");
}

#[tokio::test]
async fn the_nodes_sets_keep_their_pods() {
    let (node, repairs) = (fresh(), Counter::default());
    let ips: Vec<IpAddr> = vec!["198.18.16.2".parse().unwrap(), "fd00:18:0:1::2".parse().unwrap()];
    let probes = Arc::new(Probes::new(ProbeAddresses::default(), 0, [("a".to_owned(), ips.clone())]));
    let (_keeper, _tracker) = kept(&node, probes.clone(), &repairs).await;
    let listed = |ip: &str| sh(&node, "nft list ruleset").contains(ip);
    assert!(listed("198.18.16.2") && listed("fd00:18:0:1::2"));

    // Another pod gets the first one's address before that is gone.
    node.run(|| probes.admit("b", &ips[..1])).unwrap().unwrap();
    node.run(|| probes.withdraw("a")).unwrap().unwrap();
    assert!(listed("198.18.16.2") && !listed("fd00:18:0:1::2"));

    sh(&node, "nft flush set inet istio-ambient-nat istio-inpod-probes-v4");
    until("element", || listed("198.18.16.2")).await;
    sh(&node, "nft delete table inet istio-ambient-nat");
    until("table", || listed("198.18.16.2")).await;

    sh(&node, "nft flush ruleset");
    node.run(|| probes.withdraw("b")).unwrap().unwrap();
    until("empty sets", || node.run(|| probes.missing()).unwrap().unwrap().is_empty()).await;
    assert!(!listed("198.18.16.2"));
}
