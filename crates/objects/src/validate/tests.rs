use std::path::Path;

use super::labels;
use crate::parse::parse_manifest;

/// The first wrong field of a manifest, or "" if it is good.
fn field(kind: &str, rest: &str) -> String {
    let api = match kind {
        "AuthorizationPolicy" | "PeerAuthentication" => "security.istio.io/v1",
        "RequestAuthentication" => "security.istio.io/v1",
        "ServiceEntry" | "WorkloadEntry" | "WorkloadGroup" | "VirtualService" | "DestinationRule" => {
            "networking.istio.io/v1"
        }
        "Telemetry" => "telemetry.istio.io/v1",
        "EndpointSlice" => "discovery.k8s.io/v1",
        "NetworkPolicy" => "networking.k8s.io/v1",
        _ => "v1",
    };
    let text = format!("apiVersion: {api}\nkind: {kind}\nmetadata: {{name: a}}\n{rest}\n");
    parse_manifest(Path::new(""), &text).err().map_or_else(String::new, |error| error.field)
}

#[test]
fn network_policies() {
    let expressions = "spec.podSelector.matchExpressions[0]";
    let cases = [
        ("spec: {}", ""),
        ("spec: {podSelector: {}, policyTypes: [Egress]}", ""),
        ("spec: {podSelector: {matchLabels: {app: 'a b'}}}", "spec.podSelector.matchLabels"),
        ("spec: {podSelector: {matchExpressions: [{key: app, operator: In, values: [a]}]}}", ""),
        ("spec: {podSelector: {matchExpressions: [{key: app, operator: Exists}]}}", ""),
        ("spec: {podSelector: {matchExpressions: [{key: app, operator: In}]}}", &format!("{expressions}.values")),
        (
            "spec: {podSelector: {matchExpressions: [{key: app, operator: Exists, values: [a]}]}}",
            &format!("{expressions}.values"),
        ),
        (
            "spec: {podSelector: {matchExpressions: [{key: app, operator: Equals, values: [a]}]}}",
            &format!("{expressions}.operator"),
        ),
        ("spec: {podSelector: {matchExpressions: [{key: '', operator: Exists}]}}", &format!("{expressions}.key")),
    ];
    for (spec, expect) in cases {
        assert_eq!(field("NetworkPolicy", spec), expect, "{spec}");
    }
}

#[test]
fn authorization_policies() {
    let cases = [
        ("spec: {}", ""),
        ("spec: {rules: [{}]}", ""),
        ("spec: {action: DENY}", ""),
        ("spec: {action: CUSTOM, rules: [{}]}", "spec.provider"),
        ("spec: {provider: {name: x}}", "spec.provider"),
        ("spec: {action: CUSTOM, provider: {name: x}, rules: [{}]}", ""),
        ("spec: {rules: [{from: [{}]}]}", "spec.rules[0].from[0].source"),
        ("spec: {rules: [{from: [{source: {}}]}]}", "spec.rules[0].from[0].source"),
        ("spec: {rules: [{to: [{operation: {}}]}]}", "spec.rules[0].to[0].operation"),
        ("spec: {rules: [{from: [{source: {principals: ['']}}]}]}", "spec.rules[0].from[0].source.principals[0]"),
        ("spec: {rules: [{from: [{source: {ipBlocks: [10.0.0.0/33]}}]}]}", "spec.rules[0].from[0].source.ipBlocks[0]"),
        (
            "spec: {rules: [{from: [{source: {notIpBlocks: [10.0.0.1, '2001:db8::/32', x]}}]}]}",
            "spec.rules[0].from[0].source.notIpBlocks[2]",
        ),
        (
            "spec: {rules: [{from: [{source: {serviceAccounts: [a/b, c, 'a/*']}}]}]}",
            "spec.rules[0].from[0].source.serviceAccounts[2]",
        ),
        (
            "spec: {rules: [{from: [{source: {serviceAccounts: [a], namespaces: [b]}}]}]}",
            "spec.rules[0].from[0].source",
        ),
        ("spec: {rules: [{to: [{operation: {ports: ['80', '0']}}]}]}", "spec.rules[0].to[0].operation.ports[1]"),
        ("spec: {rules: [{when: [{key: nonsense, values: [a]}]}]}", "spec.rules[0].when[0].key"),
        ("spec: {rules: [{when: [{key: source.ip}]}]}", "spec.rules[0].when[0].values"),
        ("spec: {rules: [{when: [{key: source.ip, values: [x]}]}]}", "spec.rules[0].when[0].values[0]"),
        ("spec: {rules: [{when: [{key: destination.port, notValues: [x]}]}]}", "spec.rules[0].when[0].notValues[0]"),
        ("spec: {rules: [{when: [{key: 'request.headers[x]', values: [a]}]}]}", ""),
        ("spec: {selector: {matchLabels: {a: '*'}}}", "spec.selector.matchLabels"),
        ("spec: {selector: {}, targetRefs: [{kind: Gateway, name: a}]}", "spec.targetRefs[0]"),
        ("spec: {targetRef: {kind: Gateway, name: a}, targetRefs: [{kind: Gateway, name: a}]}", "spec.targetRefs"),
        ("spec: {targetRefs: [{kind: Gateway}]}", "spec.targetRefs[0].name"),
        ("spec: {targetRefs: [{kind: Gateway, name: a, namespace: b}]}", "spec.targetRefs[0].namespace"),
    ];
    for (spec, expect) in cases {
        assert_eq!(field("AuthorizationPolicy", spec), expect, "{spec}");
    }
}

