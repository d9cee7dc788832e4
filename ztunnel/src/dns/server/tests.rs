//! The proxy in a network namespace of its own, with real clients' sockets and name servers that the test plays.

use std::fs::File;
use std::net::IpAddr;

use aquifer_core::state::Update;
use aquifer_proto::workload as wire;
use aquifer_runtime::Tracker;
use aquifer_runtime::metrics::Registry;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query};
use hickory_proto::rr::rdata::{A, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use nix::sched::{CloneFlags, unshare};
use tokio::net::TcpSocket;
use tokio::task::LocalSet;

use super::super::metrics::Metrics;
use super::super::resolve::Zone;
use super::super::upstream::Timing;
use super::*;
use crate::testing;

const PROXY: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 15053);
const LISTEN: Listen = Listen::Localhost { port: 15053, ipv6: true };

/// A generous bound: what is waited for takes milliseconds.
const SOON: Duration = Duration::from_secs(10);

fn namespace() -> Netns {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("these tests make network namespaces: run them as root");
        let up = std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap();
        assert!(up.success());
        Netns::new(File::open("/proc/thread-self/ns/net").unwrap().into()).unwrap()
    })
    .join()
    .unwrap()
}

/// A pod `client` in `shop`, in a mesh with one Service and a headless one of 40 pods.
struct TestLocal {
    known: bool,
    tracker: Tracker,
    cancel: Cancel,
}

impl Local for TestLocal {
    async fn workload(&self) -> Option<(Arc<MeshState>, Arc<Workload>)> {
        let service = |name: &str, addresses| {
            let service = wire::Service {
                name: name.into(),
                namespace: "shop".into(),
                hostname: format!("{name}.shop.svc.cluster.local"),
                addresses,
                ..wire::Service::default()
            };
            Update::Service(testing::service(service))
        };
        let mut state = MeshState::default();
        let vip = wire::NetworkAddress { address: vec![198, 19, 0, 16].into(), ..Default::default() };
        state.apply(service("web", vec![vip]));
        state.apply(service("many", vec![]));
        for n in 1..=40 {
            let pod = wire::Workload {
                services: [("shop/many.shop.svc.cluster.local".to_owned(), wire::PortList::default())].into(),
                ..testing::pod("shop", &format!("many-{n}"), [198, 18, 17, n])
            };
            state.apply(Update::Workload(testing::workload(pod)));
        }
        let client = testing::workload(testing::pod("shop", "client", [198, 18, 17, 99]));
        self.known.then(|| (Arc::new(state), client))
    }

    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static) {
        self.tracker.spawn_local(name, task);
    }

    fn cancel(&self) -> &Cancel {
        &self.cancel
    }
}

/// What a test holds.
struct Bench {
    netns: Netns,
    cancel: Cancel,
    tracker: Tracker,
    metrics: Metrics,
}

struct Plan {
    servers: Vec<SocketAddr>,
    limit: usize,
    known: bool,
    timing: Timing,
}

impl Default for Plan {
    fn default() -> Self {
        Self { servers: vec![server(2)], limit: 8, known: true, timing: Timing::default() }
    }
}

/// Times for tests that wait for them to pass.
fn hasty() -> Timing {
    let millis = Duration::from_millis;
    Timing { again: [millis(100), millis(200), millis(300)], deadline: millis(800) }
}

/// Times for tests in which somebody is asked again and answers in the end, however slow the machine is.
fn patient() -> Timing {
    Timing { again: [500, 1000, 1500].map(Duration::from_millis), deadline: SOON }
}

/// 127.0.0.n: all of 127/8 is on `lo`.
fn server(n: u8) -> SocketAddr {
    SocketAddr::from(([127, 0, 0, n], 53))
}

impl Bench {
    fn start(plan: Plan) -> Self {
        let netns = namespace();
        let options = TcpOptions { mark: Some(1337), ..TcpOptions::default() };
        let sockets = Sockets::open(&netns, LISTEN, &options, true).unwrap();
        let (cancel, tracker, metrics) = (Cancel::new(), Tracker::new(), Metrics::default());
        let zone = Zone { domain: "cluster.local".into(), preferred_namespace: None, ipv6: true };
        let dns = Dns { listen: LISTEN, zone, servers: plan.servers.clone(), metrics: metrics.clone() };
        let upstream = Upstream::new(plan.servers, netns.clone(), options, plan.limit).with_timing(plan.timing);
        let local = TestLocal { known: plan.known, tracker: tracker.clone(), cancel: cancel.clone() };
        serve(local, Arc::new(dns), upstream, sockets).unwrap();
        Self { netns, cancel, tracker, metrics }
    }

