//! The node's probe sets: which pods the kubelet's probes reach under the address that pods let pass.

use crate::keeper::Layout;
use crate::netlink::nft::{self, Batch};
use crate::netlink::socket::{Family, NetlinkError, Socket};
use crate::redirection;
use crate::rules::pod::ProbeAddresses;
use crate::rules::{Table, encode, host};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

/// The node's table and what its sets hold. Its methods are called in the node's network namespace.
#[derive(Debug)]
pub struct Probes {
    addresses: ProbeAddresses,
    /// The user whose connections are probes: ours, which is the kubelet's.
    uid: u32,
    /// Address → pods that have it. A pod may get the address of one that is not quite gone yet.
    pods: Mutex<BTreeMap<IpAddr, BTreeSet<String>>>,
}

impl Probes {
    /// With the pods that were enrolled before.
    pub fn new(addresses: ProbeAddresses, uid: u32, enrolled: impl IntoIterator<Item = (String, Vec<IpAddr>)>) -> Self {
        let mut pods: BTreeMap<IpAddr, BTreeSet<String>> = BTreeMap::new();
        for (pod, ips) in enrolled {
            for ip in ips {
                pods.entry(ip).or_default().insert(pod.clone());
            }
        }
        Self { addresses, uid, pods: Mutex::new(pods) }
    }

    /// Lets probes of the pod through. Addresses that it had before and has no longer are taken out.
    pub fn admit(&self, pod: &str, ips: &[IpAddr]) -> Result<(), NetlinkError> {
        let mut pods = self.pods.lock();
        let stale = release(&mut pods, pod, ips);
        for ip in ips {
            pods.entry(*ip).or_default().insert(pod.to_owned());
        }
        self.change(&pods, ips, &stale)
    }

    /// The pod's addresses are taken out, unless another pod has them by now.
    pub fn withdraw(&self, pod: &str) -> Result<(), NetlinkError> {
        let mut pods = self.pods.lock();
        let stale = release(&mut pods, pod, &[]);
        self.change(&pods, &[], &stale)
    }

    fn change(
        &self,
        pods: &BTreeMap<IpAddr, BTreeSet<String>>,
        added: &[IpAddr],
        removed: &[IpAddr],
    ) -> Result<(), NetlinkError> {
        if added.is_empty() && removed.is_empty() {
            return Ok(());
        }
        let mut batch = Batch::new();
        for ip in added {
            batch.add_elements(host::TABLE, host::set_of(*ip), &[*ip]);
        }
        for ip in removed {
            batch.delete_elements(host::TABLE, host::set_of(*ip), &[*ip]);
        }
        // Someone took the table or an element away: all of it again, as it should be.
        batch.commit_here().or_else(|_| self.lay_all(pods))
    }

    fn lay_all(&self, pods: &BTreeMap<IpAddr, BTreeSet<String>>) -> Result<(), NetlinkError> {
        encode::replace(&[self.table(pods)], &[]).commit_here()
    }

    fn table(&self, pods: &BTreeMap<IpAddr, BTreeSet<String>>) -> Table {
        let ips: Vec<IpAddr> = pods.keys().copied().collect();
        host::table(self.addresses, self.uid, &ips)
    }
}

/// Takes the node's table away, called in the node's network namespace.
pub fn remove() -> Result<(), NetlinkError> {
    let mut batch = Batch::new();
    batch.delete_table(host::TABLE);
    batch.commit_here()
}

impl Layout for Probes {
    fn missing(&self) -> Result<Vec<String>, NetlinkError> {
        let pods = self.pods.lock();
        let table = self.table(&pods);
        let mut missing = redirection::missing_tables(std::slice::from_ref(&table))?;
        if missing.is_empty() {
            let socket = Socket::open(Family::Netfilter)?;
            for set in &table.sets {
                let found: BTreeSet<IpAddr> = nft::elements(&socket, table.name, set.name)?.into_iter().collect();
                if found != set.elements.iter().copied().collect() {
                    missing.push(format!("set {}", set.name));
                }
            }
        }
        Ok(missing)
    }

    fn lay(&self) -> Result<(), NetlinkError> {
        self.lay_all(&self.pods.lock())
    }
}

/// Takes the pod off all addresses but these; the addresses that nobody has any more.
fn release(pods: &mut BTreeMap<IpAddr, BTreeSet<String>>, pod: &str, keep: &[IpAddr]) -> Vec<IpAddr> {
    let mut stale = Vec::new();
    pods.retain(|ip, owners| {
        if !keep.contains(ip) && owners.remove(pod) && owners.is_empty() {
            stale.push(*ip);
        }
        !owners.is_empty()
    });
    stale
}
