//! What a stranger may send, frame by frame: the connection is limited or closed with the right code, and nothing else
//! suffers.

use super::tests::*;
use super::*;
use crate::client::{self, HboneRequest};
use crate::config::ClientConfig;
use crate::raw::*;
use crate::transport::{BufList, Transport};
use crate::{H2Stream, raw};
use std::cell::Cell;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
use tokio::time::Instant;

pub(super) const PRIORITY: u8 = 2;
pub(super) const WINDOW_UPDATE: u8 = 8;
pub(super) const ACK: u8 = 1;
const CALM: u32 = 11;

pub(super) fn window_update(stream: u32, bytes: u32) -> Frame {
    Frame::new(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes())
}

pub(super) fn rst(stream: u32) -> Frame {
    Frame::new(RST_STREAM, 0, stream, &8_u32.to_be_bytes())
}

/// Another connection to a server of the same process, which must work whatever the hostile one does.
struct Neighbour {
    near: H2Stream,
    far: H2Stream,
}

impl Neighbour {
    async fn new() -> Self {
        let mut s = server(ServerConfig::default());
        let (_client, _driver, near, far) = connected(&mut s).await;
        Self { near, far }
    }

    async fn works(&mut self) {
        let mut bufs = BufList::new();
        bufs.push(Bytes::from_static(b"still served"));
        poll_fn(|cx| self.near.poll_send(cx, &mut bufs)).await.unwrap();
        let got = poll_fn(|cx| self.far.poll_recv(cx)).await.unwrap().unwrap();
        self.far.consumed(got.len());
        assert_eq!(got, "still served");
    }
}

/// Sends until the server hangs up. How many frames it took, and its GOAWAY.
async fn flood(raw: Raw, most: usize, mut frames: impl FnMut(usize) -> Vec<Frame>) -> (usize, Option<u32>) {
    let (mut read, mut write) = tokio::io::split(raw.0);
    let sent = Cell::new(0);
    let send = async {
        while sent.get() < most {
            let mut bytes = vec![];
            frames(sent.get()).iter().for_each(|frame| bytes.extend(frame.encode()));
            if write.write_all(&bytes).await.is_err() {
                break;
            }
            sent.set(sent.get() + 1);
            // One by one, as over a network: the server sees each by itself.
            tokio::task::yield_now().await;
        }
        // What is left unsaid then is a server that waits.
        tokio::time::sleep(Duration::from_secs(100)).await;
    };
    let listen = async {
        let mut code = None;
        while let Some(frame) = raw::read_frame(&mut read).await {
            if frame.kind == GOAWAY && frame.error() != 0 {
                code = Some(frame.error());
            }
        }
        code
    };
    let code = tokio::select! {
        biased;
        code = listen => code,
        () = send => None,
    };
    (sent.get(), code)
}

