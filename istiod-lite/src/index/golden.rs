//! Against recordings of the reference control plane: the same objects give the same resources, byte for byte.
//!
//! `tests/recordings/translation/<case>/` holds the objects and what the reference made of them on top of
//! `00-baseline`. Whatever we mean to do otherwise stands in [`DIFFERENCES`] with its reason: a difference that is not
//! listed fails, and so does one that is listed and no longer there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use aquifer_objects::{Event, Kind, ObjectKey, parse::parse_object};
use aquifer_proto::security::Authorization;
use aquifer_proto::workload::{Address, address};
use k8s_openapi::ByteString;
use prost::Message;
use serde_json::Value;

use super::{Index, Published};
use crate::translate::Mesh;

/// All recordings; of each the objects whose kinds this index reads.
const CASES: [&str; 8] = [
    "00-baseline",
    "a-plain",
    "b-ambient",
    "c-peerauthentication",
    "d-authorizationpolicy",
    "e-serviceentry-workloadentry",
    "f-waypoints",
    "g-locality-distribution",
];

/// Case, resource, why ours is another.
const DIFFERENCES: &[(&str, &str, &str)] = &[
    (
        "c-peerauthentication",
        "pa-workload/converted_peer_authentication_sport",
        "PERMISSIVE with a STRICT port under a STRICT mesh: the reference names this policy and never sends it, which leaves the port open",
    ),
    (
        "c-peerauthentication",
        "pa-workload/converted_peer_authentication_pport",
        "the reference writes the clause against unauthenticated callers twice, before and after the exempt ports; once says the same",
    ),
];

/// Made from kinds that are not read (ServiceEntry, WorkloadEntry), so that we have nothing of that name.
const KINDS_NOT_READ: &[(&str, &[&str])] = &[
    (
        "e-serviceentry-workloadentry",
        &[
            "Kubernetes/networking.istio.io/ServiceEntry/entries/dns-endpoints/a.example.com",
            "Kubernetes/networking.istio.io/ServiceEntry/entries/dns-endpoints/b.example.com",
            "Kubernetes/networking.istio.io/ServiceEntry/entries/dns/dns.example.com",
            "Kubernetes/networking.istio.io/ServiceEntry/entries/export-none/192.0.2.52",
            "Kubernetes/networking.istio.io/ServiceEntry/entries/no-autoalloc/192.0.2.51",
            "Kubernetes/networking.istio.io/ServiceEntry/entries/round-robin/rr.example.com",
            "Kubernetes/networking.istio.io/ServiceEntry/entries/static/192.0.2.31",
            "Kubernetes/networking.istio.io/ServiceEntry/entries/static/192.0.2.32",
            "Kubernetes/networking.istio.io/ServiceEntry/entries/static/2001:db8::5",
            "Kubernetes/networking.istio.io/ServiceEntry/entries/wildcard-dynamic/*.dyn.example.com",
            "Kubernetes/networking.istio.io/WorkloadEntry/entries/vm-1",
            "Kubernetes/networking.istio.io/WorkloadEntry/entries/vm-2-hbone",
            "Kubernetes/networking.istio.io/WorkloadEntry/entries/vm-3-annotated",
            "Kubernetes/networking.istio.io/WorkloadEntry/entries/vm-4-hostname",
            "entries/*.dyn.example.com",
            "entries/*.wild.example.com",
            "entries/cidr.example.com",
            "entries/dns-ep.example.com",
            "entries/dns.example.com",
            "entries/inmesh.example.com",
            "entries/noauto.example.com",
            "entries/none-auto.example.com",
            "entries/none.example.com",
            "entries/pods.example.com",
            "entries/private.example.com",
            "entries/rr.example.com",
            "entries/static.example.com",
            "entries/static2.example.com",
        ],
    ),
    (
        "f-waypoints",
        &[
            "Kubernetes/networking.istio.io/ServiceEntry/wp-home/ext/ext.example.com",
            "Kubernetes/networking.istio.io/WorkloadEntry/wp-home/we",
            "wp-home/*.ext.example.com",
            "wp-home/ext.example.com",
        ],
    ),
    (
        "g-locality-distribution",
        &[
            "Kubernetes/networking.istio.io/ServiceEntry/local/close-se/192.0.2.101",
            "Kubernetes/networking.istio.io/WorkloadEntry/local/we-loc",
            "local/close.example.com",
        ],
    ),
];

