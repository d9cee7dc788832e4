//! What is to be written so that the wanted status stands. Pure.
//!
//! The lists of conditions differ by kind. Where the API server merges them by type (Service, Gateway API), each of
//! our field managers writes its own and nobody else's. Where it takes them whole (Istio's kinds; everything in a
//! folder), the conditions of others are written again as they stand.

use aquifer_objects::{Kind, Object};
use serde_json::{Map, Value, json};

use super::{Condition, GatewayStatus, Wanted, Write};

/// The manager of whatever has no older name of its own.
pub(super) const MANAGER: &str = "istio-status";
/// The manager of the automatic addresses of a ServiceEntry.
pub(super) const ADDRESSES_MANAGER: &str = "istio-ip-autoallocate";
/// Which controller speaks in the status of a route: Istio's name, since it implements the same classes.
pub const CONTROLLER: &str = "istio.io/gateway-controller";

/// Condition types that only we write: one that stands and isn't wanted goes.
const OURS: &[&str] = &[
    "ZtunnelAccepted",
    "WaypointAccepted",
    "Accepted",
    "Programmed",
    "ResolvedRefs",
    "Reconciled",
    "PartiallyInvalid",
];

/// The field manager of a condition; Istio's names, so that one takes the other's place.
fn manager(kind: Kind, type_: &str) -> &'static str {
    match (kind, type_) {
        (Kind::WorkloadEntry, _) if type_.starts_with("istio.io/") => "istio-ambient-workloadentry",
        (_, _) if type_.starts_with("istio.io/") => "istio-ambient-service",
        (_, "ZtunnelAccepted") => "istio-ambient-ztunnel-policy",
        (_, "WaypointAccepted") => "istio-ambient-waypoint-policy",
        _ => MANAGER,
    }
}

fn ours(kind: Kind, type_: &str) -> bool {
    // On a Service stand conditions of whoever likes.
    let plain = kind != Kind::Service && OURS.contains(&type_);
    plain || type_.starts_with("istio.io/") || type_.starts_with("aquifer.dev/")
}

/// How a kind's status is made.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    /// `istio.meta.v1alpha1.IstioStatus`: one list, taken whole; generations are strings.
    Istio,
    /// `metav1.Condition`, merged by type.
    Meta,
    /// A list of parents, taken whole, each with conditions.
    Route,
}

fn style(kind: Kind) -> Style {
    match kind {
        Kind::HTTPRoute | Kind::GRPCRoute | Kind::TCPRoute | Kind::TLSRoute => Style::Route,
        Kind::Service | Kind::Pod | Kind::Namespace | Kind::Node | Kind::Gateway | Kind::GatewayClass => Style::Meta,
        _ => Style::Istio,
    }
}

/// The writes that are missing: none if what stands is what is wanted. `by_type` says whether the store merges
/// conditions by their type where the kind's schema says so; `now` is RFC 3339.
pub(super) fn writes(object: &Object, wanted: &Wanted, by_type: bool, now: &str) -> Vec<Write> {
    let standing = object.to_json()["status"].take();
    let generation = object.meta().generation;
    let one = |manager, status: Option<Value>| status.map(|status| Write { manager, status }).into_iter().collect();
    match wanted {
        Wanted::Conditions(conditions) => match style(object.kind()) {
            Style::Meta if by_type => split(object.kind(), &standing, conditions, generation, now),
            Style::Route => one(MANAGER, parents(&standing, &[], generation, now)),
            style => whole(object.kind(), style, &standing, conditions, generation, by_type, now),
        },
        Wanted::Parents(wanted) => one(MANAGER, parents(&standing, wanted, generation, now)),
        Wanted::Gateway(wanted) => one(MANAGER, gateway(&standing, wanted, generation, now)),
    }
}

/// The automatic addresses, if others stand. Those that stand are never taken away: they may be in use.
pub(super) fn addresses(object: &Object, wanted: &[(String, String)]) -> Option<Write> {
    let standing = object.to_json()["status"]["addresses"].take();
    let addresses: Vec<Value> = wanted.iter().map(|(host, value)| json!({ "value": value, "host": host })).collect();
    let addresses = Value::Array(addresses);
    (addresses != standing && !wanted.is_empty())
        .then(|| Write { manager: ADDRESSES_MANAGER, status: json!({ "addresses": addresses }) })
}

