//! A pod's listener and its connections, on one worker.

use std::fs::File;
use std::io;

use aquifer_core::store;
use aquifer_runtime::env::MapEnv;
use aquifer_runtime::metrics::{Registry, encode};
use nix::sched::{CloneFlags, unshare};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::LocalSet;

use super::*;
use crate::config::{Config, Surroundings};
use crate::metrics::ProxyMetrics;
use crate::socket;

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

fn shared(tracker: &Tracker) -> Arc<Shared> {
    let env: MapEnv = [("NODE_NAME", "node1")].into();
    let around = Surroundings { mesh_file: None, cpus: 1, file_exists: |_| false };
    let config = Config::read(&env, &around).unwrap().proxy;
    let upstream = Upstream::new(Vec::new(), Netns::current().unwrap(), config.tcp, 1);
    Arc::new(Shared {
        state: store::store().1,
        published: watch::channel(0).1,
        certs: CertManager::new(),
        tracker: tracker.clone(),
        server: ServerConfig::default(),
        pool: PoolConfig::default(),
        warned_unspoofed: false.into(),
        dns: None,
        names: Resolver::new(upstream, None, true),
        on_demand: None,
        config,
    })
}

/// Echoes until the client has done, or says the word.
async fn echo(_pod: Rc<Pod>, mut stream: TcpStream) {
    while let Ok(byte) = stream.read_u8().await {
        assert_ne!(byte, b'!', "on purpose");
        stream.write_all(&[byte]).await.unwrap();
    }
}

async fn echoed(stream: &mut TcpStream, byte: u8) -> io::Result<u8> {
    stream.write_all(&[byte]).await?;
    stream.read_u8().await
}

#[test]
fn a_connection_that_panics_takes_no_other_with_it_and_is_counted() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let netns = namespace();
    LocalSet::new().block_on(&runtime, async {
        let tracker = Tracker::new();
        let shared = shared(&tracker);
        let listeners = Listeners::open(&netns, &shared.config, None, 1, Vec::new()).unwrap().remove(0);
        let info = WorkloadInfo { name: "web".into(), namespace: "shop".into(), service_account: "web".into() };
        let metrics = Rc::new(WorkerMetrics::new(Arc::new(ProxyMetrics::default()), 0));
        let table = ConnTable::default();
        let named = (PodUid::new("1"), info, netns.clone());
        let budget = Budget::new(shared.config.pod_window);
        let crew = Rc::new(Crew::alone(tracker.clone()));
        let worker =
            OnWorker { metrics: &metrics, table: &table, crew: &crew, neighbours: &Neighbours::default(), alone: true };
        let pod = Pod::start(&shared, named, listeners, worker, Cancel::new(), budget).unwrap();
        let listener =
            netns.run(|| socket::listen_wildcard(8080, false, &shared.config.tcp, OriginalSource::Off, false));
        let listener = TcpListener::from_std(listener.unwrap().unwrap()).unwrap();
        pod.accept(Kind::Plaintext, listener, echo);
        let connect = || {
            let stream = netns.run(|| std::net::TcpStream::connect("127.0.0.1:8080")).unwrap().unwrap();
            stream.set_nonblocking(true).unwrap();
            TcpStream::from_std(stream).unwrap()
        };

        let (mut well, mut sick) = (connect(), connect());
        assert_eq!(echoed(&mut well, b'a').await.unwrap(), b'a');
        assert_eq!(echoed(&mut sick, b'a').await.unwrap(), b'a');
        assert!(echoed(&mut sick, b'!').await.is_err(), "its connection ends");
        assert_eq!(echoed(&mut well, b'b').await.unwrap(), b'b', "what was open goes on");
        assert_eq!(echoed(&mut connect(), b'c').await.unwrap(), b'c', "who comes is served");
        let mut registry = Registry::default();
        tracker.register(&mut registry);
        let page = encode(&registry);
        assert!(page.contains("process_task_panics_total{task=\"connection\"} 1"), "{page}");

        // Nor does the pod wait for it when it leaves.
        drop((well, sick));
        pod.remove().await;
        assert_eq!(pod.active.count.get(), 0);
        assert_eq!(tracker.panics(), 1);
    });
}
