//! The client's side of the recordings is played against our server.
//!
//! Before each recorded response its resources are put into our set, so that ours has to say the same: which names,
//! in answer to what, in which order. Names within one response have no order. What we mean to do otherwise is listed
//! with the reason.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION, WORKLOAD};
use aquifer_proto::workload::{self, address};
use aquifer_proto::xds::{DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use aquifer_xds::resource::{Resource, ResourceSet, Version};
use aquifer_xds::server::Caller;
use aquifer_xds::server::node;
use aquifer_xds::server::session::{Answer, Note, Session};
use prost::Message;

use crate::recording::{self, Entry, What};

#[test]
fn wildcard_and_reconnect() {
    // The second recording begins where the first one ends.
    let mut replay = Replay::default();
    replay.run(recording::read("wildcard"));
    replay.run(recording::read("reconnect"));
    replay.expect(&[
        // A policy goes out before the workload that names it: theirs sends the workload first.
        "9824: ours [Authorization, Address], theirs [Address, Authorization]",
        "14484: ours [Authorization, Address], theirs [Address, Authorization]",
        "24543: ours [Authorization, Address], theirs [Address, Authorization]",
    ]);
}

#[test]
fn the_real_ztunnel() {
    let mut replay = Replay::default();
    replay.run(recording::read("real-ztunnel"));
    replay.expect(&[
        // istiod's policies have no version and go out with every push; ours have one and go out when they change.
        "2073: theirs only Authorization +amb/locked",
        // A policy goes out before the workload that names it.
        "30629: ours [Authorization, Address], theirs [Address, Authorization]",
    ]);
}

#[test]
fn on_demand() {
    let mut replay = Replay::default();
    replay.run(recording::read("on-demand"));
    replay.expect(&[
        // A resource that was asked for by an alias is sent under it too, for clients that wait for that very name.
        "1506: ours Address +/10.96.51.1 +Kubernetes//Pod/shop/catalog-1",
        "4510: ours Address +/192.0.2.200 +Kubernetes/networking.istio.io/WorkloadEntry/shop/far, theirs",
        "10708: ours Address +/10.96.51.1 +/192.0.2.200 +Kubernetes//Pod/shop/catalog-1",
        // Every question gets an answer: theirs is silent about a name that it has sent unasked, and the client waits.
        "3007: ours only Address +Kubernetes//Pod/shop/catalog-1",
        // A name that was asked for and wasn't there is sent when it comes into being.
        "15493: ours only Address +/10.96.50.10 +shop/late.shop.svc.cluster.local",
        // Taking back one name leaves the rest: theirs removes everything.
        "17120: theirs only Address -/10.96.50.10 -/10.96.51.1 -/192.0.2.200",
        // So what was asked for otherwise is still held when it is deleted.
        "18817: ours Address +/192.0.2.200 +Kubernetes//Pod/shop/catalog-1",
    ]);
}

#[test]
fn the_real_ztunnel_on_demand() {
    let mut replay = Replay::default();
    replay.run(recording::read("real-ztunnel-on-demand"));
    replay.expect(&[
        // Policies have a version and go out when they change.
        "2744: theirs only Authorization +amb/locked",
        // The VIP that this client waited for in vain is among the names of the answer.
        "5331: ours Address +/10.96.110.193 +Kubernetes//Pod/amb/server",
        // Every question gets an answer, a repeated one too (the recording ends here).
        "15693: ours only Address -/203.0.113.9",
    ]);
}

#[test]
fn odd_first_requests() {
    let mut replay = Replay::default();
    replay.run(recording::read("errors"));
    replay.expect(&[]);
}

#[test]
fn versions_are_istiods() {
    let mut count = 0;
    for name in ["wildcard", "reconnect", "real-ztunnel", "on-demand"] {
        for entry in recording::read(name) {
            let What::Response(response) = entry.what else { continue };
            for resource in response.resources.iter().filter(|r| !r.version.is_empty()) {
                let body = resource.resource.as_ref().unwrap();
                assert_eq!(Version::of(&body.value).to_string(), resource.version, "{}", resource.name);
                count += 1;
            }
        }
    }
    assert!(count > 50, "{count}");
}

#[derive(Default)]
struct Replay {
    set: Option<ResourceSet>,
    differences: Vec<String>,
}

/// One recorded or own response, without what is opaque.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Seen {
    kind: &'static str,
    changed: BTreeSet<String>,
    removed: BTreeSet<String>,
    aliases: BTreeMap<String, Vec<String>>,
}

