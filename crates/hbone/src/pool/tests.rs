use super::*;
use crate::config::{Keepalive, ServerConfig};
use crate::raw::{Frame, GOAWAY, Raw, SETTINGS};
use crate::server::{self, ConnectRequest};
use crate::transport::{BufList, Transport};
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, DuplexStream, duplex};
use tokio::sync::Semaphore;
use tokio::task::LocalSet;

#[derive(Debug, thiserror::Error)]
#[error("dial {0} failed")]
struct DialError(usize);

/// A world of servers, one per dial, and the wires to them.
#[derive(Clone)]
struct World(Rc<Net>);

struct Net {
    config: ServerConfig,
    tracker: Tracker,
    dials: Cell<usize>,
    dialing: Cell<usize>,
    dialing_max: Cell<usize>,
    /// One permit for each dial that may go through.
    gate: Semaphore,
    fail: Cell<bool>,
    panic: Cell<bool>,
    /// By dial: how many streams are open, how many were at most, and how to end the server.
    servers: RefCell<Vec<Rc<ServerSide>>>,
}

#[derive(Default)]
struct ServerSide {
    key: u8,
    open: Cell<usize>,
    most: Cell<usize>,
    cancel: Cancel,
}

impl Connect<u8> for World {
    type Io = DuplexStream;
    type Error = DialError;

    async fn connect(&self, key: &u8) -> Result<DuplexStream, DialError> {
        let net = &self.0;
        net.dials.set(net.dials.get() + 1);
        net.dialing.set(net.dialing.get() + 1);
        net.dialing_max.set(net.dialing_max.get().max(net.dialing.get()));
        let permit = net.gate.acquire().await;
        net.dialing.set(net.dialing.get() - 1);
        permit.unwrap().forget();
        assert!(!net.panic.get(), "on purpose");
        if net.fail.get() {
            return Err(DialError(net.dials.get()));
        }
        Ok(self.serve(*key))
    }

    fn peer(&self, _: &DuplexStream) -> Option<Rc<dyn Any>> {
        Some(Rc::new(format!("dial {}", self.0.dials.get())))
    }
}

impl World {
    fn new(max_concurrent_streams: u32) -> Self {
        Self(Rc::new(Net {
            config: ServerConfig { max_concurrent_streams, ..ServerConfig::default() },
            tracker: Tracker::new(),
            dials: Cell::default(),
            dialing: Cell::default(),
            dialing_max: Cell::default(),
            gate: Semaphore::new(1 << 20),
            fail: Cell::default(),
            panic: Cell::default(),
            servers: RefCell::default(),
        }))
    }

    /// A server that accepts each stream and holds it until its client ends it.
    fn serve(&self, key: u8) -> DuplexStream {
        let (near, far) = duplex(1 << 16);
        let side = Rc::new(ServerSide { key, ..ServerSide::default() });
        self.0.servers.borrow_mut().push(side.clone());
        let (config, tasks) = (self.0.config.clone(), self.0.tracker.clone());
        let cancel = side.cancel.clone();
        self.0.tracker.spawn_local("server", async move {
            let handler = move |request: ConnectRequest| hold(request, side.clone());
            let _ = server::serve(far, &config, handler, cancel, &tasks).await;
        });
        near
    }

    fn pool(&self) -> Pool<u8, Self> {
        self.pool_with(PoolConfig::default(), Cancel::new())
    }

    fn pool_with(&self, config: PoolConfig, cancel: Cancel) -> Pool<u8, Self> {
        Pool::new(self.clone(), config, cancel, Tracker::new())
    }

    fn server(&self, i: usize) -> Rc<ServerSide> {
        self.0.servers.borrow()[i].clone()
    }

    fn count(&self) -> usize {
        self.0.servers.borrow().len()
    }

    /// Dials wait from here on until let through.
    fn close_gate(&self) {
        self.0.gate.forget_permits(usize::MAX >> 8);
    }
}

