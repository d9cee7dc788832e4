//! The plan of addresses: which node, pod and Service has which. Pure.
//!
//! | what | IPv4 | IPv6 |
//! | --- | --- | --- |
//! | node N | 198.18.0.N | fd00:18::N |
//! | pod of node N | 198.18.(16+N).2 … 254 | fd00:18:0:N::2 … |
//! | Service | 198.19.0.0/16 | fd00:19::/112 |
//! | the wire | 198.18.0.254 | fd00:18::fe |
//!
//! 198.18.0.0/15 is set aside for tests of network devices (RFC 2544), fd00::/8 for local use (RFC 4193).

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Nodes that fit the plan.
pub(crate) const MAX_NODES: u8 = 9;

/// The address that resolv.conf names, the resolver's. In a lab without one nothing answers there, so that a name that
/// no Service has fails at once.
pub(crate) const DNS: Ipv4Addr = Ipv4Addr::new(198, 19, 0, 10);

/// Service addresses below this are kept for the cluster's own.
const FIRST_SERVICE: u16 = 16;

/// The plan, with IPv6 or without.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Plan {
    ipv6: bool,
}

impl Plan {
    pub(crate) fn new(ipv6: bool) -> Self {
        Self { ipv6 }
    }

    /// A node's addresses, IPv4 first.
    pub(crate) fn node(self, node: u8) -> Vec<IpAddr> {
        self.both(Ipv4Addr::new(198, 18, 0, node), Ipv6Addr::new(0xfd00, 0x18, 0, 0, 0, 0, 0, node.into()))
    }

    /// The wire's own addresses.
    pub(crate) fn wire(self) -> Vec<IpAddr> {
        self.node(254)
    }

    /// A pod's addresses by its number on the node, IPv4 first.
    pub(crate) fn pod(self, node: u8, number: u8) -> Vec<IpAddr> {
        let v6 = Ipv6Addr::new(0xfd00, 0x18, 0, node.into(), 0, 0, 0, number.into());
        self.both(Ipv4Addr::new(198, 18, 16 + node, number), v6)
    }

    /// The prefixes that a node's pods have.
    pub(crate) fn pod_ranges(self, node: u8) -> Vec<String> {
        let mut ranges = vec![format!("198.18.{}.0/24", 16 + node)];
        if self.ipv6 {
            ranges.push(format!("fd00:18:0:{node:x}::/64"));
        }
        ranges
    }

    /// A Service's addresses by its number, IPv4 first.
    pub(crate) fn service(self, number: u16) -> Vec<IpAddr> {
        let [high, low] = number.to_be_bytes();
        self.both(Ipv4Addr::new(198, 19, high, low), Ipv6Addr::new(0xfd00, 0x19, 0, 0, 0, 0, 0, number))
    }

    /// The number of a Service's address, if it is one of the plan's.
    pub(crate) fn service_number(self, address: IpAddr) -> Option<u16> {
        match address {
            IpAddr::V4(v4) => match v4.octets() {
                [198, 19, high, low] => Some(u16::from_be_bytes([high, low])),
                _ => None,
            },
            IpAddr::V6(v6) => match v6.segments() {
                [0xfd00, 0x19, 0, 0, 0, 0, 0, number] => Some(number),
                _ => None,
            },
        }
    }

    fn both(self, v4: Ipv4Addr, v6: Ipv6Addr) -> Vec<IpAddr> {
        let mut both = vec![IpAddr::V4(v4)];
        if self.ipv6 {
            both.push(IpAddr::V6(v6));
        }
        both
    }
}

/// Numbers of a node's pods. A number that came back is used again last, so that what still speaks of the old
/// pod does not meet a new one at once.
#[derive(Debug)]
pub(crate) struct PodNumbers {
    free: std::collections::VecDeque<u8>,
}

impl PodNumbers {
    pub(crate) fn new() -> Self {
        Self { free: (2..=254).collect() }
    }

    pub(crate) fn take(&mut self) -> Option<u8> {
        self.free.pop_front()
    }

    /// Takes a number that a pod asks for, if it is free.
    pub(crate) fn take_exactly(&mut self, number: u8) -> Option<u8> {
        let at = self.free.iter().position(|free| *free == number)?;
        self.free.remove(at)
    }

    pub(crate) fn give_back(&mut self, number: u8) {
        debug_assert!(!self.free.contains(&number), "number {number} was given back twice");
        self.free.push_back(number);
    }
}

/// Numbers of Services.
#[derive(Debug, Default)]
pub(crate) struct ServiceNumbers {
    taken: BTreeSet<u16>,
    next: u16,
}

impl ServiceNumbers {
    pub(crate) fn take(&mut self) -> Option<u16> {
        for _ in 0..=u16::MAX {
            let number = self.next.max(FIRST_SERVICE);
            self.next = number.checked_add(1).unwrap_or(FIRST_SERVICE);
            if self.taken.insert(number) {
                return Some(number);
            }
        }
        None
    }

    /// Marks a number that a manifest asked for by its clusterIP.
    pub(crate) fn reserve(&mut self, number: u16) {
        self.taken.insert(number);
    }

    pub(crate) fn give_back(&mut self, number: u16) {
        self.taken.remove(&number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plan_is_as_documented() {
        let plan = Plan::new(true);
        let text = |ips: Vec<IpAddr>| ips.iter().map(IpAddr::to_string).collect::<Vec<_>>().join(" ");
        assert_eq!(text(plan.node(2)), "198.18.0.2 fd00:18::2");
        assert_eq!(text(plan.pod(1, 7)), "198.18.17.7 fd00:18:0:1::7");
        assert_eq!(text(plan.service(0x0102)), "198.19.1.2 fd00:19::102");
        assert_eq!(plan.pod_ranges(2), ["198.18.18.0/24", "fd00:18:0:2::/64"]);
        assert_eq!(text(Plan::new(false).pod(1, 7)), "198.18.17.7");
        for address in plan.service(515) {
            assert_eq!(plan.service_number(address), Some(515));
        }
        assert_eq!(plan.service_number(plan.node(1)[0]), None);
    }

    #[test]
    fn pod_numbers_return_last() {
        let mut numbers = PodNumbers::new();
        assert_eq!(numbers.take(), Some(2));
        numbers.give_back(2);
        let all: Vec<u8> = std::iter::from_fn(|| numbers.take()).collect();
        assert_eq!(all.len(), 253);
        assert_eq!(all.last(), Some(&2));
    }

    #[test]
    fn service_numbers_are_unique_and_skip_reserved() {
        let mut numbers = ServiceNumbers::default();
        numbers.reserve(17);
        assert_eq!([numbers.take(), numbers.take()], [Some(16), Some(18)]);
        numbers.give_back(16);
        assert_eq!(numbers.take(), Some(19));
        let mut rest = BTreeSet::new();
        while let Some(number) = numbers.take() {
            assert!(rest.insert(number) && number >= FIRST_SERVICE);
        }
        assert!(rest.contains(&16));
    }
}
