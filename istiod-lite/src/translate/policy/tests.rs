use aquifer_objects::Object;
use aquifer_objects::crds::AuthorizationPolicy;
use aquifer_objects::parse::parse_object;
use aquifer_proto::security::string_match::MatchType;
use aquifer_proto::security::{Action, Match, Rule, Scope};
use serde_json::{Value, json};

use super::{Translated, is_sent, translate};
use crate::translate::{Mesh, status};

fn policy(metadata: Value, spec: Value) -> AuthorizationPolicy {
    let mut all = json!({"name": "p", "namespace": "shop"});
    all.as_object_mut().unwrap().extend(metadata.as_object().unwrap().clone());
    let value =
        json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": all, "spec": spec});
    match parse_object(value).unwrap() {
        Object::AuthorizationPolicy(policy) => policy.as_ref().clone(),
        other => panic!("{other:?}"),
    }
}

fn rules(spec: Value) -> (Vec<Rule>, bool) {
    match translate(&policy(json!({}), spec), &Mesh::default()) {
        Translated::Sent { authorization, usable, .. } => (authorization.rules, usable),
        other => panic!("{other:?}"),
    }
}

/// The matches of each clause of each rule.
fn matches(spec: Value) -> Vec<Vec<Vec<Match>>> {
    let of_rule = |rule: Rule| rule.clauses.into_iter().map(|clause| clause.matches).collect();
    rules(spec).0.into_iter().map(of_rule).collect()
}

/// As an API server holds it, which nobody keeps from taking a value that cannot be read.
fn unchecked(spec: Value) -> AuthorizationPolicy {
    let metadata = json!({"name": "p", "namespace": "shop"});
    serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
}

#[test]
fn scope_of_policies() {
    let cases = [
        ("shop", json!({}), Scope::Namespace),
        ("shop", json!({"selector": {"matchLabels": {"a": "b"}}}), Scope::WorkloadSelector),
        ("istio-system", json!({}), Scope::Global),
        ("istio-system", json!({"selector": {"matchLabels": {"a": "b"}}}), Scope::WorkloadSelector),
    ];
    for (namespace, spec, scope) in cases {
        let sent = translate(&policy(json!({"namespace": namespace}), spec.clone()), &Mesh::default())
            .authorization()
            .unwrap();
        assert_eq!(sent.scope, i32::from(scope), "{namespace} {spec}");
    }
}

#[test]
fn policies_that_are_not_sent() {
    let cases = [
        (json!({}), json!({"action": "AUDIT"})),
        (json!({}), json!({"action": "CUSTOM", "provider": {"name": "x"}, "rules": [{}]})),
        (json!({"annotations": {"istio.io/dry-run": "true"}}), json!({})),
        (json!({}), json!({"targetRefs": [{"kind": "Service", "name": "x"}]})),
        (json!({}), json!({"targetRef": {"kind": "Service", "name": "x"}})),
    ];
    for (metadata, spec) in cases {
        let policy = policy(metadata, spec.clone());
        assert_eq!((translate(&policy, &Mesh::default()).authorization(), is_sent(&policy)), (None, false), "{spec}");
    }
    let off = policy(json!({"annotations": {"istio.io/dry-run": "false"}}), json!({}));
    assert!(translate(&off, &Mesh::default()).authorization().is_some() && is_sent(&off));
}

/// No rules and a rule without clauses are opposites: one never matches, the other always.
#[test]
fn empty_rules_and_rules_that_are_empty() {
    assert_eq!(rules(json!({})).0, []);
    assert_eq!(rules(json!({"rules": [{}]})).0, [Rule { clauses: vec![] }]);
    let deny = translate(&policy(json!({}), json!({"action": "DENY"})), &Mesh::default()).authorization().unwrap();
    assert_eq!((deny.action, deny.rules.len()), (i32::from(Action::Deny), 0));
}

