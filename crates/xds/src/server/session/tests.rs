use super::*;
use aquifer_proto::type_url::{ADDRESS, AUTHORIZATION};
use aquifer_proto::xds::Status;

fn set(addresses: &[(&str, u8)], policies: &[(&str, u8)]) -> ResourceSet {
    let mut set = ResourceSet::of_types([ADDRESS, AUTHORIZATION]);
    change(&mut set, addresses, policies);
    set
}

fn change(set: &mut ResourceSet, addresses: &[(&str, u8)], policies: &[(&str, u8)]) {
    for (name, body) in addresses {
        set.upsert(Resource::from_bytes(ADDRESS, *name, vec![*body]));
    }
    for (name, body) in policies {
        set.upsert(Resource::from_bytes(AUTHORIZATION, *name, vec![*body]));
    }
}

fn ask(type_url: &str) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { type_url: type_url.to_owned(), ..Default::default() }
}

fn subscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { resource_names_subscribe: owned(names), ..ask(ADDRESS) }
}

fn unsubscribe(names: &[&str]) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { resource_names_unsubscribe: owned(names), ..ask(ADDRESS) }
}

fn on_demand() -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { resource_names_unsubscribe: owned(&["*"]), ..subscribe(&["*"]) }
}

fn owned(names: &[&str]) -> Vec<String> {
    names.iter().map(|name| (*name).to_owned()).collect()
}

fn ack(response: &Answer) -> DeltaDiscoveryRequest {
    DeltaDiscoveryRequest { response_nonce: response.nonce().to_owned(), ..ask(response.type_url()) }
}

/// `Address +a +b -c` for each response.
fn brief(responses: &[Answer]) -> Vec<String> {
    let each = responses.iter().map(Answer::to_message).map(|response| {
        let mut text = response.type_url.rsplit('.').next().unwrap().to_owned();
        text.extend(response.resources.iter().map(|r| format!(" +{}", r.name)));
        text.extend(response.removed_resources.iter().map(|name| format!(" -{name}")));
        text
    });
    each.collect()
}

fn check(session: &mut Session, request: DeltaDiscoveryRequest, set: &ResourceSet, expect: &[&str]) {
    let handled = session.handle(request, set).unwrap();
    assert_eq!(brief(&handled.responses), expect);
}

/// A session that has asked for both types and was answered.
fn connected(set: &ResourceSet) -> Session {
    let mut session = Session::new(None);
    session.handle(ask(ADDRESS), set).unwrap();
    session.handle(ask(AUTHORIZATION), set).unwrap();
    session
}

#[test]
fn the_first_request_of_a_type_is_answered_even_by_nothing() {
    let mut session = Session::new(None);
    let set = set(&[("a", 1), ("b", 1)], &[]);
    check(&mut session, ask(ADDRESS), &set, &["Address +a +b"]);
    check(&mut session, ask(AUTHORIZATION), &set, &["Authorization"]);
    assert!(session.push(&set).is_empty());
}

#[test]
fn what_the_client_holds_already_is_not_sent() {
    let set = set(&[("a", 1), ("b", 1), ("c", 1)], &[]);
    let version = set.get(ADDRESS, "a").unwrap().version.to_string();
    let held = [("a", version.as_str()), ("b", "old"), ("gone", "1")];
    let mut request = ask(ADDRESS);
    request.initial_resource_versions = held.iter().map(|(n, v)| ((*n).to_owned(), (*v).to_owned())).collect();
    check(&mut Session::new(None), request, &set, &["Address +b +c -gone"]);
}

#[test]
fn changes_are_pushed_once_and_equal_versions_never() {
    let mut current = set(&[("a", 1), ("b", 1)], &[("p", 1)]);
    let mut session = connected(&current);
    change(&mut current, &[("a", 2), ("c", 1)], &[]);
    current.remove(ADDRESS, "b");
    assert_eq!(brief(&session.push(&current)), ["Address +a +c -b"]);
    assert!(session.push(&current).is_empty());
    // There and back between two pushes is nothing.
    change(&mut current, &[("a", 3)], &[]);
    change(&mut current, &[("a", 2)], &[]);
    assert!(session.push(&current).is_empty());
    // A set that was built anew but says the same is nothing either.
    let rebuilt = set(&[("c", 1), ("a", 2)], &[("p", 1)]);
    assert!(session.push(&rebuilt).is_empty());
}

