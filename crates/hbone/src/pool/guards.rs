//! What must happen however a task or a future ends: each by a guard that does it on drop.

use super::admission::{ConnId, StreamPermit, Ticket};
use super::{Conn, Connect, Inner, Key, PoolError, State, now};
use crate::client::Client;
use std::any::Any;
use std::rc::{Rc, Weak};
use tokio::sync::watch;

/// A dial on its way: however its task ends, the waiters hear of it.
pub(super) struct Dial<K: Key, C: Connect<K>> {
    pub(super) pool: Weak<Inner<K, C>>,
    pub(super) key: Option<K>,
}

impl<K: Key, C: Connect<K>> Dial<K, C> {
    pub(super) fn failed(&mut self, error: PoolError<C::Error>) {
        let (Some(pool), Some(key)) = (self.pool.upgrade(), self.key.take()) else {
            return;
        };
        let (waiters, actions): (Vec<_>, _) = {
            let mut state = pool.state.borrow_mut();
            let (tickets, actions) = state.admission.dial_failed(&key, now());
            (tickets.iter().filter_map(|t| state.waiters.remove(t)).collect(), actions)
        };
        pool.act(actions, true);
        for waiter in waiters {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    pub(super) fn opened(&mut self, client: Client, peer: Option<Rc<dyn Any>>) -> Option<Opened<K, C>> {
        let (pool, key) = (self.pool.upgrade()?, self.key.take()?);
        let (conn, actions) = {
            let mut state = pool.state.borrow_mut();
            let allowed = client.max_streams();
            let (conn, actions) = state.admission.opened(&key, allowed, now());
            state.conns.insert(conn, Conn { client, limit: watch::Sender::new(allowed), peer, bulk: None });
            (conn, actions)
        };
        pool.start_sweeper();
        pool.act(actions, false);
        Some(Opened { pool: self.pool.clone(), conn })
    }
}

impl<K: Key, C: Connect<K>> Drop for Dial<K, C> {
    fn drop(&mut self) {
        self.failed(PoolError::Closed);
    }
}

/// A connection that runs: leaves the pool when its task ends.
pub(super) struct Opened<K: Key, C: Connect<K>> {
    pub(super) pool: Weak<Inner<K, C>>,
    pub(super) conn: ConnId,
}

impl<K: Key, C: Connect<K>> Opened<K, C> {
    /// Follows the peer's SETTINGS and GOAWAY, and what its streams carry.
    pub(super) fn observe(&self) {
        let Some(pool) = self.pool.upgrade() else { return };
        let mut state = pool.state.borrow_mut();
        let State { conns, admission, .. } = &mut *state;
        let Some(conn) = conns.get_mut(&self.conn) else { return };
        let bulk = conn.client.last_bulk();
        if bulk != conn.bulk
            && let Some(at) = bulk
        {
            conn.bulk = bulk;
            admission.bulk(self.conn, at);
        }
        if !conn.client.probe() {
            drop(state);
            return pool.retire(self.conn);
        }
        let allowed = conn.client.max_streams();
        if *conn.limit.borrow() != allowed {
            conn.limit.send_replace(allowed);
            let actions = admission.set_limit(self.conn, allowed, now());
            drop(state);
            pool.act(actions, true);
        }
    }
}

impl<K: Key, C: Connect<K>> Drop for Opened<K, C> {
    fn drop(&mut self) {
        let Some(pool) = self.pool.upgrade() else { return };
        let actions = {
            let mut state = pool.state.borrow_mut();
            state.conns.remove(&self.conn);
            state.admission.closed(self.conn, now())
        };
        pool.act(actions, true);
    }
}

/// A stream's permit, given back when the stream is dropped.
pub(super) struct Lease<K: Key, C: Connect<K>> {
    pub(super) pool: Weak<Inner<K, C>>,
    pub(super) permit: Option<StreamPermit>,
}

impl<K: Key, C: Connect<K>> Lease<K, C> {
    pub(super) fn conn(&self) -> ConnId {
        self.permit.as_ref().map(StreamPermit::conn).expect("taken on drop only")
    }
}

impl<K: Key, C: Connect<K>> Drop for Lease<K, C> {
    fn drop(&mut self) {
        if let (Some(pool), Some(permit)) = (self.pool.upgrade(), self.permit.take()) {
            let actions = pool.state.borrow_mut().admission.release(permit, now());
            pool.act(actions, true);
        }
    }
}

/// A request in the queue: leaves it when dropped.
pub(super) struct Waiting<K: Key, C: Connect<K>> {
    pub(super) inner: Rc<Inner<K, C>>,
    pub(super) key: K,
    pub(super) ticket: Ticket,
}

impl<K: Key, C: Connect<K>> Drop for Waiting<K, C> {
    fn drop(&mut self) {
        let mut state = self.inner.state.borrow_mut();
        if state.waiters.remove(&self.ticket).is_some() {
            state.admission.cancel(&self.key, self.ticket);
        }
    }
}
