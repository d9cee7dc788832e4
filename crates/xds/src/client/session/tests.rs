use super::*;
use prost_types::Any;

const A: &str = "type.googleapis.com/a";
const B: &str = "type.googleapis.com/b";

/// Refuses names that begin with "bad"; remembers each call.
#[derive(Default)]
struct Sink(Vec<(String, Vec<String>)>);

impl ResourceSink for Sink {
    fn apply(&mut self, type_url: &str, updates: Vec<ResourceUpdate>) -> Vec<Rejected> {
        let mut rejected = Vec::new();
        let names = updates.into_iter().map(|update| match update {
            ResourceUpdate::Upsert { name, .. } => {
                if name.starts_with("bad") {
                    rejected.push(Rejected { name: name.clone(), error: "is bad".to_owned() });
                }
                format!("+{name}")
            }
            ResourceUpdate::Remove { name } => format!("-{name}"),
        });
        self.0.push((type_url.to_owned(), names.collect()));
        rejected
    }
}

fn resource(name: &str, version: &str) -> Resource {
    Resource {
        name: name.to_owned(),
        version: version.to_owned(),
        resource: Some(Any { type_url: A.to_owned(), value: vec![1] }),
        aliases: vec![format!("alias/{name}")],
    }
}

fn response(nonce: &str, resources: Vec<Resource>, removed: &[&str]) -> DeltaDiscoveryResponse {
    DeltaDiscoveryResponse {
        type_url: A.to_owned(),
        nonce: nonce.to_owned(),
        resources,
        removed_resources: removed.iter().map(|name| (*name).to_owned()).collect(),
        ..Default::default()
    }
}

fn node() -> Node {
    Node { id: "ztunnel~10.0.0.1~a.b~b.svc".to_owned(), ..Node::default() }
}

fn held(session: &Session) -> Vec<(String, String)> {
    session.held(A).unwrap().iter().collect()
}

/// A mesh of which nothing can be read must not make a request that no server takes.
#[test]
fn a_nack_is_short_however_much_is_refused() {
    let mut session = Session::new([Watch::wildcard(A)], node());
    let resources = (0..50_000).map(|n| resource(&format!("bad-{n:0>100}"), "1")).collect();
    let nack = session.handle(response("1", resources, &[]), &mut Sink::default());
    let message = nack.error_detail.unwrap().message;
    assert!(message.starts_with("bad-0") && message.ends_with(" more") && message.len() < 20_000, "{}", message.len());
}

#[test]
fn the_first_requests_ask_for_everything_and_name_the_node() {
    let session = Session::new([Watch::wildcard(A), Watch::wildcard(B)], node());
    let requests = session.initial_requests();
    let expect = [A, B].map(|type_url| DeltaDiscoveryRequest {
        node: Some(node()),
        type_url: type_url.to_owned(),
        ..Default::default()
    });
    assert_eq!(requests, expect);
}

#[test]
fn good_resources_are_taken_and_bad_ones_named() {
    let mut session = Session::new([Watch::wildcard(A)], node());
    let mut sink = Sink::default();
    let ack = session.handle(response("n1", vec![resource("x", "1")], &[]), &mut sink);
    let plain = DeltaDiscoveryRequest { type_url: A.to_owned(), response_nonce: "n1".to_owned(), ..Default::default() };
    assert_eq!(ack, plain);

    let (mut empty, mut foreign) = (resource("empty", "1"), resource("foreign", "1"));
    empty.resource = None;
    foreign.resource.as_mut().unwrap().type_url = B.to_owned();
    let mixed = vec![resource("bad", "1"), empty, resource("y", "1"), foreign];
    let nack = session.handle(response("n2", mixed, &["x"]), &mut sink);
    assert_eq!(nack.response_nonce, "n2");
    let error = nack.error_detail.unwrap();
    assert_eq!(error.code, 0);
    let expect = "empty: has no body; foreign: is of type \"type.googleapis.com/b\"; bad: is bad";
    assert_eq!(error.message, expect);
    // One call a response, removals last.
    let calls: Vec<_> = sink.0.iter().map(|(_, names)| names.join(" ")).collect();
    assert_eq!(calls, ["+x", "+bad +y -x"]);
    assert_eq!(held(&session), [("y".to_owned(), "1".to_owned())]);
}

