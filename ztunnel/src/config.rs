//! Every setting, under Istio's names, read once. Nothing else in this crate looks at the environment.
//!
//! Each part of the program gets its own small struct, not the whole. Faults are collected, so that a person mends
//! them in one go. A setting that asks for what this proxy doesn't do is a fault too: nobody shall rely on it in vain.

mod read;
mod settings;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aquifer_core::identity::Identity;
use aquifer_runtime::telemetry;
use aquifer_tls::TlsPolicy;

use crate::dns::Listen;
use crate::inpod::zds::WorkloadInfo;
use crate::mesh::grace;
use crate::socket::{OriginalSource, TcpOptions};

pub use self::settings::SETTINGS;

/// What the mesh's file of settings is called; its `defaultConfig` is what `PROXY_CONFIG` overrides.
pub const MESH_FILE: &str = "./etc/istio/config/mesh";

/// All settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Log lines.
    pub log: telemetry::Settings,
    /// Who and where this proxy is.
    pub node: Node,
    /// The source of workloads and policies.
    pub xds: Xds,
    /// The source of certificates; `None` when switched off.
    pub ca: Option<Ca>,
    /// TLS in the mesh, and towards the control plane.
    pub tls: Tls,
    /// Connections.
    pub proxy: Proxy,
    /// The DNS proxy's listeners; `None` when switched off.
    pub dns: Option<Listen>,
    /// The node agent's socket.
    pub inpod_uds: PathBuf,
    /// Ports of our own.
    pub ports: Ports,
    /// Data threads.
    pub workers: usize,
    /// From SIGTERM to the cut.
    pub termination_deadline: Duration,
}

/// Who and where this proxy is.
#[derive(Clone, Debug, Default)]
pub struct Node {
    /// `NODE_NAME`: the node whose pods are ours.
    pub name: String,
    /// Our own pod, if all three parts are known.
    pub own: Option<WorkloadInfo>,
    /// `POD_NAME`.
    pub pod_name: String,
    /// `POD_NAMESPACE`.
    pub pod_namespace: String,
    /// `INSTANCE_IP`.
    pub instance_ip: Option<IpAddr>,
    /// `ISTIO_META_CLUSTER_ID`, `CLUSTER_ID`.
    pub cluster_id: String,
    /// `CLUSTER_DOMAIN`.
    pub cluster_domain: String,
    /// `TRUST_DOMAIN`, of our own pod only.
    pub trust_domain: String,
    /// `NETWORK`.
    pub network: String,
    /// `ISTIO_META_*` and `ISTIO_METAJSON_*` without their prefixes, and `proxyMetadata`.
    pub metadata: BTreeMap<String, serde_json::Value>,
    /// `ISTIO_META_ISTIO_VERSION`.
    pub istio_version: Option<String>,
}

impl Node {
    /// Our own pod's identity.
    #[must_use]
    pub fn identity(&self) -> Option<Identity> {
        let own = self.own.as_ref()?;
        Some(Identity::new(&*self.trust_domain, &*own.namespace, &*own.service_account))
    }
}

/// Where trust begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RootCert {
    /// A PEM file, read again when it changes.
    File(PathBuf),
    /// PEM in the variable itself.
    Pem(String),
    /// `SYSTEM`: the authorities that the operating system trusts.
    System,
}

/// How we show who we are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Token {
    /// A file, read again for each request.
    File(PathBuf),
    /// The variable's own text.
    Literal(String),
    /// Nothing to show.
    None,
}

/// The source of workloads and policies.
#[derive(Clone, Debug)]
pub struct Xds {
    /// `https://host:port`; in plaintext the token would be there to read.
    pub address: String,
    /// Whose signature on its certificate we take.
    pub root: RootCert,
    /// The name to verify instead of the address's.
    pub alt_hostname: Option<String>,
    /// Our token.
    pub token: Token,
    /// `XDS_HEADER_*`.
    pub headers: BTreeMap<String, String>,
    /// `XDS_ON_DEMAND`: workloads and services are asked for one by one.
    pub on_demand: bool,
}

