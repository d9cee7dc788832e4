//! Which workloads have an address. Nearly always it is one: then the entry is the workload and nothing else.

use std::{
    hash::{Hash, Hasher},
    sync::Arc,
};

use super::{
    index::{Order, insert_sorted, remove_sorted},
    table::{Entry, Table},
};
use crate::{
    address::NetworkAddress,
    workload::{NetworkMode, Workload},
};

#[derive(Debug, Clone, Default)]
pub(super) struct Locations {
    table: Table<Located>,
}

/// All that has one address.
#[derive(Debug, Clone)]
enum Located {
    One {
        workload: Arc<Workload>,
        /// Which of its addresses.
        at: u32,
    },
    Many(Arc<(NetworkAddress, Vec<Arc<Workload>>)>),
}

impl Locations {
    /// The workloads with this address, in the order that they were inserted by.
    pub(super) fn get(&self, address: &NetworkAddress) -> &[Arc<Workload>] {
        self.table.get(address).map_or(&[], Located::workloads)
    }

    #[cfg(test)]
    pub(super) fn iter(&self) -> impl Iterator<Item = &[Arc<Workload>]> {
        self.table.iter().map(Located::workloads)
    }

    /// Finds the workload by its addresses from now on.
    pub(super) fn insert(&mut self, workload: &Arc<Workload>, order: Order<Workload>) {
        for (at, address) in addresses(workload) {
            let one = Located::One { workload: workload.clone(), at };
            self.table.change(&address, |held| {
                let mut many = match held {
                    None => return Some(one),
                    Some(Located::One { workload: held, .. }) => (address.clone(), vec![held]),
                    Some(Located::Many(many)) => Arc::unwrap_or_clone(many),
                };
                insert_sorted(&mut many.1, workload.clone(), order);
                // A workload may name an address twice.
                Some(if many.1.len() == 1 { one } else { Located::Many(Arc::new(many)) })
            });
        }
    }

    /// Finds it no longer.
    pub(super) fn remove(&mut self, workload: &Arc<Workload>, order: Order<Workload>) {
        for (_, address) in addresses(workload) {
            self.table.change(&address, |held| {
                let mut many = match held {
                    Some(Located::Many(many)) => Arc::unwrap_or_clone(many),
                    Some(Located::One { workload: other, at }) => {
                        let same = order(&other, workload).is_eq();
                        return (!same).then_some(Located::One { workload: other, at });
                    }
                    None => return None,
                };
                remove_sorted(&mut many.1, workload, order);
                let [last] = &many.1[..] else { return Some(Located::Many(Arc::new(many))) };
                let mut at = addresses(last).filter(|(_, other)| *other == many.0).map(|(at, _)| at);
                at.next().map(|at| Located::One { workload: last.clone(), at })
            });
        }
    }
}

impl Located {
    fn workloads(&self) -> &[Arc<Workload>] {
        match self {
            Self::One { workload, .. } => std::slice::from_ref(workload),
            Self::Many(many) => &many.1,
        }
    }
}

impl Entry<NetworkAddress> for Located {
    fn hash_key(&self, hasher: &mut impl Hasher) {
        match self {
            Self::Many(many) => many.0.hash(hasher),
            Self::One { workload, at } => {
                // As `NetworkAddress` hashes itself.
                workload.network.hash(hasher);
                workload.addresses[*at as usize].to_canonical().hash(hasher);
            }
        }
    }

    fn has_key(&self, key: &NetworkAddress) -> bool {
        match self {
            Self::Many(many) => many.0 == *key,
            Self::One { workload, at } => {
                workload.addresses[*at as usize].to_canonical() == key.address && workload.network == key.network
            }
        }
    }
}

/// The addresses that name this workload, and which of its addresses each is.
fn addresses(workload: &Workload) -> impl Iterator<Item = (u32, NetworkAddress)> + '_ {
    let addresses = match workload.network_mode {
        NetworkMode::Standard => &workload.addresses[..],
        NetworkMode::HostNetwork => &[],
    };
    let named =
        |ip: &std::net::IpAddr| NetworkAddress { network: workload.network.clone(), address: ip.to_canonical() };
    (0..).zip(addresses.iter().map(named))
}