#[test]
fn a_refused_change_leaves_the_version_that_is_in_force() {
    let mut session = Session::new([Watch::wildcard(A)], node());
    let mut sink = Sink::default();
    session.handle(response("n1", vec![resource("x", "1")], &[]), &mut sink);
    let mut broken = resource("x", "2");
    broken.resource = None;
    assert!(session.handle(response("n2", vec![broken], &[]), &mut sink).error_detail.is_some());
    // So a server that has deleted it meanwhile says so after a reconnect.
    session.reconnect();
    let versions = &session.initial_requests()[0].initial_resource_versions;
    assert_eq!(versions.get("x").map(String::as_str), Some("1"));
}

#[test]
fn synced_when_every_type_was_answered_even_by_nothing() {
    let mut session = Session::new([Watch::wildcard(A), Watch::wildcard(B)], node());
    let mut sink = Sink::default();
    assert!(!session.synced());
    session.handle(response("n1", vec![], &[]), &mut sink);
    assert!(!session.synced());
    let other = DeltaDiscoveryResponse { type_url: B.to_owned(), ..response("n2", vec![], &[]) };
    session.handle(other, &mut sink);
    assert!(session.synced());
    session.reconnect();
    assert!(session.synced(), "what was received stays in force");
    assert!(sink.0.is_empty(), "nothing to apply, nothing to publish");
}

#[test]
fn a_type_that_nobody_asked_for_is_refused() {
    let mut session = Session::new([Watch::wildcard(B)], node());
    let mut sink = Sink::default();
    let nack = session.handle(response("n1", vec![resource("x", "1")], &[]), &mut sink);
    assert!(nack.error_detail.is_some());
    assert!(sink.0.is_empty() && !session.synced());
}

#[test]
fn demands_are_answered_by_name_by_alias_and_by_absence() {
    let mut session = Session::new([Watch::on_demand(A)], node());
    let mut sink = Sink::default();
    let first = &session.initial_requests()[0];
    assert_eq!(first.resource_names_subscribe, ["*"]);
    assert_eq!(first.resource_names_unsubscribe, ["*"]);

    for name in ["x", "alias/y", "gone"] {
        let request = session.demand(A, name).unwrap();
        assert_eq!(request.resource_names_subscribe, [name]);
        assert!(request.node.is_none() && request.response_nonce.is_empty());
        assert!(session.demand(A, name).is_none(), "one question at a time");
    }
    assert!(session.take_answered().is_empty());
    session.handle(response("n1", vec![resource("x", "1"), resource("y", "1")], &["gone"]), &mut sink);
    let answered: Vec<String> = session.take_answered().into_iter().map(|(_, name)| name).collect();
    assert_eq!(answered, ["x", "alias/y", "gone"]);

    // The next stream asks again, but not for what doesn't exist.
    session.reconnect();
    let again = &session.initial_requests()[0];
    assert_eq!(again.resource_names_subscribe, ["*", "alias/y", "x"]);
    assert_eq!(again.initial_resource_versions.len(), 2);
    assert!(session.demand(A, "gone").is_some());
}

#[test]
fn a_demand_that_the_stream_left_unanswered_is_answered_by_the_next() {
    let mut session = Session::new([Watch::on_demand(A)], node());
    let mut sink = Sink::default();
    session.demand(A, "x").unwrap();
    session.reconnect();
    assert_eq!(session.initial_requests()[0].resource_names_subscribe, ["*", "x"]);
    session.handle(response("n1", vec![resource("x", "1")], &[]), &mut sink);
    assert_eq!(session.take_answered(), [(A.to_owned(), "x".to_owned())]);
}

#[test]
fn a_demand_of_a_wildcard_type_needs_no_question() {
    let mut session = Session::new([Watch::wildcard(A)], node());
    assert!(session.demand(A, "x").is_none());
    assert_eq!(session.take_answered(), [(A.to_owned(), "x".to_owned())]);
    assert!(session.demand(B, "x").is_none(), "not watched at all");
}

mod any_response {
    use super::*;
    use proptest::prelude::*;
    use prost::Message;

    fn name() -> impl Strategy<Value = String> {
        prop_oneof![prop::sample::select(vec!["", "*", "a", "b", "bad", "bad2"]).prop_map(str::to_owned), ".{0,9}"]
    }

    fn any_resource() -> impl Strategy<Value = Resource> {
        (
            name(),
            name(),
            prop::option::of(prop::collection::vec(any::<u8>(), 0..9)),
            prop::collection::vec(name(), 0..3),
        )
            .prop_map(|(name, version, value, aliases)| Resource {
                name,
                version,
                aliases,
                resource: value.map(|value| Any { type_url: A.to_owned(), value }),
            })
    }

