//! The client's pool: many streams to one peer share a connection.
//!
//! A pool belongs to one worker and runs on its local runtime. What may happen is decided by [`admission`]; this
//! carries it out: a task per connection, one sweeper, waiters woken in order.

pub mod admission;
mod guards;

use crate::client::{self, Client, HboneRequest};
use crate::config::ClientConfig;
use crate::credit::Budget;
use crate::error::ConnectError;
use crate::stream::H2Stream;
use admission::{Action, Admission, ConnId, Decision, StreamPermit, Ticket};
use aquifer_core::reason::Reason;
use aquifer_runtime::{Cancel, Tracker};
use guards::{Dial, Lease, Waiting};
use http::HeaderMap;
use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::hash::Hash;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;

#[cfg(test)]
mod tests;

/// What connections are shared by: two requests with equal keys may ride one connection.
pub trait Key: Hash + Eq + Clone + 'static {}

impl<K: Hash + Eq + Clone + 'static> Key for K {}

/// How to reach the peer of a key: TCP and TLS, done and authenticated.
pub trait Connect<K>: 'static {
    /// The byte stream that HTTP/2 will run on.
    type Io: AsyncRead + AsyncWrite + Unpin + 'static;
    /// Why there is none.
    type Error: std::error::Error + 'static;

    /// Connects.
    fn connect(&self, key: &K) -> impl Future<Output = Result<Self::Io, Self::Error>>;

    /// What each stream shall know of the peer at the other end of its connection; see [`H2Stream::peer`].
    fn peer(&self, io: &Self::Io) -> Option<Rc<dyn Any>> {
        let _ = io;
        None
    }
}

/// Settings of a pool.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolConfig {
    /// Streams on one connection at most, whatever the peer allows (POOL_MAX_STREAMS_PER_CONNECTION).
    pub max_streams: usize,
    /// Connections that a key may have beyond what its streams need, so that new streams do not share one with bulk.
    pub spare: usize,
    /// How long a stream waits for such a connection before it takes a place beside bulk.
    pub spare_patience: Duration,
    /// A connection without streams is closed after this (POOL_UNUSED_RELEASE_TIMEOUT).
    pub idle_timeout: Duration,
    /// TCP connect, TLS and HTTP/2 handshake together.
    pub connect_timeout: Duration,
    /// The connections themselves.
    pub client: ClientConfig,
}

impl Default for PoolConfig {
    fn default() -> Self {
        Self {
            max_streams: client::INITIAL_MAX_STREAMS,
            spare: 3,
            spare_patience: Duration::from_millis(100),
            idle_timeout: Duration::from_secs(300),
            connect_timeout: Duration::from_secs(10),
            client: ClientConfig::default(),
        }
    }
}

/// Why the pool gave no stream. `E` is the connector's error; all who waited for one dial share it.
#[derive(Debug, thiserror::Error)]
pub enum PoolError<E: std::error::Error> {
    /// The connector failed.
    #[error("{0}")]
    Connect(Arc<E>),
    /// It took too long.
    #[error("no connection within {0:?}")]
    ConnectTimeout(Duration),
    /// The connection stood, its HTTP/2 handshake failed.
    #[error("{0}")]
    Handshake(Arc<h2::Error>),
    /// The connection stood, the stream was refused or broke.
    #[error("{0}")]
    Stream(ConnectError),
    /// The pool is shut down.
    #[error("connection pool closed")]
    Closed,
}

impl<E: std::error::Error> Clone for PoolError<E> {
    fn clone(&self) -> Self {
        match self {
            Self::Connect(e) => Self::Connect(e.clone()),
            Self::ConnectTimeout(t) => Self::ConnectTimeout(*t),
            Self::Handshake(e) => Self::Handshake(e.clone()),
            Self::Stream(e) => Self::Stream(e.clone()),
            Self::Closed => Self::Closed,
        }
    }
}

impl<E: std::error::Error> PoolError<E> {
    /// Its place in the mesh's list of reasons; `connect` says the connector's.
    pub fn reason(&self, connect: impl FnOnce(&E) -> Reason) -> Reason {
        match self {
            Self::Connect(e) => connect(e),
            Self::ConnectTimeout(_) => Reason::HboneTimeout,
            Self::Handshake(_) => Reason::H2Failed,
            Self::Stream(e) => e.reason(),
            Self::Closed => Reason::Shutdown,
        }
    }
}

/// Times that a stream is asked for again when the peer surely did not act on the request.
const RETRIES: usize = 2;

/// A pool of connections; clones share it. When the last clone is dropped, idle connections close, and the others
/// once their streams end.
pub struct Pool<K: Key, C: Connect<K>> {
    inner: Rc<Inner<K, C>>,
}

impl<K: Key, C: Connect<K>> Clone for Pool<K, C> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone() }
    }
}

