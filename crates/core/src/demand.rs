//! Resources that are asked for one by one, where the control plane does not send all of them unasked.

use std::fmt;

use crate::address::{NamespacedHostname, NetworkAddress};

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// Whoever has this address: a workload or a service.
    Address(NetworkAddress),
    /// A service.
    Hostname(NamespacedHostname),
}

/// Which keys the control plane has answered for: what is not in the state then does not exist.
pub type Known<'a> = &'a dyn Fn(&Key) -> bool;

/// The state is all there is.
pub const ALL: Known<'static> = &|_| true;

/// The name or alias of the resource.
impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(address) => address.fmt(f),
            Self::Hostname(name) => name.fmt(f),
        }
    }
}
