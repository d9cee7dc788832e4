//! Which lookup finds what, and that no order of updates matters.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;
use crate::{
    fixtures::{
        any::{ADDRESSES, HOSTNAMES, NAMESPACES, POLICIES, UIDS, any_update},
        at, ip, mesh, pod, service,
    },
    policy::Action,
    service::Visibility,
    workload::NetworkMode,
};

fn entry(name: &str, addresses: &[&str]) -> Workload {
    let uid = format!("Kubernetes/networking.istio.io/WorkloadEntry/ns/{name}").into();
    pod(name, addresses).with(|w| {
        w.uid = uid;
        w.tunnel_protocol = TunnelProtocol::None;
    })
}

fn remove(state: &mut MeshState, name: &str) {
    state.apply(Update::RemoveAddress(name.into()));
}

fn name_at(state: &MeshState, address: &str) -> Option<String> {
    state.workload_by_addr(&at(address)).map(|workload| workload.uid.to_string())
}

#[test]
fn of_workloads_with_one_address_a_pod_wins_then_hbone_and_each_leaves_alone() {
    let plain_entry = entry("a", &["10.0.0.1"]);
    let hbone_entry = entry("b", &["10.0.0.1"]).with(|w| w.tunnel_protocol = TunnelProtocol::Hbone);
    let plain_pod = pod("c", &["10.0.0.1"]).with(|w| w.tunnel_protocol = TunnelProtocol::None);
    let hbone_pod = pod("d", &["10.0.0.1"]);
    let order = [&hbone_pod, &plain_pod, &hbone_entry, &plain_entry].map(|workload| workload.uid.to_string());
    let mut state = mesh([plain_entry, hbone_entry, plain_pod, hbone_pod], []);
    for (index, best) in order.iter().enumerate() {
        assert_eq!(name_at(&state, "10.0.0.1").as_ref(), Some(best), "after {index} removals");
        remove(&mut state, best);
    }
    assert_eq!(name_at(&state, "10.0.0.1"), None);
}

#[test]
fn addresses_follow_updates_networks_and_the_network_mode() {
    let mut state = mesh([pod("a", &["10.0.0.1", "fd00::1"])], []);
    assert!(name_at(&state, "fd00::1").is_some());
    assert!(name_at(&state, "::ffff:10.0.0.1").is_some(), "a mapped address is the plain one");
    assert!(state.workload_by_addr(&NetworkAddress::new("other", ip("10.0.0.1"))).is_none());
    state.apply(Update::Workload(Arc::new(pod("a", &["10.0.0.2"]))));
    assert_eq!((name_at(&state, "10.0.0.1"), name_at(&state, "fd00::1")), (None, None));
    assert!(name_at(&state, "10.0.0.2").is_some());
    let host = pod("a", &["10.0.0.2"]).with(|w| w.network_mode = NetworkMode::HostNetwork);
    state.apply(Update::Workload(Arc::new(host)));
    assert_eq!(name_at(&state, "10.0.0.2"), None);
    assert!(state.workload_by_uid("Kubernetes//Pod/ns/a").is_some());
}

#[test]
fn local_workloads_are_found_by_all_four_names() {
    let other = pod("a", &["10.0.0.2"]).with(|w| {
        w.service_account = "other".into();
        w.uid = "Kubernetes//Pod/ns/a2".into();
        w.own_name = Some("a".into());
    });
    let state = mesh([pod("a", &["10.0.0.1"]), other, pod("b", &["10.0.0.3"])], []);
    let found = |node, name, ns, sa| state.local_workload(node, name, ns, sa).map(|workload| workload.uid.to_string());
    assert_eq!(found("n1", "a", "ns", "a").as_deref(), Some("Kubernetes//Pod/ns/a"));
    assert_eq!(found("n1", "a", "ns", "other").as_deref(), Some("Kubernetes//Pod/ns/a2"));
    for (node, name, ns, sa) in
        [("n2", "a", "ns", "a"), ("n1", "c", "ns", "a"), ("n1", "a", "x", "a"), ("n1", "a", "ns", "x")]
    {
        assert_eq!(found(node, name, ns, sa), None);
    }
    assert_eq!(state.workloads_on_node("n1").len(), 3);
    let identities: Vec<_> = state.identities_on_node("n1").iter().map(|id| id.service_account.to_string()).collect();
    assert_eq!(identities, ["a", "b", "other"]);
}

