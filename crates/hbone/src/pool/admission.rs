//! Who gets a stream on which connection: the pool's decisions, without IO, clock or tasks.
//!
//! Per key there is at most one dial at a time. A request is either given a permit on a connection with room, or
//! a ticket; the tickets of a key are served in order as streams end and dials succeed. The limit is checked and
//! the permit taken in one step, so no connection is ever above its limit.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::time::{Duration, Instant};

#[cfg(test)]
mod tests;

/// Names a connection for its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ConnId(u64);

/// Names a waiting request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The right to one stream. Not `Clone`: it comes from a decision and goes back by [`Admission::release`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a permit that is not released is a stream that is counted for ever"]
pub struct StreamPermit {
    conn: ConnId,
    rank: usize,
}

impl StreamPermit {
    /// The connection that it is for.
    pub fn conn(&self) -> ConnId {
        self.conn
    }

    /// How many streams the connection had with this one. Until the peer's SETTINGS are known its limit is only
    /// assumed; a stream whose rank turns out to be above it will not be opened there for now.
    pub fn rank(&self) -> usize {
        self.rank
    }
}

/// The answer to a request.
#[derive(Debug, PartialEq, Eq)]
pub enum Decision {
    /// Open the stream on this connection.
    Reuse(ConnId, StreamPermit),
    /// Dial for the key, and wait for the ticket to be served.
    Open(Ticket),
    /// Wait for the ticket to be served.
    Wait(Ticket),
}

/// What an event lets happen; the caller carries it out.
#[derive(Debug, PartialEq, Eq)]
pub enum Action<K> {
    /// The ticket is served.
    Grant(Ticket, StreamPermit),
    /// Waiters remain without a dial on its way: dial for this key.
    Dial(K),
}

struct Conn<K> {
    key: K,
    limit: usize,
    active: usize,
    /// Takes no new streams: GOAWAY, or told to leave. It is forgotten when closed.
    retired: bool,
    idle_since: Instant,
}

struct Lane {
    conns: Vec<ConnId>,
    waiting: VecDeque<Ticket>,
    dialing: bool,
}

/// The state of one pool.
pub struct Admission<K> {
    lanes: HashMap<K, Lane>,
    conns: HashMap<ConnId, Conn<K>>,
    max_streams: usize,
    idle_timeout: Duration,
    next: u64,
}

impl<K: Hash + Eq + Clone> Admission<K> {
    /// `max_streams` bounds every connection, whatever its peer allows.
    pub fn new(max_streams: usize, idle_timeout: Duration) -> Self {
        Self { lanes: HashMap::new(), conns: HashMap::new(), max_streams: max_streams.max(1), idle_timeout, next: 0 }
    }

    /// A stream is wanted.
    pub fn request(&mut self, key: &K, now: Instant) -> Decision {
        if let Some(permit) = self.take_permit(key, now) {
            return Decision::Reuse(permit.conn, permit);
        }
        let ticket = Ticket(self.id());
        let lane = self.lanes.entry(key.clone()).or_insert_with(|| Lane {
            conns: Vec::new(),
            waiting: VecDeque::new(),
            dialing: false,
        });
        lane.waiting.push_back(ticket);
        if lane.dialing {
            Decision::Wait(ticket)
        } else {
            lane.dialing = true;
            Decision::Open(ticket)
        }
    }

