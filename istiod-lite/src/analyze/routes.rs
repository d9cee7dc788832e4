//! Routes and destination rules: hosts and subsets that nobody has, and routes that get in each other's way.

mod overlap;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use aquifer_objects::crds::virtual_service::Destination;
use aquifer_objects::crds::{DestinationRule, ReferenceGrant, VirtualService};
use aquifer_objects::{Kind, Object};
use serde_json::Value;

use super::registry::{Registry, has_all};
use super::{Finding, codes};
use crate::translate::Labels;

/// What is wrong with routes and destination rules.
pub(super) fn findings(objects: &[Object], registry: &Registry<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let rules = rules(objects, registry);
    for object in objects {
        match object {
            Object::DestinationRule(rule) => subsets_without_pods(object, rule, registry, &mut found),
            Object::VirtualService(service) => destinations(object, service, &rules, registry, &mut found),
            Object::HTTPRoute(_) | Object::GRPCRoute(_) | Object::TCPRoute(_) | Object::TLSRoute(_) => {
                backends(object, objects, registry, &mut found);
            }
            _ => {}
        }
    }
    overlap::find(objects, &rules, registry, &mut found);
    found
}

/// The destination rules of each host.
type Rules<'a> = BTreeMap<String, Vec<(&'a Object, &'a Arc<DestinationRule>)>>;

fn rules<'a>(objects: &'a [Object], registry: &Registry<'_>) -> Rules<'a> {
    let mut rules = Rules::new();
    for object in objects {
        if let Object::DestinationRule(rule) = object {
            let host = registry.expanded(&rule.spec.host, object.namespace());
            rules.entry(host).or_default().push((object, rule));
        }
    }
    rules
}

fn subsets_without_pods(object: &Object, rule: &DestinationRule, registry: &Registry<'_>, found: &mut Vec<Finding>) {
    let host = registry.expanded(&rule.spec.host, object.namespace());
    let behind = registry.behind(&host);
    // A service without any pod is scaled down, which no rule can help.
    if behind.is_empty() {
        return;
    }
    for subset in &rule.spec.subsets {
        if !behind.iter().any(|labels| has_all(labels, &subset.labels)) {
            let message = format!(
                "subset {} of {host} has no pods: none of the {} behind it has the labels {}",
                subset.name,
                behind.len(),
                shown(&subset.labels)
            );
            found.push(Finding { code: codes::SUBSET_WITHOUT_PODS, object: object.key(), message });
        }
    }
}

/// The hosts and subsets that a VirtualService sends to.
fn destinations(
    object: &Object,
    service: &VirtualService,
    rules: &Rules<'_>,
    registry: &Registry<'_>,
    found: &mut Vec<Finding>,
) {
    let mut told = BTreeSet::new();
    for (path, destination) in all_destinations(service) {
        let host = registry.expanded(&destination.host, object.namespace());
        let subset = destination.subset.as_deref().filter(|subset| !subset.is_empty());
        if !told.insert((host.clone(), subset.map(str::to_owned))) {
            continue;
        }
        if !registry.has_host(&host) {
            let message =
                format!("{path}.host: no Service or ServiceEntry has the host {host}: correct it, or create one");
            found.push(Finding { code: codes::UNKNOWN_HOST, object: object.key(), message });
        } else if let Some(subset) = subset {
            let of_host = rules.get(&host).into_iter().flatten();
            if !of_host.flat_map(|(_, rule)| &rule.spec.subsets).any(|known| known.name == *subset) {
                let message = format!(
                    "{path}.subset: no DestinationRule of {host} has the subset {subset}: correct it, or add the subset"
                );
                found.push(Finding { code: codes::SUBSET_NOT_DEFINED, object: object.key(), message });
            }
        }
    }
}

fn all_destinations(service: &VirtualService) -> Vec<(String, &Destination)> {
    let mut all = Vec::new();
    for (i, route) in service.spec.http.iter().enumerate() {
        let weighted = route.route.iter().enumerate();
        all.extend(weighted.map(|(j, to)| (format!("spec.http[{i}].route[{j}].destination"), &to.destination)));
        all.extend(route.mirror.iter().map(|mirror| (format!("spec.http[{i}].mirror"), mirror)));
        let mirrors = route.mirrors.iter().enumerate();
        all.extend(mirrors.map(|(j, to)| (format!("spec.http[{i}].mirrors[{j}].destination"), &to.destination)));
    }
    for (i, route) in service.spec.tcp.iter().enumerate() {
        let weighted = route.route.iter().enumerate();
        all.extend(weighted.map(|(j, to)| (format!("spec.tcp[{i}].route[{j}].destination"), &to.destination)));
    }
    for (i, route) in service.spec.tls.iter().enumerate() {
        let weighted = route.route.iter().enumerate();
        all.extend(weighted.map(|(j, to)| (format!("spec.tls[{i}].route[{j}].destination"), &to.destination)));
    }
    all
}

/// The Services that a route of the Gateway API sends to.
fn backends(object: &Object, objects: &[Object], registry: &Registry<'_>, found: &mut Vec<Finding>) {
    // The four kinds write their backends alike.
    let json = object.to_json();
    let list = |value: &Value, key: &str| value[key].as_array().cloned().unwrap_or_default();
    for (i, rule) in list(&json["spec"], "rules").iter().enumerate() {
        for (j, backend) in list(rule, "backendRefs").iter().enumerate() {
            let text = |key: &str, default: &'static str| backend[key].as_str().unwrap_or(default).to_owned();
            let (group, kind, name) = (text("group", ""), text("kind", "Service"), text("name", ""));
            if kind != "Service" || !matches!(group.as_str(), "" | "core") {
                continue;
            }
            let namespace = backend["namespace"].as_str().unwrap_or(object.namespace());
            let path = format!("spec.rules[{i}].backendRefs[{j}]");
            if !registry.has(Kind::Service, namespace, &name) {
                let message = format!("{path}: there is no Service {namespace}/{name}: correct the name, or create it");
                found.push(Finding { code: codes::BACKEND_NOT_FOUND, object: object.key(), message });
            } else if namespace != object.namespace() && !granted(object, objects, namespace, &name) {
                let message = format!(
                    "{path}: Service {namespace}/{name} is in another namespace, which has no ReferenceGrant for {}s of {}: create one there",
                    object.kind(),
                    object.namespace()
                );
                found.push(Finding { code: codes::REFERENCE_NOT_GRANTED, object: object.key(), message });
            }
        }
    }
}

fn granted(route: &Object, objects: &[Object], namespace: &str, name: &str) -> bool {
    let allows = |grant: &ReferenceGrant| {
        let from = grant.spec.from.iter().any(|from| {
            from.group == route.kind().group()
                && from.kind == route.kind().manifest_name()
                && from.namespace == route.namespace()
        });
        let is_service = |group: &str, kind: &str| matches!(group, "" | "core") && kind == "Service";
        from && grant.spec.to.iter().any(|to| {
            is_service(&to.group, &to.kind) && to.name.as_deref().is_none_or(|only| only.is_empty() || only == name)
        })
    };
    objects.iter().any(
        |object| matches!(object, Object::ReferenceGrant(grant) if object.namespace() == namespace && allows(grant)),
    )
}

fn shown(labels: &Labels) -> String {
    let pairs: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    pairs.join(",")
}