#[test]
fn a_vip_is_the_viewers_own_then_canonical_then_preferred_then_first() {
    let canonical = Service { canonical: true, ..service("m/h", &["10.9.0.1"], &[]) };
    let state = mesh([], [service("a/h", &["10.9.0.1"], &[]), canonical, service("z/h", &["10.9.0.1"], &[])]);
    let find = |namespace, preferred_namespace| {
        let view = View { namespace, preferred_namespace };
        let by_vip = state.service_by_vip(&at("10.9.0.1"), &view).unwrap().key.to_string();
        assert_eq!(state.service_by_hostname("h", &view).unwrap().key.to_string(), by_vip);
        by_vip
    };
    assert_eq!(find("z", Some("a")), "z/h");
    assert_eq!(find("q", Some("a")), "m/h");
    let state = mesh([], [service("a/h", &["10.9.0.1"], &[]), service("z/h", &["10.9.0.1"], &[])]);
    let find = |preferred_namespace| {
        let view = View { namespace: "q", preferred_namespace };
        state.service_by_vip(&at("10.9.0.1"), &view).unwrap().key.to_string()
    };
    assert_eq!(find(Some("z")), "z/h");
    assert_eq!(find(None), "a/h");
}

#[test]
fn ranges_come_after_exact_addresses_and_the_longest_wins_unless_one_is_the_viewers() {
    let mut state = mesh(
        [],
        [
            service("a/exact", &["10.9.0.1"], &[]),
            service("a/long", &["10.9.0.0/24"], &[]),
            service("b/short", &["10.9.0.0/16"], &[]),
            service("c/v6", &["fd09::/64"], &[]),
        ],
    );
    let find = |state: &MeshState, address, namespace| {
        let view = View { namespace, preferred_namespace: None };
        state.service_by_vip(&at(address), &view).map(|service| service.key.to_string())
    };
    for (address, namespace, expected) in [
        ("10.9.0.1", "b", Some("a/exact")),
        ("10.9.0.2", "q", Some("a/long")),
        ("10.9.0.2", "b", Some("b/short")),
        ("10.9.1.2", "a", Some("b/short")),
        ("10.8.0.1", "a", None),
        ("fd09::77", "a", Some("c/v6")),
        ("fd0a::77", "a", None),
    ] {
        assert_eq!(find(&state, address, namespace).as_deref(), expected, "{address} from {namespace}");
    }
    // An update replaces ranges, and the last one of a length takes it out of the search.
    state.apply(Update::Service(Arc::new(service("a/long", &["10.9.7.0/24"], &[]))));
    assert_eq!(find(&state, "10.9.0.2", "q").as_deref(), Some("b/short"));
    for name in ["a/long", "b/short", "c/v6"] {
        remove(&mut state, name);
    }
    assert!(state.vip_lengths.is_empty());
}

#[test]
fn a_service_may_be_seen_in_its_namespace_only() {
    let hidden = Service { visibility: Visibility::Namespace, ..service("a/h", &["10.9.0.1"], &[]) };
    let state = mesh([], [hidden, service("b/h", &["10.9.0.0/24"], &[])]);
    for (namespace, expected) in [("a", "a/h"), ("b", "b/h")] {
        let view = View { namespace, preferred_namespace: Some("a") };
        assert_eq!(state.service_by_vip(&at("10.9.0.1"), &view).unwrap().key.to_string(), expected);
        assert_eq!(state.service_by_hostname("h", &view).unwrap().key.to_string(), expected);
    }
}

