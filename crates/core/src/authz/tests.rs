//! What each kind of policy does to each kind of caller, and against a naive oracle.

use proptest::prelude::*;

use super::*;
use crate::{
    fixtures::{ip, pod},
    policy::{Scope, StringMatch},
    state::Update,
};

fn policy(key: &str, action: Action, rules: Vec<Rule>) -> Policy {
    Policy { key: key.parse().unwrap(), scope: Scope::Namespace, action, rules, dry_run: false }
}

/// One rule of one clause of one match.
fn rule(m: Match) -> Rule {
    Rule { clauses: vec![Clause { matches: vec![m] }] }
}

fn ports(ports: &[u16]) -> Match {
    Match { destination_ports: ports.to_vec(), ..Default::default() }
}

fn state(policies: Vec<Policy>) -> MeshState {
    let mut state = MeshState::default();
    policies.into_iter().for_each(|policy| state.apply(Update::Policy(Arc::new(policy))));
    state
}

fn caller(account: Option<&str>) -> Connection {
    Connection {
        destination: Arc::new(pod("a", &["10.0.0.1"])),
        identity: account.map(|account| Identity::new("cluster.local", "ns", account)),
        source_ip: ip("10.0.0.9"),
        destination_addr: "10.0.0.1:80".parse().unwrap(),
    }
}

fn by(key: &str, rule: usize) -> By {
    By::Policy { policy: key.parse().unwrap(), rule }
}

#[test]
fn deny_comes_first_then_allow_must_match_if_there_is_any() {
    use Action::{Allow, Deny};
    use Decision as D;
    let hit = || rule(ports(&[80]));
    let miss = || rule(ports(&[81]));
    for (what, policies, expected) in [
        ("none", vec![], D::Allow(By::NoAllowPolicies)),
        ("deny that misses", vec![policy("ns/d", Deny, vec![miss()])], D::Allow(By::NoAllowPolicies)),
        ("deny that hits", vec![policy("ns/d", Deny, vec![miss(), hit()])], D::Deny(by("ns/d", 1))),
        ("allow that hits", vec![policy("ns/a", Allow, vec![miss(), hit()])], D::Allow(by("ns/a", 1))),
        ("allow that misses", vec![policy("ns/a", Allow, vec![miss()])], D::Deny(By::NoAllowPolicyMatched)),
        (
            "one of two allows",
            vec![policy("ns/a", Allow, vec![miss()]), policy("ns/b", Allow, vec![hit()])],
            D::Allow(by("ns/b", 0)),
        ),
        ("both", vec![policy("ns/a", Allow, vec![hit()]), policy("ns/z", Deny, vec![hit()])], D::Deny(by("ns/z", 0))),
        ("allow without rules denies all", vec![policy("ns/a", Allow, vec![])], D::Deny(By::NoAllowPolicyMatched)),
        ("deny without rules does nothing", vec![policy("ns/d", Deny, vec![])], D::Allow(By::NoAllowPolicies)),
        (
            "a rule without clauses matches all",
            vec![policy("ns/d", Deny, vec![Rule::default()])],
            D::Deny(by("ns/d", 0)),
        ),
        (
            "a clause without matches matches",
            vec![policy("ns/d", Deny, vec![Rule { clauses: vec![Clause::default()] }])],
            D::Deny(by("ns/d", 0)),
        ),
        (
            "a match without fields does not",
            vec![policy("ns/d", Deny, vec![rule(Match::default())])],
            D::Allow(By::NoAllowPolicies),
        ),
        (
            "nor does it count as allowing",
            vec![policy("ns/a", Allow, vec![rule(Match::default())])],
            D::Deny(By::NoAllowPolicyMatched),
        ),
        ("another namespace", vec![policy("x/d", Deny, vec![hit()])], D::Allow(By::NoAllowPolicies)),
        (
            "global",
            vec![Policy { scope: Scope::Global, ..policy("root/d", Deny, vec![hit()]) }],
            D::Deny(by("root/d", 0)),
        ),
        (
            "selected, but not this one",
            vec![Policy { scope: Scope::WorkloadSelector, ..policy("ns/d", Deny, vec![hit()]) }],
            D::Allow(By::NoAllowPolicies),
        ),
    ] {
        assert_eq!(authorize(&state(policies), &caller(Some("x"))).decision, expected, "{what}");
    }
}

