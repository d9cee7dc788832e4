//! From variables to settings.

mod connections;

use std::collections::BTreeMap;
use std::time::Duration;

use aquifer_runtime::env::{ConfigErrors, Env, Vars};
use aquifer_runtime::telemetry;
use aquifer_tls::provider::{PolicyError, TlsPolicy};
use serde::Deserialize;

use super::{Ca, Config, MESH_FILE, Node, Ports, RootCert, Surroundings, Tls, Token, Xds};
use crate::dns::{self, Listen};
use crate::inpod::zds::WorkloadInfo;

pub(super) const DEFAULT_ROOT: &str = "./var/run/secrets/istio/root-cert.pem";
pub(super) const DEFAULT_TOKEN: &str = "./var/run/secrets/tokens/istio-token";

/// Switches of the original that can stand one way only here, and what to do who needs the other.
const FIXED: &[(&str, bool, &str)] = &[
    ("ENABLE_PROXY", true, "a ztunnel without its proxy has nothing to do: do not start it"),
    ("INPOD_ENABLED", true, "pods are served from inside only, as the node agent hands them over"),
    ("UNSTABLE_ENABLE_SOCKS5", false, "there is no SOCKS listener: have pods redirected by the node agent"),
    ("FAKE_CA", false, "there is no built-in authority: name one by CA_ADDRESS, istiod-lite for example"),
];

/// Settings of the original for what is not done here, and what to do instead.
const UNSUPPORTED: &[(&str, &str)] = &[
    ("PROXY_WORKLOAD_INFO", "belongs to PROXY_MODE=dedicated, which is not supported: unset both"),
    ("LOCAL_XDS_PATH", "a mesh from a file is not supported: name a control plane by XDS_ADDRESS"),
    ("LOCAL_XDS", "a mesh from a variable is not supported: name a control plane by XDS_ADDRESS"),
];

/// The parts of Istio's ProxyConfig that a node proxy reads.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct ProxyConfig {
    discovery_address: Option<String>,
    proxy_admin_port: Option<u16>,
    stats_port: Option<u16>,
    concurrency: Option<usize>,
    proxy_metadata: BTreeMap<String, String>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct MeshConfig {
    default_config: Option<ProxyConfig>,
}

impl ProxyConfig {
    fn over(self, mut base: Self) -> Self {
        base.proxy_metadata.extend(self.proxy_metadata);
        Self {
            discovery_address: self.discovery_address.or(base.discovery_address),
            proxy_admin_port: self.proxy_admin_port.or(base.proxy_admin_port),
            stats_port: self.stats_port.or(base.stats_port),
            concurrency: self.concurrency.or(base.concurrency),
            proxy_metadata: base.proxy_metadata,
        }
    }
}