/// An ALLOW policy loses each rule that speaks of requests, as a whole: what stays allows no more than was asked.
#[test]
fn requests_in_allow_policies() {
    let l4 = json!({"from": [{"source": {"namespaces": ["good"]}}]});
    let attributes = [
        json!({"to": [{"operation": {"methods": ["GET"]}}]}),
        json!({"to": [{"operation": {"ports": ["80"], "notHosts": ["a"]}}]}),
        json!({"to": [{"operation": {"ports": ["80"]}}, {"operation": {"paths": ["/"]}}]}),
        json!({"from": [{"source": {"namespaces": ["x"], "requestPrincipals": ["*"]}}]}),
        json!({"from": [{"source": {"namespaces": ["x"], "notRemoteIpBlocks": ["10.0.0.1"]}}]}),
        json!({"from": [{"source": {"trustDomains": ["td"]}}]}),
        json!({"when": [{"key": "request.headers[x]", "values": ["a"]}]}),
        json!({"when": [{"key": "connection.sni", "values": ["a"]}]}),
        json!({"when": [{"key": "source.serviceAccount", "values": ["a/b"]}]}),
    ];
    for attribute in attributes {
        let (alone, usable) = rules(json!({"rules": [attribute]}));
        assert!(alone.is_empty() && !usable, "{attribute}: nothing is allowed");
        let (beside, usable) = rules(json!({"rules": [attribute, l4]}));
        assert!(beside.len() == 1 && usable, "{attribute}");
    }
}

/// A DENY policy loses only the attribute: a match that keeps something denies more, one that keeps nothing is inert.
#[test]
fn requests_in_deny_policies() {
    let deny = |rule: Value| json!({"action": "DENY", "rules": [rule]});
    let ports = |ports: &[u32]| Match { destination_ports: ports.to_vec(), ..Default::default() };
    let only = deny(json!({"to": [{"operation": {"methods": ["DELETE"]}}]}));
    assert_eq!((matches(only.clone()), rules(only).1), (vec![vec![vec![Match::default()]]], false));
    let mixed = deny(json!({"to": [{"operation": {"ports": ["8080"], "methods": ["DELETE"]}}]}));
    assert_eq!((matches(mixed.clone()), rules(mixed).1), (vec![vec![vec![ports(&[8080])]]], true));
    let two = deny(json!({"to": [{"operation": {"ports": ["8080"]}}, {"operation": {"paths": ["/"]}}]}));
    assert_eq!((matches(two.clone()), rules(two).1), (vec![vec![vec![ports(&[8080]), Match::default()]]], true));
    let inert = deny(
        json!({"to": [{"operation": {"ports": ["8080"]}}], "when": [{"key": "request.headers[x]", "values": ["a"]}]}),
    );
    assert!(!rules(inert).1, "one clause that never matches makes its rule inert");
}

/// A value that cannot be read must not widen what is left: an ALLOW rule with one goes as a whole, and a DENY rule
/// keeps the others.
#[test]
fn values_that_cannot_be_read_let_nobody_in() {
    let good = json!({"from": [{"source": {"namespaces": ["good"]}}]});
    let bad = [
        json!({"from": [{"source": {"namespaces": ["x"], "ipBlocks": ["10.0.0.0/33"]}}]}),
        json!({"from": [{"source": {"namespaces": ["x"], "notIpBlocks": ["10.0.0.1", "10.0.0"]}}]}),
        json!({"from": [{"source": {"principals": ["td/ns/x/sa/y"], "notNamespaces": [""]}}]}),
        // Who shows no identity has the empty namespace.
        json!({"from": [{"source": {"namespaces": [""]}}]}),
        json!({"from": [{"source": {"serviceAccounts": ["a", ""]}}]}),
        json!({"from": [{"source": {"notServiceAccounts": ["shop/*"]}}]}),
        json!({"from": [{"source": {"notServiceAccounts": ["a/b/c"]}}]}),
        json!({"to": [{"operation": {"notPorts": ["0"]}}]}),
        json!({"to": [{"operation": {"ports": ["80"], "notPorts": ["http"]}}]}),
        json!({"to": [{"operation": {"ports": ["80", "70000"]}}]}),
        json!({"when": [{"key": "source.ip", "values": ["10.0.0.1"], "notValues": ["ten"]}]}),
        json!({"when": [{"key": "destination.port", "values": ["80"], "notValues": ["-1"]}]}),
    ];
    for rule in bad {
        let sent = translate(&unchecked(json!({"rules": [rule, good]})), &Mesh::default()).authorization().unwrap();
        assert_eq!(sent.rules.len(), 1, "{rule}: {:?}", sent.rules);
        assert!(sent.rules[0].clauses[0].matches[0].namespaces.len() == 1, "{rule}");
    }
    let deny = json!({"action": "DENY", "rules": [{"from": [{"source": {"ipBlocks": ["10.0.0.0/33", "10.0.0.1"]}}]}]});
    let sent = translate(&unchecked(deny), &Mesh::default()).authorization().unwrap();
    assert_eq!(sent.rules[0].clauses[0].matches[0].source_ips.len(), 1);
}

