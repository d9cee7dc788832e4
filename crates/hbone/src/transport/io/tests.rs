use super::*;
use std::future::poll_fn;
use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};
use tokio::net::TcpListener;

async fn tcp() -> (TcpTransport, TcpStream) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let near = TcpStream::connect(listener.local_addr().unwrap());
    let (near, far) = tokio::join!(near, listener.accept());
    (TcpTransport::new(near.unwrap()), far.unwrap().0)
}

async fn recv(t: &mut impl Transport) -> Result<Option<Bytes>> {
    poll_fn(|cx| t.poll_recv(cx)).await
}

#[tokio::test]
async fn tcp_both_ways_with_half_close() {
    let (mut near, mut far) = tcp().await;
    let mut bufs = BufList::new();
    for part in ["vectored ", "", "write ", "of ", "parts"] {
        bufs.push(Bytes::from_static(part.as_bytes()));
    }
    while !bufs.is_empty() {
        poll_fn(|cx| near.poll_send(cx, &mut bufs)).await.unwrap();
    }
    poll_fn(|cx| near.poll_shutdown(cx)).await.unwrap();
    let mut got = String::new();
    far.read_to_string(&mut got).await.unwrap();
    assert_eq!(got, "vectored write of parts");
    // Ours has ended, theirs goes on.
    far.write_all(b"answer").await.unwrap();
    far.shutdown().await.unwrap();
    assert_eq!(recv(&mut near).await.unwrap().unwrap(), "answer");
    assert_eq!(recv(&mut near).await.unwrap(), None);
}

#[tokio::test]
async fn an_aborted_socket_resets_its_peer() {
    let (mut near, mut far) = tcp().await;
    near.abort();
    drop(near);
    let error = far.read_u8().await.unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
}

#[tokio::test]
async fn a_waiting_socket_holds_no_buffer() {
    let (mut near, mut far) = tcp().await;
    far.write_all(b"x").await.unwrap();
    assert_eq!(recv(&mut near).await.unwrap().unwrap(), "x");
    let idle = std::future::poll_fn(|cx| Poll::Ready(near.poll_recv(cx).is_pending())).await;
    assert!(idle);
    assert_eq!(near.read.buf.capacity(), 0);
}

#[tokio::test]
async fn buffers_grow_with_the_traffic() {
    let (near, mut far) = duplex(1 << 20);
    let writer = async move {
        let data = vec![3; 1 << 20];
        for _ in 0..16 {
            far.write_all(&data).await.unwrap();
        }
    };
    let mut near = IoTransport::new(near);
    let reader = async {
        let (mut total, mut sizes) = (0_usize, vec![]);
        while let Some(bytes) = recv(&mut near).await.unwrap() {
            sizes.push((total, bytes.len()));
            total += bytes.len();
        }
        assert_eq!(total, 16 << 20);
        sizes
    };
    let (sizes, ()) = tokio::join!(reader, writer);
    let most = |from: usize, to: usize| {
        let within = sizes.iter().filter(|(at, _)| (from..to).contains(at));
        within.map(|(_, n)| *n).max().unwrap()
    };
    assert_eq!(most(0, 128 << 10), 2 << 10);
    // And what the step before left room for.
    let next = most((128 << 10) + (2 << 10), 10 << 20);
    assert!((16 << 10..=18 << 10).contains(&next), "{next}");
    assert_eq!(most((10 << 20) + (16 << 10), 16 << 20), 256 << 10);
}
