use std::time::Duration;

use aquifer_objects::parse::parse_object;
use aquifer_objects::{Kind, Object, ObjectKey};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::board::Board;
use crate::revision::Revision;

use super::{Condition, GatewayStatus, ListenerStatus, Wanted, shape};

const T0: &str = "2026-01-01T00:00:00Z";
const T1: &str = "2026-01-01T00:00:09Z";

fn policy(status: Value) -> Object {
    parse_object(json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": { "name": "p", "namespace": "n", "generation": 3 }, "spec": {}, "status": status,
    }))
    .unwrap()
}

fn service(conditions: Value) -> Object {
    parse_object(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": { "name": "s", "namespace": "n" },
        "spec": { "ports": [{ "port": 80 }] }, "status": { "conditions": conditions },
    }))
    .unwrap()
}

fn with_status(object: &Object, status: &Value) -> Object {
    let mut json = object.to_json();
    let mut old = json["status"].take();
    if let (Some(old), Some(new)) = (old.as_object_mut(), status.as_object()) {
        old.extend(new.clone());
    } else {
        old = status.clone();
    }
    json["status"] = old;
    parse_object(json).unwrap()
}

fn wanted(conditions: &[(&str, bool, &str)]) -> Wanted {
    Wanted::Conditions(
        conditions.iter().map(|(type_, status, reason)| Condition::new(type_, *status, reason, "m")).collect(),
    )
}

#[test]
fn written_when_it_changes_and_only_then() {
    let object = policy(json!({}));
    let accepted = wanted(&[("ZtunnelAccepted", true, "Accepted")]);
    let first = shape::writes(&object, &accepted, true, T0);
    assert_eq!(first.len(), 1);
    assert_eq!(first[0].manager, "istio-ambient-ztunnel-policy");
    assert_eq!(
        first[0].status,
        json!({ "conditions": [{ "type": "ZtunnelAccepted", "status": "True", "reason": "Accepted", "message": "m",
            "lastTransitionTime": T0, "observedGeneration": "3" }] })
    );
    let object = with_status(&object, &first[0].status);
    assert_eq!(shape::writes(&object, &accepted, true, T1), []);

    // Another reason keeps the time, another status does not.
    let reason = shape::writes(&object, &wanted(&[("ZtunnelAccepted", true, "UnsupportedValue")]), true, T1);
    assert_eq!(reason[0].status["conditions"][0]["lastTransitionTime"], T0);
    let status = shape::writes(&object, &wanted(&[("ZtunnelAccepted", false, "UnsupportedValue")]), true, T1);
    assert_eq!(status[0].status["conditions"][0]["lastTransitionTime"], T1);

    // A new generation is seen even if nothing else is.
    let mut newer = object.to_json();
    newer["metadata"]["generation"] = json!(4);
    let seen = shape::writes(&parse_object(newer).unwrap(), &accepted, true, T1);
    assert_eq!(seen[0].status["conditions"][0]["observedGeneration"], "4");
    assert_eq!(seen[0].status["conditions"][0]["lastTransitionTime"], T0);
}

#[test]
fn a_list_that_is_taken_whole_keeps_what_others_wrote() {
    let theirs = json!({ "type": "Audited", "status": "True", "lastTransitionTime": T0 });
    let object = policy(json!({ "conditions": [theirs] }));
    let writes = shape::writes(&object, &wanted(&[("ZtunnelAccepted", true, "Accepted")]), true, T1);
    let types = |status: &Value| -> Vec<String> {
        let list = status["conditions"].as_array().cloned().unwrap_or_default();
        list.iter().map(|one| one["type"].as_str().unwrap_or_default().to_owned()).collect()
    };
    assert_eq!(types(&writes[0].status), ["Audited", "ZtunnelAccepted"]);
    // One of ours that no longer applies goes, in the name of what takes its place.
    let object = with_status(&object, &writes[0].status);
    let moved = shape::writes(&object, &wanted(&[("WaypointAccepted", false, "TargetNotFound")]), true, T1);
    assert_eq!(moved[0].manager, "istio-ambient-waypoint-policy");
    assert_eq!(types(&moved[0].status), ["Audited", "WaypointAccepted"]);
    // In a folder, where managers' lists hide each other, one manager writes them all.
    assert_eq!(shape::writes(&object, &wanted(&[]), false, T1)[0].manager, "istio-status");
}

