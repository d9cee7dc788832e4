//! The control plane's process: settings from the environment, then [`app::run`].

use std::process::ExitCode;

use anyhow::Context as _;
use aquifer_istiod_lite::app;
use aquifer_istiod_lite::config::Config;
use aquifer_runtime::env::ProcessEnv;
use aquifer_runtime::telemetry;
use clap::Parser;

const SETTINGS: &str = "\
Settings (environment):
  AQUIFER_MANIFESTS          folder of Kubernetes manifests to watch (required)
  AQUIFER_DATA_DIR           folder of root-key.pem and root-cert.pem (required; made if absent)
  JWT_ISSUER, JWKS_FILE      issuer and keys of the callers' tokens (required)
  JWT_AUDIENCES              accepted audiences (istio-ca)
  TRUST_DOMAIN               (cluster.local)
  CLUSTER_ID                 (Kubernetes)
  CLUSTER_DOMAIN             (cluster.local)
  ROOT_NAMESPACE             (istio-system)
  REVISION                   which control plane this is, where several run side by side (default)
  REVISION_TAGS              other names of it in labels istio.io/rev
  DEFAULT_REVISION           whether objects without the label are its own (if REVISION is default)
  POD_NAME                   who this is among the replicas (istiod-lite)
  WAYPOINT_IMAGE             what waypoints run; without it none is deployed
  CA_TRUSTED_NODE_ACCOUNTS   who may ask for the identities of its node (istio-system/ztunnel)
  DEFAULT_WORKLOAD_CERT_TTL  (24h)
  MAX_WORKLOAD_CERT_TTL      (90d)
  ISTIOD_CUSTOM_HOST         more names for the serving certificate
  GRPC_ADDR                  xDS without TLS ([::]:15010)
  SECURE_GRPC_ADDR           xDS and CA with TLS ([::]:15012)
  MONITORING_ADDR            metrics ([::]:15014)
  HTTP_ADDR                  /ready, /debug/{syncz,configz,registryz,proxies} ([::]:8080)
  RUST_LOG, LOG_FORMAT       log level (info) and shape (text, json)";

/// Aquifer's control plane: Kubernetes objects to workload discovery, and the certificate authority.
#[derive(Parser)]
#[command(name = "istiod-lite", version, after_help = SETTINGS)]
struct Args {}

fn main() -> ExitCode {
    let Args {} = Args::parse();
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("istiod-lite: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> anyhow::Result<()> {
    let config = Config::from_env(&ProcessEnv)?;
    let _telemetry = telemetry::init(&config.telemetry)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("cannot start the runtime")?;
    runtime.block_on(app::run(config))
}