impl Replay {
    fn run(&mut self, entries: Vec<Entry>) {
        let connections: BTreeSet<u64> = entries.iter().map(|e| e.connection).filter(|c| *c > 0).collect();
        for connection in connections {
            let of_this = |e: &&Entry| e.connection == connection || e.connection == 0;
            self.stream(&entries.iter().filter(of_this).collect::<Vec<_>>());
        }
    }

    fn stream(&mut self, entries: &[&Entry]) {
        let mut set = self.set.take().unwrap_or_else(|| ResourceSet::of_types([ADDRESS, AUTHORIZATION, WORKLOAD]));
        let mut session: Option<Session> = None;
        let mut answers: VecDeque<DeltaDiscoveryResponse> = VecDeque::new();
        let mut nonces: BTreeMap<String, String> = BTreeMap::new();
        let mut pushed_version = String::new();
        let mut failed: Option<tonic::Code> = None;
        for (i, entry) in entries.iter().enumerate() {
            match &entry.what {
                What::Note(note) => {
                    if alter(note, &mut set) {
                        let session = session.as_mut().unwrap();
                        for extra in session.push(&set).iter().map(Answer::to_message) {
                            self.differ(entry.at, &format!("ours only {}", brief(&extra)));
                        }
                    }
                }
                What::Opened => session = None,
                What::Request(request) => {
                    let client = match &mut session {
                        Some(session) => session,
                        None => match node::check(request.node.as_ref(), &Caller::Anonymous) {
                            Ok(node) => session.insert(Session::new(node.node_name)),
                            Err(status) => {
                                failed = Some(status.code());
                                continue;
                            }
                        },
                    };
                    if let Some(answer) = answer_to(request, &entries[i..]) {
                        put(&mut set, answer);
                    }
                    let mut request = request.clone();
                    let is_ack = !request.response_nonce.is_empty();
                    if let Some(nonce) = nonces.get(&request.response_nonce) {
                        request.response_nonce = nonce.clone();
                    } else if is_ack && request.response_nonce != "0-does-not-exist" {
                        continue; // It acknowledges what ours didn't send.
                    }
                    let is_nack = request.error_detail.is_some();
                    let is_unknown = request.response_nonce == "0-does-not-exist";
                    match client.handle(request, &set) {
                        Ok(handled) => {
                            match handled.note {
                                Note::Stale => assert!(is_unknown, "{}", entry.at),
                                Note::Nacked(_) => assert!(is_nack, "{}", entry.at),
                                Note::Acked => assert!(is_ack && !is_nack, "{}", entry.at),
                                Note::Subscribed => assert!(!is_ack, "{}", entry.at),
                            }
                            for answer in handled.responses.iter().map(Answer::to_message) {
                                let later = &entries[i..];
                                if is_answered_later(&answer.type_url, later) {
                                    answers.push_back(answer);
                                } else {
                                    self.differ(entry.at, &format!("ours only {}", brief(&answer)));
                                }
                            }
                        }
                        // As the driver says it to a caller who proved nothing.
                        Err(_) => failed = Some(tonic::Code::Unauthenticated),
                    }
                }
                What::Response(theirs) => {
                    let own = answers.iter().position(|a| a.type_url == theirs.type_url);
                    if let Some(own) = own.and_then(|at| answers.remove(at)) {
                        nonces.insert(theirs.nonce.clone(), own.nonce.clone());
                        self.compare(entry.at, &own, theirs);
                        continue;
                    }
                    if pushed_version == theirs.system_version_info {
                        continue; // Of a push that was compared as a whole.
                    }
                    pushed_version = theirs.system_version_info.clone();
                    let push: Vec<&DeltaDiscoveryResponse> = entries[i..]
                        .iter()
                        .take_while(|e| !is_cause(e))
                        .filter_map(|e| match &e.what {
                            What::Response(r) => Some(r),
                            _ => None,
                        })
                        .take_while(|r| r.system_version_info == pushed_version)
                        .collect();
                    for response in &push {
                        put(&mut set, response);
                    }
                    let own = session.as_mut().unwrap().push(&set);
                    let own: Vec<_> = own.iter().map(Answer::to_message).collect();
                    self.compare_push(entry.at, &own, &push, &mut nonces);
                }
                What::Ended(error) => {
                    let expect = match error.split(':').next().unwrap_or_default() {
                        "InvalidArgument" => Some(tonic::Code::InvalidArgument),
                        "Unauthenticated" => Some(tonic::Code::Unauthenticated),
                        _ => None,
                    };
                    assert_eq!(failed.take(), expect, "{}: {error}", entry.at);
                }
            }
        }
        self.set = Some(set);
    }

