//! What the protocol says of times, turns and several proxies, one test for each statement.

use super::*;
use std::time::Instant;

/// Long enough for a second packet to show itself, were there one.
const A_MOMENT: Duration = Duration::from_millis(100);

impl Proxy {
    /// Whether nothing comes for a moment.
    fn is_left_alone(&self) -> bool {
        let mut poll = [nix::poll::PollFd::new(std::os::fd::AsFd::as_fd(&self.fd), nix::poll::PollFlags::POLLIN)];
        nix::poll::poll(&mut poll, u16::try_from(A_MOMENT.as_millis()).unwrap()).unwrap() == 0
    }
}

#[test]
fn five_seconds_for_an_answer_and_five_connections_a_second() {
    let Timing { deadline, accepts_per_second } = Timing::default();
    assert_eq!((deadline, accepts_per_second, MAX), (Duration::from_secs(5), 5, 1024));
}

#[tokio::test]
async fn one_request_then_one_answer_however_many_wait() {
    let bench = bench(PATIENCE);
    let (proxy, _) = Proxy::connected(&bench).await;
    let asked = [add(&bench.zds, "a"), add(&bench.zds, "b"), del(&bench.zds, "c"), add(&bench.zds, "d")];
    until("all wait", || ["a", "b", "d"].iter().all(|uid| bench.zds.holds(uid))).await;
    let mut requests = Vec::new();
    for _ in 0..asked.len() {
        requests.push(proxy.request().await);
        assert!(proxy.is_left_alone(), "a second request before the answer to the first");
        proxy.say("");
    }
    for asked in asked {
        assert_eq!(outcome(asked).await, Ok(()));
    }
    assert_eq!(requests.iter().filter(|request| matches!(request, Payload::Add(_))).count(), 3);
    assert!(proxy.is_left_alone(), "an idle proxy is asked nothing");
}

#[tokio::test]
async fn hello_gets_no_answer_of_its_own() {
    let bench = bench(PATIENCE);
    let proxy = Proxy::dial(&bench);
    assert!(proxy.is_left_alone(), "the proxy speaks first");
    proxy.hello();
    assert!(matches!(proxy.request().await, Payload::SnapshotSent(_)), "the first packet is the snapshot's");
}

#[tokio::test]
async fn a_refusal_within_the_snapshot_ends_nothing() {
    let bench = bench(PATIENCE);
    for uid in ["a", "b"] {
        bench.zds.insert(pod(uid));
    }
    let proxy = Proxy::dial(&bench);
    proxy.hello();
    assert!(matches!(proxy.request().await, Payload::Add(add) if add.uid == "a"));
    proxy.say("failure to start proxy : no");
    assert!(matches!(proxy.request().await, Payload::Add(add) if add.uid == "b"));
    proxy.say("");
    assert!(matches!(proxy.request().await, Payload::SnapshotSent(_)));
    proxy.say("");
    let added = add(&bench.zds, "c");
    assert!(matches!(proxy.request().await, Payload::Add(add) if add.uid == "c"));
    proxy.say("");
    assert_eq!(outcome(added).await, Ok(()));
    assert_eq!(bench.metrics.faults.get(), 0);
}

#[tokio::test]
async fn a_snapshot_that_is_refused_ends_the_connection() {
    let bench = bench(PATIENCE);
    let proxy = Proxy::dial(&bench);
    proxy.hello();
    proxy.request().await;
    proxy.say("no");
    proxy.ended().await;
    until("a fault", || bench.metrics.faults.get() == 1).await;
}

#[tokio::test]
async fn a_pod_deleted_during_the_snapshot_is_deleted_after_it() {
    let bench = bench(PATIENCE);
    bench.zds.insert(pod("a"));
    bench.zds.insert(pod("b"));
    let proxy = Proxy::dial(&bench);
    proxy.hello();
    assert!(matches!(proxy.request().await, Payload::Add(_)));
    let deleted = del(&bench.zds, "b");
    until("b is out", || !bench.zds.holds("b")).await;
    proxy.say("");
    assert!(matches!(proxy.request().await, Payload::Add(add) if add.uid == "b"), "as it was when the snapshot began");
    proxy.say("");
    assert!(matches!(proxy.request().await, Payload::SnapshotSent(_)));
    proxy.say("");
    assert!(matches!(proxy.request().await, Payload::Del(del) if del.uid == "b"));
    proxy.say("");
    assert_eq!(outcome(deleted).await, Ok(()));
}

#[tokio::test]
async fn a_pod_is_kept_only_while_its_namespace_is_unknown() {
    let bench = bench(PATIENCE);
    bench.zds.keep("a");
    assert_eq!(Proxy::connected(&bench).await.1, ["keep a"]);
    bench.zds.insert(pod("a"));
    bench.zds.keep("a");
    assert_eq!(Proxy::connected(&bench).await.1, ["a"]);
    let deleted = bench.zds.del("a");
    drop(tokio::time::timeout(Duration::from_millis(1), deleted).await);
    assert_eq!(Proxy::connected(&bench).await.1, Vec::<String>::new());
}

