//! Our settings in the words of the libraries.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use aquifer_hbone::{ClientConfig, PoolConfig, ServerConfig, Windows};
use aquifer_proto::{type_url, xds};
use aquifer_runtime::metrics::Registry;
use aquifer_tls::CaConfig;
use aquifer_tls::ca_client::{Roots, Source};
use aquifer_xds::client::driver as xds_driver;
use aquifer_xds::client::session::Watch;

use crate::config::{self, Config, RootCert, Token};
use crate::dns::lookup::Resolver;
use crate::dns::metrics::Metrics as DnsMetrics;
use crate::dns::resolve::Zone;
use crate::dns::upstream::Upstream;
use crate::dns::{Dns, UPSTREAM_LIMIT, resolv_conf};
use crate::inpod::netns::Netns;
use crate::socket::TcpOptions;

/// Where the C library looks for name servers.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Where it looks before it asks one.
const HOSTS: &str = "/etc/hosts";

fn windows(config: &config::Proxy) -> Windows {
    let default = Windows::default();
    Windows {
        stream: config.stream_window.unwrap_or(default.stream),
        connection: config.connection_window.unwrap_or(default.connection),
        frame: config.frame_size,
        ..default
    }
}

pub(super) fn server_config(config: &config::Proxy) -> ServerConfig {
    ServerConfig { windows: windows(config), ..ServerConfig::default() }
}

pub(super) fn pool_config(config: &config::Proxy) -> PoolConfig {
    PoolConfig {
        max_streams: config.pool_max_streams,
        spare: config.pool_spare,
        idle_timeout: config.pool_idle,
        client: ClientConfig { windows: windows(config), ..ClientConfig::default() },
        ..PoolConfig::default()
    }
}

pub(super) fn ca_config(config: &Config) -> Option<CaConfig> {
    let ca = config.ca.as_ref()?;
    Some(CaConfig {
        address: ca.address.clone(),
        root: match &ca.root {
            RootCert::File(path) => Roots::Given(Source::Path(path.clone())),
            RootCert::Pem(pem) => Roots::Given(Source::Inline(pem.clone())),
            RootCert::System => Roots::System,
        },
        alt_hostname: ca.alt_hostname.clone(),
        token: match &ca.token {
            Token::File(path) => Some(Source::Path(path.clone())),
            Token::Literal(token) => Some(Source::Inline(token.clone())),
            Token::None => None,
        },
        cluster_id: config.node.cluster_id.clone(),
        headers: ca.headers.clone().into_iter().collect(),
        ttl: ca.ttl,
        impersonate: true,
        timeout: Duration::from_secs(10),
    })
}

pub(super) fn xds_config(config: &Config) -> xds_driver::ClientConfig {
    let xds = &config.xds;
    xds_driver::ClientConfig {
        address: xds.address.clone(),
        alt_hostname: xds.alt_hostname.clone(),
        root_ca: match &xds.root {
            RootCert::File(path) => xds_driver::RootCa::File(path.clone()),
            RootCert::Pem(pem) => xds_driver::RootCa::Pem(pem.clone()),
            RootCert::System => xds_driver::RootCa::System,
        },
        token: match &xds.token {
            Token::File(path) => Some(xds_driver::Token::File(path.clone())),
            Token::Literal(token) => Some(xds_driver::Token::Literal(token.clone())),
            Token::None => None,
        },
        cluster_id: config.node.cluster_id.clone(),
        headers: xds.headers.clone().into_iter().collect(),
        node: node(&config.node),
        watches: vec![
            if xds.on_demand { Watch::on_demand(type_url::ADDRESS) } else { Watch::wildcard(type_url::ADDRESS) },
            Watch::wildcard(type_url::AUTHORIZATION),
            Watch::if_served(type_url::ROOT_BUNDLE),
        ],
    }
}

/// The DNS proxy, if it is on. Its name servers are those that our own pod was given.
pub(super) fn dns(config: &Config, registry: &mut Registry) -> Option<Arc<Dns>> {
    let listen = config.dns?;
    let servers = name_servers();
    if servers.is_empty() {
        tracing::warn!("{RESOLV_CONF} names no server: pods get no answer for names that the mesh doesn't know");
    }
    let metrics = DnsMetrics::default();
    metrics.register(registry);
    let zone = Zone {
        domain: config.node.cluster_domain.trim_end_matches('.').to_ascii_lowercase().into(),
        preferred_namespace: config.proxy.preferred_service_namespace.clone(),
        ipv6: config.proxy.ipv6,
    };
    Some(Arc::new(Dns { listen, zone, servers, metrics }))
}

fn name_servers() -> Vec<SocketAddr> {
    match std::fs::read_to_string(RESOLV_CONF) {
        Ok(text) => resolv_conf::name_servers(&text),
        Err(error) => {
            tracing::warn!(%error, "{RESOLV_CONF} cannot be read");
            Vec::new()
        }
    }
}

/// Where we look names up for ourselves.
pub(super) fn names(config: &Config) -> io::Result<Resolver> {
    // Our own pod has no rules to be let through by.
    let options = TcpOptions { mark: None, ..config.proxy.tcp };
    let upstream = Upstream::new(name_servers(), Netns::current()?, options, UPSTREAM_LIMIT);
    Ok(Resolver::new(upstream, Some(HOSTS.into()), config.proxy.ipv6))
}

/// Who we are, in the form that the control plane takes apart: `ztunnel~<ip>~<pod>.<namespace>~<domain>`.
fn node(node: &config::Node) -> xds::Node {
    let ip = node.instance_ip.unwrap_or(Ipv4Addr::new(1, 1, 1, 1).into());
    let (pod, namespace) = (&node.pod_name, &node.pod_namespace);
    let mut metadata = node.metadata.clone();
    let own = [
        ("NAME", pod.clone()),
        ("NAMESPACE", namespace.clone()),
        ("INSTANCE_IPS", ip.to_string()),
        ("NODE_NAME", node.name.clone()),
        ("CLUSTER_ID", node.cluster_id.clone()),
    ];
    metadata.extend(own.map(|(key, text)| (key.to_owned(), text.into())));
    xds::Node {
        id: format!("ztunnel~{ip}~{pod}.{namespace}~{namespace}.svc.cluster.local"),
        metadata: Some(prost_types::Struct {
            fields: metadata.iter().map(|(k, v)| (k.clone(), protobuf(v))).collect(),
        }),
        ..xds::Node::default()
    }
}

fn protobuf(value: &serde_json::Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        serde_json::Value::Null => Kind::NullValue(0),
        serde_json::Value::Bool(b) => Kind::BoolValue(*b),
        serde_json::Value::Number(n) => Kind::NumberValue(n.as_f64().unwrap_or_default()),
        serde_json::Value::String(s) => Kind::StringValue(s.clone()),
        serde_json::Value::Array(list) => {
            Kind::ListValue(prost_types::ListValue { values: list.iter().map(protobuf).collect() })
        }
        serde_json::Value::Object(map) => Kind::StructValue(prost_types::Struct {
            fields: map.iter().map(|(k, v)| (k.clone(), protobuf(v))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}
