//! What a Gateway needs, from what stands. Pure.

use aquifer_objects::crds::gateway_api::{Gateway, GatewayClass};
use aquifer_objects::{Kind, Object, ObjectKey};
use k8s_openapi::api::core::v1::{ConfigMap, Service};
use serde_json::Value;

use super::class::{Role, role};
use super::conditions::{self, Programmed, hostname, service_address};
use super::render::{self, GATEWAY_NAME, MANAGED_BY, Names};
use super::{CONTROLLER_VERSION, MANAGED, Settings, Told, VERSION};
use crate::status::GatewayStatus;

/// What is known about one Gateway.
#[derive(Clone, Debug)]
pub struct Input<'a> {
    /// It.
    pub gateway: &'a Gateway,
    /// Its class, if that exists as an object.
    pub class: Option<&'a GatewayClass>,
    /// The overlay of the whole class.
    pub defaults: Option<&'a ConfigMap>,
    /// The ConfigMap that its `infrastructure.parametersRef` names, if it exists.
    pub parameters: Option<&'a ConfigMap>,
    /// Objects of its namespace that are in question: whatever it made, and whatever has a name that it would use.
    pub observed: &'a [Object],
    /// Whether a pod of its Service is ready.
    pub endpoint_ready: bool,
}

/// One thing to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Mark the Gateway as ours.
    Claim(ObjectKey),
    /// Apply the object.
    Apply(ObjectKey, Value),
    /// Delete the object, if it still has this uid.
    Delete(ObjectKey, Option<String>),
    /// Report.
    Status(ObjectKey, GatewayStatus),
}

/// What is to be done about the Gateway, in this order. Nothing for a Gateway of another controller.
pub fn reconcile(input: &Input<'_>, settings: &Settings, told: &Told) -> Vec<Action> {
    let gateway = input.gateway;
    let key = key_of(gateway);
    match role(&gateway.spec.gateway_class_name, input.class) {
        Role::Foreign => return Vec::new(),
        Role::NotServed => {
            let class = &gateway.spec.gateway_class_name;
            let message = format!(
                "Gateways of class {class} are not served: use class istio-waypoint for a waypoint, or install the \
                 controller of {class}"
            );
            return vec![Action::Status(key, conditions::rejected(gateway, "NotSupported", &message))];
        }
        Role::Remote => return vec![Action::Status(key, remote(gateway))],
        Role::Waypoint => {}
    }
    match owner_version(gateway) {
        Claimed::ByNewer => Vec::new(),
        Claimed::ByUs => waypoint(input, settings, told, key, Vec::new()),
        Claimed::No => waypoint(input, settings, told, key.clone(), vec![Action::Claim(key)]),
    }
}

fn waypoint(
    input: &Input<'_>,
    settings: &Settings,
    told: &Told,
    key: ObjectKey,
    mut actions: Vec<Action>,
) -> Vec<Action> {
    let gateway = input.gateway;
    if let Some(elsewhere) = elsewhere(gateway) {
        actions.push(Action::Status(key, attached(input, settings, elsewhere)));
        return actions;
    }
    let wanted = match wanted(input, settings, told) {
        Ok(wanted) => wanted,
        Err(message) => {
            actions.push(Action::Status(key, conditions::rejected(gateway, "InvalidParameters", &message)));
            return actions;
        }
    };
    if !gateway.spec.listeners.iter().any(conditions::is_hbone) {
        // What runs stays until the Gateway says again what it wants.
        let nothing = Programmed::Not { reason: "Invalid", message: String::new() };
        actions.push(Action::Status(key, conditions::status(gateway, nothing)));
        return actions;
    }
    let deployment = wanted.iter().find(|(kind, _)| *kind == Kind::Deployment).map(|(_, value)| value);
    if !deployment.is_some_and(render::has_image) {
        let message = "no image for waypoints is known: set WAYPOINT_IMAGE of istiod-lite (chart value \
                       `waypoint.image`), or annotate the Gateway with sidecar.istio.io/proxyImage"
            .to_owned();
        let programmed = Programmed::Not { reason: "NoResources", message };
        actions.push(Action::Status(key, conditions::status(gateway, programmed)));
        return actions;
    }
    let names = Names::of(gateway);
    let (mut conflicts, mut applied) = (Vec::new(), Vec::new());
    for (kind, object) in wanted.iter() {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let child = ObjectKey::new(*kind, &key.namespace, name);
        match find(input.observed, &child) {
            Some(stands) if stands.label(MANAGED).is_none() => {
                // A ServiceAccount that the user names is theirs to make.
                let theirs = *kind == Kind::ServiceAccount && names.own_account;
                if !theirs {
                    conflicts.push(format!("{kind} {}/{name}", key.namespace));
                }
            }
            // The uid makes the write fail if it was replaced by another's meanwhile.
            Some(stands) => applied.push(Action::Apply(child, with_uid(object.clone(), stands))),
            None => applied.push(Action::Apply(child, object.clone())),
        }
    }
    // Half a waypoint helps nobody, and what runs under the old name runs on.
    if conflicts.is_empty() {
        actions.append(&mut applied);
        actions.extend(leftovers(input, &names, &key, &wanted));
    }
    let service = find(input.observed, &ObjectKey::new(Kind::Service, &key.namespace, &names.deployment));
    let programmed = if conflicts.is_empty() {
        running(input, settings, &names, service)
    } else {
        Programmed::Not {
            reason: "Conflict",
            message: format!(
                "{} {} already and did not come from a Gateway (label {MANAGED} is missing), so nothing is written \
                 to it: delete it, or give the waypoint another name by annotation gateway.istio.io/name-override",
                conflicts.join(" and "),
                if conflicts.len() == 1 { "exists" } else { "exist" },
            ),
        }
    };
    actions.push(Action::Status(key, conditions::status(gateway, programmed)));
    actions
}

