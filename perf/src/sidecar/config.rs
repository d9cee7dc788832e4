//! Envoy's configuration for a pod, in the shape that Istio's control plane gives it. Pure.
//!
//! What of Istio's is here and what is not stands in docs/performance.md, "The sidecar baseline".

use std::net::Ipv4Addr;
use std::path::Path;

use serde_json::{Value, json};

use super::redirect::TO_APP;
use super::{ADMIN, INBOUND, OUTBOUND, SidecarKind};

/// The trust domain of the sidecars' identities.
pub(super) const TRUST_DOMAIN: &str = "cluster.local";

/// Where the lab's Services have their addresses.
const SERVICES: (&str, u8) = ("198.19.0.0", 16);

/// "No limit" of a circuit breaker, as Istio writes it into every cluster.
const UNLIMITED: u32 = u32::MAX;

/// What a pod's configuration depends on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Surroundings<'a> {
    pub(super) kind: SidecarKind,
    /// Holds `root.pem`, `cert.pem` and `key.pem`.
    pub(super) folder: &'a Path,
    /// The SPIFFE identities of all pods with sidecars.
    pub(super) identities: &'a [String],
    /// Their addresses.
    pub(super) peers: &'a [Ipv4Addr],
}

/// The whole of it, without a control plane: everything is static.
pub(super) fn bootstrap(around: &Surroundings<'_>) -> Value {
    json!({
        "node": { "id": "sidecar", "cluster": "baseline" },
        "admin": { "address": address(Ipv4Addr::LOCALHOST, ADMIN) },
        "layered_runtime": { "layers": [{
            "name": "static",
            "static_layer": { "overload.global_downstream_max_connections": i32::MAX.to_string() },
        }] },
        "stats_config": { "use_all_default_tags": false, "stats_matcher": { "inclusion_list": stats() } },
        "static_resources": {
            "listeners": [outbound_listener(around), inbound_listener(around)],
            "clusters": [outbound_cluster(around), inbound_cluster(around.kind), passthrough_cluster()],
        },
    })
}

/// What Istio counts by default, and the few counters that the proof of mutual TLS reads. All others are off.
fn stats() -> Value {
    let prefixes = ["reporter=", "cluster_manager", "listener_manager", "server", "component", "istio"];
    let suffixes = ["rbac.allowed", "rbac.denied", "shadow_allowed", "shadow_denied", "downstream_cx_active"];
    let proof = [
        "listener.inbound.ssl.handshake",
        "listener.inbound.ssl.session_reused",
        "listener.inbound.ssl.no_certificate",
        "listener.inbound.ssl.versions.TLSv1.3",
        "listener.inbound.no_filter_chain_match",
        "cluster.outbound.ssl.handshake",
        "cluster.outbound.ssl.versions.TLSv1.3",
        "cluster.outbound.upstream_cx_tx_bytes_total",
        "cluster.inbound.upstream_cx_tx_bytes_total",
        "cluster.passthrough.upstream_cx_total",
    ];
    let patterns: Vec<Value> = prefixes
        .iter()
        .map(|prefix| json!({ "prefix": prefix }))
        .chain(suffixes.iter().map(|suffix| json!({ "suffix": suffix })))
        .chain(proof.iter().map(|name| json!({ "exact": name })))
        .collect();
    json!({ "patterns": patterns })
}

/// Where the application's connections arrive: those to pods with sidecars leave by TLS, all others as they are.
fn outbound_listener(around: &Surroundings<'_>) -> Value {
    let mut ranges: Vec<Value> = around.peers.iter().map(|ip| range(&ip.to_string(), 32)).collect();
    ranges.push(range(SERVICES.0, SERVICES.1));
    let filter = match around.kind {
        SidecarKind::Tcp => tcp_proxy("outbound"),
        SidecarKind::Http => http_manager("outbound"),
    };
    json!({
        "name": "virtualOutbound",
        "stat_prefix": "outbound",
        "address": address(Ipv4Addr::UNSPECIFIED, OUTBOUND),
        "traffic_direction": "OUTBOUND",
        "max_connections_to_accept_per_socket_event": 1,
        "listener_filters": [original_destination()],
        "filter_chains": [{ "filter_chain_match": { "prefix_ranges": ranges }, "filters": [filter] }],
        "default_filter_chain": { "filters": [tcp_proxy("passthrough")] },
    })
}

