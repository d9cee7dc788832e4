use super::*;
use crate::client::{self, HboneRequest};
use crate::config::{ClientConfig, ServerConfig, Windows};
use crate::server::{self, ConnectRequest};
use crate::stream::H2Stream;
use crate::transport::IoTransport;
use aquifer_runtime::{Cancel, Tracker};
use bytes::Bytes;
use http::HeaderMap;
use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::LocalSet;

/// A connected pair of HBONE streams: client's and server's.
pub(crate) async fn h2_pair(windows: Windows) -> (H2Stream, H2Stream) {
    let (near, far) = duplex(64 << 10);
    let (tx, mut rx) = mpsc::unbounded_channel();
    let tracker = Tracker::new();
    let (tasks, config) = (tracker.clone(), ServerConfig { windows, ..ServerConfig::default() });
    tracker.spawn_local("test-server", async move {
        let handler = move |request: ConnectRequest| {
            let tx = tx.clone();
            async move {
                let _ = tx.send(request.accept(HeaderMap::new()).unwrap());
            }
        };
        let _ = server::serve(far, &config, handler, Cancel::new(), &tasks).await;
    });
    let config = ClientConfig { windows, ..ClientConfig::default() };
    let (client, driver) = client::handshake(near, &config).await.unwrap();
    tracker.spawn_local("test-client", async move {
        let _ = driver.run().await;
    });
    let request = HboneRequest { authority: "10.0.0.1:80".into(), headers: HeaderMap::new() };
    let (stream, _) = client.connect(&request).await.unwrap();
    (stream, rx.recv().await.unwrap())
}

async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

/// app ⇄ [near copy] ⇄ HBONE ⇄ [far copy] ⇄ server, the whole path of a mesh connection.
struct Path {
    app: DuplexStream,
    server: DuplexStream,
    near: tokio::task::JoinHandle<()>,
    far: tokio::task::JoinHandle<()>,
    counters: Rc<Counters>,
    outcome: Rc<RefCell<VecDeque<Result<(), CopyError>>>>,
}

async fn path(windows: Windows) -> Path {
    let (mut client_stream, mut server_stream) = h2_pair(windows).await;
    let (app, app_far) = duplex(1024);
    let (server, server_far) = duplex(1024);
    let tracker = Tracker::new();
    let counters = Rc::new(Counters::default());
    let outcome = Rc::new(RefCell::new(VecDeque::new()));
    let (c, o) = (counters.clone(), outcome.clone());
    let near = tracker.spawn_local("near", async move {
        let result = copy_bidirectional(&mut IoTransport::new(app_far), &mut client_stream, &c).await;
        o.borrow_mut().push_back(result);
    });
    let o = outcome.clone();
    let far = tracker.spawn_local("far", async move {
        let counters = Counters::default();
        let result = copy_bidirectional(&mut server_stream, &mut IoTransport::new(server_far), &counters).await;
        o.borrow_mut().push_back(result);
    });
    Path { app, server, near, far, counters, outcome }
}

impl Path {
    async fn done(self) -> (u64, u64) {
        self.near.await.unwrap();
        self.far.await.unwrap();
        for result in self.outcome.borrow_mut().drain(..) {
            result.unwrap();
        }
        self.counters.get()
    }
}

