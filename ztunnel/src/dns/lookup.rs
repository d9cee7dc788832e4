//! Looking up the hostnames of workloads that have no address, for ourselves: from our own pod, by our own name servers.
//!
//! Names are full ones, so the search list plays no part. An answer is kept as long as its records allow; of many who
//! want one name at once, one asks and the others wait for it.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use parking_lot::Mutex;
use tokio::time::Instant;

use super::message::{Question, Transport};
use super::resolv_conf::host;
use super::upstream::{Upstream, UpstreamError};

/// How long a name without addresses is not asked for again (RFC 2308 allows what the zone says; this is less).
const NEGATIVE: Duration = Duration::from_secs(5);

/// The same where nobody answered.
const FAILED: Duration = Duration::from_secs(1);

/// The same for names in the file of hosts, which may be edited.
const HOSTS: Duration = Duration::from_secs(5);

/// However long a record may be kept (RFC 8767, 4: a week is too long for most).
const LONGEST: u32 = 24 * 3600;

/// Names that are kept; beyond, those that have run out are dropped.
const KEPT: usize = 4096;

/// What an answer in a datagram may hold without being cut on its way (DNS flag day 2020).
const DATAGRAM: u16 = 1232;

/// Who answers questions.
pub trait Ask: Send + Sync {
    /// Answers `query`, which asks `question`.
    fn ask(&self, question: &Question, query: &[u8]) -> impl Future<Output = Result<Vec<u8>, UpstreamError>>;
}

impl Ask for Upstream {
    async fn ask(&self, question: &Question, query: &[u8]) -> Result<Vec<u8>, UpstreamError> {
        Self::ask(self, question, query).await
    }
}

/// Looks names up.
#[derive(Debug)]
pub struct Resolver<A = Upstream> {
    upstream: A,
    hosts: Option<PathBuf>,
    ipv6: bool,
    names: Mutex<HashMap<Arc<str>, Arc<Entry>>>,
}

/// A name's answer; whoever holds the lock asks.
type Entry = tokio::sync::Mutex<Option<Answer>>;

#[derive(Clone, Debug, PartialEq, Eq)]
struct Answer {
    addresses: Vec<IpAddr>,
    until: Instant,
}

/// What one question brought.
#[derive(Debug, PartialEq, Eq)]
struct Found {
    addresses: Vec<IpAddr>,
    keep: Duration,
}

impl<A: Ask> Resolver<A> {
    /// `hosts`: the file of names that need no question.
    #[must_use]
    pub fn new(upstream: A, hosts: Option<PathBuf>, ipv6: bool) -> Self {
        Self { upstream, hosts, ipv6, names: Mutex::default() }
    }

    /// The addresses of a host; none: it has none, or nobody knows.
    pub async fn lookup(&self, name: &str) -> Vec<IpAddr> {
        let name = name.trim_end_matches('.').to_ascii_lowercase();
        let entry = self.entry(&name);
        let mut answer = entry.lock().await;
        if let Some(answer) = &*answer
            && answer.until > Instant::now()
        {
            return answer.addresses.clone();
        }
        let Found { addresses, keep } = self.resolve(&name).await;
        *answer = Some(Answer { addresses: addresses.clone(), until: Instant::now() + keep });
        addresses
    }

    fn entry(&self, name: &str) -> Arc<Entry> {
        let mut names = self.names.lock();
        if let Some(entry) = names.get(name) {
            return entry.clone();
        }
        if names.len() >= KEPT {
            let now = Instant::now();
            // One that is locked is in use.
            names.retain(|_, entry| entry.try_lock().map_or(true, |a| a.as_ref().is_some_and(|a| a.until > now)));
        }
        let entry = Arc::default();
        if names.len() < KEPT {
            names.insert(name.into(), Arc::clone(&entry));
        }
        entry
    }

    async fn resolve(&self, name: &str) -> Found {
        if let Some(path) = &self.hosts {
            // A short file, once in a while.
            let addresses = std::fs::read_to_string(path).map(|text| host(&text, name)).unwrap_or_default();
            if !addresses.is_empty() {
                return Found { addresses, keep: HOSTS };
            }
        }
        let Ok(name) = Name::from_ascii(format!("{name}.")) else {
            return Found { addresses: Vec::new(), keep: NEGATIVE };
        };
        let (v4, v6) = futures_util::join!(self.records(&name, RecordType::A), async {
            if self.ipv6 { Some(self.records(&name, RecordType::AAAA).await) } else { None }
        });
        merge([Some(v4), v6].into_iter().flatten())
    }

    async fn records(&self, name: &Name, kind: RecordType) -> Result<Found, UpstreamError> {
        let query = query(name, kind);
        for transport in [Transport::Udp, Transport::Tcp] {
            // A query of our own making is one.
            let Ok(question) = Question::read(&query, transport) else { break };
            let answer = self.upstream.ask(&question, &query).await?;
            let Ok(answer) = Message::from_vec(&answer) else { break };
            if answer.metadata.truncation && transport == Transport::Udp {
                continue;
            }
            return Ok(found(name, kind, &answer));
        }
        Ok(Found { addresses: Vec::new(), keep: FAILED })
    }
}

fn query(name: &Name, kind: RecordType) -> Vec<u8> {
    let mut message = Message::new(0, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(name.clone(), kind));
    let mut edns = Edns::new();
    edns.set_version(0).set_max_payload(DATAGRAM);
    message.set_edns(edns);
    message.to_vec().unwrap_or_default()
}

/// The addresses behind `name`, along its aliases, and how long all of that holds.
fn found(name: &Name, kind: RecordType, answer: &Message) -> Found {
    let none = |keep| Found { addresses: Vec::new(), keep };
    if !matches!(answer.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain) {
        return none(FAILED);
    }
    let mut ttl = LONGEST;
    let mut name = name;
    // Each step uses an alias up, so loops end.
    for _ in 0..answer.answers.len() {
        let alias = answer.answers.iter().find_map(|record| match &record.data {
            RData::CNAME(target) if record.name.eq_ignore_root(name) => Some((&target.0, record.ttl)),
            _ => None,
        });
        let Some((target, until)) = alias else { break };
        (name, ttl) = (target, ttl.min(until));
    }
    let mut addresses = Vec::new();
    for record in answer.answers.iter().filter(|r| r.name.eq_ignore_root(name) && r.record_type() == kind) {
        addresses.extend(record.data.ip_addr());
        ttl = ttl.min(record.ttl);
    }
    if addresses.is_empty() {
        return none(NEGATIVE);
    }
    Found { addresses, keep: Duration::from_secs(ttl.into()) }
}

/// One family's silence doesn't spoil the other's answer.
fn merge(parts: impl Iterator<Item = Result<Found, UpstreamError>>) -> Found {
    let (mut addresses, mut keep, mut none) = (Vec::new(), None, NEGATIVE);
    for part in parts {
        match part {
            Ok(found) if found.addresses.is_empty() => none = none.min(found.keep),
            Ok(found) => {
                addresses.extend(found.addresses);
                keep = Some(keep.map_or(found.keep, |keep: Duration| keep.min(found.keep)));
            }
            Err(error) => {
                tracing::debug!(%error, "lookup failed");
                none = none.min(FAILED);
            }
        }
    }
    Found { addresses, keep: keep.unwrap_or(none) }
}

#[cfg(test)]
mod tests;
