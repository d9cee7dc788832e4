//! The server against recordings of the real proxy, and against one that misbehaves.

use super::packet::{Listener, MAX, Packets};
use super::server::ZdsMetrics;
use super::{Timing, Zds, ZdsError, ZdsPod};
use crate::netns::NetNs;
use aquifer_proto::zds::{
    Ack, Version, WorkloadInfo, WorkloadRequest, WorkloadResponse, ZdsHello, workload_request::Payload,
    workload_response,
};
use aquifer_runtime::{Cancel, Tracker};
use nix::sys::socket::{
    AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect, recvmsg, socket,
};
use prost::Message;
use serde_json::Value;
use std::io::IoSliceMut;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::time::Duration;
use tokio::time::timeout;

mod statements;

const PATIENCE: Duration = Duration::from_secs(10);
/// Short, for those that let it pass; long enough for who answers at once on a busy machine.
const DEADLINE: Duration = Duration::from_secs(1);

struct Bench {
    zds: Zds,
    metrics: ZdsMetrics,
    path: std::path::PathBuf,
    cancel: Cancel,
    _folder: tempfile::TempDir,
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.cancel.drain();
    }
}

fn bench(deadline: Duration) -> Bench {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("ztunnel.sock");
    // Left by an earlier agent.
    std::fs::write(&path, "").unwrap();
    let listener = Listener::bind(&path).unwrap();
    let (metrics, tracker, cancel) = (ZdsMetrics::default(), Tracker::new(), Cancel::new());
    let zds = Zds::new(Timing { deadline, accepts_per_second: 1000 }, metrics.clone());
    let (server, connections, end) = (zds.clone(), tracker.clone(), cancel.clone());
    tracker.spawn("server", async move { server.serve(listener, connections, end).await });
    Bench { zds, metrics, path, cancel, _folder: folder }
}

/// The proxy's end.
struct Proxy {
    fd: OwnedFd,
}

impl Proxy {
    fn dial(bench: &Bench) -> Self {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        connect(fd.as_raw_fd(), &UnixAddr::new(&bench.path).unwrap()).unwrap();
        Self { fd }
    }

    fn send(&self, bytes: &[u8]) {
        nix::unistd::write(&self.fd, bytes).unwrap();
    }

    fn say(&self, error: &str) {
        let ack = workload_response::Payload::Ack(Ack { error: error.into() });
        self.send(&WorkloadResponse { payload: Some(ack) }.encode_to_vec());
    }

    fn hello(&self) {
        self.send(&ZdsHello { version: Version::V1 as i32 }.encode_to_vec());
    }

    /// A packet and how many descriptors came with it; no bytes at the end of the connection.
    async fn receive(&self) -> (Vec<u8>, usize) {
        let fd = self.fd.try_clone().unwrap();
        let received = tokio::task::spawn_blocking(move || {
            let mut bytes = vec![0; MAX + 1];
            let mut control = nix::cmsg_space!([RawFd; 4]);
            let (length, fds) = {
                let mut slices = [IoSliceMut::new(&mut bytes)];
                match recvmsg::<()>(fd.as_raw_fd(), &mut slices, Some(&mut control), MsgFlags::empty()) {
                    Ok(received) => {
                        let messages = received.cmsgs().unwrap();
                        let fds: Vec<RawFd> = messages
                            .flat_map(|message| match message {
                                ControlMessageOwned::ScmRights(fds) => fds,
                                _ => Vec::new(),
                            })
                            .collect();
                        (received.bytes, fds)
                    }
                    Err(_) => (0, Vec::new()),
                }
            };
            bytes.truncate(length);
            for fd in &fds {
                let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap();
                assert!(link.to_str().unwrap().starts_with("net:["), "a network namespace: {link:?}");
                nix::unistd::close(*fd).unwrap();
            }
            (bytes, fds.len())
        });
        timeout(PATIENCE, received).await.expect("the agent says something").unwrap()
    }

    async fn request(&self) -> Payload {
        let (bytes, fds) = self.receive().await;
        let payload = WorkloadRequest::decode(bytes.as_slice()).unwrap().payload.expect("not the end");
        assert_eq!(fds, usize::from(matches!(payload, Payload::Add(_))), "a descriptor comes with Add only");
        payload
    }

