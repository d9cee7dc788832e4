//! What an API server's admission would refuse, as far as the mesh depends on it.

mod names;
mod rules;
pub(crate) mod schema;
#[cfg(test)]
mod tests;
pub mod values;

use std::net::IpAddr;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Pod, PodSpec, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::crds::{
    Action, AuthorizationPolicySpec, Operation, PeerAuthenticationSpec, Source, TargetRef, WhenCondition,
    WorkloadSelector,
};
use crate::kinds::Object;

pub use self::names::{is_dns_name, labels};

/// One field that is wrong, by its path.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{path}: {message}")]
pub struct FieldError {
    /// The path as in `spec.rules[0].from[1].source`; empty for the whole object.
    pub path: String,
    /// What is wrong.
    pub message: String,
}

/// Every wrong field of the object.
pub fn validate(object: &Object) -> Vec<FieldError> {
    let mut errors = Errors::default();
    names::metadata(object.kind(), object.meta(), &mut errors);
    match object {
        Object::Pod(pod) => validate_pod(pod, &mut errors),
        Object::Service(service) => validate_service(service, &mut errors),
        Object::EndpointSlice(slice) => validate_endpoint_slice(slice, &mut errors),
        Object::AuthorizationPolicy(policy) => authorization_policy(&policy.spec, &mut errors),
        Object::PeerAuthentication(policy) => peer_authentication(&policy.spec, &mut errors),
        Object::Deployment(deployment) => validate_deployment(deployment, &mut errors),
        Object::NetworkPolicy(policy) => validate_network_policy(policy, &mut errors),
        _ => {}
    }
    errors.0
}

/// Every wrong field of an AuthorizationPolicy. An API server without Istio's webhook takes them all.
pub fn of_authorization_policy(spec: &AuthorizationPolicySpec) -> Vec<FieldError> {
    let mut errors = Errors::default();
    authorization_policy(spec, &mut errors);
    errors.0
}

#[derive(Default)]
struct Errors(Vec<FieldError>);

impl Errors {
    fn add(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.0.push(FieldError { path: path.into(), message: message.into() });
    }
}

fn validate_pod(pod: &Pod, errors: &mut Errors) {
    if let Some(spec) = &pod.spec {
        pod_spec("spec", spec, errors);
    }
    if let Some(status) = &pod.status {
        if let Some(ip) = status.pod_ip.as_deref().filter(|ip| !ip.is_empty()) {
            address(ip, "status.podIP", errors);
        }
        for (i, ip) in status.pod_ips.iter().flatten().enumerate() {
            address(&ip.ip, &format!("status.podIPs[{i}].ip"), errors);
        }
    }
}

fn pod_spec(path: &str, spec: &PodSpec, errors: &mut Errors) {
    for (i, container) in spec.containers.iter().enumerate() {
        if let Some(wrong) = names::dns_label(&container.name) {
            errors.add(format!("{path}.containers[{i}].name"), format!("{:?} {wrong}", container.name));
        }
        for (j, port) in container.ports.iter().flatten().enumerate() {
            port_number(port.container_port, &format!("{path}.containers[{i}].ports[{j}].containerPort"), errors);
        }
    }
    names::label_map(&format!("{path}.nodeSelector"), spec.node_selector.as_ref(), errors);
}

fn validate_deployment(deployment: &Deployment, errors: &mut Errors) {
    let spec = &deployment.spec;
    names::label_selector("spec.selector", &spec.selector, errors);
    if let Some(meta) = &spec.template.metadata {
        names::inner_metadata("spec.template.metadata", meta, errors);
    }
    if let Some(pod) = &spec.template.spec {
        pod_spec("spec.template.spec", pod, errors);
    }
}

fn validate_service(service: &Service, errors: &mut Errors) {
    let Some(spec) = &service.spec else { return };
    names::label_map("spec.selector", spec.selector.as_ref(), errors);
    let ports = spec.ports.as_deref().unwrap_or_default();
    for (i, port) in ports.iter().enumerate() {
        port_number(port.port, &format!("spec.ports[{i}].port"), errors);
        if let Some(IntOrString::Int(target)) = &port.target_port {
            port_number(*target, &format!("spec.ports[{i}].targetPort"), errors);
        }
        if ports.len() > 1 && port.name.as_deref().unwrap_or_default().is_empty() {
            errors.add(format!("spec.ports[{i}].name"), "is required when there are several ports");
        }
        if port.name.is_some() && ports[..i].iter().any(|earlier| earlier.name == port.name) {
            errors.add(format!("spec.ports[{i}].name"), "is used twice");
        }
    }
    let one = spec.cluster_ip.iter().map(|ip| ("spec.clusterIP".to_owned(), ip));
    let many = spec.cluster_ips.iter().flatten().enumerate().map(|(i, ip)| (format!("spec.clusterIPs[{i}]"), ip));
    for (path, ip) in one.chain(many).filter(|(_, ip)| !ip.is_empty() && *ip != "None") {
        address(ip, &path, errors);
    }
}

