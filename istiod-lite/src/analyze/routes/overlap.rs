//! Routes that are for the same requests, and destination rules for the same host: one of two has no effect, and which
//! it is depends on their age.

use std::collections::BTreeMap;

use aquifer_objects::{Kind, Object, ObjectKey};
use serde_json::{Value, json};

use super::Rules;
use crate::analyze::Finding;
use crate::analyze::codes::{self, Code};
use crate::analyze::registry::Registry;

/// Finds them.
pub(super) fn find(objects: &[Object], rules: &Rules<'_>, registry: &Registry<'_>, found: &mut Vec<Finding>) {
    destination_rules(rules, found);
    let services = virtual_services(objects, registry);
    for (host, owners) in &services {
        for pair in owners.windows(2) {
            let message = format!(
                "{host} has VirtualService {} as well: of two routes for the same requests the older object's counts. Put them into one.",
                name(&pair[0].key())
            );
            found.push(Finding { code: codes::OVERLAPPING_ROUTES, object: pair[1].key(), message });
        }
    }
    let matches = route_matches(objects);
    for ((parent, _), owners) in &matches {
        for pair in owners.windows(2).filter(|pair| pair[0].1.key() != pair[1].1.key()) {
            let message = format!(
                "{}: {} has the same match for Service {}/{}: the older one counts. Put both into one, or tell their matches apart.",
                pair[1].0,
                owner(pair[0].1),
                parent.namespace,
                parent.name
            );
            found.push(Finding { code: codes::OVERLAPPING_ROUTES, object: pair[1].1.key(), message });
        }
    }
    both_apis(&services, &matches, registry, found);
}

/// VirtualServices for the mesh, by host, the oldest first.
fn virtual_services<'a>(objects: &'a [Object], registry: &Registry<'_>) -> BTreeMap<String, Vec<&'a Object>> {
    let mut by_host: BTreeMap<String, Vec<&Object>> = BTreeMap::new();
    for object in objects {
        let Object::VirtualService(service) = object else { continue };
        let spec = &service.spec;
        if spec.gateways.is_empty() || spec.gateways.iter().any(|gateway| gateway == "mesh") {
            for host in &spec.hosts {
                by_host.entry(registry.expanded(host, object.namespace())).or_default().push(object);
            }
        }
    }
    by_host.values_mut().for_each(|owners| owners.sort_by_key(|object| age(object)));
    by_host
}

type Matches<'a> = BTreeMap<(ObjectKey, String), Vec<(String, &'a Object)>>;

/// Routes of Services by what they match, the oldest first; with the match's path.
fn route_matches(objects: &[Object]) -> Matches<'_> {
    let mut matches = Matches::new();
    for object in objects {
        if !matches!(object.kind(), Kind::HTTPRoute | Kind::GRPCRoute) {
            continue;
        }
        let json = object.to_json();
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        for parent in list(&json["spec"]["parentRefs"]).iter().filter(|parent| parent["kind"] == "Service") {
            let namespace = parent["namespace"].as_str().unwrap_or(object.namespace());
            let key = ObjectKey::new(Kind::Service, namespace, parent["name"].as_str().unwrap_or_default());
            for (i, rule) in list(&json["spec"]["rules"]).iter().enumerate() {
                let of_rule = match list(&rule["matches"]) {
                    // Nothing matches everything.
                    none if none.is_empty() => vec![json!({})],
                    some => some,
                };
                for (j, one) in of_rule.into_iter().enumerate() {
                    let what = canonical(object.kind(), &parent["port"], one);
                    let path = format!("spec.rules[{i}].matches[{j}]");
                    matches.entry((key.clone(), what)).or_default().push((path, object));
                }
            }
        }
    }
    matches.values_mut().for_each(|owners| owners.sort_by_key(|(path, object)| (age(object), path.clone())));
    matches
}

/// Equal for matches that the API's defaults make equal.
fn canonical(kind: Kind, port: &Value, mut one: Value) -> String {
    if kind == Kind::HTTPRoute {
        let path = &one["path"];
        let path = json!({
            "type": path["type"].as_str().unwrap_or("PathPrefix"),
            "value": path["value"].as_str().unwrap_or("/"),
        });
        one["path"] = path;
    }
    json!([kind.as_str(), port, sorted(one)]).to_string()
}

/// The order of headers means nothing.
fn sorted(mut value: Value) -> Value {
    for key in ["headers", "queryParams"] {
        if let Some(items) = value.get_mut(key).and_then(Value::as_array_mut) {
            items.sort_by_key(ToString::to_string);
        }
    }
    value
}

fn both_apis(
    services: &BTreeMap<String, Vec<&Object>>,
    matches: &Matches<'_>,
    registry: &Registry<'_>,
    found: &mut Vec<Finding>,
) {
    let mut routed: BTreeMap<String, &Object> = BTreeMap::new();
    for ((service, _), owners) in matches {
        if let Some((_, object)) = owners.first() {
            routed.entry(registry.expanded(&service.name, &service.namespace)).or_insert(object);
        }
    }
    for (host, owners) in services {
        if let (Some(route), Some(service)) = (routed.get(host), owners.first()) {
            let message = format!("{host} has {} as well: keep to one of the two APIs for a host", owner(route));
            found.push(Finding { code: codes::OVERLAPPING_ROUTES, object: service.key(), message });
        }
    }
}

fn destination_rules(rules: &Rules<'_>, found: &mut Vec<Finding>) {
    let code: &'static Code = codes::OVERLAPPING_RULES;
    for (host, of_host) in rules {
        let mut of_host = of_host.clone();
        of_host.sort_by_key(|(object, _)| age(object));
        for (at, (object, rule)) in of_host.iter().enumerate() {
            for (older, before) in &of_host[..at] {
                if rule.spec.workload_selector != before.spec.workload_selector {
                    continue;
                }
                let twice = rule
                    .spec
                    .subsets
                    .iter()
                    .find(|subset| before.spec.subsets.iter().any(|other| other.name == subset.name));
                let what = match (twice, &rule.spec.traffic_policy, &before.spec.traffic_policy) {
                    (Some(subset), ..) => format!("subset {}", subset.name),
                    (None, Some(_), Some(_)) => "a trafficPolicy".to_owned(),
                    _ => continue,
                };
                let message = format!(
                    "DestinationRule {} of {host} has {what} as well: the older object's counts. Put them into one.",
                    name(&older.key())
                );
                found.push(Finding { code, object: object.key(), message });
            }
        }
    }
}

/// Orders by age; what has no age by name.
fn age(object: &Object) -> (String, ObjectKey) {
    let created = object.meta().creation_timestamp.as_ref().map(|time| time.0.to_string());
    (created.unwrap_or_default(), object.key())
}

fn name(key: &ObjectKey) -> String {
    format!("{}/{}", key.namespace, key.name)
}

fn owner(object: &Object) -> String {
    format!("{} {}", object.kind(), name(&object.key()))
}