#[test]
fn peer_authentications() {
    let cases = [
        ("spec: {}", ""),
        ("spec: {mtls: {mode: STRICT}}", ""),
        ("spec: {portLevelMtls: {80: {mode: STRICT}}}", "spec.portLevelMtls"),
        ("spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {80: {mode: STRICT}}}", ""),
        ("spec: {selector: {matchLabels: {a: b}}, portLevelMtls: {70000: {mode: STRICT}}}", "spec.portLevelMtls.70000"),
        ("spec: {mtls: {mode: MAYBE}}", "spec.mtls.mode"),
        ("spec: {mtls: {modus: STRICT}}", "spec.mtls.modus"),
    ];
    for (spec, expect) in cases {
        assert_eq!(field("PeerAuthentication", spec), expect, "{spec}");
    }
}

#[test]
fn service_and_workload_entries() {
    let port = "ports: [{number: 80, name: http}]";
    let cases = [
        ("ServiceEntry", format!("spec: {{hosts: [a.example], {port}}}"), ""),
        ("ServiceEntry", "spec: {hosts: []}".to_owned(), "spec.hosts"),
        ("ServiceEntry", "spec: {}".to_owned(), "spec.hosts"),
        ("ServiceEntry", "spec: {hosts: ['*']}".to_owned(), "spec.hosts[0]"),
        ("ServiceEntry", "spec: {hosts: [a.example], resolution: SOMEHOW}".to_owned(), "spec.resolution"),
        ("ServiceEntry", "spec: {hosts: [a.example], resolution: DNS, addresses: [10.0.0.0/8]}".to_owned(), "spec"),
        ("ServiceEntry", "spec: {hosts: [a.example], endpoints: [{address: 1.1.1.1}]}".to_owned(), "spec"),
        (
            "ServiceEntry",
            "spec: {hosts: [a.example], resolution: STATIC, endpoints: [{address: 1.1.1.1}]}".to_owned(),
            "",
        ),
        (
            "ServiceEntry",
            "spec: {hosts: [a.example], resolution: STATIC, endpoints: [{ports: {http: 80}}]}".to_owned(),
            "spec.endpoints[0]",
        ),
        (
            "ServiceEntry",
            "spec: {hosts: [a.example], ports: [{number: 80, name: a}, {number: 80, name: b}]}".to_owned(),
            "spec.ports",
        ),
        ("ServiceEntry", "spec: {hosts: [a.example], ports: [{number: 80}]}".to_owned(), "spec.ports[0].name"),
        ("ServiceEntry", "spec: {hosts: [a.example], host: b}".to_owned(), "spec.host"),
        ("ServiceEntry", "spec: {hosts: [a.example]}\nstate: {}".to_owned(), "state"),
        ("WorkloadEntry", "spec: {address: 1.1.1.1, ports: {http: 80}, weight: 3}".to_owned(), ""),
        ("WorkloadEntry", "spec: {address: 'unix:///a', ports: {http: 80}}".to_owned(), "spec"),
        ("WorkloadEntry", "spec: {address: 1.1.1.1, ports: {http: 0}}".to_owned(), "spec.ports.http"),
        ("WorkloadEntry", "spec: {address: 1.1.1.1, ports: {'a/b': 1}}".to_owned(), "spec.ports"),
        ("WorkloadEntry", "spec: {address: 1.1.1.1, weight: -1}".to_owned(), "spec.weight"),
        ("WorkloadGroup", "spec: {template: {serviceAccount: a}, probe: {httpGet: {port: 80}}}".to_owned(), ""),
        ("WorkloadGroup", "spec: {}".to_owned(), "spec.template"),
    ];
    for (kind, spec, expect) in cases {
        assert_eq!(field(kind, &spec), expect, "{kind} {spec}");
    }
}