impl Config {
    /// Reads all settings, or says all that is wrong with them.
    pub fn read(env: &dyn Env, around: &Surroundings) -> Result<Self, ConfigErrors> {
        let mut vars = Vars::new(env);
        refuse_unsupported(&mut vars);
        let file = proxy_config(&mut vars, around.mesh_file.as_deref());
        let node = node(&mut vars, &file);
        let in_cluster = vars.string("KUBERNETES_SERVICE_HOST").is_some();
        let default_address =
            if in_cluster { "https://istiod.istio-system.svc:15012" } else { "https://localhost:15012" };
        let discovery = file.discovery_address.as_deref().filter(|text| !text.is_empty()).unwrap_or(default_address);
        let token = token(&mut vars, around.file_exists);

        let xds_text = non_empty(&mut vars, "XDS_ADDRESS").unwrap_or_else(|| discovery.to_owned());
        let xds = Xds {
            address: address(&mut vars, "XDS_ADDRESS", &xds_text, &["https"]),
            root: root(&mut vars, "XDS_ROOT_CA"),
            alt_hostname: tls_name(&mut vars, "ALT_XDS_HOSTNAME"),
            token: token.clone(),
            headers: headers(&mut vars, "XDS_HEADER_"),
            on_demand: vars.bool("XDS_ON_DEMAND", false),
        };
        let ca_text = vars.string("CA_ADDRESS").unwrap_or_else(|| discovery.to_owned());
        let ttl = vars.duration("SECRET_TTL", Duration::from_secs(24 * 3600));
        if ttl.is_zero() {
            vars.error("SECRET_TTL", "must not be zero");
        }
        let ca = (!ca_text.is_empty()).then(|| Ca {
            address: address(&mut vars, "CA_ADDRESS", &ca_text, &["https", "http"]),
            root: root(&mut vars, "CA_ROOT_CA"),
            alt_hostname: tls_name(&mut vars, "ALT_CA_HOSTNAME"),
            token,
            headers: headers(&mut vars, "CA_HEADER_"),
            ttl,
        });

        let proxy = connections::proxy(&mut vars, &node);
        let dns = dns_listen(&mut vars, &node.metadata, proxy.ipv6);
        if xds.on_demand && dns.is_some() {
            // It would answer for the names that happen to be known.
            vars.error("XDS_ON_DEMAND", "needs ISTIO_META_DNS_CAPTURE=false: the DNS proxy must know all names");
        }
        let config = Self {
            log: telemetry::Settings::from_vars(&mut vars),
            xds,
            ca,
            tls: tls(&mut vars),
            inpod_uds: non_empty_or(&mut vars, "INPOD_UDS", "/var/run/ztunnel/ztunnel.sock").into(),
            ports: Ports {
                admin: file.proxy_admin_port.unwrap_or(15000),
                stats: file.stats_port.unwrap_or(15020),
                readiness: 15021,
                ipv6: proxy.ipv6,
            },
            workers: workers(&mut vars, file.concurrency, around.cpus),
            termination_deadline: termination_deadline(&mut vars),
            node,
            proxy,
            dns,
        };
        vars.finish()?;
        Ok(config)
    }
}

fn refuse_unsupported(vars: &mut Vars<'_>) {
    if non_empty(vars, "PROXY_MODE").is_some_and(|mode| !mode.eq_ignore_ascii_case("shared")) {
        vars.error("PROXY_MODE", "only \"shared\" is supported, one proxy for all pods of a node: unset it");
    }
    for (key, only, remedy) in FIXED {
        if vars.bool(key, *only) != *only {
            vars.error(key, format!("must be {only}: {remedy}"));
        }
    }
    for (key, remedy) in UNSUPPORTED {
        if non_empty(vars, key).is_some() {
            vars.error(key, *remedy);
        }
    }
}

fn proxy_config(vars: &mut Vars<'_>, mesh_file: Option<&str>) -> ProxyConfig {
    let base = match mesh_file.map(serde_norway::from_str::<Option<MeshConfig>>) {
        Some(Ok(mesh)) => mesh.unwrap_or_default().default_config.unwrap_or_default(),
        Some(Err(e)) => {
            vars.error(MESH_FILE, e.to_string());
            ProxyConfig::default()
        }
        None => ProxyConfig::default(),
    };
    let own = vars
        .with("PROXY_CONFIG", |text| serde_norway::from_str::<Option<ProxyConfig>>(text).map_err(|e| e.to_string()));
    own.flatten().unwrap_or_default().over(base)
}

