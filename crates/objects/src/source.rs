//! Where objects come from and go to: a folder or an API server, behind one stream and one writer.

mod select;
#[cfg(test)]
mod tests;
mod watch;
mod write;

use std::fmt;
use std::path::PathBuf;

use prometheus_client::registry::Registry;
pub use select::Selection;
pub use watch::Watch;
pub(crate) use write::key_of;
pub use write::{WriteError, Writer};

use crate::cluster::{Cluster, ClusterError};
use crate::folder::{Folder, FolderError};
use crate::kinds::{Kind, Object, ObjectKey};

/// A store of objects. Cloning is cheap.
#[derive(Clone, Debug)]
pub enum Source {
    /// A folder of manifests.
    Folder(Folder),
    /// A Kubernetes API server.
    Cluster(Cluster),
}

/// Which store a process shall use; its environment says so.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Settings {
    /// The folder of manifests at this path, which exists.
    Folder(PathBuf),
    /// The API server that this file names.
    Kubeconfig(PathBuf),
    /// The API server of the pod that we run in, by its service account.
    InCluster,
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The folder's fault.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// The API server's, or that of how it is to be reached.
    #[error(transparent)]
    Cluster(#[from] ClusterError),
}

impl Settings {
    /// The choice from the values of `AQUIFER_MANIFESTS` (a folder), `KUBECONFIG` (a file) and
    /// `KUBERNETES_SERVICE_HOST` (set in every pod), in this order; empty ones count as unset.
    ///
    /// The error is for whoever has to set one of them.
    pub fn choose(
        manifests: Option<&str>,
        kubeconfig: Option<&str>,
        service_host: Option<&str>,
    ) -> Result<Self, &'static str> {
        let set = |value: Option<&str>| value.filter(|value| !value.is_empty()).map(str::to_owned);
        match (set(manifests), set(kubeconfig), set(service_host)) {
            (Some(folder), ..) => Ok(Self::Folder(folder.into())),
            (None, Some(file), _) => Ok(Self::Kubeconfig(file.into())),
            (None, None, Some(_)) => Ok(Self::InCluster),
            (None, None, None) => {
                Err("must be set to a folder of manifests, or KUBECONFIG to a file that names an API \
                                       server; only in a pod is neither needed")
            }
        }
    }

    /// The variable that chose it, for messages.
    pub fn variable(&self) -> &'static str {
        match self {
            Self::Folder(_) => "AQUIFER_MANIFESTS",
            Self::Kubeconfig(_) => "KUBECONFIG",
            Self::InCluster => "KUBERNETES_SERVICE_HOST",
        }
    }

    /// Makes the store ready. An API server need not answer yet.
    ///
    /// The folder is another's to make: a mistyped path must not read as an empty mesh.
    pub async fn open(&self) -> Result<Source, SourceError> {
        Ok(match self {
            Self::Folder(path) => Source::Folder(Folder::existing(path)?),
            Self::Kubeconfig(file) => Source::Cluster(Cluster::from_kubeconfig(file).await?),
            Self::InCluster => Source::Cluster(Cluster::in_cluster()?),
        })
    }
}

impl fmt::Display for Settings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Folder(path) => write!(f, "folder {}", path.display()),
            Self::Kubeconfig(file) => write!(f, "API server of {}", file.display()),
            Self::InCluster => f.write_str("API server of this cluster"),
        }
    }
}

impl Source {
    /// Sends every object of the kinds, then `Synced`, then each change.
    ///
    /// Kinds that the API server doesn't serve have no objects until it does. Never ends while the source can be
    /// asked again.
    pub fn watch(&self, kinds: &[Kind]) -> Result<Watch, SourceError> {
        self.watch_selected(kinds.iter().copied().map(Selection::from).collect())
    }

    /// The same for parts of kinds. Selections of one kind must not overlap.
    pub fn watch_selected(&self, selections: Vec<Selection>) -> Result<Watch, SourceError> {
        match self {
            Self::Folder(folder) => {
                let mut kinds: Vec<Kind> = selections.iter().map(|selection| selection.kind).collect();
                kinds.sort_unstable();
                kinds.dedup();
                Ok(Watch::of_folder(folder.watch(&kinds)?, selections))
            }
            Self::Cluster(cluster) => Ok(Watch::of_stream(cluster.watch(selections))),
        }
    }

    /// A writer of one field manager's fields.
    pub fn writer(&self, manager: &'static str) -> Writer {
        match self {
            Self::Folder(folder) => Writer::folder(folder.root(), manager),
            Self::Cluster(cluster) => Writer::cluster(cluster.writer(manager)),
        }
    }

    /// Adds how old the objects of an API server are to the registry. A folder is always current.
    pub fn register(&self, registry: &mut Registry) {
        if let Self::Cluster(cluster) = self {
            cluster.register(registry);
        }
    }

    /// Every object of the selections as it stands now, and what could not be read, as sentences.
    pub async fn read(&self, selections: &[Selection]) -> Result<(Vec<Object>, Vec<String>), SourceError> {
        match self {
            Self::Folder(folder) => {
                let (folder, selections) = (folder.clone(), selections.to_vec());
                let kinds: Vec<Kind> = selections.iter().map(|selection| selection.kind).collect();
                let read = tokio::task::spawn_blocking(move || folder.read(&kinds)).await;
                let (mut objects, problems) = read.unwrap_or_default();
                objects.retain(|object| selections.iter().any(|selection| selection.matches(object)));
                Ok((objects, problems.iter().map(ToString::to_string).collect()))
            }
            Self::Cluster(cluster) => Ok(cluster.read(selections).await?),
        }
    }

    /// One object as it stands now.
    pub async fn get(&self, key: &ObjectKey) -> Result<Option<Object>, SourceError> {
        match self {
            Self::Folder(folder) => {
                let (folder, key) = (folder.clone(), key.clone());
                let found = tokio::task::spawn_blocking(move || folder.get(&key)).await;
                Ok(found.unwrap_or_default())
            }
            Self::Cluster(cluster) => Ok(cluster.get(key).await?),
        }
    }
}
