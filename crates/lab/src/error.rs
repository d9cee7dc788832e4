//! What can go wrong with a lab, each as one line that says what to do.

use std::time::Duration;

/// Result of a lab operation.
pub type Result<T> = std::result::Result<T, LabError>;

/// An error of the lab; its `Display` is one line and names the remedy where there is one.
#[derive(Debug, thiserror::Error)]
pub enum LabError {
    /// Namespaces need root.
    #[error("a lab makes network namespaces and needs root: run it with sudo")]
    NotRoot,
    /// Network namespaces and nftables are Linux.
    #[error("a lab needs Linux (network namespaces, nftables): run it in a Linux VM")]
    NotLinux,
    /// A program of the machine is missing.
    #[error("`{program}` is missing: install it with `apt-get install {package}`")]
    Missing {
        /// The program looked for.
        program: String,
        /// The Debian package that has it.
        package: String,
    },
    /// One of Aquifer's own binaries is missing.
    #[error(
        "the binary `{0}` is missing beside `aquifer`: build it with `cargo build`, or set AQUIFER_BIN to the path of `aquifer`"
    )]
    Binary(String),
    /// The program of Kubernetes that a cluster's store is made of.
    #[error("no API server at {0}: `make kube` builds it (once, some minutes), or set AQUIFER_KUBE to its folder")]
    NoApiServer(String),
    /// Too little room for logs and state.
    #[error("only {free_mib} MiB are free under {path}: a lab needs {needed_mib} MiB, free some disk")]
    NoSpace {
        /// Where the lab keeps its state.
        path: String,
        /// What is free.
        free_mib: u64,
        /// What is needed.
        needed_mib: u64,
    },
    /// No lab of that name is up.
    #[error("no lab named `{0}` is up: `aquifer lab list` shows those that are, `aquifer lab up` starts one")]
    NoSuchLab(String),
    /// The lab that was up a moment ago has ended.
    #[error("the lab `{0}` ended")]
    Ended(String),
    /// A lab of that name is up already.
    #[error("a lab named `{0}` is up already: take another name or `aquifer lab down --name {0}`")]
    Exists(String),
    /// The lab could not start.
    #[error("the lab did not start: {0}")]
    Start(String),
    /// The lab refused or failed a request.
    #[error("{0}")]
    Refused(String),
    /// A manifest is not acceptable.
    #[error("{0}")]
    Manifest(String),
    /// Something did not happen in time.
    #[error("{what}: not within {after:?}")]
    Timeout {
        /// What was waited for, and what was seen last.
        what: String,
        /// How long.
        after: Duration,
    },
    /// The operating system said no.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: String,
        /// What it said.
        error: std::io::Error,
    },
}

impl LabError {
    /// An IO error with what was tried.
    pub(crate) fn io(what: impl Into<String>, error: impl Into<std::io::Error>) -> Self {
        Self::Io { what: what.into(), error: error.into() }
    }
}

/// `.during("making X")?`: names what was tried in an IO or errno result.
pub(crate) trait During<T> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E: Into<std::io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, what: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|error| LabError::io(what(), error))
    }
}