fn node(vars: &mut Vars<'_>, file: &ProxyConfig) -> Node {
    let mut metadata: BTreeMap<String, serde_json::Value> = file
        .proxy_metadata
        .iter()
        .map(|(k, v)| (k.strip_prefix("ISTIO_META_").unwrap_or(k).to_owned(), v.as_str().into()))
        .collect();
    metadata.extend(vars.with_prefix("ISTIO_META_").into_iter().map(|(k, v)| (k, v.into())));
    for (key, text) in vars.with_prefix("ISTIO_METAJSON_").into_iter().filter(|(_, text)| !text.is_empty()) {
        match serde_json::from_str(&text) {
            Ok(value) => {
                metadata.insert(key, value);
            }
            Err(e) => vars.error(&format!("ISTIO_METAJSON_{key}"), format!("not JSON: {e}")),
        }
    }
    let own_cluster = non_empty_or(vars, "CLUSTER_ID", "Kubernetes");
    let cluster_id = match metadata.get("CLUSTER_ID").and_then(|v| v.as_str()) {
        Some(id) if !id.is_empty() => id.to_owned(),
        _ => own_cluster,
    };
    if http::HeaderValue::try_from(&cluster_id).is_err() {
        vars.error("CLUSTER_ID", format!("{cluster_id:?} cannot be a header, as the control plane is told it"));
    }
    let trust_domain = non_empty_or(vars, "TRUST_DOMAIN", "cluster.local");
    if !trust_domain.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_')) {
        vars.error("TRUST_DOMAIN", format!("{trust_domain:?} is no SPIFFE trust domain such as \"cluster.local\""));
    }
    let pod_name = vars.string_or("POD_NAME", "");
    let pod_namespace = vars.string_or("POD_NAMESPACE", "");
    let service_account = vars.string_or("SERVICE_ACCOUNT", "");
    let known = [&pod_name, &pod_namespace, &service_account].iter().all(|part| !part.is_empty());
    Node {
        name: vars.required("NODE_NAME"),
        own: known.then(|| WorkloadInfo {
            name: pod_name.as_str().into(),
            namespace: pod_namespace.as_str().into(),
            service_account: service_account.as_str().into(),
        }),
        pod_name,
        pod_namespace,
        instance_ip: vars.optional("INSTANCE_IP"),
        cluster_id,
        cluster_domain: non_empty_or(vars, "CLUSTER_DOMAIN", "cluster.local"),
        trust_domain,
        network: vars.string_or("NETWORK", ""),
        istio_version: metadata.get("ISTIO_VERSION").and_then(|v| v.as_str()).map(str::to_owned),
        metadata,
    }
}

fn tls(vars: &mut Vars<'_>) -> Tls {
    let tls12 = vars.bool("TLS12_ENABLED", false);
    let policy = TlsPolicy::from_settings(&vars.string_or("COMPLIANCE_POLICY", ""), tls12);
    let policy = policy.unwrap_or_else(|error| {
        let key = match error {
            PolicyError::Unknown(_) => "COMPLIANCE_POLICY",
            PolicyError::Tls12WithPostQuantum => "TLS12_ENABLED",
        };
        vars.error(key, error.to_string());
        TlsPolicy::default()
    });
    Tls { policy, crl: non_empty(vars, "CRL_PATH").map(Into::into) }
}

/// On unless `ISTIO_META_DNS_CAPTURE`, or `proxyMetadata` of that name, is set to something else than `true`.
fn dns_listen(vars: &mut Vars<'_>, metadata: &BTreeMap<String, serde_json::Value>, ipv6: bool) -> Option<Listen> {
    let said = |key| metadata.get(key).and_then(|value| value.as_str()).unwrap_or_default();
    let address = said("DNS_PROXY_ADDR");
    let listen = match address.strip_prefix("localhost:") {
        _ if address.is_empty() => Ok(Listen::Localhost { port: dns::PORT, ipv6 }),
        Some(port) => {
            port.parse().map(|port| Listen::Localhost { port, ipv6 }).map_err(|e| format!("{address:?}: {e}"))
        }
        None => address.parse().map(Listen::Address).map_err(|e| format!("{address:?} is no address with a port: {e}")),
    };
    let listen = listen.map_err(|error| vars.error("ISTIO_META_DNS_PROXY_ADDR", error)).ok();
    let on = matches!(&*said("DNS_CAPTURE").to_ascii_lowercase(), "" | "true");
    on.then(|| listen.unwrap_or(Listen::Localhost { port: dns::PORT, ipv6 }))
}

/// The name that a certificate must bear.
fn tls_name(vars: &mut Vars<'_>, key: &str) -> Option<String> {
    vars.with(key, |text| match rustls::pki_types::ServerName::try_from(text) {
        Ok(_) => Ok(text.to_owned()),
        Err(_) => Err(format!("{text:?} is neither a DNS name nor an address")),
    })
}

fn token(vars: &mut Vars<'_>, exists: fn(&str) -> bool) -> Token {
    match non_empty(vars, "AUTH_TOKEN") {
        Some(path) if exists(&path) => Token::File(path.into()),
        // A path whose file is yet to come is still a path; no token contains a slash (RFC 7515: base64url).
        Some(path) if path.contains('/') => Token::File(path.into()),
        Some(literal) => Token::Literal(literal),
        None if exists(DEFAULT_TOKEN) => Token::File(DEFAULT_TOKEN.into()),
        None => Token::None,
    }
}

