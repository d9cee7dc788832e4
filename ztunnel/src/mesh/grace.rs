//! How long policies that were just named, and are not known yet, are waited for. Pure.
//!
//! Istio's control plane sends workloads before policies, so a workload may name a policy for a moment before that one
//! arrives. Each pair of a workload and a policy has its own time: one that is named anew is waited for anew.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::policy::PolicyKey;
use aquifer_core::state::{MeshState, UnknownPolicies};
use aquifer_core::workload::Uid;
use tokio::time::Instant;

/// What is made of unknown policies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Settings {
    /// `AUTHZ_POLICY_GRACE`: how long one is waited for before it denies.
    pub wait: Duration,
    /// `AUTHZ_UNKNOWN_POLICY=skip`: as if it were not named, as Istio does.
    pub skip: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { wait: Duration::from_secs(2), skip: false }
    }
}

/// Which policies this node's workloads name in vain, and since when.
#[derive(Debug)]
pub struct Grace {
    node: Arc<str>,
    settings: Settings,
    /// Until when each is waited for. It stays here as long as it is missing.
    missing: BTreeMap<(Uid, PolicyKey), Instant>,
    /// What the state was told last.
    awaited: Arc<BTreeSet<(Uid, PolicyKey)>>,
}

impl Grace {
    /// For the workloads of `node`.
    #[must_use]
    pub fn new(node: &str, settings: Settings) -> Self {
        Self { node: node.into(), settings, missing: BTreeMap::new(), awaited: Arc::default() }
    }

    /// Tells `state` which missing policies may come yet.
    pub fn update(&mut self, state: &mut MeshState, now: Instant) {
        if self.settings.skip {
            return state.set_unknown_policies(UnknownPolicies { skip: true, ..UnknownPolicies::default() });
        }
        let until = now + self.settings.wait;
        let named = state.missing_policies(&self.node).map(|(uid, key)| (uid.clone(), key.clone()));
        let before = std::mem::take(&mut self.missing);
        self.missing = named.map(|pair| (pair.clone(), before.get(&pair).copied().unwrap_or(until))).collect();
        let awaited = self.missing.iter().filter(|(_, until)| **until > now).map(|(pair, _)| pair);
        if !awaited.clone().eq(self.awaited.iter()) {
            self.awaited = Arc::new(awaited.cloned().collect());
            state.set_unknown_policies(UnknownPolicies { skip: false, awaited: self.awaited.clone() });
        }
    }

    /// When the next one is given up.
    #[must_use]
    pub fn next(&self) -> Option<Instant> {
        self.awaited.iter().filter_map(|pair| self.missing.get(pair)).min().copied()
    }
}
