use super::*;

fn good(yaml: &str) -> (MeshConfig, Vec<String>) {
    let (config, no_effect) = parse(yaml).unwrap_or_else(|error| panic!("{error}\n{yaml}"));
    (config, no_effect.iter().map(ToString::to_string).collect())
}

#[test]
fn every_field_that_is_read() {
    let yaml = r#"
rootNamespace: mesh
trustDomain: example.org
trustDomainAliases: [old.example.org, cluster.local]
accessLogFile: /dev/stdout
discoverySelectors:
- matchLabels: {mesh: "yes"}
- matchExpressions: [{key: team, operator: In, values: [a, b]}]
outboundTrafficPolicy: {mode: ALLOW_ANY}
defaultProviders: {tracing: [otel], metrics: [prometheus], accessLogging: [file]}
defaultConfig:
  concurrency: 2
  proxyMetadata: {A_B: c}
  terminationDrainDuration: 7s
  tracing: {sampling: 12.5}
serviceEntryVisibility:
  defaultVisibility: NAMESPACE
  policies:
  - visibility: PUBLIC
    matchingRules: [{namespaceSelector: {matchLabels: {shared: "true"}}}]
extensionProviders:
- name: otel
  opentelemetry:
    service: otel.obs.svc.cluster.local
    port: 4317
    maxTagLength: 100
    grpc: {timeout: 2s, initialMetadata: [{name: x-token, envName: TOKEN}]}
    resourceDetectors: {environment: {}}
- name: zip
  zipkin: {service: zipkin.obs, port: 9411, path: /api, enable64bitTraceId: true, headers: [{name: a, value: b}]}
- name: lines
  envoyOtelAls: {service: otel.obs, port: 4317, logName: l, logFormat: {labels: {m: "%REQ(:METHOD)%"}}}
- name: file
  envoyFileAccessLog: {path: /dev/stdout, logFormat: {text: "%REQ(:METHOD)%\n"}, omitEmptyValues: true}
- name: prometheus
  prometheus: {}
"#;
    let (config, no_effect) = good(yaml);
    assert!(no_effect.iter().all(|line| line.contains("yet")), "nothing is unknown: {no_effect:#?}");
    assert_eq!(config.root_namespace.as_deref(), Some("mesh"));
    assert_eq!(config.trust_domain.as_deref(), Some("example.org"));
    assert_eq!(config.trust_domain_aliases, ["old.example.org", "cluster.local"]);
    assert_eq!(config.access_log_file.as_deref(), Some("/dev/stdout"));
    assert_eq!(config.discovery_selectors[1].match_expressions[0].values, ["a", "b"]);
    assert_eq!(config.outbound_traffic_policy.as_ref().unwrap().mode, OutboundMode::AllowAny);
    assert_eq!(config.default_providers.as_ref().unwrap().access_logging, ["file"]);
    let proxies = config.default_config.as_ref().unwrap();
    assert_eq!((proxies.concurrency, proxies.proxy_metadata["A_B"].as_str()), (Some(2), "c"));
    assert_eq!(proxies.tracing.as_ref().unwrap().sampling, Some(12.5));
    let visibility = config.service_entry_visibility.as_ref().unwrap();
    assert_eq!(visibility.default_visibility, Some(Visibility::Namespace));
    assert_eq!(visibility.policies[0].visibility, Visibility::Public);
    let otel = config.extension_providers[0].opentelemetry.as_ref().unwrap();
    assert_eq!((otel.service.as_str(), otel.port), ("otel.obs.svc.cluster.local", 4317));
    assert_eq!(config.extension_providers[1].zipkin.as_ref().unwrap().enable_64bit_trace_id, Some(true));
    assert!(config.extension_providers[4].prometheus.is_some());
    let json = serde_json::to_value(&config).unwrap();
    assert_eq!(serde_json::from_value::<MeshConfig>(json).unwrap(), config);
}

