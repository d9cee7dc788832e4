use super::*;
use crate::client::{self, HboneRequest};
use crate::config::ClientConfig;
use crate::raw::*;
use crate::transport::Transport;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use tokio::io::{AsyncWriteExt, DuplexStream, duplex};
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, LocalSet};

pub(super) struct Server {
    pub(super) io: DuplexStream,
    pub(super) requests: mpsc::UnboundedReceiver<ConnectRequest>,
    pub(super) outcome: Rc<RefCell<Option<Result<(), ServeError>>>>,
    pub(super) unfit: Rc<RefCell<Vec<Unfit>>>,
    pub(super) task: JoinHandle<()>,
    pub(super) cancel: Cancel,
    pub(super) tracker: Tracker,
}

/// A server whose streams are handed to the test.
pub(super) fn server(config: ServerConfig) -> Server {
    server_within(config, Budget::default())
}

pub(super) fn server_within(config: ServerConfig, budget: Budget) -> Server {
    let (io, far) = duplex(1 << 20);
    let (tx, requests) = mpsc::unbounded_channel();
    let (outcome, unfit) = (Rc::new(RefCell::new(None)), Rc::new(RefCell::new(Vec::new())));
    let (cancel, tracker) = (Cancel::new(), Tracker::new());
    let (o, u, c, t) = (outcome.clone(), unfit.clone(), cancel.clone(), tracker.clone());
    let task = tracker.spawn_local("serve", async move {
        let handler = move |request: ConnectRequest| {
            let tx = tx.clone();
            async move {
                let _ = tx.send(request);
            }
        };
        let result =
            serve_within(far, &config, &budget, handler, |refused| u.borrow_mut().push(refused.clone()), c, &t).await;
        *o.borrow_mut() = Some(result);
    });
    Server { io, requests, outcome, unfit, task, cancel, tracker }
}

pub(super) async fn local<F: Future>(test: F) -> F::Output {
    LocalSet::new().run_until(test).await
}

type Fields = Vec<(&'static str, &'static str)>;

pub(super) const CONNECT: &[(&str, &str)] = &[(":method", "CONNECT"), (":authority", "10.0.0.1:80")];

/// A real client's ten CONNECTs to the reference proxy: with the same decisions, ours answers with the same
/// frames, header blocks included.
#[tokio::test(start_paused = true)]
async fn answers_frame_by_frame_like_the_reference() {
    for name in ["hbone-client-to-ztunnel.json", "hbone-client-to-denied.json"] {
        local(replay(name)).await;
    }
}

async fn replay(name: &str) {
    let entries = recording(name);
    let mut s = server(ServerConfig::default());
    let mut raw = Raw::client(s.io).await;
    let settings = raw.next().await.unwrap();
    let theirs = &entries.iter().find(|e| e["message"] == "SETTINGS").unwrap()["json"]["settings"];
    let ours = settings.settings();
    let value = |id| ours.iter().find(|(i, _)| *i == id).map(|(_, v)| u64::from(*v));
    assert_eq!(value(3), theirs["MAX_CONCURRENT_STREAMS"].as_u64());
    assert_eq!(value(5), theirs["MAX_FRAME_SIZE"].as_u64());
    assert_eq!(value(6), theirs["MAX_HEADER_LIST_SIZE"].as_u64());
    assert_eq!(value(4), Some(256 << 10), "ours: a quarter MiB a stream");
    let (mut asked, mut alive) = (0, vec![]);
    for entry in &entries {
        let is = |direction: &str, message: &str| entry["direction"] == direction && entry["message"] == message;
        let stream = entry["json"]["stream"].as_u64().unwrap_or(0) as u32;
        if is("client->server", "HEADERS") {
            asked += 1;
            let get = fields(entry)[0].1 == "GET";
            raw.send(Frame::headers(stream, if get { END_STREAM } else { 0 }, &fields(entry))).await;
        } else if is("server->client", "HEADERS") {
            let status = fields(entry)[0].1;
            let request = entries
                .iter()
                .find(|e| e["direction"] == "client->server" && e["json"]["stream"] == entry["json"]["stream"])
                .unwrap();
            if fields(request)[0].1 == "CONNECT" {
                let request = s.requests.recv().await.unwrap();
                let mut headers = HeaderMap::new();
                for (name, value) in &fields(entry)[1..] {
                    headers.insert(http::HeaderName::from_bytes(name.as_bytes()).unwrap(), value.parse().unwrap());
                }
                match status {
                    "200" => alive.push(request.accept(headers).unwrap()),
                    code => request.refuse(code.parse().unwrap()),
                }
            }
            let flags = u8::from_str_radix(&entry["json"]["flags"].as_str().unwrap()[2..], 16).unwrap();
            let block = hex(entry["json"]["header_block_hex"].as_str().unwrap());
            assert_eq!(raw.answer().await.unwrap(), Frame::new(HEADERS, flags, stream, &block), "{status}");
        } else if is("server->client", "RST_STREAM") {
            let frame = raw.answer().await.unwrap();
            assert_eq!((frame.kind, frame.stream, frame.error()), (RST_STREAM, stream, 0));
        }
    }
    assert!(asked > 0);
}

