//! The way to the API server: who it is, who we are, and when a silent connection is a dead one.

use std::path::Path;
use std::time::Duration;

use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::ConfigExt;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use tower::{BoxError, ServiceBuilder};

use super::ClusterError;

/// A server that does not take the connection by then is tried again.
const CONNECT: Duration = Duration::from_secs(5);
/// A connection on which nobody speaks is asked after this time, and then every so often.
const KEEPALIVE: Duration = Duration::from_secs(15);
/// What was sent and nobody acknowledged by then was sent into the void.
const UNACKNOWLEDGED: Duration = Duration::from_secs(30);

pub(super) fn in_cluster() -> Result<Client, ClusterError> {
    let config = Config::incluster().map_err(|error| {
        ClusterError::Settings(format!(
            "cannot use the pod's service account: {}; set automountServiceAccountToken, or KUBECONFIG to a file",
            chain(&error)
        ))
    })?;
    client(config)
}

pub(super) async fn kubeconfig(file: &Path) -> Result<Client, ClusterError> {
    let refuse =
        |error: &dyn std::error::Error| ClusterError::Settings(format!("{}: {}", file.display(), chain(error)));
    let kubeconfig = Kubeconfig::read_from(file).map_err(|error| refuse(&error))?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await;
    client(config.map_err(|error| refuse(&error))?)
}

fn client(config: Config) -> Result<Client, ClusterError> {
    let refuse = |error: &dyn std::error::Error| {
        ClusterError::Settings(format!("API server {}: {}", config.cluster_url, chain(error)))
    };
    if rustls_provider_is_missing() {
        // Another thread was faster: then there is one.
        let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
    }
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT));
    http.set_keepalive(Some(KEEPALIVE));
    http.set_keepalive_interval(Some(KEEPALIVE));
    http.set_keepalive_retries(Some(2));
    http.set_tcp_user_timeout(Some(UNACKNOWLEDGED));
    let https = config.rustls_https_connector_with_connector(http).map_err(|error| refuse(&error))?;
    let sender = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build(https);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer().map_err(|error| refuse(&error))?)
        .layer(config.extra_headers_layer().map_err(|error| refuse(&error))?)
        .map_err(BoxError::from)
        .service(sender);
    Ok(Client::new(service, config.default_namespace.clone()))
}

fn rustls_provider_is_missing() -> bool {
    rustls::crypto::CryptoProvider::get_default().is_none()
}

/// An error and what caused it, as one sentence.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        cause = error.source();
    }
    text
}