#[test]
fn kinds_of_the_waypoint() {
    let cases = [
        ("VirtualService", "spec: {hosts: [a], http: [{route: [{destination: {host: a}}], timeout: 5s}]}", ""),
        ("VirtualService", "spec: {http: [{timeout: 5}]}", "spec.http[0].timeout"),
        ("VirtualService", "spec: {http: [{timeout: 5 s}]}", "spec.http[0].timeout"),
        ("VirtualService", "spec: {http: [{match: [{uri: {exact: /a, prefix: /b}}]}]}", "spec.http[0].match[0].uri"),
        ("VirtualService", "spec: {http: [{match: [{uri: {glob: /a}}]}]}", "spec.http[0].match[0].uri.glob"),
        ("VirtualService", "spec: {http: [{mirror_percent: 5, name: null}]}", ""),
        ("DestinationRule", "spec: {host: a, trafficPolicy: {loadBalancer: {simple: LEAST_CONN}}}", ""),
        (
            "DestinationRule",
            "spec: {host: a, trafficPolicy: {outlierDetection: {consecutiveErrors: 3, baseEjectionTime: 1m}}}",
            "",
        ),
        ("DestinationRule", "spec: {subsets: []}", "spec.host"),
        ("RequestAuthentication", "spec: {jwtRules: [{issuer: a, jwksUri: 'https://a/k'}]}", ""),
        ("RequestAuthentication", "spec: {jwtRules: [{issuer: a, jwksUri: 'ftp://a/k'}]}", "spec.jwtRules[0].jwksUri"),
        ("RequestAuthentication", "spec: {jwtRules: [{issuer: a, jwks: a, jwksUri: 'https://a'}]}", "spec.jwtRules[0]"),
        ("Telemetry", "spec: {tracing: [{randomSamplingPercentage: 100.0}]}", ""),
        ("Telemetry", "spec: {tracing: [{randomSamplingPercentage: 101}]}", "spec.tracing[0].randomSamplingPercentage"),
    ];
    for (kind, spec, expect) in cases {
        assert_eq!(field(kind, spec), expect, "{kind} {spec}");
    }
}

#[test]
fn built_in_kinds() {
    let cases = [
        ("Service", "spec: {ports: [{port: 0}]}", "spec.ports[0].port"),
        ("Service", "spec: {ports: [{port: 1}, {port: 2, name: b}]}", "spec.ports[0].name"),
        ("Service", "spec: {ports: [{port: 1, name: b}, {port: 2, name: b}]}", "spec.ports[1].name"),
        ("Service", "spec: {clusterIP: None, ports: [{port: 1, targetPort: web}]}", ""),
        ("Service", "spec: {clusterIP: 1.2.3}", "spec.clusterIP"),
        ("Service", "spec: {clusterIPs: [1.2.3.4, x]}", "spec.clusterIPs[1]"),
        ("Pod", "status: {podIPs: [{ip: 10.0.0.1}, {ip: x}]}", "status.podIPs[1].ip"),
        (
            "Pod",
            "spec: {containers: [{name: a, ports: [{containerPort: 99999}]}]}",
            "spec.containers[0].ports[0].containerPort",
        ),
        ("EndpointSlice", "addressType: IPv4\nendpoints: [{addresses: [x]}]", "endpoints[0].addresses[0]"),
    ];
    for (kind, rest, expect) in cases {
        assert_eq!(field(kind, rest), expect, "{kind} {rest}");
    }
}

#[test]
fn names() {
    let long = "a".repeat(64);
    let cases = [
        ("Namespace", &["shop", "a-1", "1a"][..], &["Upper", "a_b", "-a", "a.", "a.b", "", &long][..]),
        ("Service", &["web", "a-1"], &["1a", "a.b", "a-", &long]),
        ("ServiceAccount", &["a.b-c", "1", &long], &["a..b", ".a", "a.-b", "a b", "Ä"]),
    ];
    for (kind, good, bad) in cases {
        for (names, expect) in [(good, true), (bad, false)] {
            for name in names {
                let text = format!("apiVersion: v1\nkind: {kind}\nmetadata: {{name: \"{name}\"}}\n");
                assert_eq!(parse_manifest(Path::new(""), &text).is_ok(), expect, "{kind} {name:?}");
            }
        }
    }
}

#[test]
fn labels_and_annotations() {
    let long = "a".repeat(64);
    let good = [("app", "web"), ("istio.io/dataplane-mode", "ambient"), ("A_b.c-1", ""), ("x", "1.2_3-B")];
    assert_eq!(labels("metadata.labels", good), []);
    let bad = [
        ("bad key!", "b"),
        ("", "b"),
        ("-a", "b"),
        ("a/b/c", "d"),
        ("Upper.io/a", "b"),
        ("/a", "b"),
        ("a/", "b"),
        (long.as_str(), "b"),
        ("a", "b c"),
        ("a", "-b"),
        ("a", "b."),
        ("a", long.as_str()),
    ];
    for (key, value) in bad {
        let errors = labels("metadata.labels", [(key, value)]);
        assert_eq!(errors.len(), 1, "{key:?} {value:?}");
        assert!(errors[0].to_string().starts_with("metadata.labels: the "), "{}", errors[0]);
    }
    let template = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: a, annotations: {Example.COM/A: '! any ?'}}\nspec:\n  \
                    selector: {matchLabels: {app: a}}\n  template:\n    metadata: {labels: {app: 'a b'}}\n    spec: {containers: []}\n";
    let error = parse_manifest(Path::new(""), template).unwrap_err();
    assert_eq!((error.line, error.field.as_str()), (7, "spec.template.metadata.labels"));
    let annotated = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a, annotations: {a b: x}}\n";
    assert_eq!(parse_manifest(Path::new(""), annotated).unwrap_err().field, "metadata.annotations");
    let selector = "apiVersion: v1\nkind: Service\nmetadata: {name: a}\nspec: {selector: {app!: a}}\n";
    assert_eq!(parse_manifest(Path::new(""), selector).unwrap_err().field, "spec.selector");
}