/// The objects with all overlays, or what is wrong with these.
fn wanted(input: &Input<'_>, settings: &Settings, told: &Told) -> Result<Vec<(Kind, Value)>, String> {
    let mut overlays: Vec<&ConfigMap> = input.defaults.into_iter().collect();
    let infrastructure = input.gateway.spec.infrastructure.as_ref();
    if let Some(reference) = infrastructure.and_then(|infrastructure| infrastructure.parameters_ref.as_ref()) {
        if !reference.group.is_empty() || reference.kind != "ConfigMap" {
            return Err(format!(
                "spec.infrastructure.parametersRef: {}/{} is not a kind of parameters: use a ConfigMap (group \"\")",
                reference.group, reference.kind
            ));
        }
        let Some(parameters) = input.parameters else {
            return Err(format!(
                "spec.infrastructure.parametersRef: ConfigMap {}/{} does not exist",
                input.gateway.metadata.namespace.as_deref().unwrap_or_default(),
                reference.name
            ));
        };
        overlays.push(parameters);
    }
    render::objects(input.gateway, &overlays, settings, told)
}

/// Whether it serves: there is an address, and a pod behind it. Once it did, it is not taken back for pods that are
/// away: then callers must fail rather than pass by what the waypoint enforces.
fn running(input: &Input<'_>, settings: &Settings, names: &Names, service: Option<&Object>) -> Programmed {
    let not = |reason, message: String| Programmed::Not { reason, message };
    let namespace = input.gateway.metadata.namespace.as_deref().unwrap_or_default();
    let Some(Object::Service(service)) = service else {
        return not("Pending", format!("Service {namespace}/{} is not there yet", names.deployment));
    };
    let host = hostname(service, &settings.cluster_domain);
    let addresses = service_address(service, &settings.cluster_domain);
    if addresses.is_empty() {
        let message = format!(
            "Assigned to service(s) {host}:15008, but failed to assign to all requested addresses: address pending \
             for hostname \"{host}\""
        );
        return not("AddressNotAssigned", message);
    }
    let before = input.gateway.status.iter().flat_map(|status| &status.addresses);
    let served_before = before.into_iter().any(|address| address.value == host);
    if !served_before && !input.endpoint_ready && !available(input, names) {
        let message = format!(
            "no pod of Deployment {namespace}/{} is ready yet: `kubectl -n {namespace} describe deployment {}` tells why",
            names.deployment, names.deployment
        );
        return not("Pending", message);
    }
    Programmed::At { service: host, addresses }
}

fn available(input: &Input<'_>, names: &Names) -> bool {
    let namespace = input.gateway.metadata.namespace.as_deref().unwrap_or_default();
    match find(input.observed, &ObjectKey::new(Kind::Deployment, namespace, &names.deployment)) {
        Some(Object::Deployment(deployment)) => {
            deployment.status.as_ref().is_some_and(|status| status.ready_replicas.unwrap_or(0) > 0)
        }
        _ => false,
    }
}

/// What it made under names, or of kinds, that it doesn't use any more. What serves goes when its successor serves.
fn leftovers(input: &Input<'_>, names: &Names, key: &ObjectKey, wanted: &[(Kind, Value)]) -> Vec<Action> {
    let used = |object: &Object| {
        wanted.iter().any(|(kind, value)| *kind == object.kind() && value["metadata"]["name"] == object.name())
    };
    let succeeded = available(input, names);
    let serves = |object: &Object| [Kind::ServiceAccount, Kind::Deployment, Kind::Service].contains(&object.kind());
    let old = input.observed.iter().filter(|object| made_by(object, input.gateway) && !used(object));
    let old = old.filter(|object| succeeded || !serves(object));
    old.filter(|object| object.namespace() == &*key.namespace)
        .map(|object| Action::Delete(object.key(), object.meta().uid.clone()))
        .collect()
}