#[test]
fn clauses_stand_in_the_order_to_from_when() {
    let found = matches(json!({"rules": [{
        "when": [{"key": "source.ip", "values": ["10.0.0.0/8"]}, {"key": "destination.ip", "notValues": ["2001:db8::1"]}],
        "from": [{"source": {"principals": ["td/ns/a/sa/b"]}}],
        "to": [{"operation": {"notPorts": ["22"]}}],
    }]}));
    let clauses = &found[0];
    assert_eq!(clauses.len(), 4);
    assert_eq!(clauses[0][0].not_destination_ports, [22]);
    assert_eq!(clauses[1][0].principals[0].match_type, Some(MatchType::Exact("td/ns/a/sa/b".to_owned())));
    assert_eq!(
        (clauses[2][0].source_ips[0].address.as_ref(), clauses[2][0].source_ips[0].length),
        ([10, 0, 0, 0].as_slice(), 8)
    );
    assert_eq!(
        (clauses[3][0].not_destination_ips[0].address.len(), clauses[3][0].not_destination_ips[0].length),
        (16, 128)
    );
}

#[test]
fn patterns() {
    let cases = [
        ("*", MatchType::Presence(())),
        ("*/sa/web", MatchType::Suffix("/sa/web".to_owned())),
        ("td/ns/a/*", MatchType::Prefix("td/ns/a/".to_owned())),
        ("td/ns/a/sa/web", MatchType::Exact("td/ns/a/sa/web".to_owned())),
        // Compared with identities without the scheme, so it never matches; kept as it was written.
        ("spiffe://td/ns/a/sa/b", MatchType::Exact("spiffe://td/ns/a/sa/b".to_owned())),
    ];
    for (pattern, expect) in cases {
        let found = matches(json!({"rules": [{"from": [{"source": {"principals": [pattern]}}]}]}));
        assert_eq!(found[0][0][0].principals[0].match_type, Some(expect), "{pattern}");
    }
}

#[test]
fn service_accounts_are_of_the_policys_namespace_unless_they_say() {
    let found = matches(json!({"rules": [{"from": [{"source": {"serviceAccounts": ["web", "other/web"]}}]}]}));
    let accounts: Vec<_> =
        found[0][0][0].service_accounts.iter().map(|a| (a.namespace.as_str(), a.service_account.as_str())).collect();
    assert_eq!(accounts, [("shop", "web"), ("other", "web")]);
}

#[test]
fn a_policy_of_which_nothing_is_left_is_not_accepted() {
    let condition = |spec: Value| {
        let conditions = status::conditions(&policy(json!({}), spec), &Mesh::default(), &|_| status::Found::Missing);
        (conditions[0].type_.clone(), conditions[0].status.clone(), conditions[0].reason.clone())
    };
    let expect = |type_: &str, status: &str, reason: &str| (type_.to_owned(), status.to_owned(), reason.to_owned());
    let l7 = json!({"to": [{"operation": {"methods": ["GET"]}}]});
    assert_eq!(condition(json!({})), expect("ZtunnelAccepted", "True", "Accepted"));
    assert_eq!(condition(json!({"rules": [l7]})), expect("ZtunnelAccepted", "False", "UnsupportedValue"));
    assert_eq!(condition(json!({"rules": [l7, {}]})), expect("ZtunnelAccepted", "True", "UnsupportedValue"));
    assert_eq!(
        condition(json!({"action": "DENY", "rules": [l7]})),
        expect("ZtunnelAccepted", "False", "UnsupportedValue")
    );
    assert_eq!(condition(json!({"action": "AUDIT"})), expect("ZtunnelAccepted", "False", "UnsupportedValue"));
}

