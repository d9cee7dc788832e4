//! Who is connected, and what they made of what they were sent: for debug pages.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use parking_lot::Mutex;

use super::node::NodeInfo;

/// All clients of a server. Clones are the same table.
#[derive(Clone, Debug, Default)]
pub struct Clients(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    clients: BTreeMap<u64, ClientInfo>,
}

/// One connected client.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientInfo {
    /// What it says that it is.
    pub node: NodeInfo,
    /// Where it calls from.
    pub peer: String,
    /// Since when.
    pub since: SystemTime,
    /// By type URL.
    pub types: BTreeMap<String, TypeInfo>,
}

/// How far a client is with a type.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TypeInfo {
    /// Responses made for it.
    pub sent: u64,
    /// Responses that it took or refused.
    pub answered: u64,
    /// The last response, by its nonce, and which generation of the resources it brought the client to.
    pub last_sent: Option<Stamp>,
    /// The last one that it took or refused.
    pub last_answered: Option<Stamp>,
    /// When it was made.
    pub sent_at: Option<Instant>,
    /// Since when a response waits for an answer.
    pub waiting_since: Option<Instant>,
    /// The last refusal.
    pub last_nack: Option<Nack>,
    /// Whether it is the last answer.
    pub is_rejected: bool,
}

/// A response.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Stamp {
    /// Unique on its stream.
    pub nonce: String,
    /// See [`super::Source::subscribe`].
    pub generation: u64,
}

/// A refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nack {
    /// When it came.
    pub at: SystemTime,
    /// In the client's words.
    pub reason: String,
}

/// More of a client's words is not kept.
const MAX_REASON: usize = 1024;
/// Responses that wait for an answer and are told apart.
const MAX_WAITING: usize = 64;

impl TypeInfo {
    /// How long the client has owed an answer.
    pub fn lag(&self) -> Duration {
        self.waiting_since.map(|since| since.elapsed()).unwrap_or_default()
    }
}

impl Clients {
    /// Everyone, in the order of their coming.
    pub fn list(&self) -> Vec<ClientInfo> {
        self.0.lock().clients.values().cloned().collect()
    }

    pub(super) fn connected(&self, node: &NodeInfo, peer: &str) -> ClientGuard {
        let mut table = self.0.lock();
        let key = table.next;
        table.next += 1;
        let info =
            ClientInfo { node: node.clone(), peer: peer.to_owned(), since: SystemTime::now(), types: BTreeMap::new() };
        table.clients.insert(key, info);
        ClientGuard { table: self.clone(), key, waiting: BTreeMap::new() }
    }
}

/// Keeps a client in the table for as long as it lives.
#[derive(Debug)]
pub(super) struct ClientGuard {
    table: Clients,
    key: u64,
    /// Responses without an answer, oldest first.
    waiting: BTreeMap<String, Vec<(Stamp, Instant)>>,
}

impl ClientGuard {
    pub(super) fn sent(&mut self, type_url: &str, nonce: &str, generation: u64) {
        let stamp = Stamp { nonce: nonce.to_owned(), generation };
        let waiting = self.waiting.entry(type_url.to_owned()).or_default();
        if waiting.len() < MAX_WAITING {
            waiting.push((stamp.clone(), Instant::now()));
        }
        let since = waiting.first().map(|(_, at)| *at);
        self.change(type_url, |info| {
            info.sent += 1;
            info.last_sent = Some(stamp);
            info.sent_at = Some(Instant::now());
            info.waiting_since = since;
        });
    }

    /// Of the response with this nonce and those before it.
    pub(super) fn answered(&mut self, type_url: &str, nonce: &str, rejected: Option<&str>) {
        let waiting = self.waiting.entry(type_url.to_owned()).or_default();
        let at = waiting.iter().position(|(stamp, _)| stamp.nonce == nonce);
        let stamp = at.and_then(|at| waiting.drain(..=at).next_back()).map(|(stamp, _)| stamp);
        let since = waiting.first().map(|(_, at)| *at);
        self.change(type_url, |info| {
            info.answered += 1;
            info.last_answered = stamp.or_else(|| info.last_answered.take());
            info.waiting_since = since;
            info.is_rejected = rejected.is_some();
            if let Some(reason) = rejected {
                let reason = reason.chars().take(MAX_REASON).collect();
                info.last_nack = Some(Nack { at: SystemTime::now(), reason });
            }
        });
    }

    fn change(&self, type_url: &str, change: impl FnOnce(&mut TypeInfo)) {
        if let Some(client) = self.table.0.lock().clients.get_mut(&self.key) {
            change(client.types.entry(type_url.to_owned()).or_default());
        }
    }
}

impl Drop for ClientGuard {
    fn drop(&mut self) {
        self.table.0.lock().clients.remove(&self.key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(id: &str) -> NodeInfo {
        NodeInfo { id: id.to_owned(), ..NodeInfo::default() }
    }

    #[test]
    fn a_client_is_listed_while_it_is_there() {
        let clients = Clients::default();
        let (mut first, second) = (clients.connected(&node("a"), "1"), clients.connected(&node("b"), "2"));
        first.sent("t", "1", 7);
        first.sent("t", "2", 8);
        assert_eq!(clients.list().iter().map(|c| c.node.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        let info = || clients.list()[0].types["t"].clone();
        assert!(info().waiting_since.is_some() && info().last_answered.is_none());
        first.answered("t", "1", Some("bad"));
        assert_eq!((info().sent, info().answered, info().is_rejected), (2, 1, true));
        assert_eq!(info().last_answered, Some(Stamp { nonce: "1".into(), generation: 7 }));
        assert!(info().waiting_since.is_some(), "the second is still out");
        first.answered("t", "2", None);
        assert!(!info().is_rejected && info().waiting_since.is_none() && info().lag() == Duration::ZERO);
        assert_eq!(info().last_answered, info().last_sent);
        assert_eq!(info().last_nack.unwrap().reason, "bad", "the last refusal stays to be read");
        drop(first);
        assert_eq!(clients.list().len(), 1);
        drop(second);
        assert!(clients.list().is_empty());
    }
}
