//! What a cluster has before anybody applied anything: nodes, namespaces, service accounts.

use std::sync::Arc;

use aquifer_objects::{Kind, ObjectKey};
use k8s_openapi::api::core::v1::Namespace;
use serde_json::{Value, json};

use super::model::Model;
use crate::error::{LabError, Result};
use crate::init::components::stable_uid;
use crate::init::kubelet::Kubelet;
use crate::init::shared::{Node, Shared};
use crate::init::{net, sandbox};

const NAMESPACES: [&str; 3] = ["default", "kube-system", "istio-system"];
const ACCOUNTS: [(&str, &str); 3] =
    [("istio-system", "istiod"), ("istio-system", "istio-cni"), ("istio-system", "ztunnel")];

/// The wire and the nodes on it. Blocks.
pub(super) fn nodes(shared: &Arc<Shared>) -> Result<Vec<Node>> {
    sandbox::set_sysctls(&net::ROUTER_SYSCTLS)?;
    net::wire_up(&shared.reaper, shared.plan)?;
    let mut nodes = Vec::new();
    for number in 1..=shared.options.nodes {
        let name = format!("node{number}");
        let netns = sandbox::new_netns(&net::ROUTER_SYSCTLS)?;
        sandbox::mount_netns_folder(&shared.paths.netns(&name))?;
        net::connect_node(&shared.reaper, shared.plan, number, &netns)?;
        let kubelet = Kubelet::start(&name, Arc::clone(&netns))?;
        nodes.push(Node { name, number, ips: shared.plan.node(number), net: netns, kubelet });
    }
    Ok(nodes)
}

/// The cluster's own objects.
pub(super) async fn objects(shared: &Shared) -> Result<()> {
    let apply =
        async |object: Value| shared.store().apply(object).await.map_err(|error| LabError::Start(error.to_string()));
    for name in NAMESPACES {
        apply(namespace(name)).await?;
        apply(service_account(name, "default")).await?;
    }
    if shared.options.mesh {
        for (namespace, name) in ACCOUNTS {
            apply(service_account(namespace, name)).await?;
        }
    }
    for node in shared.nodes() {
        apply(self::node(shared, node)).await?;
    }
    Ok(())
}

/// What an API server gives a namespace that somebody made: its name as a label, and a default service account.
pub(super) async fn furnish_namespace(shared: &Shared, namespace: &Namespace, model: &Model) {
    let name = namespace.metadata.name.as_deref().unwrap_or_default();
    let key = ObjectKey::new(Kind::Namespace, "", name);
    if model.has(&key) || NAMESPACES.contains(&name) || namespace.metadata.deletion_timestamp.is_some() {
        return;
    }
    let labels = json!({"metadata": {"labels": {"kubernetes.io/metadata.name": name}}});
    let labelled = match shared.store().remote() {
        // It does so itself.
        Some(_) => Ok(()),
        None => shared.store().patch(&key, labels).await,
    };
    let default = ObjectKey::new(Kind::ServiceAccount, name, "default");
    let made = match model.has(&default) {
        true => Ok(()),
        false => shared.store().apply(service_account(name, "default")).await,
    };
    if let Err(error) = labelled.and(made) {
        tracing::debug!(namespace = name, %error, "furnishing a namespace");
    }
}

fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": name, "labels": {"kubernetes.io/metadata.name": name}},
    })
}

fn service_account(namespace: &str, name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ServiceAccount",
        "metadata": {"name": name, "namespace": namespace, "uid": stable_uid("serviceaccount", namespace, name)},
    })
}

fn node(shared: &Shared, node: &Node) -> Value {
    let addresses = node.ips.iter().map(|ip| json!({"type": "InternalIP", "address": ip}));
    let addresses: Vec<Value> = addresses.chain([json!({"type": "Hostname", "address": node.name})]).collect();
    let ranges = shared.plan.pod_ranges(node.number);
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": node.name,
            "uid": stable_uid("node", "", &node.name),
            "labels": {"kubernetes.io/hostname": node.name, "kubernetes.io/os": "linux", "kubernetes.io/arch": arch},
        },
        "spec": {"podCIDR": ranges[0], "podCIDRs": ranges},
        "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}
