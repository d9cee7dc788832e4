//! Settings: Istio's variable names where Istio has them. The environment is read here only, and
//! every mistake is reported at once.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use aquifer_objects::source;
use aquifer_runtime::env::{ConfigErrors, Env, Vars};
use aquifer_runtime::telemetry;

use crate::ca::issuer::Lifetimes;
use crate::revision::{self, Revision};

/// What the command line says of the environment.
pub const SETTINGS: &str = "\
Settings (environment):
  AQUIFER_MANIFESTS          folder of Kubernetes manifests to watch, in place of an API server
  KUBECONFIG                 file that names the API server; in a pod it is that of its cluster
  AQUIFER_DATA_DIR           folder of root-key.pem and root-cert.pem (with a folder; made if absent).
                             With an API server they lie in Secrets
  JWT_ISSUER, JWKS_FILE      issuer and keys of the callers' tokens (with a folder). An API server reviews
                             tokens itself; these are accepted besides
  JWT_AUDIENCES              accepted audiences (istio-ca)
  TRUST_DOMAIN               (cluster.local)
  CLUSTER_ID                 (Kubernetes)
  CLUSTER_DOMAIN             (cluster.local)
  ROOT_NAMESPACE             (istio-system)
  REVISION                   which control plane this is, where several run side by side (default)
  REVISION_TAGS              other names of it in labels istio.io/rev
  DEFAULT_REVISION           whether objects without the label are its own (if REVISION is default)
  POD_NAME                   who this is among the replicas; needed with an API server. The downward API
                             has it (fieldRef metadata.name). With a folder it is istiod-lite
  WAYPOINT_IMAGE             what waypoints run; without it none is deployed
  PILOT_AUTO_ALLOW_WAYPOINT_POLICY
                             workloads behind a waypoint let its pods in without a policy (false)
  SAME_NODE_FAST_PATH        node proxies may connect pods of their node within themselves (true)
  CA_TRUSTED_NODE_ACCOUNTS   who may ask for the identities of its node (istio-system/ztunnel)
  DEFAULT_WORKLOAD_CERT_TTL  (24h)
  MAX_WORKLOAD_CERT_TTL      (90d)
  ROOT_ROTATION_MIN_OVERLAP  how long both roots are trusted before the new one signs (2m; with a folder 0s)
  ISTIOD_CUSTOM_HOST         more names for the serving certificate
  GRPC_ADDR                  xDS without TLS ([::]:15010)
  SECURE_GRPC_ADDR           xDS and CA with TLS ([::]:15012)
  MONITORING_ADDR            metrics ([::]:15014)
  HTTP_ADDR                  /ready, /debug/{syncz,configz,registryz,proxies} ([::]:8080)
  RUST_LOG, LOG_FORMAT       log level (info) and shape (text, json)";

/// No certificate may claim more than the root that we make.
const LONGEST_TTL: Duration = Duration::from_secs(10 * 365 * 86_400);
/// Below this a certificate is half over before its holder has it.
const SHORTEST_TTL: Duration = Duration::from_secs(1);

/// All settings, by the part that reads them.
#[derive(Debug, Clone)]
pub struct Config {
    /// AQUIFER_MANIFESTS, a folder of manifests; or KUBECONFIG, an API server; or the API server of our pod.
    pub source: source::Settings,
    /// Which mesh this is.
    pub mesh: MeshConfig,
    /// Where to listen.
    pub listen: ListenConfig,
    /// The certificate authority.
    pub ca: CaConfig,
    /// Who may call.
    pub authn: AuthnConfig,
    /// RUST_LOG, LOG_FORMAT.
    pub telemetry: telemetry::Settings,
}

/// Which mesh this is.
#[derive(Debug, Clone)]
pub struct MeshConfig {
    /// TRUST_DOMAIN.
    pub trust_domain: String,
    /// CLUSTER_ID.
    pub cluster_id: String,
    /// ROOT_NAMESPACE: policies there are for the whole mesh.
    pub root_namespace: String,
    /// CLUSTER_DOMAIN: the suffix of Service names.
    pub cluster_domain: String,
    /// SAME_NODE_FAST_PATH: node proxies may connect pods of their node within themselves.
    pub same_node: bool,
    /// PILOT_AUTO_ALLOW_WAYPOINT_POLICY: workloads behind a waypoint let its pods in without a word of the user.
    pub allow_waypoints: bool,
    /// REVISION, REVISION_TAGS, DEFAULT_REVISION: which objects are ours where several control planes run.
    pub revision: Revision,
    /// POD_NAME: who we are among the replicas of our revision.
    pub pod_name: String,
    /// WAYPOINT_IMAGE: what waypoints run; without it none is deployed.
    pub waypoint_image: Option<String>,
}