/// (what, the frames of each round, rounds until the end at most)
type Attack = (&'static str, fn(usize) -> Vec<Frame>, usize);

pub(super) fn stream(i: usize) -> u32 {
    2 * u32::try_from(i).unwrap() + 1
}

const ATTACKS: &[Attack] = &[
    ("SETTINGS", |_| vec![Frame::new(SETTINGS, 0, 0, &[])], 400),
    (
        "SETTINGS that change windows",
        |i| {
            let size = 1000 * (i as u32 % 60);
            vec![Frame::new(SETTINGS, 0, 0, &[&[0, 4][..], &size.to_be_bytes()].concat())]
        },
        400,
    ),
    ("PING", |_| vec![Frame::new(PING, 0, 0, &[7; 8])], 400),
    ("answers to PINGs that were never sent", |_| vec![Frame::new(PING, ACK, 0, &[7; 8])], 400),
    ("PRIORITY", |i| vec![Frame::new(PRIORITY, 0, stream(i), &[0, 0, 0, 0, 16])], 400),
    (
        "dependencies on each other",
        |i| vec![Frame::new(PRIORITY, 0, stream(i), &[&(stream(i) + 2).to_be_bytes()[..], &[255]].concat())],
        400,
    ),
    ("unknown frames", |i| vec![Frame::new(0x20 + (i % 200) as u8, 0xff, 1, &[0; 100])], 400),
    ("WINDOW_UPDATE of the connection", |_| vec![window_update(0, 1)], 11_000),
    (
        "WINDOW_UPDATE of a stream",
        |i| {
            let open = if i == 0 { vec![Frame::headers(1, 0, CONNECT)] } else { vec![] };
            [open, vec![window_update(1, 1)]].concat()
        },
        11_000,
    ),
    (
        "empty DATA",
        |i| {
            let open = if i == 0 { vec![Frame::headers(1, 0, CONNECT)] } else { vec![] };
            [open, vec![Frame::new(DATA, 0, 1, &[])]].concat()
        },
        400,
    ),
    (
        "DATA that is only padding",
        |i| {
            let open = if i == 0 { vec![Frame::headers(1, 0, CONNECT)] } else { vec![] };
            [open, vec![Frame::new(DATA, 8, 1, &[3, 0, 0, 0])]].concat()
        },
        400,
    ),
    (
        "CONTINUATION without end, empty",
        |i| vec![if i == 0 { Frame::new(HEADERS, 0, 1, &block(CONNECT)) } else { Frame::new(CONTINUATION, 0, 1, &[]) }],
        20,
    ),
    (
        "CONTINUATION without end, with headers",
        |i| {
            let part = block(&[("x", "y")]);
            vec![if i == 0 {
                Frame::new(HEADERS, 0, 1, &block(CONNECT))
            } else {
                Frame::new(CONTINUATION, 0, 1, &part)
            }]
        },
        20,
    ),
    (
        "header lists far too large",
        |i| {
            // 48 MB in 16 kB: one entry of the dynamic table (RFC 7541, 6.2.1: 4000 bytes), named again and again.
            let mut large = block(CONNECT);
            large.extend([0x40, 1, b'x', 127, 161, 30]);
            large.extend([b'y'; 4000]);
            large.extend(std::iter::repeat_n(0xbe, 12_000));
            vec![Frame::new(HEADERS, END_HEADERS, stream(i), &large)]
        },
        20,
    ),
    ("streams above the limit", |i| vec![Frame::headers(stream(i), 0, CONNECT)], 2_000),
    (
        "DATA for streams that are over",
        |i| vec![if i == 0 { Frame::headers(100_001, 0, CONNECT) } else { Frame::new(DATA, 0, stream(i), b"x") }],
        2_000,
    ),
    ("streams opened and reset at once", |i| vec![Frame::headers(stream(i), 0, CONNECT), rst(stream(i))], 2_000),
    (
        "resets of a stream that has ended",
        |i| {
            let open = if i == 0 { vec![Frame::headers(1, 0, CONNECT)] } else { vec![] };
            [open, vec![rst(1)]].concat()
        },
        11_000,
    ),
];

#[tokio::test(start_paused = true)]
async fn floods_end_with_enhance_your_calm() {
    for (what, frames, most) in ATTACKS {
        local(async {
            let mut neighbour = Neighbour::new().await;
            let mut s = server(ServerConfig::default());
            let raw = Raw::client(s.io).await;
            let seen = Rc::new(Cell::new(0));
            let (tracker, count) = (s.tracker.clone(), seen.clone());
            // As a handler does: it waits for the application until the client gives up.
            s.tracker.spawn_local("requests", async move {
                while let Some(mut request) = s.requests.recv().await {
                    count.set(count.get() + 1);
                    tracker.spawn_local("wait", async move { request.abandoned().await });
                }
            });
            let (rounds, code) = flood(raw, 2 * most, frames).await;
            println!("{what}: {rounds} rounds, {} requests, {code:?}", seen.get());
            assert_eq!(code, Some(CALM), "{what} after {rounds} rounds");
            assert!(rounds <= *most, "{what}: {rounds} rounds");
            s.task.await.unwrap();
            assert!(matches!(s.outcome.take(), Some(Err(e)) if !e.is_disconnect()), "{what}");
            neighbour.works().await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            assert_eq!(s.tracker.panics(), 0);
        })
        .await;
    }
}

/// Frames that break the protocol, with the code that RFC 9113 asks for.
#[tokio::test(start_paused = true)]
async fn broken_frames_end_the_connection_or_their_stream() {
    let open = || Frame::headers(1, 0, CONNECT);
    let max = (1 << 31) - 1;
    // (what, frames, kind and code of the answer)
    let cases: Vec<(&str, Vec<Frame>, (u8, u32))> = vec![
        ("connection window above 2^31-1", vec![window_update(0, max)], (GOAWAY, 3)),
        ("stream window above 2^31-1", vec![open(), window_update(1, max)], (RST_STREAM, 3)),
        ("an update of nothing", vec![window_update(0, 0)], (GOAWAY, 1)),
        ("a window above 2^31-1", vec![Frame::new(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])], (GOAWAY, 1)),
        ("SETTINGS of odd length", vec![Frame::new(SETTINGS, 0, 0, &[0, 4, 0])], (GOAWAY, 1)),
        (
            "a stream that depends on itself",
            vec![open(), Frame::new(PRIORITY, 0, 1, &[0, 0, 0, 1, 0])],
            (RST_STREAM, 1),
        ),
        ("DATA for no stream", vec![Frame::new(DATA, 0, 0, b"x")], (GOAWAY, 1)),
        ("DATA before HEADERS", vec![Frame::new(DATA, 0, 5, b"x")], (GOAWAY, 1)),
        ("padding longer than the frame", vec![open(), Frame::new(DATA, 8, 1, &[200, 1, 2])], (GOAWAY, 1)),
        ("CONTINUATION of nothing", vec![Frame::new(CONTINUATION, 4, 1, &[])], (GOAWAY, 1)),
        (
            "CONTINUATION of another stream",
            vec![Frame::new(HEADERS, 0, 1, &block(CONNECT)), Frame::new(CONTINUATION, 4, 3, &[])],
            (GOAWAY, 1),
        ),
        (
            "another frame within a header block",
            vec![Frame::new(HEADERS, 0, 1, &block(CONNECT)), Frame::new(PING, 0, 0, &[0; 8])],
            (GOAWAY, 1),
        ),
        ("a header block that is none", vec![Frame::new(HEADERS, 4, 1, &[0xff; 20])], (GOAWAY, 1)),
        ("a stream of ours", vec![Frame::headers(2, 0, CONNECT)], (GOAWAY, 1)),
        ("an older stream", vec![Frame::headers(5, 0, CONNECT), Frame::headers(3, 0, CONNECT)], (GOAWAY, 1)),
        ("a promise", vec![Frame::new(5, 4, 1, &[0, 0, 0, 2])], (GOAWAY, 1)),
    ];
    for (what, frames, expect) in cases {
        local(async {
            let mut neighbour = Neighbour::new().await;
            let s = server(ServerConfig::default());
            let mut raw = Raw::client(s.io).await;
            for frame in frames {
                raw.send(frame).await;
            }
            let answer = raw.answer().await.unwrap_or_else(|| panic!("{what}: hung up without a word"));
            assert_eq!((answer.kind, answer.error()), expect, "{what}");
            if expect.0 == GOAWAY {
                s.task.await.unwrap();
                assert!(matches!(s.outcome.take(), Some(Err(ServeError::Http2(_)))), "{what}");
            }
            neighbour.works().await;
        })
        .await;
    }
}

