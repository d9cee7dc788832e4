//! The manager against a scripted agent on a real socket, with proxies that only write down what they are told.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::PathBuf;

use aquifer_proto::zds as wire;
use aquifer_runtime::Tracker;
use nix::sys::socket::{
    AddressFamily, Backlog, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, accept, bind, listen, recvmsg,
    sendmsg, socket,
};
use prost::Message;

use super::*;

/// What the workers were told; pods named here cannot be started.
#[derive(Clone, Default)]
struct Told {
    log: Arc<Mutex<Vec<String>>>,
    /// When the start of a broken pod was tried.
    tries: Arc<Mutex<Vec<tokio::time::Instant>>>,
    broken: Arc<Mutex<BTreeSet<String>>>,
    /// Stops under way, and the most that there were.
    stops: Arc<Mutex<(usize, usize)>>,
}

impl Proxies for Told {
    async fn start(&self, pod: &Pod<Netns>) -> Result<(), String> {
        self.log.lock().push(format!("start {}", pod.uid));
        match self.broken.lock().contains(pod.uid.as_str()) {
            true => {
                self.tries.lock().push(tokio::time::Instant::now());
                Err("port 15008: Invalid argument (os error 22)".into())
            }
            false => Ok(()),
        }
    }

    async fn stop(&self, uid: &PodUid) {
        {
            let mut stops = self.stops.lock();
            stops.0 += 1;
            stops.1 = stops.1.max(stops.0);
        }
        // Not before all others that may have been begun.
        tokio::task::yield_now().await;
        self.log.lock().push(format!("stop {uid}"));
        self.stops.lock().0 -= 1;
    }

    fn complete(&self) {
        self.log.lock().push("complete".into());
    }
}

/// The agent: plain blocking calls on a thread of its own, as the script goes.
struct Agent {
    listener: OwnedFd,
    connection: Option<OwnedFd>,
    dir: PathBuf,
}

impl Agent {
    fn listen(dir: &Path) -> Self {
        let listener = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None).unwrap();
        bind(listener.as_raw_fd(), &UnixAddr::new(&dir.join("ztunnel.sock")).unwrap()).unwrap();
        listen(&listener, Backlog::new(8).unwrap()).unwrap();
        Self { listener, connection: None, dir: dir.to_owned() }
    }

    #[allow(unsafe_code)]
    fn accept(&mut self) {
        self.connection = None;
        let fd = accept(self.listener.as_raw_fd()).unwrap();
        // SAFETY: accept(2) has just made it.
        self.connection = Some(unsafe { OwnedFd::from_raw_fd(fd) });
        assert_eq!(self.receive(), [8, 1], "hello first");
    }

    fn receive(&self) -> Vec<u8> {
        let mut buffer = [0; 2048];
        let fd = self.connection.as_ref().unwrap().as_raw_fd();
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let length = recvmsg::<()>(fd, &mut slices, None, MsgFlags::empty()).unwrap().bytes;
        buffer[..length].to_vec()
    }

    /// Sends a request and gives the error of the answer.
    fn ask(&self, payload: wire::workload_request::Payload, netns: Option<&str>) -> String {
        self.ask_raw(&wire::WorkloadRequest { payload: Some(payload) }.encode_to_vec(), netns)
    }

    fn ask_raw(&self, bytes: &[u8], netns: Option<&str>) -> String {
        let file = netns.map(|name| File::create(self.dir.join(name)).unwrap());
        let fds: Vec<_> = file.iter().map(AsRawFd::as_raw_fd).collect();
        let rights = [ControlMessage::ScmRights(&fds)];
        let control = if fds.is_empty() { &[][..] } else { &rights[..] };
        let fd = self.connection.as_ref().unwrap().as_raw_fd();
        sendmsg::<()>(fd, &[IoSlice::new(bytes)], control, MsgFlags::empty(), None).unwrap();
        let answer = wire::WorkloadResponse::decode(self.receive().as_slice()).unwrap();
        let Some(wire::workload_response::Payload::Ack(ack)) = answer.payload else { panic!("{answer:?}") };
        ack.error
    }

    fn add(&self, uid: &str, netns: &str) -> String {
        let info = wire::WorkloadInfo { name: uid.into(), namespace: "ns".into(), service_account: "sa".into() };
        let add = wire::AddWorkload { uid: uid.into(), workload_info: Some(info) };
        self.ask(wire::workload_request::Payload::Add(add), Some(netns))
    }

    fn del(&self, uid: &str) -> String {
        self.ask(wire::workload_request::Payload::Del(wire::DelWorkload { uid: uid.into() }), None)
    }

    fn keep(&self, uid: &str) -> String {
        self.ask(wire::workload_request::Payload::Keep(wire::KeepWorkload { uid: uid.into() }), None)
    }

    fn snapshot_sent(&self) -> String {
        self.ask(wire::workload_request::Payload::SnapshotSent(wire::SnapshotSent {}), None)
    }
}

