//! What busy and clumsy peers do without meaning harm: the connection serves on.

use super::hostile::{ACK, PRIORITY, WINDOW_UPDATE, rst, stream, window_update};
use super::tests::*;
use super::*;
use crate::H2Stream;
use crate::client::{self, Client, HboneRequest};
use crate::config::{ClientConfig, Windows};
use crate::raw::*;
use crate::transport::{BufList, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};
use tokio::time::Instant;

/// A peer by hand, that writes without waiting for what it is sent.
struct Peer {
    write: WriteHalf<DuplexStream>,
    /// What it was sent, to its end.
    frames: tokio::sync::mpsc::UnboundedReceiver<Frame>,
}

impl Peer {
    fn new(raw: Raw, tracker: &Tracker) -> Self {
        let (mut read, write): (ReadHalf<_>, _) = split(raw.0);
        let (tx, frames) = tokio::sync::mpsc::unbounded_channel();
        tracker.spawn_local("listen", async move {
            while let Some(frame) = read_frame(&mut read).await {
                let _ = tx.send(frame);
            }
        });
        Self { write, frames }
    }

    async fn send(&mut self, frame: &Frame) {
        self.write.write_all(&frame.encode()).await.unwrap();
    }

    /// Waits for a frame of this kind on this stream. Neither a GOAWAY nor the end may come before.
    async fn until(&mut self, kind: u8, stream: u32) -> Frame {
        loop {
            let frame = self.frames.recv().await.expect("hung up");
            assert_ne!(frame.kind, GOAWAY, "sent away with {}", frame.error());
            if frame.kind == PING && frame.flags & ACK == 0 {
                self.send(&Frame::new(PING, ACK, 0, &frame.payload)).await;
            }
            if (frame.kind, frame.stream) == (kind, stream) {
                return frame;
            }
        }
    }
}

async fn accepted(s: &mut Server) -> H2Stream {
    s.requests.recv().await.unwrap().accept(HeaderMap::new()).unwrap()
}

async fn received(stream: &mut H2Stream, total: usize) {
    let mut got = 0;
    while got < total {
        let bytes = poll_fn(|cx| stream.poll_recv(cx)).await.unwrap().expect("ended early");
        got += bytes.len();
        stream.consumed(bytes.len());
    }
}

async fn sent(stream: &mut H2Stream, bytes: &'static [u8]) {
    let mut bufs = BufList::new();
    bufs.push(Bytes::from_static(bytes));
    while !bufs.is_empty() {
        poll_fn(|cx| stream.poll_send(cx, &mut bufs)).await.unwrap();
    }
}

/// Keystrokes for an application that is busy: all of them wait, the neighbour is served, and in the end they arrive.
#[tokio::test(start_paused = true)]
async fn tiny_frames_wait_for_their_reader() {
    local(async {
        let mut s = server(ServerConfig::default());
        let io = std::mem::replace(&mut s.io, duplex(1).0);
        let mut peer = Peer::new(Raw::client(io).await, &s.tracker);
        let mut open = vec![];
        for id in [1, 3] {
            peer.send(&Frame::headers(id, 0, CONNECT)).await;
            open.push(accepted(&mut s).await);
        }
        for _ in 0..20_000 {
            peer.send(&Frame::new(DATA, 0, 1, b"k")).await;
        }
        peer.send(&Frame::new(DATA, 0, 3, b"next")).await;
        received(&mut open[1], 4).await;
        sent(&mut open[1], b"done").await;
        peer.until(DATA, 3).await;
        received(&mut open[0], 20_000).await;
    })
    .await;
}

/// The same in the other direction.
#[tokio::test(start_paused = true)]
async fn tiny_frames_wait_for_a_client() {
    local(async {
        let (mut client, mut peer) = client_of_raw().await;
        let mut open = vec![];
        for id in [1, 3] {
            open.push(opened(&mut client, &mut peer, id).await);
        }
        for _ in 0..20_000 {
            peer.send(&Frame::new(DATA, 0, 1, b"k")).await;
        }
        peer.send(&Frame::new(DATA, 0, 3, b"next")).await;
        received(&mut open[1], 4).await;
        received(&mut open[0], 20_000).await;
    })
    .await;
}

async fn client_of_raw() -> (Client, Peer) {
    let (near, far) = duplex(1 << 20);
    let (client, driver) = client::handshake(near, &ClientConfig::default()).await.unwrap();
    let tracker = Tracker::new();
    tracker.spawn_local("driver", async move {
        let _ = driver.run().await;
    });
    let mut raw = Raw(far);
    let mut preface = [0; PREFACE.len()];
    raw.0.read_exact(&mut preface).await.unwrap();
    raw.send(Frame::new(SETTINGS, 0, 0, &[])).await;
    (client, Peer::new(raw, &tracker))
}

async fn opened(client: &mut Client, peer: &mut Peer, id: u32) -> H2Stream {
    let request = HboneRequest { authority: "a:1".into(), headers: HeaderMap::new() };
    let (stream, ()) = tokio::join!(client.connect(&request), async {
        peer.until(HEADERS, id).await;
        peer.send(&Frame::new(HEADERS, END_HEADERS, id, &[0x88])).await;
    });
    stream.unwrap().0
}