/// The same but for what a kind that is not read adds: waypoints (Gateway), and membership in a ServiceEntry's service.
const PARTS_NOT_READ: &[(&str, &[&str])] = &[
    ("e-serviceentry-workloadentry", &["Kubernetes//Pod/entries/vmlike"]),
    (
        "f-waypoints",
        &[
            "Kubernetes//Pod/wp-home/p-all",
            "Kubernetes//Pod/wp-home/p-wl",
            "wp-guest/guest.wp-guest.svc.cluster.local",
            "wp-home/all-wp.wp-home.svc.cluster.local",
            "wp-home/canary-bad-weight.wp-home.svc.cluster.local",
            "wp-home/canary-same.wp-home.svc.cluster.local",
            "wp-home/canary.wp-home.svc.cluster.local",
            "wp-home/ingress.wp-home.svc.cluster.local",
            "wp-home/inherits.wp-home.svc.cluster.local",
        ],
    ),
];

/// Policy, why we report another condition.
const STATUS_DIFFERENCES: &[(&str, &str)] = &[
    ("authz/l7-allow-mixed-operation", NOTHING_LEFT),
    ("authz/l7-allow-only", NOTHING_LEFT),
    ("authz/l7-allow-when-header", NOTHING_LEFT),
    ("authz/l7-deny-from-and-path", NOTHING_LEFT),
    ("authz/l7-deny-only", NOTHING_LEFT),
    ("authz/l7-deny-remote-ip", NOTHING_LEFT),
    ("authz/l7-deny-request-principal", NOTHING_LEFT),
    ("authz/l7-deny-when-header", NOTHING_LEFT),
    ("authz/when-sni", NOTHING_LEFT),
    ("authz/when-source-sa", NOTHING_LEFT),
    ("istio-system/global-class", "attached to a GatewayClass, a kind that is not read"),
];
const NOTHING_LEFT: &str = "no rule of it is left: the reference accepts that, we don't";

fn load(case: &str, file: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/recordings/translation").join(case).join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The objects of a recording that are of a kind we read.
fn objects(case: &str) -> Vec<Event> {
    let Value::Array(values) = load(case, "objects.json") else { panic!("objects.json is a list") };
    let known = |value: &Value| {
        Kind::from_manifest(value["apiVersion"].as_str().unwrap(), value["kind"].as_str().unwrap()).is_some()
    };
    let parsed = values
        .into_iter()
        .filter(known)
        .map(|value| parse_object(value).unwrap_or_else(|error| panic!("{case}: {error}")));
    parsed.map(Event::Applied).collect()
}

/// The mesh of the recordings. The reference permits no connections within a node proxy, so that extension, which we
/// add to every redirected pod unless a NetworkPolicy selects it, is off here; `tests.rs` looks at it.
fn as_recorded() -> Mesh {
    Mesh { same_node: false, ..Mesh::default() }
}

fn index_of(cases: &[&str]) -> Index {
    let mut index = Index::new(as_recorded());
    for event in cases.iter().flat_map(|case| objects(case)) {
        let _ = index.apply(event);
    }
    index.flush();
    index
}

/// What the reference sent: name → bytes, version.
fn recorded(case: &str, list: &str) -> BTreeMap<String, (Vec<u8>, String)> {
    let output = load(case, "output.json");
    let entries = output[list].as_array().unwrap().iter();
    entries
        .map(|entry| {
            let ByteString(bytes) = serde_json::from_value(entry["resource_base64"].clone()).unwrap();
            (
                entry["name"].as_str().unwrap().to_owned(),
                (bytes, entry["version"].as_str().unwrap_or_default().to_owned()),
            )
        })
        .collect()
}

/// The names of resources that differ, with both readings.
fn compare<M: Message + Default + std::fmt::Debug>(
    ours: &BTreeMap<Arc<str>, Published>,
    before: &BTreeMap<Arc<str>, Published>,
    theirs: &BTreeMap<String, (Vec<u8>, String)>,
) -> BTreeMap<String, String> {
    let show = |bytes: &[u8]| format!("{:#?}", M::decode(bytes).unwrap());
    let mut differences = BTreeMap::new();
    for (name, (bytes, version)) in theirs {
        // Encoded anew, so that the order of fields and map entries is the same on both sides.
        let canonical = M::decode(bytes.as_slice()).unwrap().encode_to_vec();
        match ours.get(name.as_str()) {
            Some(resource) if resource.body == canonical => {
                assert!(version.is_empty() || canonical != *bytes || resource.version == *version, "{name}: version");
            }
            Some(resource) => {
                differences.insert(name.clone(), format!("theirs {}\nours {}", show(&canonical), show(&resource.body)));
            }
            None => {
                differences.insert(name.clone(), format!("theirs {}\nours: nothing", show(&canonical)));
            }
        }
    }
    for (name, resource) in ours {
        if before.get(name) != Some(resource) && !theirs.contains_key(&**name) {
            differences.insert(name.to_string(), format!("theirs: nothing\nours {}", show(&resource.body)));
        }
    }
    differences
}

fn names(list: &[(&str, &'static [&'static str])], case: &str) -> impl Iterator<Item = &'static str> {
    let of_case: Vec<_> = list.iter().filter(|(of, _)| *of == case).map(|(_, names)| *names).collect();
    of_case.into_iter().flatten().copied()
}