#[test]
fn policies_come_before_the_workloads_that_name_them_and_go_after() {
    let mut current = set(&[("a", 1)], &[("old", 1)]);
    let mut session = connected(&current);
    change(&mut current, &[("a", 2)], &[("new", 1)]);
    current.remove(AUTHORIZATION, "old");
    let expect = ["Authorization +new", "Address +a", "Authorization -old"];
    assert_eq!(brief(&session.push(&current)), expect);
    assert!(session.push(&current).is_empty());
}

#[test]
fn acknowledgements_are_told_apart() {
    let current = set(&[("a", 1)], &[]);
    let mut session = Session::new(None);
    let first = session.handle(ask(ADDRESS), &current).unwrap().responses.remove(0);

    let mut nack = ack(&first);
    // The code is 0; that the error is there is what counts.
    nack.error_detail = Some(Status { message: "a: is bad".to_owned(), ..Status::default() });
    let handled = session.handle(nack.clone(), &current).unwrap();
    assert_eq!(handled.note, Note::Nacked("a: is bad".to_owned()));
    assert!(handled.responses.is_empty(), "a refused resource is not sent again as it is");
    assert!(session.push(&current).is_empty());
    assert_eq!(session.handle(nack, &current).unwrap().note, Note::Stale, "answered already");

    let mut stale = ack(&first);
    stale.response_nonce = "0-does-not-exist".to_owned();
    let handled = session.handle(stale, &current).unwrap();
    assert_eq!((handled.note, handled.responses.len()), (Note::Stale, 0));
}

#[test]
fn responses_may_be_acknowledged_while_others_are_under_way() {
    let mut current = set(&[("a", 1)], &[]);
    let mut session = Session::new(None);
    let mut sent = session.handle(ask(ADDRESS), &current).unwrap().responses;
    for body in 2..4 {
        change(&mut current, &[("a", body)], &[]);
        sent.extend(session.push(&current));
    }
    for response in &sent {
        assert_eq!(session.handle(ack(response), &current).unwrap().note, Note::Acked);
    }
}

#[test]
fn a_request_without_type_or_for_a_foreign_one_ends_the_stream() {
    let current = set(&[], &[]);
    let mut session = Session::new(None);
    assert_eq!(session.handle(ask(""), &current).unwrap_err(), Refused::NoType);
    let unknown = session.handle(ask("type.googleapis.com/x"), &current);
    assert!(matches!(unknown, Err(Refused::UnknownType(_))));
}

fn shop() -> ResourceSet {
    let mut set = set(&[], &[("p", 1)]);
    let service = Resource::from_bytes(ADDRESS, "shop/web.shop", vec![1]);
    set.upsert(service.with_aliases(owned(&["/10.96.0.1"])));
    for (name, ip, node) in [("pod1", "/10.0.0.1", "node1"), ("pod2", "/10.0.0.2", "node2")] {
        let pod = Resource::from_bytes(ADDRESS, name, vec![1])
            .with_aliases(owned(&[ip]))
            .with_follows(vec!["shop/web.shop".into()])
            .with_node(node);
        set.upsert(pod);
    }
    let other = Resource::from_bytes(ADDRESS, "other", vec![1]);
    set.upsert(other.with_aliases(owned(&["/10.0.0.9"])).with_node("node2"));
    set
}

