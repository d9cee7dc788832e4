//! The server's side of the recordings is played against our client.

use std::collections::{BTreeMap, BTreeSet};

use aquifer_proto::type_url::ADDRESS;
use aquifer_proto::xds::{DeltaDiscoveryRequest, Node};
use aquifer_xds::client::session::{Session, Watch};
use aquifer_xds::client::{Rejected, ResourceSink, ResourceUpdate};

use crate::recording::{self, Entry, What};

/// Takes all but what the recorded client refused.
#[derive(Default)]
struct Sink {
    held: BTreeMap<(String, String), Vec<u8>>,
    refuse: BTreeSet<String>,
}

impl ResourceSink for Sink {
    fn apply(&mut self, type_url: &str, updates: Vec<ResourceUpdate>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        for update in updates {
            match update {
                ResourceUpdate::Upsert { name, .. } if self.refuse.contains(&name) => {
                    let error = "rejected by the recording client".to_owned();
                    rejected.push(Rejected { name, error });
                }
                ResourceUpdate::Upsert { name, body, .. } => {
                    self.held.insert((type_url.to_owned(), name), body.to_vec());
                }
                ResourceUpdate::Remove { name } => {
                    self.held.remove(&(type_url.to_owned(), name));
                }
            }
        }
        rejected
    }
}

#[test]
fn wildcard() {
    check("wildcard", false);
}

#[test]
fn reconnect() {
    check("reconnect", false);
}

#[test]
fn on_demand() {
    check("on-demand", true);
}

#[test]
fn as_the_real_ztunnel() {
    check("real-ztunnel", true);
}

#[test]
fn as_the_real_ztunnel_on_demand() {
    check("real-ztunnel-on-demand", true);
}

/// Every request that the recorded client sent is what ours sends: first requests, acknowledgements, NACKs, demands.
/// `continuous` recordings begin with a client that holds nothing.
fn check(name: &str, continuous: bool) {
    let entries = recording::read(name);
    let firsts: Vec<&DeltaDiscoveryRequest> = requests(&entries).filter(|r| r.node.is_some()).collect();
    let watch = |request: &&DeltaDiscoveryRequest| Watch {
        type_url: request.type_url.clone(),
        on_demand: !request.resource_names_unsubscribe.is_empty(),
        if_served: false,
    };
    let watches: Vec<Watch> = firsts.iter().take(2).map(watch).collect();
    let node: Node = firsts[0].node.clone().unwrap();
    let mut session = Session::new(watches, node);
    let mut sink = Sink::default();
    let mut ours: Vec<DeltaDiscoveryRequest> = Vec::new();
    for entry in &entries {
        match &entry.what {
            What::Opened => {
                session.reconnect();
                ours = session.initial_requests();
            }
            What::Response(response) => {
                sink.refuse = refused(&entries, &response.nonce);
                ours.push(session.handle(response.clone(), &mut sink));
            }
            What::Request(theirs) => {
                if theirs.node.is_none() && theirs.response_nonce.is_empty() {
                    for name in &theirs.resource_names_subscribe {
                        ours.extend(session.demand(ADDRESS, name));
                    }
                    // Ours never takes a question back.
                    if !theirs.resource_names_unsubscribe.is_empty() {
                        continue;
                    }
                }
                if theirs.response_nonce == "0-does-not-exist" {
                    continue;
                }
                let mut expect = theirs.clone();
                let found = ours.iter().position(|our| {
                    // The recording client made up what it holds; that of a continuous one must be ours.
                    if !continuous {
                        expect.initial_resource_versions = our.initial_resource_versions.clone();
                    }
                    *our == expect
                });
                let Some(found) = found else {
                    panic!("{name} at {}: expected {theirs:?}, have {ours:?}", entry.at);
                };
                ours.remove(found);
            }
            What::Note(_) | What::Ended(_) => {}
        }
    }
    // The last answers of a stream may have no recorded acknowledgement.
    assert!(ours.len() <= 1, "{name}: {ours:?}");
    assert!(session.synced());
    let held: BTreeSet<_> = sink.held.into_keys().map(|(_, name)| name).collect();
    let reported = session.initial_requests();
    let reported: BTreeSet<_> = reported.into_iter().flat_map(|r| r.initial_resource_versions.into_keys()).collect();
    assert_eq!(reported, held, "{name}");
}

fn requests(entries: &[Entry]) -> impl Iterator<Item = &DeltaDiscoveryRequest> {
    entries.iter().filter_map(|entry| match &entry.what {
        What::Request(request) => Some(request),
        _ => None,
    })
}

/// The names that the recorded client refused of the response with this nonce.
fn refused(entries: &[Entry], nonce: &str) -> BTreeSet<String> {
    let errors = requests(entries).filter(|r| r.response_nonce == nonce).filter_map(|r| r.error_detail.as_ref());
    errors.filter_map(|e| e.message.split_once(": ")).map(|(name, _)| name.to_owned()).collect()
}
