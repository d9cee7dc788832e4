//! Pods that cannot be served as they should, beside one that can: the trouble is theirs alone. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[allow(dead_code)] // Shared with the other tests of the data path.
mod support;

use std::fs::File;
use std::net::SocketAddr;
use std::time::Duration;

use aquifer_runtime::http::{Server, handler, text};
use aquifer_runtime::{Cancel, Tracker};
use http::StatusCode;
use support::net::{TestPod, Wire};
use support::node::{Node, TestCa, service, update, workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use ztunnel::inpod::netns::Netns;

const BOUND: Duration = Duration::from_secs(30);
const NO_IPV6: &str = "for f in all default lo eth0; do echo 1 > /proc/sys/net/ipv6/conf/$f/disable_ipv6; done";

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
    four.namespace.sh(NO_IPV6);
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

/// The admin port, in a network namespace with IPv6 on its loopback and in one without.
#[test]
fn loopback_is_listened_on_by_every_family_that_it_has() {
    let wire = Wire::new();
    let (both, four) = (wire.pod(1), wire.pod(2));
    four.namespace.sh(NO_IPV6);
    let reached = |pod: &TestPod, ipv6: bool| {
        let within = async {
            let server = Server::bind_loopback("admin", 15000, ipv6).await.unwrap();
            let (tracker, cancel) = (Tracker::new(), Cancel::new());
            server.serve(handler(|_| async { text(StatusCode::OK, "here") }), &tracker, cancel);
            let mut reached = Vec::new();
            for address in ["127.0.0.1:15000", "[::1]:15000"] {
                let Ok(mut stream) = TcpStream::connect(address).await else { continue };
                stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
                let mut answer = String::new();
                stream.read_to_string(&mut answer).await.unwrap();
                assert!(answer.ends_with("here"), "{answer}");
                reached.push(address);
            }
            reached
        };
        let runtime = || tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        pod.namespace.netns.run(|| runtime().block_on(within)).unwrap()
    };
    assert_eq!(reached(&both, true), ["127.0.0.1:15000", "[::1]:15000"]);
    assert_eq!(reached(&both, false), ["127.0.0.1:15000"]);
    assert_eq!(reached(&four, true), ["127.0.0.1:15000"]);
}
