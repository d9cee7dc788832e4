//! Streams whose readers have stopped, and the others on the same connection.

use super::tests::*;
use super::*;
use crate::H2Stream;
use crate::client::{self, Client, HboneRequest};
use crate::config::{ClientConfig, Windows};
use crate::copy::{Counters, copy_bidirectional};
use crate::transport::{BufList, IoTransport, Transport};
use std::cell::Cell;
use std::rc::Rc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

const MIB: usize = 1 << 20;

async fn one_more(client: &Client, s: &mut Server) -> (H2Stream, H2Stream) {
    let request = HboneRequest { authority: "10.0.0.1:80".into(), headers: HeaderMap::new() };
    let (near, far) = tokio::join!(client.connect(&request), async {
        s.requests.recv().await.unwrap().accept(HeaderMap::new()).unwrap()
    });
    (near.unwrap().0, far)
}

async fn send_all(stream: &mut H2Stream, chunk: &Bytes, total: usize) {
    let mut left = total;
    while left > 0 {
        let mut bufs = BufList::new();
        bufs.push(chunk.slice(..chunk.len().min(left)));
        while !bufs.is_empty() {
            left -= poll_fn(|cx| stream.poll_send(cx, &mut bufs)).await.unwrap();
        }
    }
}

/// Reads `total` bytes. Returns how often there was something to read.
async fn read_all(stream: &mut H2Stream, total: usize) -> usize {
    let (mut got, mut steps) = (0, 0);
    while got < total {
        let bytes = poll_fn(|cx| stream.poll_recv(cx)).await.unwrap().unwrap();
        got += bytes.len();
        steps += 1;
        stream.consumed(bytes.len());
    }
    steps
}

/// Fills the windows of a stream that nobody reads.
async fn stall(stream: &mut H2Stream, chunk: &Bytes) -> usize {
    let sent = Cell::new(0);
    let fill = async {
        loop {
            let mut bufs = BufList::new();
            bufs.push(chunk.clone());
            sent.set(sent.get() + poll_fn(|cx| stream.poll_send(cx, &mut bufs)).await.unwrap());
        }
    };
    assert!(tokio::time::timeout(Duration::from_millis(50), fill).await.is_err());
    sent.get()
}

/// However many have stalled, in whichever direction, the next one moves 20 MiB in as many steps as alone.
#[tokio::test(start_paused = true)]
async fn stalled_streams_do_not_slow_another() {
    let chunk = Bytes::from(vec![1; 64 << 10]);
    let mut alone = [0; 2];
    for stalled in [0, 1, 5, 20, 99] {
        for (direction, from_client) in [true, false].into_iter().enumerate() {
            local(async {
                let mut s = server(ServerConfig::default());
                let (client, _driver, mut near, mut far) = connected(&mut s).await;
                let (send, receive) = if from_client { (&mut near, &mut far) } else { (&mut far, &mut near) };
                // It has run for a while, and its windows have grown.
                for _ in 0..6 {
                    tokio::join!(send_all(send, &chunk, 20 * MIB), read_all(receive, 20 * MIB));
                    tokio::time::sleep(Duration::from_millis(150)).await;
                }
                let mut others = vec![];
                let mut held = 0;
                for _ in 0..stalled {
                    let (mut a, mut b) = one_more(&client, &mut s).await;
                    held += stall(if from_client { &mut a } else { &mut b }, &chunk).await;
                    others.push((a, b));
                }
                let begin = tokio::time::Instant::now();
                let both = async { tokio::join!(send_all(send, &chunk, 20 * MIB), read_all(receive, 20 * MIB)).1 };
                let steps = tokio::time::timeout(Duration::from_secs(5), both).await.expect("the last one moves on");
                println!("{stalled} stalled, holding {held}: 20 MiB in {steps} steps and {:?}", begin.elapsed());
                // Nothing waits for a clock.
                assert!(begin.elapsed() < Duration::from_millis(50));
                assert!(held <= 16 * MIB + stalled * (64 << 10), "{held}");
                if stalled == 0 {
                    alone[direction] = steps;
                }
                // Narrower windows mean smaller pieces, by and by: never many times as many.
                let most = if stalled <= 20 { 2 } else { 8 };
                assert!(steps <= alone[direction] * most, "{steps} steps, {} alone", alone[direction]);
                drop(others);
            })
            .await;
        }
    }
}