#[test]
fn endpoints_are_known_before_their_service_and_whatever_their_health() {
    let sick = pod("a", &[]).of("ns/h", &[]).with(|w| w.status = crate::workload::HealthStatus::Unhealthy);
    let mut state = mesh([sick], []);
    let key = NamespacedHostname::new("ns", "h");
    assert_eq!(state.endpoints(&key).len(), 1);
    state.apply(Update::Workload(Arc::new(pod("a", &[]))));
    assert!(state.endpoints(&key).is_empty());
}

#[test]
fn a_name_is_one_resource() {
    let mut state = mesh([], [service("ns/h", &["10.9.0.1"], &[])]);
    state.apply(Update::Workload(Arc::new(pod("a", &["10.0.0.1"]).with(|w| w.uid = "ns/h".into()))));
    assert!(state.service(&NamespacedHostname::new("ns", "h")).is_none());
    state.apply(Update::Service(Arc::new(service("ns/h", &["10.9.0.1"], &[]))));
    assert!(state.workload_by_uid("ns/h").is_none());
    assert_eq!(name_at(&state, "10.0.0.1"), None);
}

#[test]
fn policies_apply_by_scope_and_by_name_each_once() {
    let policy = |key: &str, scope| {
        let key = key.parse().unwrap();
        Update::Policy(Arc::new(Policy { key, scope, action: Action::Deny, rules: vec![], dry_run: false }))
    };
    let mut state = MeshState::default();
    for update in [
        policy("root/global", Scope::Global),
        policy("ns/mine", Scope::Namespace),
        policy("x/theirs", Scope::Namespace),
        policy("ns/named", Scope::WorkloadSelector),
        policy("ns/unnamed", Scope::WorkloadSelector),
    ] {
        state.apply(update);
    }
    let named = ["ns/named", "ns/mine", "root/global", "ns/gone"].map(|key| key.parse().unwrap());
    let workload = pod("a", &[]).with(|w| w.authorization_policies = named.to_vec());
    let names: Vec<_> = state
        .policies_for(&workload)
        .map(|candidate| match candidate {
            Candidate::Known(policy) => policy.key.to_string(),
            Candidate::Missing(key) => format!("missing {key}"),
        })
        .collect();
    assert_eq!(names, ["ns/mine", "root/global", "ns/named", "missing ns/gone"]);
    // A policy that changes its scope leaves the old one.
    state.apply(policy("root/global", Scope::WorkloadSelector));
    state.apply(Update::RemovePolicy("ns/mine".into()));
    state.apply(Update::RemovePolicy("no name at all".into()));
    assert_eq!(state.policies_for(&pod("a", &[])).count(), 0);
}

// Any sequence of updates against a state built from what it leaves.

/// Everything that can be asked, as text.
fn observe(state: &MeshState) -> Vec<String> {
    let mut seen = Vec::new();
    let mut note = |what: String, answer: &dyn std::fmt::Debug| seen.push(format!("{what} = {answer:?}"));
    for network in ["", "other"] {
        for address in ADDRESSES.into_iter().chain(["10.9.0.7", "10.1.1.1", "fd09::7"]) {
            let address = NetworkAddress::new(network, ip(address));
            note(format!("workload {address}"), &state.workload_by_addr(&address));
            for namespace in NAMESPACES {
                for preferred_namespace in [None, Some("n2")] {
                    let view = View { namespace, preferred_namespace };
                    note(format!("vip {address} {view:?}"), &state.service_by_vip(&address, &view));
                }
            }
        }
    }
    for uid in UIDS {
        note(format!("uid {uid}"), &state.workload_by_uid(uid));
    }
    for node in ["", "n1", "n2"] {
        note(format!("node {node}"), &state.workloads_on_node(node));
        for (name, namespace) in [("a", "n1"), ("b", "n2"), ("a", "n3")] {
            note(format!("local {node} {name} {namespace}"), &state.local_workload(node, name, namespace, name));
        }
    }
    for namespace in NAMESPACES {
        for hostname in HOSTNAMES {
            let key = NamespacedHostname::new(namespace, hostname);
            let view = View { namespace, preferred_namespace: Some("n2") };
            note(format!("service {key}"), &state.service(&key));
            note(format!("endpoints {key}"), &state.endpoints(&key));
            note(format!("hostname {key}"), &state.service_by_hostname(hostname, &view));
        }
    }
    for policy in POLICIES {
        note(format!("policy {policy}"), &state.policy(&policy.parse().unwrap()));
    }
    let mut workloads: Vec<_> = state.workloads().collect();
    workloads.sort_by(|a, b| a.uid.cmp(&b.uid));
    for workload in workloads {
        note(format!("policies for {}", workload.uid), &state.policies_for(workload).collect::<Vec<_>>());
    }
    note("ranges".into(), &state.vip_lengths);
    let sizes = (state.services().count(), state.policies().count());
    note("sizes".into(), &sizes);
    seen
}

