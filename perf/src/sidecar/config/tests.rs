use super::*;

fn of(kind: SidecarKind) -> Value {
    let identities = ["spiffe://cluster.local/ns/bench/sa/client", "spiffe://cluster.local/ns/bench/sa/server"];
    let identities = identities.map(str::to_owned);
    let peers = [Ipv4Addr::new(198, 18, 17, 2), Ipv4Addr::new(198, 18, 18, 2)];
    bootstrap(&Surroundings { kind, folder: Path::new("/pod"), identities: &identities, peers: &peers })
}

fn at<'a>(value: &'a Value, pointer: &str) -> &'a Value {
    value.pointer(pointer).unwrap_or_else(|| panic!("nothing at {pointer}"))
}

const OUTBOUND_TLS: &str = "/static_resources/clusters/0/transport_socket/typed_config";
const INBOUND_CHAIN: &str = "/static_resources/listeners/1/filter_chains/0";

#[test]
fn both_sides_speak_tls_1_3_and_name_whom_they_accept() {
    for kind in [SidecarKind::Tcp, SidecarKind::Http] {
        let config = of(kind);
        let server = format!("{INBOUND_CHAIN}/transport_socket/typed_config");
        assert_eq!(at(&config, &format!("{server}/require_client_certificate")), true);
        for side in [OUTBOUND_TLS, &server] {
            let params = at(&config, &format!("{side}/common_tls_context/tls_params"));
            assert_eq!(params["tls_minimum_protocol_version"], "TLSv1_3");
            let files = at(&config, &format!("{side}/common_tls_context/tls_certificates/0"));
            assert_eq!(files["certificate_chain"]["filename"], "/pod/cert.pem");
        }
        let names = "common_tls_context/validation_context/match_typed_subject_alt_names";
        let expected = json!({
            "san_type": "URI",
            "matcher": { "exact": "spiffe://cluster.local/ns/bench/sa/server" },
        });
        assert_eq!(*at(&config, &format!("{OUTBOUND_TLS}/{names}/1")), expected);
        assert_eq!(at(&config, &format!("{server}/{names}/0/matcher/prefix")), "spiffe://cluster.local/");
    }
}

#[test]
fn what_the_client_offers_is_what_the_server_accepts() {
    for (kind, protocol) in [(SidecarKind::Tcp, "istio-peer-exchange"), (SidecarKind::Http, "istio-http/1.1")] {
        let config = of(kind);
        assert_eq!(at(&config, &format!("{OUTBOUND_TLS}/common_tls_context/alpn_protocols/0")), protocol);
        let accepted = at(&config, &format!("{INBOUND_CHAIN}/filter_chain_match"));
        assert_eq!(accepted["application_protocols"][0], protocol);
        assert_eq!(accepted["transport_protocol"], "tls");
    }
}

#[test]
fn connections_go_where_they_went_and_to_the_application_from_their_own_address() {
    let config = of(SidecarKind::Tcp);
    let clusters = at(&config, "/static_resources/clusters").as_array().unwrap();
    assert!(clusters.iter().all(|cluster| cluster["type"] == "ORIGINAL_DST"));
    assert!(
        clusters.iter().all(|cluster| cluster["circuit_breakers"]["thresholds"][0]["max_connections"] == UNLIMITED)
    );
    assert_eq!(at(&config, "/static_resources/clusters/1/upstream_bind_config/source_address/address"), "127.0.0.6");
    let ranges = at(&config, "/static_resources/listeners/0/filter_chains/0/filter_chain_match/prefix_ranges");
    let prefixes: Vec<&Value> = ranges.as_array().unwrap().iter().map(|range| &range["address_prefix"]).collect();
    assert_eq!(prefixes, ["198.18.17.2", "198.18.18.2", "198.19.0.0"]);
}

#[test]
fn bytes_are_proxied_as_bytes_and_http_as_http_without_access_log_or_own_buffers() {
    for (kind, expected) in [
        (SidecarKind::Tcp, "envoy.filters.network.tcp_proxy"),
        (SidecarKind::Http, "envoy.filters.network.http_connection_manager"),
    ] {
        let config = of(kind);
        for listener in 0..2 {
            let filter = format!("/static_resources/listeners/{listener}/filter_chains/0/filters/0/name");
            assert_eq!(at(&config, &filter), expected);
        }
        let text = config.to_string();
        assert!(!text.contains("access_log"));
        assert!(!text.contains("per_connection_buffer_limit_bytes"));
    }
}