/// A policy cuts a hundred busy uploads at once. What they had under way may be a window each; the hundred and first
/// does not notice.
#[tokio::test(start_paused = true)]
async fn a_hundred_streams_cut_at_once_leave_their_neighbour_alone() {
    local(async {
        let mut s = server(ServerConfig::default());
        let io = std::mem::replace(&mut s.io, duplex(1).0);
        let mut peer = Peer::new(Raw::client(io).await, &s.tracker);
        let mut open = vec![];
        for i in 0..101 {
            peer.send(&Frame::headers(stream(i), 0, CONNECT)).await;
            open.push(accepted(&mut s).await);
        }
        let mut neighbour = open.pop().unwrap();
        for mut cut in open {
            cut.abort();
        }
        for i in 0..100 {
            assert_eq!(peer.until(RST_STREAM, stream(i)).await.error(), 10, "CONNECT_ERROR");
        }
        for _ in 0..100 {
            for i in 0..100 {
                peer.send(&Frame::new(DATA, 0, stream(i), &[7; 300])).await;
            }
            peer.send(&Frame::new(DATA, 0, stream(100), b"mine")).await;
        }
        received(&mut neighbour, 400).await;
        sent(&mut neighbour, b"done").await;
        peer.until(DATA, stream(100)).await;
        // And the connection takes new ones.
        peer.send(&Frame::headers(stream(101), 0, CONNECT)).await;
        let _new = accepted(&mut s).await;
        peer.until(HEADERS, stream(101)).await;
    })
    .await;
}

/// The same in the other direction: a hundred downloads are cut.
#[tokio::test(start_paused = true)]
async fn a_hundred_downloads_cut_at_once_leave_their_neighbour_alone() {
    local(async {
        let (mut client, mut peer) = client_of_raw().await;
        let mut open = vec![];
        for i in 0..101 {
            open.push(opened(&mut client, &mut peer, stream(i)).await);
        }
        let mut neighbour = open.pop().unwrap();
        for mut cut in open {
            cut.abort();
        }
        for i in 0..100 {
            peer.until(RST_STREAM, stream(i)).await;
        }
        for _ in 0..100 {
            for i in 0..100 {
                peer.send(&Frame::new(DATA, 0, stream(i), &[7; 300])).await;
            }
            peer.send(&Frame::new(DATA, 0, stream(100), b"mine")).await;
        }
        received(&mut neighbour, 400).await;
        sent(&mut neighbour, b"done").await;
        peer.until(DATA, stream(100)).await;
        assert!(client.is_open());
    })
    .await;
}

/// One that goes on sending where it was reset is answered each time, and after thousands of these in an hour its
/// connection is replaced in order: the streams live on.
#[tokio::test(start_paused = true)]
async fn a_worn_connection_is_left_in_order() {
    local(async {
        let mut s = server(ServerConfig::default());
        let io = std::mem::replace(&mut s.io, duplex(1).0);
        let mut peer = Peer::new(Raw::client(io).await, &s.tracker);
        peer.send(&Frame::headers(1, 0, CONNECT)).await;
        let mut old = accepted(&mut s).await;
        let mut next = 3;
        let mut refused = 0;
        let goaway = 'worn: loop {
            // 200 may be open; of 250 that are asked for, 51 are refused.
            let ids: Vec<u32> = (0..250).map(|i| next + 2 * i).collect();
            next += 500;
            for id in &ids {
                peer.send(&Frame::headers(*id, 0, CONNECT)).await;
            }
            let mut open = vec![];
            for _ in 0..199 {
                open.push(accepted(&mut s).await);
            }
            tokio::time::sleep(Duration::from_millis(700)).await;
            for id in &ids[..199] {
                peer.send(&rst(*id)).await;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
            while let Ok(frame) = peer.frames.try_recv() {
                match frame.kind {
                    RST_STREAM if frame.error() == 7 => refused += 1,
                    GOAWAY => break 'worn frame,
                    PING if frame.flags & ACK == 0 => peer.send(&Frame::new(PING, ACK, 0, &frame.payload)).await,
                    _ => {}
                }
            }
            assert!(refused < crate::flood::FAULTS, "never replaced");
        };
        assert_eq!(goaway.error(), 0, "in order, after {refused}");
        assert!(refused >= 4000, "{refused}");
        peer.send(&Frame::new(DATA, 0, 1, b"still")).await;
        received(&mut old, 5).await;
        assert!(!s.task.is_finished());
    })
    .await;
}