struct Fixture {
    told: Told,
    readiness: Readiness,
    view: PodView,
    metrics: InpodMetrics,
    cancel: Cancel,
    tracker: Tracker,
    dir: tempfile::TempDir,
}

impl Fixture {
    fn start() -> Self {
        let f = Self {
            told: Told::default(),
            readiness: Readiness::new(),
            view: PodView::default(),
            metrics: InpodMetrics::default(),
            cancel: Cancel::new(),
            tracker: Tracker::new(),
            dir: tempfile::tempdir().unwrap(),
        };
        let manager = Manager::new(f.told.clone(), f.metrics.clone(), f.view.clone(), &f.readiness);
        let (path, cancel) = (f.dir.path().join("ztunnel.sock"), f.cancel.clone());
        f.tracker.spawn("manager", async move { manager.run(&path, &cancel).await });
        f
    }

    /// Runs the agent's script to its end.
    async fn script(&self, script: impl FnOnce(&mut Agent) + Send + 'static) {
        let mut agent = Agent::listen(self.dir.path());
        tokio::task::spawn_blocking(move || script(&mut agent)).await.unwrap();
    }

    fn log(&self) -> Vec<String> {
        std::mem::take(&mut *self.told.log.lock())
    }

    async fn end(self) {
        self.cancel.drain();
        self.tracker.close();
        self.tracker.wait().await;
        assert_eq!(self.tracker.panics(), 0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_go_and_survive_the_agent() {
    let f = Fixture::start();
    assert_eq!(f.readiness.pending(), ["workload proxy manager"]);
    let readiness = f.readiness.clone();
    f.script(move |agent| {
        agent.accept();
        assert_eq!(agent.add("a", "n1"), "");
        assert_eq!(agent.add("b", "n2"), "");
        assert_eq!(agent.add("c", "n3"), "");
        assert!(!readiness.is_ready());
        assert_eq!(agent.snapshot_sent(), "");
        assert!(readiness.is_ready());
        assert_eq!(agent.add("a", "n1"), "", "known, same namespace");
        assert_eq!(agent.del("b"), "");
        // The agent restarts: a is named by Add, c by Keep, and nobody is stopped meanwhile.
        agent.accept();
        assert!(readiness.is_ready(), "what runs goes on");
        assert_eq!(agent.keep("c"), "");
        assert_eq!(agent.add("a", "n1"), "");
        assert_eq!(agent.snapshot_sent(), "");
        // The next one knows c no more.
        agent.accept();
        assert_eq!(agent.add("a", "n4"), "", "another namespace");
        assert_eq!(agent.snapshot_sent(), "");
    })
    .await;
    assert_eq!(
        f.log(),
        ["start a", "start b", "start c", "complete", "stop b", "complete", "stop a", "start a", "stop c", "complete"]
    );
    let view: Vec<_> = f.view.lock().iter().map(|(uid, (_, phase))| (uid.to_string(), *phase)).collect();
    assert_eq!(view, [("a".to_owned(), Phase::Up)]);
    assert_eq!((f.metrics.active.get(), f.metrics.started.get(), f.metrics.stopped.get()), (1, 4, 3));
    f.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_leave_together_are_stopped_together_a_few_at_a_time() {
    const PODS: usize = 3 * STOPS;
    let f = Fixture::start();
    f.script(|agent| {
        agent.accept();
        for pod in 0..PODS {
            assert_eq!(agent.add(&format!("pod{pod}"), "n1"), "");
        }
        assert_eq!(agent.snapshot_sent(), "");
        // The next agent knows none of them.
        agent.accept();
        assert_eq!(agent.snapshot_sent(), "");
    })
    .await;
    assert_eq!(*f.told.stops.lock(), (0, STOPS));
    assert_eq!((f.metrics.active.get(), f.metrics.stopped.get()), (0, PODS as u64));
    f.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_broken_pod_is_refused_and_the_others_are_served() {
    let f = Fixture::start();
    f.told.broken.lock().insert("sick".into());
    let (readiness, broken) = (f.readiness.clone(), f.told.broken.clone());
    f.script(move |agent| {
        agent.accept();
        assert_eq!(agent.snapshot_sent(), "");
        let error = agent.add("sick", "n1");
        assert_eq!(error, "failure to start proxy : port 15008: Invalid argument (os error 22)");
        assert!(!readiness.is_ready());
        assert_eq!(agent.add("well", "n2"), "");
        // The connection stays, and the agent's next try works.
        broken.lock().clear();
        assert_eq!(agent.add("sick", "n1"), "");
        assert!(readiness.is_ready());
    })
    .await;
    f.end().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_the_protocol_is_answered_and_the_connection_made_anew() {
    let f = Fixture::start();
    f.script(|agent| {
        agent.accept();
        let nack = agent.ask_raw(&[0xff, 0xff, 0xff], None);
        assert!(nack.starts_with("failure to read message : failed to decode"), "{nack}");
        agent.accept();
        let nack = agent.ask_raw(&[0x1a, 0x00], Some("n1"));
        assert!(nack.contains("unexpected descriptor"), "{nack}");
        agent.accept();
        assert_eq!(agent.snapshot_sent(), "");
        assert!(agent.snapshot_sent().contains("second snapshot_sent"));
        agent.accept();
        assert_eq!(agent.add("a", "n1"), "");
    })
    .await;
    assert_eq!(f.log(), ["complete", "start a"]);
    f.end().await;
}

/// The agent says nothing more; the clock runs as fast as nothing else happens.
#[tokio::test(start_paused = true)]
async fn what_is_pending_is_tried_every_five_seconds_without_the_agent() {
    let f = Fixture::start();
    f.told.broken.lock().insert("sick".into());
    let mut agent = Agent::listen(f.dir.path());
    let (readiness, tries, broken) = (f.readiness.clone(), f.told.tries.clone(), f.told.broken.clone());
    let script = std::thread::spawn(move || {
        agent.accept();
        assert_eq!(agent.snapshot_sent(), "");
        assert!(agent.add("sick", "n1").starts_with("failure to start proxy"));
        assert_eq!(agent.add("well", "n2"), "");
        agent
    });
    let until = async |what: &str, holds: &dyn Fn() -> bool| {
        let end = std::time::Instant::now() + Duration::from_secs(20);
        while !holds() {
            assert!(std::time::Instant::now() < end, "{what}");
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    until("a first try", &|| !tries.lock().is_empty() && script.is_finished()).await;
    assert!(!readiness.is_ready() || tries.lock().len() > 3, "a rollout waits for a while");
    until("tries", &|| tries.lock().len() > 6).await;
    assert_eq!(f.metrics.pending.get(), 1);
    assert!(readiness.is_ready(), "one pod doesn't hold up a node for good");
    broken.lock().clear();
    until("the pod is served", &|| f.metrics.pending.get() == 0).await;
    assert!(readiness.is_ready());
    let _agent = script.join().unwrap();
    // The first was the agent's.
    let retries: Vec<_> = tries.lock().split_off(1);
    for pair in retries.windows(2) {
        let apart = pair[1] - pair[0];
        assert!(apart >= Duration::from_millis(4990) && apart < Duration::from_secs(6), "{apart:?}");
    }
    assert_eq!((f.metrics.active.get(), f.metrics.pending.get()), (2, 0));
    f.end().await;
}
