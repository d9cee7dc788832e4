//! Clients that are slow, refuse everything, or ask without end: they harm themselves alone. And servers that go.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use aquifer_proto::type_url::ADDRESS;
use aquifer_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status as Detail};
use aquifer_runtime::Tracker;
use aquifer_xds::resource::Resource;
use aquifer_xds::server::driver::AllowAnonymous;
use aquifer_xds::server::{Limits, Publisher};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tonic::Code;

use crate::drivers::{Client, DEADLINE, Guard, NODE, Running, config, counted, files, set, stream, until};

fn node() -> Node {
    Node { id: NODE.to_owned(), ..Node::default() }
}

fn ack(response: &DeltaDiscoveryResponse) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest {
        type_url: response.type_url.clone(),
        response_nonce: response.nonce.clone(),
        ..Default::default()
    }
}

fn large(step: u32) -> aquifer_xds::resource::ResourceSet {
    let mut body = vec![0; 200_000];
    body[..4].copy_from_slice(&step.to_be_bytes());
    let mut set = set(&[]);
    set.upsert(Resource::from_bytes(ADDRESS, "a", body));
    set
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_reads_nothing_is_disconnected_and_the_others_go_on() {
    let limits = Limits { write_timeout: Duration::from_secs(2), ..Limits::default() };
    let publisher = Publisher::new(set(&[]));
    let server = Running::start_with(0, &publisher, Arc::new(AllowAnonymous), None, limits).await;
    let (_silent, mut stuck) = stream(server.address, node()).await;
    let (requests, mut reads) = stream(server.address, node()).await;
    let mut step = 0;
    let begin = Instant::now();
    // Published until the windows of the one who doesn't read are full, and then for as long as it is borne.
    while counted(&server.registry, "pilot_xds_write_timeout") == 0 {
        step += 1;
        publisher.publish(large(step));
        let newest = async {
            loop {
                let response = reads.message().await.unwrap().unwrap();
                requests.send(ack(&response)).await.unwrap();
                let newest =
                    response.resources.iter().any(|r| r.resource.as_ref().unwrap().value[..4] == step.to_be_bytes());
                if newest {
                    return;
                }
            }
        };
        tokio::time::timeout(DEADLINE, newest).await.expect("who reads is served");
        assert!(begin.elapsed() < DEADLINE, "nobody is disconnected");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    println!("disconnected after {:?}, {step} publications", begin.elapsed());
    until("one client is left", || counted(&server.registry, "pilot_xds{version=\"unknown\"}") == 1).await;
    // When it reads after all, it learns what became of it.
    let end = async {
        loop {
            match stuck.message().await {
                Ok(Some(_)) => {}
                Ok(None) => return None,
                Err(status) => return Some(status.code()),
            }
        }
    };
    assert_eq!(tokio::time::timeout(DEADLINE, end).await.unwrap(), Some(Code::DeadlineExceeded));
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_asks_without_end_is_answered_at_its_rate() {
    let limits = Limits { requests_per_second: 20, request_burst: 30, ..Limits::default() };
    let publisher = Publisher::new(set(&[("a", 1)]));
    let server = Running::start_with(0, &publisher, Arc::new(AllowAnonymous), None, limits).await;
    let (floods, mut answers) = stream(server.address, node()).await;
    let (_quiet, mut other) = stream(server.address, node()).await;
    other.message().await.unwrap();
    let begin = Instant::now();
    let tracker = Tracker::new();
    tracker.spawn("flood", async move {
        for n in 0..100 {
            let ask = DeltaDiscoveryRequest {
                type_url: ADDRESS.to_owned(),
                resource_names_subscribe: vec![format!("nobody-{n}")],
                ..Default::default()
            };
            if floods.send(ask).await.is_err() {
                return;
            }
        }
        std::future::pending::<()>().await;
    });
    for _ in 0..60 {
        tokio::time::timeout(DEADLINE, answers.message()).await.unwrap().unwrap();
    }
    let took = begin.elapsed();
    println!("60 answers after {took:?}");
    // 30 at once, and 30 more at 20 a second.
    assert!(took > Duration::from_secs(1), "{took:?}");
    assert!(counted(&server.registry, "aquifer_xds_delayed_requests") > 0);
    publisher.publish(set(&[("a", 2)]));
    let pushed = tokio::time::timeout(DEADLINE, other.message()).await.unwrap().unwrap().unwrap();
    assert_eq!(pushed.resources[0].name, "a");
    drop((answers, other));
    server.cancel.force();
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_refuses_everything_is_pushed_to_less_often() {
    let pause = Duration::from_secs(1);
    let limits = Limits { nack_backoff: pause, nack_backoff_max: pause, ..Limits::default() };
    let publisher = Publisher::new(set(&[("a", 0)]));
    let server = Running::start_with(0, &publisher, Arc::new(AllowAnonymous), None, limits).await;
    let (refuses, mut refused) = stream(server.address, node()).await;
    let (takes, mut taken) = stream(server.address, node()).await;
    let begin = Instant::now();
    // Both follow until the last state, one by one.
    let last = |response: &DeltaDiscoveryResponse| response.resources[0].resource.as_ref().unwrap().value == [100];
    let nacks = async {
        let mut count = 0;
        loop {
            let response = refused.message().await.unwrap().unwrap();
            count += 1;
            if last(&response) {
                return count;
            }
            let error_detail = Some(Detail { message: "no".to_owned(), ..Detail::default() });
            refuses.send(DeltaDiscoveryRequest { error_detail, ..ack(&response) }).await.unwrap();
        }
    };
    let acks = async {
        let mut count = 0;
        loop {
            let response = taken.message().await.unwrap().unwrap();
            count += 1;
            if last(&response) {
                return count;
            }
            takes.send(ack(&response)).await.unwrap();
        }
    };
    let changes = async {
        for step in 1..=100 {
            publisher.publish(set(&[("a", step)]));
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let all = async { tokio::join!(nacks, acks, changes) };
    let (nacks, acks, ()) = tokio::time::timeout(2 * DEADLINE, all).await.unwrap();
    let took = begin.elapsed();
    println!("in {took:?}: {nacks} pushes to the one that refuses, {acks} to the other");
    // What was on its way when it refused comes too: two in each pause.
    let pauses = took.as_secs_f64() / pause.as_secs_f64();
    assert!(f64::from(nacks) <= 2.0 * (pauses + 2.0), "{nacks} pushes in {took:?}");
    assert!(acks > 2 * nacks, "{acks} and {nacks}");
    server.stop().await;
}

#[tokio::test]
async fn requests_have_a_largest_size_and_streams_a_first_request() {
    let limits =
        Limits { first_request_bytes: 1000, first_request_timeout: Duration::from_secs(1), ..Limits::default() };
    let publisher = Publisher::new(set(&[]));
    let server = Running::start_with(0, &publisher, Arc::new(AllowAnonymous), None, limits).await;
    let (requests, mut responses) = stream(server.address, node()).await;
    responses.message().await.unwrap();
    let large = DeltaDiscoveryRequest { type_url: "x".repeat(2000), ..Default::default() };
    requests.send(large).await.unwrap();
    assert_eq!(responses.message().await.unwrap_err().code(), Code::ResourceExhausted);

    let url = format!("http://{}", server.address);
    let mut client =
        aquifer_proto::xds::aggregated_discovery_service_client::AggregatedDiscoveryServiceClient::connect(url)
            .await
            .unwrap();
    let mut silent = client.delta_aggregated_resources(tokio_stream::pending()).await.unwrap().into_inner();
    let ended = tokio::time::timeout(DEADLINE, silent.message()).await.unwrap();
    assert_eq!(ended.unwrap_err().code(), Code::DeadlineExceeded);
    server.stop().await;
}

/// Where a Service's name leads: each new connection goes to the server that is the one at that moment.
struct Front {
    address: SocketAddr,
    to: Arc<Mutex<SocketAddr>>,
    tracker: Tracker,
}

impl Front {
    async fn start(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (to, tracker) = (Arc::new(Mutex::new(to)), Tracker::new());
        let (target, connections) = (Arc::clone(&to), tracker.clone());
        tracker.spawn("front", async move {
            while let Ok((mut inner, _)) = listener.accept().await {
                let target = *target.lock();
                connections.spawn("relay", async move {
                    if let Ok(mut outer) = TcpStream::connect(target).await {
                        let _ = tokio::io::copy_bidirectional(&mut inner, &mut outer).await;
                    }
                });
            }
        });
        Self { address, to, tracker }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_ends_leaves_its_clients_to_another_without_a_gap() {
    let (ca, folder) = files();
    let all = || set(&[("a", 1), ("b", 1), ("c", 1)]);
    // Two replicas, which have read the same objects.
    let (first, second) = (Publisher::new(all()), Publisher::new(all()));
    let guard = || Arc::new(Guard::default());
    let old = Running::start(0, &first, guard(), Some(ca.server())).await;
    let new = Running::start(0, &second, guard(), Some(ca.server())).await;
    let front = Front::start(old.address).await;
    let client = Client::start(config(front.address.port(), folder.path()));
    until("synced", || client.is_synced()).await;
    assert_eq!(client.sink.take_updates(), ["+a", "+b", "+c"]);

    *front.to.lock() = new.address;
    let begin = Instant::now();
    old.cancel.drain();
    until("the other has it", || counted(&new.registry, "pilot_xds{version=\"unknown\"}") == 1).await;
    let gap = begin.elapsed();
    println!("with the other server after {gap:?}");
    assert!(gap < Duration::from_secs(5), "{gap:?}");
    old.stop().await;
    // Both types were answered there, by nothing: it is the state that the client holds.
    until("answered", || counted(&new.registry, "pilot_xds_pushes{type=\"wads\"}") == 1).await;
    second.publish(set(&[("a", 2), ("b", 1), ("c", 1)]));
    until("the other pushes", || client.sink.body("a") == Some(vec![2])).await;
    assert_eq!(client.sink.take_updates(), ["+a"], "nothing was taken away and nothing sent twice");
    assert!(client.is_synced(), "told once, and never taken back");
    client.stop().await;
    new.stop().await;
    drop(front.tracker);
}
