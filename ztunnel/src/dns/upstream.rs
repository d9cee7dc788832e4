//! Asking the node's name servers on a pod's behalf.
//!
//! Sockets are the pod's: made in its namespace, so that its NetworkPolicy and routes hold, and marked, so that its
//! redirection rules let them out. Each try has a socket of its own, connected, under a random port and id: an answer
//! must come from the server that was asked, to the port that asked, under the id and with the question.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep_until, timeout_at};

use super::message::{Question, Transport, is_failure, set_id};
use crate::descriptors;
use crate::inpod::netns::Netns;
use crate::socket::{self, TcpOptions};

/// How long is waited for what.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// When a query is sent again, to the next server; the earlier tries stay open.
    pub again: [Duration; 3],
    /// Then whoever asks has given up.
    pub deadline: Duration,
}

impl Default for Timing {
    /// The C library gives up after five seconds.
    fn default() -> Self {
        let seconds = Duration::from_secs;
        Self { again: [seconds(1), seconds(2), seconds(3)], deadline: seconds(5) }
    }
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// Nobody to ask.
    #[error("no name server in resolv.conf")]
    NoServers,
    /// The pod has too many questions open.
    #[error("too many queries of this pod are on their way")]
    Busy,
    /// Time is up.
    #[error("no name server answered in time")]
    Timeout,
    /// The last server's failure.
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// A pod's way to the name servers.
#[derive(Debug)]
pub struct Upstream {
    servers: Vec<SocketAddr>,
    netns: Netns,
    options: TcpOptions,
    open: Semaphore,
    timing: Timing,
}

impl Upstream {
    /// At most `limit` questions are on their way at once.
    #[must_use]
    pub fn new(servers: Vec<SocketAddr>, netns: Netns, options: TcpOptions, limit: usize) -> Self {
        Self { servers, netns, options, open: Semaphore::new(limit), timing: Timing::default() }
    }

    /// With other times.
    #[must_use]
    pub fn with_timing(self, timing: Timing) -> Self {
        Self { timing, ..self }
    }

    /// Asks what `query` asks, by the transport that it came by. The answer's id is anything.
    pub async fn ask(&self, question: &Question, query: &[u8]) -> Result<Vec<u8>, UpstreamError> {
        if self.servers.is_empty() {
            return Err(UpstreamError::NoServers);
        }
        let _permit = self.open.try_acquire().map_err(|_| UpstreamError::Busy)?;
        let deadline = Instant::now() + self.timing.deadline;
        let asked = async {
            match question.transport() {
                Transport::Udp => self.by_datagrams(question, query).await,
                Transport::Tcp => self.by_connections(question, query).await,
            }
        };
        timeout_at(deadline, asked).await.unwrap_or(Err(UpstreamError::Timeout))
    }

    /// The first good answer of all tries; else the last bad one.
    async fn by_datagrams(&self, question: &Question, query: &[u8]) -> Result<Vec<u8>, UpstreamError> {
        let begin = Instant::now();
        let mut open = FuturesUnordered::new();
        // Every server is tried, and a single one more than once.
        let tries = self.servers.len().max(self.timing.again.len() + 1);
        let mut servers = self.servers.iter().cycle().take(tries).copied();
        let mut started = 0;
        let mut failed = UpstreamError::Timeout;
        let mut refusal = None;
        loop {
            if open.is_empty() {
                let Some(server) = servers.next() else { return refusal.ok_or(failed) };
                // A server that refuses at once isn't asked the same thing again at once.
                if started >= self.servers.len() {
                    if refusal.is_some() {
                        return refusal.ok_or(failed);
                    }
                    sleep_until(begin + self.again(started)).await;
                }
                started += 1;
                open.push(self.datagram(server, question, query));
            }
            tokio::select! {
                biased;
                Some(answer) = open.next() => match answer {
                    Ok(answer) if is_failure(&answer) => refusal = Some(answer),
                    Ok(answer) => return Ok(answer),
                    Err(error) => failed = error.into(),
                },
                () = sleep_until(begin + self.again(started)), if started < tries => {
                    if let Some(server) = servers.next() {
                        started += 1;
                        open.push(self.datagram(server, question, query));
                    }
                }
            }
        }
    }

    /// When the next try is due after so many.
    fn again(&self, started: usize) -> Duration {
        self.timing.again.get(started.saturating_sub(1)).copied().unwrap_or(self.timing.deadline)
    }

    async fn datagram(&self, server: SocketAddr, question: &Question, query: &[u8]) -> io::Result<Vec<u8>> {
        let socket = self.netns.run(|| socket::connected_udp(server, &self.options))??;
        descriptors::opened(&socket)?;
        let socket = UdpSocket::from_std(socket)?;
        let (id, query) = under_new_id(query);
        socket.send(&query).await?;
        // One more than the client takes shows that there is more.
        let mut answer = vec![0; question.limit() + 1];
        loop {
            let length = socket.recv(&mut answer).await?;
            // Anything else is stray, or a guess of somebody who wants to be believed.
            if question.is_answer(&answer[..length], id) {
                answer.truncate(length);
                return Ok(answer);
            }
        }
    }

    /// One server after the other.
    async fn by_connections(&self, question: &Question, query: &[u8]) -> Result<Vec<u8>, UpstreamError> {
        let share = self.timing.deadline / u32::try_from(self.servers.len()).unwrap_or(1);
        let mut failed = UpstreamError::Timeout;
        let mut refusal = None;
        for server in &self.servers {
            match timeout_at(Instant::now() + share, self.connection(*server, question, query)).await {
                Ok(Ok(answer)) if is_failure(&answer) => refusal = Some(answer),
                Ok(Ok(answer)) => return Ok(answer),
                Ok(Err(error)) => failed = error.into(),
                Err(_) => failed = UpstreamError::Timeout,
            }
        }
        refusal.ok_or(failed)
    }

    async fn connection(&self, server: SocketAddr, question: &Question, query: &[u8]) -> io::Result<Vec<u8>> {
        let (socket, _) = self.netns.run(|| socket::upstream(server, None, &self.options))??;
        descriptors::opened(&socket)?;
        let mut stream = socket.connect(server).await?;
        let (id, query) = under_new_id(query);
        stream.write_all(&framed(&query)).await?;
        loop {
            let length = stream.read_u16().await?;
            let mut answer = vec![0; usize::from(length)];
            stream.read_exact(&mut answer).await?;
            if question.is_answer(&answer, id) {
                return Ok(answer);
            }
        }
    }
}

/// A message behind its length, as on a connection (RFC 1035, 4.2.2). One longer than that can say is left empty.
#[must_use]
pub fn framed(message: &[u8]) -> Vec<u8> {
    let Ok(length) = u16::try_from(message.len()) else { return vec![0, 0] };
    let mut frame = Vec::with_capacity(2 + message.len());
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(message);
    frame
}

fn under_new_id(query: &[u8]) -> (u16, Vec<u8>) {
    let id = rand::random();
    let mut query = query.to_vec();
    set_id(&mut query, id);
    (id, query)
}
