//! A node whose certificate authority is silent, or that has none: who is not served is told so, and when. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[allow(dead_code)] // Shared with the other tests of the data path.
mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use support::net::{TestPod, Wire};
use support::node::{Answers, Node, PATIENCE, TestCa, service, update, workload};
use tokio::io::AsyncReadExt;

/// How long a caller was kept, until its connection ended without a byte.
async fn kept(from: &TestPod, to: SocketAddr) -> Duration {
    let since = Instant::now();
    let ended = async {
        let mut byte = [0];
        // Refused by an end or a reset, on connecting already or after.
        match from.connect(to).await {
            Ok(mut stream) => stream.read(&mut byte).await.unwrap_or(0),
            Err(_) => 0,
        }
    };
    let read = tokio::time::timeout(5 * PATIENCE, ended).await;
    assert_eq!(read.unwrap_or_else(|_| panic!("kept for {:?} and longer", since.elapsed())), 0);
    since.elapsed()
}

fn refusals(node: &Node) -> bool {
    node.page().lines().any(|line| line.contains("reason=\"identity_unavailable\"") && !line.ends_with(" 0"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_certificate_that_does_not_come_is_refused_in_time() {
    for answers in [Answers::Never, Answers::Absent] {
        let wire = Wire::new();
        let (client, server, plain) = (wire.pod(1), wire.pod(2), wire.pod(3));
        client.redirect();
        server.redirect();
        let ca = TestCa::that(answers);
        let nodes = [Node::start("node1", &ca, 1), Node::start("node2", &ca, 1)];
        for node in &nodes {
            node.publish(vec![
                update(workload(&client, "client", "node1", true)),
                update(workload(&server, "server", "node2", true)),
                service("server", 2),
            ]);
        }
        nodes[0].enrol(&client, "client");
        nodes[1].enrol(&server, "server");

        // Out of a pod without a certificate, and to the tunnel port of one.
        for (node, from, port) in [(&nodes[0], &client, 8080), (&nodes[1], &plain, 15008)] {
            let mut least = kept(from, (server.v4, port).into()).await;
            println!("port {port}: kept for {least:?}");
            if answers == Answers::Absent {
                // There is nothing to wait for, unless the machine lets everybody wait.
                for _ in 0..4 {
                    if least < PATIENCE {
                        break;
                    }
                    least = kept(from, (server.v4, port).into()).await;
                }
                assert!(least < PATIENCE, "port {port}: {least:?}");
            }
            let counted = async {
                while !refusals(node) {
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            };
            let counted = tokio::time::timeout(5 * PATIENCE, counted).await;
            counted.unwrap_or_else(|_| panic!("port {port}: no such reason:\n{}", node.page()));
            assert_eq!(node.tracker.panics(), 0);
        }
    }
}
