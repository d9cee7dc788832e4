//! One pod's DNS proxy: its sockets, and what happens to a query.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener};
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::state::MeshState;
use aquifer_core::workload::Workload;
use aquifer_runtime::Cancel;
use bytes::{Buf, BytesMut};
use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use hickory_proto::op::ResponseCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};

use super::message::{Question, Refusal, Transport};
use super::metrics::Labels;
use super::upstream::{Upstream, framed};
use super::{Dns, Listen, resolve};
use crate::descriptors;
use crate::inpod::netns::Netns;
use crate::socket::{self, OriginalSource, TcpOptions};

/// Queries in datagrams that a pod may have in work; what comes beyond is lost, as in a full buffer.
const MOST_DATAGRAMS: usize = 1024;

/// Connections of one pod; what comes beyond is closed.
const MOST_CONNECTIONS: usize = 64;

/// Queries of one connection that are in work at once (RFC 7766, 6.2.1.1); what comes beyond waits.
const MOST_PIPELINED: usize = 32;

/// How long a connection may say nothing, or take nothing.
const PATIENCE: Duration = Duration::from_secs(5);

/// Longest query in a datagram. Questions are short; a longer one is no question.
const LONGEST_QUERY: usize = 4096;

/// The pod that is served, as seen from here.
pub trait Local: 'static {
    /// The mesh, and the pod's own workload in it; waits a while for one that isn't known yet.
    fn workload(&self) -> impl Future<Output = Option<(Arc<MeshState>, Arc<Workload>)>>;
    /// Runs a task that belongs to the pod.
    fn spawn(&self, name: &'static str, task: impl Future<Output = ()> + 'static);
    /// When to end.
    fn cancel(&self) -> &Cancel;
}

/// A pod's listening sockets.
#[derive(Debug, Default)]
pub struct Sockets {
    /// For datagrams.
    pub udp: Vec<std::net::UdpSocket>,
    /// For connections.
    pub tcp: Vec<TcpListener>,
}

/// A pod's listening sockets for as long as they are listened on.
#[derive(Debug, Default)]
pub struct Served {
    /// For datagrams.
    pub udp: Vec<Weak<UdpSocket>>,
    /// For connections.
    pub tcp: Vec<Weak<tokio::net::TcpListener>>,
}

impl Sockets {
    /// Opens them in the pod's namespace. A loopback address that the pod lacks is left out.
    pub fn open(netns: &Netns, listen: Listen, options: &TcpOptions, reuse_port: bool) -> io::Result<Self> {
        Self::open_with(netns, listen, options, reuse_port, Self::default())
    }

    /// The same; an address for which a socket was handed over needs no other.
    pub fn open_with(
        netns: &Netns,
        listen: Listen,
        options: &TcpOptions,
        reuse_port: bool,
        mut handed: Self,
    ) -> io::Result<Self> {
        netns.run(|| {
            let mut sockets = Self::default();
            let mut failed = None;
            for addr in listen.addresses() {
                match open_pair(addr, options, reuse_port, &mut handed) {
                    Ok((udp, tcp)) => {
                        sockets.udp.push(udp);
                        sockets.tcp.push(tcp);
                    }
                    Err(e) if socket::lacks_address(&e) => {
                        tracing::debug!(%addr, error = %e, "no DNS proxy at an address that the pod lacks");
                        failed = Some(e);
                    }
                    Err(e) => return Err(io::Error::new(e.kind(), format!("DNS proxy at {addr}: {e}"))),
                }
            }
            match failed {
                Some(e) if sockets.udp.is_empty() => Err(io::Error::new(e.kind(), format!("DNS proxy: {e}"))),
                _ => Ok(sockets),
            }
        })?
    }

    /// Where queries are taken.
    pub fn addresses(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.udp.iter().filter_map(|socket| socket.local_addr().ok())
    }
}

