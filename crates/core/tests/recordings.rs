//! Every resource that the recorded control plane sent converts, under the name it was sent by, and nothing of it is
//! lost on the way through our wire types.

#![allow(clippy::unwrap_used)] // Helpers of tests are tests.

use std::{fs, path::Path, sync::Arc};

use aquifer_core::{
    from_proto,
    state::{Candidate, MeshState, Update},
};
use aquifer_proto::{security, type_url, workload};
use base64::{Engine, prelude::BASE64_STANDARD};
use prost::Message;
use serde_json::Value;

fn resources() -> Vec<Value> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../tests/recordings/translation");
    let mut all = Vec::new();
    for case in fs::read_dir(root).expect("recordings") {
        let path = case.unwrap().path().join("output.json");
        let output: Value = serde_json::from_slice(&fs::read(path).unwrap()).unwrap();
        for kind in ["addresses", "authorizations"] {
            all.extend(output[kind].as_array().unwrap().iter().cloned());
        }
    }
    all
}

/// Decodes, and checks that encoding gives as many bytes again: a field that our types lack would be missing.
/// `elided` counts empty messages in map entries, of two bytes each, which the recorded peer writes and we leave out.
fn decode<M: Message + Default + std::fmt::Debug>(bytes: &[u8], elided: impl Fn(&M) -> usize) -> M {
    let message = M::decode(bytes).unwrap();
    assert_eq!(message.encoded_len() + 2 * elided(&message), bytes.len(), "a field got lost: {message:?}");
    message
}

fn empty_port_lists(address: &workload::Address) -> usize {
    match &address.r#type {
        Some(workload::address::Type::Workload(workload)) => {
            workload.services.values().filter(|list| list.ports.is_empty()).count()
        }
        _ => 0,
    }
}

#[test]
fn every_recorded_resource_converts() {
    let mut state = MeshState::default();
    let (mut addresses, mut policies) = (0, 0);
    for resource in resources() {
        let name = resource["name"].as_str().unwrap();
        let bytes = BASE64_STANDARD.decode(resource["resource_base64"].as_str().unwrap()).unwrap();
        match resource["type_url"].as_str().unwrap() {
            type_url::ADDRESS => {
                let address = from_proto::address(&decode(&bytes, empty_port_lists)).unwrap();
                assert_eq!(address.name(), name);
                if let from_proto::Address::Workload(workload) = &address {
                    let sent = &resource["resource"]["workload"];
                    assert_eq!(sent["name"], workload.name().to_string());
                    assert_eq!(sent["namespace"], *workload.namespace);
                    assert_eq!(sent["canonicalName"].as_str().unwrap_or_default(), &*workload.canonical_name);
                }
                state.apply(address.into());
                addresses += 1;
            }
            type_url::AUTHORIZATION => {
                let policy = from_proto::authorization(&decode(&bytes, |_: &security::Authorization| 0)).unwrap();
                assert_eq!(policy.key.to_string(), name);
                state.apply(Update::Policy(Arc::new(policy)));
                policies += 1;
            }
            other => panic!("{other}"),
        }
    }
    assert!(addresses > 100 && policies > 20, "{addresses} addresses, {policies} policies");

    // The one reference that the recorded control plane leaves dangling; here it denies.
    let mut missing: Vec<_> = state
        .workloads()
        .flat_map(|workload| state.policies_for(workload).map(|c| (workload.name().to_string(), c)).collect::<Vec<_>>())
        .filter_map(|(name, candidate)| match candidate {
            Candidate::Missing(key) => Some(format!("{name}: {key}")),
            Candidate::Known(_) => None,
        })
        .collect();
    missing.sort();
    assert_eq!(missing.len(), 1, "{missing:?}");
    assert!(missing[0].starts_with("strict-port"), "{missing:?}");
}
