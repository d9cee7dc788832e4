use aquifer_runtime::env::{Asked, ConfigErrors, MapEnv};

use super::read::{DEFAULT_ROOT, DEFAULT_TOKEN};
use super::*;
use crate::socket::Keepalive;

/// Variables, the xDS address, the CA's.
type Addresses<'a> = (&'a [(&'a str, &'a str)], &'a str, Option<&'a str>);

fn around() -> Surroundings {
    Surroundings { mesh_file: None, cpus: 16, file_exists: |_| false }
}

fn read(vars: &[(&str, &str)]) -> Config {
    try_read(vars, &around()).unwrap()
}

fn try_read(vars: &[(&str, &str)], around: &Surroundings) -> Result<Config, ConfigErrors> {
    let env: MapEnv = [("NODE_NAME", "node1")].iter().chain(vars).copied().collect();
    Config::read(&env, around)
}

#[test]
fn every_variable_is_told_of() {
    let asked = Asked::default();
    let _ = Config::read(&asked, &around());
    let silent = asked.untold(SETTINGS);
    assert!(silent.is_empty(), "`ztunnel --help` does not say what these do: {silent:?}");
}

#[test]
fn defaults_are_istios() {
    let config = read(&[]);
    assert_eq!(config.xds.address, "https://localhost:15012");
    assert_eq!(config.xds.root, RootCert::File(DEFAULT_ROOT.into()));
    assert_eq!(config.xds.token, Token::None);
    let ca = config.ca.unwrap();
    assert_eq!((ca.address.as_str(), ca.ttl), ("https://localhost:15012", Duration::from_secs(86400)));
    assert_eq!(config.inpod_uds.to_str(), Some("/var/run/ztunnel/ztunnel.sock"));
    assert_eq!((config.ports.admin, config.ports.stats, config.ports.readiness), (15000, 15020, 15021));
    assert_eq!(config.node.cluster_id, "Kubernetes");
    assert_eq!(config.node.trust_domain, "cluster.local");
    assert_eq!(config.proxy.tcp.mark, Some(1337));
    assert_eq!(
        config.proxy.tcp.keepalive,
        Some(Keepalive { time: Duration::from_secs(180), interval: Duration::from_secs(180), retries: 9 })
    );
    assert_eq!(config.proxy.original_source, OriginalSource::Auto);
    assert!(config.proxy.reuse_port && config.proxy.ipv6 && config.proxy.response_baggage);
    assert_eq!((config.proxy.pool_max_streams, config.proxy.pool_spare), (100, 3));
    assert_eq!(config.proxy.pool_idle, Duration::from_secs(300));
    assert_eq!(config.termination_deadline, Duration::from_secs(5));
}

#[test]
fn all_errors_come_at_once() {
    let env: MapEnv = [
        ("KEEPALIVE_TIME", "soon"),
        ("KEEPALIVE_RETRIES", "-1"),
        ("IPV6_ENABLED", "maybe"),
        ("SECRET_TTL", "0"),
        ("XDS_ADDRESS", "http://istiod"),
        ("CA_ADDRESS", "https://"),
        ("ISTIO_METAJSON_X", "{"),
        ("INSTANCE_IP", "here"),
        ("ZTUNNEL_WORKER_THREADS", "some"),
        ("XDS_HEADER_a b", "x"),
        ("PROXY_CONFIG", "concurrency: many"),
        ("LOG_FORMAT", "xml"),
        ("FAKE_CA", "perhaps"),
        ("LOCAL_XDS", "workloads: []"),
        ("ENABLE_ORIG_SRC", "perhaps"),
    ]
    .into_iter()
    .collect();
    let errors = Config::read(&env, &around()).unwrap_err();
    let mut keys: Vec<&str> = errors.0.iter().map(|e| e.key.as_str()).collect();
    keys.sort_unstable();
    assert_eq!(
        keys,
        [
            "CA_ADDRESS",
            "ENABLE_ORIG_SRC",
            "FAKE_CA",
            "INSTANCE_IP",
            "IPV6_ENABLED",
            "ISTIO_METAJSON_X",
            "KEEPALIVE_RETRIES",
            "KEEPALIVE_TIME",
            "LOCAL_XDS",
            "LOG_FORMAT",
            "NODE_NAME",
            "PROXY_CONFIG",
            "SECRET_TTL",
            "XDS_ADDRESS",
            "XDS_HEADER_a b",
            "ZTUNNEL_WORKER_THREADS",
        ]
    );
}