#[test]
fn clauses_are_anded_and_matches_ored() {
    let clause = |list: &[u16]| Clause { matches: list.iter().map(|port| ports(&[*port])).collect() };
    for (clauses, expected) in [
        (vec![clause(&[80]), clause(&[1, 80])], true),
        (vec![clause(&[80]), clause(&[1, 2])], false),
        (vec![clause(&[80]), Clause::default()], true),
        (vec![Clause { matches: vec![Match::default(), ports(&[80])] }], true),
    ] {
        let denied =
            !authorize(&state(vec![policy("ns/d", Action::Deny, vec![Rule { clauses }])]), &caller(None)).is_allowed();
        assert_eq!(denied, expected);
    }
}

#[test]
fn a_named_policy_that_is_missing_denies_with_its_own_reason() {
    let mut connection = caller(Some("x"));
    let names = ["ns/known", "ns/gone"].map(|key| key.parse().unwrap()).to_vec();
    connection.destination = Arc::new(pod("a", &["10.0.0.1"]).with(|w| w.authorization_policies = names));
    let selected = |action, m| Policy { scope: Scope::WorkloadSelector, ..policy("ns/known", action, vec![rule(m)]) };
    let verdict = authorize(&state(vec![selected(Action::Allow, ports(&[80]))]), &connection);
    assert_eq!(verdict.decision, Decision::Deny(By::PolicyUnknown("ns/gone".parse().unwrap())));
    assert_eq!(
        (verdict.reason(), verdict.policy().unwrap().to_string()),
        (Some(Reason::PolicyUnknown), "ns/gone".into())
    );
    // A policy that does deny is the better answer.
    let verdict = authorize(&state(vec![selected(Action::Deny, ports(&[80]))]), &connection);
    assert_eq!((verdict.reason(), verdict.decision), (Some(Reason::PolicyDenied), Decision::Deny(by("ns/known", 0))));
    let gone = policy("ns/gone", Action::Deny, vec![]);
    let verdict = authorize(&state(vec![selected(Action::Allow, ports(&[80])), gone]), &connection);
    assert!(verdict.is_allowed());
}

#[test]
fn dry_run_policies_are_reported_and_change_nothing() {
    let dry = |key: &str, action, port| Policy { dry_run: true, ..policy(key, action, vec![rule(ports(&[port]))]) };
    let policies = vec![dry("ns/a", Action::Allow, 81), dry("ns/d", Action::Deny, 80)];
    let verdict = authorize(&state(policies), &caller(None));
    assert_eq!(verdict.decision, Decision::Allow(By::NoAllowPolicies));
    let notes: Vec<_> =
        verdict.dry_run.iter().map(|note| (note.policy.to_string(), note.action, note.matched)).collect();
    assert_eq!(notes, [("ns/a".into(), Action::Allow, None), ("ns/d".into(), Action::Deny, Some(0))]);
    // Nor is a missing one made known by it.
    assert_eq!(verdict.reason(), None);
}