/// Where the wire's connections arrive: mutual TLS or nothing, which is Istio's STRICT.
fn inbound_listener(around: &Surroundings<'_>) -> Value {
    let (protocols, server_protocols, filter) = match around.kind {
        SidecarKind::Tcp => (TCP_PROTOCOLS, vec!["istio-peer-exchange", "h2", "http/1.1"], tcp_proxy("inbound")),
        SidecarKind::Http => (HTTP_PROTOCOLS, vec!["h2", "http/1.1"], http_manager("inbound")),
    };
    let mut context =
        tls(around.folder, &server_protocols, &[json!({ "prefix": format!("spiffe://{TRUST_DOMAIN}/") })]);
    context["tls_params"]["cipher_suites"] = json!([
        "ECDHE-ECDSA-AES256-GCM-SHA384",
        "ECDHE-RSA-AES256-GCM-SHA384",
        "ECDHE-ECDSA-AES128-GCM-SHA256",
        "ECDHE-RSA-AES128-GCM-SHA256",
        "AES256-GCM-SHA384",
        "AES128-GCM-SHA256",
    ]);
    json!({
        "name": "virtualInbound",
        "stat_prefix": "inbound",
        "address": address(Ipv4Addr::UNSPECIFIED, INBOUND),
        "traffic_direction": "INBOUND",
        "max_connections_to_accept_per_socket_event": 1,
        "listener_filters": [
            original_destination(),
            {
                "name": "envoy.filters.listener.tls_inspector",
                "typed_config": { "@type": type_url("filters.listener.tls_inspector.v3.TlsInspector") },
            },
        ],
        "listener_filters_timeout": "0s",
        "continue_on_listener_filters_timeout": true,
        "filter_chains": [{
            "filter_chain_match": { "transport_protocol": "tls", "application_protocols": protocols },
            "transport_socket": {
                "name": "envoy.transport_sockets.tls",
                "typed_config": {
                    "@type": type_url("transport_sockets.tls.v3.DownstreamTlsContext"),
                    "require_client_certificate": true,
                    "common_tls_context": context,
                },
            },
            "filters": [filter],
        }],
    })
}

/// What a client sidecar offers for bytes, and what a server sidecar knows its like by.
const TCP_PROTOCOLS: &[&str] = &["istio-peer-exchange", "istio"];
/// The same for HTTP. Neither is one that a server negotiates, so HTTP/1.1 and HTTP/2 are told apart by the first bytes.
const HTTP_PROTOCOLS: &[&str] = &["istio-http/1.1", "istio-h2"];

fn outbound_cluster(around: &Surroundings<'_>) -> Value {
    let names: Vec<Value> = around.identities.iter().map(|identity| json!({ "exact": identity })).collect();
    let offered = match around.kind {
        SidecarKind::Tcp => TCP_PROTOCOLS,
        SidecarKind::Http => HTTP_PROTOCOLS,
    };
    let mut cluster = original_destination_cluster("outbound");
    cluster["transport_socket"] = json!({
        "name": "envoy.transport_sockets.tls",
        "typed_config": {
            "@type": type_url("transport_sockets.tls.v3.UpstreamTlsContext"),
            "sni": "outbound_.80_._.server.bench.svc.cluster.local",
            "common_tls_context": tls(around.folder, offered, &names),
        },
    });
    if around.kind == SidecarKind::Http {
        cluster["typed_extension_protocol_options"] = as_the_client();
    }
    cluster
}

fn inbound_cluster(kind: SidecarKind) -> Value {
    let mut cluster = original_destination_cluster("inbound");
    cluster["upstream_bind_config"] = json!({ "source_address": { "address": TO_APP.to_string(), "port_value": 0 } });
    if kind == SidecarKind::Http {
        cluster["typed_extension_protocol_options"] = as_the_client();
    }
    cluster
}

fn passthrough_cluster() -> Value {
    original_destination_cluster("passthrough")
}

fn original_destination_cluster(name: &str) -> Value {
    json!({
        "name": name,
        "type": "ORIGINAL_DST",
        "lb_policy": "CLUSTER_PROVIDED",
        "connect_timeout": "10s",
        "cleanup_interval": "60s",
        "circuit_breakers": { "thresholds": [{
            "max_connections": UNLIMITED,
            "max_pending_requests": UNLIMITED,
            "max_requests": UNLIMITED,
            "max_retries": UNLIMITED,
            "track_remaining": true,
        }] },
    })
}