#[test]
fn addresses() {
    let table: &[Addresses<'_>] = &[
        (&[], "https://localhost:15012", Some("https://localhost:15012")),
        (
            &[("KUBERNETES_SERVICE_HOST", "10.0.0.1")],
            "https://istiod.istio-system.svc:15012",
            Some("https://istiod.istio-system.svc:15012"),
        ),
        (
            &[("PROXY_CONFIG", "discoveryAddress: istiod.other:15012")],
            "https://istiod.other:15012",
            Some("https://istiod.other:15012"),
        ),
        (
            &[("PROXY_CONFIG", "discoveryAddress: a:1"), ("XDS_ADDRESS", "b:2"), ("CA_ADDRESS", "c:3")],
            "https://b:2",
            Some("https://c:3"),
        ),
        (&[("CA_ADDRESS", "")], "https://localhost:15012", None),
        (&[("CA_ADDRESS", "http://127.0.0.1:15010")], "https://localhost:15012", Some("http://127.0.0.1:15010")),
    ];
    for (vars, xds, ca) in table {
        let config = read(vars);
        assert_eq!(config.xds.address, *xds, "{vars:?}");
        assert_eq!(config.ca.as_ref().map(|ca| ca.address.as_str()), *ca, "{vars:?}");
    }
}

#[test]
fn threads() {
    let table: &[(&[(&str, &str)], usize)] = &[
        (&[], 4),
        (&[("ZTUNNEL_WORKER_THREADS", "1")], 1),
        (&[("ZTUNNEL_WORKER_THREADS", "50%")], 8),
        (&[("ZTUNNEL_WORKER_THREADS", "1%")], 1),
        (&[("ZTUNNEL_WORKER_THREADS", "12.5%")], 2),
        (&[("ZTUNNEL_WORKER_THREADS", "100%")], 16),
        (&[("ZTUNNEL_WORKER_THREADS", "50%"), ("ZTUNNEL_CPU_LIMIT", "2500m")], 2),
        (&[("ZTUNNEL_WORKER_THREADS", "")], 4),
        (&[("ZTUNNEL_CPU_LIMIT", "2")], 2),
        (&[("ZTUNNEL_RESOURCE_CPU_LIMIT", "32")], 8),
        (&[("ZTUNNEL_CPU_LIMIT", "4"), ("ZTUNNEL_RESOURCE_CPU_LIMIT", "32")], 2),
        (&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "6")], 6),
        (&[("ZTUNNEL_RESOURCE_CPU_REQUEST", "2500m")], 4),
        (&[("PROXY_CONFIG", "concurrency: 3")], 3),
        (&[("PROXY_CONFIG", "concurrency: 0")], 4),
        (&[("PROXY_CONFIG", "concurrency: 3"), ("ZTUNNEL_WORKER_THREADS", "5")], 5),
    ];
    for (vars, expect) in table {
        assert_eq!(read(vars).workers, *expect, "{vars:?}");
    }
    for wrong in ["0", "-1", "two", "1.5", "0%", "101%", "-5%", "%", "NaN%", "inf%", "18446744073709551615%"] {
        let errors = try_read(&[("ZTUNNEL_WORKER_THREADS", wrong)], &around()).unwrap_err();
        let [error] = &errors.0[..] else { panic!("{errors}") };
        assert!(error.key == "ZTUNNEL_WORKER_THREADS" && error.message.contains("\"50%\""), "{errors}");
    }
    let two_cpus = Surroundings { cpus: 2, ..around() };
    assert_eq!(try_read(&[], &two_cpus).unwrap().workers, 2);
}

#[test]
fn deadlines() {
    let table: &[(&[(&str, &str)], u64)] = &[
        (&[], 5),
        (&[("TERMINATION_GRACE_PERIOD_SECONDS", "30")], 25),
        (&[("TERMINATION_GRACE_PERIOD_SECONDS", "10")], 9),
        (&[("TERMINATION_GRACE_PERIOD_SECONDS", "1")], 1),
        (&[("TERMINATION_GRACE_PERIOD_SECONDS", "0")], 1),
        (&[("TERMINATION_GRACE_PERIOD_SECONDS", "30"), ("CONNECTION_TERMINATION_DEADLINE", "2m")], 120),
    ];
    for (vars, seconds) in table {
        assert_eq!(read(vars).termination_deadline, Duration::from_secs(*seconds), "{vars:?}");
    }
}