#[test]
fn each_field_matches_its_own_attribute() {
    let exact = |text: &str| vec![StringMatch::Exact(text.into())];
    let nets = |text: &str| vec![text.parse().unwrap()];
    let account = |ns: &str, sa: &str| vec![ServiceAccountMatch { namespace: ns.into(), service_account: sa.into() }];
    let presence = || vec![StringMatch::Presence];
    let principal = "cluster.local/ns/ns/sa/web";
    let m = Match::default;
    // (match, matches the caller with identity ns/web, matches the plaintext caller)
    for (m, with_identity, plaintext) in [
        (Match { principals: exact(principal), ..m() }, true, false),
        (Match { principals: exact("spiffe://cluster.local/ns/ns/sa/web"), ..m() }, false, false),
        (Match { principals: vec![StringMatch::Prefix("cluster.local/ns/".into())], ..m() }, true, false),
        (Match { principals: vec![StringMatch::Suffix("/sa/web".into())], ..m() }, true, false),
        (Match { principals: vec![StringMatch::Prefix("".into())], ..m() }, true, false),
        (Match { principals: exact(""), ..m() }, false, false),
        (Match { principals: presence(), ..m() }, true, false),
        (Match { not_principals: presence(), ..m() }, false, true),
        (Match { not_principals: exact(principal), ..m() }, false, true),
        (Match { not_principals: exact("other"), ..m() }, true, true),
        (Match { namespaces: exact("ns"), ..m() }, true, false),
        (Match { namespaces: presence(), ..m() }, true, false),
        (Match { not_namespaces: exact("ns"), ..m() }, false, true),
        (Match { not_namespaces: presence(), ..m() }, false, true),
        (Match { service_accounts: account("ns", "web"), ..m() }, true, false),
        (Match { service_accounts: account("ns", "x"), ..m() }, false, false),
        (Match { service_accounts: account("x", "web"), ..m() }, false, false),
        (Match { not_service_accounts: account("ns", "web"), ..m() }, false, true),
        (Match { source_ips: nets("10.0.0.0/24"), ..m() }, true, true),
        (Match { source_ips: nets("10.0.1.0/24"), ..m() }, false, false),
        (Match { not_source_ips: nets("10.0.0.9/32"), ..m() }, false, false),
        (Match { source_ips: nets("::/0"), ..m() }, false, false),
        (Match { destination_ips: nets("10.0.0.1/32"), ..m() }, true, true),
        (Match { not_destination_ips: nets("10.0.0.1/32"), ..m() }, false, false),
        (Match { destination_ports: vec![1, 80], ..m() }, true, true),
        (Match { not_destination_ports: vec![80], ..m() }, false, false),
        (Match { namespaces: exact("ns"), not_source_ips: nets("10.0.0.9/32"), ..m() }, false, false),
        (Match { namespaces: exact("ns"), destination_ports: vec![80], ..m() }, true, false),
    ] {
        for (account, expected) in [(Some("web"), with_identity), (None, plaintext)] {
            let denying = state(vec![policy("ns/d", Action::Deny, vec![rule(m.clone())])]);
            let mut connection = caller(account);
            assert_eq!(!authorize(&denying, &connection).is_allowed(), expected, "{account:?} {m:?}");
            // Mapped addresses are the plain ones.
            connection.source_ip = ip("::ffff:10.0.0.9");
            connection.destination_addr = "[::ffff:10.0.0.1]:80".parse().unwrap();
            assert_eq!(!authorize(&denying, &connection).is_allowed(), expected, "mapped {account:?} {m:?}");
        }
    }
}

#[test]
fn service_accounts_are_compared_without_the_trust_domain() {
    let accounts = vec![ServiceAccountMatch { namespace: "ns".into(), service_account: "web".into() }];
    let denying = state(vec![policy(
        "ns/d",
        Action::Deny,
        vec![rule(Match { service_accounts: accounts, ..Default::default() })],
    )]);
    let foreign = Connection { identity: Some(Identity::new("other.td", "ns", "web")), ..caller(None) };
    assert!(!authorize(&denying, &foreign).is_allowed());
}

// The same, written once more as plainly as possible.

fn text_match(m: &StringMatch, text: &str) -> bool {
    match m {
        StringMatch::Exact(x) => text == &**x,
        StringMatch::Prefix(x) => text.len() >= x.len() && text[..x.len()] == **x,
        StringMatch::Suffix(x) => text.len() >= x.len() && text[text.len() - x.len()..] == **x,
        StringMatch::Presence => !text.is_empty(),
    }
}

