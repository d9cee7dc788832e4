//! Both ends of an HBONE connection in one thread, over a pipe in memory: framing, flow control, wake-ups; no TLS and
//! no system calls but the clock's.

use std::cell::RefCell;
use std::future::poll_fn;
use std::rc::Rc;

use aquifer_hbone::{
    BufList, Client, ClientConfig, ConnectRequest, H2Stream, HboneRequest, ServerConfig, Transport, client, serve,
};
use aquifer_runtime::{Cancel, Tracker};
use bytes::Bytes;
use http::HeaderMap;
use tokio::runtime::{Builder, Runtime};
use tokio::task::LocalSet;

use crate::meter::measure;

/// Wide enough for the longest message with its frames, so that the pipe is not what is counted.
const PIPE: usize = 256 << 10;

struct Tunnel {
    runtime: Runtime,
    local: LocalSet,
    client: Client,
    /// Streams as the server accepted them.
    accepted: Rc<RefCell<Vec<H2Stream>>>,
}

impl Tunnel {
    fn new() -> Self {
        let runtime = Builder::new_current_thread().enable_time().build().expect("a runtime");
        let (local, accepted) = (LocalSet::new(), Rc::new(RefCell::new(Vec::new())));
        let tracker = Tracker::new();
        let handed = Rc::clone(&accepted);
        let client = local.block_on(&runtime, async move {
            let (near, far) = tokio::io::duplex(PIPE);
            let tasks = tracker.clone();
            tracker.spawn_local("server", async move {
                let handler = move |request: ConnectRequest| {
                    let stream = request.accept(HeaderMap::new());
                    handed.borrow_mut().extend(stream);
                    std::future::ready(())
                };
                let _ended = serve(far, &ServerConfig::default(), handler, Cancel::new(), &tasks).await;
            });
            let (client, driver) = client::handshake(near, &ClientConfig::default()).await.expect("a handshake");
            tracker.spawn_local("client", async move {
                let _ended = driver.run().await;
            });
            client
        });
        Self { runtime, local, client, accepted }
    }

    /// One more stream: the client's end and the server's.
    fn open(&self, request: &HboneRequest) -> (H2Stream, H2Stream) {
        let (near, _) = self.run(self.client.connect(request)).expect("a stream");
        let far = self.accepted.borrow_mut().pop().expect("the server took it");
        (near, far)
    }

    fn run<F: Future>(&self, work: F) -> F::Output {
        self.local.block_on(&self.runtime, work)
    }
}

fn request() -> HboneRequest {
    HboneRequest { authority: "10.1.0.7:8080".into(), headers: HeaderMap::new() }
}

pub(super) fn connect() {
    let (tunnel, request) = (Tunnel::new(), request());
    measure(|| drop(tunnel.open(&request)));
}

fn message(length: usize) {
    let tunnel = Tunnel::new();
    let (mut near, mut far) = tunnel.open(&request());
    let bytes = Bytes::from(vec![b'x'; length]);
    measure(|| {
        let mut unsent = BufList::new();
        unsent.push(bytes.clone());
        let mut left = length;
        // Both ends in turn, as two tasks would be.
        tunnel.run(async {
            let send = async {
                while !unsent.is_empty() {
                    poll_fn(|cx| near.poll_send(cx, &mut unsent)).await.expect("sent");
                }
                poll_fn(|cx| near.poll_flush(cx)).await.expect("flushed");
            };
            let receive = async {
                while left > 0 {
                    let got = poll_fn(|cx| far.poll_recv(cx)).await.expect("received").expect("no end");
                    far.consumed(got.len());
                    left -= got.len();
                }
            };
            tokio::join!(send, receive);
        });
    });
}

pub(super) fn message_1k() {
    message(1 << 10);
}

pub(super) fn message_64k() {
    message(64 << 10);
}
