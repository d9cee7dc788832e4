//! `aquifer crds`: the definitions of Istio's kinds, as YAML or into a cluster.
//!
//! A cluster may have Istio's own of the same names. Those stay: what tells ours apart is a label.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aquifer_objects::Cluster;
use aquifer_objects::cluster::Installed;
use clap::{Args, Subcommand};
use serde_json::Value;

use crate::cluster;

/// The field manager of what we write.
const MANAGER: &str = "aquifer";

/// `deploy/crds/`, file by file.
const FILES: &[&str] = &[
    include_str!("../../deploy/crds/extensions.istio.io_trafficextensions.yaml"),
    include_str!("../../deploy/crds/extensions.istio.io_wasmplugins.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_destinationrules.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_envoyfilters.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_gateways.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_proxyconfigs.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_serviceentries.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_sidecars.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_virtualservices.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_workloadentries.yaml"),
    include_str!("../../deploy/crds/networking.istio.io_workloadgroups.yaml"),
    include_str!("../../deploy/crds/security.istio.io_authorizationpolicies.yaml"),
    include_str!("../../deploy/crds/security.istio.io_peerauthentications.yaml"),
    include_str!("../../deploy/crds/security.istio.io_requestauthentications.yaml"),
    include_str!("../../deploy/crds/telemetry.istio.io_telemetries.yaml"),
];

/// Definitions of Istio's kinds
#[derive(Debug, Args)]
pub(crate) struct Command {
    #[command(subcommand)]
    action: Action,
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Print them as one stream of YAML
    Print,
    /// Install them, or upgrade those that an older release installed; Istio's own are left as they are
    Apply {
        /// The cluster's kubeconfig; ~/.kube/config if neither this nor KUBECONFIG is set
        #[arg(short = 'c', long, env = "KUBECONFIG")]
        kubeconfig: Option<PathBuf>,
    },
}

pub(crate) fn run(command: &Command) -> Result<u8> {
    match &command.action {
        Action::Print => {
            print!("{}", stream());
            Ok(0)
        }
        Action::Apply { kubeconfig } => cluster::block_on(apply(kubeconfig.as_deref())),
    }
}

fn stream() -> String {
    FILES.iter().map(|file| format!("---\n{file}")).collect()
}

async fn apply(kubeconfig: Option<&Path>) -> Result<u8> {
    let file = cluster::kubeconfig(kubeconfig)?;
    let cluster =
        Cluster::from_kubeconfig(&file).await.context("cannot use the cluster (--kubeconfig names another)")?;
    for text in FILES {
        let definition: Value = serde_norway::from_str(text).context("a definition of this program")?;
        let name = definition["metadata"]["name"].as_str().unwrap_or_default();
        let installed = cluster.install_definition(MANAGER, &definition).await;
        println!("{name}: {}", outcome(installed.with_context(|| name.to_owned())?));
    }
    Ok(0)
}

fn outcome(installed: Installed) -> &'static str {
    match installed {
        Installed::Created => "created",
        Installed::Upgraded => "upgraded",
        Installed::Unchanged => "up to date",
        Installed::Foreign => "Istio's own, left as it is",
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use serde::Deserialize as _;

    use super::*;

    #[test]
    fn every_file_of_the_folder_is_printed() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/crds");
        let there = fs::read_dir(folder).unwrap().map(|entry| fs::read_to_string(entry.unwrap().path()).unwrap());
        let there: BTreeSet<String> = there.collect();
        let embedded: BTreeSet<String> = FILES.iter().map(|file| (*file).to_owned()).collect();
        assert!(there == embedded, "cli/src/crds.rs names other files than deploy/crds holds");

        let text = stream();
        let documents = serde_norway::Deserializer::from_str(&text).map(Value::deserialize);
        let documents: Vec<Value> = documents.map(Result::unwrap).collect();
        assert_eq!(documents.len(), FILES.len());
        assert!(documents.iter().all(|document| document["kind"] == "CustomResourceDefinition"));
    }
}