async fn hold(request: ConnectRequest, side: Rc<ServerSide>) {
    let mut stream = request.accept(HeaderMap::new()).unwrap();
    side.open.set(side.open.get() + 1);
    side.most.set(side.most.get().max(side.open.get()));
    while let Ok(Some(bytes)) = poll_fn(|cx| stream.poll_recv(cx)).await {
        stream.consumed(bytes.len());
    }
    side.open.set(side.open.get() - 1);
}

fn request() -> HboneRequest {
    HboneRequest { authority: "10.0.0.1:80".into(), headers: HeaderMap::new() }
}

async fn open<C: Connect<u8>>(pool: &Pool<u8, C>, key: u8) -> H2Stream {
    match pool.stream(&key, &request()).await {
        Ok((stream, _)) => stream,
        Err(e) => panic!("{e}"),
    }
}

async fn error<C: Connect<u8>>(pool: &Pool<u8, C>, key: u8) -> PoolError<C::Error> {
    pool.stream(&key, &request()).await.map(drop).expect_err("a stream")
}

/// Lets all tasks run until none can; the paused clock moves only then.
async fn settle() {
    tokio::time::sleep(Duration::from_millis(1)).await;
}

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

#[tokio::test(start_paused = true)]
async fn streams_share_a_connection_up_to_the_limit() {
    for (peer, ours, streams, connections) in
        [(200, 100, 250, 3), (40, 100, 100, 3), (200, 1, 4, 4), (200, 100, 100, 1)]
    {
        local(async {
            let world = World::new(peer);
            let pool = world.pool_with(PoolConfig { max_streams: ours, ..PoolConfig::default() }, Cancel::new());
            let mut held = vec![open(&pool, 1).await];
            settle().await;
            let more = (1..streams).map(|_| open(&pool, 1));
            held.extend(futures_util::future::join_all(more).await);
            assert_eq!(world.count(), connections, "{streams} streams at {peer}/{ours}");
            assert_eq!(world.0.dialing_max.get(), 1, "one dial at a time");
            let limit = ours.min(peer as usize);
            assert!(world.0.servers.borrow().iter().all(|s| s.most.get() <= limit));
            assert_eq!(pool.connections(), connections);
            drop(held);
            settle().await;
            assert!(world.0.servers.borrow().iter().all(|s| s.open.get() == 0));
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn keys_do_not_share() {
    local(async {
        let world = World::new(200);
        let pool = world.pool();
        let held = [open(&pool, 1).await, open(&pool, 2).await, open(&pool, 1).await];
        assert_eq!(world.count(), 2);
        assert_eq!((world.server(0).key, world.server(0).open.get()), (1, 2));
        assert_eq!((world.server(1).key, world.server(1).open.get()), (2, 1));
        let peers: Vec<_> = held.iter().map(|s| s.peer::<String>().unwrap().as_str()).collect();
        assert_eq!(peers, ["dial 1", "dial 2", "dial 1"], "each knows its connection's peer");
        assert!(held[0].peer::<u8>().is_none());
        pool.retire_where(|key| *key == 1);
        assert_eq!(pool.connections(), 1);
        drop(held);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_failed_dial_reaches_all_who_wait_and_is_not_kept() {
    local(async {
        let world = World::new(200);
        let pool = world.pool();
        world.0.fail.set(true);
        let all = futures_util::future::join_all((0..20).map(|_| error(&pool, 1))).await;
        assert_eq!(world.0.dials.get(), 1);
        for e in all {
            assert!(matches!(&e, PoolError::Connect(e) if e.0 == 1));
            assert_eq!(e.reason(|_| Reason::ConnectRefused), Reason::ConnectRefused);
        }
        world.0.fail.set(false);
        drop(open(&pool, 1).await);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dial_that_hangs_times_out_and_one_that_panics_is_told() {
    local(async {
        let world = World::new(200);
        let pool = world.pool();
        world.close_gate();
        let start = Instant::now();
        let e = error(&pool, 1).await;
        assert!(matches!(e, PoolError::ConnectTimeout(_)), "{e}");
        assert_eq!(start.elapsed().as_secs(), 10);
        world.0.gate.add_permits(100);
        world.0.panic.set(true);
        assert!(matches!(error(&pool, 1).await, PoolError::Closed));
        world.0.panic.set(false);
        drop(open(&pool, 1).await);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn who_gives_up_waiting_takes_nothing_with_him() {
    local(async {
        let world = World::new(200);
        let pool = world.pool();
        world.close_gate();
        let (impatient, patient) = (pool.clone(), pool.clone());
        let tracker = Tracker::new();
        let first = tracker.spawn_local("first", async move { drop(open(&impatient, 1).await) });
        settle().await;
        let (tx, rx) = tokio::sync::oneshot::channel();
        tracker.spawn_local("second", async move {
            let _ = tx.send(open(&patient, 1).await);
        });
        settle().await;
        first.abort();
        settle().await;
        world.0.gate.add_permits(1);
        let stream = rx.await.unwrap();
        settle().await;
        assert_eq!((world.0.dials.get(), world.server(0).open.get()), (1, 1), "the dial lived on, one stream");
        drop(stream);
        settle().await;
        assert_eq!(world.server(0).open.get(), 0);
        assert!(pool.inner.state.borrow().waiters.is_empty());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn idle_connections_go_after_five_minutes_and_not_before() {
    local(async {
        let world = World::new(200);
        let pool = world.pool();
        let (busy, idle) = (open(&pool, 1).await, open(&pool, 2).await);
        tokio::time::sleep(Duration::from_secs(1000)).await;
        drop(idle);
        tokio::time::sleep(Duration::from_secs(299)).await;
        assert_eq!(pool.connections(), 2);
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert_eq!(pool.connections(), 1);
        drop(busy);
        tokio::time::sleep(Duration::from_secs(301)).await;
        assert_eq!(pool.connections(), 0);
        let tasks = &pool.inner.tracker;
        assert_eq!(tasks.len(), 0, "nothing is left, the sweeper neither");
        drop(open(&pool, 1).await);
        assert_eq!((world.count(), tasks.len()), (3, 2));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_draining_peer_keeps_its_streams_and_gets_no_new_ones() {
    local(async {
        let world = World::new(200);
        let pool = world.pool();
        let old = open(&pool, 1).await;
        world.server(0).cancel.drain();
        // Asked for in the same moment, before the GOAWAY has arrived, and after.
        let racing = open(&pool, 1).await;
        settle().await;
        let new = open(&pool, 1).await;
        assert_eq!(world.count(), 2);
        assert_eq!(pool.connections(), 1);
        assert_eq!(world.server(0).open.get() + world.server(1).open.get(), 3);
        drop((old, racing));
        settle().await;
        assert_eq!(world.server(0).open.get(), 0);
        drop(new);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_lost_connection_is_replaced_without_the_caller_noticing() {
    local(async {
        let world = World::new(200);
        let pool = world.pool();
        let mut old = open(&pool, 1).await;
        world.server(0).cancel.force();
        // The pool cannot know yet: the request goes out on the dead connection and is asked again.
        let new = open(&pool, 1).await;
        assert_eq!(world.server(1).open.get(), 1);
        assert!(poll_fn(|cx| old.poll_recv(cx)).await.is_err());
        drop((old, new));
        settle().await;
        assert_eq!(pool.connections(), 1);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn drain_closes_what_is_idle_and_force_all() {
    local(async {
        let world = World::new(200);
        let cancel = Cancel::new();
        let pool = world.pool_with(PoolConfig::default(), cancel.clone());
        let (one, two) = (open(&pool, 1).await, open(&pool, 2).await);
        drop(two);
        settle().await;
        cancel.drain();
        settle().await;
        assert_eq!(pool.connections(), 1);
        // Still serves what arrives while draining, and does not keep it.
        drop(open(&pool, 3).await);
        settle().await;
        assert_eq!(pool.connections(), 1);
        drop(one);
        settle().await;
        assert_eq!((pool.connections(), pool.inner.tracker.len()), (0, 0));
        let mut last = open(&pool, 1).await;
        cancel.force();
        assert!(poll_fn(|cx| last.poll_recv(cx)).await.is_err());
        assert!(matches!(error(&pool, 1).await, PoolError::Closed));
        assert_eq!(pool.inner.tracker.len(), 0);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_dropped_pool_lets_its_streams_end() {
    local(async {
        let world = World::new(200);
        let pool = world.pool();
        let tasks = pool.inner.tracker.clone();
        let (busy, idle) = (open(&pool, 1).await, open(&pool, 2).await);
        drop((idle, pool));
        settle().await;
        assert_eq!(world.server(0).open.get(), 1);
        drop(busy);
        settle().await;
        // The sweeper notices at its next turn.
        tokio::time::sleep(Duration::from_secs(301)).await;
        assert_eq!(tasks.len(), 0);
        assert_eq!(world.0.tracker.len(), 0, "the servers have ended");
    })
    .await;
}

/// Sends `bytes` in pieces of 64 KiB; the servers take all.
async fn send(stream: &mut H2Stream, bytes: usize) {
    let piece = bytes::Bytes::from(vec![0; 64 << 10]);
    let mut left = bytes;
    while left > 0 {
        let mut bufs = BufList::new();
        bufs.push(piece.slice(..left.min(piece.len())));
        while !bufs.is_empty() {
            left -= poll_fn(|cx| stream.poll_send(cx, &mut bufs)).await.unwrap();
        }
    }
}

/// Requests that come while something large is under way share another connection; later ones the old one again.
#[tokio::test(start_paused = true)]
async fn streams_beside_bulk_have_a_connection_of_their_own() {
    local(async {
        let world = World::new(200);
        let pool = world.pool();
        let mut large = open(&pool, 1).await;
        let mut small = open(&pool, 1).await;
        send(&mut small, 1 << 20).await;
        drop(open(&pool, 1).await);
        assert_eq!(world.count(), 1, "a mebibyte is not bulk");
        send(&mut large, 8 << 20).await;
        let beside = futures_util::future::join_all((0..20).map(|_| open(&pool, 1))).await;
        assert_eq!((world.count(), world.server(0).open.get(), world.server(1).open.get()), (2, 2, 20));
        tokio::time::sleep(Duration::from_secs(1)).await;
        send(&mut large, 8 << 20).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        let still = open(&pool, 1).await;
        assert_eq!((world.count(), world.server(1).open.get()), (2, 21));
        tokio::time::sleep(Duration::from_secs(2)).await;
        let later = open(&pool, 1).await;
        assert_eq!((world.count(), world.server(0).open.get()), (2, 3));
        drop((beside, still, later, small));
        tokio::time::sleep(Duration::from_secs(301)).await;
        assert_eq!(pool.connections(), 1, "the second went idle");
        drop(large);
    })
    .await;
}

/// Bulk that comes from the peer counts as well.
#[tokio::test(start_paused = true)]
async fn downloads_are_bulk_too() {
    #[derive(Clone)]
    struct Source(Tracker, Rc<Cell<usize>>);
    impl Connect<u8> for Source {
        type Io = DuplexStream;
        type Error = DialError;
        async fn connect(&self, _: &u8) -> Result<DuplexStream, DialError> {
            self.1.set(self.1.get() + 1);
            let ((near, far), tasks) = (duplex(1 << 16), self.0.clone());
            self.0.spawn_local("source", async move {
                let handler = |request: ConnectRequest| async move {
                    let mut stream = request.accept(HeaderMap::new()).unwrap();
                    send(&mut stream, 8 << 20).await;
                    std::future::pending().await
                };
                let _ = server::serve(far, &ServerConfig::default(), handler, Cancel::new(), &tasks).await;
            });
            Ok(near)
        }
    }
    local(async {
        let source = Source(Tracker::new(), Rc::default());
        let pool = Pool::new(source.clone(), PoolConfig::default(), Cancel::new(), Tracker::new());
        let mut stream = open(&pool, 1).await;
        let mut left = 8 << 20;
        while left > 0 {
            let bytes = poll_fn(|cx| stream.poll_recv(cx)).await.unwrap().unwrap();
            stream.consumed(bytes.len());
            left -= bytes.len();
        }
        settle().await;
        drop(open(&pool, 1).await);
        assert_eq!(source.1.get(), 2);
    })
    .await;
}

/// A peer that takes no second connection, or not soon: the stream goes beside the bulk, after a tenth of a second at most.
#[tokio::test(start_paused = true)]
async fn a_second_connection_that_cannot_be_had_delays_nobody_for_long() {
    for fails in [true, false] {
        local(async {
            let world = World::new(200);
            let pool = world.pool();
            let mut large = open(&pool, 1).await;
            send(&mut large, 8 << 20).await;
            world.0.fail.set(fails);
            if !fails {
                world.close_gate();
            }
            let start = Instant::now();
            let beside = open(&pool, 1).await;
            let waited = start.elapsed().as_millis();
            assert_eq!((world.0.dials.get(), world.server(0).open.get()), (2, 2));
            assert_eq!(waited / 10, if fails { 0 } else { 10 }, "{waited} ms");
            drop((large, beside));
        })
        .await;
    }
}

/// A peer that is gone without a word: PINGs find out, and the streams break.
#[tokio::test(start_paused = true)]
async fn a_silent_peer_is_given_up() {
    struct Mute(RefCell<Option<DuplexStream>>);
    impl Connect<u8> for Mute {
        type Io = DuplexStream;
        type Error = DialError;
        async fn connect(&self, _: &u8) -> Result<DuplexStream, DialError> {
            self.0.take().ok_or(DialError(0))
        }
    }
    local(async {
        let (near, far) = duplex(1 << 16);
        let client = ClientConfig {
            keepalive: Keepalive { interval: Duration::from_secs(10), timeout: Duration::from_secs(20) },
            response_timeout: Duration::from_secs(3600),
            ..ClientConfig::default()
        };
        let config = PoolConfig { client, ..PoolConfig::default() };
        let pool = Pool::new(Mute(RefCell::new(Some(near))), config, Cancel::new(), Tracker::new());
        let start = Instant::now();
        let e = error(&pool, 1).await;
        assert!(matches!(&e, PoolError::Stream(e) if e.is_connection_lost()), "{e}");
        assert_eq!(start.elapsed().as_secs(), 30);
        assert_eq!(pool.connections(), 0);
        drop(far);
    })
    .await;
}

/// REFUSED_STREAM and a GOAWAY that does not cover the stream are asked again, but not for ever.
#[tokio::test(start_paused = true)]
async fn a_peer_that_refuses_every_connection_is_given_up() {
    #[derive(Clone, Default)]
    struct Rude(Rc<Cell<usize>>);
    impl Connect<u8> for Rude {
        type Io = DuplexStream;
        type Error = DialError;
        async fn connect(&self, _: &u8) -> Result<DuplexStream, DialError> {
            self.0.set(self.0.get() + 1);
            let (near, far) = duplex(1 << 16);
            Tracker::new().spawn_local("rude", async move {
                let mut raw = Raw(far);
                let mut preface = [0; 24];
                raw.0.read_exact(&mut preface).await.unwrap();
                raw.send(Frame::new(SETTINGS, 0, 0, &[])).await;
                raw.answer().await;
                raw.send(Frame::new(GOAWAY, 0, 0, &[0; 8])).await;
                while raw.next().await.is_some() {}
            });
            Ok(near)
        }
    }
    local(async {
        let rude = Rude::default();
        let pool = Pool::new(rude.clone(), PoolConfig::default(), Cancel::new(), Tracker::new());
        let e = error(&pool, 1).await;
        assert!(matches!(&e, PoolError::Stream(e) if e.is_unprocessed()), "{e}");
        assert_eq!(rude.0.get(), 1 + RETRIES);
    })
    .await;
}