#[tokio::test(start_paused = true)]
async fn the_client_ends_first_and_still_hears_the_answer() {
    local(async {
        let mut p = path(Windows::default()).await;
        p.app.write_all(b"request").await.unwrap();
        p.app.shutdown().await.unwrap();
        let mut got = Vec::new();
        p.server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"request");
        // The end has come through; the other direction works as before.
        p.server.write_all(b"a long answer").await.unwrap();
        p.server.shutdown().await.unwrap();
        let mut answer = Vec::new();
        p.app.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"a long answer");
        assert_eq!(p.done().await, (7, 13));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn the_server_speaks_and_ends_first() {
    local(async {
        let mut p = path(Windows::default()).await;
        p.server.write_all(b"220 ready").await.unwrap();
        p.server.shutdown().await.unwrap();
        let mut greeting = Vec::new();
        p.app.read_to_end(&mut greeting).await.unwrap();
        assert_eq!(greeting, b"220 ready");
        p.app.write_all(b"late words").await.unwrap();
        p.app.shutdown().await.unwrap();
        let mut got = Vec::new();
        p.server.read_to_end(&mut got).await.unwrap();
        assert_eq!(got, b"late words");
        assert_eq!(p.done().await, (10, 9));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn megabytes_pass_unchanged_both_ways() {
    local(async {
        let p = path(Windows { stream: 64 << 10, connection: 128 << 10, ..Windows::default() }).await;
        let data: Vec<u8> = (0..3_000_000_u32).map(|i| (i * 7 + i / 251) as u8).collect();
        let Path { app, server, near, far, counters, outcome } = p;
        let both = |io: DuplexStream| {
            let data = &data;
            async move {
                let (mut r, mut w) = tokio::io::split(io);
                let mut got = Vec::new();
                let write = async {
                    w.write_all(data).await.unwrap();
                    w.shutdown().await.unwrap();
                };
                let read = async { r.read_to_end(&mut got).await.unwrap() };
                tokio::join!(write, read);
                assert!(got == *data);
            }
        };
        tokio::join!(both(app), both(server));
        near.await.unwrap();
        far.await.unwrap();
        assert!(outcome.borrow().iter().all(Result::is_ok));
        assert_eq!(counters.get(), (3_000_000, 3_000_000));
    })
    .await;
}

/// What a stream's end looks like to its peer.
#[tokio::test(start_paused = true)]
async fn resets_read_as_end_or_as_failure() {
    use h2::Reason;
    for (reason, orderly) in [
        (Reason::NO_ERROR, true),
        (Reason::CANCEL, true),
        (Reason::CONNECT_ERROR, false),
        (Reason::INTERNAL_ERROR, false),
        (Reason::PROTOCOL_ERROR, false),
        (Reason::REFUSED_STREAM, false),
    ] {
        local(async {
            let (mut near, mut far) = h2_pair(Windows::default()).await;
            far.reset(reason);
            let got = poll_fn(|cx| near.poll_recv(cx)).await;
            match got {
                Ok(None) => assert!(orderly, "{reason:?} read as end"),
                Err(e) => {
                    assert!(!orderly, "{reason:?} read as {e}");
                    assert_eq!(e.kind(), io::ErrorKind::ConnectionReset);
                }
                Ok(Some(_)) => panic!("no data was sent"),
            }
            let mut bufs = BufList::new();
            bufs.push(Bytes::from_static(b"x"));
            let sent = poll_fn(|cx| near.poll_send(cx, &mut bufs)).await.unwrap_err();
            let kind = if orderly { io::ErrorKind::BrokenPipe } else { io::ErrorKind::ConnectionReset };
            assert_eq!(sent.kind(), kind, "{reason:?}");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_dropped_stream_reads_as_end_and_a_lost_connection_does_not() {
    local(async {
        let (mut near, far) = h2_pair(Windows::default()).await;
        drop(far);
        assert!(matches!(poll_fn(|cx| near.poll_recv(cx)).await, Ok(None)));
    })
    .await;
    let (near, far) = duplex(1 << 16);
    local(async move {
        let tracker = Tracker::new();
        let server = tracker.spawn_local("server", async move {
            let mut h2 = h2::server::handshake(far).await.unwrap();
            let (_, mut respond) = h2.accept().await.unwrap().unwrap();
            let _stream = respond.send_response(http::Response::new(()), false).unwrap();
            let _ = tokio::time::timeout(Duration::from_secs(1), h2.accept()).await;
        });
        let (client, driver) = client::handshake(near, &ClientConfig::default()).await.unwrap();
        tracker.spawn_local("client", async move {
            let _ = driver.run().await;
        });
        let request = HboneRequest { authority: "a:1".into(), headers: HeaderMap::new() };
        let (mut stream, _) = client.connect(&request).await.unwrap();
        server.await.unwrap();
        assert!(poll_fn(|cx| stream.poll_recv(cx)).await.is_err());
    })
    .await;
}

/// A transport made of prepared receipts, which records what is done to it.
#[derive(Default)]
struct Script {
    recv: VecDeque<io::Result<Option<Bytes>>>,
    send_error: Option<io::ErrorKind>,
    sent: Vec<u8>,
    ended: bool,
    aborted: bool,
    consumed: usize,
}

impl Transport for Script {
    fn poll_recv(&mut self, _: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        self.recv.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    fn consumed(&mut self, n: usize) {
        self.consumed += n;
    }

    fn poll_send(&mut self, _: &mut Context<'_>, bufs: &mut BufList) -> Poll<io::Result<usize>> {
        if let Some(kind) = self.send_error {
            return Poll::Ready(Err(kind.into()));
        }
        let bytes = bufs.take_front(usize::MAX);
        self.sent.extend_from_slice(&bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_flush(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended = true;
        Poll::Ready(Ok(()))
    }

    fn abort(&mut self) {
        self.aborted = true;
    }
}

fn data(s: &'static str) -> io::Result<Option<Bytes>> {
    Ok(Some(Bytes::from_static(s.as_bytes())))
}

#[tokio::test(start_paused = true)]
async fn a_receive_error_aborts_both_and_names_its_side() {
    for broken in [Side::Downstream, Side::Upstream] {
        let (mut d, mut u) = (Script::default(), Script::default());
        let side = if broken == Side::Downstream { &mut d } else { &mut u };
        side.recv = [data("last words"), Err(io::ErrorKind::ConnectionReset.into())].into();
        let e = copy_bidirectional(&mut d, &mut u, &Counters::default()).await.unwrap_err();
        assert_eq!((e.side, e.op, e.source.kind()), (broken, Op::Recv, io::ErrorKind::ConnectionReset));
        assert!(d.aborted && u.aborted && !d.ended && !u.ended);
        let other = if broken == Side::Downstream { &u } else { &d };
        assert_eq!(other.sent, b"last words");
    }
}

#[tokio::test(start_paused = true)]
async fn when_one_takes_no_more_what_it_said_is_still_delivered() {
    // (error of the send, whether the other side is told that it broke)
    for (kind, aborted) in [(io::ErrorKind::BrokenPipe, false), (io::ErrorKind::ConnectionReset, true)] {
        let (mut d, mut u) = (Script::default(), Script::default());
        d.recv = [data("unwanted")].into();
        u.send_error = Some(kind);
        u.recv = [data("the "), data("answer"), Ok(None)].into();
        let counters = Counters::default();
        let e = copy_bidirectional(&mut d, &mut u, &counters).await.unwrap_err();
        assert_eq!((e.side, e.op, e.source.kind()), (Side::Upstream, Op::Send, kind));
        assert_eq!(d.sent, b"the answer");
        assert_eq!((d.ended, d.aborted), (!aborted, aborted), "{kind:?}");
        assert_eq!(counters.get(), (0, 10));
        assert_eq!((d.consumed, u.consumed), (0, 10), "credit only for what has left");
    }
}

/// A reader that stalls must not make us hold more than the windows, and must not stall other streams.
#[tokio::test(start_paused = true)]
async fn a_stalled_reader_holds_no_more_than_the_windows() {
    local(async {
        let windows = Windows {
            stream: 64 << 10,
            connection: 1 << 20,
            frame: 1 << 14,
            send_buffer: 64 << 10,
            ..Windows::default()
        };
        let mut p = path(windows).await;
        let written = Rc::new(RefCell::new(0_usize));
        let w = written.clone();
        let (reader, mut writer) = tokio::io::split(p.app);
        let pump = Tracker::new().spawn_local("pump", async move {
            let chunk = [7_u8; 4096];
            while writer.write_all(&chunk).await.is_ok() {
                *w.borrow_mut() += chunk.len();
            }
        });
        // Nobody reads at the server: all comes to rest (the paused clock advances only when it has).
        tokio::time::sleep(Duration::from_secs(3)).await;
        let at_rest = *written.borrow();
        // The window, our send buffer, what the copies gather, and the pipes.
        let bound = (64 << 10) + (64 << 10) + 2 * super::GATHER + (64 << 10) + 4 * 4096;
        assert!(at_rest >= 64 << 10, "{at_rest}");
        assert!(at_rest <= bound, "{at_rest} > {bound}");
        // It reads again: all goes on.
        let mut sink = vec![0; 1 << 20];
        p.server.read_exact(&mut sink).await.unwrap();
        assert!(*written.borrow() > at_rest);
        pump.abort();
        drop(reader);
    })
    .await;
}

/// A server that answers and resets in one go: the client reads the answer, then learns of the reset.
#[tokio::test(start_paused = true)]
async fn last_words_come_through_http2_before_the_failure() {
    local(async {
        let (mut near, mut far) = h2_pair(Windows::default()).await;
        let recv = [data("last "), data("words"), Err(io::ErrorKind::ConnectionReset.into())].into();
        let mut app = Script { recv, ..Script::default() };
        let e = copy_bidirectional(&mut far, &mut app, &Counters::default()).await.unwrap_err();
        assert_eq!((e.side, e.op), (Side::Upstream, Op::Recv));
        let mut got = vec![];
        let end = loop {
            match poll_fn(|cx| near.poll_recv(cx)).await {
                Ok(Some(bytes)) => got.extend_from_slice(&bytes),
                end => break end,
            }
        };
        assert_eq!(got, b"last words");
        assert_eq!(end.unwrap_err().kind(), io::ErrorKind::ConnectionReset);
    })
    .await;
}
