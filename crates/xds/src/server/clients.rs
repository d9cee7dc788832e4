//! Who is connected, and what they made of what they were sent: for a debug page.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::SystemTime;

use parking_lot::Mutex;

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
    /// Its node id.
    pub id: String,
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
    /// Why it refused one, if the last answer did.
    pub rejected: Option<String>,
}

impl Clients {
    /// Everyone, in the order of their coming.
    pub fn list(&self) -> Vec<ClientInfo> {
        self.0.lock().clients.values().cloned().collect()
    }

    pub(super) fn connected(&self, id: &str, peer: &str) -> ClientGuard {
        let mut table = self.0.lock();
        let key = table.next;
        table.next += 1;
        let (id, peer) = (id.to_owned(), peer.to_owned());
        table.clients.insert(key, ClientInfo { id, peer, since: SystemTime::now(), types: BTreeMap::new() });
        ClientGuard { table: self.clone(), key }
    }
}

/// Keeps a client in the table for as long as it lives.
#[derive(Debug)]
pub(super) struct ClientGuard {
    table: Clients,
    key: u64,
}

impl ClientGuard {
    pub(super) fn sent(&self, type_url: &str) {
        self.change(type_url, |info| info.sent += 1);
    }

    pub(super) fn answered(&self, type_url: &str, rejected: Option<&str>) {
        self.change(type_url, |info| {
            info.answered += 1;
            info.rejected = rejected.map(str::to_owned);
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

    #[test]
    fn a_client_is_listed_while_it_is_there() {
        let clients = Clients::default();
        let (first, second) = (clients.connected("a", "1"), clients.connected("b", "2"));
        first.sent("t");
        first.sent("t");
        first.answered("t", Some("bad"));
        let list = clients.list();
        assert_eq!(list.iter().map(|c| c.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
        assert_eq!(list[0].types["t"], TypeInfo { sent: 2, answered: 1, rejected: Some("bad".into()) });
        first.answered("t", None);
        assert_eq!(clients.list()[0].types["t"].rejected, None);
        drop(first);
        assert_eq!(clients.list().len(), 1);
        drop(second);
        assert!(clients.list().is_empty());
    }
}