    async fn ended(&self) {
        assert_eq!(self.receive().await, (Vec::new(), 0), "the agent hangs up");
    }

    /// Dials, says hello, acks the snapshot; the uids it named.
    async fn connected(bench: &Bench) -> (Self, Vec<String>) {
        let proxy = Self::dial(bench);
        proxy.hello();
        let mut uids = Vec::new();
        let mut snapshots = bench.zds.snapshots();
        loop {
            let request = proxy.request().await;
            proxy.say("");
            match request {
                Payload::Add(add) => uids.push(add.uid),
                Payload::Keep(keep) => uids.push(format!("keep {}", keep.uid)),
                Payload::SnapshotSent(_) => break,
                Payload::Del(_) => panic!("no Del in a snapshot"),
            }
        }
        timeout(PATIENCE, snapshots.changed()).await.unwrap().unwrap();
        (proxy, uids)
    }
}

fn pod(uid: &str) -> ZdsPod {
    let info = WorkloadInfo { name: format!("pod-{uid}"), namespace: "shop".into(), service_account: "default".into() };
    ZdsPod { uid: uid.into(), info, netns: NetNs::current().unwrap() }
}

fn add(zds: &Zds, uid: &str) -> tokio::task::JoinHandle<Result<(), ZdsError>> {
    let (zds, pod) = (zds.clone(), pod(uid));
    Tracker::new_task(async move { zds.add(pod).await })
}

fn del(zds: &Zds, uid: &str) -> tokio::task::JoinHandle<Result<(), ZdsError>> {
    let (zds, uid) = (zds.clone(), uid.to_owned());
    Tracker::new_task(async move { zds.del(&uid).await })
}

/// A task with a result, which the tracker has no use for.
trait Task {
    fn new_task<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T>;
}

impl Task for Tracker {
    #[allow(clippy::disallowed_methods)]
    fn new_task<T: Send + 'static>(task: impl Future<Output = T> + Send + 'static) -> tokio::task::JoinHandle<T> {
        tokio::spawn(task)
    }
}

async fn outcome(task: tokio::task::JoinHandle<Result<(), ZdsError>>) -> Result<(), ZdsError> {
    timeout(PATIENCE, task).await.expect("an outcome").unwrap()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let polled = async {
        while !holds() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, polled).await.unwrap_or_else(|_| panic!("{what}"));
}

#[tokio::test]
async fn the_snapshot_names_every_pod_then_what_follows() {
    let bench = bench(PATIENCE);
    bench.zds.insert(pod("b"));
    bench.zds.insert(pod("a"));
    bench.zds.keep("c");
    let (proxy, uids) = Proxy::connected(&bench).await;
    assert_eq!(uids, ["a", "b", "keep c"]);
    assert_eq!(bench.metrics.connected.get(), 1);

    let added = add(&bench.zds, "d");
    let Payload::Add(request) = proxy.request().await else { panic!("an Add") };
    assert_eq!(request.uid, "d");
    assert_eq!(request.workload_info.unwrap().name, "pod-d");
    proxy.say("");
    assert_eq!(outcome(added).await, Ok(()));

    let deleted = del(&bench.zds, "a");
    let Payload::Del(request) = proxy.request().await else { panic!("a Del") };
    assert_eq!(request.uid, "a");
    proxy.say("");
    assert_eq!(outcome(deleted).await, Ok(()));

    drop(proxy);
    until("the end is noticed", || bench.zds.connections() == 0).await;
    assert_eq!(Proxy::connected(&bench).await.1, ["b", "keep c", "d"]);
    assert_eq!(bench.metrics.faults.get(), 0);
}