#[test]
fn names_as_in_protobuf_are_read_too() {
    let yaml = "root_namespace: a\ntrust_domain: b\nextension_providers:\n- name: z\n  zipkin: {service: s, port: 1, max_tag_length: 7}\ndefault_config: {proxy_metadata: {A_B: c}}\n";
    let (config, no_effect) = good(yaml);
    assert!(no_effect.iter().all(|line| line.contains("yet")), "nothing is unknown: {no_effect:#?}");
    assert_eq!((config.root_namespace.as_deref(), config.trust_domain.as_deref()), (Some("a"), Some("b")));
    assert_eq!(config.extension_providers[0].zipkin.as_ref().unwrap().max_tag_length, Some(7));
}

#[test]
fn what_has_no_effect_is_named() {
    let cases: &[(&str, &[&str])] = &[
        ("", &[]),
        ("{}", &[]),
        ("trustDomain: ''\nrootNamespace: null\nextensionProviders: []\n", &[]),
        ("connectTimeout: 10s\n", &["connectTimeout has no effect in this mesh"]),
        ("connect_timeout: 10s\n", &["connectTimeout has no effect in this mesh"]),
        ("meshMTLS: {minProtocolVersion: TLSV1_3}\n", &["meshMTLS has no effect in this mesh"]),
        ("trustdomain: a\n", &["trustdomain is not a field of MeshConfig: is it misspelt?"]),
        (
            "extensionProviders:\n- name: a\n  prometheus: {}\n- name: b\n  datadog: {service: x, port: 1}\n",
            &[
                "extensionProviders[0] (a) has no effect yet: it takes effect with waypoints, which do not act on it so far",
                "extensionProviders[1].datadog has no effect in this mesh",
            ],
        ),
        (
            "defaultConfig: {holdApplicationUntilProxyStarts: true, concurrency: 1}\n",
            &[
                "defaultConfig.concurrency has no effect yet: it takes effect with waypoints, which do not act on it so far",
                "defaultConfig.holdApplicationUntilProxyStarts has no effect in this mesh",
            ],
        ),
        (
            "outboundTrafficPolicy: {mode: ALLOW_ANY, tls: {mode: SIMPLE}}\n",
            &["outboundTrafficPolicy.tls has no effect in this mesh"],
        ),
        (
            "ingressService: gw\nenableTracing: true\n",
            &["enableTracing has no effect in this mesh", "ingressService has no effect in this mesh"],
        ),
    ];
    for (yaml, expect) in cases {
        assert_eq!(&good(yaml).1, expect, "{yaml}");
    }
}

/// What is read and acted upon by nobody so far is named as well, each field by itself.
#[test]
fn what_acts_with_waypoints_only_is_named() {
    let yaml = r#"
rootNamespace: mesh
trustDomain: example.org
discoverySelectors: [{matchLabels: {mesh: "yes"}}]
serviceEntryVisibility: {defaultVisibility: NAMESPACE}
accessLogFile: /dev/stdout
defaultProviders: {tracing: [otel], metrics: [prometheus], accessLogging: [file]}
defaultConfig:
  concurrency: 0
  proxyMetadata: {A_B: c}
  terminationDrainDuration: 7s
  tracing: {sampling: 0}
extensionProviders:
- {name: otel, opentelemetry: {service: otel.obs, port: 4317}}
- {name: lines, envoyFileAccessLog: {path: /dev/stdout}}
"#;
    let (_, no_effect) = parse(yaml).unwrap();
    let fields: Vec<&str> = no_effect.iter().map(|one| one.field.as_str()).collect();
    let expect = [
        "accessLogFile",
        "defaultConfig.concurrency",
        "defaultConfig.proxyMetadata",
        "defaultConfig.terminationDrainDuration",
        "defaultConfig.tracing.sampling",
        "defaultProviders.accessLogging",
        "defaultProviders.metrics",
        "defaultProviders.tracing",
        "extensionProviders[0] (otel)",
        "extensionProviders[1] (lines)",
    ];
    assert_eq!(fields, expect);
    let lines: Vec<String> = no_effect.iter().map(ToString::to_string).collect();
    assert!(lines.iter().all(|line| line.contains("takes effect with waypoints")), "{lines:#?}");
    let page = include_str!("../../../../docs/compatibility.md");
    for field in
        ["accessLogFile", "extensionProviders", "defaultProviders", "defaultConfig", "outboundTrafficPolicy.mode"]
    {
        assert!(page.contains(&format!("| `{field}` |")), "docs/compatibility.md has no row of {field}");
    }
}

