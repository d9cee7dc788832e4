//! Against recordings of the reference control plane: the same objects give the same resources, byte for byte.
//!
//! `tests/recordings/translation/<case>/` holds the objects and what the reference made of them on top of
//! `00-baseline`. Whatever we mean to do otherwise stands in [`DIFFERENCES`] with its reason: a difference that is not
//! listed fails, and so does one that is listed and no longer there.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::PathBuf;

use aquifer_objects::{Event, Kind, ObjectKey, parse::parse_object};
use aquifer_proto::security::Authorization;
use aquifer_proto::workload::{Address, address};
use k8s_openapi::ByteString;
use prost::Message;
use serde_json::Value;

use super::{Index, Table};
use crate::translate::Mesh;

/// All recordings.
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
    (
        "e-serviceentry-workloadentry",
        "Kubernetes/networking.istio.io/ServiceEntry/entries/static/2001:db8::5",
        "an endpoint without a network: the reference gives it that of the endpoint before it, we that of the mesh",
    ),
    (
        "f-waypoints",
        "Kubernetes/networking.istio.io/ServiceEntry/wp-home/ext/ext.example.com",
        "the reference lists every selector policy of the namespace at a ServiceEntry's endpoints; we list those that select them",
    ),
];

/// Object of a recording, why we report other conditions.
const STATUS_DIFFERENCES: &[(&str, &str)] = &[
    ("AuthorizationPolicy/authz/allow-principal-spiffe-prefix", MATCHES_NOBODY),
    ("AuthorizationPolicy/authz/l7-allow-mixed-operation", NOTHING_LEFT),
    ("AuthorizationPolicy/authz/l7-allow-only", NOTHING_LEFT),
    ("AuthorizationPolicy/authz/l7-allow-when-header", NOTHING_LEFT),
    ("AuthorizationPolicy/authz/l7-deny-from-and-path", NOTHING_LEFT),
    ("AuthorizationPolicy/authz/l7-deny-only", NOTHING_LEFT),
    ("AuthorizationPolicy/authz/l7-deny-remote-ip", NOTHING_LEFT),
    ("AuthorizationPolicy/authz/l7-deny-request-principal", NOTHING_LEFT),
    ("AuthorizationPolicy/authz/l7-deny-when-header", NOTHING_LEFT),
    ("AuthorizationPolicy/authz/when-sni", NOTHING_LEFT),
    ("AuthorizationPolicy/authz/when-source-sa", NOTHING_LEFT),
    ("AuthorizationPolicy/wp-home/selector-l7", NOTHING_LEFT),
    ("AuthorizationPolicy/istio-system/global-class", NOT_YET),
    ("AuthorizationPolicy/wp-home/for-gateway", NOT_YET),
    ("AuthorizationPolicy/wp-home/for-service", NOT_YET),
    ("PeerAuthentication/istio-system/default", SAID),
    ("PeerAuthentication/pa-disable/default", SAID),
    ("PeerAuthentication/pa-disable/dport", SAID),
    ("PeerAuthentication/pa-permissive/default", SAID),
    ("PeerAuthentication/pa-workload/both", SAID),
    ("PeerAuthentication/pa-workload/pport", SAID),
    ("PeerAuthentication/pa-workload/sport", SAID),
    ("PeerAuthentication/pa-workload/strict", SAID),
    ("PeerAuthentication/pa-workload/unset", SAID),
    (
        "PeerAuthentication/istio-system/with-selector",
        "a selector in the root namespace selects nobody: the reference is silent, we say so",
    ),
    ("ServiceEntry/entries/export-none", "it says exportTo, which has no effect: the reference is silent, we say so"),
    ("ServiceEntry/entries/shadow-se", "its host is a Service's: the reference is silent, we say so"),
];
const SAID: &str =
    "the reference says nothing of PeerAuthentications; we say that node proxies have it, and what of it is ignored";
const NOTHING_LEFT: &str = "no rule of it is left: the reference accepts that, we don't";
const MATCHES_NOBODY: &str = "a principal with its scheme matches nobody: that is said, and how to write it";
const NOT_YET: &str = "the reference's waypoint enforces it; ours does not yet, and nobody may think it does";

fn load(case: &str, file: &str) -> Value {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../tests/recordings/translation").join(case).join(file);
    let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap()
}

