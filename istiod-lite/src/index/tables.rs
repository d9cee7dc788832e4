//! One table for each kind: objects in as YAML, resources and conditions out as text.
//!
//! `testdata/translation/<kind>/<case>.yaml` holds objects, and `<case>.txt` what becomes of them. `UPDATE_TABLES=1`
//! writes the latter anew; read what changed before you commit it.

use std::fmt::Write as _;
use std::fs;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use aquifer_objects::Event;
use aquifer_objects::parse::parse_manifest;
use aquifer_proto::security::{self, Authorization, Match, StringMatch, string_match::MatchType};
use aquifer_proto::workload::gateway_address::Destination;
use aquifer_proto::workload::{Address, GatewayAddress, NetworkAddress, Port, Service, Workload, address};
use prost::Message;

use super::Index;
use crate::translate::Mesh;

#[test]
fn tables() {
    let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("testdata/translation");
    let update = std::env::var_os("UPDATE_TABLES").is_some();
    let mut failures = Vec::new();
    let mut cases = 0;
    for kind in sorted(&root) {
        for file in sorted(&kind).into_iter().filter(|file| file.extension().is_some_and(|end| end == "yaml")) {
            cases += 1;
            let made = table(&file);
            let expected = file.with_extension("txt");
            if update {
                fs::write(&expected, &made).unwrap();
            } else if fs::read_to_string(&expected).unwrap_or_default() != made {
                failures.push(format!("{} is not what is made now:\n{made}", expected.display()));
            }
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(cases >= 20, "the tables were read: {cases}");
}

fn sorted(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths
}

fn table(file: &Path) -> String {
    let text = fs::read_to_string(file).unwrap();
    // The first line may ask for a mesh other than the default one.
    let allow_waypoints = text.starts_with("# PILOT_AUTO_ALLOW_WAYPOINT_POLICY");
    let mut index = Index::new(Mesh { allow_waypoints, ..Mesh::default() });
    let objects = parse_manifest(file, &text).unwrap_or_else(|error| panic!("{error:?}"));
    for object in objects {
        let _ = index.apply(Event::Applied(object));
    }
    index.flush();
    let mut out = String::new();
    for body in index.addresses().values() {
        match Address::decode(body.clone()).unwrap().r#type.unwrap() {
            address::Type::Workload(made) => workload(&mut out, &made),
            address::Type::Service(made) => service(&mut out, &made),
        }
    }
    for body in index.authorizations().values() {
        policy(&mut out, &Authorization::decode(body.clone()).unwrap());
    }
    for (key, conditions) in index.statuses() {
        let _ = writeln!(out, "status of {key}");
        for said in conditions {
            let _ = writeln!(out, "  {} {} {}: {}", said.type_, said.status, said.reason, said.message);
        }
    }
    for allocation in index.allocations() {
        let addresses: Vec<String> =
            allocation.addresses.iter().map(|at| format!("{} {}", at.host, at.value)).collect();
        let _ = writeln!(out, "addresses for {}\n  {}", allocation.entry, addresses.join("\n  "));
    }
    for finding in index.findings() {
        let _ = writeln!(out, "found {} {:?} {}\n  {}", finding.object, finding.level, finding.code, finding.message);
    }
    out
}

/// A line for a field that says something.
fn field(out: &mut String, name: &str, value: impl std::fmt::Display) {
    let value = value.to_string();
    if !value.is_empty() {
        let _ = writeln!(out, "  {name}: {value}");
    }
}

fn flag(out: &mut String, name: &str, set: bool) {
    if set {
        let _ = writeln!(out, "  {name}");
    }
}

fn ip(bytes: &[u8]) -> String {
    match bytes.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(bytes).unwrap()).to_string(),
        16 => IpAddr::from(<[u8; 16]>::try_from(bytes).unwrap()).to_string(),
        _ => format!("{bytes:?}"),
    }
}

fn network_address(at: &NetworkAddress) -> String {
    let network = if at.network.is_empty() { String::new() } else { format!("{}/", at.network) };
    let length = at.length.map(|length| format!("/{length}")).unwrap_or_default();
    format!("{network}{}{length}", ip(&at.address))
}

fn gateway(at: &GatewayAddress) -> String {
    let destination = match at.destination.as_ref().unwrap() {
        Destination::Hostname(host) => format!("{}/{}", host.namespace, host.hostname),
        Destination::Address(address) => network_address(address),
    };
    format!("{destination}:{}", at.hbone_mtls_port)
}

fn ports(ports: &[Port]) -> String {
    let port = |port: &Port| {
        let protocol = port.app_protocol().as_str_name().to_ascii_lowercase();
        let protocol = if protocol == "unknown" { String::new() } else { format!(" {protocol}") };
        format!("{}->{}{protocol}", port.service_port, port.target_port)
    };
    ports.iter().map(port).collect::<Vec<_>>().join(", ")
}