    fn compare_push(
        &mut self,
        at: u64,
        own: &[DeltaDiscoveryResponse],
        push: &[&DeltaDiscoveryResponse],
        nonces: &mut BTreeMap<String, String>,
    ) {
        let kinds = |all: &mut dyn Iterator<Item = &str>| all.map(short).collect::<Vec<_>>().join(", ");
        let ours = kinds(&mut own.iter().map(|r| r.type_url.as_str()));
        let theirs = kinds(&mut push.iter().map(|r| r.type_url.as_str()));
        for response in push {
            match own.iter().find(|o| o.type_url == response.type_url) {
                Some(o) => {
                    nonces.insert(response.nonce.clone(), o.nonce.clone());
                    self.compare(at, o, response);
                }
                None => self.differ(at, &format!("theirs only {}", brief(response))),
            }
        }
        for extra in own.iter().filter(|o| !push.iter().any(|r| r.type_url == o.type_url)) {
            self.differ(at, &format!("ours only {}", brief(extra)));
        }
        if own.len() == push.len() && ours != theirs {
            self.differ(at, &format!("ours [{ours}], theirs [{theirs}]"));
        }
    }

    fn compare(&mut self, at: u64, own: &DeltaDiscoveryResponse, theirs: &DeltaDiscoveryResponse) {
        if seen(own) != seen(theirs) {
            self.differ(at, &format!("ours {}, theirs {}", brief(own), brief(theirs)));
        }
        for resource in theirs.resources.iter().filter(|_| theirs.type_url == ADDRESS) {
            if let Some(o) = own.resources.iter().find(|o| o.name == resource.name) {
                assert_eq!(o, resource, "{at}");
            }
        }
    }

    fn differ(&mut self, at: u64, how: &str) {
        self.differences.push(format!("{at}: {how}"));
    }

    /// The differences begin so, each of which we mean.
    fn expect(&self, meant: &[&str]) {
        for difference in &self.differences {
            let is_meant = meant.iter().any(|m| difference.starts_with(m));
            assert!(is_meant, "not meant: {difference}");
        }
        for m in meant {
            let is_there = self.differences.iter().any(|d| d.starts_with(m));
            assert!(is_there, "no longer there: {m}, but {:?}", self.differences);
        }
    }
}

fn seen(response: &DeltaDiscoveryResponse) -> Seen {
    Seen {
        kind: short(&response.type_url),
        changed: response.resources.iter().map(|r| r.name.clone()).collect(),
        removed: response.removed_resources.iter().cloned().collect(),
        aliases: response.resources.iter().map(|r| (r.name.clone(), r.aliases.clone())).collect(),
    }
}

fn brief(response: &DeltaDiscoveryResponse) -> String {
    let seen = seen(response);
    let mut text = seen.kind.to_owned();
    text.extend(seen.changed.iter().map(|name| format!(" +{name}")));
    text.extend(seen.removed.iter().map(|name| format!(" -{name}")));
    text
}