/// A peer that returns credit for each small DATA frame, twice, pings for each that it sends, and gives each stream a
/// priority: a thousand short exchanges a second.
#[tokio::test(start_paused = true)]
async fn chatty_peers_are_served_for_ever() {
    local(async {
        let mut s = server(ServerConfig::default());
        let io = std::mem::replace(&mut s.io, duplex(1).0);
        let mut peer = Peer::new(Raw::client(io).await, &s.tracker);
        for i in 0..5_000 {
            let id = stream(i);
            peer.send(&Frame::headers(id, 0, CONNECT)).await;
            peer.send(&Frame::new(PRIORITY, 0, id, &[0, 0, 0, 0, 16])).await;
            let mut open = accepted(&mut s).await;
            for _ in 0..10 {
                peer.send(&Frame::new(DATA, 0, id, b"?")).await;
                peer.send(&Frame::new(PING, 0, 0, &[1; 8])).await;
                received(&mut open, 1).await;
                sent(&mut open, b"!").await;
                peer.until(DATA, id).await;
                peer.send(&window_update(0, 1)).await;
                peer.send(&window_update(id, 1)).await;
            }
            if i % 2 == 0 {
                // Gone without a goodbye.
                peer.send(&rst(id)).await;
            } else {
                peer.send(&Frame::new(DATA, END_STREAM, id, &[])).await;
            }
            drop(open);
        }
        assert!(!s.task.is_finished());
    })
    .await;
}

/// A download that has ended is read slowly, by a peer that tells of each little read: the whole window in updates, and
/// nothing more from us.
#[tokio::test(start_paused = true)]
async fn credit_for_what_was_sent_may_come_in_crumbs() {
    local(async {
        let mut s = server(ServerConfig::default());
        let mut raw = Raw(std::mem::replace(&mut s.io, duplex(1).0));
        raw.0.write_all(PREFACE).await.unwrap();
        let wide: u32 = 8 << 20;
        raw.send(Frame::new(SETTINGS, 0, 0, &[&[0, 4][..], &wide.to_be_bytes()].concat())).await;
        raw.send(window_update(0, wide)).await;
        let mut peer = Peer::new(raw, &s.tracker);
        peer.send(&Frame::headers(1, 0, CONNECT)).await;
        let mut open = accepted(&mut s).await;
        static MEGABYTE: [u8; 1 << 20] = [0; 1 << 20];
        for _ in 0..4 {
            sent(&mut open, &MEGABYTE).await;
        }
        let crumbs = (4 << 20) / 100;
        for _ in 0..crumbs {
            peer.send(&window_update(0, 100)).await;
            peer.send(&window_update(1, 100)).await;
        }
        sent(&mut open, b"done").await;
        peer.until(DATA, 1).await;
        peer.send(&Frame::new(DATA, 0, 1, b"more")).await;
        received(&mut open, 4).await;
        assert_eq!(WINDOW_UPDATE, 8);
    })
    .await;
}

/// Two hundred clients of an application that hangs, each of which gives up after a tenth of a second and asks again.
#[tokio::test(start_paused = true)]
async fn clients_that_give_up_and_ask_again_are_served() {
    local(async {
        let mut s = server(ServerConfig::default());
        let io = std::mem::replace(&mut s.io, duplex(1).0);
        let mut peer = Peer::new(Raw::client(io).await, &s.tracker);
        for round in 0..100 {
            let ids: Vec<u32> = (0..200).map(|i| stream(200 * round + i)).collect();
            for id in &ids {
                peer.send(&Frame::headers(*id, 0, CONNECT)).await;
            }
            let mut waiting = vec![];
            for _ in &ids {
                waiting.push(s.requests.recv().await.unwrap());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            for id in &ids {
                peer.send(&rst(*id)).await;
            }
            for request in &mut waiting {
                request.abandoned().await;
            }
            while let Ok(frame) = peer.frames.try_recv() {
                assert_ne!(frame.kind, GOAWAY, "round {round}");
            }
        }
        assert!(!s.task.is_finished());
    })
    .await;
}

/// Bursts that honest peers make.
#[tokio::test(start_paused = true)]
async fn honest_bursts_pass() {
    local(async {
        let windows = Windows::default();
        assert!(windows.connection as u64 <= crate::POD_BUDGET);
        let mut s = server(ServerConfig::default());
        let mut raw = Raw::client(s.io).await;
        let begin = Instant::now();
        // A hundred streams at once, each given up before its answer, four times a second for a minute.
        for i in 0..240 {
            let ids: Vec<u32> = (0..100).map(|n| stream(100 * i + n)).collect();
            for id in &ids {
                raw.send(Frame::headers(*id, 0, CONNECT)).await;
            }
            let mut held = vec![];
            for _ in &ids {
                held.push(s.requests.recv().await.unwrap());
            }
            if i % 100 < 5 {
                for id in &ids {
                    raw.send(rst(*id)).await;
                }
                for request in &mut held {
                    request.abandoned().await;
                }
            } else {
                for request in held {
                    request.refuse(StatusCode::SERVICE_UNAVAILABLE);
                }
            }
            while let Ok(Some(frame)) = tokio::time::timeout(Duration::from_millis(1), raw.next()).await {
                assert_ne!(frame.kind, GOAWAY);
                if frame.kind == PING && frame.flags & ACK == 0 {
                    raw.send(Frame::new(PING, ACK, 0, &frame.payload)).await;
                }
            }
            tokio::time::sleep(Duration::from_millis(250)).await;
        }
        assert!(begin.elapsed() >= Duration::from_secs(60));
        assert!(!s.task.is_finished(), "{:?}", s.outcome.take());
    })
    .await;
}
