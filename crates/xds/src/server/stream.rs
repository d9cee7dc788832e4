//! One client: a task that follows the source at the client's own pace.

use std::collections::{BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use aquifer_proto::xds::DeltaDiscoveryRequest;
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tonic::Status;

use super::answer::Answer;
use super::body::{Item, Progress};
use super::clients::{ClientGuard, Clients};
use super::driver::{Caller, Hangup, Source};
use super::limits::{Bucket, Limits, NackBackoff};
use super::metrics::{ConnectionGuard, ServerMetrics};
use super::node;
use super::requests::Requests;
use super::session::{Note, Refused, Session};
use crate::resource::ResourceSet;

/// Answers that a client has asked for and not read yet; beyond it, no more requests of its are read.
const MAX_UNREAD: usize = 32;

/// A client may begin with as many requests that tell what it holds.
const FIRST_REQUESTS: u32 = 8;

/// Bytes of an answer that count like another request.
const BYTES_OF_A_REQUEST: f64 = 64.0 * 1024.0;

/// At most one line in so long about a client that refuses everything.
const NACK_LINES: Duration = Duration::from_secs(5);

/// The other end.
pub(super) struct Peer {
    pub(super) address: String,
    pub(super) caller: Caller,
    pub(super) hangup: Option<Hangup>,
    pub(super) progress: Arc<Progress>,
}

/// The task's state.
pub(super) struct ClientStream<S> {
    source: S,
    changes: watch::Receiver<u64>,
    /// The one snapshot that all types of this stream are answered from, replaced by a push of all of them.
    current: Arc<ResourceSet>,
    generation: u64,
    /// When it was pushed, while some of that is unread.
    pushed_at: Option<Instant>,
    peer: Peer,
    metrics: ServerMetrics,
    clients: Clients,
    limits: Limits,
    /// There from the first request on.
    client: Option<Client>,
    requests_read: u32,
    tokens: Bucket,
    unread: VecDeque<Answer>,
    stalled: Stalled,
}

struct Client {
    session: Session,
    id: String,
    _counted: ConnectionGuard,
    listed: ClientGuard,
    backoff: NackBackoff,
    /// Types whose last response was refused.
    refused: BTreeSet<String>,
    told_at: Option<Instant>,
}

/// Since when a client has taken nothing.
struct Stalled {
    pieces: u64,
    since: Instant,
}

impl<S: Source> ClientStream<S> {
    pub(super) fn new(source: &S, peer: Peer, metrics: ServerMetrics, clients: Clients, limits: Limits) -> Self {
        let (source, mut changes, now) = (source.clone(), source.subscribe(), Instant::now());
        let generation = *changes.borrow_and_update();
        Self {
            current: source.snapshot(),
            source,
            changes,
            generation,
            pushed_at: None,
            peer,
            metrics,
            clients,
            limits,
            client: None,
            requests_read: 0,
            tokens: Bucket::new(&limits, now),
            unread: VecDeque::new(),
            stalled: Stalled { pieces: 0, since: now },
        }
    }

    pub(super) async fn run<B>(mut self, mut requests: Requests<B>, out: mpsc::Sender<Item>)
    where
        B: http_body::Body,
        B::Error: fmt::Display,
    {
        let ended = self.serve(&mut requests, &out).await;
        let client = self.client.as_ref().map_or("", |client| &client.id);
        match ended {
            Ok(()) => tracing::info!(peer = self.peer.address, client, "xds client disconnected"),
            Err(End::Lost(why)) => tracing::info!(peer = self.peer.address, client, why, "xds client lost"),
            Err(End::Refused(status)) => {
                tracing::warn!(peer = self.peer.address, client, error = status.message(), "xds stream refused");
                // It is told when it reads, and need not be waited for.
                let _ = tokio::time::timeout(self.limits.write_timeout, out.send(Err(status))).await;
            }
            Err(End::Stuck) => {
                let seconds = self.limits.write_timeout.as_secs();
                tracing::warn!(peer = self.peer.address, client, seconds, "xds client reads nothing: disconnected");
                self.metrics.write_timeout();
                self.peer.progress.give_up();
                if let Some(Hangup(connection)) = &self.peer.hangup {
                    connection.force();
                }
            }
        }
    }

    async fn serve<B>(&mut self, requests: &mut Requests<B>, out: &mpsc::Sender<Item>) -> Result<(), End>
    where
        B: http_body::Body,
        B::Error: fmt::Display,
    {
        loop {
            let now = Instant::now();
            let may_ask = self.unread.len() < MAX_UNREAD;
            let waits_until = self.tokens.ready_at(now);
            let held_until = self.client.as_ref().and_then(|client| client.backoff.until(now));
            // Only an idle stream is pushed to: a slow client gets one push of all that changed meanwhile.
            let may_push = self.unread.is_empty() && held_until.is_none();
            let limit = self.request_limit();
            let first_due = self.client.is_none().then(|| self.tokens_since() + self.limits.first_request_timeout);
            let large_due = requests.large_since().map(|since| since + self.limits.write_timeout);
            let stuck_due = (!self.unread.is_empty()).then(|| self.stalled.since + self.limits.write_timeout);
            tokio::select! {
                place = out.reserve(), if !self.unread.is_empty() => {
                    let (Ok(place), Some(answer)) = (place, self.unread.pop_front()) else {
                        return Ok(());
                    };
                    place.send(Ok(answer));
                    self.sent();
                }
                changed = self.changes.changed(), if may_push => match changed {
                    Ok(()) => self.push(),
                    Err(_) => return Ok(()), // The source is gone.
                },
                request = requests.next(limit), if may_ask && waits_until.is_none() => match request {
                    Ok(Some(received)) => self.request(received.request).map_err(End::Refused)?,
                    Ok(None) => return Ok(()),
                    Err(status) if status.code() == tonic::Code::Cancelled => {
                        return Err(End::Lost(status.message().to_owned()));
                    }
                    Err(status) => return Err(End::Refused(status)),
                },
                () = sleep_until(waits_until), if may_ask => self.metrics.delayed(),
                () = sleep_until(held_until) => {}
                () = sleep_until(first_due) => {
                    return Err(End::Refused(Status::deadline_exceeded("nothing was asked for")));
                }
                () = sleep_until(large_due) => {
                    return Err(End::Refused(Status::deadline_exceeded("the request took too long to come")));
                }
                () = sleep_until(stuck_due) => {
                    let pieces = self.peer.progress.pieces();
                    if pieces == self.stalled.pieces {
                        return Err(End::Stuck);
                    }
                    self.stalled = Stalled { pieces, since: Instant::now() };
                }
                () = out.closed() => return Ok(()),
            }
        }
    }

    /// When the stream began.
    fn tokens_since(&self) -> Instant {
        self.stalled.since
    }

    fn request_limit(&self) -> usize {
        match self.requests_read < FIRST_REQUESTS {
            true => self.limits.first_request_bytes,
            false => self.limits.request_bytes,
        }
    }

    fn request(&mut self, request: DeltaDiscoveryRequest) -> Result<(), Status> {
        let started = Instant::now();
        self.requests_read = self.requests_read.saturating_add(1);
        self.tokens.take(1.0, started);
        if self.client.is_none() {
            let node = node::check(request.node.as_ref(), &self.peer.caller)?;
            tracing::info!(peer = self.peer.address, client = node.id, "xds client connected");
            self.client = Some(Client {
                _counted: self.metrics.connected(node.version.as_deref()),
                listed: self.clients.connected(&node, &self.peer.address),
                session: Session::new(node.node_name),
                id: node.id,
                backoff: NackBackoff::default(),
                refused: BTreeSet::new(),
                told_at: None,
            });
        }
        if self.current.of_type(&request.type_url).is_none() {
            self.source.want(&request.type_url);
            self.push();
        }
        let Some(client) = &mut self.client else {
            return Ok(());
        };
        let (type_url, nonce) = (request.type_url.clone(), request.response_nonce.clone());
        let handled =
            client.session.handle(request, &self.current).map_err(|refused| refusal(&refused, &self.peer.caller))?;
        match &handled.note {
            Note::Nacked(error) => {
                self.metrics.rejected(&type_url);
                client.nacked(&type_url, &nonce, error, &self.limits, started);
            }
            Note::Stale => self.metrics.expired_nonce(&type_url),
            Note::Acked => client.acked(&type_url, &nonce),
            Note::Subscribed => {}
        }
        self.enqueue(handled.responses, started);
        Ok(())
    }

    fn push(&mut self) {
        self.generation = *self.changes.borrow_and_update();
        self.current = self.source.snapshot();
        let Some(client) = &mut self.client else {
            return;
        };
        let started = Instant::now();
        let answers = client.session.push(&self.current);
        if !answers.is_empty() {
            self.pushed_at = Some(started);
        }
        self.enqueue(answers, started);
    }

    fn enqueue(&mut self, answers: Vec<Answer>, started: Instant) {
        if self.unread.is_empty() && !answers.is_empty() {
            self.stalled = Stalled { pieces: self.peer.progress.pieces(), since: started };
        }
        for answer in answers {
            let (seconds, bytes) = (started.elapsed().as_secs_f64(), answer.encoded_len());
            self.metrics.built(answer.type_url(), bytes, seconds);
            if self.pushed_at.is_none() {
                self.tokens.take(bytes as f64 / BYTES_OF_A_REQUEST, started);
            }
            if let Some(client) = &mut self.client {
                client.listed.sent(answer.type_url(), answer.nonce(), self.generation);
            }
            self.unread.push_back(answer);
        }
    }

    /// An answer is on its way.
    fn sent(&mut self) {
        let now = Instant::now();
        self.metrics.sent((now - self.stalled.since).as_secs_f64());
        self.stalled = Stalled { pieces: self.peer.progress.pieces(), since: now };
        if self.unread.is_empty()
            && let Some(since) = self.pushed_at.take()
        {
            self.metrics.converged((now - since).as_secs_f64());
        }
    }
}

impl Client {
    fn nacked(&mut self, type_url: &str, nonce: &str, error: &str, limits: &Limits, now: Instant) {
        self.listed.answered(type_url, nonce, Some(error));
        self.backoff.nacked(limits, now);
        self.refused.insert(type_url.to_owned());
        if self.told_at.is_none_or(|told| now - told >= NACK_LINES) {
            self.told_at = Some(now);
            tracing::warn!(client = self.id, type_url, error, "xds response rejected");
        }
    }

    fn acked(&mut self, type_url: &str, nonce: &str) {
        self.listed.answered(type_url, nonce, None);
        if self.refused.remove(type_url) && self.refused.is_empty() {
            self.backoff.recovered();
        }
    }
}

/// Why a stream ends that the client did not end.
enum End {
    /// The connection broke.
    Lost(String),
    /// The client is told why.
    Refused(Status),
    /// It doesn't read, so it can't be told.
    Stuck,
}

fn refusal(refused: &Refused, caller: &Caller) -> Status {
    match (refused, caller) {
        // istiod answers so: types beyond the mesh's own are for callers that proved who they are.
        (Refused::UnknownType(_), Caller::Anonymous) => Status::unauthenticated(refused.to_string()),
        _ => Status::invalid_argument(refused.to_string()),
    }
}

async fn sleep_until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}
