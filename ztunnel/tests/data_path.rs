//! The data path in the kernel: pods on two nodes, real redirection, real TLS. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[allow(dead_code)] // Shared with the other tests of the data path.
mod support;

use std::cell::Cell;
use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::identity::Identity;
use aquifer_core::state::Update;
use aquifer_hbone::HboneRequest;
use aquifer_proto::security::Action;
use aquifer_runtime::cancel::{Drained, shutdown};
use aquifer_tls::{IdentityConfigs, TlsOptions};
use http::{HeaderMap, HeaderName, HeaderValue};
use support::net::{TestPod, Wire};
use support::node::{Node, TestCa, policy, service, update, workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use ztunnel::inpod::zds::PodUid;
use ztunnel::mesh::grace;

/// What takes longer hangs.
const BOUND: Duration = Duration::from_secs(30);

/// client (node1) and server (node2) in the mesh, plain outside of it.
struct Cluster {
    client: TestPod,
    server: TestPod,
    plain: TestPod,
    node1: Node,
    node2: Node,
    ca: TestCa,
    _wire: Wire,
}

impl Cluster {
    fn start(workers: usize) -> Self {
        Self::with_grace(workers, grace::Settings::default())
    }

    fn with_grace(workers: usize, settings: grace::Settings) -> Self {
        let wire = Wire::new();
        let (client, server, plain) = (wire.pod(1), wire.pod(2), wire.pod(3));
        client.redirect();
        server.redirect();
        let ca = TestCa::new();
        let (node1, node2) = (Node::start("node1", &ca, workers), Node::with_grace("node2", &ca, workers, settings));
        let cluster = Self { client, server, plain, node1, node2, ca, _wire: wire };
        cluster.publish(&[
            update(workload(&cluster.client, "client", "node1", true)),
            update(workload(&cluster.server, "server", "node2", true)),
            update(workload(&cluster.plain, "plain", "node3", false)),
            service("server", 2),
        ]);
        cluster.node1.enrol(&cluster.client, "client");
        cluster.node2.enrol(&cluster.server, "server");
        cluster
    }

    fn publish(&self, updates: &[Update]) {
        self.node1.publish(updates.to_vec());
        self.node2.publish(updates.to_vec());
    }

    fn at(&self, port: u16) -> SocketAddr {
        SocketAddr::new(self.server.v4, port)
    }

    /// A server that answers each connection with the address that it sees, then echoes.
    fn serve(&self, ip: IpAddr, port: u16) -> tokio::task::JoinHandle<()> {
        let listener = self.server.listen(ip, port);
        spawn(async move {
            loop {
                let (mut stream, peer) = listener.accept().await.unwrap();
                spawn(async move {
                    stream.write_all(format!("{}\n", peer.ip()).as_bytes()).await.unwrap();
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        })
    }
}

#[allow(clippy::disallowed_methods)] // The test's own servers are no tasks of the proxy.
fn spawn(task: impl Future<Output = ()> + Send + 'static) -> tokio::task::JoinHandle<()> {
    tokio::spawn(task)
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
        Ok(mut stream) => refusal(&mut stream).await,
        Err(e) => e.kind(),
    }
}

/// The error that a client gets which is cut: a reset, on reading or already on writing.
async fn refusal(stream: &mut TcpStream) -> ErrorKind {
    // Whichever call meets the reset first takes the error with it; the next one would see an orderly end.
    if let Err(e) = stream.write_all(b"hello").await {
        return e.kind();
    }
    let mut byte = [0];
    within("refusal", stream.read(&mut byte)).await.map_or_else(|e| e.kind(), |n| panic!("read {n}: {byte:?}"))
}

/// Waits until a refusal shows on the node's metrics page.
async fn shows(node: &Node, text: &str) {
    let page = within(text, async {
        loop {
            let page = node.page();
            if page.contains(text) {
                return page;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    });
    page.await;
}

/// Polls until `check` holds.
async fn eventually<F: Future<Output = bool>>(what: &str, mut check: impl FnMut() -> F) {
    within(what, async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bytes_ride_hbone_under_the_clients_own_address() {
    for workers in [1, 2] {
        let c = Cluster::start(workers);
        let servers = [c.serve(c.server.v4, 8080), c.serve(c.server.v6, 8080)];
        let service: SocketAddr = ([198, 19, 0, 2], 80).into();
        for (to, own) in
            [(c.at(8080), c.client.v4), (service, c.client.v4), (SocketAddr::new(c.server.v6, 8080), c.client.v6)]
        {
            let mut stream = c.client.connect(to).await.unwrap();
            assert_eq!(within("first line", line(&mut stream)).await.unwrap(), own.to_string(), "{to}");
            stream.write_all(b"ping\n").await.unwrap();
            assert_eq!(within("echo", line(&mut stream)).await.unwrap(), "ping");
            let dump = c.node1.connections().await;
            let outbound = &dump[&PodUid::new("client")].outbound;
            assert_eq!((outbound.len(), outbound[0].protocol, outbound[0].actual_dst.port()), (1, "HBONE", 15008));
            let dump = c.node2.connections().await;
            assert_eq!(dump[&PodUid::new("server")].inbound[0].protocol, "HBONE");
            // The client's FIN comes through, and the server's after it.
            stream.shutdown().await.unwrap();
            let mut rest = Vec::new();
            within("end", stream.read_to_end(&mut rest)).await.unwrap();
            for node in [&c.node1, &c.node2] {
                eventually("closed", || async { node.connections().await.is_empty() }).await;
            }
        }
        for (node, reporter) in [(&c.node1, "source"), (&c.node2, "destination")] {
            let page = node.page();
            let closed = page.lines().find(|l| {
                l.starts_with("istio_tcp_connections_closed_total")
                    && l.contains("server.shop.svc")
                    && l.contains(reporter)
            });
            assert!(closed.is_some_and(|l| l.contains("mutual_tls") && l.contains(r#"response_flags="-""#)), "{page}");
            assert_eq!(node.tracker.panics(), 0);
        }
        servers.iter().for_each(|s| s.abort());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn half_close_each_way_and_large_transfers() {
    let c = Cluster::start(2);
    let listener = c.server.listen(c.server.v4, 8080);
    const SIZE: usize = 8 << 20;
    let server = spawn(async move {
        // All of the request, until the client's FIN; only then the answer.
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut all = Vec::new();
        stream.read_to_end(&mut all).await.unwrap();
        assert_eq!(all.len(), SIZE);
        assert!(all.iter().enumerate().all(|(i, b)| *b == (i % 251) as u8));
        stream.write_all(&all).await.unwrap();
    });
    let mut stream = c.client.connect(c.at(8080)).await.unwrap();
    let data: Vec<u8> = (0..SIZE).map(|i| (i % 251) as u8).collect();
    stream.write_all(&data).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut back = Vec::new();
    within("transfer", stream.read_to_end(&mut back)).await.unwrap();
    assert!(back == data, "{} bytes back", back.len());
    server.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_neighbours_are_served_both_ways_until_a_policy_forbids() {
    let c = Cluster::start(1);
    let _server = c.serve(c.server.v4, 8080);
    // Into the mesh in plaintext, with the caller's own address.
    let mut stream = c.plain.connect(c.at(8080)).await.unwrap();
    assert_eq!(within("line", line(&mut stream)).await.unwrap(), c.plain.v4.to_string());
    // Out of the mesh.
    let listener = c.plain.listen(c.plain.v4, 9090);
    let mut out = c.client.connect(SocketAddr::new(c.plain.v4, 9090)).await.unwrap();
    let (mut accepted, peer) = within("accept", listener.accept()).await.unwrap();
    assert_eq!(peer.ip(), c.client.v4);
    accepted.write_all(b"hi\n").await.unwrap();
    assert_eq!(within("line", line(&mut out)).await.unwrap(), "hi");

    // As STRICT: a DENY for whoever shows no identity. What is open is cut, what comes is refused.
    let strict = aquifer_proto::security::Authorization {
        name: "strict".into(),
        namespace: "shop".into(),
        scope: aquifer_proto::security::Scope::Namespace as i32,
        action: Action::Deny as i32,
        rules: vec![aquifer_proto::security::Rule {
            clauses: vec![aquifer_proto::security::Clause {
                matches: vec![aquifer_proto::security::Match {
                    not_principals: vec![aquifer_proto::security::StringMatch {
                        match_type: Some(aquifer_proto::security::string_match::MatchType::Presence(())),
                    }],
                    ..Default::default()
                }],
            }],
        }],
        ..Default::default()
    };
    c.publish(&[Update::Policy(aquifer_core::from_proto::authorization(&strict).unwrap().into())]);
    assert_eq!(refusal(&mut stream).await, ErrorKind::ConnectionReset);
    assert_eq!(refused(&c.plain, c.at(8080)).await, ErrorKind::ConnectionReset);
    let mut meshed = c.client.connect(c.at(8080)).await.unwrap();
    assert_eq!(within("line", line(&mut meshed)).await.unwrap(), c.client.v4.to_string());
    for expect in [
        r#"aquifer_connections_refused_total{reason="policy_denied",policy="shop/strict",reporter="destination"} 1"#,
        r#"aquifer_connections_refused_total{reason="policy_changed",policy="shop/strict",reporter="destination"} 1"#,
    ] {
        shows(&c.node2, expect).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_cuts_open_connections_within_a_second_and_names_itself() {
    let c = Cluster::start(2);
    let _server = c.serve(c.server.v4, 8080);
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut stream = c.client.connect(c.at(8080)).await.unwrap();
        within("line", line(&mut stream)).await.unwrap();
        open.push(stream);
    }
    let begun = std::time::Instant::now();
    c.publish(&[policy("only-web", Action::Allow, &["cluster.local/ns/shop/sa/web"])]);
    for stream in &mut open {
        let mut byte = [0];
        let end = within("cut", stream.read(&mut byte)).await;
        assert!(matches!(end, Ok(0)) || end.as_ref().is_err_and(|e| e.kind() == ErrorKind::ConnectionReset), "{end:?}");
    }
    assert!(begun.elapsed() < Duration::from_secs(5), "{:?} (bound 1 s)", begun.elapsed());
    assert_eq!(refused(&c.client, c.at(8080)).await, ErrorKind::ConnectionReset);
    let expect = r#"reason="policy_not_allowed",policy="shop/only-web",reporter="destination"} 1"#;
    shows(&c.node2, expect).await;
    c.publish(&[Update::RemovePolicy("shop/only-web".into())]);
    let mut stream = c.client.connect(c.at(8080)).await.unwrap();
    within("line", line(&mut stream)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_see_refusals_as_resets() {
    let c = Cluster::start(1);
    // Nobody listens there; in the mesh and outside.
    for to in [c.at(9999), SocketAddr::new(c.plain.v4, 9999)] {
        assert_eq!(refused(&c.client, to).await, ErrorKind::ConnectionReset, "{to}");
    }
    // Our own ports, through the tunnel and on loopback.
    for to in [c.at(15001), c.at(15006)] {
        assert_eq!(refused(&c.client, to).await, ErrorKind::ConnectionReset, "{to}");
    }
    // A service without a healthy endpoint.
    let mut ill = workload(&c.server, "server", "node2", true);
    ill.status = aquifer_proto::workload::WorkloadStatus::Unhealthy as i32;
    c.publish(&[update(ill)]);
    assert_eq!(refused(&c.client, ([198, 19, 0, 2], 80).into()).await, ErrorKind::ConnectionReset);
    for reason in ["peer_refused", "connect_refused", "no_healthy_upstream"] {
        shows(&c.node1, &format!("reason=\"{reason}\"")).await;
    }
    shows(&c.node2, r#"reason="illegal_port""#).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn five_hundred_at_once() {
    let c = Cluster::start(2);
    let _server = c.serve(c.server.v4, 8080);
    let to = c.at(8080);
    let clients = (0..500).map(|_| async {
        let mut stream = c.client.connect(to).await.unwrap();
        line(&mut stream).await.unwrap()
    });
    let answers = within("all", futures_util::future::join_all(clients)).await;
    assert!(answers.iter().all(|answer| *answer == c.client.v4.to_string()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_that_leaves_is_cut_at_once_and_can_come_back() {
    let c = Cluster::start(2);
    let _server = c.serve(c.server.v4, 8080);
    let mut stream = c.client.connect(c.at(8080)).await.unwrap();
    within("line", line(&mut stream)).await.unwrap();
    // The agent waits for this, and for five seconds at most; what is open does not end by itself.
    tokio::time::timeout(Duration::from_secs(5), c.node2.workers.remove(&PodUid::new("server"))).await.unwrap();
    assert!(c.node2.connections().await.is_empty());
    let mut byte = [0];
    let end = within("cut", stream.read(&mut byte)).await;
    assert!(matches!(end, Ok(0) | Err(_)), "{end:?}");
    // Nobody listens on 15008 any more, once a program that another test is just starting has let go of the listener.
    eventually("refused at 15008", || async {
        assert_eq!(refused(&c.client, c.at(8080)).await, ErrorKind::ConnectionReset);
        c.node1.page().contains(r#"reason="hbone_refused""#)
    })
    .await;
    c.node2.enrol(&c.server, "server");
    let mut stream = c.client.connect(c.at(8080)).await.unwrap();
    within("line", line(&mut stream)).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_lets_open_connections_end_and_a_second_proxy_takes_over() {
    let c = Cluster::start(2);
    let _server = c.serve(c.server.v4, 8080);
    let mut open = c.client.connect(c.at(8080)).await.unwrap();
    within("line", line(&mut open)).await.unwrap();
    // The next process: the same pods, the same ports, at the same time.
    let (next1, next2) = (Node::start("node1", &c.ca, 2), Node::start("node2", &c.ca, 2));
    for next in [&next1, &next2] {
        next.publish(vec![
            update(workload(&c.client, "client", "node1", true)),
            update(workload(&c.server, "server", "node2", true)),
            service("server", 2),
        ]);
    }
    next1.enrol(&c.client, "client");
    next2.enrol(&c.server, "server");

    let draining = [&c.node1, &c.node2].map(|node| {
        let (cancel, tracker) = (node.cancel.clone(), node.tracker.clone());
        async move { shutdown(&cancel, &tracker, BOUND).await }
    });
    let drained = futures_util::future::join_all(draining);
    let traffic = async {
        // New connections never fail meanwhile.
        for _ in 0..200 {
            let mut stream = c.client.connect(c.at(8080)).await.unwrap();
            line(&mut stream).await.unwrap();
        }
        open.write_all(b"still here\n").await.unwrap();
        assert_eq!(line(&mut open).await.unwrap(), "still here");
        drop(open);
    };
    let (drained, ()) = within("drain", async { tokio::join!(drained, traffic) }).await;
    assert_eq!(drained, [Drained::InTime, Drained::InTime]);
    assert!(!next2.page().is_empty());
}

/// A peer with a certificate of our choice, straight to port 15008.
async fn hostile(c: &Cluster, ca: &TestCa, identity: &str, authority: &str) -> Result<u16, String> {
    foreign(c, ca, identity, authority, HeaderMap::new()).await
}

async fn foreign(c: &Cluster, ca: &TestCa, identity: &str, authority: &str, headers: HeaderMap) -> Result<u16, String> {
    let identity: Identity = identity.parse().unwrap();
    // Trusts the cluster's CA whatever it shows itself, so that only the server's opinion counts.
    let trusting = c.ca.issue(&identity);
    let options = TlsOptions::default();
    let shown = IdentityConfigs::new(identity.clone(), ca.issue(&identity), 1, &options).unwrap();
    let expect = [Identity::new("cluster.local", "shop", "server")];
    let mut config = (*IdentityConfigs::new(identity, trusting, 1, &options).unwrap().client_config(&expect)).clone();
    config.client_auth_cert_resolver = shown.client_config(&expect).client_auth_cert_resolver.clone();
    let tcp = c.plain.connect(c.at(15008)).await.map_err(|e| e.to_string())?;
    let name = rustls::pki_types::ServerName::IpAddress(c.server.v4.into());
    let tls = TlsConnector::from(Arc::new(config)).connect(name, tcp).await.map_err(|e| e.to_string())?;
    let client_config = aquifer_hbone::ClientConfig::default();
    let (client, driver) = aquifer_hbone::client::handshake(tls, &client_config).await.map_err(|e| e.to_string())?;
    let request = HboneRequest { authority: authority.into(), headers };
    let answer = tokio::select! {
        biased; // The answer may come with the end of the connection.
        answer = client.connect(&request) => answer,
        ended = driver.run() => return Err(format!("{ended:?}")),
    };
    match answer {
        Ok(_) => Ok(200),
        Err(aquifer_hbone::ConnectError::Status { status, .. }) => Ok(status.as_u16()),
        Err(e) => Err(e.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hostile_peers_get_nowhere() {
    let c = Cluster::start(1);
    let _server = c.serve(c.server.v4, 8080);
    let friend = "spiffe://cluster.local/ns/shop/sa/friend";
    let (server, plain) = (c.server.v4, c.plain.v4);
    let table: Vec<(String, u16)> = vec![
        (format!("{server}:8080"), 200),
        (format!("{server}:9999"), 503),
        (format!("{plain}:9090"), 400),
        (format!("{server}:15008"), 503),
        (format!("{server}:15006"), 503),
        (format!("{server}:15001"), 503),
        ("nosuch.shop.svc.cluster.local:80".into(), 503),
        ("server.shop.svc.cluster.local:80".into(), 200),
        (server.to_string(), 400),
        ("a b:80".into(), 0),
    ];
    for (authority, expect) in table {
        let got = within(&authority, hostile(&c, &c.ca, friend, &authority)).await;
        match expect {
            0 => assert!(got.is_err(), "{authority}: {got:?}"),
            expect => assert_eq!(got, Ok(expect), "{authority}"),
        }
    }
    let authority = format!("{server}:8080");
    let foreign = within("foreign", hostile(&c, &c.ca, "spiffe://elsewhere/ns/shop/sa/friend", &authority)).await;
    assert!(foreign.is_err(), "{foreign:?}");
    let stranger = within("stranger", hostile(&c, &TestCa::new(), friend, &authority)).await;
    assert!(stranger.is_err(), "{stranger:?}");
    // Not TLS at all.
    let mut stream = c.plain.connect(c.at(15008)).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\n\r\n").await.unwrap();
    let mut rest = Vec::new();
    let _ = within("end", stream.read_to_end(&mut rest)).await;
    for reason in ["peer_certificate_invalid", "destination_mismatch", "service_unknown", "tls_failed"] {
        shows(&c.node2, &format!("reason=\"{reason}\"")).await;
    }
    assert_eq!(c.node2.tracker.panics(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_the_mesh_does_not_know_is_named_as_it_says_and_its_certificate_bears_out() {
    let c = Cluster::start(1);
    let _server = c.serve(c.server.v4, 8080);
    let authority = format!("{}:8080", c.server.v4);
    let far = "spiffe://cluster.local/ns/shop/sa/far";
    let call = async |identity: &str, baggage: &'static str| {
        let headers = HeaderMap::from_iter([(HeaderName::from_static("baggage"), HeaderValue::from_static(baggage))]);
        assert_eq!(within("call", foreign(&c, &c.ca, identity, &authority, headers)).await, Ok(200));
    };
    let labels = |workload: &str, app: &str, namespace: &str, principal: &str, version: &str, cluster: &str| {
        format!(
            "istio_tcp_connections_opened_total{{reporter=\"destination\",source_workload=\"{workload}\",\
             source_canonical_service=\"{app}\",source_canonical_revision=\"{version}\",\
             source_workload_namespace=\"{namespace}\",source_principal=\"{principal}\",source_app=\"{app}\",\
             source_version=\"{version}\",source_cluster=\"{cluster}\","
        )
    };
    call(far, "k8s.cluster.name=west,k8s.namespace.name=shop,k8s.deployment.name=far,service.name=far-app,service.version=v2,cloud.region=eu").await;
    shows(&c.node2, &labels("far", "far-app", "shop", far, "v2", "west")).await;
    shows(&c.node2, "source_region=\"eu\"").await;
    // Of another namespace than it says: nothing of it is believed.
    let liar = "spiffe://cluster.local/ns/dark/sa/far";
    call(liar, "k8s.cluster.name=west,k8s.namespace.name=shop,k8s.deployment.name=far,service.name=far-app").await;
    shows(&c.node2, &labels("unknown", "unknown", "unknown", liar, "unknown", "unknown")).await;
    // Whom the mesh knows is who it knows, whatever it says.
    let known = "spiffe://cluster.local/ns/shop/sa/plain";
    call(known, "k8s.namespace.name=shop,k8s.deployment.name=far,service.name=far-app").await;
    shows(&c.node2, &format!("source_workload_namespace=\"shop\",source_principal=\"{known}\",source_app=\"plain"))
        .await;
    assert!(!c.node2.page().contains(&format!("source_principal=\"{known}\",source_app=\"far")));
}

/// Opens a connection that is served, and says so.
async fn greeted(c: &Cluster) -> TcpStream {
    let mut stream = c.client.connect(c.at(8080)).await.unwrap();
    assert_eq!(within("line", line(&mut stream)).await.unwrap(), c.client.v4.to_string());
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revoked_peer_is_cut_on_either_side_and_stays_out() {
    for at_the_server in [true, false] {
        let c = Cluster::start(2);
        let _server = c.serve(c.server.v4, 8080);
        let mut open = greeted(&c).await;
        let (judge, revoked, reporter) = if at_the_server {
            (&c.node2, c.node1.serial("client"), "destination")
        } else {
            (&c.node1, c.node2.serial("server"), "source")
        };
        // A list of somebody else's certificate, and one that another authority signed, change nothing.
        assert_eq!(judge.revoke(c.ca.crl(&[999])).await, 0);
        assert_eq!(judge.revoke(TestCa::new().crl(&[revoked])).await, 0);
        open.write_all(b"still\n").await.unwrap();
        assert_eq!(within("echo", line(&mut open)).await.unwrap(), "still");

        assert_eq!(judge.revoke(c.ca.crl(&[revoked])).await, 1);
        refusal(&mut open).await;
        shows(judge, "response_flags=\"CERT_REVOKED\"").await;
        shows(judge, &format!("istio_crl_policy_rejections_total{{reporter=\"{reporter}\"}} 1")).await;
        refused(&c.client, c.at(8080)).await;
        shows(judge, "reason=\"certificate_revoked\"").await;
        assert!(!judge.page().contains("istio_crl_untracked_connections_total{"), "every peer's certificate is known");

        // Withdrawn: served again, by new tunnels.
        judge.revoke(Vec::new()).await;
        let mut again = greeted(&c).await;
        again.write_all(b"back\n").await.unwrap();
        assert_eq!(within("echo", line(&mut again)).await.unwrap(), "back");
        assert_eq!((c.node1.tracker.panics(), c.node2.tracker.panics()), (0, 0));
    }
}

/// The workload `server` with changes of its own.
fn server_with(c: &Cluster, change: impl FnOnce(&mut aquifer_proto::workload::Workload)) -> Update {
    let mut server = workload(&c.server, "server", "node2", true);
    change(&mut server);
    update(server)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_proxy_behind_an_application_tunnel_is_told_who_calls_and_what_for() {
    let c = Cluster::start(1);
    c.publish(&[server_with(&c, |server| {
        server.application_tunnel = Some(aquifer_proto::workload::ApplicationTunnel { protocol: 1, port: 7003 });
    })]);
    let identity = "spiffe://cluster.local/ns/shop/sa/client";
    for (loopback, own, pod) in [("127.0.0.1", c.client.v4, c.server.v4), ("::1", c.client.v6, c.server.v6)] {
        // On loopback alone, as a proxy listens that nobody else shall reach.
        let listener = c.server.listen(loopback.parse().unwrap(), 7003);
        let to = SocketAddr::new(pod, 8080);
        let mut stream = c.client.connect(to).await.unwrap();
        let (mut accepted, peer) = within("accept", listener.accept()).await.unwrap();
        assert_eq!(peer.ip().to_string(), loopback);
        stream.write_all(b"hello").await.unwrap();
        let mut head = [0; 16];
        within("header", accepted.read_exact(&mut head)).await.unwrap();
        assert_eq!((&head[..12], head[12]), (&b"\r\n\r\n\0\r\nQUIT\n"[..], 0x21));
        let size = if own.is_ipv4() { 4 } else { 16 };
        assert_eq!(head[13], if own.is_ipv4() { 0x11 } else { 0x21 });
        let mut rest = vec![0; usize::from(u16::from_be_bytes([head[14], head[15]]))];
        within("rest", accepted.read_exact(&mut rest)).await.unwrap();
        let ip = |bytes: &[u8]| match <[u8; 4]>::try_from(bytes) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => <[u8; 16]>::try_from(bytes).unwrap().into(),
        };
        assert_eq!((ip(&rest[..size]), ip(&rest[size..2 * size])), (own, pod));
        assert_eq!(rest[2 * size + 2..2 * size + 4], 8080_u16.to_be_bytes());
        let (tlv, text) = rest[2 * size + 4..].split_at(3);
        assert_eq!((tlv, text), (&[0xd0, 0, identity.len() as u8][..], identity.as_bytes()));
        // Then the client's own bytes, and the answer.
        let mut hello = [0; 5];
        within("hello", accepted.read_exact(&mut hello)).await.unwrap();
        accepted.write_all(&hello).await.unwrap();
        let mut echo = [0; 5];
        within("echo", stream.read_exact(&mut echo)).await.unwrap();
        assert_eq!(&echo, b"hello");
    }
    // What is not on loopback is not reached there, with nobody to take it.
    assert_eq!(refused(&c.client, c.at(8080)).await, ErrorKind::ConnectionReset);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tunnel_without_headers_and_a_destination_known_by_name() {
    use std::io::Write;
    let c = Cluster::start(1);
    c.publish(&[server_with(&c, |server| {
        server.application_tunnel = Some(aquifer_proto::workload::ApplicationTunnel { protocol: 0, port: 7003 });
    })]);
    let _server = c.serve(c.server.v4, 7003);
    let mut stream = c.client.connect(c.at(8080)).await.unwrap();
    assert_eq!(within("line", line(&mut stream)).await.unwrap(), c.client.v4.to_string());

    // A service whose endpoint is a hostname outside of the mesh.
    let mut external = workload(&c.plain, "external", "", false);
    external.addresses.clear();
    external.hostname = "db.example".into();
    c.publish(&[update(external), service("external", 9)]);
    let listener = c.plain.listen(c.plain.v4, 8080);
    let vip: SocketAddr = ([198, 19, 0, 9], 80).into();
    assert_eq!(refused(&c.client, vip).await, ErrorKind::ConnectionReset);
    shows(&c.node1, "reason=\"dns_failed\"").await;
    writeln!(c.node1.hosts.as_file(), "{} db.example", c.plain.v4).unwrap();
    let greeting = spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let _ = stream.write_all(b"hi\n").await;
        }
    });
    eventually("the name is asked for again", || async {
        let Ok(mut stream) = c.client.connect(vip).await else { return false };
        line(&mut stream).await.is_ok_and(|line| line == "hi")
    })
    .await;
    greeting.abort();
    shows(&c.node1, "istio_on_demand_dns_total{source_workload=\"client\"").await;
    shows(&c.node1, "hostname=\"db.example\"").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_comes_half_a_second_late_under_load_costs_nobody_whom_it_allows() {
    // It is waited for as long as this machine may need for everything below.
    let c = Cluster::with_grace(2, grace::Settings { wait: BOUND * 4, skip: false });
    let _server = c.serve(c.server.v4, 8080);
    let mut open = Vec::new();
    for _ in 0..20 {
        open.push(greeted(&c).await);
    }
    let mut plain = c.plain.connect(c.at(8080)).await.unwrap();
    within("line", line(&mut plain)).await.unwrap();
    // Only callers with this identity; by selector, as a workload's own policy is.
    let only_client = || {
        let Update::Policy(policy) = policy("late", Action::Allow, &["cluster.local/ns/shop/sa/client"]) else {
            unreachable!()
        };
        let scope = aquifer_core::policy::Scope::WorkloadSelector;
        Update::Policy(Arc::new(aquifer_core::policy::Policy { scope, ..(*policy).clone() }))
    };
    let done = Cell::new(false);
    let load = async {
        let mut served = 0;
        while !done.get() {
            let some = futures_util::future::join_all((0..8).map(|_| greeted(&c))).await;
            served += some.len();
        }
        served
    };
    let control = async {
        c.publish(&[server_with(&c, |server| server.authorization_policies = vec!["shop/late".into()])]);
        tokio::time::sleep(Duration::from_millis(500)).await;
        // Whoever is connected was left alone so far, and new ones wait.
        let mut waiting = c.plain.connect(c.at(8080)).await.unwrap();
        assert!(tokio::time::timeout(Duration::from_millis(20), waiting.read_u8()).await.is_err());
        plain.write_all(b"still\n").await.unwrap();
        assert_eq!(within("still", line(&mut plain)).await.unwrap(), "still");
        c.publish(&[only_client()]);
        assert_eq!(refusal(&mut waiting).await, ErrorKind::ConnectionReset);
        refusal(&mut plain).await;
        done.set(true);
    };
    let (served, ()) = tokio::join!(load, control);
    assert!(served > 0);
    for stream in &mut open {
        stream.write_all(b"open\n").await.unwrap();
        assert_eq!(within("open", line(stream)).await.unwrap(), "open");
    }
    let page = c.node2.page();
    assert!(!page.contains("policy_unknown"), "{page}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_that_never_comes_denies_when_its_time_is_over() {
    let c = Cluster::start(2);
    let _server = c.serve(c.server.v4, 8080);
    let mut open = greeted(&c).await;
    let begin = std::time::Instant::now();
    c.publish(&[server_with(&c, |server| server.authorization_policies = vec!["shop/never".into()])]);
    assert_eq!(refused(&c.client, c.at(8080)).await, ErrorKind::ConnectionReset);
    let wait = grace::Settings::default().wait;
    assert!((wait..wait * 5).contains(&begin.elapsed()), "{:?} (bound {wait:?})", begin.elapsed());
    refusal(&mut open).await;
    shows(&c.node2, r#"reason="policy_unknown",policy="shop/never",reporter="destination"} 1"#).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_demand_a_connection_waits_until_it_is_known_who_has_the_address() {
    let c = Cluster::start(1);
    let _server = c.serve(c.server.v4, 8080);
    // Another proxy on the client's node, which knows nobody but the client.
    c.node1.workers.remove(&PodUid::new("client")).await;
    let (node, mut demands) = Node::start_on_demand("node1", &c.ca, 1);
    node.publish(vec![update(workload(&c.client, "client", "node1", true))]);
    node.enrol(&c.client, "client");

    let vip: SocketAddr = ([198, 19, 0, 2], 80).into();
    let mut stream = c.client.connect(vip).await.unwrap();
    let asked = within("a question", demands.next()).await.unwrap();
    assert_eq!(asked.wanted().1, "/198.19.0.2");
    assert!(tokio::time::timeout(Duration::from_millis(20), stream.read_u8()).await.is_err());
    // A service comes with its pods.
    node.publish(vec![service("server", 2), update(workload(&c.server, "server", "node2", true))]);
    asked.answer();
    assert_eq!(within("line", line(&mut stream)).await.unwrap(), c.client.v4.to_string());
    assert_eq!(node.connections().await[&PodUid::new("client")].outbound[0].protocol, "HBONE");

    // Nobody's address: plain, and the next one doesn't ask.
    let listener = c.plain.listen(c.plain.v4, 9090);
    for asks in [true, false] {
        let _stream = c.client.connect(SocketAddr::new(c.plain.v4, 9090)).await.unwrap();
        if asks {
            let asked = within("a question", demands.next()).await.unwrap();
            assert_eq!(asked.wanted().1, format!("/{}", c.plain.v4));
            asked.answer();
        }
        within("accept", listener.accept()).await.unwrap();
    }

    // No answer: nobody knows whether it may go on in plaintext.
    let unknown = SocketAddr::new(c.plain.v6, 9090);
    assert_eq!(refused(&c.client, unknown).await, ErrorKind::ConnectionReset);
    shows(&node, "reason=\"discovery_timeout\"").await;
}