/// What an API server took and a folder refuses is said on the policy, field by field.
#[test]
fn what_cannot_be_used_is_named() {
    let source = |blocks: Value| json!({"from": [{"source": {"ipBlocks": blocks}}]});
    let cases = [
        (json!({"rules": [source(json!(["10.0.0.0/33"]))]}), "False", "more restrictive"),
        (json!({"rules": [source(json!(["10.0.0.0/33"])), source(json!(["10.0.0.1"]))]}), "True", "more restrictive"),
        (json!({"action": "DENY", "rules": [source(json!(["10.0.0.0/33"]))]}), "False", "no effect"),
        (json!({"action": "DENY", "rules": [source(json!(["10.0.0.0/33", "10.0.0.1"]))]}), "True", "more or less"),
        // It matches nobody.
        (json!({"action": "DENY", "rules": [{"from": [{"source": {}}]}]}), "False", "no effect"),
        (
            json!({"rules": [{"from": [{"source": {}}, {"source": {"namespaces": ["a"]}}]}]}),
            "True",
            "Nothing is left out",
        ),
        (json!({"rules": [source(json!(["ten"])), {"to": [{"operation": {"paths": ["/x"]}}]}]}), "False", "(paths)"),
    ];
    for (spec, status, part) in cases {
        let made = status::conditions(&unchecked(spec.clone()), &Mesh::default(), &|_| status::Found::Missing);
        assert_eq!((&*made[0].type_, &*made[0].status, &*made[0].reason), ("ZtunnelAccepted", status, "InvalidValue"));
        assert!(made[0].message.contains("spec.rules[0].from[0].source") && made[0].message.contains(part), "{made:?}");
    }
}

#[test]
fn labels_that_no_pod_can_have_select_none() {
    for action in ["ALLOW", "DENY"] {
        let spec = json!({"action": action, "selector": {"matchLabels": {"app": "my app"}}, "rules": [{}]});
        let made = status::conditions(&unchecked(spec), &Mesh::default(), &|_| status::Found::Missing);
        assert_eq!((&*made[0].status, &*made[0].reason), ("False", "InvalidValue"));
        assert!(made[0].message.contains("spec.selector") && made[0].message.contains("no effect"), "{made:?}");
    }
}

/// As in Istio it matches nobody, which is a hole where it denies: so it is said, and where.
#[test]
fn a_principal_with_its_scheme_is_told() {
    let spiffe = "spiffe://cluster.local/ns/a/sa/b";
    let cases = [
        (json!([{"from": [{"source": {"principals": ["x", spiffe]}}]}]), "spec.rules[0].from[0].source.principals[1]"),
        (
            json!([{}, {"from": [{"source": {"notPrincipals": [spiffe]}}]}]),
            "spec.rules[1].from[0].source.notPrincipals[0]",
        ),
        (json!([{"when": [{"key": "source.principal", "values": [spiffe]}]}]), "spec.rules[0].when[0].values[0]"),
        (json!([{"when": [{"key": "source.principal", "notValues": [spiffe]}]}]), "spec.rules[0].when[0].notValues[0]"),
    ];
    for action in ["DENY", "ALLOW"] {
        for (rules, field) in &cases {
            let policy = policy(json!({}), json!({"action": action, "rules": rules}));
            let made = status::conditions(&policy, &Mesh::default(), &|_| status::Found::Missing);
            let said =
                made.iter().find(|one| one.type_ == "aquifer.dev/NoEffect").unwrap_or_else(|| panic!("{made:?}"));
            assert_eq!((&*said.status, &*said.reason), ("True", "PrincipalWithScheme"));
            assert!(said.message.contains(field) && said.message.contains("without spiffe://"), "{}", said.message);
        }
    }
    let good =
        policy(json!({}), json!({"rules": [{"from": [{"source": {"principals": ["cluster.local/ns/a/sa/b", "*"]}}]}]}));
    let made = status::conditions(&good, &Mesh::default(), &|_| status::Found::Missing);
    assert_eq!(made.len(), 1, "{made:?}");
}