#[test]
fn token_and_roots() {
    let present = Surroundings { file_exists: |_| true, ..around() };
    assert_eq!(try_read(&[], &present).unwrap().xds.token, Token::File(DEFAULT_TOKEN.into()));
    let table = [
        ("/var/run/token", Token::File("/var/run/token".into())),
        ("eyJh.bGci.Oi", Token::Literal("eyJh.bGci.Oi".into())),
        ("", Token::None),
    ];
    for (text, expect) in table {
        assert_eq!(read(&[("AUTH_TOKEN", text)]).xds.token, expect);
    }
    let pem = "-----BEGIN CERTIFICATE-----\n";
    let table = [
        (pem, RootCert::Pem(pem.into())),
        ("/a/b.pem", RootCert::File("/a/b.pem".into())),
        ("SYSTEM", RootCert::System),
    ];
    for (text, expect) in table {
        assert_eq!(read(&[("XDS_ROOT_CA", text)]).xds.root, expect);
        assert_eq!(read(&[("CA_ROOT_CA", text)]).ca.unwrap().root, expect);
    }
}

#[test]
fn metadata_and_own_pod() {
    let config = read(&[
        ("ISTIO_META_CLUSTER_ID", "west"),
        ("CLUSTER_ID", "east"),
        ("ISTIO_META_ISTIO_VERSION", "1.2.3"),
        ("ISTIO_METAJSON_LABELS", r#"{"a":"b"}"#),
        ("PROXY_CONFIG", "proxyMetadata: {ISTIO_META_ENABLE_HBONE: 'true', OTHER: x}"),
        ("POD_NAME", "ztunnel-x"),
        ("POD_NAMESPACE", "istio-system"),
        ("SERVICE_ACCOUNT", "ztunnel"),
        ("TRUST_DOMAIN", "td"),
        ("XDS_HEADER_X-Team", "mesh"),
    ]);
    assert_eq!(config.node.cluster_id, "west");
    assert_eq!(config.node.istio_version.as_deref(), Some("1.2.3"));
    assert_eq!(config.node.identity().unwrap().to_string(), "spiffe://td/ns/istio-system/sa/ztunnel");
    let metadata = serde_json::to_value(&config.node.metadata).unwrap();
    let expect = serde_json::json!({
        "CLUSTER_ID": "west", "ISTIO_VERSION": "1.2.3", "LABELS": {"a": "b"}, "ENABLE_HBONE": "true", "OTHER": "x"
    });
    assert_eq!(metadata, expect);
    assert_eq!(config.xds.headers.get("x-team").map(String::as_str), Some("mesh"));
}

#[test]
fn the_mesh_file_gives_way_to_proxy_config() {
    let around = Surroundings {
        mesh_file: Some(
            "defaultConfig:\n  discoveryAddress: mesh:1\n  statsPort: 15999\n  proxyMetadata: {A: mesh, B: mesh}\n"
                .into(),
        ),
        ..around()
    };
    let config =
        try_read(&[("PROXY_CONFIG", "{discoveryAddress: 'own:2', proxyMetadata: {A: own}}")], &around).unwrap();
    assert_eq!(config.xds.address, "https://own:2");
    assert_eq!(config.ports.stats, 15999);
    assert_eq!(config.node.metadata["A"], "own");
    assert_eq!(config.node.metadata["B"], "mesh");
    let broken = Surroundings { mesh_file: Some("defaultConfig: [".into()), ..around };
    assert_eq!(try_read(&[], &broken).unwrap_err().0[0].key, MESH_FILE);
}

#[test]
fn what_is_not_done_here_is_refused_with_a_remedy_when_it_is_asked_for() {
    read(&[
        ("PROXY_MODE", "Shared"),
        ("PROXY_WORKLOAD_INFO", ""),
        ("UNSTABLE_ENABLE_SOCKS5", "false"),
        ("LOCAL_XDS_PATH", ""),
        ("LOCAL_XDS", ""),
        ("FAKE_CA", "0"),
        ("ENABLE_PROXY", "true"),
        ("INPOD_ENABLED", "true"),
    ]);
    let table = [
        ("PROXY_MODE", "dedicated", "unset it"),
        ("PROXY_WORKLOAD_INFO", "ns/name/sa", "unset both"),
        ("UNSTABLE_ENABLE_SOCKS5", "true", "node agent"),
        ("LOCAL_XDS_PATH", "/a/b.yaml", "XDS_ADDRESS"),
        ("LOCAL_XDS", "workloads: []", "XDS_ADDRESS"),
        ("FAKE_CA", "1", "CA_ADDRESS"),
        ("ENABLE_PROXY", "false", "do not start it"),
        ("INPOD_ENABLED", "false", "node agent"),
    ];
    for (key, value, remedy) in table {
        let errors = try_read(&[(key, value)], &around()).unwrap_err();
        let [error] = &errors.0[..] else { panic!("{errors}") };
        assert!(error.key == key && error.message.contains(remedy), "{errors}");
    }
}

#[test]
fn sizes_have_limits() {
    let table = [
        ("HTTP2_STREAM_WINDOW_SIZE", ["16383", "2147483648", "-1", "4Mi"], "16384"),
        ("HTTP2_CONNECTION_WINDOW_SIZE", ["65534", "2147483648", "-1", "x"], "2147483647"),
        ("HTTP2_FRAME_SIZE", ["16383", "16777216", "0", "1 MiB"], "16777215"),
        ("HTTP2_POD_WINDOW_SIZE", ["0", "65535", "-1", "x"], "65536"),
        ("POOL_MAX_STREAMS_PER_CONNECTION", ["0", "-1", "x", "1.5"], "1"),
    ];
    for (key, bad, good) in table {
        for value in bad {
            let errors = try_read(&[(key, value)], &around()).unwrap_err();
            assert!(errors.0.len() == 1 && errors.0[0].key == key, "{key}={value}: {errors}");
        }
        read(&[(key, good), ("ISTIO_META_X", "")]);
    }
    let proxy = read(&[("HTTP2_STREAM_WINDOW_SIZE", ""), ("HTTP2_FRAME_SIZE", "32768")]).proxy;
    assert_eq!((proxy.stream_window, proxy.frame_size), (None, 32768));
}

#[test]
fn the_dns_proxy_is_on_unless_told_otherwise() {
    let check = |vars: &[(&str, &str)], expected: Option<Listen>| assert_eq!(read(vars).dns, expected, "{vars:?}");
    let (capture, address) = ("ISTIO_META_DNS_CAPTURE", "ISTIO_META_DNS_PROXY_ADDR");
    let usual = Some(Listen::Localhost { port: 15053, ipv6: true });
    check(&[], usual);
    check(&[(capture, "true")], usual);
    check(&[(capture, "TRUE"), (address, "")], usual);
    check(&[(capture, "false")], None);
    check(&[(capture, "perhaps")], None);
    let of_the_mesh = ("PROXY_CONFIG", "proxyMetadata: {ISTIO_META_DNS_CAPTURE: 'false'}");
    check(&[of_the_mesh], None);
    check(&[of_the_mesh, (capture, "true")], usual);
    let elsewhere = ("PROXY_CONFIG", "proxyMetadata: {ISTIO_META_DNS_PROXY_ADDR: 'localhost:53'}");
    check(&[elsewhere], Some(Listen::Localhost { port: 53, ipv6: true }));
    check(&[("IPV6_ENABLED", "false")], Some(Listen::Localhost { port: 15053, ipv6: false }));
    check(&[(address, "localhost:53")], Some(Listen::Localhost { port: 53, ipv6: true }));
    check(&[(address, "127.0.0.2:5353")], Some(Listen::Address(SocketAddr::from(([127, 0, 0, 2], 5353)))));
    for wrong in ["localhost", "localhost:x", "dns:53", "127.0.0.1"] {
        let errors = try_read(&[(address, wrong)], &around()).unwrap_err().to_string();
        assert!(errors.contains(address), "{errors}");
    }
}

#[test]
fn tls_settings_name_what_may_be_spoken_and_who_is_revoked() {
    let tls = |vars: &[(&str, &str)]| read(vars).tls;
    assert_eq!(tls(&[]), Tls { policy: TlsPolicy::Tls13, crl: None });
    assert_eq!(tls(&[("COMPLIANCE_POLICY", "pqc")]).policy, TlsPolicy::PostQuantum);
    assert_eq!(tls(&[("TLS12_ENABLED", "true"), ("COMPLIANCE_POLICY", "")]).policy, TlsPolicy::Tls12);
    let crl = "/var/run/secrets/istio/crl/ca-crl.pem";
    assert_eq!(tls(&[("CRL_PATH", crl), ("TLS12_ENABLED", "false")]).crl, Some(crl.into()));

    let error = |vars: &[(&str, &str)]| try_read(vars, &around()).unwrap_err().to_string();
    let unknown = error(&[("COMPLIANCE_POLICY", "fips-140-2")]);
    assert!(unknown.contains("COMPLIANCE_POLICY") && unknown.contains("\"fips-140-2\""), "{unknown}");
    let both = error(&[("COMPLIANCE_POLICY", "pqc"), ("TLS12_ENABLED", "true")]);
    assert!(both.contains("TLS12_ENABLED") && both.contains("TLS 1.3"), "{both}");
}

#[test]
fn unknown_policies_tunnels_and_discovery_have_settings() {
    let config = read(&[]);
    let grace::Settings { wait, skip } = config.proxy.unknown_policies;
    assert_eq!((wait, skip), (Duration::from_secs(2), false));
    assert!(config.proxy.localhost_app_tunnel && config.proxy.same_node && !config.xds.on_demand);
    let config = read(&[
        ("AUTHZ_POLICY_GRACE", "500ms"),
        ("AUTHZ_UNKNOWN_POLICY", "skip"),
        ("LOCALHOST_APP_TUNNEL", "false"),
        ("SAME_NODE_FAST_PATH", "false"),
        ("XDS_ON_DEMAND", "true"),
        ("ISTIO_META_DNS_CAPTURE", "false"),
    ]);
    let grace::Settings { wait, skip } = config.proxy.unknown_policies;
    assert_eq!((wait, skip), (Duration::from_millis(500), true));
    assert!(!config.proxy.localhost_app_tunnel && !config.proxy.same_node && config.xds.on_demand);
    for (vars, expected) in [
        (("AUTHZ_UNKNOWN_POLICY", "allow"), "neither deny nor skip"),
        // The DNS proxy is on by default.
        (("XDS_ON_DEMAND", "true"), "ISTIO_META_DNS_CAPTURE=false"),
    ] {
        let errors = try_read(&[vars], &around()).unwrap_err().to_string();
        assert!(errors.contains(vars.0) && errors.contains(expected), "{errors}");
    }
}

#[test]
fn what_no_socket_header_or_certificate_would_take_is_refused_at_start() {
    let table = [
        ("KEEPALIVE_TIME", ["0", "500ms", "32768s", "1000h"], "32767s"),
        ("KEEPALIVE_INTERVAL", ["0", "999us", "9h6m8s", "x"], "1s"),
        ("KEEPALIVE_RETRIES", ["0", "128", "-1", "x"], "127"),
        ("ALT_XDS_HOSTNAME", ["a b", "https://istiod", "istiod:15012", "-"], "istiod.other"),
        ("ALT_CA_HOSTNAME", ["a b", "https://istiod", "istiod:15012", "-"], "10.0.0.1"),
        ("TRUST_DOMAIN", ["a/b", "spiffe://td", "td ", "t\u{e4}"], "My_td-1.example"),
        ("CLUSTER_ID", ["a\nb", "\r", "a\u{7f}", "a\0"], "arn:aws:eks/west"),
    ];
    for (key, bad, good) in table {
        for value in bad {
            let errors = try_read(&[(key, value)], &around()).unwrap_err();
            assert!(errors.0.len() == 1 && errors.0[0].key == key, "{key}={value}: {errors}");
        }
        read(&[(key, good)]);
    }
    // Nobody looks at what is switched off.
    read(&[("KEEPALIVE_ENABLED", "false"), ("KEEPALIVE_TIME", "0")]);
    let long = [("KEEPALIVE_INTERVAL", "32767s"), ("KEEPALIVE_RETRIES", "127")];
    read(&long);
    let errors = try_read(&[long[0], long[1], ("USER_TIMEOUT_ENABLED", "true")], &around()).unwrap_err();
    assert!(errors.0.len() == 1 && errors.0[0].key == "USER_TIMEOUT_ENABLED", "{errors}");
}

#[test]
fn what_is_empty_reads_as_unset() {
    let config = read(&[
        ("CLUSTER_ID", ""),
        ("CLUSTER_DOMAIN", ""),
        ("TRUST_DOMAIN", ""),
        ("INPOD_UDS", ""),
        ("ISTIO_METAJSON_LABELS", ""),
        ("PROXY_CONFIG", "discoveryAddress: ''"),
    ]);
    assert_eq!((&*config.node.cluster_id, &*config.node.cluster_domain), ("Kubernetes", "cluster.local"));
    assert_eq!((&*config.node.trust_domain, &*config.proxy.trust_domain), ("cluster.local", "cluster.local"));
    assert_eq!(config.inpod_uds, std::path::Path::new("/var/run/ztunnel/ztunnel.sock"));
    assert_eq!(config.xds.address, "https://localhost:15012");
    for mesh in ["", "defaultConfig:\n", "trustDomain: td\n"] {
        let around = Surroundings { mesh_file: Some(mesh.into()), ..around() };
        assert_eq!(try_read(&[], &around).unwrap().xds.address, "https://localhost:15012", "{mesh:?}");
    }
}