impl<K: Key, C: Connect<K>> Pool<K, C> {
    /// An empty pool. On `cancel`'s drain connections close as soon as they have no streams, on force at once.
    pub fn new(connector: C, config: PoolConfig, cancel: Cancel, tracker: Tracker) -> Self {
        Self::within(Budget::default(), connector, config, cancel, tracker)
    }

    /// Like [`new`](Self::new), with what the pod's connections may hold together.
    pub fn within(budget: Budget, connector: C, config: PoolConfig, cancel: Cancel, tracker: Tracker) -> Self {
        let state = State {
            admission: Admission::new(config.max_streams, config.spare, config.idle_timeout),
            conns: HashMap::new(),
            waiters: HashMap::new(),
        };
        Self {
            inner: Rc::new(Inner {
                connector: Rc::new(connector),
                state: RefCell::new(state),
                sweeping: Cell::new(false),
                config,
                budget,
                cancel,
                tracker,
            }),
        }
    }

    /// Opens a stream to the key's peer, on a connection with room or a new one. Returns it with the headers of
    /// the peer's 200.
    pub async fn stream(&self, key: &K, request: &HboneRequest) -> Result<(H2Stream, HeaderMap), PoolError<C::Error>> {
        let mut retries = 0;
        loop {
            let granted = self.acquire(key).await?;
            let result = tokio::select! {
                biased;
                result = granted.client.connect(request) => result,
                // The connection allows fewer streams than was assumed; h2 would hold this one back.
                () = above_limit(&granted) => Err(h2::Error::from(h2::Reason::REFUSED_STREAM).into()),
            };
            match result {
                Ok((mut stream, headers)) => {
                    stream.tie(granted.lease, granted.peer);
                    return Ok((stream, headers));
                }
                Err(e) => {
                    if e.is_connection_lost() || !granted.client.is_open() {
                        self.inner.retire(granted.lease.conn());
                    }
                    // A connection from the pool may have been ended by the peer a moment ago. No byte of the
                    // stream has been sent, so asking once more is safe. A new connection that breaks at once
                    // does so for a reason (in TLS 1.3 a refused client certificate shows only now).
                    let stale = granted.pooled && e.is_connection_lost();
                    if retries == RETRIES || !(stale || e.is_unprocessed()) {
                        return Err(PoolError::Stream(e));
                    }
                    retries += 1;
                }
            }
        }
    }

    /// Has the connections of the matching keys take no more streams; those that run go on.
    pub fn retire_where(&self, matches: impl FnMut(&K) -> bool) {
        let due = self.inner.state.borrow().admission.conns_where(matches);
        for conn in due {
            self.inner.retire(conn);
        }
    }

    /// Open connections that still take streams.
    pub fn connections(&self) -> usize {
        self.inner.state.borrow().conns.len()
    }

    async fn acquire(&self, key: &K) -> Result<Granted<K, C>, PoolError<C::Error>> {
        if self.inner.cancel.is_forced() {
            return Err(PoolError::Closed);
        }
        let decision = self.inner.state.borrow_mut().admission.request(key, now());
        let (ticket, dial) = match decision {
            Decision::Reuse(_, permit) => return self.inner.grant(permit, true).ok_or(PoolError::Closed),
            Decision::Open(ticket) => (ticket, true),
            Decision::Wait(ticket) => (ticket, false),
        };
        let (tx, rx) = oneshot::channel();
        self.inner.state.borrow_mut().waiters.insert(ticket, tx);
        let _waiting = Waiting { inner: self.inner.clone(), key: key.clone(), ticket };
        if dial {
            self.inner.dial(key.clone());
        }
        let mut served = pin!(rx);
        let patience = tokio::time::timeout(self.inner.config.spare_patience, &mut served);
        let served = match patience.await {
            Ok(served) => served,
            Err(_) => {
                let actions = self.inner.state.borrow_mut().admission.hurry(key, ticket, now());
                self.inner.act(actions, true);
                served.await
            }
        };
        served.unwrap_or(Err(PoolError::Closed))
    }
}

type Served<K, C> = Result<Granted<K, C>, PoolError<<C as Connect<K>>::Error>>;

struct State<K: Key, C: Connect<K>> {
    admission: Admission<K>,
    /// Without the handle here h2 closes a connection after its last stream.
    conns: HashMap<ConnId, Conn>,
    waiters: HashMap<Ticket, oneshot::Sender<Served<K, C>>>,
}

/// A connection that takes streams.
struct Conn {
    client: Client,
    /// What the peer allows, as far as known.
    limit: watch::Sender<usize>,
    peer: Option<Rc<dyn Any>>,
    /// When bulk was last seen on it.
    bulk: Option<std::time::Instant>,
}

struct Inner<K: Key, C: Connect<K>> {
    connector: Rc<C>,
    state: RefCell<State<K, C>>,
    sweeping: Cell<bool>,
    config: PoolConfig,
    budget: Budget,
    cancel: Cancel,
    tracker: Tracker,
}

