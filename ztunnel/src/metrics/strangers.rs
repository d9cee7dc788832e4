//! Clients that the mesh doesn't know, such as those of another network behind a gateway, as they describe themselves.
//!
//! What they say goes into labels and lines and decides nothing. A label set stays as long as the process does, so only
//! so many descriptions are taken, of one identity and in all; past that a client is unknown again.

use std::collections::HashMap;
use std::sync::Arc;

use aquifer_core::hbone::Baggage;
use aquifer_core::identity::Identity;
use aquifer_core::workload::Workload;

/// An identity has a few workloads, versions and zones.
const OF_ONE: usize = 128;
const IN_ALL: usize = 1024;

/// Those that were met.
#[derive(Debug, Default)]
pub(super) struct Strangers {
    met: HashMap<Identity, HashMap<Baggage, Arc<Workload>>>,
    count: usize,
}

impl Strangers {
    /// The client of this identity that says this: the same one each time.
    pub(super) fn meet(&mut self, identity: &Identity, said: &Baggage) -> Option<Arc<Workload>> {
        let met = self.met.get(identity);
        if let Some(stranger) = met.and_then(|met| met.get(said)) {
            return Some(stranger.clone());
        }
        if self.count >= IN_ALL || met.is_some_and(|met| met.len() >= OF_ONE) {
            return None;
        }
        let stranger = Arc::new(said.speaker(identity)?);
        self.met.entry(identity.clone()).or_default().insert(said.clone(), stranger.clone());
        self.count += 1;
        Some(stranger)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_calls_itself_ever_anew_is_soon_unknown_and_leaves_room_for_others() {
        let mut strangers = Strangers::default();
        let mut meet = |account: &str, name: usize| {
            let said = format!("k8s.namespace.name=amb,service.name=v{name}").parse().unwrap();
            strangers.meet(&Identity::new("cluster.local", "amb", account), &said)
        };
        let first = meet("a", 0).unwrap();
        assert_eq!((1..1000).filter(|name| meet("a", *name).is_some()).count(), OF_ONE - 1);
        assert!(Arc::ptr_eq(&first, &meet("a", 0).unwrap()), "those that were met stay");
        assert!(meet("b", 0).is_some());
        let accounts: Vec<String> = (0..100).map(|n| format!("c{n}")).collect();
        let more = accounts.iter().flat_map(|account| (0..100).map(move |name| (account, name)));
        assert_eq!(more.filter(|(account, name)| meet(account, *name).is_some()).count(), IN_ALL - OF_ONE - 1);
    }
}