#[tokio::test]
async fn three_proxies_at_once() {
    let bench = bench(PATIENCE);
    bench.zds.insert(pod("a"));
    let mut proxies = Vec::new();
    for _ in 0..3 {
        let (proxy, uids) = Proxy::connected(&bench).await;
        assert_eq!(uids, ["a"], "each gets the whole snapshot");
        proxies.push(proxy);
    }
    assert_eq!((bench.zds.connections(), bench.metrics.connected.get()), (3, 3));
    let added = add(&bench.zds, "b");
    assert!(matches!(proxies[2].request().await, Payload::Add(_)));
    assert!(proxies[0].is_left_alone() && proxies[1].is_left_alone(), "Add is the newest one's alone");
    proxies[2].say("");
    assert_eq!(outcome(added).await, Ok(()));

    // One leaves instead of answering, one refuses: the pod is out all the same, and who refused is told.
    let deleted = del(&bench.zds, "a");
    for proxy in &proxies {
        assert!(matches!(proxy.request().await, Payload::Del(_)));
    }
    drop(proxies.remove(0));
    proxies[0].say("busy");
    proxies[1].say("");
    assert_eq!(outcome(deleted).await, Err(ZdsError::Refused("busy".into())));
    until("two are left", || bench.zds.connections() == 2).await;
    assert!(!bench.zds.holds("a"));

    // The middle one leaves: nothing changes for the newest.
    drop(proxies.remove(0));
    until("one is left", || bench.zds.connections() == 1).await;
    assert!(proxies[0].is_left_alone());
    let added = add(&bench.zds, "c");
    assert!(matches!(proxies[0].request().await, Payload::Add(add) if add.uid == "c"));
    proxies[0].say("");
    assert_eq!(outcome(added).await, Ok(()));
}

#[tokio::test]
async fn a_stuck_proxy_keeps_nothing_from_the_others() {
    let bench = bench(DEADLINE * 3);
    let (stuck, _) = Proxy::connected(&bench).await;
    let (newest, _) = Proxy::connected(&bench).await;
    let deleted = del(&bench.zds, "a");
    assert!(matches!(stuck.request().await, Payload::Del(_)));
    assert!(matches!(newest.request().await, Payload::Del(_)));
    newest.say("");
    let added = add(&bench.zds, "b");
    assert!(matches!(newest.request().await, Payload::Add(_)));
    newest.say("");
    assert_eq!(outcome(added).await, Ok(()), "while the stuck one's answer is awaited");
    stuck.ended().await;
    assert_eq!(outcome(deleted).await, Ok(()), "a proxy that is gone has nothing to give up");
}

#[tokio::test]
async fn a_pod_that_fits_no_packet_is_refused_alone() {
    let bench = bench(PATIENCE);
    let (large, largest) = ("x".repeat(MAX), "x".repeat(900));
    assert_eq!(bench.zds.add(pod(&large)).await, Err(ZdsError::NotConnected));
    bench.zds.insert(pod("a"));
    let (proxy, uids) = Proxy::connected(&bench).await;
    assert_eq!(uids, ["a"], "the snapshot goes on without it");
    let refused = bench.zds.add(pod(&large)).await;
    assert!(matches!(&refused, Err(ZdsError::Refused(text)) if text.contains("1024")), "{refused:?}");
    let added = add(&bench.zds, "b");
    assert!(matches!(proxy.request().await, Payload::Add(add) if add.uid == "b"));
    proxy.say("");
    assert_eq!(outcome(added).await, Ok(()));
    let deleted = del(&bench.zds, &largest);
    assert!(matches!(proxy.request().await, Payload::Del(_)));
    proxy.say("");
    assert_eq!(outcome(deleted).await, Ok(()));
    assert_eq!(bench.metrics.faults.get(), 0);
}

#[tokio::test]
async fn connections_are_taken_so_many_a_second() {
    let start = Instant::now();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ztunnel.sock");
    let listener = Listener::bind(&path).unwrap();
    let (metrics, tracker, cancel) = (ZdsMetrics::default(), Tracker::new(), Cancel::new());
    let zds = Zds::new(Timing { deadline: PATIENCE, accepts_per_second: 2 }, metrics.clone());
    let (server, connections, end) = (zds.clone(), tracker.clone(), cancel.clone());
    tracker.spawn("server", async move { server.serve(listener, connections, end).await });
    let bench = Bench { zds, metrics, path, cancel, _folder: folder };
    let mut proxies = Vec::new();
    for _ in 0..3 {
        proxies.push(Proxy::connected(&bench).await.0);
    }
    assert!(start.elapsed() >= Duration::from_millis(950), "three within {:?}", start.elapsed());
    assert_eq!(bench.metrics.connected.get(), 3, "late, but none is turned away");
}
