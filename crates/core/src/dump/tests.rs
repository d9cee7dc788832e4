//! Against entries of the reference proxy's config_dump.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::{
    fixtures::{ip, mesh, pod, service},
    policy::{Action, Clause, Match, Policy, Rule, Scope, ServiceAccountMatch, StringMatch},
    service::{IpFamilies, Service},
    state::Update,
    workload::Locality,
};

#[test]
fn entries_look_as_istios_tools_expect() {
    let recorded = concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/recordings/ztunnel/config_dump.json");
    let recorded: Value = serde_json::from_slice(&std::fs::read(recorded).unwrap()).unwrap();
    let entry = |kind: &str, name: &str| {
        recorded[kind].as_array().unwrap().iter().find(|entry| entry["name"] == name).unwrap().clone()
    };

    let locked = pod("locked", &[])
        .with(|w| {
            w.uid = "Kubernetes//Pod/amb/locked".into();
            w.namespace = "amb".into();
            w.service_account = "server".into();
            w.addresses = vec![ip(entry("workloads", "locked")["workloadIps"][0].as_str().unwrap())].into();
            w.node = "node1".into();
            w.locality = Locality { region: "eu".into(), zone: "eu-1".into(), subzone: "rack-0".into() };
            w.authorization_policies = vec!["amb/locked".parse().unwrap()];
        })
        .of("amb/locked.amb.svc.cluster.local", &[]);
    let vip = entry("services", "empty")["vips"][0].as_str().unwrap()[1..].to_owned();
    let empty = Service {
        name: "empty".into(),
        canonical: true,
        ip_families: IpFamilies::Ipv4Only,
        ..service("amb/empty.amb.svc.cluster.local", &[&vip], &[(80, 8080)])
    };
    let nobody = Match { namespaces: vec![StringMatch::Exact("nobody".into())], ..Default::default() };
    let policy = Policy {
        key: "amb/locked".parse().unwrap(),
        scope: Scope::WorkloadSelector,
        action: Action::Allow,
        rules: vec![Rule { clauses: vec![Clause { matches: vec![nobody] }] }],
        dry_run: false,
    };
    let mut state = mesh([locked], [empty]);
    state.apply(Update::Policy(Arc::new(policy)));
    let expected = json!({
        "workloads": [entry("workloads", "locked")],
        "services": [entry("services", "empty")],
        "policies": [entry("policies", "locked")],
    });
    assert_eq!(serde_json::to_value(state.dump()).unwrap(), expected);
}

/// `istioctl ztunnel-config` reads each of these into a structure, and nothing at all if one has another shape.
#[test]
fn matches_are_objects_throughout() {
    let account = ServiceAccountMatch { namespace: "ns".into(), service_account: "sa".into() };
    let text = |kind: fn(Arc<str>) -> StringMatch| kind("x".into());
    let all = Match {
        principals: vec![text(StringMatch::Exact), text(StringMatch::Prefix), text(StringMatch::Suffix)],
        not_principals: vec![StringMatch::Presence],
        service_accounts: vec![account.clone()],
        not_service_accounts: vec![account],
        ..Default::default()
    };
    let account = json!({"namespace": "ns", "serviceAccount": "sa"});
    let expected = json!({
        "principals": [{"Exact": "x"}, {"Prefix": "x"}, {"Suffix": "x"}],
        "notPrincipals": [{"Presence": []}],
        "serviceAccounts": [account],
        "notServiceAccounts": [account],
    });
    assert_eq!(serde_json::to_value(all).unwrap(), expected);
}

#[test]
fn endpoints_stand_under_their_service() {
    let state = mesh([pod("a", &["10.0.0.1"]).of("ns/web", &[(80, 8080)])], [service("ns/web", &[], &[(80, 0)])]);
    let dump = serde_json::to_value(state.dump()).unwrap();
    let uid = "Kubernetes//Pod/ns/a";
    assert_eq!(
        dump["services"][0]["endpoints"][uid],
        json!({"workloadUid": uid, "port": {"80": 8080}, "status": "Healthy"})
    );
    assert_eq!(dump["services"][0]["ports"], json!({"80": 0}));
}
