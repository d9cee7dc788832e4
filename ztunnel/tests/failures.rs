//! What goes wrong for one pod, or one connection, and must not for the next: missing permissions, a worker that cannot
//! serve, a client that leaves. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[allow(dead_code)] // Shared with the other tests of the data path.
mod support;

use std::fs::OpenOptions;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt;
use std::time::Duration;

use support::net::{TestPod, Wire};
use support::node::{Node, TestCa, data_path, info, service, update, workload};
use tokio::io::AsyncReadExt;
use ztunnel::inpod::zds::PodUid;
use ztunnel::proxy::listeners::Listeners;

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

/// Runs `f` on a thread of its own that lacks these capabilities (capset(2) is about the calling thread).
#[allow(unsafe_code)]
fn without<T: Send>(lacking: &[u32], f: impl FnOnce() -> T + Send) -> T {
    const VERSION_3: u32 = 0x2008_0522;
    let withdraw = || {
        let header = [VERSION_3, 0];
        // Effective, permitted and inheritable, 32 capabilities each, twice.
        let mut sets = [0_u32; 6];
        // SAFETY: the kernel reads eight bytes and writes 24, or the other way round, which is what there is.
        assert_eq!(unsafe { libc::syscall(libc::SYS_capget, header.as_ptr(), sets.as_mut_ptr()) }, 0);
        for capability in lacking {
            sets[0] &= !(1 << capability);
        }
        // SAFETY: as above.
        assert_eq!(unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), sets.as_ptr()) }, 0);
    };
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            withdraw();
            f()
        });
        thread.join().unwrap()
    })
}

const CAP_NET_ADMIN: u32 = 12;
const CAP_NET_RAW: u32 = 13;
const CAP_SYS_ADMIN: u32 = 21;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_we_may_not_enter_or_mark_in_is_an_error_of_its_own() {
    let wire = Wire::new();
    let (client, server) = (wire.pod(1), wire.pod(2));
    client.redirect();
    server.redirect();
    let node = Node::start("node1", &TestCa::new(), 2);
    node.publish(vec![
        update(workload(&client, "client", "node1", true)),
        update(workload(&server, "server", "node1", true)),
        service("server", 2),
    ]);
    node.enrol(&client, "client");
    let runtime = tokio::runtime::Handle::current();
    for (lacking, says) in [
        (&[CAP_SYS_ADMIN][..], "cannot enter its network namespace: "),
        (&[CAP_NET_ADMIN, CAP_NET_RAW], "port 15001: Operation not permitted"),
    ] {
        let enrol = || {
            runtime.block_on(node.workers.add(
                &PodUid::new("server"),
                &info("server"),
                &server.namespace.netns,
                &node.predecessor,
            ))
        };
        let error = without(lacking, enrol).unwrap_err().to_string();
        assert!(error.contains(says), "{lacking:?}: {error}");
    }
    // The next try may do what it needs: nothing of the first two is in its way, and the other pod knew of nothing.
    node.enrol(&server, "server");
    assert!(greeted(&client, greet(&server)).await);
    assert_eq!(node.tracker.panics(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_one_worker_cannot_serve_is_served_by_none() {
    let wire = Wire::new();
    let (client, server) = (wire.pod(1), wire.pod(2));
    client.redirect();
    server.redirect();
    // Ports are not shared, so a listener that stayed behind would keep the next try from its port.
    let node = Node::with("node1", &TestCa::new(), 2, |proxy| proxy.reuse_port = false);
    node.publish(vec![
        update(workload(&client, "client", "node1", true)),
        update(workload(&server, "server", "node1", true)),
        service("server", 2),
    ]);
    node.enrol(&client, "client");

    let mut config = data_path("node1");
    config.reuse_port = false;
    let netns = &server.namespace.netns;
    let mut sets = Listeners::open(netns, &config, None, 2, Vec::new()).unwrap();
    // What no poller takes: a file. The first worker has all that it needs.
    let file = tempfile::NamedTempFile::new().unwrap();
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file.path()).unwrap();
    sets[1].hbone = vec![TcpListener::from(OwnedFd::from(file))];
    let (uid, info) = (PodUid::new("server"), info("server"));
    let error = node.workers.serve(&uid, &info, netns, sets).await.unwrap_err().to_string();
    assert!(error.starts_with("worker 1: "), "{error}");

    node.enrol(&server, "server");
    assert!(greeted(&client, greet(&server)).await);
    assert_eq!(node.tracker.panics(), 0);
}

/// A client that gives up by a reset while the proxy still dials for it, on each way.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_while_we_dial_is_not_dialled_for_any_longer() {
    let wire = Wire::new();
    let (client, server, plain, other) = (wire.pod(1), wire.pod(2), wire.pod(3), wire.pod(4));
    client.redirect();
    server.redirect();
    // Nobody answers on port 9, nor by HBONE in the third pod.
    for pod in [&server, &plain, &other] {
        pod.namespace.feed(
            "nft",
            &["-f", "-"],
            "table inet silent {
          chain input { type filter hook input priority 0; tcp dport { 9, 15008 } drop; }
        }",
        );
    }
    let node = Node::with("node1", &TestCa::new(), 2, |proxy| proxy.connect_timeout = 10 * BOUND);
    node.publish(vec![
        update(workload(&client, "client", "node1", true)),
        update(workload(&server, "server", "node1", true)),
        update(workload(&plain, "plain", "node2", true)),
    ]);
    node.enrol(&client, "client");
    node.enrol(&server, "server");
    let ways = [
        ("outbound, plain", &client, SocketAddr::new(other.v4, 9), "client", false),
        ("outbound, HBONE", &client, SocketAddr::new(plain.v4, 8080), "client", false),
        ("inbound, plain", &plain, SocketAddr::new(server.v4, 9), "server", true),
    ];
    for (count, (what, from, to, uid, inbound)) in (1..).zip(ways) {
        let stream = from.connect(to).await.unwrap();
        let dialling = async || {
            let dump = node.connections().await;
            dump.get(&PodUid::new(uid))
                .is_some_and(|c| !if inbound { c.inbound.is_empty() } else { c.outbound.is_empty() })
        };
        until(what, dialling).await;
        socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).unwrap();
        drop(stream);
        until(what, async || !dialling().await).await;
        let refused = |line: &&str| line.contains("refused_total{") && line.contains(r#"reason="client_gone""#);
        let counted = || -> u64 {
            let page = node.page();
            page.lines().filter(refused).map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
        };
        until(what, async || counted() >= count).await;
        assert_eq!(counted(), count, "{what}: {}", node.page());
    }
    assert_eq!(node.tracker.panics(), 0);
}

async fn until(what: &str, check: impl AsyncFn() -> bool) {
    let end = tokio::time::Instant::now() + BOUND;
    while !check().await {
        assert!(tokio::time::Instant::now() < end, "{what}: not within {BOUND:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