/// Where to listen.
#[derive(Debug, Clone)]
pub struct ListenConfig {
    /// GRPC_ADDR: xDS without TLS.
    pub plaintext: SocketAddr,
    /// SECURE_GRPC_ADDR: xDS and CA with TLS.
    pub secure: SocketAddr,
    /// MONITORING_ADDR: metrics.
    pub monitoring: SocketAddr,
    /// HTTP_ADDR: readiness and debug pages.
    pub http: SocketAddr,
}

/// The certificate authority.
#[derive(Debug, Clone)]
pub struct CaConfig {
    /// AQUIFER_DATA_DIR: where the root lies, for a folder. An API server keeps it in Secrets.
    pub data_dir: Option<PathBuf>,
    /// ROOT_ROTATION_MIN_OVERLAP: how long both roots are trusted before the new one signs, at least.
    pub min_overlap: Duration,
    /// DEFAULT_WORKLOAD_CERT_TTL, MAX_WORKLOAD_CERT_TTL.
    pub lifetimes: Lifetimes,
    /// CA_TRUSTED_NODE_ACCOUNTS: namespace and name of each.
    pub trusted_node_accounts: Vec<(String, String)>,
    /// Names in our own certificate; ISTIOD_CUSTOM_HOST adds to them.
    pub serving_names: Vec<String>,
}

/// Who may call.
#[derive(Debug, Clone)]
pub struct AuthnConfig {
    /// JWT_AUDIENCES.
    pub audiences: Vec<String>,
    /// JWT_ISSUER and JWKS_FILE: tokens that are checked offline. A folder needs them; an API server reviews tokens
    /// itself.
    pub jwt: Option<(String, PathBuf)>,
}