fn open_pair(
    addr: SocketAddr,
    options: &TcpOptions,
    reuse_port: bool,
    handed: &mut Sockets,
) -> io::Result<(std::net::UdpSocket, TcpListener)> {
    let at = |local: io::Result<SocketAddr>| local.is_ok_and(|local| local == addr);
    let udp = match handed.udp.iter().position(|socket| at(socket.local_addr())) {
        Some(place) => handed.udp.swap_remove(place),
        None => socket::listen_udp(addr, options, reuse_port)?,
    };
    let tcp = match handed.tcp.iter().position(|listener| at(listener.local_addr())) {
        Some(place) => handed.tcp.swap_remove(place),
        None => socket::listen(addr, options, OriginalSource::Off, reuse_port)?,
    };
    Ok((udp, tcp))
}

impl Listen {
    fn addresses(self) -> impl Iterator<Item = SocketAddr> {
        let list = match self {
            Self::Localhost { port, ipv6 } => {
                let v6 = ipv6.then(|| SocketAddr::from((Ipv6Addr::LOCALHOST, port)));
                [Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port))), v6]
            }
            Self::Address(addr) => [Some(addr), None],
        };
        list.into_iter().flatten()
    }
}

/// Begins to serve a pod on this thread. Needs a local runtime.
pub fn serve<L: Local>(local: L, dns: Arc<Dns>, upstream: Upstream, sockets: Sockets) -> io::Result<Served> {
    let server = Rc::new(Server {
        local,
        dns,
        upstream,
        datagrams: Arc::new(Semaphore::new(MOST_DATAGRAMS)),
        connections: Arc::new(Semaphore::new(MOST_CONNECTIONS)),
    });
    // First all of them, then the tasks: a failure leaves nothing running.
    let udp = sockets.udp.into_iter().map(UdpSocket::from_std).collect::<io::Result<Vec<_>>>()?;
    let tcp = sockets.tcp.into_iter().map(tokio::net::TcpListener::from_std).collect::<io::Result<Vec<_>>>()?;
    let mut served = Served::default();
    for socket in udp.into_iter().map(Rc::new) {
        served.udp.push(Rc::downgrade(&socket));
        server.local.spawn("dns-udp", server.clone().datagrams(socket));
    }
    for listener in tcp.into_iter().map(Rc::new) {
        served.tcp.push(Rc::downgrade(&listener));
        server.local.spawn("dns-tcp", server.clone().accept(listener));
    }
    Ok(served)
}

struct Server<L> {
    local: L,
    dns: Arc<Dns>,
    upstream: Upstream,
    datagrams: Arc<Semaphore>,
    connections: Arc<Semaphore>,
}

impl<L: Local> Server<L> {
    async fn datagrams(self: Rc<Self>, socket: Rc<UdpSocket>) {
        let mut buffer = vec![0; LONGEST_QUERY];
        loop {
            let received = tokio::select! {
                biased; // Draining first: whoever takes over gets the next query.
                () = self.local.cancel().drained() => break,
                received = socket.recv_from(&mut buffer) => received,
            };
            match received {
                Ok((length, client)) => self.clone().datagram(&socket, &buffer[..length], client),
                // An answer that couldn't be delivered comes back as an error of the next call (udp(7)).
                Err(error) => {
                    tracing::debug!(%error, "DNS query not received");
                    // Should it come back for good, this thread has other things to do as well.
                    tokio::task::yield_now().await;
                }
            }
        }
        // What is queued was meant for us: closing would lose it.
        while let Ok((length, client)) = socket.try_recv_from(&mut buffer) {
            self.clone().datagram(&socket, &buffer[..length], client);
        }
    }

    fn datagram(self: Rc<Self>, socket: &Rc<UdpSocket>, query: &[u8], client: SocketAddr) {
        let Ok(permit) = self.datagrams.clone().try_acquire_owned() else { return };
        let (socket, query, server) = (socket.clone(), query.to_vec(), self.clone());
        self.local.spawn("dns-query", async move {
            if let Some(answer) = server.until_forced(server.handle(&query, Transport::Udp)).await.flatten()
                && let Err(error) = socket.send_to(&answer, client).await
            {
                tracing::debug!(%error, %client, "DNS answer not delivered");
            }
            drop(permit);
        });
    }