/// Whether the object was made for this Gateway, by a controller of our kind.
pub(super) fn made_by(object: &Object, gateway: &Gateway) -> bool {
    let owners = object.meta().owner_references.iter().flatten();
    let name = gateway.metadata.name.as_deref().unwrap_or_default();
    let uid = gateway.metadata.uid.as_deref().unwrap_or_default();
    let mut ours = owners.filter(|owner| owner.kind == "Gateway" && owner.name == name);
    object.label(MANAGED) == Some(MANAGED_BY)
        && object.label(GATEWAY_NAME) == Some(name)
        // A manifest in a folder has no uid.
        && ours.any(|owner| owner.uid == uid || uid.is_empty() || owner.uid.is_empty())
}

fn find<'a>(objects: &'a [Object], key: &ObjectKey) -> Option<&'a Object> {
    objects.iter().find(|object| object.key() == *key)
}

fn with_uid(mut object: Value, stands: &Object) -> Value {
    if let Some(uid) = &stands.meta().uid {
        object["metadata"]["uid"] = uid.as_str().into();
    }
    object
}

fn key_of(gateway: &Gateway) -> ObjectKey {
    let meta = &gateway.metadata;
    let (namespace, name) = (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default());
    ObjectKey::new(Kind::Gateway, namespace, name)
}

enum Claimed {
    No,
    ByUs,
    /// Or by something that counts otherwise.
    ByNewer,
}

fn owner_version(gateway: &Gateway) -> Claimed {
    let annotations = gateway.metadata.annotations.as_ref();
    match annotations.and_then(|annotations| annotations.get(CONTROLLER_VERSION)).map(|text| text.parse::<i64>()) {
        None => Claimed::No,
        Some(Ok(VERSION)) => Claimed::ByUs,
        Some(Ok(older)) if older < VERSION => Claimed::No,
        Some(_) => Claimed::ByNewer,
    }
}

/// The Service that the user runs for the Gateway, if they say so by `spec.addresses`: then nothing is made.
pub(super) fn elsewhere(gateway: &Gateway) -> Option<&str> {
    let address = gateway.spec.addresses.first()?;
    let by_name = address.type_.as_deref().is_some_and(|type_| type_ != "IPAddress");
    (by_name || gateway.spec.addresses.len() > 1).then(|| address.value.as_deref().unwrap_or_default())
}

/// Namespace and name of a Service by one of its names, as seen from `namespace`.
pub(super) fn service_named(host: &str, namespace: &str, domain: &str) -> Option<(String, String)> {
    let short = host.strip_suffix(&format!(".svc.{domain}")).or_else(|| host.strip_suffix(".svc")).unwrap_or(host);
    match short.split('.').collect::<Vec<_>>().as_slice() {
        [name] => Some((namespace.to_owned(), (*name).to_owned())),
        [name, namespace] => Some(((*namespace).to_owned(), (*name).to_owned())),
        _ => None,
    }
}

/// The status of a Gateway whose Service somebody else runs.
fn attached(input: &Input<'_>, settings: &Settings, host: &str) -> GatewayStatus {
    let namespace = input.gateway.metadata.namespace.as_deref().unwrap_or_default();
    let service: Option<&Service> = service_named(host, namespace, &settings.cluster_domain)
        .and_then(|(namespace, name)| find(input.observed, &ObjectKey::new(Kind::Service, &namespace, &name)))
        .and_then(|object| match object {
            Object::Service(service) => Some(&**service),
            _ => None,
        });
    let programmed = match service {
        None => Programmed::Not {
            reason: "AddressNotUsable",
            message: format!("Failed to assign to any requested addresses: hostname \"{host}\" not found"),
        },
        Some(service) => Programmed::At {
            service: hostname(service, &settings.cluster_domain),
            addresses: service_address(service, &settings.cluster_domain),
        },
    };
    conditions::status(input.gateway, programmed)
}

/// A Gateway that stands for another cluster's: its own addresses are the ones to use.
fn remote(gateway: &Gateway) -> GatewayStatus {
    let addresses = gateway.spec.addresses.iter();
    let addresses = addresses
        .map(|address| {
            let type_ = address.type_.clone().unwrap_or_else(|| "IPAddress".to_owned());
            (type_, address.value.clone().unwrap_or_default())
        })
        .collect::<Vec<_>>();
    let programmed = if addresses.is_empty() {
        crate::status::Condition::new(
            "Programmed",
            false,
            "AddressNotAssigned",
            "spec.addresses is empty: name the remote gateway's",
        )
    } else {
        crate::status::Condition::new("Programmed", true, "Programmed", "Resource programmed")
    };
    let accepted = crate::status::Condition::new("Accepted", true, "Accepted", "Resource accepted");
    GatewayStatus { conditions: vec![accepted, programmed], listeners: Vec::new(), addresses }
}