#[tokio::test]
async fn without_a_proxy_and_refused() {
    let bench = bench(PATIENCE);
    assert_eq!(bench.zds.add(pod("a")).await, Err(ZdsError::NotConnected));
    assert_eq!(bench.zds.del("nobody").await, Ok(()));
    let (proxy, uids) = Proxy::connected(&bench).await;
    assert_eq!(uids, ["a"], "what could not be handed over is in the snapshot");

    let refused = add(&bench.zds, "b");
    proxy.request().await;
    proxy.say("failure to start proxy : no\n\nStack backtrace:\n   0: anyhow");
    assert_eq!(outcome(refused).await, Err(ZdsError::Refused("failure to start proxy : no".into())));

    let again = add(&bench.zds, "b");
    proxy.request().await;
    proxy.say("");
    assert_eq!(outcome(again).await, Ok(()), "a refusal leaves the connection as it is");
}

#[tokio::test]
async fn add_goes_to_the_newest_and_del_to_all() {
    let bench = bench(PATIENCE);
    let (old, _) = Proxy::connected(&bench).await;
    let (new, _) = Proxy::connected(&bench).await;
    let added = add(&bench.zds, "a");
    assert!(matches!(new.request().await, Payload::Add(_)));
    new.say("");
    assert_eq!(outcome(added).await, Ok(()));

    let deleted = del(&bench.zds, "a");
    for proxy in [&old, &new] {
        // The first thing that the old one hears.
        assert!(matches!(proxy.request().await, Payload::Del(_)));
        proxy.say("");
    }
    assert_eq!(outcome(deleted).await, Ok(()));

    let added = add(&bench.zds, "b");
    assert!(matches!(new.request().await, Payload::Add(_)));
    new.say("");
    assert_eq!(outcome(added).await, Ok(()));
    drop(new);
    assert!(matches!(old.request().await, Payload::Add(add) if add.uid == "b"), "the old one is the newest again");
    old.say("");
    let added = add(&bench.zds, "c");
    assert!(matches!(old.request().await, Payload::Add(add) if add.uid == "c"));
    old.say("");
    assert_eq!(outcome(added).await, Ok(()));
}

#[tokio::test]
async fn a_pod_added_during_the_snapshot_comes_after_it() {
    let bench = bench(PATIENCE);
    bench.zds.insert(pod("a"));
    let proxy = Proxy::dial(&bench);
    proxy.hello();
    assert!(matches!(proxy.request().await, Payload::Add(_)));
    let added = add(&bench.zds, "b");
    until("b is registered", || bench.zds.holds("b")).await;
    proxy.say("");
    assert!(matches!(proxy.request().await, Payload::SnapshotSent(_)));
    proxy.say("");
    assert!(matches!(proxy.request().await, Payload::Add(add) if add.uid == "b"));
    proxy.say("");
    assert_eq!(outcome(added).await, Ok(()));
}

/// What the proxy does wrong ends its connection; a new one gets everything.
async fn check_fault(name: &str, deadline: Duration, misbehave: impl AsyncFnOnce(&Bench, &Proxy)) {
    let bench = bench(deadline);
    let (proxy, _) = Proxy::connected(&bench).await;
    misbehave(&bench, &proxy).await;
    proxy.ended().await;
    until(name, || bench.metrics.faults.get() == 1 && bench.zds.connections() == 0).await;
    assert_eq!(bench.metrics.connected.get(), 0, "{name}");
    Proxy::connected(&bench).await;
}

#[tokio::test]
async fn faults_end_the_connection() {
    check_fault("unasked while idle", PATIENCE, async |_, proxy| proxy.say("")).await;
    check_fault("too long", PATIENCE, async |_, proxy| proxy.send(&[0; MAX + 1])).await;
    check_fault("garbage", PATIENCE, async |bench, proxy| {
        let added = add(&bench.zds, "a");
        proxy.request().await;
        proxy.send(&[0xff; 3]);
        assert!(matches!(outcome(added).await, Err(ZdsError::Lost(_))));
    })
    .await;
    check_fault("no ack", PATIENCE, async |bench, proxy| {
        let added = add(&bench.zds, "a");
        proxy.request().await;
        proxy
            .send(&WorkloadResponse { payload: None }.encode_to_vec().into_iter().chain([0x12, 0]).collect::<Vec<_>>());
        assert!(matches!(outcome(added).await, Err(ZdsError::Lost(_))));
    })
    .await;
    check_fault("an answer twice", PATIENCE, async |bench, proxy| {
        let added = add(&bench.zds, "a");
        proxy.request().await;
        proxy.say("");
        proxy.say("");
        assert_eq!(outcome(added).await, Ok(()));
    })
    .await;
    check_fault("no answer in time", DEADLINE, async |bench, proxy| {
        let added = add(&bench.zds, "a");
        proxy.request().await;
        assert_eq!(outcome(added).await, Err(ZdsError::Lost("ztunnel did not answer in time".into())));
    })
    .await;
    check_fault("a descriptor", PATIENCE, async |_, proxy| {
        use nix::sys::socket::{ControlMessage, sendmsg};
        let fds = [proxy.fd.as_raw_fd()];
        let slices = [std::io::IoSlice::new(b"x")];
        sendmsg::<()>(fds[0], &slices, &[ControlMessage::ScmRights(&fds)], MsgFlags::empty(), None).unwrap();
    })
    .await;
}