#[test]
fn an_on_demand_client_gets_its_node_and_what_it_asks_for() {
    let mut current = shop();
    let mut session = Session::new(Some("node1".to_owned()));
    let first = session.handle(on_demand(), &current).unwrap().responses;
    assert_eq!(brief(&first), ["Address +pod1"]);
    assert_eq!(first[0].to_message().resources[0].aliases, ["/10.0.0.1"], "aliases are for on-demand clients");
    check(&mut session, ask(AUTHORIZATION), &current, &["Authorization +p"]);

    // By alias: under that name too, and with those who follow.
    let by_vip = &["Address +/10.96.0.1 +pod1 +pod2 +shop/web.shop"];
    check(&mut session, subscribe(&["/10.96.0.1"]), &current, by_vip);
    // A repeated question gets its answer again, by its own name.
    let by_name = &["Address +pod1 +pod2 +shop/web.shop"];
    check(&mut session, subscribe(&["shop/web.shop"]), &current, by_name);
    check(&mut session, subscribe(&["nowhere", "/10.9.9.9"]), &current, &["Address -/10.9.9.9 -nowhere"]);
    assert!(session.push(&current).is_empty());

    // What nobody asked for is not pushed; what was asked for is, also when it comes late.
    change(&mut current, &[("unrelated", 1), ("nowhere", 1)], &[]);
    assert_eq!(brief(&session.push(&current)), ["Address +nowhere"]);
    // A pod that no longer follows is no longer held, one on the node is.
    for (name, node) in [("pod1", "node1"), ("pod2", "node2")] {
        current.upsert(Resource::from_bytes(ADDRESS, name, vec![2]).with_node(node));
    }
    assert_eq!(brief(&session.push(&current)), ["Address +pod1 -pod2"]);
    current.remove(ADDRESS, "shop/web.shop");
    assert_eq!(brief(&session.push(&current)), ["Address -/10.96.0.1 -shop/web.shop"]);
}

#[test]
fn taking_a_name_back_leaves_the_rest() {
    let mut current = shop();
    let mut session = Session::new(Some("node1".to_owned()));
    session.handle(on_demand(), &current).unwrap();
    session.handle(subscribe(&["other", "shop/web.shop"]), &current).unwrap();
    check(&mut session, unsubscribe(&["shop/web.shop"]), &current, &[]);
    change(&mut current, &[("other", 2), ("pod2", 2), ("shop/web.shop", 2)], &[]);
    assert_eq!(brief(&session.push(&current)), ["Address +other"]);
}

#[test]
fn an_on_demand_client_that_comes_back_has_asked_for_what_it_holds() {
    let current = shop();
    let mut session = Session::new(Some("node1".to_owned()));
    let mut request = on_demand();
    let version = current.get(ADDRESS, "other").unwrap().version.to_string();
    request.initial_resource_versions = [
        ("other".to_owned(), version),
        ("/10.96.0.1".to_owned(), "old".to_owned()),
        ("gone".to_owned(), "1".to_owned()),
    ]
    .into();
    let expect = &["Address +/10.96.0.1 +pod1 +pod2 +shop/web.shop -gone"];
    check(&mut session, request, &current, expect);
    assert!(session.push(&current).is_empty());
}

#[test]
fn the_wildcard_can_be_taken_and_given_back() {
    let current = shop();
    let mut session = Session::new(None);
    session.handle(on_demand(), &current).unwrap();
    session.handle(subscribe(&["other"]), &current).unwrap();
    let rest = &["Address +pod1 +pod2 +shop/web.shop"];
    check(&mut session, subscribe(&["*"]), &current, rest);
    // A wildcard client's question is answered, though it has it all.
    check(&mut session, subscribe(&["/10.0.0.9", "nowhere"]), &current, &["Address +other -nowhere"]);
    session.handle(unsubscribe(&["*"]), &current).unwrap();
    let mut changed = current.clone();
    change(&mut changed, &[("other", 2)], &[]);
    assert!(session.push(&changed).is_empty());
}

#[test]
fn a_client_that_scans_addresses_is_not_remembered_without_end() {
    let current = shop();
    let mut session = Session::new(None);
    session.handle(on_demand(), &current).unwrap();
    for i in 0..6000 {
        session.handle(subscribe(&[&format!("/10.1.{}.{}", i / 256, i % 256)]), &current).unwrap();
    }
    let Watched::OnDemand(demand) = &session.types[ADDRESS].watched else { panic!("on demand") };
    assert!(demand.remembered() <= 4097, "{}", demand.remembered());
    assert!(session.types[ADDRESS].outstanding.len() <= MAX_OUTSTANDING);
}
