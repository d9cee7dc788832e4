//! A proxy that runs out of file descriptors, in a process of its own: the limit is the process's. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[allow(dead_code)] // Shared with the other tests of the data path.
mod support;

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, UsageWho, getrlimit, getrusage, setrlimit};
use support::net::Wire;
use support::node::{Node, TestCa, service, update, workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use ztunnel::descriptors;

const LIMIT: u64 = 512;
const BOUND: Duration = Duration::from_secs(30);
/// Who has no answer by then is waiting for a descriptor.
const SLOW: Duration = Duration::from_secs(5);

#[allow(clippy::disallowed_methods)] // The test's own servers are no tasks of the proxy.
fn echo(listener: TcpListener) {
    tokio::spawn(async move {
        loop {
            // The server is in this process too, and may lack descriptors as well.
            let Ok((mut stream, _)) = listener.accept().await else {
                tokio::time::sleep(Duration::from_millis(50)).await;
                continue;
            };
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
}

/// Whether a byte goes there and comes back within this time.
async fn answers(stream: &mut TcpStream, within: Duration) -> bool {
    let mut byte = [0];
    let exchange = async {
        stream.write_all(b"x").await?;
        stream.read_exact(&mut byte).await
    };
    tokio::time::timeout(within, exchange).await.is_ok_and(|done| done.is_ok())
}

fn busy() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    let time = |t: nix::sys::time::TimeVal| Duration::new(t.tv_sec() as u64, t.tv_usec() as u32 * 1000);
    time(usage.user_time()) + time(usage.system_time())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_wait_the_reserve_stays_and_all_goes_on_when_some_are_free() {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    setrlimit(Resource::RLIMIT_NOFILE, LIMIT, hard).unwrap();
    let reserve = descriptors::keep_reserve(LIMIT);
    assert_eq!(reserve, 64);

    let wire = Wire::new();
    let (client, server) = (wire.pod(1), wire.pod(2));
    client.redirect();
    server.redirect();
    let ca = TestCa::new();
    let node = Node::start("node1", &ca, 2);
    node.publish(vec![
        update(workload(&client, "client", "node1", true)),
        update(workload(&server, "server", "node1", true)),
        service("server", 2),
    ]);
    node.enrol(&client, "client");
    node.enrol(&server, "server");
    echo(server.listen(server.v4, 8080));
    let at: SocketAddr = (server.v4, 8080).into();

    // A client, the proxy's two and the server's: four descriptors a connection, till there are no more.
    let (mut open, mut cut) = (Vec::new(), 0);
    let mut first_in_the_queue = loop {
        let begin = Instant::now();
        // One that was accepted with the last descriptor, so that none is left to go on with, is reset.
        let Ok(mut stream) = client.connect(at).await else {
            cut += 1;
            continue;
        };
        match answers(&mut stream, SLOW).await {
            true => open.push(stream),
            false if begin.elapsed() < SLOW => cut += 1,
            false => break stream,
        }
    };
    println!("{} connections of {LIMIT} descriptors, {reserve} in reserve, {cut} reset", open.len());
    assert!(open.len() > 50, "{}", open.len());
    assert!(cut <= 4, "{cut} reset at the edge");

    // What is open goes on; what isn't data has descriptors; nothing spins.
    assert!(answers(&mut open[0], BOUND).await && answers(&mut open[49], BOUND).await);
    let admin: Vec<_> = (0..20).map(|_| std::net::UdpSocket::bind("127.0.0.1:0").expect("the reserve")).collect();
    let (before, since) = (busy(), Instant::now());
    let mut waiting = client.connect(at).await.unwrap();
    assert!(!answers(&mut waiting, Duration::from_secs(1)).await, "one more must wait");
    let share = (busy() - before).as_secs_f64() / since.elapsed().as_secs_f64();
    assert!(share < 0.5, "busy {share} of the time while nothing can be done");

    // Half of them end: who comes now is served.
    drop(admin);
    open.truncate(open.len() / 2);
    let since = Instant::now();
    let mut byte = [0];
    let served = tokio::time::timeout(BOUND, first_in_the_queue.read_exact(&mut byte)).await;
    assert!(served.is_ok_and(|read| read.is_ok()), "who waited is served");
    loop {
        let mut stream = client.connect(at).await.unwrap();
        if answers(&mut stream, SLOW).await {
            break;
        }
        assert!(since.elapsed() < BOUND, "not served again");
    }
    println!("served again after {:?}", since.elapsed());
    assert!(answers(&mut open[0], BOUND).await);
    assert_eq!(node.tracker.panics(), 0);
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).unwrap();
}