fn naive_match(m: &Match, c: &Connection) -> bool {
    let namespace = c.identity.as_ref().map_or(String::new(), |id| id.namespace.to_string());
    let principal = c.identity.as_ref().map(|id| id.to_string()["spiffe://".len()..].to_owned());
    let mut fields = Vec::new();
    let mut add = |set: bool, negated: bool, any: bool| {
        if set {
            fields.push(any != negated);
        }
    };
    let ns = |list: &[StringMatch]| list.iter().any(|x| text_match(x, &namespace));
    let pr = |list: &[StringMatch]| principal.as_ref().is_some_and(|p| list.iter().any(|x| text_match(x, p)));
    let net = |list: &[IpNet], ip: IpAddr| list.iter().any(|x| x.contains(&ip));
    let sa = |list: &[ServiceAccountMatch]| {
        c.identity.as_ref().is_some_and(|id| {
            list.iter().any(|x| x.namespace == id.namespace && x.service_account == id.service_account)
        })
    };
    let port = c.destination_addr.port();
    add(!m.namespaces.is_empty(), false, ns(&m.namespaces));
    add(!m.not_namespaces.is_empty(), true, ns(&m.not_namespaces));
    add(!m.principals.is_empty(), false, pr(&m.principals));
    add(!m.not_principals.is_empty(), true, pr(&m.not_principals));
    add(!m.source_ips.is_empty(), false, net(&m.source_ips, c.source_ip));
    add(!m.not_source_ips.is_empty(), true, net(&m.not_source_ips, c.source_ip));
    add(!m.destination_ips.is_empty(), false, net(&m.destination_ips, c.destination_addr.ip()));
    add(!m.not_destination_ips.is_empty(), true, net(&m.not_destination_ips, c.destination_addr.ip()));
    add(!m.destination_ports.is_empty(), false, m.destination_ports.contains(&port));
    add(!m.not_destination_ports.is_empty(), true, m.not_destination_ports.contains(&port));
    add(!m.service_accounts.is_empty(), false, sa(&m.service_accounts));
    add(!m.not_service_accounts.is_empty(), true, sa(&m.not_service_accounts));
    !fields.is_empty() && fields.into_iter().all(|holds| holds)
}

fn naive(policies: &[Policy], workload: &Workload, c: &Connection) -> Option<Reason> {
    let applies = |p: &&Policy| {
        p.scope == Scope::Global
            || (p.scope == Scope::Namespace && p.key.namespace == workload.namespace)
            || workload.authorization_policies.contains(&p.key)
    };
    let hits = |p: &Policy| {
        p.rules
            .iter()
            .any(|r| r.clauses.iter().all(|cl| cl.matches.is_empty() || cl.matches.iter().any(|m| naive_match(m, c))))
    };
    let real: Vec<&Policy> = policies.iter().filter(applies).filter(|p| !p.dry_run).collect();
    let allows: Vec<_> = real.iter().filter(|p| p.action == Action::Allow).collect();
    if real.iter().any(|p| p.action == Action::Deny && hits(p)) {
        return Some(Reason::PolicyDenied);
    }
    if workload.authorization_policies.iter().any(|key| !policies.iter().any(|p| p.key == *key)) {
        return Some(Reason::PolicyUnknown);
    }
    (!allows.is_empty() && !allows.iter().any(|p| hits(p))).then_some(Reason::PolicyNotAllowed)
}

fn few<T: std::fmt::Debug + Clone>(values: impl Strategy<Value = T>) -> impl Strategy<Value = Vec<T>> {
    // Mostly empty: a match that sets every field hits nothing.
    let one_or_two = proptest::collection::vec(values, 1..3);
    prop_oneof![3 => Just(()).prop_map(|()| None), 1 => one_or_two.prop_map(Some)].prop_map(Option::unwrap_or_default)
}