/// One condition as it is to stand; its time is that of the last change of its status.
fn condition(style: Style, wanted: &Condition, old: &[Value], generation: Option<i64>, now: &str) -> Value {
    let before = old.iter().find(|old| old["type"] == wanted.type_.as_str());
    let since = before
        .filter(|old| old["status"] == wanted.status.as_str())
        .and_then(|old| old["lastTransitionTime"].as_str())
        .unwrap_or(now);
    let mut value = json!({
        "type": wanted.type_,
        "status": wanted.status,
        "reason": wanted.reason,
        "message": wanted.message,
        "lastTransitionTime": since,
    });
    if let (Some(generation), Some(fields)) = (generation, value.as_object_mut()) {
        let observed = if style == Style::Istio { json!(generation.to_string()) } else { json!(generation) };
        fields.insert("observedGeneration".to_owned(), observed);
    }
    value
}

fn conditions(style: Style, wanted: &[Condition], old: &[Value], generation: Option<i64>, now: &str) -> Vec<Value> {
    let mut all: Vec<Value> = wanted.iter().map(|one| condition(style, one, old, generation, now)).collect();
    all.sort_by(|a, b| a["type"].as_str().cmp(&b["type"].as_str()));
    all
}

/// Each manager's own part, where the store merges by type.
fn split(kind: Kind, standing: &Value, wanted: &[Condition], generation: Option<i64>, now: &str) -> Vec<Write> {
    let old = list(&standing["conditions"]);
    let mut writes: Vec<Write> = Vec::new();
    let mut managers: Vec<&'static str> = wanted.iter().map(|one| manager(kind, &one.type_)).collect();
    let stale = |one: &&Value| {
        let type_ = one["type"].as_str().unwrap_or_default();
        ours(kind, type_) && !wanted.iter().any(|wanted| wanted.type_ == type_)
    };
    let stale: Vec<&str> = old.iter().filter(stale).filter_map(|one| one["type"].as_str()).collect();
    managers.extend(stale.iter().map(|type_| manager(kind, type_)));
    managers.sort_unstable();
    managers.dedup();
    for name in managers {
        let mine: Vec<Condition> = wanted.iter().filter(|one| manager(kind, &one.type_) == name).cloned().collect();
        let next = conditions(Style::Meta, &mine, &old, generation, now);
        let changed =
            next.iter().any(|one| !stands(one, &old)) || stale.iter().any(|type_| manager(kind, type_) == name);
        if changed {
            writes.push(Write { manager: name, status: json!({ "conditions": next }) });
        }
    }
    writes
}

/// The list as a whole, with the conditions of others as they stand.
fn whole(
    kind: Kind,
    style: Style,
    standing: &Value,
    wanted: &[Condition],
    generation: Option<i64>,
    several_managers: bool,
    now: &str,
) -> Vec<Write> {
    let old = list(&standing["conditions"]);
    let foreign = |one: &Value| !ours(kind, one["type"].as_str().unwrap_or_default());
    let mut next = conditions(style, wanted, &old, generation, now);
    let stale = old.iter().any(|one| !foreign(one) && !next.iter().any(|new| new["type"] == one["type"]));
    if !stale && next.iter().all(|one| stands(one, &old)) {
        return Vec::new();
    }
    let name = match wanted.first() {
        Some(first) if several_managers => manager(kind, &first.type_),
        _ => MANAGER,
    };
    let mut all: Vec<Value> = old.into_iter().filter(|one| foreign(one)).collect();
    all.append(&mut next);
    vec![Write { manager: name, status: json!({ "conditions": all }) }]
}

/// What a route's parents are told; the words of other controllers stay.
fn parents(standing: &Value, wanted: &[(Value, Vec<Condition>)], generation: Option<i64>, now: &str) -> Option<Value> {
    let old = list(&standing["parents"]);
    let mine = |one: &&Value| one["controllerName"] == CONTROLLER;
    let mut next: Vec<Value> = old.iter().filter(|one| !mine(one)).cloned().collect();
    let mut ours = Vec::new();
    for (reference, wanted) in wanted {
        let before = old.iter().filter(mine).find(|one| one["parentRef"] == *reference);
        let conditions_before = before.map(|one| list(&one["conditions"])).unwrap_or_default();
        ours.push(json!({
            "parentRef": reference,
            "controllerName": CONTROLLER,
            "conditions": conditions(Style::Meta, wanted, &conditions_before, generation, now),
        }));
    }
    let same = old.iter().filter(mine).count() == ours.len()
        && ours.iter().all(|new| old.iter().filter(mine).any(|one| same_parent(one, new)));
    if same {
        return None;
    }
    next.append(&mut ours);
    Some(json!({ "parents": next }))
}

