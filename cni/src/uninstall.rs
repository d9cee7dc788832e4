//! Taking the mesh off a node that no agent serves any more.
//!
//! ```text
//!   annotations ──peers hear──► rules, routes, sysctl of each pod ──► the node's table ──► memory, sockets
//! ```
//!
//! What pods there are is known twice: from the agent's memory, and from what the node shows of them, in case
//! the memory was lost. What cannot be cleaned does not keep the rest from it, and is told at the end; all of it may
//! be repeated.

use crate::agent::decision::{NOT_ENROLLED_REASON, REDIRECTION, annotation};
use crate::agent::worker::PEERS_HEAR;
use crate::app::{MANAGER, check_privileges, watched};
use crate::config::Config;
use crate::finder::{Finder, OnNode};
use crate::netns::{NetNs, NetNsId};
use crate::state::{Record, StateDir};
use crate::{migrate_req, probes, redirection};
use anyhow::{Context, bail};
use aquifer_objects::{Object, SourceError, WriteError};
use std::collections::HashSet;
use std::io;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Removes everything that agents of this node ever laid. Called in the node's network namespace.
pub async fn uninstall(config: &Config) -> anyhow::Result<()> {
    check_privileges()?;
    if UnixStream::connect(&config.event_socket).is_ok() {
        bail!("an agent still answers at {}: stop it first", config.event_socket.display());
    }
    let mut left = Vec::new();
    if unmark(config, &mut left).await {
        // As when a single pod leaves: peers go back to plain TCP before anything is let go.
        tokio::time::sleep(PEERS_HEAR).await;
    }
    let host = NetNs::current().context("open the node's network namespace")?;
    clean_pods(config, host.id(), &mut left)?;
    if let Err(error) = probes::remove() {
        left.push(format!("the node's table: {error}"));
    }
    remove_files(config, &mut left);
    if left.is_empty() {
        tracing::info!("nothing of the mesh is left on this node");
        return Ok(());
    }
    bail!("not everything could be removed: {}", left.join("; "))
}

/// Takes our annotations off the node's pods; whether there were any.
async fn unmark(config: &Config, left: &mut Vec<String>) -> bool {
    let read = async {
        let source = config.source.open().await?;
        let pods = source.read(&watched(&config.node)).await?;
        Ok::<_, SourceError>((source.writer(MANAGER), pods.0))
    };
    let (writer, objects) = match read.await {
        Ok(read) => read,
        // The rules go all the same: without them the pods are plain ones, whatever is written of them.
        Err(error) => {
            left.push(format!("annotations of the node's pods: {error}"));
            return true;
        }
    };
    let mut any = false;
    for object in &objects {
        let Object::Pod(pod) = object else { continue };
        let here = pod.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(config.node.as_str());
        let marked = annotation(pod, REDIRECTION).is_some() || annotation(pod, NOT_ENROLLED_REASON).is_some();
        if !here || !marked {
            continue;
        }
        any = true;
        let none = [(REDIRECTION, None), (NOT_ENROLLED_REASON, None)];
        match writer.patch_annotations(&object.key(), pod.metadata.uid.as_deref(), &none).await {
            Ok(()) | Err(WriteError::NotFound(_) | WriteError::Conflict { .. }) => {}
            Err(error) => left.push(format!("annotations of {}: {error}", object.key())),
        }
    }
    any
}

fn clean_pods(config: &Config, host: NetNsId, left: &mut Vec<String>) -> anyhow::Result<()> {
    let finder = OnNode::new(config);
    let mut cleaned = HashSet::from([host]);
    // A folder that is not there has nothing in it; opening would create it.
    let state = match config.state_folder.is_dir() {
        true => Some(StateDir::open(&config.state_folder).context("state folder")?),
        false => None,
    };
    let records = state.as_ref().map(StateDir::load).transpose().context("read the state folder")?.unwrap_or_default();
    for record in records {
        let name = format!("{}/{}", record.namespace, record.name);
        // A namespace that cannot be opened is gone, and its rules with it.
        if let Some(netns) = finder.recorded(&record)
            && cleaned.insert(netns.id())
            && let Err(error) = clean(&netns, Some(&record))
        {
            left.push(format!("{name}: {error}"));
            continue;
        }
        tracing::info!(pod = %name, "taken out of the mesh");
        if let Some(Err(error)) = state.as_ref().map(|state| state.forget(&record.uid)) {
            left.push(format!("record of {name}: {error}"));
        }
    }
    for path in finder.all() {
        if let Ok(netns) = NetNs::open(&path)
            && cleaned.insert(netns.id())
            && let Err(error) = clean(&netns, None)
        {
            left.push(format!("{}: {error}", path.display()));
        }
    }
    Ok(())
}

fn clean(netns: &NetNs, record: Option<&Record>) -> io::Result<()> {
    let own = record.filter(|record| record.netns == netns.id()).and_then(|record| record.tcp_migrate_req.clone());
    netns.run(|| {
        redirection::remove().map_err(io::Error::other)?;
        if let Some(Err(error)) = own.map(|value| migrate_req::restore(&value)) {
            tracing::debug!(%error, "tcp_migrate_req stays as it is");
        }
        Ok(())
    })?
}

/// The sockets that nobody listens on, and the folder of records when it is empty.
fn remove_files(config: &Config, left: &mut Vec<String>) {
    let mut removed = |path: &Path, result: io::Result<()>| match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => left.push(format!("{}: {error}", path.display())),
        _ => {}
    };
    for socket in [&config.ztunnel_socket, &config.event_socket] {
        removed(socket, std::fs::remove_file(socket));
    }
    match std::fs::remove_dir(&config.state_folder) {
        // A pod that could not be cleaned is remembered for the next try.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => {}
        result => removed(&config.state_folder, result),
    }
}