fn any_string() -> impl Strategy<Value = StringMatch> {
    let words = proptest::sample::select(vec!["", "n1", "n2", "n", "td/ns/n1/sa/x", "td/ns/", "/sa/x", "td"]);
    (words, 0..4).prop_map(|(word, kind)| match kind {
        0 => StringMatch::Exact(word.into()),
        1 => StringMatch::Prefix(word.into()),
        2 => StringMatch::Suffix(word.into()),
        _ => StringMatch::Presence,
    })
}

fn any_match() -> impl Strategy<Value = Match> {
    let nets = || {
        few(proptest::sample::select(vec!["10.0.0.0/30", "10.0.0.1/32", "0.0.0.0/0", "::/0"])
            .prop_map(|net| net.parse().unwrap()))
    };
    let ports = || few(80u16..82);
    let accounts = || {
        few((proptest::sample::select(vec!["n1", "n2"]), proptest::sample::select(vec!["x", "y"]))
            .prop_map(|(ns, sa)| ServiceAccountMatch { namespace: ns.into(), service_account: sa.into() }))
    };
    let strings = (few(any_string()), few(any_string()), few(any_string()), few(any_string()));
    (strings, (nets(), nets(), nets(), nets()), (ports(), ports()), (accounts(), accounts())).prop_map(
        |(s, n, p, a)| Match {
            namespaces: s.0,
            not_namespaces: s.1,
            principals: s.2,
            not_principals: s.3,
            source_ips: n.0,
            not_source_ips: n.1,
            destination_ips: n.2,
            not_destination_ips: n.3,
            destination_ports: p.0,
            not_destination_ports: p.1,
            service_accounts: a.0,
            not_service_accounts: a.1,
        },
    )
}