fn same_parent(one: &Value, other: &Value) -> bool {
    let (old, new) = (list(&one["conditions"]), list(&other["conditions"]));
    one["parentRef"] == other["parentRef"] && old.len() == new.len() && new.iter().all(|new| stands(new, &old))
}

fn gateway(standing: &Value, wanted: &GatewayStatus, generation: Option<i64>, now: &str) -> Option<Value> {
    let old = list(&standing["conditions"]);
    let next = conditions(Style::Meta, &wanted.conditions, &old, generation, now);
    let addresses: Vec<Value> =
        wanted.addresses.iter().map(|(type_, value)| json!({ "type": type_, "value": value })).collect();
    let old_listeners = list(&standing["listeners"]);
    let listeners: Vec<Value> = wanted
        .listeners
        .iter()
        .map(|listener| {
            let before = old_listeners.iter().find(|one| one["name"] == listener.name.as_str());
            let before = before.map(|one| list(&one["conditions"])).unwrap_or_default();
            let kinds: Vec<Value> = listener
                .supported_kinds
                .iter()
                .map(|kind| json!({ "group": "gateway.networking.k8s.io", "kind": kind }))
                .collect();
            json!({
                "name": listener.name,
                "attachedRoutes": listener.attached_routes,
                "supportedKinds": kinds,
                "conditions": conditions(Style::Meta, &listener.conditions, &before, generation, now),
            })
        })
        .collect();
    let same_listener = |new: &Value| {
        old_listeners.iter().any(|one| {
            let (before, after) = (list(&one["conditions"]), list(&new["conditions"]));
            one["name"] == new["name"]
                && one["attachedRoutes"] == new["attachedRoutes"]
                && list(&one["supportedKinds"]) == list(&new["supportedKinds"])
                && after.iter().all(|new| stands(new, &before))
        })
    };
    let same = next.iter().all(|one| stands(one, &old))
        && list(&standing["addresses"]) == addresses
        && old_listeners.len() == listeners.len()
        && listeners.iter().all(same_listener);
    (!same).then(|| json!({ "addresses": addresses, "conditions": next, "listeners": listeners }))
}

/// Whether the condition is in the list just so. A reader may have lost the generation, or read it as a number.
fn stands(wanted: &Value, list: &[Value]) -> bool {
    let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
    // An empty text is left out where it is read.
    let same = |one: &Value, field: &str| {
        one[field].as_str().unwrap_or_default() == wanted[field].as_str().unwrap_or_default()
    };
    list.iter().any(|one| {
        ["type", "status", "reason", "message", "lastTransitionTime"].iter().all(|field| same(one, field))
            && text(&one["observedGeneration"]) == text(&wanted["observedGeneration"])
    })
}

fn list(value: &Value) -> Vec<Value> {
    value.as_array().cloned().unwrap_or_default()
}

/// A hash of what is said, times left out: two writes that differ in nothing else say the same.
pub(super) fn content(writes: &[Write]) -> u64 {
    let mut text = String::new();
    for write in writes {
        let mut status = write.status.clone();
        strip_times(&mut status);
        text.push_str(write.manager);
        text.push_str(&status.to_string());
    }
    xxhash_rust::xxh64::xxh64(text.as_bytes(), 0)
}

fn strip_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("lastTransitionTime");
            fields.values_mut().for_each(strip_times);
        }
        Value::Array(items) => items.iter_mut().for_each(strip_times),
        _ => {}
    }
}

/// The parents that a route names, as it names them.
pub(super) fn parent_refs(route: &Object) -> Vec<Value> {
    list(&route.to_json()["spec"]["parentRefs"])
}

/// Whether a reference names a Gateway, and which: namespace (that of the route unless said) and name.
pub(super) fn gateway_of(reference: &Value, namespace: &str) -> Option<(String, String)> {
    let fields: &Map<String, Value> = reference.as_object()?;
    let text = |field: &str| fields.get(field).and_then(Value::as_str);
    (text("kind").unwrap_or("Gateway") == "Gateway")
        .then(|| (text("namespace").unwrap_or(namespace).to_owned(), text("name").unwrap_or_default().to_owned()))
}