/// Requests that no honest client sends. Each is refused, and the connection serves the next stream, or is closed
/// with a GOAWAY; never is the handler asked.
#[tokio::test(start_paused = true)]
async fn hostile_requests() {
    enum Expect {
        Status(&'static [u8]),
        Reset(h2::Reason),
        GoAway,
    }
    let connect = |extra: &[(&'static str, &'static str)]| [CONNECT, extra].concat();
    let big: &'static str = Box::leak("x".repeat(15_000).into_boxed_str());
    let names = ["a", "b", "c", "d", "e", "f"];
    let giant: Vec<_> = names.map(|n| (n, big)).into();
    let cases: Vec<(&str, Fields, Expect)> = vec![
        (
            "GET",
            vec![(":method", "GET"), (":scheme", "https"), (":path", "/"), (":authority", "a:1")],
            Expect::Status(&[0x8c]),
        ),
        (
            "POST",
            vec![(":method", "POST"), (":scheme", "https"), (":path", "/"), (":authority", "a:1")],
            Expect::Status(&[0x8c]),
        ),
        ("CONNECT with :path", connect(&[(":path", "/")]), Expect::Reset(h2::Reason::PROTOCOL_ERROR)),
        ("CONNECT with :scheme", connect(&[(":scheme", "https")]), Expect::Reset(h2::Reason::PROTOCOL_ERROR)),
        (
            "extended CONNECT",
            vec![
                (":method", "CONNECT"),
                (":protocol", "websocket"),
                (":scheme", "https"),
                (":path", "/"),
                (":authority", "a:1"),
            ],
            Expect::Reset(h2::Reason::PROTOCOL_ERROR),
        ),
        ("CONNECT without authority", vec![(":method", "CONNECT")], Expect::Status(&[0x8c])),
        (
            "an authority that is none",
            vec![(":method", "CONNECT"), (":authority", "a b:1")],
            Expect::Reset(h2::Reason::PROTOCOL_ERROR),
        ),
        ("no method", vec![(":authority", "a:1")], Expect::Reset(h2::Reason::PROTOCOL_ERROR)),
        ("upper case header", connect(&[("X-Evil", "1")]), Expect::GoAway),
        ("connection header", connect(&[("connection", "close")]), Expect::Reset(h2::Reason::PROTOCOL_ERROR)),
        ("headers of 90 kB", connect(&giant), Expect::Status(b"431")),
    ];
    for (what, fields, expect) in cases {
        local(async {
            let mut s = server(ServerConfig::default());
            let mut raw = Raw::client(s.io).await;
            let mut rest = block(&fields);
            let first: Vec<u8> = rest.drain(..rest.len().min(16_000)).collect();
            let end = if rest.is_empty() { END_HEADERS } else { 0 };
            raw.send(Frame::new(HEADERS, end, 1, &first)).await;
            while !rest.is_empty() {
                let part: Vec<u8> = rest.drain(..rest.len().min(16_000)).collect();
                let end = if rest.is_empty() { END_HEADERS } else { 0 };
                raw.send(Frame::new(CONTINUATION, end, 1, &part)).await;
            }
            let answer = raw.answer().await.unwrap_or_else(|| panic!("{what}: hung up without a word"));
            match expect {
                Expect::Status(block) if block.len() == 1 => {
                    assert_eq!((answer.kind, &answer.payload[..]), (HEADERS, block), "{what}");
                    let reset = raw.answer().await.unwrap();
                    assert_eq!((reset.kind, reset.error()), (RST_STREAM, 0), "{what}: may stop sending");
                }
                Expect::Status(_) => assert_eq!(answer.kind, HEADERS, "{what}: {answer:?}"),
                Expect::Reset(reason) => {
                    assert_eq!((answer.kind, answer.error()), (RST_STREAM, u32::from(reason)), "{what}");
                }
                Expect::GoAway => assert_eq!(answer.kind, GOAWAY, "{what}: {answer:?}"),
            }
            assert!(s.requests.try_recv().is_err(), "{what}: reached the handler");
            let told = s.unfit.borrow().iter().map(|unfit| unfit.reason().code()).collect::<Vec<_>>();
            let tell: &[&str] = match what {
                "GET" | "POST" => &["method_not_allowed"],
                "CONNECT without authority" => &["invalid_authority"],
                _ => &[],
            };
            assert_eq!(told, tell, "{what}: who serves the connection is told of it");
            if answer.kind == GOAWAY {
                return;
            }
            raw.send(Frame::headers(3, 0, CONNECT)).await;
            assert_eq!(s.requests.recv().await.unwrap().authority(), "10.0.0.1:80", "{what}: the next is served");
        })
        .await;
    }
}

#[tokio::test(start_paused = true)]
async fn streams_above_the_limit_are_refused() {
    local(async {
        let mut s = server(ServerConfig::default());
        let mut raw = Raw::client(s.io).await;
        let mut held = vec![];
        for i in 0..200 {
            raw.send(Frame::headers(2 * i + 1, 0, CONNECT)).await;
            held.push(s.requests.recv().await.unwrap());
        }
        raw.send(Frame::headers(401, 0, CONNECT)).await;
        let refused = raw.answer().await.unwrap();
        let code = u32::from(Reason::REFUSED_STREAM);
        assert_eq!((refused.kind, refused.stream, refused.error()), (RST_STREAM, 401, code));
        // One ends, one more may come.
        held.pop().unwrap().refuse(StatusCode::SERVICE_UNAVAILABLE);
        while raw.answer().await.unwrap().kind != RST_STREAM {}
        raw.send(Frame::headers(403, 0, CONNECT)).await;
        assert!(s.requests.recv().await.is_some());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn what_is_not_http2_is_dropped() {
    local(async {
        let mut s = server(ServerConfig::default());
        s.io.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
        s.task.await.unwrap();
        assert!(matches!(s.outcome.take(), Some(Err(ServeError::Http2(_)))));
    })
    .await;
    local(async {
        let s = server(ServerConfig::default());
        s.task.await.unwrap();
        let Some(Err(e)) = s.outcome.take() else { panic!("silence was served") };
        assert!(matches!(e, ServeError::HandshakeTimeout(_)) && e.is_disconnect());
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn pings_after_ten_seconds_and_gives_up_twenty_later() {
    local(async {
        let mut s = server(ServerConfig::default());
        let start = tokio::time::Instant::now();
        let mut raw = Raw::client(s.io).await;
        raw.send(Frame::headers(1, 0, CONNECT)).await;
        let ping = loop {
            let frame = raw.next().await.unwrap();
            if frame.kind == PING {
                break frame;
            }
        };
        assert_eq!(start.elapsed().as_secs(), 10);
        assert_eq!(ping.payload, hex("3b7cdb7a0b8716b4"), "the bytes that the reference sends");
        // Answered: the next comes ten seconds later. Not answered: closed.
        raw.send(Frame::new(PING, 1, 0, &ping.payload)).await;
        while raw.next().await.unwrap().kind != PING {}
        assert_eq!(start.elapsed().as_secs(), 20);
        assert!(s.requests.recv().await.is_some());
        s.task.await.unwrap();
        assert_eq!(start.elapsed().as_secs(), 40);
        assert!(matches!(s.outcome.take(), Some(Err(ServeError::PingTimeout(_)))));
    })
    .await;
}

pub(super) async fn connected(s: &mut Server) -> (client::Client, JoinHandle<()>, crate::H2Stream, crate::H2Stream) {
    let io = std::mem::replace(&mut s.io, duplex(1).0);
    let (client, driver) = client::handshake(io, &ClientConfig::default()).await.unwrap();
    let driver = s.tracker.spawn_local("client", async move {
        let _ = driver.run().await;
    });
    let request = HboneRequest { authority: "10.0.0.1:80".into(), headers: HeaderMap::new() };
    let (near, far) = tokio::join!(client.connect(&request), async {
        s.requests.recv().await.unwrap().accept(HeaderMap::new()).unwrap()
    });
    (client, driver, near.unwrap().0, far)
}

#[tokio::test(start_paused = true)]
async fn drain_tells_the_peer_and_waits_for_the_streams() {
    local(async {
        let mut s = server(ServerConfig::default());
        let (client, driver, mut near, mut far) = connected(&mut s).await;
        s.cancel.drain();
        while client.is_open() {
            tokio::task::yield_now().await;
        }
        let request = HboneRequest { authority: "10.0.0.1:80".into(), headers: HeaderMap::new() };
        let refused = client.connect(&request).await.unwrap_err();
        assert!(refused.is_unprocessed(), "may be asked for elsewhere: {refused}");
        // The open stream works on, for as long as it takes.
        tokio::time::sleep(Duration::from_secs(100)).await;
        assert!(!s.task.is_finished());
        let mut bufs = crate::BufList::new();
        bufs.push(Bytes::from_static(b"still here"));
        poll_fn(|cx| near.poll_send(cx, &mut bufs)).await.unwrap();
        assert_eq!(poll_fn(|cx| far.poll_recv(cx)).await.unwrap().unwrap(), "still here");
        drop((near, far, client));
        s.task.await.unwrap();
        driver.await.unwrap();
        assert!(matches!(s.outcome.take(), Some(Ok(()))));
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn force_ends_at_once_and_the_streams_break() {
    local(async {
        let mut s = server(ServerConfig::default());
        let (_client, _driver, mut near, mut far) = connected(&mut s).await;
        s.cancel.force();
        s.task.await.unwrap();
        assert!(poll_fn(|cx| far.poll_recv(cx)).await.is_err());
        assert!(poll_fn(|cx| near.poll_recv(cx)).await.is_err(), "no orderly end");
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_handler_learns_that_the_client_gave_up() {
    local(async {
        let mut s = server(ServerConfig::default());
        let mut raw = Raw::client(s.io).await;
        raw.send(Frame::headers(1, 0, CONNECT)).await;
        let mut request = s.requests.recv().await.unwrap();
        let gone = Cell::new(false);
        let watch = async {
            request.abandoned().await;
            gone.set(true);
        };
        let test = async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            assert!(!gone.get());
            raw.send(Frame::new(RST_STREAM, 0, 1, &8_u32.to_be_bytes())).await;
        };
        tokio::join!(watch, test);
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_request_dropped_without_an_answer_is_cancelled() {
    local(async {
        let mut s = server(ServerConfig::default());
        let mut raw = Raw::client(s.io).await;
        raw.send(Frame::headers(1, 0, CONNECT)).await;
        drop(s.requests.recv().await.unwrap());
        let frame = raw.answer().await.unwrap();
        assert_eq!((frame.kind, frame.error()), (RST_STREAM, u32::from(Reason::CANCEL)));
        assert_ne!(frame.kind, DATA);
    })
    .await;
}

/// In one write, many of them before the first is taken; every third is no CONNECT, which no handler gets to see.
#[tokio::test(start_paused = true)]
async fn requests_that_come_at_once_are_all_served() {
    local(async {
        let mut server = server(ServerConfig::default());
        let mut client = Raw::client(server.io).await;
        let get = [(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "10.0.0.1:80")];
        let frames = (0..150_u32).flat_map(|n| {
            let head = if n % 3 == 0 { block(&get) } else { block(CONNECT) };
            Frame::new(HEADERS, END_HEADERS, 2 * n + 1, &head).encode()
        });
        client.0.write_all(&frames.collect::<Vec<u8>>()).await.unwrap();
        for _ in 0..100 {
            server.requests.recv().await.unwrap().refuse(StatusCode::NOT_FOUND);
        }
        assert_eq!(server.unfit.borrow().len(), 50);
    })
    .await;
}
