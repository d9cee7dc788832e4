//! Workloads without the wrapper that addresses have: a second type made of the first one, for clients that ask for it.
//!
//! Made when the first of them asks, and followed from then on: what a change costs depends on the change. The messages
//! are parts of the addresses' own bytes.

use std::sync::Arc;

use aquifer_proto::type_url::{ADDRESS, WORKLOAD};

use super::{Resource, ResourceSet, TypeSet};

/// Field 1 of an address, length-delimited: its workload.
const WORKLOAD_KEY: u8 = 1 << 3 | 2;

impl ResourceSet {
    /// Serves workloads besides addresses from now on; says whether that is new.
    pub(crate) fn serve_workloads(&mut self) -> bool {
        let Some(addresses) = self.of_type(ADDRESS).filter(|_| self.of_type(WORKLOAD).is_none()) else {
            return false;
        };
        let type_url: Arc<str> = WORKLOAD.into();
        let mut workloads = TypeSet::new(Arc::clone(&type_url));
        addresses.iter().filter_map(|address| unwrapped(address, &type_url)).for_each(|workload| {
            workloads.upsert(workload);
        });
        self.types.insert(type_url, workloads);
        self.unwraps = true;
        true
    }

    /// Makes the workloads what the addresses are, given the set in which they last were so.
    pub(crate) fn follow_addresses(&mut self, older: &Self) {
        if !older.unwraps {
            return;
        }
        let both = |set: &Self| Some((set.of_type(ADDRESS)?.clone(), set.of_type(WORKLOAD)?.clone()));
        let (Some((before, mut workloads)), Some(now)) = (both(older), self.of_type(ADDRESS)) else {
            return;
        };
        let type_url = Arc::clone(&workloads.type_url);
        for touched in now.since(&before).touched() {
            match now.get(&touched.name).and_then(|address| unwrapped(address, &type_url)) {
                Some(workload) => workloads.upsert(workload),
                None => workloads.remove(&touched.name),
            };
        }
        self.types.insert(type_url, workloads);
        self.unwraps = true;
    }
}

/// The workload in an address; `None` for a service.
fn unwrapped(address: &Resource, type_url: &Arc<str>) -> Option<Resource> {
    let (key, rest) = address.body.split_first()?;
    let (length, digits) = length(rest)?;
    if *key != WORKLOAD_KEY || rest.len() != digits + length {
        return None;
    }
    let body = address.body.slice(1 + digits..);
    let workload = Resource::from_bytes(Arc::clone(type_url), Arc::clone(&address.name), body);
    let (aliases, follows, node) = (address.aliases.clone(), address.follows.clone(), address.node.clone());
    Some(Resource { aliases, follows, node, ..workload })
}

/// A varint and how many bytes it takes.
fn length(bytes: &[u8]) -> Option<(usize, usize)> {
    let mut number = 0;
    for (at, byte) in bytes.iter().take(5).enumerate() {
        number |= usize::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            return Some((number, at + 1));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use aquifer_proto::workload::{Address, Service, Workload, address};
    use prost::Message as _;

    use super::*;

    fn workload(uid: &str, name: &str) -> Workload {
        Workload { uid: uid.into(), name: name.into(), ..Workload::default() }
    }

    fn wrapped(workload: Workload) -> Resource {
        let uid = workload.uid.clone();
        let address = Address { r#type: Some(address::Type::Workload(workload)) };
        Resource::new(ADDRESS, uid, &address).with_aliases(vec!["/10.0.0.1".into()]).with_node("node1")
    }

    fn service(name: &str) -> Resource {
        let service = Service { hostname: name.into(), ..Service::default() };
        Resource::new(ADDRESS, name, &Address { r#type: Some(address::Type::Service(service)) })
    }

    #[test]
    fn workloads_are_what_the_addresses_are() {
        let mut set = ResourceSet::of_types([ADDRESS]);
        set.upsert(wrapped(workload("a", &"long".repeat(100))));
        set.upsert(service("s"));
        assert!(set.serve_workloads());
        assert!(!set.serve_workloads());
        let found = set.get(WORKLOAD, "a").unwrap();
        let expected = workload("a", &"long".repeat(100));
        assert_eq!(Workload::decode(found.body.clone()).unwrap(), expected);
        assert_eq!(found.version, Resource::new(WORKLOAD, "a", &expected).version);
        assert_eq!(set.of_type(WORKLOAD).unwrap().len(), 1);

        // Changed, new, gone, found by other names, and a service where a workload was.
        let before = set.clone();
        for uid in ["b", "c", "d"] {
            set.upsert(wrapped(workload(uid, uid)));
        }
        set.follow_addresses(&before);
        assert_eq!(set.of_type(WORKLOAD).unwrap().len(), 4);
        let before = set.clone();
        set.upsert(wrapped(workload("a", "short")));
        set.upsert(wrapped(workload("e", "e")));
        set.remove(ADDRESS, "b");
        set.upsert(wrapped(workload("c", "c")).with_aliases(vec!["/10.0.0.2".into()]));
        set.upsert(service("d"));
        set.follow_addresses(&before);

        let workloads = set.of_type(WORKLOAD).unwrap();
        let mut names: Vec<&str> = workloads.iter().map(|w| &*w.name).collect();
        names.sort_unstable();
        assert_eq!(names, ["a", "c", "e"]);
        assert_eq!(Workload::decode(workloads.get("a").unwrap().body.clone()).unwrap().name, "short");
        assert_eq!(workloads.by_alias("/10.0.0.2").len(), 1);
        assert_eq!(workloads.on_node("node1").len(), 3);
        // A set that was put in its place follows as well.
        let mut another = ResourceSet::of_types([ADDRESS]);
        another.upsert(wrapped(workload("f", "f")));
        another.follow_addresses(&set);
        assert_eq!(another.of_type(WORKLOAD).unwrap().iter().map(|w| &*w.name).collect::<Vec<_>>(), ["f"]);
    }

    #[test]
    fn nothing_is_made_before_somebody_asks() {
        let mut set = ResourceSet::of_types([ADDRESS]);
        let before = set.clone();
        set.upsert(wrapped(workload("a", "a")));
        set.follow_addresses(&before);
        assert!(set.of_type(WORKLOAD).is_none());
        assert!(!ResourceSet::of_types(["other"]).serve_workloads());
    }
}
