//! Workloads, services and policies for this crate's own tests, made the way that the control plane sends them.

use std::sync::Arc;

use aquifer_core::from_proto;
use aquifer_core::policy::Policy;
use aquifer_core::service::Service;
use aquifer_core::workload::Workload;
use aquifer_proto::{security, workload as wire};

pub(crate) fn workload(wire: wire::Workload) -> Arc<Workload> {
    let address = wire::Address { r#type: Some(wire::address::Type::Workload(wire)) };
    match from_proto::address(&address).unwrap() {
        from_proto::Address::Workload(workload) => workload,
        from_proto::Address::Service(_) => unreachable!(),
    }
}

pub(crate) fn service(wire: wire::Service) -> Arc<Service> {
    let address = wire::Address { r#type: Some(wire::address::Type::Service(wire)) };
    match from_proto::address(&address).unwrap() {
        from_proto::Address::Service(service) => service,
        from_proto::Address::Workload(_) => unreachable!(),
    }
}

pub(crate) fn policy(wire: &security::Authorization) -> Arc<Policy> {
    from_proto::authorization(wire).unwrap().into()
}

/// A pod on `node1` that speaks HBONE; its uid, canonical name and workload name come from its name.
pub(crate) fn pod(namespace: &str, name: &str, ip: [u8; 4]) -> wire::Workload {
    wire::Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}"),
        name: name.into(),
        namespace: namespace.into(),
        addresses: vec![ip.to_vec().into()],
        node: "node1".into(),
        service_account: name.into(),
        workload_name: name.into(),
        canonical_name: name.into(),
        canonical_revision: "latest".into(),
        tunnel_protocol: wire::TunnelProtocol::Hbone as i32,
        ..wire::Workload::default()
    }
}

/// A policy for a whole namespace: `ALLOW` or `DENY` callers of these namespaces.
pub(crate) fn namespace_policy(
    namespace: &str,
    name: &str,
    action: security::Action,
    callers: &[&str],
) -> security::Authorization {
    let exact = |text: &&str| security::StringMatch {
        match_type: Some(security::string_match::MatchType::Exact((*text).to_owned())),
    };
    let matches = security::Match { namespaces: callers.iter().map(exact).collect(), ..Default::default() };
    security::Authorization {
        name: name.into(),
        namespace: namespace.into(),
        scope: security::Scope::Namespace as i32,
        action: action as i32,
        rules: vec![security::Rule { clauses: vec![security::Clause { matches: vec![matches] }] }],
        ..Default::default()
    }
}
