//! One proxy after another in pods whose kernel doesn't move what waits from the one's listeners to the other's, or
//! where ports can't be shared. Needs root.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

#[allow(dead_code)] // Shared with the other tests of the data path.
mod support;

use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};
use std::time::Duration;

use aquifer_runtime::cancel::{Drained, shutdown};
use aquifer_runtime::{Cancel, Tracker};
use parking_lot::Mutex;
use support::net::{TestPod, Wire};
use support::node::{Node, TestCa, data_path, service, update, workload};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use ztunnel::inpod::handover::{self, Handed, Holder, Kind, Predecessor};
use ztunnel::inpod::netns::NetnsId;
use ztunnel::inpod::packet::PacketListener;
use ztunnel::inpod::zds::PodUid;
use ztunnel::proxy::listeners::Listeners;

const BOUND: Duration = Duration::from_secs(30);

struct Pods {
    client: TestPod,
    server: TestPod,
    ca: TestCa,
    _wire: Wire,
}

impl Pods {
    fn new(migrate: bool) -> Self {
        let wire = Wire::new();
        let (client, server) = (wire.pod(1), wire.pod(2));
        for pod in [&client, &server] {
            pod.redirect();
            pod.namespace.sh(&format!("echo {} > /proc/sys/net/ipv4/tcp_migrate_req", u8::from(migrate)));
        }
        let pods = Self { client, server, ca: TestCa::new(), _wire: wire };
        pods.serve();
        pods
    }

    fn at(&self) -> SocketAddr {
        (self.server.v4, 8080).into()
    }

    /// A server that says something first, then echoes.
    #[allow(clippy::disallowed_methods)] // The test's own server is no task of the proxy.
    fn serve(&self) {
        let listener = self.server.listen(self.server.v4, 8080);
        tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                tokio::spawn(async move {
                    stream.write_all(b"!").await.unwrap();
                    let (mut read, mut write) = stream.split();
                    let _ = tokio::io::copy(&mut read, &mut write).await;
                });
            }
        });
    }

    fn publish(&self, node: &Node) {
        node.publish(vec![
            update(workload(&self.client, "client", "node1", true)),
            update(workload(&self.server, "server", "node1", true)),
            service("server", 2),
        ]);
    }

    fn enrol(&self, node: &Node) {
        // The server first: what waits in the client's queues goes there at once.
        node.enrol(&self.server, "server");
        node.enrol(&self.client, "client");
    }
}

async fn within<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(BOUND, future).await.unwrap_or_else(|_| panic!("{what}: not within {BOUND:?}"))
}

/// What the server says, then what it echoes.
async fn exchange(stream: &mut TcpStream) -> std::io::Result<()> {
    let mut byte = [0];
    stream.read_exact(&mut byte).await?;
    assert_eq!(byte, *b"!");
    stream.write_all(b"x").await?;
    stream.read_exact(&mut byte).await?;
    assert_eq!(byte, *b"x");
    Ok(())
}

/// A proxy that listens and accepts nobody, to hand over what waits.
#[derive(Clone, Default)]
struct Frozen {
    listeners: Arc<Mutex<Vec<Listeners>>>,
    asked: Arc<AtomicUsize>,
}