#[test]
fn a_list_that_is_merged_gets_our_part_alone() {
    let theirs =
        json!({ "type": "Programmed", "status": "False", "reason": "r", "message": "", "lastTransitionTime": T0 });
    let object = service(json!([theirs]));
    let bound = wanted(&[("istio.io/WaypointBound", true, "WaypointAccepted")]);
    let writes = shape::writes(&object, &bound, true, T1);
    assert_eq!(writes.len(), 1);
    assert_eq!(writes[0].manager, "istio-ambient-service");
    assert_eq!(writes[0].status["conditions"].as_array().unwrap().len(), 1);
    let mut both = writes[0].status["conditions"].as_array().unwrap().clone();
    assert!(both[0].get("observedGeneration").is_none(), "a Service has no generation");
    both.push(theirs);
    let object = service(json!(both));
    assert_eq!(shape::writes(&object, &bound, true, T1), []);
    // Unbound: ours goes, theirs is not touched; and who never was bound is left alone.
    let gone = shape::writes(&object, &wanted(&[]), true, T1);
    assert_eq!((gone[0].manager, &gone[0].status), ("istio-ambient-service", &json!({ "conditions": [] })));
    assert_eq!(shape::writes(&service(json!([])), &wanted(&[]), true, T1), []);
}

#[test]
fn a_routes_parents_that_others_serve_are_theirs() {
    let route = |status: Value| {
        parse_object(json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute",
            "metadata": { "name": "r", "namespace": "n", "generation": 1 },
            "spec": { "parentRefs": [{ "group": "", "kind": "Service", "name": "s" }, { "name": "gw" }, { "name": "other" }] },
            "status": status,
        }))
        .unwrap()
    };
    let theirs = json!({ "parentRef": { "name": "other" }, "controllerName": "example.com/c", "conditions": [] });
    let object = route(json!({ "parents": [theirs] }));
    let mut board = Board::new(true, Revision::default());
    let now = Instant::now();
    board.observed(&object);
    board.want_conditions(&object.key(), vec![Condition::new("Accepted", true, "Accepted", "")]);
    let turn = board.next(now, T0).unwrap();
    let parents = turn.writes[0].status["parents"].as_array().unwrap().clone();
    assert_eq!(parents[0], theirs);
    assert_eq!(parents[1]["parentRef"]["name"], "s");
    assert_eq!(parents.len(), 2, "a Gateway that isn't ours is not spoken for: {parents:?}");
    // Then one of the Gateways turns out to be ours.
    board.observed(&route(json!({ "parents": parents })));
    assert_eq!(board.next(now, T0), None);
    board.want(&ObjectKey::new(Kind::Gateway, "n", "gw"), Wanted::Gateway(GatewayStatus::default()));
    let turn = board.next(now, T0).unwrap();
    assert_eq!(turn.writes[0].status["parents"].as_array().unwrap().len(), 3);
}

#[test]
fn a_gateways_status_is_compared_as_it_is_read_back() {
    let object = parse_object(json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "Gateway",
        "metadata": { "name": "gw", "namespace": "n", "generation": 1 },
        "spec": { "gatewayClassName": "istio-waypoint", "listeners": [{ "name": "mesh", "port": 15008, "protocol": "HBONE" }] },
    }))
    .unwrap();
    let status = GatewayStatus {
        conditions: vec![Condition::new("Accepted", true, "Accepted", "Resource accepted")],
        listeners: vec![ListenerStatus {
            name: "mesh".into(),
            conditions: vec![Condition::new("Accepted", true, "Accepted", "No errors found")],
            ..ListenerStatus::default()
        }],
        addresses: vec![("IPAddress".into(), "10.0.0.1".into())],
    };
    let wanted = Wanted::Gateway(status);
    let writes = shape::writes(&object, &wanted, true, T0);
    assert_eq!(writes[0].manager, "istio-status");
    let object = with_status(&object, &writes[0].status);
    assert_eq!(shape::writes(&object, &wanted, true, T1), []);
}