fn short(type_url: &str) -> &'static str {
    match type_url {
        ADDRESS => "Address",
        AUTHORIZATION => "Authorization",
        _ => "other",
    }
}

/// The recorded answer to a request that asks for something.
fn answer_to<'a>(request: &DeltaDiscoveryRequest, later: &[&'a Entry]) -> Option<&'a DeltaDiscoveryResponse> {
    if !request.response_nonce.is_empty() {
        return None;
    }
    let mut responses = later.iter().skip(1).take_while(|e| !is_note(e));
    responses.find_map(|e| match &e.what {
        What::Response(r) if r.type_url == request.type_url => Some(r),
        _ => None,
    })
}

fn is_note(entry: &Entry) -> bool {
    matches!(entry.what, What::Note(_))
}

/// Whether the client asks something or something happens to the cluster.
fn is_cause(entry: &Entry) -> bool {
    match &entry.what {
        What::Request(request) => request.response_nonce.is_empty(),
        _ => is_note(entry),
    }
}

/// Whether a response of this type is recorded before the next thing that the client asks or that happens.
fn is_answered_later(type_url: &str, later: &[&Entry]) -> bool {
    let mut next = later.iter().skip(1);
    let stops = |e: &&&Entry| match &e.what {
        What::Request(r) => r.node.is_none() && r.response_nonce.is_empty(),
        What::Note(_) => true,
        _ => false,
    };
    next.by_ref().take_while(|e| !stops(e)).any(|e| matches!(&e.what, What::Response(r) if r.type_url == type_url))
}

/// What happened to the cluster and shows in no recorded response, because the recorded server no longer told.
/// Says whether ours is to push for it.
fn alter(note: &str, set: &mut ResourceSet) -> bool {
    match note {
        "Service shop/late created" => {
            let service = workload::Service {
                name: "late".into(),
                namespace: "shop".into(),
                hostname: "late.shop.svc.cluster.local".into(),
                addresses: vec![workload::NetworkAddress {
                    address: vec![10, 96, 50, 10].into(),
                    ..Default::default()
                }],
                ..Default::default()
            };
            let address = workload::Address { r#type: Some(address::Type::Service(service)) };
            let bytes = address.encode_to_vec();
            set.upsert(described(Resource::from_bytes(ADDRESS, "shop/late.shop.svc.cluster.local", bytes)))
        }
        "subscribed Service deleted" => {
            set.remove(ADDRESS, "shop/catalog.shop.svc.cluster.local");
            false
        }
        _ => false,
    }
}

/// Puts what a response says into our set.
fn put(set: &mut ResourceSet, response: &DeltaDiscoveryResponse) {
    for resource in &response.resources {
        let body = resource.resource.clone().unwrap();
        let name = resource.name.as_str();
        set.upsert(described(Resource::from_bytes(body.type_url.as_str(), name, body.value)));
    }
    let is_unknown = |name: &&String| set.get(&response.type_url, name).is_some();
    let gone: Vec<_> = response.removed_resources.iter().filter(is_unknown).cloned().collect();
    for name in gone {
        set.remove(&response.type_url, &name);
    }
}

/// With what the server's translation says besides the body: aliases, services, node.
fn described(resource: Resource) -> Resource {
    if *resource.type_url != *ADDRESS {
        return resource;
    }
    let decoded = workload::Address::decode(&resource.body[..]).unwrap();
    let alias = |network: &str, ip: &[u8]| {
        let ip = match <[u8; 4]>::try_from(ip) {
            Ok(v4) => IpAddr::from(v4),
            Err(_) => IpAddr::from(<[u8; 16]>::try_from(ip).unwrap()),
        };
        format!("{network}/{ip}")
    };
    match decoded.r#type.unwrap() {
        address::Type::Workload(w) => resource
            .with_aliases(w.addresses.iter().map(|ip| alias(&w.network, ip)).collect())
            .with_follows(w.services.into_keys().map(Into::into).collect())
            .with_node(w.node),
        address::Type::Service(s) => {
            resource.with_aliases(s.addresses.iter().map(|a| alias(&a.network, &a.address)).collect())
        }
    }
}