/// What a sequence leaves, by the plain meaning of each update.
fn remaining(updates: &[Update]) -> Vec<Update> {
    let mut addresses = BTreeMap::new();
    let mut policies = BTreeMap::new();
    for update in updates {
        match update {
            Update::Workload(workload) => drop(addresses.insert(workload.uid.to_string(), update.clone())),
            Update::Service(service) => drop(addresses.insert(service.key.to_string(), update.clone())),
            Update::Policy(policy) => drop(policies.insert(policy.key.to_string(), update.clone())),
            Update::RemoveAddress(name) => drop(addresses.remove(&**name)),
            Update::RemovePolicy(name) => drop(policies.remove(&**name)),
        }
    }
    addresses.into_values().chain(policies.into_values()).collect()
}

fn build<'a>(updates: impl Iterator<Item = &'a Update>) -> MeshState {
    let mut state = MeshState::default();
    updates.for_each(|update| state.apply(update.clone()));
    state
}

proptest! {
    #[test]
    fn any_sequence_equals_a_rebuild(updates in proptest::collection::vec(any_update(), 0..40)) {
        let mut state = MeshState::default();
        for update in &updates {
            // A reader that holds a snapshot forces every change to copy.
            let _held = state.clone();
            state.apply(update.clone());
        }
        let left = remaining(&updates);
        let seen = observe(&state);
        prop_assert_eq!(&seen, &observe(&build(left.iter())));
        prop_assert_eq!(&seen, &observe(&build(left.iter().rev())));

        // Nothing stays behind when all is removed.
        for update in left {
            state.apply(match update {
                Update::Workload(workload) => Update::RemoveAddress(workload.uid.to_string().into()),
                Update::Service(service) => Update::RemoveAddress(service.key.to_string().into()),
                Update::Policy(policy) => Update::RemovePolicy(policy.key.to_string().into()),
                remove => remove,
            });
        }
        prop_assert_eq!(observe(&state), observe(&MeshState::default()));
        prop_assert!(state.is_bare());
    }

    #[test]
    fn a_snapshot_never_changes(before in proptest::collection::vec(any_update(), 0..20), after in proptest::collection::vec(any_update(), 0..20)) {
        let mut state = build(before.iter());
        let snapshot = state.clone();
        after.iter().for_each(|update| state.apply(update.clone()));
        prop_assert_eq!(observe(&snapshot), observe(&build(before.iter())));
    }
}

impl MeshState {
    /// Whether every map is empty, not only what lookups show.
    fn is_bare(&self) -> bool {
        self.workloads.iter().next().is_none()
            && self.services.is_empty()
            && self.policies.is_empty()
            && self.global_policies.is_empty()
            && self.vip_lengths.is_empty()
            && [self.workloads_by_address.iter().count(), self.workloads_by_node.len(), self.endpoints.len()] == [0; 3]
            && [self.services_by_hostname.len(), self.services_by_vip.len(), self.policies_by_namespace.len()] == [0; 3]
    }
}
