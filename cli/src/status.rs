//! `aquifer status`: who is connected to the control plane and how far each proxy is with it.
//!
//! It reads `/debug/proxies` of every replica of istiod-lite: at the addresses that it is told, or, of a cluster, through
//! `kubectl port-forward`.

mod fetch;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::path::PathBuf;

use anyhow::Result;
use clap::{Args, ValueEnum};
use serde::Deserialize;
use serde_json::Value;

#[derive(Debug, Args)]
pub(crate) struct Command {
    /// The debug port of istiod-lite, as host:port; of each replica. Without it, the pods of the cluster are asked
    #[arg(short, long = "address")]
    addresses: Vec<String>,
    /// A file with a token for a debug port that is not on this machine
    #[arg(long, requires = "addresses")]
    token_file: Option<PathBuf>,
    /// The control plane's namespace
    #[arg(long, default_value = "istio-system")]
    root_namespace: String,
    /// The cluster's kubeconfig; kubectl's own choice if it is not set
    #[arg(short = 'c', long, env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// Only proxies of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// How to print
    #[arg(short, long, value_enum, default_value_t = Output::Text)]
    output: Output,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Output {
    Text,
    Json,
}

/// What `/debug/proxies` says.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Page {
    #[serde(default)]
    proxies: Vec<Proxy>,
}

/// One connected proxy.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Proxy {
    name: String,
    #[serde(default)]
    namespace: String,
    version: Option<String>,
    node: Option<String>,
    connected_since: Option<String>,
    certificate_expiry: Option<String>,
    #[serde(default)]
    types: BTreeMap<String, Progress>,
}

/// How far a proxy is with one type of resources.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Progress {
    state: String,
    sent: Option<u64>,
    acked: Option<u64>,
    #[serde(default)]
    lag_seconds: f64,
    last_nack: Option<Nack>,
}

/// What a proxy refused last.
#[derive(Clone, Debug, Deserialize)]
struct Nack {
    at: String,
    reason: String,
}

/// The exit code: 2 if a proxy refuses what it was last sent.
pub(crate) fn run(command: &Command) -> Result<u8> {
    let mut pages = Vec::new();
    for (replica, text) in fetch::pages(command)? {
        let page: Value = serde_json::from_str(&text)
            .map_err(|error| anyhow::anyhow!("{replica} answers with what is no page of proxies: {error}"))?;
        pages.push((replica, page));
    }
    let mut all = Vec::new();
    for (replica, page) in &pages {
        let page: Page = serde_json::from_value(page.clone())
            .map_err(|error| anyhow::anyhow!("{replica} is another version of istiod-lite: {error}"))?;
        all.extend(page.proxies.into_iter().map(|proxy| (replica.clone(), proxy)));
    }
    if let Some(namespace) = &command.namespace {
        all.retain(|(_, proxy)| proxy.namespace == *namespace);
    }
    match command.output {
        Output::Json => {
            let pages: serde_json::Map<String, Value> = pages.into_iter().collect();
            println!("{}", Value::Object(pages));
        }
        Output::Text => print!("{}", table::table(&all, time::OffsetDateTime::now_utc())),
    }
    Ok(exit_code(&all))
}

fn exit_code(all: &[(String, Proxy)]) -> u8 {
    let refused = all.iter().flat_map(|(_, proxy)| proxy.types.values()).any(|progress| progress.state == "REJECTED");
    if refused { 2 } else { 0 }
}