#[tokio::test]
async fn hello_must_come_in_time_and_of_version_1() {
    let bench = bench(DEADLINE);
    let silent = Proxy::dial(&bench);
    silent.ended().await;
    let other = Proxy::dial(&bench);
    other.send(&ZdsHello { version: 7 }.encode_to_vec());
    other.ended().await;
    until("both are faults", || bench.metrics.faults.get() == 2).await;
}

#[tokio::test]
async fn an_oversized_request_is_never_sent() {
    let (ours, theirs) = nix::sys::socket::socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
    )
    .unwrap();
    let (ours, theirs) = (Packets::new(ours).unwrap(), Packets::new(theirs).unwrap());
    assert!(ours.send(&[0; MAX + 1], None::<&NetNs>).await.is_err());
    ours.send(&[1; MAX], None::<&NetNs>).await.unwrap();
    assert_eq!(theirs.receive().await.unwrap().map(|bytes| bytes.len()), Some(MAX));
    drop(ours);
    assert_eq!(theirs.receive().await.unwrap(), None);
}

#[tokio::test]
async fn recordings_of_the_real_proxy() {
    for name in
        ["snapshot", "add", "del", "reconnect", "enrol-unenrol-running-pod", "nack-bad-fd", "nack-no-fd", "garbage"]
    {
        replay(name).await;
    }
}

/// Plays the proxy's side; what the agent says must be what the real one said, to the byte.
async fn replay(name: &str) {
    let path = format!("{}/../tests/recordings/zds/{name}.json", env!("CARGO_MANIFEST_DIR"));
    let recording: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    let entries = recording["entries"].as_array().unwrap();
    let bench = bench(PATIENCE);
    let mut proxy = None;
    let mut asked: Option<tokio::task::JoinHandle<Result<(), ZdsError>>> = None;
    let mut in_snapshot = false;
    let mut snapshot = Vec::new();
    for (index, entry) in entries.iter().enumerate() {
        let at = format!("{name}, entry {index}");
        let decoded = &entry["decoded"];
        let bytes = entry["hex"].as_str().map(unhex);
        match (entry["direction"].as_str(), entry["event"].as_str()) {
            (_, Some("ztunnel connected")) => proxy = Some(Proxy::dial(&bench)),
            (Some("ztunnel->cni"), Some("closed")) => {
                proxy = None;
                until("the end is noticed", || bench.zds.connections() == 0).await;
            }
            (Some("ztunnel->cni"), None) => {
                if decoded.get("ZdsHello").is_some() {
                    in_snapshot = true;
                    for (add, bytes) in snapshot_of(&entries[index..]) {
                        bench.zds.insert(recorded(add));
                        snapshot.push(bytes);
                    }
                }
                proxy.as_ref().unwrap().send(&bytes.unwrap());
                if let Some(asked) = asked.take() {
                    let error = decoded["WorkloadResponse"]["ack"]["error"].as_str().unwrap();
                    let expected = match error.lines().next() {
                        None => Ok(()),
                        Some(line) => Err(ZdsError::Refused(line.trim().to_owned())),
                    };
                    assert_eq!(outcome(asked).await, expected, "{at}");
                }
            }
            (Some("cni->ztunnel"), None) => {
                if proxy.is_none() {
                    proxy = Some(Proxy::connected(&bench).await.0);
                }
                let request = &decoded["WorkloadRequest"];
                if !in_snapshot {
                    asked = Some(match request["del"]["uid"].as_str() {
                        Some(uid) => del(&bench.zds, uid),
                        None => {
                            let (zds, pod) = (bench.zds.clone(), recorded(&request["add"]));
                            Tracker::new_task(async move { zds.add(pod).await })
                        }
                    });
                }
                let (said, fds) = proxy.as_ref().unwrap().receive().await;
                assert_eq!(fds as u64, entry["fds"].as_u64().unwrap(), "{at}");
                if in_snapshot && request.get("add").is_some() {
                    // A snapshot's pods come in no particular order.
                    let place = snapshot.iter().position(|bytes| *bytes == said).unwrap_or_else(|| panic!("{at}"));
                    snapshot.swap_remove(place);
                    continue;
                }
                in_snapshot = false;
                assert!(snapshot.is_empty(), "{at}");
                assert_eq!(said, bytes.unwrap(), "{at}");
            }
            _ => {}
        }
    }
}