    proptest! {
        /// Any answers in any order: each gets one reply with its nonce, and the server is told of all that the sink has.
        /// What else it is told of was refused once; it says so if that is gone.
        #[test]
        fn is_answered_once_and_what_the_sink_has_is_held(
            responses in prop::collection::vec(
                (name(), prop::collection::vec(any_resource(), 0..5), prop::collection::vec(name(), 0..4), 0..3_usize),
                0..8,
            ),
        ) {
            let mut session = Session::new([Watch::wildcard(A), Watch::on_demand(B)], node());
            let mut sink = Sink::default();
            let (mut model, mut refused) = (BTreeSet::new(), BTreeSet::new());
            for (nonce, resources, removed, which) in responses {
                let type_url = [A, B, "type.googleapis.com/unknown"][which].to_owned();
                if which == 1 {
                    resources.iter().for_each(|r| drop(session.demand(B, &r.name)));
                }
                let response =
                    DeltaDiscoveryResponse { type_url: type_url.clone(), nonce: nonce.clone(), resources, removed_resources: removed, ..Default::default() };
                let bodiless = response.resources.iter().filter(|r| r.resource.is_none() || r.name.starts_with("bad"));
                refused.extend(bodiless.map(|r| r.name.clone()));
                let applied = sink.0.len();
                let reply = session.handle(response, &mut sink);
                prop_assert_eq!((&reply.type_url, &reply.response_nonce), (&type_url, &nonce));
                prop_assert_eq!(reply.error_detail.is_some() || which < 2, true);
                prop_assert!(sink.0.len() <= applied + 1, "applied once, as a whole");
                for (url, changes) in &sink.0[applied..] {
                    prop_assert_eq!(url, &type_url);
                    for change in changes.iter().filter(|_| which == 0) {
                        let (sign, name) = change.split_at(1);
                        if sign == "-" {
                            model.remove(name);
                        } else if !name.starts_with("bad") {
                            model.insert(name.to_owned());
                        }
                    }
                }
                let named: BTreeSet<String> = held(&session).into_iter().map(|(name, _)| name).collect();
                prop_assert!(named.is_superset(&model), "{:?} held, {:?} taken", named, model);
                prop_assert!(named.difference(&model).all(|name| refused.contains(name)), "{:?} held, {:?} taken", named, model);
                session.reconnect();
                prop_assert_eq!(session.initial_requests().len(), 2);
            }
        }

        #[test]
        fn no_bytes_make_the_session_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(mut response) = DeltaDiscoveryResponse::decode(&bytes[..]) {
                let mut session = Session::new([Watch::wildcard(A)], node());
                session.handle(response.clone(), &mut Sink::default());
                response.type_url = A.to_owned();
                session.handle(response, &mut Sink::default());
            }
        }
    }
}

#[test]
fn a_type_of_our_own_is_asked_for_only_where_it_is_served() {
    let mut session = Session::new([Watch::wildcard(B), Watch::if_served(A)], node());
    let mut sink = Sink::default();
    let types = |requests: &[DeltaDiscoveryRequest]| requests.iter().map(|r| r.type_url.clone()).collect::<Vec<_>>();
    assert_eq!(types(&session.initial_requests()), [B]);
    assert!(session.served(&[""], &mut sink).is_empty() && sink.0.is_empty());
    let of_b = DeltaDiscoveryResponse { type_url: B.to_owned(), nonce: "1".into(), ..Default::default() };
    session.handle(of_b, &mut sink);
    assert!(session.synced(), "a server need not have the other");
    sink.0.clear();

    session.reconnect();
    assert_eq!(types(&session.served(&["other", A], &mut sink)), [A]);
    assert_eq!(session.handle(response("2", vec![resource("x", "1")], &[]), &mut sink).error_detail, None);
    session.reconnect();
    let again = session.served(&[A], &mut sink);
    assert_eq!(again[0].initial_resource_versions, [("x".to_owned(), "1".to_owned())].into());

    // Another server, which knows nothing of it: what is held would never change again.
    sink.0.clear();
    session.reconnect();
    assert!(session.served(&["other"], &mut sink).is_empty());
    assert_eq!(sink.0, [(A.to_owned(), vec!["-x".to_owned()])]);
    session.reconnect();
    assert!(session.served(&[A], &mut sink)[0].initial_resource_versions.is_empty());
}
