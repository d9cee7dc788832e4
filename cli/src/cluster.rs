//! Which cluster, or which folder in its place, a command is about.

use std::future::Future;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use aquifer_objects::{Source, source};

/// Runs what asks a cluster to its end.
pub(crate) fn block_on<T>(work: impl Future<Output = Result<T>>) -> Result<T> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start")?.block_on(work)
}

/// The objects of the kubeconfig's cluster; those of the folder, if only that is named.
pub(crate) async fn source(manifests: Option<&Path>, kubeconfig: Option<&Path>) -> Result<Source> {
    let settings = match (manifests, kubeconfig) {
        (Some(folder), None) => source::Settings::Folder(folder.to_owned()),
        (_, file) => source::Settings::Kubeconfig(self::kubeconfig(file)?),
    };
    settings.open().await.with_context(|| format!("cannot use the {settings}"))
}

/// The kubeconfig that is named, else the one where kubectl looks.
pub(crate) fn kubeconfig(named: Option<&Path>) -> Result<PathBuf> {
    match named {
        Some(file) => Ok(file.to_owned()),
        None => home_kubeconfig().context("neither --kubeconfig nor a home directory is known"),
    }
}

/// Where kubectl looks, if there is a home directory.
pub(crate) fn home_kubeconfig() -> Option<PathBuf> {
    Some(std::env::home_dir()?.join(".kube/config"))
}