/// The source of certificates.
#[derive(Clone, Debug)]
pub struct Ca {
    /// `https://host:port`, or plain `http://` for a CA on the same host.
    pub address: String,
    /// Whose signature on its certificate we take.
    pub root: RootCert,
    /// The name to verify instead of the address's.
    pub alt_hostname: Option<String>,
    /// Our token.
    pub token: Token,
    /// `CA_HEADER_*`.
    pub headers: BTreeMap<String, String>,
    /// Validity that we ask for.
    pub ttl: Duration,
}

/// What is spoken and who is trusted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tls {
    /// `COMPLIANCE_POLICY`, `TLS12_ENABLED`.
    pub policy: TlsPolicy,
    /// `CRL_PATH`: a file or a folder.
    pub crl: Option<PathBuf>,
}

/// Connections.
#[derive(Clone, Debug)]
pub struct Proxy {
    /// `NODE_NAME`.
    pub node: String,
    /// `TRUST_DOMAIN`, of pods that the control plane hasn't told us of.
    pub trust_domain: String,
    /// `NETWORK`.
    pub network: Arc<str>,
    /// `PREFERED_SERVICE_NAMESPACE` (spelled so).
    pub preferred_service_namespace: Option<Arc<str>>,
    /// `IPV6_ENABLED`.
    pub ipv6: bool,
    /// `ENABLE_ORIG_SRC`.
    pub original_source: OriginalSource,
    /// `INPOD_PORT_REUSE`.
    pub reuse_port: bool,
    /// Every TCP socket's options.
    pub tcp: TcpOptions,
    /// For TCP to an application or to a peer, and for the certificate to show to a peer.
    pub connect_timeout: Duration,
    /// For a peer's TLS handshake, and for the certificate to show to it.
    pub handshake_timeout: Duration,
    /// `HTTP2_STREAM_WINDOW_SIZE`, if set.
    pub stream_window: Option<u32>,
    /// `HTTP2_CONNECTION_WINDOW_SIZE`, if set.
    pub connection_window: Option<u32>,
    /// `HTTP2_POD_WINDOW_SIZE`: what all peers of a pod may send before we pass it on.
    pub pod_window: u64,
    /// `HTTP2_FRAME_SIZE`.
    pub frame_size: u32,
    /// `POOL_MAX_STREAMS_PER_CONNECTION`.
    pub pool_max_streams: usize,
    /// `POOL_SPARE_CONNECTIONS`: to one peer, beyond what streams need, so that they don't queue behind bulk.
    pub pool_spare: usize,
    /// `POOL_UNUSED_RELEASE_TIMEOUT`.
    pub pool_idle: Duration,
    /// `ENABLE_RESPONSE_BAGGAGE`.
    pub response_baggage: bool,
    /// `AUTHZ_POLICY_INFO_LOGGING`: decisions at info instead of debug.
    pub authz_info_logging: bool,
    /// `AUTHZ_POLICY_GRACE`, `AUTHZ_UNKNOWN_POLICY`.
    pub unknown_policies: grace::Settings,
    /// `LOCALHOST_APP_TUNNEL`: proxies that take PROXY headers are reached on loopback.
    pub localhost_app_tunnel: bool,
    /// `SAME_NODE_FAST_PATH`: pods of this node are connected without a tunnel, where the control plane permits it.
    pub same_node: bool,
}

/// Ports of our own (the pods' are fixed).
#[derive(Clone, Copy, Debug)]
pub struct Ports {
    /// Admin, on localhost.
    pub admin: u16,
    /// Metrics.
    pub stats: u16,
    /// `/healthz/ready`.
    pub readiness: u16,
    /// Listen on v6 too.
    pub ipv6: bool,
}

impl Ports {
    /// A port on all addresses.
    #[must_use]
    pub fn wildcard(&self, port: u16) -> SocketAddr {
        if self.ipv6 { (Ipv6Addr::UNSPECIFIED, port).into() } else { (Ipv4Addr::UNSPECIFIED, port).into() }
    }
}

/// What the settings depend on besides the environment.
pub struct Surroundings {
    /// The text of [`MESH_FILE`], if there is one.
    pub mesh_file: Option<String>,
    /// Processors of this machine.
    pub cpus: usize,
    /// Is there a file of this name?
    pub file_exists: fn(&str) -> bool,
}

#[cfg(test)]
#[path = "config/tests.rs"]
mod tests;