/// HTTP/2 upstream where the client spoke it, HTTP/1.1 otherwise.
fn as_the_client() -> Value {
    json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": type_url("upstreams.http.v3.HttpProtocolOptions"),
            "use_downstream_protocol_config": {
                "http_protocol_options": {},
                "http2_protocol_options": {},
            },
        },
    })
}

/// TLS 1.3, the pod's own certificate, and whom it accepts.
fn tls(folder: &Path, protocols: &[&str], names: &[Value]) -> Value {
    let file = |name: &str| json!({ "filename": folder.join(name).display().to_string() });
    let names: Vec<Value> = names.iter().map(|name| json!({ "san_type": "URI", "matcher": name })).collect();
    json!({
        "tls_params": { "tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3" },
        "alpn_protocols": protocols,
        "tls_certificates": [{ "certificate_chain": file("cert.pem"), "private_key": file("key.pem") }],
        "validation_context": { "trusted_ca": file("root.pem"), "match_typed_subject_alt_names": names },
    })
}

fn tcp_proxy(cluster: &str) -> Value {
    json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": type_url("filters.network.tcp_proxy.v3.TcpProxy"),
            "stat_prefix": cluster,
            "cluster": cluster,
        },
    })
}

/// Istio's manager of HTTP connections, with those of its filters that Envoy itself has, and no access log.
fn http_manager(cluster: &str) -> Value {
    let filter = |name: &str, message: &str| json!({ "name": name, "typed_config": { "@type": type_url(message) } });
    let mut filters = vec![json!({
        "name": "envoy.filters.http.grpc_stats",
        "typed_config": {
            "@type": type_url("filters.http.grpc_stats.v3.FilterConfig"),
            "emit_filter_state": true,
            "stats_for_all_methods": false,
        },
    })];
    let mut route = json!({ "cluster": cluster, "timeout": "0s" });
    if cluster == "outbound" {
        filters.push(filter("envoy.filters.http.fault", "filters.http.fault.v3.HTTPFault"));
        filters.push(filter("envoy.filters.http.cors", "filters.http.cors.v3.Cors"));
        route["retry_policy"] = json!({
            "retry_on": "connect-failure,refused-stream,unavailable,cancelled,retriable-status-codes",
            "num_retries": 2,
            "host_selection_retry_max_attempts": 5,
        });
        route["max_grpc_timeout"] = json!("0s");
    }
    filters.push(filter("envoy.filters.http.router", "filters.http.router.v3.Router"));
    let mut manager = json!({
        "@type": type_url("filters.network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": cluster,
        "codec_type": "AUTO",
        "server_name": "istio-envoy",
        "use_remote_address": false,
        "normalize_path": true,
        "path_with_escaped_slashes_action": "KEEP_UNCHANGED",
        "stream_idle_timeout": "0s",
        "upgrade_configs": [{ "upgrade_type": "websocket" }],
        "http_filters": filters,
        "route_config": {
            "name": cluster,
            "validate_clusters": false,
            "virtual_hosts": [{
                "name": cluster,
                "domains": ["*"],
                "routes": [{ "match": { "prefix": "/" }, "route": route }],
            }],
        },
    });
    if cluster == "inbound" {
        manager["forward_client_cert_details"] = json!("APPEND_FORWARD");
        manager["set_current_client_cert_details"] = json!({ "subject": true, "dns": true, "uri": true });
    }
    json!({ "name": "envoy.filters.network.http_connection_manager", "typed_config": manager })
}

fn original_destination() -> Value {
    json!({
        "name": "envoy.filters.listener.original_dst",
        "typed_config": { "@type": type_url("filters.listener.original_dst.v3.OriginalDst") },
    })
}

fn type_url(message: &str) -> String {
    format!("type.googleapis.com/envoy.extensions.{message}")
}

fn address(ip: Ipv4Addr, port: u16) -> Value {
    json!({ "socket_address": { "address": ip.to_string(), "port_value": port } })
}

fn range(prefix: &str, length: u8) -> Value {
    json!({ "address_prefix": prefix, "prefix_len": length })
}

#[cfg(test)]
mod tests;