fn validate_endpoint_slice(slice: &EndpointSlice, errors: &mut Errors) {
    if slice.address_type == "FQDN" {
        return;
    }
    for (i, endpoint) in slice.endpoints.iter().flatten().enumerate() {
        for (j, ip) in endpoint.addresses.iter().enumerate() {
            address(ip, &format!("endpoints[{i}].addresses[{j}]"), errors);
        }
    }
}

/// Only whom it selects: what it allows is for whoever enforces it.
fn validate_network_policy(policy: &NetworkPolicy, errors: &mut Errors) {
    if let Some(selector) = policy.spec.as_ref().and_then(|spec| spec.pod_selector.as_ref()) {
        names::label_selector("spec.podSelector", selector, errors);
    }
}

fn authorization_policy(spec: &AuthorizationPolicySpec, errors: &mut Errors) {
    selector(spec.selector.as_ref(), errors);
    let targets = spec.target_ref.iter().map(|target| ("spec.targetRef".to_owned(), target));
    let more = spec.target_refs.iter().enumerate().map(|(i, target)| (format!("spec.targetRefs[{i}]"), target));
    for (path, target) in targets.chain(more) {
        target_ref(&path, target, errors);
        if spec.selector.is_some() {
            errors.add(path, "cannot stand beside spec.selector");
        }
    }
    if spec.target_ref.is_some() && !spec.target_refs.is_empty() {
        errors.add("spec.targetRefs", "cannot stand beside spec.targetRef");
    }
    match (spec.action, &spec.provider) {
        (Action::Custom, None) => errors.add("spec.provider", "is required when the action is CUSTOM"),
        (Action::Allow | Action::Deny | Action::Audit, Some(_)) => {
            errors.add("spec.provider", "is only allowed when the action is CUSTOM");
        }
        _ => {}
    }
    for (i, rule) in spec.rules.iter().enumerate() {
        for (j, from) in rule.from.iter().enumerate() {
            let path = format!("spec.rules[{i}].from[{j}].source");
            match &from.source {
                Some(source) if *source != Source::default() => self::source(&path, source, errors),
                _ => errors.add(path, "must hold at least one field"),
            }
        }
        for (j, to) in rule.to.iter().enumerate() {
            let path = format!("spec.rules[{i}].to[{j}].operation");
            match &to.operation {
                Some(operation) if *operation != Operation::default() => self::operation(&path, operation, errors),
                _ => errors.add(path, "must hold at least one field"),
            }
        }
        for (j, when) in rule.when.iter().enumerate() {
            condition(&format!("spec.rules[{i}].when[{j}]"), when, errors);
        }
    }
}

fn source(path: &str, source: &Source, errors: &mut Errors) {
    let lists: [(&str, &[String]); 14] = [
        ("principals", &source.principals),
        ("notPrincipals", &source.not_principals),
        ("requestPrincipals", &source.request_principals),
        ("notRequestPrincipals", &source.not_request_principals),
        ("namespaces", &source.namespaces),
        ("notNamespaces", &source.not_namespaces),
        ("serviceAccounts", &source.service_accounts),
        ("notServiceAccounts", &source.not_service_accounts),
        ("ipBlocks", &source.ip_blocks),
        ("notIpBlocks", &source.not_ip_blocks),
        ("remoteIpBlocks", &source.remote_ip_blocks),
        ("notRemoteIpBlocks", &source.not_remote_ip_blocks),
        ("trustDomains", &source.trust_domains),
        ("notTrustDomains", &source.not_trust_domains),
    ];
    for (name, list) in lists {
        for (i, value) in list.iter().enumerate() {
            let path = format!("{path}.{name}[{i}]");
            if value.is_empty() {
                errors.add(path, "must not be empty");
            } else if name.to_ascii_lowercase().ends_with("ipblocks") {
                ip_block(value, &path, errors);
            } else if name.to_ascii_lowercase().ends_with("serviceaccounts") && values::service_account(value).is_none()
            {
                errors.add(path, format!("{value:?} must be <namespace>/<name> or <name>, without wildcards"));
            }
        }
    }
    let identity = !source.principals.is_empty()
        || !source.not_principals.is_empty()
        || !source.namespaces.is_empty()
        || !source.not_namespaces.is_empty();
    if identity && !(source.service_accounts.is_empty() && source.not_service_accounts.is_empty()) {
        errors.add(path, "serviceAccounts cannot stand beside principals or namespaces");
    }
}