struct Granted<K: Key, C: Connect<K>> {
    client: Client,
    lease: Lease<K, C>,
    limit: watch::Receiver<usize>,
    peer: Option<Rc<dyn Any>>,
    /// Whether the connection stood before the stream was asked for.
    pooled: bool,
}

/// Ends when the peer turns out to allow fewer streams than this one's rank.
async fn above_limit<K: Key, C: Connect<K>>(granted: &Granted<K, C>) {
    let rank = granted.lease.permit.as_ref().map_or(0, StreamPermit::rank);
    if granted.limit.clone().wait_for(|limit| *limit < rank).await.is_err() {
        // The connection left the pool; the request on it goes on.
        std::future::pending().await
    }
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

impl<K: Key, C: Connect<K>> Inner<K, C> {
    fn grant(self: &Rc<Self>, permit: StreamPermit, pooled: bool) -> Option<Granted<K, C>> {
        let state = self.state.borrow();
        let conn = state.conns.get(&permit.conn()).map(|c| (c.client.clone(), c.limit.subscribe(), c.peer.clone()));
        drop(state);
        let lease = Lease { pool: Rc::downgrade(self), permit: Some(permit) };
        let (client, limit, peer) = conn?;
        Some(Granted { client, lease, limit, peer, pooled })
    }

    /// Carries out what an event lets happen. Never called with the state borrowed: waking a waiter that is gone
    /// releases its permit, which is an event again.
    fn act(self: &Rc<Self>, actions: Vec<Action<K>>, pooled: bool) {
        for action in actions {
            match action {
                Action::Grant(ticket, permit) => {
                    let waiter = self.state.borrow_mut().waiters.remove(&ticket);
                    let granted = self.grant(permit, pooled).ok_or(PoolError::Closed);
                    if let Some(waiter) = waiter {
                        let _ = waiter.send(granted);
                    }
                }
                Action::Dial(key) => self.dial(key),
            }
        }
        if self.cancel.is_draining() {
            self.sweep(true);
        }
    }

    fn dial(self: &Rc<Self>, key: K) {
        let mut dial = Dial { pool: Rc::downgrade(self), key: Some(key.clone()) };
        let connector = self.connector.clone();
        let (timeout, config) = (self.config.connect_timeout, self.config.client.clone());
        let (cancel, budget) = (self.cancel.clone(), self.budget.clone());
        self.tracker.spawn_local("hbone-connection", async move {
            let connect = tokio::time::timeout(timeout, async {
                let io = connector.connect(&key).await.map_err(|e| PoolError::Connect(Arc::new(e)))?;
                let peer = connector.peer(&io);
                let handshake = client::handshake_within(io, &config, &budget).await;
                handshake.map(|(client, driver)| (client, driver, peer)).map_err(|e| PoolError::Handshake(Arc::new(e)))
            });
            let connected = tokio::select! {
                biased;
                () = cancel.forced() => Err(PoolError::Closed),
                done = connect => done.unwrap_or(Err(PoolError::ConnectTimeout(timeout))),
            };
            drop(connector);
            let (client, driver, peer) = match connected {
                Ok(connected) => connected,
                Err(e) => return dial.failed(e),
            };
            let Some(conn) = dial.opened(client, peer) else { return };
            let run = driver.run_observed(|| conn.observe());
            let ended = tokio::select! {
                biased;
                () = cancel.forced() => Ok(()),
                ended = run => ended,
            };
            if let Err(error) = ended {
                tracing::debug!(%error, "pooled connection ended");
            }
        });
    }

    /// Takes a connection out of the pool; its streams go on.
    fn retire(&self, conn: ConnId) {
        let mut state = self.state.borrow_mut();
        state.admission.retire(conn);
        state.conns.remove(&conn);
    }

    fn sweep(&self, all: bool) {
        let mut state = self.state.borrow_mut();
        if all {
            state.admission.set_idle_timeout(Duration::ZERO);
        }
        for conn in state.admission.sweep(now()) {
            state.conns.remove(&conn);
        }
    }

    /// One task closes what is idle, as long as there are connections.
    fn start_sweeper(self: &Rc<Self>) {
        if self.sweeping.replace(true) {
            return;
        }
        let (pool, cancel, idle) = (Rc::downgrade(self), self.cancel.clone(), self.config.idle_timeout);
        self.tracker.spawn_local("hbone-pool-sweeper", async move {
            loop {
                let Some(inner) = pool.upgrade() else { return };
                // What falls idle from now on is not due before one whole timeout.
                let due = inner.state.borrow().admission.next_sweep().map(Instant::from_std);
                let wake = due.unwrap_or_else(|| Instant::now() + idle);
                drop(inner);
                let drained = tokio::select! {
                    () = cancel.drained() => true,
                    () = tokio::time::sleep_until(wake) => false,
                };
                let Some(inner) = pool.upgrade() else { return };
                inner.sweep(drained);
                if drained || inner.state.borrow().conns.is_empty() {
                    inner.sweeping.set(false);
                    return;
                }
            }
        });
    }
}