#[test]
fn a_write_that_has_not_come_back_is_not_repeated_and_a_fight_is_given_up_slowly() {
    let mut board = Board::new(true, Revision::default());
    let start = Instant::now();
    let bare = policy(json!({}));
    let key = bare.key();
    board.observed(&bare);
    board.want_conditions(&key, vec![Condition::new("ZtunnelAccepted", true, "Accepted", "m")]);
    let first = board.next(start, T0).unwrap();
    board.want_conditions(&key, vec![Condition::new("ZtunnelAccepted", true, "Accepted", "m")]);
    assert_eq!(board.next(start, T0), None);
    // Somebody takes it away again, every time, at once.
    let (mut writes, mut reports) = (1, 0);
    let ours = with_status(&bare, &first.writes[0].status);
    for second in 0..3600 {
        let now = start + Duration::from_secs(second);
        board.observed(&ours);
        board.observed(&bare);
        if let Some(turn) = board.next(now, T1) {
            writes += 1;
            reports += usize::from(turn.contested.is_some());
        }
    }
    assert!((15..=25).contains(&writes), "{writes}");
    assert_eq!(reports, 1);
    // Peace: what stands is looked at no more.
    board.observed(&ours);
    let later = start + Duration::from_secs(10_000);
    assert_eq!(board.next(later, T1), None);
    assert_eq!(board.next_due(later), None);
}

#[test]
fn who_becomes_leader_looks_at_everything() {
    let mut board = Board::new(true, Revision::default());
    let now = Instant::now();
    let object = policy(json!({}));
    board.observed(&object);
    board.want_conditions(&object.key(), vec![Condition::new("ZtunnelAccepted", true, "Accepted", "m")]);
    assert!(board.next(now, T0).is_some());
    assert_eq!(board.next(now, T0), None, "just written");
    board.examine_all();
    assert!(board.next(now, T0).is_some(), "whoever wrote before may have died over it");
}

#[test]
fn addresses_are_written_once_and_never_taken_away() {
    let entry = |status: Value| {
        parse_object(json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry", "metadata": { "name": "e", "namespace": "n" },
            "spec": { "hosts": ["a.example.com"], "ports": [{ "number": 80, "name": "http", "protocol": "HTTP" }], "resolution": "DNS" },
            "status": status,
        }))
        .unwrap()
    };
    let wanted = [("a.example.com".to_owned(), "240.240.0.1".to_owned())];
    let write = shape::addresses(&entry(json!({})), &wanted).unwrap();
    assert_eq!(write.status, json!({ "addresses": [{ "value": "240.240.0.1", "host": "a.example.com" }] }));
    assert_eq!(shape::addresses(&entry(write.status.clone()), &wanted), None);
    assert_eq!(shape::addresses(&entry(write.status), &[]), None);
}

#[test]
fn another_revisions_objects_are_not_spoken_of() {
    let now = Instant::now();
    let of_namespace = |label: Option<&str>| {
        let mut board = Board::new(true, Revision::new("canary", [], false));
        board.namespace("n", label);
        board.observed(&policy(json!({})));
        board.want_conditions(&policy(json!({})).key(), vec![Condition::new("ZtunnelAccepted", true, "Accepted", "m")]);
        board
    };
    assert_eq!(of_namespace(None).next(now, T0), None, "without a label it is the default revision's");
    assert!(of_namespace(Some("canary")).next(now, T0).is_some());
    // The namespace changes hands.
    let mut board = of_namespace(None);
    assert_eq!(board.next(now, T0), None);
    board.namespace("n", Some("canary"));
    assert!(board.next(now, T0).is_some());
}
