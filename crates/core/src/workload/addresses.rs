//! A workload's addresses: nearly always one, which then needs no memory of its own.

use std::{net::IpAddr, ops::Deref, slice};

/// A list of addresses.
#[derive(Clone, Default)]
pub struct Addresses(List);

#[derive(Clone)]
enum List {
    One(IpAddr),
    Other(Box<[IpAddr]>),
}

impl Default for List {
    fn default() -> Self {
        Self::Other(Box::default())
    }
}

impl Deref for Addresses {
    type Target = [IpAddr];

    fn deref(&self) -> &[IpAddr] {
        match &self.0 {
            List::One(address) => slice::from_ref(address),
            List::Other(addresses) => addresses,
        }
    }
}

impl From<Vec<IpAddr>> for Addresses {
    fn from(addresses: Vec<IpAddr>) -> Self {
        Self(match addresses[..] {
            [only] => List::One(only),
            _ => List::Other(addresses.into()),
        })
    }
}

impl FromIterator<IpAddr> for Addresses {
    fn from_iter<I: IntoIterator<Item = IpAddr>>(addresses: I) -> Self {
        Vec::from_iter(addresses).into()
    }
}

impl PartialEq for Addresses {
    fn eq(&self, other: &Self) -> bool {
        **self == **other
    }
}

impl Eq for Addresses {}

impl std::fmt::Debug for Addresses {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}
