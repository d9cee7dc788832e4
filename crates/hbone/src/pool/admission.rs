//! Who gets a stream on which connection: the pool's decisions, without IO, clock or tasks.
//!
//! Per key there is at most one dial at a time. A request is either given a permit on a connection with room, or
//! a ticket; the tickets of a key are served in order as streams end and dials succeed. The limit is checked and
//! the permit taken in one step, so no connection is ever above its limit.
//!
//! Bulk on a connection holds up whatever shares it: bytes queue in one TCP stream. So new streams go to a connection
//! without, and where there is none yet another is dialled, up to a few more than the streams need. Who waits for that
//! dial need not wait long ([`Admission::hurry`]), and a dial that fails does him no harm: there is room beside the
//! bulk.

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
    /// Until then something large is taken to be under way.
    bulk_until: Option<Instant>,
}

impl<K> Conn<K> {
    fn has_room(&self) -> bool {
        self.active < self.limit
    }

    fn has_bulk(&self, now: Instant) -> bool {
        self.bulk_until.is_some_and(|until| now < until)
    }
}

#[derive(Default)]
struct Lane {
    /// Oldest first.
    conns: Vec<ConnId>,
    waiting: VecDeque<Waiter>,
    dialing: bool,
    /// A dial that was not strictly needed failed: none such before then.
    spare_after: Option<Instant>,
}

struct Waiter {
    ticket: Ticket,
    /// Takes a place beside bulk as well.
    hurried: bool,
}

/// Which connections will do.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Room {
    WithoutBulk,
    Any,
}

/// After this long without more of it, bulk is over.
const BULK_LASTS: Duration = Duration::from_secs(2);
/// Between two attempts at a connection that is not strictly needed.
const SPARE_RETRY: Duration = Duration::from_secs(1);

/// The state of one pool.
pub struct Admission<K> {
    lanes: HashMap<K, Lane>,
    conns: HashMap<ConnId, Conn<K>>,
    max_streams: usize,
    spare: usize,
    idle_timeout: Duration,
    next: u64,
}

impl<K: Hash + Eq + Clone> Admission<K> {
    /// `max_streams` bounds every connection, whatever its peer allows; a key has at most `spare` connections more than
    /// its streams need, to keep them away from bulk.
    pub fn new(max_streams: usize, spare: usize, idle_timeout: Duration) -> Self {
        let max_streams = max_streams.max(1);
        Self { lanes: HashMap::new(), conns: HashMap::new(), max_streams, spare, idle_timeout, next: 0 }
    }

    /// A stream is wanted.
    pub fn request(&mut self, key: &K, now: Instant) -> Decision {
        // Whoever waits comes first: a dial is on its way for him.
        if self.lanes.get(key).is_none_or(|lane| lane.waiting.is_empty())
            && let Some(permit) = self.take_permit(key, Room::WithoutBulk, now)
        {
            return Decision::Reuse(permit.conn, permit);
        }
        let ticket = Ticket(self.id());
        let lane = self.lanes.entry(key.clone()).or_default();
        lane.waiting.push_back(Waiter { ticket, hurried: false });
        if lane.dialing {
            Decision::Wait(ticket)
        } else {
            lane.dialing = true;
            Decision::Open(ticket)
        }
    }

    /// This waiter, and those before him, will take any room from now on.
    pub fn hurry(&mut self, key: &K, ticket: Ticket, now: Instant) -> Vec<Action<K>> {
        let Some(lane) = self.lanes.get_mut(key) else { return Vec::new() };
        let Some(at) = lane.waiting.iter().position(|w| w.ticket == ticket) else { return Vec::new() };
        for waiter in lane.waiting.iter_mut().take(at + 1) {
            waiter.hurried = true;
        }
        self.serve(key, now)
    }

    /// The waiter of a ticket is gone. Harmless if it was served meanwhile.
    pub fn cancel(&mut self, key: &K, ticket: Ticket) {
        if let Some(lane) = self.lanes.get_mut(key) {
            lane.waiting.retain(|w| w.ticket != ticket);
        }
        self.tidy(key);
    }

    /// The dial for `key` gave a connection that allows `limit` streams.
    pub fn opened(&mut self, key: &K, limit: usize, now: Instant) -> (ConnId, Vec<Action<K>>) {
        let id = ConnId(self.id());
        let lane = self.lanes.entry(key.clone()).or_default();
        lane.dialing = false;
        lane.spare_after = None;
        lane.conns.push(id);
        let conn = Conn {
            key: key.clone(),
            limit: limit.min(self.max_streams),
            active: 0,
            retired: false,
            idle_since: now,
            bulk_until: None,
        };
        self.conns.insert(id, conn);
        (id, self.serve(key, now))
    }

    /// The dial for `key` failed: those for whom there is room beside bulk get it, the error goes to all others who
    /// waited.
    pub fn dial_failed(&mut self, key: &K, now: Instant) -> (Vec<Ticket>, Vec<Action<K>>) {
        let Some(lane) = self.lanes.get_mut(key) else { return (Vec::new(), Vec::new()) };
        lane.dialing = false;
        lane.spare_after = Some(now + SPARE_RETRY);
        for waiter in &mut lane.waiting {
            waiter.hurried = true;
        }
        let actions = self.grants(key, now);
        let failed = self.lanes.get_mut(key).map(|lane| lane.waiting.drain(..).map(|w| w.ticket).collect());
        self.tidy(key);
        (failed.unwrap_or_default(), actions)
    }

    /// Something large is under way on a connection.
    pub fn bulk(&mut self, id: ConnId, now: Instant) {
        if let Some(conn) = self.conns.get_mut(&id) {
            conn.bulk_until = Some(now + BULK_LASTS);
        }
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

    fn take_permit(&mut self, key: &K, room: Room, now: Instant) -> Option<StreamPermit> {
        let id = self.choose(key, room, now)?;
        let conn = self.conns.get_mut(&id)?;
        conn.active += 1;
        conn.idle_since = now;
        Some(StreamPermit { conn: id, rank: conn.active })
    }

    fn choose(&self, key: &K, room: Room, now: Instant) -> Option<ConnId> {
        let lane = self.lanes.get(key)?;
        let roomy =
            || lane.conns.iter().filter_map(|id| Some((*id, self.conns.get(id)?))).filter(|(_, c)| c.has_room());
        // The first: fills the older connections, so that the younger ones fall idle and go.
        if let Some((id, _)) = roomy().find(|(_, conn)| !conn.has_bulk(now)) {
            return Some(id);
        }
        let spare = roomy().count() <= self.spare && lane.spare_after.is_none_or(|after| after <= now);
        if room == Room::WithoutBulk && spare {
            return None;
        }
        roomy().min_by_key(|(_, conn)| conn.active).map(|(id, _)| id)
    }

    /// Serves waiters in order while there is room, then asks for a dial if some remain.
    fn serve(&mut self, key: &K, now: Instant) -> Vec<Action<K>> {
        let mut actions = self.grants(key, now);
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

    fn grants(&mut self, key: &K, now: Instant) -> Vec<Action<K>> {
        let mut actions = Vec::new();
        while let Some(first) = self.lanes.get(key).and_then(|lane| lane.waiting.front()) {
            let ticket = first.ticket;
            let room = if first.hurried { Room::Any } else { Room::WithoutBulk };
            let Some(permit) = self.take_permit(key, room, now) else { break };
            if let Some(lane) = self.lanes.get_mut(key) {
                lane.waiting.pop_front();
            }
            actions.push(Action::Grant(ticket, permit));
        }
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