/// Any bytes after the preface: an answer or a hang-up, no panic, and no more tasks than streams.
#[test]
fn no_bytes_make_the_server_panic() {
    use proptest::prelude::*;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().start_paused(true).build().unwrap();
    let frame = (0..12_u8, any::<u8>(), 0..8_u32, proptest::collection::vec(any::<u8>(), 0..60));
    proptest!(|(frames in proptest::collection::vec(frame, 0..30), tail in proptest::collection::vec(any::<u8>(), 0..40))| {
        runtime.block_on(local(async {
            let mut s = server(ServerConfig::default());
            let mut raw = Raw::client(std::mem::replace(&mut s.io, duplex(1).0)).await;
            for (kind, flags, stream, payload) in frames {
                if !raw.try_send(Frame::new(kind, flags, stream, &payload)).await {
                    break;
                }
            }
            let _ = raw.0.write_all(&tail).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
            drop(raw);
            while let Ok(request) = s.requests.try_recv() {
                drop(request);
            }
            s.task.await.unwrap();
            assert_eq!(s.tracker.panics(), 0);
        }));
    });
}

/// Each in its own time, from an opened connection to a request.
#[tokio::test(start_paused = true)]
async fn the_slow_are_sent_away() {
    // Bytes that are sent at the start, one more each second, seconds until the end, whether a GOAWAY is sent.
    type Case = (&'static str, Vec<u8>, Vec<u8>, u64, Option<u32>);
    let settings = Frame::new(SETTINGS, 0, 0, &[]).encode();
    let headers = Frame::new(HEADERS, 0, 1, &block(CONNECT)).encode();
    let cases: Vec<Case> = vec![
        ("silence", vec![], vec![], 10, None),
        ("half a preface", PREFACE[..12].to_vec(), vec![], 10, None),
        ("a preface byte by byte", vec![], PREFACE.to_vec(), 10, None),
        ("a preface and no more", PREFACE.to_vec(), vec![], 30, Some(0)),
        ("a preface, SETTINGS, no request", [PREFACE, &settings].concat(), vec![], 30, Some(0)),
        ("half a header block", [PREFACE, &settings, &headers].concat(), vec![], 30, Some(0)),
        (
            "a header block byte by byte",
            [PREFACE, &settings].concat(),
            [vec![0, 0, 200, 1, 4, 0, 0, 0, 1], vec![0; 200]].concat(),
            30,
            Some(0),
        ),
    ];
    for (what, start, drip, seconds, goaway) in cases {
        local(async {
            let mut neighbour = Neighbour::new().await;
            // No PING, so that only the deadline ends it.
            let keepalive = crate::Keepalive { interval: Duration::from_secs(1000), ..Default::default() };
            let s = server(ServerConfig { keepalive, ..ServerConfig::default() });
            let begin = Instant::now();
            let (mut read, mut write) = tokio::io::split(s.io);
            write.write_all(&start).await.unwrap();
            s.tracker.spawn_local("drip", async move {
                for byte in drip {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    if write.write_all(&[byte]).await.is_err() {
                        return;
                    }
                }
                std::future::pending::<()>().await;
                drop(write);
            });
            let mut said = None;
            while let Some(frame) = read_frame(&mut read).await {
                if frame.kind == GOAWAY {
                    said = Some(frame.error());
                }
            }
            s.task.await.unwrap();
            assert_eq!((begin.elapsed().as_secs(), said), (seconds, goaway), "{what}");
            assert!(matches!(s.outcome.take(), Some(Err(e)) if e.is_disconnect()), "{what}");
            neighbour.works().await;
        })
        .await;
    }
}

/// With a stream open, one that stops in the middle of a frame cannot answer our PING either.
#[tokio::test(start_paused = true)]
async fn one_that_stops_within_a_frame_is_noticed() {
    local(async {
        let mut s = server(ServerConfig::default());
        let mut raw = Raw::client(s.io).await;
        raw.send(Frame::headers(1, 0, CONNECT)).await;
        let _open = s.requests.recv().await.unwrap().accept(HeaderMap::new()).unwrap();
        let begin = Instant::now();
        raw.0.write_all(&Frame::new(DATA, 0, 1, &[0; 1000]).encode()[..500]).await.unwrap();
        s.task.await.unwrap();
        assert_eq!(begin.elapsed().as_secs(), 30);
        assert!(matches!(s.outcome.take(), Some(Err(ServeError::PingTimeout(_)))));
    })
    .await;
}

/// One that floods and does not read: its GOAWAY cannot be written, and it is gone all the same.
#[tokio::test(start_paused = true)]
async fn one_that_does_not_read_cannot_stay() {
    local(async {
        let (near, far) = duplex(512);
        let (cancel, tracker) = (Cancel::new(), Tracker::new());
        let tasks = tracker.clone();
        let served = tracker.spawn_local("serve", async move {
            let handler = |request: ConnectRequest| async move { drop(request) };
            serve(far, &ServerConfig::default(), handler, cancel, &tasks).await.unwrap_err();
        });
        let begin = Instant::now();
        let (_never_read, mut write) = tokio::io::split(near);
        let mut bytes = [PREFACE, &Frame::new(SETTINGS, 0, 0, &[]).encode()].concat();
        for _ in 0..100_000 {
            bytes.extend(Frame::new(PING, 0, 0, &[1; 8]).encode());
        }
        let mut taken = 0;
        let send = async {
            for chunk in bytes.chunks(17) {
                if write.write_all(chunk).await.is_err() {
                    return;
                }
                taken += chunk.len();
            }
        };
        // What cannot be answered is not read, and the PING of ours is not answered.
        let _ = tokio::time::timeout(Duration::from_secs(60), send).await;
        assert!(taken < 64 << 10, "{taken} bytes of PINGs were taken");
        served.await.unwrap();
        assert!(begin.elapsed() <= Duration::from_secs(60), "{:?}", begin.elapsed());
    })
    .await;
}

/// One that has us reset streams, and reads none of it: what we hold for it has an end.
#[tokio::test(start_paused = true)]
async fn resets_for_one_that_does_not_read_are_not_held_for_ever() {
    local(async {
        let (near, far) = duplex(512);
        let (cancel, tracker) = (Cancel::new(), Tracker::new());
        let (tasks, outcome) = (tracker.clone(), Rc::new(Cell::new(None)));
        let result = outcome.clone();
        let served = tracker.spawn_local("serve", async move {
            let handler = |request: ConnectRequest| async move { std::mem::forget(request) };
            result.set(serve(far, &ServerConfig::default(), handler, cancel, &tasks).await.err());
        });
        let (_never_read, mut write) = tokio::io::split(near);
        write.write_all(&[PREFACE, &Frame::new(SETTINGS, 0, 0, &[]).encode()].concat()).await.unwrap();
        write.write_all(&Frame::headers(1_000_001, 0, CONNECT).encode()).await.unwrap();
        let mut taken = 0;
        for i in 0..100_000 {
            if write.write_all(&Frame::new(DATA, 0, stream(i), b"x").encode()).await.is_err() {
                break;
            }
            taken = i;
        }
        served.await.unwrap();
        println!("{taken} resets, then {}", outcome.take().expect("an error"));
        assert!(taken < 20_000, "{taken} resets were held");
    })
    .await;
}

fn poll_once<T>(mut poll: impl FnMut(&mut std::task::Context<'_>) -> Poll<T>) -> Option<T> {
    let mut cx = std::task::Context::from_waker(std::task::Waker::noop());
    match poll(&mut cx) {
        Poll::Ready(done) => Some(done),
        Poll::Pending => None,
    }
}

/// How much of an endless source a stream takes.
async fn taken(stream: &mut H2Stream) -> usize {
    let (chunk, mut taken) = (Bytes::from(vec![0; 64 << 10]), 0);
    let mut idle = 0;
    while idle < 20 {
        let mut bufs = BufList::new();
        bufs.push(chunk.clone());
        match poll_once(|cx| stream.poll_send(cx, &mut bufs)) {
            Some(sent) => taken += sent.unwrap(),
            None => idle += 1,
        }
        tokio::task::yield_now().await;
    }
    taken
}

/// A client that never opens its windows, or opens them wide and does not read: we hold no more than the send buffers.
#[tokio::test(start_paused = true)]
async fn data_for_one_that_takes_none_is_not_held() {
    for (what, window, most) in
        [("zero windows", 0_u32, 0), ("wide windows", (1 << 31) - 1, crate::Windows::default().send_buffer)]
    {
        local(async {
            let mut neighbour = Neighbour::new().await;
            let mut s = server(ServerConfig::default());
            let mut raw = Raw(s.io);
            raw.0.write_all(PREFACE).await.unwrap();
            raw.send(Frame::new(SETTINGS, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat())).await;
            if window > 0 {
                raw.send(window_update(0, (1 << 31) - 1 - 65_535)).await;
            }
            let mut open = vec![];
            for i in 0..200 {
                raw.send(Frame::headers(stream(i), 0, CONNECT)).await;
                open.push(s.requests.recv().await.unwrap().accept(HeaderMap::new()).unwrap());
            }
            let mut total = 0;
            for stream in &mut open {
                total += taken(stream).await;
            }
            // The pipe to the client takes a megabyte, as a socket does.
            let bound = 200 * most + (1 << 20) + (64 << 10);
            println!("{what}: {total} bytes taken for 200 streams, bound {bound}");
            assert!(total <= bound, "{what}: {total} > {bound}");
            assert!(window > 0 || total == 0);
            neighbour.works().await;
        })
        .await;
    }
}

/// A client that sends to readers that stall gets as far as the connection's limit, however many streams it uses.
#[tokio::test(start_paused = true)]
async fn what_a_client_may_send_is_limited_per_connection_and_pod() {
    for acknowledges in [true, false] {
        local(async {
            let budget = Budget::new(4 << 20);
            let (mut all, mut kept) = (0, vec![]);
            for _ in 0..3 {
                let s = server_within(ServerConfig::default(), budget.clone());
                let (sent, connection) = sent_to_stalled(s, acknowledges).await;
                all += sent;
                kept.push(connection);
            }
            println!("acknowledges: {acknowledges}: {all} bytes on three connections, {} counted", budget.used());
            assert!(all as u64 <= budget.used());
            assert!(all <= (4 << 20) + 3 * (1 << 16), "{all}");
            let s = server_within(ServerConfig::default(), Budget::default());
            let (one, _) = sent_to_stalled(s, acknowledges).await;
            println!("acknowledges: {acknowledges}: {one} bytes on one connection");
            assert!(one <= 16 << 20, "{one}");
        })
        .await;
    }
}

/// Opens 200 streams and sends on each what its windows allow, by the book. Returns how much that was, and what keeps
/// the connection open.
async fn sent_to_stalled(mut s: Server, acknowledges: bool) -> (usize, Box<dyn std::any::Any>) {
    let raw = Raw::client(std::mem::replace(&mut s.io, duplex(1).0)).await;
    let (mut read, mut write) = tokio::io::split(raw.0);
    let (mut connection, mut initial, mut held) = (65_535_i64, 65_535_i64, vec![]);
    let mut sent = vec![0_i64; 200];
    for round in 0..3 {
        for (i, sent) in sent.iter_mut().enumerate() {
            if round == 0 {
                write.write_all(&Frame::headers(stream(i), 0, CONNECT).encode()).await.unwrap();
                held.push(s.requests.recv().await.unwrap().accept(HeaderMap::new()).unwrap());
            }
            while let Ok(Some(frame)) = tokio::time::timeout(Duration::from_millis(1), read_frame(&mut read)).await {
                match (frame.kind, frame.stream) {
                    (SETTINGS, _) => {
                        let theirs = frame.flags & ACK == 0;
                        if acknowledges && theirs {
                            write.write_all(&Frame::new(SETTINGS, ACK, 0, &[]).encode()).await.unwrap();
                            let size = frame.settings().into_iter().find(|(id, _)| *id == 4);
                            initial = size.map_or(initial, |(_, size)| size.into());
                        }
                    }
                    (WINDOW_UPDATE, 0) => connection += i64::from(frame.error()),
                    (WINDOW_UPDATE, _) => panic!("credit for what nobody has read"),
                    _ => {}
                }
            }
            while connection > 0 && initial > *sent {
                let n = connection.min(initial - *sent).min(16 << 10);
                let data = Frame::new(DATA, 0, stream(i), &vec![0; n as usize]);
                write.write_all(&data.encode()).await.unwrap();
                (connection, *sent) = (connection - n, *sent + n);
            }
        }
    }
    assert!(!s.task.is_finished(), "it kept to the rules");
    (sent.iter().sum::<i64>() as usize, Box::new((s, read, write, held)))
}

/// A server that floods its clients is left.
#[tokio::test(start_paused = true)]
async fn a_client_leaves_a_server_that_floods() {
    for kind in [PING, SETTINGS, PRIORITY, WINDOW_UPDATE, 0x77] {
        local(async {
            let (near, far): (DuplexStream, DuplexStream) = duplex(1 << 16);
            let (client, driver) = client::handshake(near, &ClientConfig::default()).await.unwrap();
            let tracker = Tracker::new();
            let ended = tracker.spawn_local("driver", async move {
                let error = driver.run().await.unwrap_err();
                assert!(matches!(error, client::ConnectionError::Flood(_)), "{error}");
            });
            let mut raw = Raw(far);
            let mut preface = [0; 24];
            raw.0.read_exact(&mut preface).await.unwrap();
            raw.send(Frame::new(SETTINGS, 0, 0, &[])).await;
            let frame = match kind {
                PING => Frame::new(kind, 0, 0, &[0; 8]),
                SETTINGS => Frame::new(kind, 0, 0, &[]),
                PRIORITY => Frame::new(kind, 0, 1, &[0, 0, 0, 3, 0]),
                WINDOW_UPDATE => window_update(0, 1),
                _ => Frame::new(kind, 0, 0, &[0; 30]),
            };
            let (rounds, _) = flood(raw, 30_000, |_| vec![frame.clone()]).await;
            assert!(rounds < 12_000, "{kind}: {rounds}");
            ended.await.unwrap();
            assert_eq!(tracker.panics(), 0);
            let request = HboneRequest { authority: "a:1".into(), headers: HeaderMap::new() };
            assert!(client.connect(&request).await.is_err());
        })
        .await;
    }
}
