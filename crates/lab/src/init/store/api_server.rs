//! Starts etcd and the API server on the wire between the nodes, and gives them what the mesh brings along: its kinds
//! and the rights of its accounts.

use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use aquifer_objects::crds::definition;
use aquifer_objects::{Cluster, Source};
use aquifer_runtime::Tracker;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{MANAGER, Remote, Store};
use crate::addresses::Plan;
use crate::api_server::{ApiServerPlan, Listen, Programs};
use crate::error::{During, LabError, Result};
use crate::init::reaper::{Place, Reaper, Running};
use crate::paths::Paths;

const PORT: u16 = 6443;
const ETCD: [u16; 2] = [2379, 2380];

/// It takes four seconds on an idle machine.
const READY: Duration = Duration::from_secs(60);

/// Rights of the mesh's accounts, as an installation has them.
const RIGHTS: [&str; 3] = [
    include_str!("../../../../../deploy/rbac/istiod-lite.yaml"),
    include_str!("../../../../../deploy/rbac/istio-cni.yaml"),
    include_str!("../../../../../deploy/rbac/ztunnel.yaml"),
];

/// Starts both and waits until they serve. The wire must be up.
pub(in crate::init) async fn start(
    paths: &Paths,
    plan: Plan,
    ipv6: bool,
    reaper: &Arc<Reaper>,
    tracker: &Tracker,
) -> Result<(Store, ApiServerPlan)> {
    let programs = Programs::find()?;
    let address = plan.wire()[0];
    let mut services = vec!["198.19.0.0/16".to_owned()];
    if ipv6 {
        services.push("fd00:19::/112".to_owned());
    }
    let names = vec!["127.0.0.1".to_owned()];
    let server = ApiServerPlan::prepare(&paths.kube(), Listen { address, names, port: PORT, etcd: ETCD, services })?;
    let etcd = launch(reaper, &programs.etcd, &server.etcd_arguments(), &paths.logs().join("etcd.log"))?;
    let log = paths.logs().join("kube-apiserver.log");
    let api_server = launch(reaper, &programs.api_server, &server.api_server_arguments(), &log)?;
    let cluster = Cluster::from_kubeconfig(&server.kubeconfig()).await;
    let cluster = cluster.map_err(|error| LabError::Start(error.to_string()))?;
    let client = cluster.client();
    let remote = Remote::new(Source::Cluster(cluster), client, tracker);
    let begin = Instant::now();
    while !remote.is_ready().await {
        let ended = [&etcd, &api_server].iter().any(|running| running.has_exited());
        if ended || begin.elapsed() > READY {
            let log = std::fs::read_to_string(&log).unwrap_or_default();
            let last = log.lines().last().unwrap_or("nothing").to_owned();
            return Err(LabError::Start(format!("the API server is not ready; it last said: {last}")));
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    install(&remote).await?;
    Ok((Store::Remote(remote), server))
}

fn launch(reaper: &Reaper, program: &Path, arguments: &[String], log: &Path) -> Result<Running> {
    let out = File::create(log).during(|| format!("making {}", log.display()))?;
    let err = out.try_clone().during(|| format!("making {}", log.display()))?;
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::null()).stdout(out).stderr(err);
    reaper.start(command, &Place::default()).during(|| format!("starting {}", program.display()))
}

async fn install(remote: &Remote) -> Result<()> {
    // The rights of the mesh's own namespace lie in it.
    let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "istio-system"}});
    remote.apply(namespace, MANAGER).await?;
    for kind in definition::all() {
        remote.apply(kind, MANAGER).await?;
    }
    for text in RIGHTS {
        for object in documents(text)? {
            remote.apply(object, MANAGER).await?;
        }
    }
    Ok(())
}

/// The objects of a YAML text.
pub(crate) fn documents(text: &str) -> Result<Vec<Value>> {
    let mut objects = Vec::new();
    for document in serde_norway::Deserializer::from_str(text) {
        let object = Value::deserialize(document).map_err(|error| LabError::Manifest(error.to_string()))?;
        if !object.is_null() {
            objects.push(object);
        }
    }
    Ok(objects)
}