    /// The waiter of a ticket is gone. Harmless if it was served meanwhile.
    pub fn cancel(&mut self, key: &K, ticket: Ticket) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.waiting.retain(|t| *t != ticket);
        }
        self.tidy(key);
    }

    /// The dial for `key` gave a connection that allows `limit` streams.
    pub fn opened(&mut self, key: &K, limit: usize, now: Instant) -> (ConnId, Vec<Action<K>>) {
        let id = ConnId(self.id());
        let lane = self.lanes.entry(key.clone()).or_insert_with(|| Lane {
            conns: Vec::new(),
            waiting: VecDeque::new(),
            dialing: false,
        });
        lane.dialing = false;
        lane.conns.push(id);
        let conn =
            Conn { key: key.clone(), limit: limit.min(self.max_streams), active: 0, retired: false, idle_since: now };
        self.conns.insert(id, conn);
        (id, self.serve(key, now))
    }

    /// The dial for `key` failed: its error goes to all who waited.
    pub fn dial_failed(&mut self, key: &K) -> Vec<Ticket> {
        let Some(lane) = self.lanes.get_mut(key) else {
            return Vec::new();
        };
        lane.dialing = false;
        let failed = lane.waiting.drain(..).collect();
        self.tidy(key);
        failed
    }

    /// A stream has ended.
    pub fn release(&mut self, permit: StreamPermit, now: Instant) -> Vec<Action<K>> {
        // A connection that closed before its streams were dropped is no longer known.
        let Some(conn) = self.conns.get_mut(&permit.conn) else {
            return Vec::new();
        };
        conn.active -= 1;
        conn.idle_since = now;
        let key = conn.key.clone();
        self.serve(&key, now)
    }

    /// The peer's SETTINGS changed what it allows. Streams above a lowered limit live on; no new ones are let in.
    pub fn set_limit(&mut self, id: ConnId, limit: usize, now: Instant) -> Vec<Action<K>> {
        let max = self.max_streams;
        let Some(conn) = self.conns.get_mut(&id) else {
            return Vec::new();
        };
        conn.limit = limit.min(max);
        let key = conn.key.clone();
        self.serve(&key, now)
    }

    /// The connection takes no more streams; those it has go on.
    pub fn retire(&mut self, id: ConnId) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.retired = true;
            if let Some(lane) = self.lanes.get_mut(&conn.key) {
                lane.conns.retain(|c| *c != id);
            }
            let key = conn.key.clone();
            self.tidy(&key);
        }
    }

    /// The connection is gone. Its permits may still be released, to no effect. Waiters that counted on its
    /// streams ending get a dial.
    pub fn closed(&mut self, id: ConnId, now: Instant) -> Vec<Action<K>> {
        self.retire(id);
        match self.conns.remove(&id) {
            Some(conn) => self.serve(&conn.key, now),
            None => Vec::new(),
        }
    }

    /// Takes out the connections that were without a stream for too long; the caller closes them.
    pub fn sweep(&mut self, now: Instant) -> Vec<ConnId> {
        let due: Vec<ConnId> =
            self.idle().filter(|(_, since)| *since + self.idle_timeout <= now).map(|(id, _)| id).collect();
        for id in &due {
            self.retire(*id);
        }
        due
    }

    /// Changes how long a connection may be idle. Zero while draining.
    pub fn set_idle_timeout(&mut self, timeout: Duration) {
        self.idle_timeout = timeout;
    }

    /// When [`sweep`](Self::sweep) has something to do at the earliest.
    pub fn next_sweep(&self) -> Option<Instant> {
        self.idle().map(|(_, since)| since + self.idle_timeout).min()
    }

    /// Connections of all keys that match, for retiring them.
    pub fn conns_where(&self, mut matches: impl FnMut(&K) -> bool) -> Vec<ConnId> {
        self.conns.iter().filter(|(_, c)| matches(&c.key)).map(|(id, _)| *id).collect()
    }

    fn idle(&self) -> impl Iterator<Item = (ConnId, Instant)> + '_ {
        self.conns.iter().filter(|(_, c)| c.active == 0 && !c.retired).map(|(id, c)| (*id, c.idle_since))
    }

    fn take_permit(&mut self, key: &K, now: Instant) -> Option<StreamPermit> {
        let lane = self.lanes.get(key)?;
        // The first with room: fills the older connections, so that the younger ones fall idle and go.
        for id in &lane.conns {
            let conn = self.conns.get_mut(id)?;
            if conn.active < conn.limit {
                conn.active += 1;
                conn.idle_since = now;
                return Some(StreamPermit { conn: *id, rank: conn.active });
            }
        }
        None
    }

    /// Serves waiters in order while there is room, then asks for a dial if some remain.
    fn serve(&mut self, key: &K, now: Instant) -> Vec<Action<K>> {
        let mut actions = Vec::new();
        while self.lanes.get(key).is_some_and(|l| !l.waiting.is_empty()) {
            let Some(permit) = self.take_permit(key, now) else { break };
            let ticket = self.lanes.get_mut(key).and_then(|l| l.waiting.pop_front());
            let ticket = ticket.expect("the loop's condition saw a waiter");
            actions.push(Action::Grant(ticket, permit));
        }
        if let Some(lane) = self.lanes.get_mut(key)
            && !lane.waiting.is_empty()
            && !lane.dialing
        {
            lane.dialing = true;
            actions.push(Action::Dial(key.clone()));
        }
        self.tidy(key);
        actions
    }

    /// Keys come and go with pods; an empty lane is forgotten.
    fn tidy(&mut self, key: &K) {
        if self.lanes.get(key).is_some_and(|l| l.conns.is_empty() && l.waiting.is_empty() && !l.dialing) {
            self.lanes.remove(key);
        }
    }

    fn id(&mut self) -> u64 {
        self.next += 1;
        self.next
    }
}
