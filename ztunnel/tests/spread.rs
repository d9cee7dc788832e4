//! How connections share the workers, in the kernel: two nodes, real redirection, real tunnels. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[allow(dead_code)] // Shared with the other tests of the data path.
mod support;

use std::net::SocketAddr;
use std::time::Duration;

use support::net::Wire;
use support::node::{Node, TestCa, update, workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

/// What takes longer hangs.
const BOUND: Duration = Duration::from_secs(30);

/// Polls until both nodes are as wanted.
async fn open(what: &str, nodes: [&Node; 2], wanted: impl Fn(&[usize]) -> bool) {
    let now = || nodes.map(|node| node.workers.spread().open().collect::<Vec<_>>());
    let reached = async {
        while !now().iter().all(|open| wanted(open)) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    let in_time = tokio::time::timeout(BOUND, reached).await.is_ok();
    assert!(in_time, "{what}: {:?}", now());
}

/// Opens connections across two nodes, sends on each, and looks where they are.
async fn spread(workers: usize, counts: &[usize]) {
    let wire = Wire::new();
    let (client, server) = (wire.pod(1), wire.pod(2));
    client.redirect();
    server.redirect();
    let ca = TestCa::new();
    let nodes = [Node::start("node1", &ca, workers), Node::start("node2", &ca, workers)];
    for node in &nodes {
        node.publish(vec![
            update(workload(&client, "client", "node1", true)),
            update(workload(&server, "server", "node2", true)),
        ]);
    }
    nodes[0].enrol(&client, "client");
    nodes[1].enrol(&server, "server");
    let nodes = [&nodes[0], &nodes[1]];
    let listener = server.listen(server.v4, 8080);
    #[allow(clippy::disallowed_methods)] // The test's own server is no task of the proxy.
    let accepting = tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            stream.write_all(b"hello").await.unwrap();
            tokio::spawn(async move { stream.read_u8().await });
        }
    });
    for &count in counts {
        let mut clients = Vec::new();
        for _ in 0..count {
            let mut stream = client.connect(SocketAddr::new(server.v4, 8080)).await.unwrap();
            stream.read_exact(&mut [0; 5]).await.unwrap();
            clients.push(stream);
        }
        // On the second node with the tunnels: one from each worker of the first that has anything to send, or several if
        // that is more than one can carry.
        let tunnels = workers.max(count / 50);
        open(&format!("{count} connections on {workers} workers"), nodes, |open| {
            let (all, most) = (open.iter().sum::<usize>(), open.iter().max().unwrap());
            let share = all.div_ceil(workers);
            (count..=count + tunnels).contains(&all) && *most <= share + share / 8 + 2
        })
        .await;
        let total = |node: &Node| node.workers.spread().open().sum::<usize>();
        assert_eq!(total(nodes[0]), count);
        let senders = nodes[0].workers.spread().open().filter(|open| *open > 0).count();
        assert!(total(nodes[1]) >= count + senders, "a worker opened no tunnel");
        // Whichever worker they are on, their records say the same.
        nodes[0].workers.remove(&ztunnel::inpod::zds::PodUid::new("client")).await;
        let page = nodes[0].page();
        assert!(page.contains("reason=\"pod_removed\"") && !page.contains("reason=\"shutdown\""), "{page}");
        drop(clients);
        open("all are closed", nodes, |open| open.iter().all(|open| *open == 0)).await;
        nodes[0].enrol(&client, "client");
    }
    accepting.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_worker_has_them_all() {
    spread(1, &[1, 4]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_workers_share_them() {
    spread(2, &[1, 4, 32, 512]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn four_workers_share_them() {
    spread(4, &[4, 32]).await;
}