    fn udp(&self, addr: SocketAddr) -> UdpSocket {
        let socket = self.netns.run(|| {
            let socket = std::net::UdpSocket::bind(addr).unwrap();
            socket.set_nonblocking(true).unwrap();
            socket
        });
        UdpSocket::from_std(socket.unwrap()).unwrap()
    }

    fn listen(&self, addr: SocketAddr) -> tokio::net::TcpListener {
        let listener = self.netns.run(|| {
            let listener = TcpListener::bind(addr).unwrap();
            listener.set_nonblocking(true).unwrap();
            listener
        });
        tokio::net::TcpListener::from_std(listener.unwrap()).unwrap()
    }

    /// Sends a query and gives the socket to hear the answer on.
    async fn send(&self, query: &Message) -> UdpSocket {
        let socket = self.udp(SocketAddr::from(([127, 0, 0, 1], 0)));
        socket.send_to(&query.to_vec().unwrap(), PROXY).await.unwrap();
        socket
    }

    async fn ask(&self, query: &Message) -> Message {
        hear(&self.send(query).await).await.0
    }

    async fn connect(&self) -> TcpStream {
        let socket = self.netns.run(|| TcpSocket::new_v4().unwrap()).unwrap();
        socket.connect(PROXY).await.unwrap()
    }

    fn page(&self) -> String {
        let mut registry = Registry::default();
        self.metrics.register(&mut registry);
        aquifer_runtime::metrics::encode(&registry)
    }

    fn count(&self, metric: &str, kind: &str, protocol: &str) -> u64 {
        let wanted = format!(
            "{metric}{{request_query_type=\"{kind}\",request_protocol=\"{protocol}\",source_canonical_service=\"client\",source_canonical_revision=\"latest\"}} "
        );
        let page = self.page();
        page.lines().find_map(|line| line.strip_prefix(&wanted)).map_or(0, |n| n.parse().unwrap())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.cancel.force();
    }
}

async fn hear(socket: &UdpSocket) -> (Message, SocketAddr) {
    let mut buffer = vec![0; 65_535];
    let (length, from) = timeout(SOON, socket.recv_from(&mut buffer)).await.expect("a datagram").unwrap();
    (Message::from_vec(&buffer[..length]).unwrap(), from)
}

async fn tell(socket: &UdpSocket, message: &Message, to: SocketAddr) {
    socket.send_to(&message.to_vec().unwrap(), to).await.unwrap();
}

async fn hear_frame(stream: &mut TcpStream) -> Message {
    let read = async {
        let mut bytes = vec![0; usize::from(stream.read_u16().await.unwrap())];
        stream.read_exact(&mut bytes).await.unwrap();
        Message::from_vec(&bytes).unwrap()
    };
    timeout(SOON, read).await.expect("a message")
}

async fn tell_frame(stream: &mut TcpStream, message: &Message) {
    stream.write_all(&framed(&message.to_vec().unwrap())).await.unwrap();
}

