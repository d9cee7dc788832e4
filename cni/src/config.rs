//! The agent's settings. Nothing else reads the environment.

use crate::agent::decision::Defaults;
use crate::rules::pod::ProbeAddresses;
use aquifer_objects::source;
use aquifer_runtime::env::{ConfigErrors, Env, Vars};
use aquifer_runtime::telemetry;
use std::net::{Ipv6Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// What to set, for `--help`.
pub const SETTINGS: &str = "\
Settings (environment):
  NODE_NAME                  the node whose pods are looked after; must be set
  AQUIFER_MANIFESTS          folder of Kubernetes manifests to watch, in place of an API server
  KUBECONFIG                 file that names the API server; in a pod it is that of its cluster
  ZTUNNEL_UDS                socket to which proxies connect (/var/run/ztunnel/ztunnel.sock)
  CNI_EVENT_SOCKET           socket to which the CNI plugin speaks (/var/run/istio-cni/pluginevent.sock)
  CMDADD_TIMEOUT             how long a starting pod may take to get in (10s)
  AQUIFER_NETNS_DIR          folder of network namespaces by their pod's uid (/var/run/netns)
  AQUIFER_PROC_DIR           the node's /proc (/host/proc; /proc where nothing is mounted there)
  AQUIFER_STATE_DIR          what is remembered of enrolled pods (\"enrolled\" beside CNI_EVENT_SOCKET)
  EXCLUDE_NAMESPACES         whose pods never join (istio-system,kube-system)
  AMBIENT_DNS_CAPTURE        the pods' DNS goes to the proxy (true)
  HOST_PROBE_SNAT_IP, HOST_PROBE_SNAT_IPV6
                             what kubelet's probes come from, as pods see it (169.254.7.127, fd16:9254:7127:1337:ffff:ffff:ffff:ffff)
  METRICS_ADDR               metrics ([::]:15014)
  READY_ADDR                 /readyz and /healthz ([::]:8000)
  RUST_LOG, LOG_FORMAT       log level (info) and shape (text, json)";

/// Every setting, under Istio's names where Istio has one.
#[derive(Debug, Clone)]
pub struct Config {
    /// NODE_NAME: whose pods are ours.
    pub node: String,
    /// ZTUNNEL_UDS: where proxies connect.
    pub ztunnel_socket: PathBuf,
    /// CNI_EVENT_SOCKET: where the plugin calls.
    pub event_socket: PathBuf,
    /// AQUIFER_MANIFESTS, a folder of objects; or KUBECONFIG, an API server; or the API server of our pod.
    pub source: source::Settings,
    /// AQUIFER_NETNS_DIR: the folder of network namespaces by pod uid.
    pub netns_folder: PathBuf,
    /// AQUIFER_PROC_DIR: the node's `/proc`, in which pods that have no entry there are found by their processes;
    /// `/host/proc` unless set, or `/proc` where nothing is mounted there.
    pub proc_folder: Option<PathBuf>,
    /// AQUIFER_STATE_DIR: the agent's memory; beside the event socket unless set.
    pub state_folder: PathBuf,
    /// METRICS_ADDR. All addresses of both families, unless set: nodes of an IPv6 cluster have no other.
    pub metrics: SocketAddr,
    /// READY_ADDR.
    pub ready: SocketAddr,
    /// CMDADD_TIMEOUT: how long a starting pod may take to get in.
    pub patience: Duration,
    /// Who is in, and how.
    pub defaults: Defaults,
    /// How log lines look.
    pub telemetry: telemetry::Settings,
}

impl Config {
    /// Reads all settings and tells all that is wrong with them at once.
    pub fn read(env: &dyn Env) -> Result<Self, ConfigErrors> {
        let mut vars = Vars::new(env);
        let event_socket = PathBuf::from(vars.string_or("CNI_EVENT_SOCKET", "/var/run/istio-cni/pluginevent.sock"));
        let beside = event_socket.parent().unwrap_or(Path::new("/var/run/istio-cni")).join("enrolled");
        let probes = ProbeAddresses::default();
        let config = Self {
            node: vars.required("NODE_NAME"),
            ztunnel_socket: vars.string_or("ZTUNNEL_UDS", "/var/run/ztunnel/ztunnel.sock").into(),
            state_folder: vars.string("AQUIFER_STATE_DIR").map_or(beside, PathBuf::from),
            event_socket,
            source: source(&mut vars),
            netns_folder: vars.string_or("AQUIFER_NETNS_DIR", "/var/run/netns").into(),
            proc_folder: vars.string("AQUIFER_PROC_DIR").map(PathBuf::from),
            metrics: vars.parsed("METRICS_ADDR", (Ipv6Addr::UNSPECIFIED, 15014).into()),
            ready: vars.parsed("READY_ADDR", (Ipv6Addr::UNSPECIFIED, 8000).into()),
            patience: vars.duration("CMDADD_TIMEOUT", Duration::from_secs(10)),
            defaults: Defaults {
                excluded_namespaces: list(&vars.string_or("EXCLUDE_NAMESPACES", "istio-system,kube-system")),
                capture_dns: vars.bool("AMBIENT_DNS_CAPTURE", true),
                probe_addresses: ProbeAddresses {
                    v4: vars.parsed("HOST_PROBE_SNAT_IP", probes.v4),
                    v6: vars.parsed("HOST_PROBE_SNAT_IPV6", probes.v6),
                },
            },
            telemetry: telemetry::Settings::from_vars(&mut vars),
        };
        vars.finish().map(|()| config)
    }
}

fn source(vars: &mut Vars<'_>) -> source::Settings {
    let [manifests, kubeconfig, host] =
        ["AQUIFER_MANIFESTS", "KUBECONFIG", "KUBERNETES_SERVICE_HOST"].map(|key| vars.string(key));
    source::Settings::choose(manifests.as_deref(), kubeconfig.as_deref(), host.as_deref()).unwrap_or_else(|remedy| {
        vars.error("AQUIFER_MANIFESTS", remedy);
        source::Settings::InCluster
    })
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquifer_runtime::env::{Asked, MapEnv};

    #[test]
    fn every_variable_is_told_of() {
        let asked = Asked::default();
        let _ = Config::read(&asked);
        let silent = asked.untold(SETTINGS);
        assert!(silent.is_empty(), "`istio-cni-node --help` does not say what these do: {silent:?}");
    }

    #[test]
    fn names_and_defaults() {
        let env = MapEnv::from([
            ("NODE_NAME", "node1"),
            ("AQUIFER_MANIFESTS", "/m"),
            ("CNI_EVENT_SOCKET", "/run/lab/node1/pluginevent.sock"),
            ("HOST_PROBE_SNAT_IP", "169.254.1.1"),
        ]);
        let config = Config::read(&env).unwrap();
        assert_eq!(config.node, "node1");
        assert_eq!(config.ztunnel_socket, Path::new("/var/run/ztunnel/ztunnel.sock"));
        assert_eq!(config.state_folder, Path::new("/run/lab/node1/enrolled"));
        assert_eq!(config.defaults.probe_addresses.v4.to_string(), "169.254.1.1");
        assert_eq!(config.defaults.probe_addresses.v6, ProbeAddresses::default().v6);
        assert!(config.defaults.capture_dns);
        assert_eq!(config.defaults.excluded_namespaces, ["istio-system", "kube-system"]);
        assert_eq!([config.metrics, config.ready].map(|at| at.to_string()), ["[::]:15014", "[::]:8000"]);
    }

    #[test]
    fn every_error_is_told_at_once() {
        let env = MapEnv::from([("HOST_PROBE_SNAT_IP", "x"), ("METRICS_ADDR", "y")]);
        let message = Config::read(&env).unwrap_err().to_string();
        for name in ["NODE_NAME", "AQUIFER_MANIFESTS", "HOST_PROBE_SNAT_IP", "METRICS_ADDR"] {
            assert!(message.contains(name), "{name} in {message}");
        }
    }
}