fn root(vars: &mut Vars<'_>, key: &str) -> RootCert {
    match non_empty(vars, key) {
        None => RootCert::File(DEFAULT_ROOT.into()),
        Some(text) if text == "SYSTEM" => RootCert::System,
        Some(text) if text.contains("-----BEGIN") => RootCert::Pem(text),
        Some(path) => RootCert::File(path.into()),
    }
}

/// Adds `https://` where no scheme is given.
fn address(vars: &mut Vars<'_>, key: &str, text: &str, schemes: &[&str]) -> String {
    let full = if text.contains("://") { text.to_owned() } else { format!("https://{text}") };
    match full.parse::<http::Uri>() {
        Ok(uri) if uri.host().is_some() && uri.scheme_str().is_some_and(|s| schemes.contains(&s)) => full,
        Ok(_) => {
            vars.error(key, format!("{text:?} is no {} address", schemes.join(" or ")));
            full
        }
        Err(e) => {
            vars.error(key, format!("{text:?}: {e}"));
            full
        }
    }
}

fn headers(vars: &mut Vars<'_>, prefix: &str) -> BTreeMap<String, String> {
    let mut headers = BTreeMap::new();
    for (name, value) in vars.with_prefix(prefix) {
        let name = name.to_ascii_lowercase();
        if http::HeaderName::try_from(&name).is_err() || http::HeaderValue::try_from(&value).is_err() {
            vars.error(&format!("{prefix}{name}"), "cannot be a header");
        } else {
            headers.insert(name, value);
        }
    }
    headers
}

fn workers(vars: &mut Vars<'_>, concurrency: Option<usize>, cpus: usize) -> usize {
    let limit = cpu_count(vars, "ZTUNNEL_CPU_LIMIT").or_else(|| cpu_count(vars, "ZTUNNEL_RESOURCE_CPU_LIMIT"));
    let request = cpu_count(vars, "ZTUNNEL_RESOURCE_CPU_REQUEST");
    let cpus = limit.unwrap_or(cpus);
    let share = |percent: f64| ((cpus as f64 * percent / 100.0).ceil() as usize).max(1);
    let chosen = vars.with("ZTUNNEL_WORKER_THREADS", |text| {
        let found = match text.strip_suffix('%') {
            Some(number) => number.trim().parse().ok().filter(|percent| *percent > 0.0 && *percent <= 100.0).map(share),
            None => text.trim().parse().ok().filter(|threads| *threads > 0),
        };
        found.ok_or_else(|| {
            format!("{text:?} is neither a number of threads nor a share of the processors such as \"50%\"")
        })
    });
    // A ProxyConfig's concurrency of 0 means "choose".
    let chosen = chosen.or(concurrency.filter(|n| *n > 0));
    chosen.unwrap_or_else(|| share(25.0).max(request.unwrap_or(0)).max(2))
}

/// Whole processors, rounded up; Kubernetes' downward API gives whole ones, people also write `1.5` or `1500m`.
fn cpu_count(vars: &mut Vars<'_>, key: &str) -> Option<usize> {
    vars.with(key, |text| {
        let number = match text.strip_suffix('m') {
            Some(milli) => milli.parse::<f64>().map(|n| n / 1000.0),
            None => text.parse::<f64>(),
        };
        match number {
            Ok(n) if (0.0..65536.0).contains(&n) => Ok(n.ceil() as usize),
            _ => Err(format!("{text:?} is no number of processors")),
        }
    })
    .filter(|n| *n > 0)
}

/// Leaves the kubelet some time to see us end before it kills.
fn termination_deadline(vars: &mut Vars<'_>) -> Duration {
    let grace = vars.optional::<u64>("TERMINATION_GRACE_PERIOD_SECONDS");
    vars.optional_duration("CONNECTION_TERMINATION_DEADLINE").unwrap_or_else(|| {
        Duration::from_secs(match grace {
            Some(grace) if grace > 10 => grace - 5,
            Some(grace) => grace.saturating_sub(1).max(1),
            None => 5,
        })
    })
}

fn non_empty(vars: &mut Vars<'_>, key: &str) -> Option<String> {
    vars.string(key).filter(|text| !text.is_empty())
}

fn non_empty_or(vars: &mut Vars<'_>, key: &str, default: &str) -> String {
    non_empty(vars, key).unwrap_or_else(|| default.to_owned())
}