fn operation(path: &str, operation: &Operation, errors: &mut Errors) {
    let lists: [(&str, &[String]); 8] = [
        ("hosts", &operation.hosts),
        ("notHosts", &operation.not_hosts),
        ("ports", &operation.ports),
        ("notPorts", &operation.not_ports),
        ("methods", &operation.methods),
        ("notMethods", &operation.not_methods),
        ("paths", &operation.paths),
        ("notPaths", &operation.not_paths),
    ];
    for (name, list) in lists {
        for (i, value) in list.iter().enumerate() {
            let path = format!("{path}.{name}[{i}]");
            if value.is_empty() {
                errors.add(path, "must not be empty");
            } else if name.to_ascii_lowercase().ends_with("ports") {
                port_text(value, &path, errors);
            }
        }
    }
}

/// The attributes that Istio's conditions know.
const CONDITION_KEYS: [&str; 12] = [
    "source.ip",
    "remote.ip",
    "source.namespace",
    "source.principal",
    "source.serviceAccount",
    "source.trustDomain",
    "request.auth.principal",
    "request.auth.audiences",
    "request.auth.presenter",
    "destination.ip",
    "destination.port",
    "connection.sni",
];

fn condition(path: &str, when: &WhenCondition, errors: &mut Errors) {
    let prefixed = ["request.headers[", "request.auth.claims[", "experimental.envoy.filters."];
    if !CONDITION_KEYS.contains(&when.key.as_str()) && !prefixed.iter().any(|prefix| when.key.starts_with(prefix)) {
        errors.add(format!("{path}.key"), format!("{:?} is not a known attribute", when.key));
    }
    if when.values.is_empty() && when.not_values.is_empty() {
        errors.add(format!("{path}.values"), "values or notValues must be given");
    }
    for (name, values) in [("values", &when.values), ("notValues", &when.not_values)] {
        for (i, value) in values.iter().enumerate() {
            let path = format!("{path}.{name}[{i}]");
            match when.key.as_str() {
                _ if value.is_empty() => errors.add(path, "must not be empty"),
                "source.ip" | "remote.ip" | "destination.ip" => ip_block(value, &path, errors),
                "destination.port" => port_text(value, &path, errors),
                _ => {}
            }
        }
    }
}

fn peer_authentication(spec: &PeerAuthenticationSpec, errors: &mut Errors) {
    selector(spec.selector.as_ref(), errors);
    let selects = spec.selector.as_ref().is_some_and(|selector| !selector.match_labels.is_empty());
    if !spec.port_level_mtls.is_empty() && !selects {
        errors.add("spec.portLevelMtls", "needs a spec.selector with matchLabels");
    }
    for port in spec.port_level_mtls.keys().filter(|port| !(1..=65535).contains(*port)) {
        errors.add(format!("spec.portLevelMtls.{port}"), "a port is a number from 1 to 65535");
    }
}

fn selector(selector: Option<&WorkloadSelector>, errors: &mut Errors) {
    for (key, value) in selector.iter().flat_map(|selector| &selector.match_labels) {
        let path = "spec.selector.matchLabels";
        if key.is_empty() {
            errors.add(path, "a label's key must not be empty");
        } else if key.contains('*') || value.contains('*') {
            errors.add(path, format!("{key}: wildcards are not supported"));
        } else {
            names::label(path, key, value, errors);
        }
    }
}

fn target_ref(path: &str, target: &TargetRef, errors: &mut Errors) {
    for (field, value) in [("kind", &target.kind), ("name", &target.name)] {
        if value.is_empty() {
            errors.add(format!("{path}.{field}"), "is required");
        }
    }
    if !target.namespace.is_empty() {
        errors.add(format!("{path}.namespace"), "another namespace is not allowed; leave it out");
    }
}

fn port_number(port: i32, path: &str, errors: &mut Errors) {
    if !(1..=65535).contains(&port) {
        errors.add(path, format!("{port} is not a port from 1 to 65535"));
    }
}

fn port_text(text: &str, path: &str, errors: &mut Errors) {
    if values::port(text).is_none() {
        errors.add(path, format!("{text:?} is not a port from 1 to 65535"));
    }
}

fn address(text: &str, path: &str, errors: &mut Errors) {
    if text.parse::<IpAddr>().is_err() {
        errors.add(path, format!("{text:?} is not an IP address"));
    }
}

fn ip_block(text: &str, path: &str, errors: &mut Errors) {
    if values::ip_block(text).is_none() {
        errors.add(path, format!("{text:?} is neither an IP address nor a CIDR block"));
    }
}
