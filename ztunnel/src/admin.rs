//! The admin port: what this process knows and does, in the keys that Istio's tools read.

mod pprof;

use std::fmt::Write;
use std::sync::Arc;

use aquifer_core::store::Reader;
use aquifer_runtime::admin::AdminServer;
use aquifer_runtime::http::{Response, json, text, with_type};
use aquifer_runtime::telemetry::LogLevel;
use aquifer_tls::{CertInfo, CertManager, CertState};
use http::StatusCode;
use serde_json::{Map, Value, json as value};
use time::format_description::well_known::Rfc3339;
use tokio::sync::Notify;

use crate::config::Config;
use crate::dns::Listen;
use crate::inpod::driver::PodView;
use crate::proxy::worker::Workers;

/// What the pages show.
#[derive(Clone)]
pub struct Pages {
    /// The mesh.
    pub state: Reader,
    /// The pods of this node.
    pub pods: PodView,
    /// Their connections.
    pub workers: Workers,
    /// Their certificates.
    pub certs: CertManager,
    /// The settings.
    pub config: Arc<Config>,
}

/// All routes of the admin port.
pub fn routes(pages: Pages, level: LogLevel, quit: Arc<Notify>) -> AdminServer {
    AdminServer::new()
        .get("/", |_| async { with_type(StatusCode::OK, "text/html; charset=utf-8", index()) })
        .get("/config_dump", move |_| {
            let pages = pages.clone();
            async move { pages.config_dump().await }
        })
        .get("/debug/pprof/profile", pprof::cpu)
        .get("/debug/pprof/heap", |_| pprof::heap())
        .get("/debug/pprof/heap/profiling", pprof::switch_heap)
        .post("/debug/pprof/heap/profiling", pprof::switch_heap)
        .with_logging(level)
        .with_quit(quit)
}

impl Pages {
    async fn config_dump(&self) -> Response {
        match self.dump().await {
            Ok(dump) => json(StatusCode::OK, &dump),
            Err(e) => text(StatusCode::INTERNAL_SERVER_ERROR, format!("{e}\n")),
        }
    }

    async fn dump(&self) -> serde_json::Result<Value> {
        let connections = self.workers.dump().await;
        let mut dump = serde_json::to_value(self.state.load().dump())?;
        let mut pods = Map::new();
        for (uid, (info, phase)) in self.pods.lock().iter() {
            pods.insert(
                uid.to_string(),
                value!({
                    "state": phase,
                    "connections": connections.get(uid).cloned().unwrap_or_default(),
                    "info": { "name": &*info.name, "namespace": &*info.namespace, "serviceAccount": &*info.service_account },
                }),
            );
        }
        dump["workloadState"] = pods.into();
        dump["certificates"] = certificates(&self.certs);
        dump["stagedServices"] = value!({});
        dump["staticConfig"] = value!({ "policies": [], "services": [], "workloads": [] });
        dump["version"] = version();
        dump["config"] = config(&self.config);
        Ok(dump)
    }
}

fn certificates(certs: &CertManager) -> Value {
    let chain = |infos: &[CertInfo]| infos.iter().map(certificate).collect::<Vec<_>>();
    certs
        .dump()
        .into_iter()
        .map(|status| {
            let state = match &status.state {
                CertState::Initializing => Value::from("Initializing"),
                CertState::Available => Value::from("Available"),
                // One text, as Istio's tools read it.
                CertState::Unavailable(e) => Value::from(format!("Unavailable: {e}")),
            };
            let (own, roots) = match &status.configs {
                Some(configs) => (chain(configs.chain()), chain(configs.roots())),
                None => Default::default(),
            };
            value!({
                "identity": status.identity.to_string(), "state": state, "certChain": own, "rootCerts": roots,
            })
        })
        .collect()
}

fn certificate(info: &CertInfo) -> Value {
    let date = |date: time::OffsetDateTime| date.format(&Rfc3339).unwrap_or_default();
    value!({
        "pem": base64(info.pem.as_bytes()),
        "serialNumber": info.serial,
        "validFrom": date(info.not_before),
        "expirationTime": date(info.not_after),
    })
}

/// Istio's tools expect the PEM text once more in base64.
fn base64(bytes: &[u8]) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let byte = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let group = byte(0) << 16 | byte(1) << 8 | byte(2);
        for i in 0..4 {
            let digit = ALPHABET[(group >> (18 - 6 * i) & 63) as usize];
            out.push(if i <= chunk.len() { char::from(digit) } else { '=' });
        }
    }
    out
}

fn version() -> Value {
    value!({
        "version": env!("CARGO_PKG_VERSION"),
        "gitRevision": option_env!("GIT_REVISION").unwrap_or("unknown"),
        "buildProfile": if cfg!(debug_assertions) { "debug" } else { "release" },
        "cryptoProvider": aquifer_tls::provider::NAME,
        "component": "aquifer",
    })
}