/// The round trips that a transfer needs, over a wire that is `delay` long.
async fn over_a_long_wire(windows: Windows, delay: Duration, total: usize) -> Duration {
    local(async {
        let mut s = server(ServerConfig { windows, ..ServerConfig::default() });
        let tracker = Tracker::new();
        let (near, wire) = duplex(MIB);
        let far = std::mem::replace(&mut s.io, duplex(1).0);
        let (wire_read, wire_write) = tokio::io::split(wire);
        let (far_read, far_write) = tokio::io::split(far);
        tracker.spawn_local("there", later(wire_read, far_write, delay));
        tracker.spawn_local("back", later(far_read, wire_write, delay));
        let config = ClientConfig { windows, ..ClientConfig::default() };
        let (client, driver) = client::handshake(near, &config).await.unwrap();
        tracker.spawn_local("client", async move {
            let _ = driver.run().await;
        });
        let (mut near, mut far) = one_more(&client, &mut s).await;
        let begin = tokio::time::Instant::now();
        let chunk = Bytes::from(vec![1; 64 << 10]);
        tokio::join!(send_all(&mut near, &chunk, total), read_all(&mut far, total));
        begin.elapsed()
    })
    .await
}

/// Each piece arrives `delay` after it was sent; any number may be under way.
async fn later(
    mut from: impl tokio::io::AsyncRead + Unpin,
    mut to: impl tokio::io::AsyncWrite + Unpin,
    delay: Duration,
) {
    let (tx, mut rx) = tokio::sync::mpsc::unbounded_channel::<(tokio::time::Instant, Vec<u8>)>();
    let read = async move {
        let mut buf = vec![0; 64 << 10];
        while let Ok(n @ 1..) = from.read(&mut buf).await {
            let _ = tx.send((tokio::time::Instant::now() + delay, buf[..n].to_vec()));
        }
    };
    let write = async move {
        while let Some((at, bytes)) = rx.recv().await {
            tokio::time::sleep_until(at).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    };
    tokio::join!(read, write);
}

/// With 20 ms there and back, 256 KiB windows carry 12.8 MB/s; grown ones many times that.
#[tokio::test(start_paused = true)]
async fn a_bulk_stream_outgrows_its_first_window() {
    let delay = Duration::from_millis(10);
    let fixed = Windows { stream_max: 256 << 10, ..Windows::default() };
    let fixed = over_a_long_wire(fixed, delay, 100 * MIB).await;
    let grown = over_a_long_wire(Windows::default(), delay, 100 * MIB).await;
    println!("100 MiB over 20 ms: {fixed:?} with fixed windows, {grown:?} with growth");
    assert!(grown * 4 < fixed, "{fixed:?} with fixed windows, {grown:?} with growth");
}

/// An application that writes byte by byte to a reader that has stalled: h2 counts small frames that lie unread, and ends
/// the whole connection when they are too many. They must not lie there.
#[tokio::test(start_paused = true)]
async fn many_small_writes_to_a_stalled_reader_leave_the_connection_alone() {
    local(async {
        let mut s = server(ServerConfig::default());
        let (client, _driver, mut chatty, far) = connected(&mut s).await;
        let (mut near, mut other) = one_more(&client, &mut s).await;
        // Its application never reads.
        let (_application, near_application) = duplex(1024);
        let tracker = Tracker::new();
        tracker.spawn_local("copy", async move {
            let (mut far, counters) = (far, Counters::default());
            let _ = copy_bidirectional(&mut far, &mut IoTransport::new(near_application), &counters).await;
        });
        let written = Rc::new(Cell::new(0));
        let count = written.clone();
        let chatter = async {
            loop {
                let mut bufs = BufList::new();
                bufs.push(Bytes::from_static(b"x"));
                poll_fn(|cx| chatty.poll_send(cx, &mut bufs)).await.unwrap();
                count.set(count.get() + 1);
                tokio::task::yield_now().await;
            }
        };
        assert!(tokio::time::timeout(Duration::from_secs(1), chatter).await.is_err());
        assert!(written.get() > 200 << 10, "the window is used up, byte by byte: {}", written.get());
        assert!(!s.task.is_finished());
        let chunk = Bytes::from(vec![1; 64 << 10]);
        tokio::join!(send_all(&mut near, &chunk, 2 * MIB), read_all(&mut other, 2 * MIB));
    })
    .await;
}