impl Holder for Frozen {
    async fn sockets(&self, uid: &PodUid, _netns: NetnsId) -> Handed {
        self.asked.fetch_add(1, SeqCst);
        let mut handed = Vec::new();
        if uid.as_str() != "client" {
            return handed;
        }
        for set in self.listeners.lock().iter() {
            let all = [(Kind::Outbound, &set.outbound), (Kind::Plaintext, &set.plaintext), (Kind::Hbone, &set.hbone)];
            for (kind, list) in all {
                handed.extend(list.iter().map(|listener| (kind, listener.as_fd().try_clone_to_owned().unwrap())));
            }
        }
        handed
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_in_a_queue_outlives_the_proxy_that_it_waits_for() {
    const WAITING: usize = 300;
    // (tcp_migrate_req, INPOD_PORT_REUSE, workers before, workers after)
    let cases =
        [(true, true, 2, 2), (false, true, 2, 2), (false, true, 3, 2), (false, true, 1, 2), (true, false, 2, 2)];
    for (migrate, reuse, before, after) in cases {
        let what = format!("tcp_migrate_req {migrate}, ports shared {reuse}, {before} workers then {after}");
        let pods = Pods::new(migrate);
        let folder = tempfile::tempdir().unwrap();
        let path = handover::path(&folder.path().join("ztunnel.sock"));
        let mut config = data_path("node1");
        config.reuse_port = reuse;
        let old = Frozen::default();
        let netns = &pods.client.namespace.netns;
        *old.listeners.lock() = Listeners::open(netns, &config, None, before, Vec::new()).unwrap();
        let (tasks, end) = (Tracker::new(), Cancel::new());
        let listener = PacketListener::bind(&path).unwrap();
        tasks.spawn("hand-over", handover::serve(listener, old.clone(), tasks.clone(), end.clone()));

        // All are captured and wait in the queues, some of them with something to say.
        let mut waiting = Vec::new();
        for _ in 0..WAITING {
            waiting.push(pods.client.connect(pods.at()).await.unwrap());
        }

        let change: fn(&mut ztunnel::config::Proxy) = if reuse { |_| () } else { |proxy| proxy.reuse_port = false };
        let mut next = Node::with("node1", &pods.ca, after, change);
        pods.publish(&next);
        next.predecessor = Predecessor::find(&path);
        pods.enrol(&next);
        let expected = if migrate && reuse { 0 } else { 2 };
        assert_eq!(old.asked.load(SeqCst), expected, "{what}: one question for each pod");
        old.listeners.lock().clear();

        for (number, stream) in waiting.iter_mut().enumerate() {
            let done = within(&what, exchange(stream)).await;
            assert!(done.is_ok(), "{what}: connection {number} of {WAITING}: {done:?}");
        }
        // And who comes now, by whichever queue.
        for _ in 0..50 {
            let mut stream = pods.client.connect(pods.at()).await.unwrap();
            within(&what, exchange(&mut stream)).await.unwrap();
        }
        assert_eq!(next.tracker.panics(), 0);
        end.drain();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn proxies_follow_each_other_under_load_without_the_kernels_help() {
    for reuse in [true, false] {
        let pods = Pods::new(false);
        let folder = tempfile::tempdir().unwrap();
        let path = handover::path(&folder.path().join("ztunnel.sock"));
        let change: fn(&mut ztunnel::config::Proxy) = if reuse { |_| () } else { |proxy| proxy.reuse_port = false };
        let begin = |workers| {
            let mut node = Node::with("node1", &pods.ca, workers, change);
            pods.publish(&node);
            node.predecessor = Predecessor::find(&path);
            pods.enrol(&node);
            node.hand_over_at(&path);
            node
        };
        let mut running = begin(2);
        let mut open = pods.client.connect(pods.at()).await.unwrap();
        within("the first", exchange(&mut open)).await.unwrap();
        // Three times, since each hands on what it was handed.
        for workers in [2, 3, 1] {
            let next = begin(workers);
            let old = std::mem::replace(&mut running, next);
            let drained = shutdown(&old.cancel, &old.tracker, BOUND);
            let traffic = async {
                for _ in 0..100 {
                    let mut stream = pods.client.connect(pods.at()).await.unwrap();
                    exchange(&mut stream).await.unwrap();
                }
                // What the old one carries goes on till its client ends it.
                open.write_all(b"y").await.unwrap();
                assert_eq!(open.read_u8().await.unwrap(), b'y');
                open = pods.client.connect(pods.at()).await.unwrap();
                exchange(&mut open).await.unwrap();
            };
            let (drained, ()) = within("drain", async { tokio::join!(drained, traffic) }).await;
            assert_eq!(drained, Drained::InTime);
            assert_eq!(old.tracker.panics(), 0);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_shared_ports_all_workers_serve_and_a_proxy_without_predecessor_must_wait() {
    let pods = Pods::new(true);
    let alone = |proxy: &mut ztunnel::config::Proxy| proxy.reuse_port = false;
    let node = Node::with("node1", &pods.ca, 2, alone);
    pods.publish(&node);
    pods.enrol(&node);
    for _ in 0..50 {
        let mut stream = pods.client.connect(pods.at()).await.unwrap();
        within("served", exchange(&mut stream)).await.unwrap();
    }
    // Nobody hands anything over: the ports are taken, and that is said.
    let next = Node::with("node1", &pods.ca, 2, alone);
    pods.publish(&next);
    let error = next.try_enrol(&pods.client.namespace.netns, "client").unwrap_err().to_string();
    assert!(error.contains("port 15001: Address already in use"), "{error}");
    // Its turn comes when they are free.
    assert_eq!(shutdown(&node.cancel, &node.tracker, BOUND).await, Drained::InTime);
    pods.enrol(&next);
    let mut stream = pods.client.connect(pods.at()).await.unwrap();
    within("served by the next", exchange(&mut stream)).await.unwrap();
}

/// A thread of another user, who may even open the path.
#[allow(unsafe_code)]
#[tokio::test]
async fn sockets_are_handed_to_our_own_user_only() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ztunnel.sock.handover");
    let (old, tasks) = (Frozen::default(), Tracker::new());
    let listener = PacketListener::bind(&path).unwrap();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
    tasks.spawn("hand-over", handover::serve(listener, old.clone(), tasks.clone(), Cancel::new()));
    let ask = move |user: Option<u32>| {
        use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, UnixAddr, connect, recv, send, socket};
        if let Some(user) = user {
            // SAFETY: the bare system call changes this thread alone, which ends soon.
            assert_eq!(unsafe { libc::syscall(libc::SYS_setresuid, -1, user, -1) }, 0);
        }
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(socket.as_raw_fd(), &UnixAddr::new(&path).unwrap()).unwrap();
        let question = br#"{"version":1,"uid":"client","device":1,"inode":1}"#;
        let _ = send(socket.as_raw_fd(), question, MsgFlags::MSG_NOSIGNAL);
        recv(socket.as_raw_fd(), &mut [0; 256], MsgFlags::empty()).unwrap_or(0)
    };
    for (user, answered) in [(None, true), (Some(65534), false)] {
        let ask = ask.clone();
        let length = within(
            "an answer",
            tokio::task::spawn_blocking(move || std::thread::spawn(move || ask(user)).join().unwrap()),
        )
        .await
        .unwrap();
        assert_eq!(length > 0, answered, "{user:?}");
    }
    assert_eq!(old.asked.load(SeqCst), 1);
}
