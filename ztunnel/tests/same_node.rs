//! Two pods of one node, with and without the fast path between them: whoever looks from outside sees no difference but on
//! the wire. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[allow(dead_code)] // Shared with the other tests of the data path.
mod support;

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use aquifer_core::state::Update;
use aquifer_proto::security::Action;
use aquifer_proto::workload::{ApplicationTunnel, Extension, Workload};
use support::net::{TestPod, Wire};
use support::node::{Node, TestCa, policy, service, update, workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use ztunnel::inpod::zds::PodUid;

/// What takes longer hangs.
const BOUND: Duration = Duration::from_secs(30);

/// Counts what goes to 15008 in a pod.
const COUNTER: &str = "
table inet count {
  chain output { type filter hook output priority 0; policy accept;
    tcp dport 15008 counter; }
}
";

/// Two pods in the mesh on one node.
struct OneNode {
    client: TestPod,
    server: TestPod,
    node: Node,
    ca: TestCa,
    _wire: Wire,
}

/// A workload that may be connected within its node.
fn permitted(pod: &TestPod, name: &str) -> Workload {
    let extensions = vec![Extension { name: "aquifer.dev/same-node".into(), config: None }];
    Workload { extensions, ..workload(pod, name, "node1", true) }
}

impl OneNode {
    async fn start(same_node: bool, workers: usize) -> Self {
        let wire = Wire::new();
        let (client, server) = (wire.pod(1), wire.pod(2));
        for pod in [&client, &server] {
            pod.redirect();
            pod.namespace.feed("nft", &["-f", "-"], COUNTER);
        }
        let ca = TestCa::new();
        let node = Node::with("node1", &ca, workers, if same_node { |_| () } else { |proxy| proxy.same_node = false });
        let one = Self { client, server, node, ca, _wire: wire };
        one.node.publish(vec![
            update(permitted(&one.client, "client")),
            update(permitted(&one.server, "server")),
            service("server", 2),
        ]);
        one.node.enrol(&one.client, "client");
        one.node.enrol(&one.server, "server");
        // Who comes earlier goes through a tunnel, which waits for them.
        within("certificates", async {
            while !(one.node.is_certified("client") && one.node.is_certified("server")) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        one
    }

    fn publish(&self, updates: &[Update]) {
        self.node.publish(updates.to_vec());
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server.v4, port)
    }

    /// A server that answers each connection with the address that it sees, then echoes.
    fn serve(&self, ip: IpAddr, port: u16) {
        let listener = self.server.listen(ip, port);
        spawn(async move {
            loop {
                let Ok((mut stream, peer)) = listener.accept().await else { return };
                spawn(async move {
                    let _ = stream.write_all(format!("{}\n", peer.ip()).as_bytes()).await;
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    }

    async fn greeted(&self) -> TcpStream {
        let mut stream = self.client.connect(self.at(8080)).await.unwrap();
        assert_eq!(within("first line", line(&mut stream)).await.unwrap(), self.client.v4.to_string());
        stream
    }

    /// Packets to 15008 so far.
    fn tunnelled(&self) -> u64 {
        let count = |pod: &TestPod| {
            let list = || Command::new("nft").args(["list", "table", "inet", "count"]).output().unwrap();
            let text = String::from_utf8(pod.namespace.netns.run(list).unwrap().stdout).unwrap();
            let (_, rest) = text.split_once("packets ").unwrap();
            rest.split(' ').next().unwrap().parse::<u64>().unwrap()
        };
        count(&self.client) + count(&self.server)
    }

    /// All that is counted of connections, when none is open any more.
    async fn counted(&self) -> Vec<String> {
        within("all closed", async {
            while !self.node.connections().await.is_empty() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        assert_eq!(self.node.tracker.panics(), 0);
        let page = self.node.page();
        let counted = ["istio_tcp_", "istio_crl_", "aquifer_connections_refused", "aquifer_policy_cuts"];
        let lines = page.lines().filter(|line| counted.iter().any(|name| line.starts_with(name)));
        let mut lines: Vec<String> = lines.map(str::to_owned).collect();
        lines.sort_unstable();
        lines
    }
}

#[allow(clippy::disallowed_methods)] // The test's own servers are no tasks of the proxy.
fn spawn(task: impl Future<Output = ()> + Send + 'static) {
    tokio::spawn(task);
}

async fn line(stream: &mut TcpStream) -> std::io::Result<String> {
    let mut line = String::new();
    loop {
        match stream.read_u8().await? {
            b'\n' => return Ok(line),
            byte => line.push(char::from(byte)),
        }
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}"))
}

/// What a new client gets that is refused: a reset, maybe as early as connect(2) returns.
async fn refused(from: &TestPod, to: SocketAddr) -> ErrorKind {
    match from.connect(to).await {
        Ok(mut stream) => cut(&mut stream).await,
        Err(e) => e.kind(),
    }
}

/// The error that a client gets which is cut.
async fn cut(stream: &mut TcpStream) -> ErrorKind {
    let mut byte = [0];
    within("a cut", stream.read(&mut byte)).await.map_or_else(|e| e.kind(), |n| panic!("read {n}: {byte:?}"))
}

async fn echoes(stream: &mut TcpStream, text: &str) {
    stream.write_all(format!("{text}\n").as_bytes()).await.unwrap();
    assert_eq!(within("an echo", line(stream)).await.unwrap(), text);
}

/// What both settings must have in common: the outcome of the steps, and all counters.
async fn alike(workers: usize, steps: impl AsyncFn(&OneNode)) {
    let mut counted = Vec::new();
    for on in [false, true] {
        let one = OneNode::start(on, workers).await;
        steps(&one).await;
        counted.push(one.counted().await);
        match on {
            true => assert_eq!(one.tunnelled(), 0, "packets to 15008 in spite of the fast path"),
            false => assert!(one.tunnelled() > 0, "there was no tunnel to do without"),
        }
    }
    assert!(!counted[0].is_empty());
    let [off, on] = [(0, 1), (1, 0)].map(|(own, other)| {
        let only_there = counted[own].iter().filter(|line| !counted[other].contains(line));
        only_there.map(String::as_str).collect::<Vec<_>>().join("\n")
    });
    assert_eq!(off, on, "counters that differ without (left) and with the fast path");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_addresses_and_counters_are_the_same() {
    for workers in [1, 2] {
        alike(workers, async |one| {
            one.serve(one.server.v4, 8080);
            one.serve(one.server.v6, 8080);
            let service: SocketAddr = ([198, 19, 0, 2], 80).into();
            for (to, own) in [
                (one.at(8080), one.client.v4),
                (service, one.client.v4),
                (SocketAddr::new(one.server.v6, 8080), one.client.v6),
            ] {
                let mut stream = one.client.connect(to).await.unwrap();
                assert_eq!(within("first line", line(&mut stream)).await.unwrap(), own.to_string(), "{to}");
                echoes(&mut stream, "ping").await;
                let dump = one.node.connections().await;
                let (outbound, inbound) =
                    (&dump[&PodUid::new("client")].outbound, &dump[&PodUid::new("server")].inbound);
                assert_eq!((outbound.len(), outbound[0].protocol, outbound[0].actual_dst.port()), (1, "HBONE", 15008));
                assert_eq!((inbound.len(), inbound[0].protocol, inbound[0].src.ip()), (1, "HBONE", own));
                assert_eq!(inbound[0].original_dst.as_ref().unwrap().to_string(), inbound[0].actual_dst.to_string());
                // The client's FIN comes through, and the server's after it.
                stream.shutdown().await.unwrap();
                assert_eq!(within("end", stream.read_to_end(&mut Vec::new())).await.unwrap(), 0);
                one.counted().await;
            }
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_close_volume_and_many_at_once_are_the_same() {
    alike(2, async |one| {
        const SIZE: usize = 4 << 20;
        let listener = one.server.listen(one.server.v4, 9090);
        spawn(async move {
            // All of the request, until the client's FIN; only then the answer.
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut all = Vec::new();
            stream.read_to_end(&mut all).await.unwrap();
            stream.write_all(&all).await.unwrap();
        });
        let mut stream = one.client.connect(one.at(9090)).await.unwrap();
        let data: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
        within("request", stream.write_all(&data)).await.unwrap();
        stream.shutdown().await.unwrap();
        let mut back = Vec::new();
        within("answer", stream.read_to_end(&mut back)).await.unwrap();
        assert!(back == data, "{} bytes back", back.len());

        one.serve(one.server.v4, 8080);
        let all = futures_util::future::join_all((0..200).map(|_| one.greeted()));
        let streams = within("200 at once", all).await;
        for mut stream in streams {
            stream.shutdown().await.unwrap();
            within("end", stream.read_to_end(&mut Vec::new())).await.unwrap();
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn refusals_are_the_same() {
    alike(1, async |one| {
        // Nobody listens; our own ports; a policy.
        for port in [9999, 15006] {
            assert_eq!(refused(&one.client, one.at(port)).await, ErrorKind::ConnectionReset, "{port}");
        }
        one.serve(one.server.v4, 8080);
        one.publish(&[policy("only-web", Action::Allow, &["cluster.local/ns/shop/sa/web"])]);
        assert_eq!(refused(&one.client, one.at(8080)).await, ErrorKind::ConnectionReset);
        one.publish(&[policy("only-web", Action::Deny, &["cluster.local/ns/shop/sa/client"])]);
        assert_eq!(refused(&one.client, one.at(8080)).await, ErrorKind::ConnectionReset);
        one.publish(&[policy("only-web", Action::Allow, &["cluster.local/ns/shop/sa/client"])]);
        drop(one.greeted().await);
        // Gone, so that the next one to be seen is the next one.
        one.counted().await;
        // One that doesn't come, and a client that doesn't wait for it.
        let mut server = permitted(&one.server, "server");
        server.authorization_policies = vec!["shop/late".into()];
        one.publish(&[update(server)]);
        let waiting = one.client.connect(one.at(8080)).await.unwrap();
        within("both ends", async {
            while one.node.connections().await.get(&PodUid::new("server")).is_none_or(|c| c.inbound.is_empty()) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
        socket2::SockRef::from(&waiting).set_linger(Some(Duration::ZERO)).unwrap();
        drop(waiting);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn policies_and_revocations_cut_the_same() {
    alike(2, async |one| {
        one.serve(one.server.v4, 8080);
        let mut open = Vec::new();
        for _ in 0..10 {
            open.push(one.greeted().await);
        }
        let begun = std::time::Instant::now();
        one.publish(&[policy("only-web", Action::Allow, &["cluster.local/ns/shop/sa/web"])]);
        for stream in &mut open {
            assert_eq!(cut(stream).await, ErrorKind::ConnectionReset);
        }
        assert!(begun.elapsed() < Duration::from_secs(5), "{:?} (bound 1 s)", begun.elapsed());
        one.publish(&[Update::RemovePolicy("shop/only-web".into())]);
        one.counted().await;
    })
    .await;
    for of in ["client", "server"] {
        for on in [true, false] {
            let one = OneNode::start(on, 2).await;
            one.serve(one.server.v4, 8080);
            let mut open = one.greeted().await;
            assert_eq!(one.node.revoke(one.ca.crl(&[999])).await, 0);
            echoes(&mut open, "still").await;
            assert_eq!(one.node.revoke(one.ca.crl(&[one.node.serial(of)])).await, 1);
            assert_eq!(cut(&mut open).await, ErrorKind::ConnectionReset);
            assert_eq!(refused(&one.client, one.at(8080)).await, ErrorKind::ConnectionReset);
            let page = one.counted().await.join("\n");
            assert!(page.contains("CERT_REVOKED") && page.contains("certificate_revoked"), "{on} {of}: {page}");
            assert!(!page.contains("istio_crl_untracked_connections_total{"), "every peer's certificate is known");
            one.node.revoke(Vec::new()).await;
            echoes(&mut one.greeted().await, "back").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn either_pods_end_ends_what_is_open() {
    for gone in ["client", "server"] {
        alike(1, async |one| {
            one.serve(one.server.v4, 8080);
            let mut open = one.greeted().await;
            tokio::time::timeout(BOUND, one.node.workers.remove(&PodUid::new(gone))).await.unwrap();
            assert!(!one.node.connections().await.contains_key(&PodUid::new(gone)));
            assert_eq!(cut(&mut open).await, ErrorKind::ConnectionReset);
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_permission_for_both_there_is_a_tunnel() {
    for withdrawn in ["client", "server"] {
        let one = OneNode::start(true, 2).await;
        one.serve(one.server.v4, 8080);
        let mut open = one.greeted().await;
        assert_eq!(one.tunnelled(), 0);
        let pod = if withdrawn == "client" { &one.client } else { &one.server };
        // Changes of other kinds cut nobody.
        one.publish(&[update(Workload { capacity: Some(7), ..permitted(pod, withdrawn) })]);
        echoes(&mut open, "still").await;
        one.publish(&[update(workload(pod, withdrawn, "node1", true))]);
        assert_eq!(cut(&mut open).await, ErrorKind::ConnectionReset, "what nobody sees on the wire");
        echoes(&mut one.greeted().await, "over the wire").await;
        let tunnelled = one.tunnelled();
        assert!(tunnelled > 0);
        // One that went through a tunnel has nothing to lose when the permission comes back.
        let mut tunnel = one.greeted().await;
        one.publish(&[update(permitted(pod, withdrawn))]);
        within("the fast path again", async {
            loop {
                let before = one.tunnelled();
                echoes(&mut one.greeted().await, "within").await;
                if one.tunnelled() == before {
                    return;
                }
            }
        })
        .await;
        echoes(&mut tunnel, "still").await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_address_that_a_pod_gave_itself_is_not_its_own() {
    let one = OneNode::start(true, 1).await;
    one.serve(one.server.v4, 8080);
    // Somebody else's, taken by a pod that may: the tunnel shows the pod's own.
    one.client.namespace.sh("ip addr add 198.18.0.77/32 dev lo");
    let socket = one.client.namespace.netns.run(|| {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.bind("198.18.0.77:0".parse().unwrap()).unwrap();
        socket
    });
    let mut stream = within("connect", socket.unwrap().connect(one.at(8080))).await.unwrap();
    assert_eq!(within("first line", line(&mut stream)).await.unwrap(), one.client.v4.to_string());
    assert!(one.tunnelled() > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_behind_an_application_tunnel_is_told_the_same() {
    alike(1, async |one| {
        let mut server = permitted(&one.server, "server");
        server.application_tunnel = Some(ApplicationTunnel { protocol: 1, port: 7003 });
        one.publish(&[update(server)]);
        let listener = one.server.listen("127.0.0.1".parse().unwrap(), 7003);
        let mut stream = one.client.connect(one.at(8080)).await.unwrap();
        let (mut accepted, _) = within("accept", listener.accept()).await.unwrap();
        stream.write_all(b"hello").await.unwrap();
        stream.shutdown().await.unwrap();
        let mut all = Vec::new();
        within("all", accepted.read_to_end(&mut all)).await.unwrap();
        assert_eq!(&all[..14], b"\r\n\r\n\0\r\nQUIT\n\x21\x11");
        let (IpAddr::V4(from), IpAddr::V4(to)) = (one.client.v4, one.server.v4) else { unreachable!() };
        assert_eq!(
            (&all[16..20], &all[20..24], &all[26..28]),
            (&from.octets()[..], &to.octets()[..], &8080_u16.to_be_bytes()[..])
        );
        let rest = String::from_utf8_lossy(&all[28..]).into_owned();
        assert!(rest.ends_with("spiffe://cluster.local/ns/shop/sa/clienthello"), "{rest}");
        drop(accepted);
        within("end", stream.read_to_end(&mut Vec::new())).await.unwrap();
    })
    .await;
}