    async fn accept(self: Rc<Self>, listener: Rc<tokio::net::TcpListener>) {
        let each = |(stream, _peer): (TcpStream, SocketAddr)| {
            let Ok(permit) = self.connections.clone().try_acquire_owned() else { return };
            let server = self.clone();
            self.local.spawn("dns-connection", async move {
                if let Some(Err(error)) = server.until_forced(server.connection(stream)).await {
                    tracing::debug!(%error, "DNS connection");
                }
                drop(permit);
            });
        };
        let accept = || descriptors::accept(&listener);
        if let Err(error) = aquifer_runtime::accept_loop("dns", accept, each, self.local.cancel()).await {
            tracing::error!(%error, "DNS listener stopped");
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        let mut buffer = BytesMut::new();
        let mut work = FuturesUnordered::new();
        let mut open = true;
        loop {
            while work.len() < MOST_PIPELINED
                && let Some(query) = take_frame(&mut buffer)
            {
                work.push(async move { self.handle(&query, Transport::Tcp).await });
            }
            if work.is_empty() && (!open || self.local.cancel().is_draining()) {
                return Ok(());
            }
            tokio::select! {
                biased;
                Some(answer) = work.next() => if let Some(answer) = answer {
                    timeout(PATIENCE, stream.write_all(&framed(&answer))).await??;
                },
                // With answers to come there is no hurry to hear more.
                read = timeout(PATIENCE, stream.read_buf(&mut buffer)), if open && work.len() < MOST_PIPELINED => {
                    match read {
                        Ok(length) => open = length? > 0,
                        Err(_) => open = !work.is_empty(),
                    }
                }
                () = self.local.cancel().drained(), if work.is_empty() => return Ok(()),
            }
        }
    }

    /// The answer to a query, if it gets one.
    async fn handle(&self, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let question = match Question::read(query, transport) {
            Ok(question) => question,
            Err(Refusal::Reply(answer)) => return Some(answer),
            Err(Refusal::Silence) => return None,
        };
        let metrics = &self.dns.metrics;
        let Some((state, client)) = self.local.workload().await else {
            metrics.request(&Labels::new(question.record_type(), transport, None));
            return Some(question.error(ResponseCode::ServFail));
        };
        let labels = Labels::new(question.record_type(), transport, Some(&client));
        metrics.request(&labels);
        let host = question.host();
        let known = host.as_ref().and_then(|(name, family)| {
            resolve::resolve(&state, &self.dns.zone, &client, (name, *family), &mut rand::rng())
        });
        drop(state);
        if let Some(known) = known {
            log(&client, &question, host, &format_args!("success"), known.addresses.len());
            return Some(question.answer(&known));
        }
        metrics.forwarded(&labels);
        let begin = Instant::now();
        let answer = self.upstream.ask(&question, query).await;
        metrics.done(&labels, begin.elapsed(), answer.is_err());
        match answer {
            Ok(answer) => {
                log(&client, &question, host, &format_args!("forwarded"), 0);
                Some(question.relay(answer))
            }
            Err(error) => {
                log(&client, &question, host, &format_args!("forwarding failed ({error})"), 0);
                Some(question.error(ResponseCode::ServFail))
            }
        }
    }

    async fn until_forced<T>(&self, work: impl Future<Output = T>) -> Option<T> {
        tokio::select! {
            biased;
            () = self.local.cancel().forced() => None,
            done = work => Some(done),
        }
    }
}

fn log(
    client: &Workload,
    question: &Question,
    host: Option<(String, resolve::Family)>,
    result: &std::fmt::Arguments<'_>,
    endpoints: usize,
) {
    tracing::debug!(
        target: "dns",
        {
            src.workload = client.name().to_string(),
            src.namespace = &*client.namespace,
            query = %question.record_type(),
            domain = host.map(|(name, _)| name),
            endpoints
        },
        "{result}"
    );
}

/// Takes a whole message off the front, if there is one.
fn take_frame(buffer: &mut BytesMut) -> Option<BytesMut> {
    let length = usize::from(u16::from_be_bytes(buffer.get(..2)?.try_into().ok()?));
    if buffer.len() < 2 + length {
        return None;
    }
    buffer.advance(2);
    Some(buffer.split_to(length))
}

#[cfg(test)]
#[path = "server/tests.rs"]
mod tests;