fn config(config: &Config) -> Value {
    let duration = |d: std::time::Duration| value!({ "secs": d.as_secs(), "nanos": d.subsec_nanos() });
    let tcp = &config.proxy.tcp;
    let keepalive = tcp.keepalive;
    value!({
        "localNode": config.node.name,
        "network": config.node.network,
        "clusterId": config.node.cluster_id,
        "clusterDomain": config.node.cluster_domain,
        "xdsAddress": config.xds.address,
        "altXdsHostname": config.xds.alt_hostname,
        // Names only: the values may be secrets.
        "xdsHeaders": config.xds.headers.keys().collect::<Vec<_>>(),
        "xdsOnDemand": config.xds.on_demand,
        "caAddress": config.ca.as_ref().map(|ca| &ca.address),
        "altCaHostname": config.ca.as_ref().and_then(|ca| ca.alt_hostname.as_ref()),
        "caHeaders": config.ca.iter().flat_map(|ca| ca.headers.keys()).collect::<Vec<_>>(),
        "secretTtl": config.ca.as_ref().map(|ca| duration(ca.ttl)),
        "proxyMode": "Shared",
        "proxy": true,
        "dnsProxy": config.dns.is_some(),
        "dnsProxyAddr": config.dns.map(|listen| match listen {
            Listen::Localhost { port, ipv6 } => value!({ "Localhost": [ipv6, port] }),
            Listen::Address(addr) => value!({ "SocketAddr": addr }),
        }),
        "inpodUds": config.inpod_uds,
        "inpodPortReuse": config.proxy.reuse_port,
        "packetMark": tcp.mark,
        "ipv6Enabled": config.proxy.ipv6,
        "requireOriginalSource": match config.proxy.original_source {
            crate::socket::OriginalSource::Auto => Value::Null,
            crate::socket::OriginalSource::Required => true.into(),
            crate::socket::OriginalSource::Off => false.into(),
        },
        "numWorkerThreads": config.workers,
        "selfTerminationDeadline": duration(config.termination_deadline),
        "outboundAddr": "[::]:15001",
        "inboundPlaintextAddr": "[::]:15006",
        "inboundAddr": "[::]:15008",
        "illegalPorts": [15001, 15006, 15008],
        "adminAddr": { "Localhost": [config.proxy.ipv6, config.ports.admin] },
        "statsAddr": { "SocketAddr": config.ports.wildcard(config.ports.stats) },
        "readinessAddr": { "SocketAddr": config.ports.wildcard(config.ports.readiness) },
        "windowSize": config.proxy.stream_window,
        "connectionWindowSize": config.proxy.connection_window,
        "frameSize": config.proxy.frame_size,
        "poolMaxStreamsPerConn": config.proxy.pool_max_streams,
        "poolUnusedReleaseTimeout": duration(config.proxy.pool_idle),
        "enableEnhancedBaggage": config.proxy.response_baggage,
        "localhostAppTunnel": config.proxy.localhost_app_tunnel,
        "sameNodeFastPath": config.proxy.same_node,
        "authzPolicyGrace": duration(config.proxy.unknown_policies.wait),
        "authzUnknownPolicy": if config.proxy.unknown_policies.skip { "skip" } else { "deny" },
        "preferedServiceNamespace": config.proxy.preferred_service_namespace.as_deref(),
        "proxyMetadata": config.node.metadata,
        "socketConfig": {
            "keepaliveEnabled": keepalive.is_some(),
            "keepaliveTime": keepalive.map(|k| duration(k.time)),
            "keepaliveInterval": keepalive.map(|k| duration(k.interval)),
            "keepaliveRetries": keepalive.map(|k| k.retries),
            "userTimeoutEnabled": tcp.user_timeout,
        },
        "ztunnelIdentity": config.node.identity().map(|i| i.to_string()),
        "ztunnelWorkload": config.node.own.as_ref().map(|own| value!({
            "name": &*own.name, "namespace": &*own.namespace, "serviceAccount": &*own.service_account,
        })),
    })
}

fn index() -> String {
    let mut page = String::from(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><title>ztunnel</title></head><body>\n<h1>ztunnel</h1>\n<table>\n",
    );
    for (method, path, what) in [
        ("GET", "config_dump", "what this proxy knows: workloads, services, policies, pods, certificates, settings"),
        ("POST", "logging", "tells or changes log levels (?level=debug, ?level=module:trace, ?reset)"),
        ("GET", "debug/pprof/profile", "where processor time goes, as gzipped pprof (?seconds=10, ?frequency=1000)"),
        ("GET", "debug/pprof/heap", "what memory is held for, as gzipped pprof, once heap profiling is on"),
        ("POST", "debug/pprof/heap/profiling", "turns heap profiling on or off (?activate=true, ?activate=false)"),
        ("POST", "quitquitquit", "ends the process as SIGTERM would"),
    ] {
        let _ = writeln!(page, "<tr><td>{method}</td><td><a href=\"{path}\">{path}</a></td><td>{what}</td></tr>");
    }
    page.push_str("</table>\n</body></html>\n");
    page
}

#[cfg(test)]
mod tests;