/// What would have been recorded without Gateways and ServiceEntries.
fn without_unread_parts(bytes: &[u8]) -> Address {
    let mut address = Address::decode(bytes).unwrap();
    match address.r#type.as_mut().unwrap() {
        address::Type::Workload(workload) => {
            workload.waypoint = None;
            workload.services.retain(|name, _| name.ends_with(".svc.cluster.local"));
        }
        address::Type::Service(service) => {
            service.waypoint = None;
            service.weighted_waypoints.clear();
            service.ingress_use_waypoint = false;
        }
    }
    address
}

#[test]
fn resources_are_the_recorded_ones() {
    let baseline = index_of(&["00-baseline"]);
    let nothing = BTreeMap::new();
    let mut compared = 0;
    for case in CASES {
        let (index, addresses_before, authorizations_before) = if case == "00-baseline" {
            (index_of(&[case]), &nothing, &nothing)
        } else {
            (index_of(&["00-baseline", case]), baseline.addresses(), baseline.authorizations())
        };
        let (addresses, authorizations) = (recorded(case, "addresses"), recorded(case, "authorizations"));
        compared += addresses.len() + authorizations.len();
        let mut found = compare::<Address>(index.addresses(), addresses_before, &addresses);
        found.extend(compare::<Authorization>(index.authorizations(), authorizations_before, &authorizations));
        let meant = DIFFERENCES.iter().filter(|(of, ..)| *of == case).map(|(_, name, _)| *name);
        let listed: BTreeSet<&str> =
            meant.chain(names(KINDS_NOT_READ, case)).chain(names(PARTS_NOT_READ, case)).collect();
        for (name, difference) in &found {
            assert!(listed.contains(name.as_str()), "{case}: {name} differs, and nobody means it:\n{difference}");
        }
        for name in names(KINDS_NOT_READ, case) {
            assert!(!index.addresses().contains_key(name), "{case}: {name} is made of a kind that is not read");
        }
        for name in names(PARTS_NOT_READ, case) {
            let theirs = without_unread_parts(&addresses[name].0);
            let ours = Address::decode(index.addresses()[name].body.clone()).unwrap();
            assert_eq!(ours, theirs, "{case}: {name} differs in more than what is not read");
        }
        for name in listed {
            assert!(found.contains_key(name), "{case}: {name} is listed as different, but is the same");
        }
    }
    assert!(compared > 100, "the recordings were read: {compared}");
}

#[test]
fn conditions_are_the_recorded_ones() {
    let index = index_of(&["00-baseline", "d-authorizationpolicy"]);
    let Value::Array(recorded) = load("d-authorizationpolicy", "status.json") else { panic!("status.json is a list") };
    let mut differing = BTreeSet::new();
    for entry in recorded.iter().filter(|entry| entry["kind"] == "AuthorizationPolicy") {
        let (namespace, name) = (entry["namespace"].as_str().unwrap(), entry["name"].as_str().unwrap());
        let ours = &index.statuses()[&ObjectKey::new(Kind::AuthorizationPolicy, namespace, name)];
        let plain = |condition: &Value| {
            ["type", "status", "reason", "message"]
                .map(|field| condition[field].as_str().unwrap_or_default().to_owned())
        };
        let theirs: Vec<[String; 4]> = entry["status"]["conditions"].as_array().unwrap().iter().map(plain).collect();
        let ours: Vec<[String; 4]> =
            ours.iter().map(|condition| plain(&serde_json::to_value(condition).unwrap())).collect();
        if ours != theirs {
            let key = format!("{namespace}/{name}");
            assert!(
                STATUS_DIFFERENCES.iter().any(|(listed, _)| *listed == key),
                "{key}: {ours:?}\nexpected {theirs:?}"
            );
            differing.insert(key);
        }
    }
    let listed: BTreeSet<String> = STATUS_DIFFERENCES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(differing, listed, "what is listed as different must be");
}

/// A name that never comes would deny whatever reaches the workload.
#[test]
fn every_policy_that_a_workload_names_is_sent() {
    for case in CASES {
        let index = index_of(&["00-baseline", case]);
        for (name, resource) in index.addresses() {
            let address = Address::decode(resource.body.clone()).unwrap();
            if let Some(address::Type::Workload(workload)) = address.r#type {
                for policy in workload.authorization_policies {
                    assert!(index.authorizations().contains_key(policy.as_str()), "{case}: {name} names {policy}");
                }
            }
        }
    }
}
