//! Where a lab keeps what. Everything lies under one folder, which goes with the lab.

use std::path::{Path, PathBuf};

/// Where all labs of the machine lie.
pub(crate) const LABS: &str = "/run/aquifer/labs";

/// The folder of one lab.
#[derive(Debug, Clone)]
pub(crate) struct Paths {
    root: PathBuf,
}

impl Paths {
    pub(crate) fn of(name: &str) -> Self {
        Self { root: Path::new(LABS).join(name) }
    }

    pub(crate) fn at(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The lab's name.
    pub(crate) fn name(&self) -> String {
        self.root.file_name().unwrap_or_default().to_string_lossy().into_owned()
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Held locked as long as the lab lives: how a live lab is told from what a dead one left.
    pub(crate) fn lock(&self) -> PathBuf {
        self.root.join("lock")
    }

    pub(crate) fn options(&self) -> PathBuf {
        self.root.join("options.json")
    }

    /// The process id of the lab's pid 1 as the machine sees it.
    pub(crate) fn pid(&self) -> PathBuf {
        self.root.join("pid")
    }

    pub(crate) fn control(&self) -> PathBuf {
        self.root.join("control.sock")
    }

    pub(crate) fn manifests(&self) -> PathBuf {
        self.root.join("manifests")
    }

    /// What one node's agent and ztunnel share.
    pub(crate) fn node(&self, node: &str) -> PathBuf {
        self.root.join("nodes").join(node)
    }

    /// One file a pod, named by its uid, that holds the pod's network namespace.
    pub(crate) fn netns(&self, node: &str) -> PathBuf {
        self.node(node).join("netns")
    }

    pub(crate) fn ztunnel_socket(&self, node: &str) -> PathBuf {
        self.node(node).join("ztunnel.sock")
    }

    pub(crate) fn plugin_socket(&self, node: &str) -> PathBuf {
        self.node(node).join("pluginevent.sock")
    }

    /// The resolver's settings, and the Services' names for it.
    pub(crate) fn dns(&self) -> PathBuf {
        self.root.join("dns")
    }

    /// istiod-lite's data: its root key and certificate.
    pub(crate) fn istiod(&self) -> PathBuf {
        self.root.join("istiod")
    }

    pub(crate) fn root_cert(&self) -> PathBuf {
        self.istiod().join("root-cert.pem")
    }

    /// The public key of the lab's tokens. The private one is never written.
    pub(crate) fn jwks(&self) -> PathBuf {
        self.root.join("tokens").join("jwks.json")
    }

    /// The API server's keys and data, and the kubeconfigs of those who call it.
    pub(crate) fn kube(&self) -> PathBuf {
        self.root.join("kube")
    }

    /// A pod's own files: hosts, resolv.conf, token.
    pub(crate) fn pod(&self, uid: &str) -> PathBuf {
        self.root.join("pods").join(uid)
    }

    pub(crate) fn logs(&self) -> PathBuf {
        self.root.join("logs")
    }

    pub(crate) fn log(&self, namespace: &str, name: &str) -> PathBuf {
        self.logs().join(namespace).join(format!("{name}.log"))
    }

    /// pid 1's own log.
    pub(crate) fn lab_log(&self) -> PathBuf {
        self.logs().join("lab.log")
    }
}
