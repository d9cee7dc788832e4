//! `aquifer lab logs`.

use std::io::{Read, Seek, SeekFrom, Write};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use aquifer_lab::{Component, Lab};
use clap::Args;

use super::Which;

#[derive(Debug, Args)]
pub(crate) struct Logs {
    #[command(flatten)]
    which: Which,
    /// The pod's namespace; for `ztunnel` and `agent` the node
    #[arg(short, long)]
    namespace: Option<String>,
    /// Go on as more is written
    #[arg(short, long)]
    follow: bool,
    /// The pod, deployment or component
    pod: String,
}

pub(crate) async fn run(logs: Logs) -> Result<()> {
    let lab = logs.which.attach()?;
    let path = path(&lab, &logs).await?;
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
    let node = || logs.namespace.clone().with_context(|| format!("say which node's {} with -n node1", logs.pod));
    let component = match logs.pod.as_str() {
        "istiod" | "istiod-lite" => Component::Istiod,
        "ztunnel" => Component::Ztunnel(node()?),
        "agent" | "istio-cni-node" => Component::Agent(node()?),
        name => match name.parse::<Component>() {
            Ok(component) => component,
            Err(_) => return of_pod(lab, logs).await,
        },
    };
    Ok(lab.log_path(&component))
}

async fn of_pod(lab: &Lab, logs: &Logs) -> Result<PathBuf> {
    let namespace = logs.namespace.as_deref().unwrap_or("default");
    let file = |name: &str| lab.state_dir().join("logs").join(namespace).join(format!("{name}.log"));
    match lab.pod(namespace, &logs.pod).await {
        Ok(pod) => Ok(file(&pod.name)),
        // A pod that is gone leaves its log.
        Err(_) if file(&logs.pod).is_file() => Ok(file(&logs.pod)),
        Err(error) => bail!(error),
    }
}