/// The pods of the snapshot that begins here, each with its packet.
fn snapshot_of(entries: &[Value]) -> Vec<(&Value, Vec<u8>)> {
    let request = |entry: &'static str| move |value: &Value| value["decoded"]["WorkloadRequest"].get(entry).is_some();
    let adds =
        entries.iter().take_while(|entry| !request("snapshot_sent")(entry)).filter(|entry| request("add")(entry));
    adds.map(|entry| (&entry["decoded"]["WorkloadRequest"]["add"], unhex(entry["hex"].as_str().unwrap()))).collect()
}

fn recorded(add: &Value) -> ZdsPod {
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let info = &add["workload_info"];
    let info = WorkloadInfo {
        name: text(&info["name"]),
        namespace: text(&info["namespace"]),
        service_account: text(&info["service_account"]),
    };
    ZdsPod { uid: text(&add["uid"]), info, netns: NetNs::current().unwrap() }
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// Packets that no proxy sends: each ends in an answer or in the end of that connection, never in a panic.
mod any_packet {
    use super::super::connection;
    use super::*;
    use nix::sys::socket::socketpair;
    use proptest::prelude::*;

    fn pair() -> (OwnedFd, Packets) {
        let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
        let (proxy, ours) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        (proxy, Packets::new(ours).unwrap())
    }

    /// Any bytes, and answers with something changed.
    fn packets() -> impl Strategy<Value = Vec<u8>> {
        let answer = (".{0,300}", 0..400_usize, any::<u8>(), any::<bool>()).prop_map(|(error, at, byte, change)| {
            let ack = workload_response::Payload::Ack(Ack { error });
            let mut bytes = WorkloadResponse { payload: Some(ack) }.encode_to_vec();
            if change && let Some(place) = bytes.get_mut(at) {
                *place = byte;
            }
            bytes
        });
        prop_oneof![proptest::collection::vec(any::<u8>(), 1..MAX + 100), answer]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]

        #[test]
        fn ends_in_an_answer_or_in_the_connection_s_end(bytes in packets()) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            let timing = Timing { deadline: PATIENCE, accepts_per_second: 1000 };
            runtime.block_on(async {
                let (proxy, ours) = pair();
                nix::unistd::write(&proxy, &bytes).unwrap();
                let said = connection::hello(&ours, timing).await;
                let hello = ZdsHello::decode(&bytes[..]).is_ok_and(|h| h.version == Version::V1 as i32);
                prop_assert_eq!(said.is_ok(), hello && bytes.len() <= MAX);

                let (proxy, ours) = pair();
                nix::unistd::write(&proxy, &bytes).unwrap();
                let answered = connection::snapshot(&ours, timing, Vec::new()).await;
                let good = WorkloadResponse::decode(&bytes[..]).is_ok_and(|r| {
                    matches!(r.payload, Some(workload_response::Payload::Ack(ack)) if ack.error.is_empty())
                });
                prop_assert_eq!(answered.is_ok(), good && bytes.len() <= MAX);
                if let Err(error) = answered {
                    prop_assert!(error.to_string().lines().count() <= 1, "{}", error);
                }
                Ok(())
            })?;
        }
    }
}