fn query(name: &str, kind: RecordType) -> Message {
    let mut message = Message::new(0x4242, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
    message
}

/// An answer with an address that names who gave it.
fn answer(query: &Message, n: u8) -> Message {
    let mut answer = query.clone().into_response();
    answer.metadata.recursion_available = true;
    answer.add_answer(Record::from_rdata(query.queries[0].name().clone(), 7, RData::A(A::new(203, 0, 113, n))));
    answer
}

fn failure(query: &Message, code: ResponseCode) -> Message {
    let mut answer = query.clone().into_response();
    answer.metadata.response_code = code;
    answer
}

fn ips(message: &Message) -> Vec<String> {
    message.answers.iter().filter_map(|r| r.data.ip_addr()).map(|ip| ip.to_string()).collect()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    LocalSet::new().block_on(&runtime, test);
}

#[test]
fn the_mesh_answers_by_both_transports_and_families() {
    run(async {
        let bench = Bench::start(Plan { servers: vec![], ..Plan::default() });
        let asked = query("web.shop.svc.cluster.local.", RecordType::A);
        assert_eq!(ips(&bench.ask(&asked).await), ["198.19.0.16"]);
        let mut stream = bench.connect().await;
        tell_frame(&mut stream, &asked).await;
        assert_eq!(ips(&hear_frame(&mut stream).await), ["198.19.0.16"]);

        let v6 = bench.udp("[::1]:0".parse().unwrap());
        v6.send_to(&asked.to_vec().unwrap(), "[::1]:15053").await.unwrap();
        let (heard, from) = hear(&v6).await;
        assert_eq!((ips(&heard), from), (vec!["198.19.0.16".to_owned()], "[::1]:15053".parse().unwrap()));

        let empty = bench.ask(&query("web.shop.svc.cluster.local.", RecordType::AAAA)).await;
        assert_eq!((empty.response_code, empty.answers.len()), (ResponseCode::NoError, 0));
        assert_eq!(bench.count("istio_dns_requests_total", "a", "udp"), 2);
        assert_eq!(bench.count("istio_dns_requests_total", "a", "tcp"), 1);
        assert_eq!(bench.count("istio_dns_requests_total", "aaaa", "udp"), 1);
        assert!(!bench.page().contains("istio_dns_upstream_requests_total{"));
    });
}

#[test]
fn what_is_too_long_for_a_datagram_comes_by_tcp() {
    run(async {
        let bench = Bench::start(Plan::default());
        let mut asked = query("many.", RecordType::A);
        let cut = bench.ask(&asked).await;
        assert_eq!((cut.truncation, cut.answers.len()), (true, 0));
        let mut stream = bench.connect().await;
        tell_frame(&mut stream, &asked).await;
        assert_eq!(hear_frame(&mut stream).await.answers.len(), 40);
        let mut edns = Edns::new();
        edns.set_max_payload(1232).set_version(0);
        asked.set_edns(edns);
        let whole = bench.ask(&asked).await;
        assert_eq!((whole.truncation, whole.answers.len(), whole.max_payload()), (false, 40, 1232));
    });
}

#[test]
fn other_names_and_types_go_upstream_as_they_are() {
    run(async {
        let bench = Bench::start(Plan::default());
        let upstream = bench.udp(server(2));
        for kind in [RecordType::A, RecordType::TXT, RecordType::SRV, RecordType::PTR, RecordType::Unknown(4711)] {
            let mut asked = query("WWW.Example.com.", kind);
            let mut edns = Edns::new();
            edns.set_max_payload(1400).set_version(0).set_dnssec_ok(true);
            asked.set_edns(edns);
            let client = bench.send(&asked).await;
            let (heard, from) = hear(&upstream).await;
            assert!(heard.queries[0].name().eq_case(asked.queries[0].name()));
            assert_eq!((&heard.queries, &heard.edns, heard.recursion_desired), (&asked.queries, &asked.edns, true));
            tell(&upstream, &answer(&heard, 5), from).await;
            let (got, from) = hear(&client).await;
            assert_eq!((got.id, ips(&got), got.answers[0].ttl), (0x4242, vec!["203.0.113.5".to_owned()], 7), "{kind}");
            assert!(!got.authoritative);
            assert_eq!(from, PROXY);
        }
        for metric in ["istio_dns_requests_total", "istio_dns_upstream_requests_total"] {
            assert_eq!([bench.count(metric, "txt", "udp"), bench.count(metric, "unknown", "udp")], [1, 1]);
        }
        let buckets = "istio_dns_upstream_request_duration_seconds_bucket{le=\"0.0005\",";
        assert!(bench.page().contains(buckets), "{}", bench.page());
        assert!(!bench.page().contains("istio_dns_upstream_failures_total{"));
    });
}

#[test]
fn upstreams_no_and_truncation_are_passed_on() {
    run(async {
        let bench = Bench::start(Plan::default());
        let (upstream, asked) = (bench.udp(server(2)), query("nobody.example.com.", RecordType::A));
        let client = bench.send(&asked).await;
        let (heard, from) = hear(&upstream).await;
        tell(&upstream, &failure(&heard, ResponseCode::NXDomain), from).await;
        assert_eq!(hear(&client).await.0.response_code, ResponseCode::NXDomain);

        let (client, listener) = (bench.send(&asked).await, bench.listen(server(2)));
        let (heard, from) = hear(&upstream).await;
        let mut cut = heard.clone().into_response();
        cut.metadata.truncation = true;
        tell(&upstream, &cut, from).await;
        assert!(hear(&client).await.0.truncation);
        // A server that sends more than was asked for: the client gets what it takes.
        let client = bench.send(&asked).await;
        let (heard, from) = hear(&upstream).await;
        let mut long = heard.clone().into_response();
        let text = TXT::new(vec!["t".repeat(250); 20]);
        long.add_answer(Record::from_rdata(heard.queries[0].name().clone(), 7, RData::TXT(text)));
        tell(&upstream, &long, from).await;
        let cut = hear(&client).await.0;
        assert_eq!((cut.id, cut.truncation, cut.answers.len()), (0x4242, true, 0));
        // The client asks again by TCP, and so do we.
        let mut client = bench.connect().await;
        tell_frame(&mut client, &asked).await;
        let (mut stream, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        let heard = hear_frame(&mut stream).await;
        let mut long = heard.clone().into_response();
        let text = TXT::new(vec!["t".repeat(250); 20]);
        long.add_answer(Record::from_rdata(heard.queries[0].name().clone(), 7, RData::TXT(text)));
        tell_frame(&mut stream, &long).await;
        let got = hear_frame(&mut client).await;
        assert_eq!((got.id, &got.answers), (0x4242, &long.answers));
        assert_eq!(bench.count("istio_dns_upstream_requests_total", "a", "tcp"), 1);
    });
}

#[test]
fn an_answer_that_nobody_asked_for_is_not_believed() {
    run(async {
        let bench = Bench::start(Plan::default());
        let (upstream, stranger) = (bench.udp(server(2)), bench.udp(server(3)));
        let client = bench.send(&query("www.example.com.", RecordType::A)).await;
        let (heard, from) = hear(&upstream).await;
        // From another address, under another id, to another question, and no answer at all.
        tell(&stranger, &answer(&heard, 1), from).await;
        let mut wrong = answer(&heard, 2);
        wrong.metadata.id = heard.id.wrapping_add(1);
        tell(&upstream, &wrong, from).await;
        let mut other = answer(&heard, 3);
        other.queries[0].set_name(Name::from_ascii("www.example.org.").unwrap());
        tell(&upstream, &other, from).await;
        tell(&upstream, &heard, from).await;
        upstream.send_to(b"?", from).await.unwrap();
        tell(&upstream, &answer(&heard, 4), from).await;
        assert_eq!(ips(&hear(&client).await.0), ["203.0.113.4"]);
    });
}

#[test]
fn ids_and_ports_upstream_are_not_the_clients() {
    run(async {
        let bench = Bench::start(Plan::default());
        let upstream = bench.udp(server(2));
        let mut seen = std::collections::HashSet::new();
        for _ in 0..8 {
            let _client = bench.send(&query("www.example.com.", RecordType::A)).await;
            let (heard, from) = hear(&upstream).await;
            seen.insert((heard.id, from.port()));
            tell(&upstream, &answer(&heard, 1), from).await;
        }
        assert!(seen.len() == 8 && seen.iter().filter(|(id, _)| *id == 0x4242).count() < 2, "{seen:?}");
    });
}

#[test]
fn a_silent_server_is_asked_again_and_a_late_answer_counts() {
    run(async {
        let bench = Bench::start(Plan { timing: patient(), ..Plan::default() });
        let upstream = bench.udp(server(2));
        let client = bench.send(&query("www.example.com.", RecordType::A)).await;
        let first = hear(&upstream).await;
        let second = hear(&upstream).await;
        assert_ne!(first.1, second.1, "another port, so that a guess must be made anew");
        tell(&upstream, &answer(&first.0, 1), first.1).await;
        assert_eq!(ips(&hear(&client).await.0), ["203.0.113.1"]);
    });
}

#[test]
fn the_next_server_is_asked_when_one_refuses_fails_or_is_silent() {
    run(async {
        // 127.0.0.2 has no socket: the kernel refuses.
        let plan = Plan { servers: vec![server(2), server(3), server(4)], timing: patient(), ..Plan::default() };
        let bench = Bench::start(plan);
        let (third, fourth) = (bench.udp(server(3)), bench.udp(server(4)));
        let client = bench.send(&query("www.example.com.", RecordType::A)).await;
        let (heard, from) = hear(&third).await;
        tell(&third, &failure(&heard, ResponseCode::ServFail), from).await;
        let (heard, from) = hear(&fourth).await;
        tell(&fourth, &answer(&heard, 4), from).await;
        assert_eq!(ips(&hear(&client).await.0), ["203.0.113.4"]);

        let client = bench.send(&query("www.example.com.", RecordType::A)).await;
        hear(&third).await;
        let (heard, from) = hear(&fourth).await;
        tell(&fourth, &answer(&heard, 5), from).await;
        assert_eq!(ips(&hear(&client).await.0), ["203.0.113.5"]);

        // All refuse: the client hears what they say.
        let client = bench.send(&query("www.example.com.", RecordType::A)).await;
        for socket in [&third, &fourth] {
            let (heard, from) = hear(socket).await;
            tell(socket, &failure(&heard, ResponseCode::Refused), from).await;
        }
        assert_eq!(hear(&client).await.0.response_code, ResponseCode::Refused);
    });
}

#[test]
fn without_an_answer_the_client_hears_of_a_failure() {
    run(async {
        let bench = Bench::start(Plan { timing: hasty(), ..Plan::default() });
        let (upstream, listener) = (bench.udp(server(2)), bench.listen(server(2)));
        let asked = query("www.example.com.", RecordType::A);
        let got = bench.ask(&asked).await;
        assert_eq!((got.id, got.response_code, &got.queries), (0x4242, ResponseCode::ServFail, &asked.queries));
        drop(upstream);
        assert_eq!(bench.ask(&asked).await.response_code, ResponseCode::ServFail, "nobody there");
        let mut client = bench.connect().await;
        tell_frame(&mut client, &asked).await;
        let _silent = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        assert_eq!(hear_frame(&mut client).await.response_code, ResponseCode::ServFail);
        drop(listener);
        tell_frame(&mut client, &asked).await;
        assert_eq!(hear_frame(&mut client).await.response_code, ResponseCode::ServFail, "refused");
        assert_eq!(bench.count("istio_dns_upstream_failures_total", "a", "udp"), 2);
        assert_eq!(bench.count("istio_dns_upstream_failures_total", "a", "tcp"), 2);
    });
}

#[test]
fn without_name_servers_or_workload_queries_fail() {
    run(async {
        let bench = Bench::start(Plan { servers: vec![], ..Plan::default() });
        assert_eq!(bench.ask(&query("example.com.", RecordType::A)).await.response_code, ResponseCode::ServFail);
        let bench = Bench::start(Plan { known: false, ..Plan::default() });
        let got = bench.ask(&query("web.shop.svc.cluster.local.", RecordType::A)).await;
        assert_eq!(got.response_code, ResponseCode::ServFail);
        assert!(
            bench
                .page()
                .contains("request_query_type=\"a\",request_protocol=\"udp\",source_canonical_service=\"unknown\"")
        );
    });
}

#[test]
fn queries_on_their_way_are_bounded_and_known_names_unaffected() {
    run(async {
        let bench = Bench::start(Plan { limit: 2, ..Plan::default() });
        let upstream = bench.udp(server(2));
        let waiting = [
            bench.send(&query("one.example.com.", RecordType::A)).await,
            bench.send(&query("two.example.com.", RecordType::A)).await,
        ];
        let open = [hear(&upstream).await, hear(&upstream).await];
        assert_eq!(bench.ask(&query("three.example.com.", RecordType::A)).await.response_code, ResponseCode::ServFail);
        assert_eq!(ips(&bench.ask(&query("web.", RecordType::A)).await), ["198.19.0.16"]);
        for (heard, from) in &open {
            tell(&upstream, &answer(heard, 9), *from).await;
        }
        for client in &waiting {
            assert_eq!(ips(&hear(client).await.0), ["203.0.113.9"]);
        }
    });
}

#[test]
fn one_connection_carries_many_queries_and_a_slow_one_delays_no_other() {
    run(async {
        let bench = Bench::start(Plan::default());
        let listener = bench.listen(server(2));
        let mut client = bench.connect().await;
        let mut slow = query("slow.example.com.", RecordType::A);
        slow.metadata.id = 1;
        tell_frame(&mut client, &slow).await;
        let (mut stream, _) = timeout(SOON, listener.accept()).await.unwrap().unwrap();
        // In pieces, and two at once.
        let two = [
            framed(&query("web.", RecordType::A).to_vec().unwrap()),
            framed(&query("web.", RecordType::A).to_vec().unwrap()),
        ]
        .concat();
        for piece in two.chunks(7) {
            client.write_all(piece).await.unwrap();
            tokio::task::yield_now().await;
        }
        for _ in 0..2 {
            assert_eq!(hear_frame(&mut client).await.id, 0x4242);
        }
        let heard = hear_frame(&mut stream).await;
        tell_frame(&mut stream, &answer(&heard, 1)).await;
        assert_eq!(hear_frame(&mut client).await.id, 1);
        drop(client);
    });
}

#[test]
fn nonsense_does_no_harm() {
    run(async {
        let bench = Bench::start(Plan::default());
        let client = bench.udp(SocketAddr::from(([127, 0, 0, 1], 0)));
        for bytes in [vec![], vec![0; 5], vec![0xff; 600], vec![0; 4096]] {
            client.send_to(&bytes, PROXY).await.unwrap();
        }
        let mut stream = bench.connect().await;
        stream.write_all(&[0, 3, 1, 2, 3, 0, 0]).await.unwrap();
        tell_frame(&mut stream, &query("web.", RecordType::A)).await;
        assert_eq!(ips(&hear_frame(&mut stream).await), ["198.19.0.16"]);
        assert_eq!(ips(&bench.ask(&query("web.", RecordType::A)).await), ["198.19.0.16"]);
        assert_eq!(bench.tracker.panics(), 0);
    });
}

#[test]
fn draining_leaves_the_port_to_the_next_and_finishes_what_it_has() {
    run(async {
        let bench = Bench::start(Plan::default());
        let upstream = bench.udp(server(2));
        let client = bench.send(&query("www.example.com.", RecordType::A)).await;
        let (heard, from) = hear(&upstream).await;
        bench.cancel.drain();
        tell(&upstream, &answer(&heard, 1), from).await;
        assert_eq!(ips(&hear(&client).await.0), ["203.0.113.1"]);
        let gone = async {
            while !bench.tracker.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(SOON, gone).await.expect("all tasks to end");
        bench.udp(PROXY);
        bench.listen(PROXY);
    });
}

#[test]
fn forcing_ends_everything_at_once() {
    run(async {
        let bench = Bench::start(Plan::default());
        let upstream = bench.udp(server(2));
        let _client = bench.send(&query("www.example.com.", RecordType::A)).await;
        hear(&upstream).await;
        let mut stream = bench.connect().await;
        tell_frame(&mut stream, &query("web.", RecordType::A)).await;
        hear_frame(&mut stream).await;
        bench.cancel.force();
        let gone = async {
            while !bench.tracker.is_empty() {
                tokio::task::yield_now().await;
            }
        };
        timeout(Duration::from_secs(20), gone).await.expect("all tasks to end");
    });
}

#[test]
fn two_proxies_share_the_ports_and_sockets_are_marked() {
    run(async {
        let netns = namespace();
        let options = TcpOptions { mark: Some(1337), ..TcpOptions::default() };
        let first = Sockets::open(&netns, LISTEN, &options, true).unwrap();
        let second = Sockets::open(&netns, LISTEN, &options, true).unwrap();
        let expected: Vec<SocketAddr> = vec![PROXY, "[::1]:15053".parse().unwrap()];
        assert_eq!(first.addresses().collect::<Vec<_>>(), expected);
        for socket in first.udp.iter().chain(&second.udp) {
            assert_eq!(socket2::SockRef::from(socket).mark().unwrap(), 1337);
        }
        for listener in &first.tcp {
            assert_eq!(socket2::SockRef::from(listener).mark().unwrap(), 1337);
        }
        let connected = netns.run(|| socket::connected_udp(server(2), &options)).unwrap().unwrap();
        assert_eq!(socket2::SockRef::from(&connected).mark().unwrap(), 1337);
        let taken = Sockets::open(&netns, LISTEN, &options, false).unwrap_err();
        assert_eq!(taken.kind(), io::ErrorKind::AddrInUse);
    });
}

#[test]
fn a_pod_without_ipv6_on_its_loopback_is_served_by_ipv4() {
    run(async {
        let netns = namespace();
        netns.run(|| std::fs::write("/proc/sys/net/ipv6/conf/lo/disable_ipv6", "1").unwrap()).unwrap();
        let options = TcpOptions::default();
        let sockets = Sockets::open(&netns, LISTEN, &options, true).unwrap();
        assert_eq!(sockets.addresses().collect::<Vec<_>>(), [PROXY]);
        let fixed = Listen::Address("[::1]:5353".parse().unwrap());
        assert!(
            Sockets::open(&netns, fixed, &options, true).is_err(),
            "one that is asked for by address must be there"
        );
        let fixed = Listen::Address("127.0.0.9:5353".parse().unwrap());
        assert_eq!(Sockets::open(&netns, fixed, &options, true).unwrap().addresses().count(), 1);
    });
}
