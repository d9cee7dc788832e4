//! `aquifer lab logs`.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aquifer_lab::{Component, Lab};
use clap::Args;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    /// The pod's namespace; for `ztunnel` and `agent` it may name the node
    #[arg(short, long)]
    namespace: Option<String>,
    /// The node of `ztunnel` or `agent`
    #[arg(long)]
    node: Option<String>,
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// `x`, `pod/x`, `deploy/x`, `istiod`, `ztunnel`, `ztunnel-node1`, `agent`, …
    pod: String,
}

pub(crate) async fn run(lab: &Lab, logs: &Logs) -> Result<()> {
    let path = path(lab, logs).await?;
    let mut file = std::fs::File::open(&path).with_context(|| format!("`{}` has written nothing yet", logs.pod))?;
    let mut stdout = std::io::stdout();
    loop {
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        stdout.write_all(&bytes)?;
        stdout.flush()?;
        if !logs.follow {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
        // A file that was cut starts again.
        if file.metadata()?.len() < file.stream_position()? {
            file.seek(SeekFrom::Start(0))?;
        }
    }
}

async fn path(lab: &Lab, logs: &Logs) -> Result<PathBuf> {
    match component(logs)? {
        Some(component) => Ok(lab.log_path(&component)),
        None => of_pod(lab, logs).await,
    }
}

/// The component that is meant, if it is one by its own name.
fn component(logs: &Logs) -> Result<Option<Component>> {
    let node = || {
        let node = logs.node.clone().or_else(|| logs.namespace.clone().filter(|name| is_node(name)));
        node.with_context(|| format!("say which node's {} with --node node1", logs.pod))
    };
    Ok(match logs.pod.as_str() {
        "istiod" | "istiod-lite" => Some(Component::Istiod),
        "ztunnel" => Some(Component::Ztunnel(node()?)),
        "agent" | "istio-cni-node" => Some(Component::Agent(node()?)),
        name => name.parse().ok().filter(|component| match component {
            Component::Istiod => true,
            // Else it is a component's pod: `ztunnel-x7k2p`.
            Component::Agent(node) | Component::Ztunnel(node) => is_node(node),
        }),
    })
}

fn is_node(name: &str) -> bool {
    name.strip_prefix("node").is_some_and(|number| number.parse::<u8>().is_ok())
}

async fn of_pod(lab: &Lab, logs: &Logs) -> Result<PathBuf> {
    let namespace = logs.namespace.as_deref().unwrap_or("default");
    let name = logs.pod.rsplit_once('/').map_or(logs.pod.as_str(), |(_, name)| name);
    let file = |name: &str| lab.state_dir().join("logs").join(namespace).join(format!("{name}.log"));
    match lab.pod(namespace, &logs.pod).await {
        Ok(pod) => {
            // A component keeps one file over all its pods.
            let components = lab.status().await?.components;
            let of = components.iter().find(|component| namespace == "istio-system" && component.pod == pod.name);
            Ok(of.map_or_else(|| file(&pod.name), |found| lab.log_path(&found.component)))
        }
        // A pod that is gone leaves its log.
        Err(_) if file(name).is_file() => Ok(file(name)),
        Err(error) => bail!(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn components_and_pods_are_told_apart() {
        let cases = [
            ("istiod", None, None, Some("istiod")),
            ("ztunnel", None, Some("node1"), Some("ztunnel-node1")),
            ("ztunnel", Some("node2"), None, Some("ztunnel-node2")),
            ("ztunnel", Some("istio-system"), Some("node1"), Some("ztunnel-node1")),
            ("agent", None, Some("node2"), Some("istio-cni-node-node2")),
            ("ztunnel-node1", None, None, Some("ztunnel-node1")),
            ("ztunnel-x7k2p", Some("istio-system"), None, None),
            ("deploy/orders", Some("shop"), None, None),
        ];
        for (pod, namespace, node, expect) in cases {
            let [namespace, node] = [namespace, node].map(|text| text.map(str::to_owned));
            let logs = Logs { namespace, node, follow: false, pod: pod.to_owned() };
            let found = component(&logs).unwrap().map(|component| component.to_string());
            assert_eq!(found.as_deref(), expect, "{logs:?}");
        }
        let nowhere = Logs { namespace: None, node: None, follow: false, pod: "ztunnel".to_owned() };
        assert!(component(&nowhere).unwrap_err().to_string().contains("--node"));
    }
}