/// Who believes that egress is closed must hear that it is not.
#[test]
fn a_closed_registry_is_said_to_stay_open() {
    // Left out, the mode is the first of the enumeration.
    for yaml in ["outboundTrafficPolicy: {mode: REGISTRY_ONLY}\n", "outboundTrafficPolicy: {}\n"] {
        let lines = good(yaml).1;
        assert_eq!(lines.len(), 1, "{lines:?}");
        let expect = "outboundTrafficPolicy.mode REGISTRY_ONLY is not enforced: egress stays open";
        assert!(lines[0].starts_with(expect) && lines[0].contains("NetworkPolicies"), "{}", lines[0]);
    }
    assert_eq!(good("outboundTrafficPolicy: {mode: ALLOW_ANY}\n").1, [""; 0], "so it is");
    let lines = good("outboundTrafficPolicy: {mode: ALLOW_ANY_DYNAMIC_DNS}\n").1;
    assert_eq!(
        lines,
        ["outboundTrafficPolicy.mode ALLOW_ANY_DYNAMIC_DNS acts as ALLOW_ANY: names are not looked up as they come"]
    );
}

#[test]
fn errors_name_the_field() {
    let cases = [
        ("a: [\n", "MeshConfig line"),
        ("- a\n", "MeshConfig: is not a list of fields"),
        ("trustDomainAliases: a\n", "MeshConfig trustDomainAliases: invalid type"),
        ("outboundTrafficPolicy: {mode: ANY}\n", "MeshConfig outboundTrafficPolicy.mode: unknown variant `ANY`"),
        (
            "extensionProviders:\n- name: a\n  zipkin: {service: a, port: x}\n",
            "MeshConfig extensionProviders[0].zipkin.port: invalid type",
        ),
    ];
    for (yaml, expect) in cases {
        let error = parse(yaml).expect_err(yaml).to_string();
        assert!(error.starts_with(expect), "{error}\nexpected {expect}");
    }
}

#[test]
fn what_is_no_trust_domain_is_refused_by_name() {
    for good in ["example.org", "td", "a_b-c.9", &"a".repeat(255)] {
        assert!(parse(&format!("trustDomain: {good}\ntrustDomainAliases: [{good}]")).is_ok(), "{good}");
    }
    let long = "a".repeat(256);
    for bad in ["Example.org", "spiffe://example.org", "a/b", "a b", "*", "a:1", "müller.test", &long] {
        for (yaml, field) in [
            (format!("trustDomain: {bad:?}"), "trustDomain"),
            (format!("trust_domain: {bad:?}"), "trustDomain"),
            (format!("trustDomainAliases: [good.test, {bad:?}]"), "trustDomainAliases[1]"),
        ] {
            let error = parse(&yaml).expect_err(&yaml);
            assert_eq!(error.field, field, "{yaml}");
            let said = error.to_string();
            let expect = format!("MeshConfig {field}: {bad:?} is no SPIFFE trust domain: write a name such as");
            assert!(said.starts_with(&expect) && !said.contains('\n'), "{said}");
        }
    }
    assert_eq!(parse("trustDomainAliases: ['']").unwrap_err().field, "trustDomainAliases[0]");
    assert!(parse("trustDomain: ''").is_ok(), "empty is not said");
}

#[test]
fn every_field_of_istio_is_either_read_or_listed() {
    // The number of MeshConfig's fields in Istio 1.31.
    assert_eq!(fields::WITHOUT_EFFECT.len() + 10, 50);
    assert!(fields::WITHOUT_EFFECT.is_sorted());
    let page = include_str!("../../../../docs/compatibility.md");
    for field in fields::WITHOUT_EFFECT {
        assert!(page.contains(&format!("`{field}`")), "docs/compatibility.md doesn't say that {field} has no effect");
    }
}