fn any_policy() -> impl Strategy<Value = Policy> {
    let clause = proptest::collection::vec(any_match(), 0..3).prop_map(|matches| Clause { matches });
    let rule = proptest::collection::vec(clause, 0..3).prop_map(|clauses| Rule { clauses });
    let scope = proptest::sample::select(vec![Scope::Global, Scope::Namespace, Scope::WorkloadSelector]);
    let key = proptest::sample::select(vec!["ns/a", "ns/b", "x/a", "x/b"]);
    (key, scope, any::<bool>(), proptest::collection::vec(rule, 0..3), proptest::bool::weighted(0.2)).prop_map(
        |(key, scope, allow, rules, dry_run)| {
            let action = if allow { Action::Allow } else { Action::Deny };
            Policy { key: key.parse().unwrap(), scope, action, rules, dry_run }
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]
    #[test]
    fn agrees_with_the_oracle(
        mut policies in proptest::collection::vec(any_policy(), 0..4),
        named in proptest::sample::subsequence(vec!["ns/a", "ns/b", "x/b"], 0..3),
        identity in proptest::option::of((proptest::sample::select(vec!["n1", "n2"]), proptest::sample::select(vec!["x", "y"]))),
        source in 0u8..6,
        port in 80u16..82,
    ) {
        policies.sort_by(|a, b| a.key.cmp(&b.key));
        policies.dedup_by(|a, b| a.key == b.key);
        let authorization_policies = named.iter().map(|key| key.parse().unwrap()).collect();
        let connection = Connection {
            destination: Arc::new(pod("a", &["10.0.0.1"]).with(|w| w.authorization_policies = authorization_policies)),
            identity: identity.map(|(ns, sa)| Identity::new("td", ns, sa)),
            source_ip: IpAddr::from([10, 0, 0, source]),
            destination_addr: SocketAddr::new(ip("10.0.0.1"), port),
        };
        let verdict = authorize(&state(policies.clone()), &connection);
        prop_assert_eq!(verdict.reason(), naive(&policies, &connection.destination, &connection));
    }
}

#[test]
fn an_awaited_policy_leaves_it_open_unless_another_denies() {
    use crate::state::UnknownPolicies;
    use Action::{Allow, Deny};
    let (hit, miss) = (|| rule(ports(&[80])), || rule(ports(&[81])));
    let key = |name: &str| -> crate::policy::PolicyKey { name.parse().unwrap() };
    let mut connection = caller(None);
    let named = vec![key("ns/late"), key("ns/never")];
    let uid = connection.destination.uid.clone();
    let judge = |policies: Vec<Policy>, named: &[crate::policy::PolicyKey], unknown: UnknownPolicies| {
        let mut state = state(policies);
        state.set_unknown_policies(unknown);
        let destination = pod("a", &["10.0.0.1"]);
        connection.destination = Arc::new(destination.with(|w| w.authorization_policies = named.to_vec()));
        authorize(&state, &connection)
    };
    let mut judge = judge;
    let late = || {
        let awaited = Arc::new([(uid.clone(), key("ns/late"))].into());
        UnknownPolicies { skip: false, awaited }
    };
    let pending = Decision::Pending(key("ns/late"));
    let verdict = judge(vec![], &named[..1], late());
    assert_eq!((&verdict.decision, verdict.is_allowed()), (&pending, false));
    assert_eq!((verdict.reason(), verdict.policy()), (Some(Reason::PolicyUnknown), Some(&key("ns/late"))));
    // It may be the ALLOW that is missing, or a DENY against one that is there.
    assert_eq!(judge(vec![policy("ns/a", Allow, vec![miss()])], &named[..1], late()).decision, pending);
    assert_eq!(judge(vec![policy("ns/a", Allow, vec![hit()])], &named[..1], late()).decision, pending);
    // What is known to deny denies, and so does one that nobody waits for any more.
    let denied = judge(vec![policy("ns/d", Deny, vec![hit()])], &named[..1], late());
    assert_eq!(denied.decision, Decision::Deny(by("ns/d", 0)));
    assert_eq!(judge(vec![], &named, late()).decision, Decision::Deny(By::PolicyUnknown(key("ns/never"))));
    // Another workload's waiting is its own.
    let other = UnknownPolicies { skip: false, awaited: Arc::new([("other".into(), key("ns/late"))].into()) };
    assert_eq!(judge(vec![], &named[..1], other).decision, Decision::Deny(By::PolicyUnknown(key("ns/late"))));
    // Known now: it decides, awaited or not.
    assert_eq!(
        judge(vec![policy("ns/late", Allow, vec![hit()])], &named[..1], late()).decision,
        Decision::Allow(by("ns/late", 0))
    );
    // As Istio does.
    let skip = UnknownPolicies { skip: true, ..Default::default() };
    assert_eq!(judge(vec![], &named, skip.clone()).decision, Decision::Allow(By::NoAllowPolicies));
    let allow = vec![policy("ns/a", Allow, vec![miss()])];
    assert_eq!(judge(allow, &named, skip).decision, Decision::Deny(By::NoAllowPolicyMatched));
}

#[test]
fn what_a_nodes_workloads_name_and_is_missing_is_listed() {
    let mut state = state(vec![policy("ns/known", Action::Deny, vec![])]);
    let named = |name: &str, node: &str, policies: &[&str]| {
        let authorization_policies = policies.iter().map(|key| key.parse().unwrap()).collect();
        let workload = pod(name, &[]).with(|w| {
            w.node = node.into();
            w.authorization_policies = authorization_policies;
        });
        Update::Workload(Arc::new(workload))
    };
    state.apply(named("a", "n1", &["ns/known", "ns/x"]));
    state.apply(named("b", "n1", &["ns/y", "ns/x"]));
    state.apply(named("c", "n2", &["ns/z"]));
    let missing: Vec<String> = state.missing_policies("n1").map(|(uid, key)| format!("{uid} {key}")).collect();
    let pod = "Kubernetes//Pod/ns";
    assert_eq!(missing, [format!("{pod}/a ns/x"), format!("{pod}/b ns/y"), format!("{pod}/b ns/x")]);
}