/// The objects of a recording. Kinds that Kubernetes has and nobody here knows are passed over.
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
    ours: &Table,
    before: &Table,
    theirs: &BTreeMap<String, (Vec<u8>, String)>,
) -> BTreeMap<String, String> {
    let show = |bytes: &[u8]| format!("{:#?}", M::decode(bytes).unwrap());
    let mut differences = BTreeMap::new();
    for (name, (bytes, version)) in theirs {
        // Encoded anew, so that the order of fields and map entries is the same on both sides.
        let canonical = M::decode(bytes.as_slice()).unwrap().encode_to_vec();
        match ours.get(name.as_str()) {
            Some(resource) if *resource == canonical => {
                let ours = aquifer_xds::resource::Version::of(resource).to_string();
                assert!(version.is_empty() || canonical != *bytes || ours == *version, "{name}: version");
            }
            Some(resource) => {
                differences.insert(name.clone(), format!("theirs {}\nours {}", show(&canonical), show(resource)));
            }
            None => {
                differences.insert(name.clone(), format!("theirs {}\nours: nothing", show(&canonical)));
            }
        }
    }
    for (name, resource) in ours {
        if before.get(name) != Some(resource) && !theirs.contains_key(&**name) {
            differences.insert(name.to_string(), format!("theirs: nothing\nours {}", show(resource)));
        }
    }
    differences
}

#[test]
fn resources_are_the_recorded_ones() {
    let baseline = index_of(&["00-baseline"]);
    let nothing = Table::new();
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
        let listed: BTreeSet<&str> = meant.collect();
        for (name, difference) in &found {
            assert!(listed.contains(name.as_str()), "{case}: {name} differs, and nobody means it:\n{difference}");
        }
        for name in listed {
            assert!(found.contains_key(name), "{case}: {name} is listed as different, but is the same");
        }
    }
    assert!(compared > 100, "the recordings were read: {compared}");
}

/// Kinds on which the recordings hold what we report here; a Gateway's status is another's to write.
const REPORTED: [&str; 5] = ["AuthorizationPolicy", "PeerAuthentication", "Service", "ServiceEntry", "WorkloadEntry"];

#[test]
fn conditions_are_the_recorded_ones() {
    let plain = |condition: &Value| {
        ["type", "status", "reason", "message"].map(|field| condition[field].as_str().unwrap_or_default().to_owned())
    };
    let mut differing = BTreeSet::new();
    let mut compared = 0;
    for case in &CASES[1..] {
        let index = index_of(&["00-baseline", case]);
        let Value::Array(recorded) = load(case, "status.json") else { panic!("status.json is a list") };
        for entry in recorded.iter().filter(|entry| REPORTED.contains(&entry["kind"].as_str().unwrap())) {
            let kind: Kind = entry["kind"].as_str().unwrap().parse().unwrap();
            let key = ObjectKey::new(kind, entry["namespace"].as_str().unwrap(), entry["name"].as_str().unwrap());
            let ours = index.statuses().get(&key).into_iter().flatten();
            let ours: BTreeSet<[String; 4]> =
                ours.map(|condition| plain(&serde_json::to_value(condition).unwrap())).collect();
            let theirs = entry["status"]["conditions"].as_array().into_iter().flatten().map(plain).collect();
            compared += 1;
            if ours != theirs {
                let key = key.to_string();
                assert!(
                    STATUS_DIFFERENCES.iter().any(|(listed, _)| *listed == key),
                    "{key}: {ours:?}\nexpected {theirs:?}"
                );
                differing.insert(key);
            }
        }
    }
    let listed: BTreeSet<String> = STATUS_DIFFERENCES.iter().map(|(name, _)| (*name).to_owned()).collect();
    assert_eq!(differing, listed, "what is listed as different must be");
    assert!(compared > 100, "the recordings were read: {compared}");
}

/// The reference had given each entry its addresses: nothing is missing to ours either.
#[test]
fn recorded_automatic_addresses_are_enough() {
    for case in CASES {
        assert_eq!(index_of(&["00-baseline", case]).allocations(), [], "{case}");
    }
}

/// A name that never comes would deny whatever reaches the workload.
#[test]
fn every_policy_that_a_workload_names_is_sent() {
    for case in CASES {
        let index = index_of(&["00-baseline", case]);
        for (name, resource) in index.addresses() {
            let address = Address::decode(resource.clone()).unwrap();
            if let Some(address::Type::Workload(workload)) = address.r#type {
                for policy in workload.authorization_policies {
                    assert!(index.authorizations().contains_key(policy.as_str()), "{case}: {name} names {policy}");
                }
            }
        }
    }
}