impl Config {
    /// Reads everything from `env`.
    pub fn from_env(env: &dyn Env) -> Result<Self, ConfigErrors> {
        let mut reader = Vars::new(env);
        let vars = &mut reader;
        let root_namespace = non_empty(vars, "ROOT_NAMESPACE", "istio-system");
        let cluster_domain = non_empty(vars, "CLUSTER_DOMAIN", "cluster.local");
        let serving_names = serving_names(vars, &root_namespace, &cluster_domain);
        let source = source(vars);
        // Where nothing says which it is, a folder is what is being set up by hand.
        let has_server = ["KUBECONFIG", "KUBERNETES_SERVICE_HOST"]
            .iter()
            .any(|key| vars.string(key).is_some_and(|value| !value.is_empty()));
        let is_folder = matches!(source, source::Settings::Folder(_)) || !has_server;
        let config = Self {
            source,
            mesh: MeshConfig {
                trust_domain: non_empty(vars, "TRUST_DOMAIN", "cluster.local"),
                cluster_id: non_empty(vars, "CLUSTER_ID", "Kubernetes"),
                root_namespace,
                cluster_domain,
                same_node: vars.bool("SAME_NODE_FAST_PATH", true),
                allow_waypoints: vars.bool("PILOT_AUTO_ALLOW_WAYPOINT_POLICY", false),
                revision: revision(vars),
                pod_name: pod_name(vars, is_folder),
                waypoint_image: vars.string("WAYPOINT_IMAGE").filter(|image| !image.is_empty()),
            },
            listen: ListenConfig {
                plaintext: address(vars, "GRPC_ADDR", 15010),
                secure: address(vars, "SECURE_GRPC_ADDR", 15012),
                monitoring: address(vars, "MONITORING_ADDR", 15014),
                http: address(vars, "HTTP_ADDR", 8080),
            },
            ca: CaConfig {
                data_dir: if is_folder {
                    Some(vars.required("AQUIFER_DATA_DIR").into())
                } else {
                    vars.string("AQUIFER_DATA_DIR").map(PathBuf::from)
                },
                // The kubelet brings a changed ConfigMap into pods within a minute and a half.
                min_overlap: vars
                    .duration("ROOT_ROTATION_MIN_OVERLAP", Duration::from_secs(if is_folder { 0 } else { 120 })),
                lifetimes: lifetimes(vars),
                trusted_node_accounts: vars
                    .with("CA_TRUSTED_NODE_ACCOUNTS", accounts)
                    .unwrap_or_else(|| vec![("istio-system".into(), "ztunnel".into())]),
                serving_names,
            },
            authn: AuthnConfig {
                audiences: vars.with("JWT_AUDIENCES", |text| Ok(list(text))).unwrap_or_else(|| vec!["istio-ca".into()]),
                jwt: jwt(vars, is_folder),
            },
            telemetry: telemetry::Settings::from_vars(vars),
        };
        reader.finish().map(|()| config)
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

/// Replicas report under their names, and the leader is known by it: two of one name would be taken for one.
fn pod_name(vars: &mut Vars<'_>, is_folder: bool) -> String {
    match vars.string("POD_NAME").filter(|name| !name.is_empty()) {
        Some(name) => return name,
        None if is_folder => {}
        None => vars.error(
            "POD_NAME",
            "must be set, so that replicas are told apart: give the container this variable by the downward API \
             (valueFrom.fieldRef.fieldPath: metadata.name)",
        ),
    }
    "istiod-lite".to_owned()
}

fn jwt(vars: &mut Vars<'_>, needed: bool) -> Option<(String, PathBuf)> {
    let is_set = ["JWT_ISSUER", "JWKS_FILE"].iter().any(|key| vars.string(key).is_some_and(|v| !v.is_empty()));
    (needed || is_set).then(|| (vars.required("JWT_ISSUER"), vars.required("JWKS_FILE").into()))
}

fn revision(vars: &mut Vars<'_>) -> Revision {
    let name = non_empty(vars, "REVISION", revision::DEFAULT);
    if let Err(remedy) = revision::check_name(&name) {
        vars.error("REVISION", remedy);
    }
    let tags = list(&vars.string_or("REVISION_TAGS", ""));
    let is_default = vars.bool("DEFAULT_REVISION", name == revision::DEFAULT);
    Revision::new(&name, tags, is_default)
}

fn non_empty(vars: &mut Vars<'_>, key: &str, default: &str) -> String {
    vars.string(key).filter(|v| !v.is_empty()).unwrap_or_else(|| default.to_owned())
}

/// `host:port`, or Go's `:port` for every address.
fn address(vars: &mut Vars<'_>, key: &str, port: u16) -> SocketAddr {
    vars.with(key, |text| {
        let full = if text.starts_with(':') { format!("[::]{text}") } else { text.to_owned() };
        full.parse().map_err(|_| format!("{text:?} is not an address such as \"[::]:{port}\""))
    })
    .unwrap_or_else(|| (Ipv6Addr::UNSPECIFIED, port).into())
}

fn lifetimes(vars: &mut Vars<'_>) -> Lifetimes {
    let default = ttl(vars, "DEFAULT_WORKLOAD_CERT_TTL", Duration::from_secs(86_400));
    let max = ttl(vars, "MAX_WORKLOAD_CERT_TTL", Duration::from_secs(90 * 86_400));
    if default > max {
        vars.error("DEFAULT_WORKLOAD_CERT_TTL", "is above MAX_WORKLOAD_CERT_TTL");
    }
    Lifetimes { default, max }
}

fn ttl(vars: &mut Vars<'_>, key: &str, default: Duration) -> Duration {
    let value = vars.duration(key, default);
    if !(SHORTEST_TTL..=LONGEST_TTL).contains(&value) {
        vars.error(key, "must lie between 1s and ten years");
        return default;
    }
    value
}

fn accounts(text: &str) -> Result<Vec<(String, String)>, String> {
    list(text)
        .into_iter()
        .map(|entry| match entry.split_once('/') {
            Some((ns, sa)) if !ns.is_empty() && !sa.is_empty() && !sa.contains('/') => {
                Ok((ns.to_owned(), sa.to_owned()))
            }
            _ => Err(format!("{entry:?} is not <namespace>/<service account>")),
        })
        .collect()
}

fn list(text: &str) -> Vec<String> {
    text.split(',').map(str::trim).filter(|s| !s.is_empty()).map(str::to_owned).collect()
}

fn serving_names(vars: &mut Vars<'_>, namespace: &str, domain: &str) -> Vec<String> {
    let mut names = vec![
        format!("istiod.{namespace}.svc"),
        format!("istiod.{namespace}.svc.{domain}"),
        "istiod".to_owned(),
        "localhost".to_owned(),
    ];
    names.extend(list(&vars.string_or("ISTIOD_CUSTOM_HOST", "")));
    names
}

#[cfg(test)]
mod tests {
    use super::*;
    use aquifer_runtime::env::{Asked, MapEnv};

    #[test]
    fn every_variable_is_told_of() {
        let asked = Asked::default();
        let _ = Config::from_env(&asked);
        let silent = asked.untold(SETTINGS);
        assert!(silent.is_empty(), "`istiod-lite --help` does not say what these do: {silent:?}");
    }

    const REQUIRED: [(&str, &str); 4] =
        [("AQUIFER_MANIFESTS", "/m"), ("AQUIFER_DATA_DIR", "/d"), ("JWT_ISSUER", "lab"), ("JWKS_FILE", "/jwks.json")];

    fn with(extra: &[(&str, &str)]) -> MapEnv {
        REQUIRED.iter().chain(extra).copied().collect()
    }

    #[test]
    fn defaults_are_istios() {
        let config = Config::from_env(&with(&[])).unwrap();
        assert_eq!(config.mesh.trust_domain, "cluster.local");
        assert_eq!(config.mesh.cluster_id, "Kubernetes");
        assert!(config.mesh.same_node);
        assert_eq!((config.mesh.revision, config.mesh.waypoint_image), (Revision::default(), None));
        let off = Config::from_env(&with(&[("SAME_NODE_FAST_PATH", "false")])).unwrap();
        assert!(!off.mesh.same_node);
        assert_eq!(config.listen.secure, "[::]:15012".parse().unwrap());
        assert_eq!(config.listen.http, "[::]:8080".parse().unwrap());
        assert_eq!(config.ca.lifetimes.default, Duration::from_secs(86_400));
        assert_eq!(config.ca.trusted_node_accounts, [("istio-system".to_owned(), "ztunnel".to_owned())]);
        assert_eq!(
            config.ca.serving_names,
            ["istiod.istio-system.svc", "istiod.istio-system.svc.cluster.local", "istiod", "localhost"]
        );
        assert_eq!(config.authn.audiences, ["istio-ca"]);
    }

    #[test]
    fn everything_missing_is_told_at_once() {
        let text = Config::from_env(&MapEnv::default()).unwrap_err().to_string();
        for (key, _) in REQUIRED {
            assert!(text.contains(&format!("{key}: must be set")), "{text}");
        }
    }

    /// Two replicas of one name would write over each other's reports.
    #[test]
    fn replicas_of_a_cluster_must_have_names() {
        let of_cluster = |extra: &[(&str, &str)]| {
            Config::from_env(&extra.iter().chain(&[("KUBECONFIG", "/k")]).copied().collect::<MapEnv>())
        };
        for extra in [&[][..], &[("POD_NAME", "")]] {
            let error = of_cluster(extra).unwrap_err().to_string();
            assert!(error.contains("POD_NAME: must be set") && error.contains("metadata.name"), "{error}");
            assert_eq!(error.matches("POD_NAME").count(), 1, "{error}");
        }
        assert_eq!(of_cluster(&[("POD_NAME", "istiod-a")]).unwrap().mesh.pod_name, "istiod-a");
        assert_eq!(Config::from_env(&with(&[])).unwrap().mesh.pod_name, "istiod-lite", "of a folder there is one");
    }

    #[test]
    fn bad_values_name_their_variable() {
        let table = [
            ("DEFAULT_WORKLOAD_CERT_TTL", "soon", "is not a duration"),
            ("DEFAULT_WORKLOAD_CERT_TTL", "91d", "is above MAX_WORKLOAD_CERT_TTL"),
            ("MAX_WORKLOAD_CERT_TTL", "0", "between"),
            ("MAX_WORKLOAD_CERT_TTL", "90000h0m1s", "between"),
            ("SECURE_GRPC_ADDR", "15012", "is not an address"),
            ("CA_TRUSTED_NODE_ACCOUNTS", "istio-system/ztunnel,ztunnel", "is not <namespace>/"),
            ("RUST_LOG", "a=loud", "RUST_LOG"),
            ("REVISION", "1.30", "must be lower-case letters"),
        ];
        for (key, value, expect) in table {
            let error = Config::from_env(&with(&[(key, value)])).unwrap_err().to_string();
            assert!(error.contains(key) && error.contains(expect), "{key}={value}: {error}");
        }
    }

    #[test]
    fn lists_and_short_addresses() {
        let env = with(&[
            ("GRPC_ADDR", ":15999"),
            ("CA_TRUSTED_NODE_ACCOUNTS", "a/b, c/d"),
            ("ISTIOD_CUSTOM_HOST", "mesh.example,10.0.0.1"),
            ("JWT_AUDIENCES", "x,y"),
            ("REVISION", "1-30"),
            ("REVISION_TAGS", "prod, stable"),
        ]);
        let config = Config::from_env(&env).unwrap();
        assert_eq!(config.listen.plaintext, "[::]:15999".parse().unwrap());
        assert_eq!(config.ca.trusted_node_accounts.len(), 2);
        assert!(config.ca.serving_names.contains(&"mesh.example".to_owned()));
        assert_eq!(config.authn.audiences, ["x", "y"]);
        assert_eq!(config.mesh.revision, Revision::new("1-30", ["prod".into(), "stable".into()], false));
    }
}
