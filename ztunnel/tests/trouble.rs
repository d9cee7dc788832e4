//! Pods that cannot be served as they should, beside one that can: the trouble is theirs alone. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[allow(dead_code)] // Shared with the other tests of the data path.
mod support;

use std::fs::File;
use std::net::SocketAddr;
use std::time::Duration;

use support::net::{TestPod, Wire};
use support::node::{Node, TestCa, service, update, workload};
use tokio::io::AsyncReadExt;
use ztunnel::inpod::netns::Netns;

const BOUND: Duration = Duration::from_secs(30);

#[allow(clippy::disallowed_methods)] // The test's own server is no task of the proxy.
fn greet(pod: &TestPod) -> SocketAddr {
    let listener = pod.listen(pod.v4, 8080);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.writable().await.unwrap();
            let _ = stream.try_write(b"hello");
        }
    });
    (pod.v4, 8080).into()
}

async fn greeted(client: &TestPod, at: SocketAddr) -> bool {
    let exchange = async {
        let mut text = Vec::new();
        client.connect(at).await?.read_to_end(&mut text).await?;
        std::io::Result::Ok(text)
    };
    tokio::time::timeout(BOUND, exchange).await.unwrap().is_ok_and(|text| text == b"hello")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broken_pod_is_an_error_of_its_own() {
    let wire = Wire::new();
    let (client, server, four) = (wire.pod(1), wire.pod(2), wire.pod(3));
    // The third has no IPv6 at all, not even on loopback.
    four.namespace.sh("for f in all default lo eth0; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done");
    client.redirect();
    server.redirect();
    four.namespace.feed("nft", &["-f", "-"], support::net::RULES);
    four.namespace
        .sh("ip rule add fwmark 0x111/0xfff pref 32764 lookup 100\nip route add local 0.0.0.0/0 dev lo table 100");
    let node = Node::start("node1", &TestCa::new(), 2);
    node.publish(vec![
        update(workload(&client, "client", "node1", true)),
        update(workload(&server, "server", "node1", true)),
        update(workload(&four, "four", "node1", true)),
        service("server", 2),
        service("four", 3),
    ]);
    node.enrol(&client, "client");

    // A namespace that is gone, as the agent's descriptor may be: no namespace any more, or a file of its name.
    let file = tempfile::NamedTempFile::new().unwrap();
    let gone = Netns::new(File::open(file.path()).unwrap().into()).unwrap();
    let error = node.try_enrol(&gone, "gone").unwrap_err();
    println!("{error}");
    // A port that somebody in the pod holds is the pod's trouble too; it is served once the port is free.
    let squatter = server.listen("0.0.0.0".parse().unwrap(), 15006);
    let error = node.try_enrol(&server.namespace.netns, "server").unwrap_err();
    assert!(error.to_string().contains("port 15006"), "{error}");
    drop(squatter);
    node.enrol(&server, "server");
    node.enrol(&four, "four");

    for (pod, what) in [(&server, "a pod whose start failed before"), (&four, "a pod without IPv6")] {
        assert!(greeted(&client, greet(pod)).await, "{what}");
    }
    assert_eq!(node.tracker.panics(), 0);
}
