//! Automatic addresses of ServiceEntries: who has which, and who needs one.
//!
//! The index only proposes. A leader writes proposals into the status of the entries, and an address counts once it
//! stands there: so all replicas agree, and nothing is given out twice.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use aquifer_objects::crds::ServiceAddress;
use aquifer_objects::{Kind, ObjectKey};
use k8s_openapi::jiff::Timestamp;
use xxhash_rust::xxh64::xxh64;

use super::Allocation;
use crate::translate::service_entry::{ServiceEntryFacts, automatic};
use crate::translate::waypoint::Key;

/// How many numbers there are, from 1 on.
const NUMBERS: u16 = 65534;

type Owner = (Option<Timestamp>, Key);

/// Which addresses stand in the status of which entries, and which have been proposed.
#[derive(Debug, Default)]
pub(super) struct Addresses {
    standing: HashMap<IpAddr, BTreeSet<Owner>>,
    of: HashMap<Key, (Owner, Vec<IpAddr>)>,
    proposed: BTreeMap<Key, Vec<ServiceAddress>>,
    taken: HashSet<IpAddr>,
}

impl Addresses {
    /// Notes what stands in an entry's status. Returns other entries that the same address stands in.
    pub(super) fn stands(&mut self, key: &Key, entry: Option<&ServiceEntryFacts>) -> Vec<Key> {
        let mut touched: Vec<IpAddr> = Vec::new();
        if let Some((owner, addresses)) = self.of.remove(key) {
            for ip in &addresses {
                if let Some(owners) = self.standing.get_mut(ip) {
                    owners.remove(&owner);
                    if owners.is_empty() {
                        self.standing.remove(ip);
                    }
                }
            }
            touched.extend(addresses);
        }
        if let Some(entry) = entry.filter(|entry| entry.wants_addresses) {
            let addresses: Vec<IpAddr> = entry.allocated.values().flatten().copied().collect();
            let owner: Owner = (entry.created, key.clone());
            for ip in &addresses {
                self.standing.entry(*ip).or_default().insert(owner.clone());
            }
            touched.extend(&addresses);
            self.of.insert(key.clone(), (owner, addresses));
        }
        let others = touched.iter().filter_map(|ip| self.standing.get(ip)).flatten().map(|(_, other)| other);
        others.filter(|other| *other != key).cloned().collect()
    }

    /// The entry is gone, or wants nothing any more.
    pub(super) fn withdraw(&mut self, key: &Key) {
        for address in self.proposed.remove(key).into_iter().flatten() {
            if let Ok(ip) = address.value.parse() {
                self.taken.remove(&ip);
            }
        }
    }

    /// All that waits for being written.
    pub(super) fn proposed(&self) -> Vec<Allocation> {
        self.proposed.iter().map(|(key, addresses)| allocation(key, addresses.clone())).collect()
    }

    /// What an entry is to have, if that is not what stands in its status, and not what was proposed before.
    pub(super) fn propose(&mut self, key: &Key, entry: &ServiceEntryFacts) -> Option<Allocation> {
        let before = self.proposed.get(key).cloned().unwrap_or_default();
        self.withdraw(key);
        let mut wanted = Vec::new();
        let mut complete = true;
        for host in entry.hosts_without_addresses() {
            let standing = self.kept(key, entry, host);
            let addresses = match standing {
                Some(addresses) => addresses,
                None => {
                    complete = false;
                    self.again(host, &before).or_else(|| self.free(key, host))?
                }
            };
            wanted.extend(addresses.map(|ip| ServiceAddress { value: ip.to_string(), host: (**host).to_owned() }));
        }
        if complete {
            return None;
        }
        self.taken.extend(wanted.iter().filter_map(|address| address.value.parse::<IpAddr>().ok()));
        self.proposed.insert(key.clone(), wanted.clone());
        (wanted != before).then(|| allocation(key, wanted))
    }

    /// The addresses of both families that stand in the status, unless an older entry has one of them.
    fn kept(&self, key: &Key, entry: &ServiceEntryFacts, host: &str) -> Option<[IpAddr; 2]> {
        let standing = entry.allocated.get(host)?;
        let owner: Owner = (entry.created, key.clone());
        let own = |ip: &&IpAddr| self.standing.get(*ip).and_then(BTreeSet::first) == Some(&owner);
        let v4 = standing.iter().filter(|ip| ip.is_ipv4()).find(own)?;
        let v6 = standing.iter().filter(|ip| ip.is_ipv6()).find(own)?;
        Some([*v4, *v6])
    }

    /// What was proposed for the host before, if nobody has it meanwhile.
    fn again(&self, host: &str, before: &[ServiceAddress]) -> Option<[IpAddr; 2]> {
        let mut of_host = before.iter().filter(|address| address.host == host);
        let mut next = || of_host.next()?.value.parse::<IpAddr>().ok().filter(|ip| self.is_free(ip));
        Some([next()?, next()?])
    }

    /// An address that follows from the name, so that one who comes back gets the same; the next free one if another
    /// has it.
    fn free(&self, (namespace, name): &Key, host: &str) -> Option<[IpAddr; 2]> {
        let hash = xxh64(format!("{namespace}/{name}/{host}").as_bytes(), 0);
        let first = u16::try_from(hash % u64::from(NUMBERS)).ok()?;
        (0..NUMBERS)
            .map(|step| automatic((u32::from(first) + u32::from(step)).rem_euclid(u32::from(NUMBERS)) as u16 + 1))
            .find(|pair| pair.iter().all(|ip| self.is_free(ip)))
    }

    fn is_free(&self, ip: &IpAddr) -> bool {
        !self.taken.contains(ip) && !self.standing.contains_key(ip)
    }
}

fn allocation((namespace, name): &Key, addresses: Vec<ServiceAddress>) -> Allocation {
    let entry = ObjectKey { kind: Kind::ServiceEntry, namespace: Arc::clone(namespace), name: Arc::clone(name) };
    Allocation { entry, addresses }
}