fn service(out: &mut String, service: &Service) {
    let _ = writeln!(out, "service {}/{}", service.namespace, service.hostname);
    field(out, "name", &service.name);
    field(out, "addresses", service.addresses.iter().map(network_address).collect::<Vec<_>>().join(", "));
    field(out, "ports", ports(&service.ports));
    field(out, "subject alternative names", service.subject_alt_names.join(", "));
    if service.ip_families != 0 {
        field(out, "families", service.ip_families().as_str_name());
    }
    if let Some(balancing) = &service.load_balancing {
        let scopes: Vec<&str> = balancing.routing_preference().map(|scope| scope.as_str_name()).collect();
        let (mode, health) = (balancing.mode().as_str_name(), balancing.health_policy().as_str_name());
        field(out, "load balancing", format!("{mode} [{}] {health}", scopes.join(", ")));
    }
    field(out, "waypoint", service.waypoint.as_ref().map(gateway).unwrap_or_default());
    let shares = service.weighted_waypoints.iter();
    let shares = shares.map(|share| format!("{} {}%", gateway(share.destination.as_ref().unwrap()), share.weight));
    field(out, "shares", shares.collect::<Vec<_>>().join(", "));
    flag(out, "ingress too", service.ingress_use_waypoint);
    flag(out, "canonical", service.canonical);
    if service.visibility != 0 {
        field(out, "visibility", service.visibility().as_str_name());
    }
}

fn workload(out: &mut String, workload: &Workload) {
    let _ = writeln!(out, "workload {}", workload.uid);
    field(out, "addresses", workload.addresses.iter().map(|at| ip(at)).collect::<Vec<_>>().join(", "));
    field(out, "hostname", &workload.hostname);
    field(out, "network", &workload.network);
    field(out, "trust domain", &workload.trust_domain);
    field(out, "identity", format!("{}/{}", workload.namespace, workload.service_account));
    field(out, "node", &workload.node);
    field(
        out,
        "is",
        format!("{} ({} {})", workload.workload_name, workload.canonical_name, workload.canonical_revision),
    );
    if workload.tunnel_protocol != 0 {
        let native = if workload.native_tunnel { ", native" } else { "" };
        field(out, "tunnel", format!("{}{native}", workload.tunnel_protocol().as_str_name()));
    }
    if let Some(tunnel) = &workload.application_tunnel {
        field(out, "application tunnel", format!("{} {}", tunnel.protocol().as_str_name(), tunnel.port));
    }
    flag(out, "unhealthy", workload.status != 0);
    flag(out, "host network", workload.network_mode != 0);
    field(out, "capacity", workload.capacity.map(|capacity| capacity.to_string()).unwrap_or_default());
    if let Some(at) = &workload.locality {
        field(out, "locality", format!("{}/{}/{}", at.region, at.zone, at.subzone));
    }
    field(out, "waypoint", workload.waypoint.as_ref().map(gateway).unwrap_or_default());
    for (name, list) in &workload.services {
        let _ = writeln!(out, "  behind {name}: {}", ports(&list.ports));
    }
    field(out, "policies", workload.authorization_policies.join(", "));
    field(out, "extensions", workload.extensions.iter().map(|one| one.name.as_str()).collect::<Vec<_>>().join(", "));
}

fn policy(out: &mut String, policy: &Authorization) {
    let (scope, action) = (policy.scope().as_str_name(), policy.action().as_str_name());
    let _ = writeln!(out, "policy {}/{} {scope} {action}", policy.namespace, policy.name);
    if policy.rules.is_empty() {
        let _ = writeln!(out, "  no rules: never matches");
    }
    for rule in &policy.rules {
        let clauses: Vec<String> = rule.clauses.iter().map(|clause| either(&clause.matches)).collect();
        let clauses = if clauses.is_empty() { "anything".to_owned() } else { clauses.join(" and ") };
        let _ = writeln!(out, "  rule: {clauses}");
    }
}

fn either(matches: &[Match]) -> String {
    let matches: Vec<String> = matches.iter().map(one_match).collect();
    format!("({})", matches.join(" or "))
}

fn one_match(found: &Match) -> String {
    let mut parts = Vec::new();
    let mut add = |name: &str, values: Vec<String>| {
        if !values.is_empty() {
            parts.push(format!("{name} {}", values.join("|")));
        }
    };
    let strings = |all: &[StringMatch]| all.iter().map(string).collect::<Vec<_>>();
    let blocks = |all: &[security::Address]| {
        all.iter().map(|at| format!("{}/{}", ip(&at.address), at.length)).collect::<Vec<_>>()
    };
    let accounts = |all: &[security::ServiceAccountMatch]| {
        all.iter().map(|at| format!("{}/{}", at.namespace, at.service_account)).collect::<Vec<_>>()
    };
    let numbers = |all: &[u32]| all.iter().map(u32::to_string).collect::<Vec<_>>();
    add("namespaces", strings(&found.namespaces));
    add("not namespaces", strings(&found.not_namespaces));
    add("principals", strings(&found.principals));
    add("not principals", strings(&found.not_principals));
    add("accounts", accounts(&found.service_accounts));
    add("not accounts", accounts(&found.not_service_accounts));
    add("from", blocks(&found.source_ips));
    add("not from", blocks(&found.not_source_ips));
    add("to", blocks(&found.destination_ips));
    add("not to", blocks(&found.not_destination_ips));
    add("ports", numbers(&found.destination_ports));
    add("not ports", numbers(&found.not_destination_ports));
    if parts.is_empty() { "nothing: never matches".to_owned() } else { parts.join(", ") }
}

fn string(matched: &StringMatch) -> String {
    match matched.match_type.as_ref().unwrap() {
        MatchType::Exact(text) => text.clone(),
        MatchType::Prefix(text) => format!("{text}*"),
        MatchType::Suffix(text) => format!("*{text}"),
        MatchType::Presence(()) => "anybody".to_owned(),
    }
}
