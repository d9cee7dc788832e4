//! Signers in a folder that is this process's alone.

use std::path::{Path, PathBuf};

use time::OffsetDateTime;

use super::{CACERTS, CACERTS_NEXT, Place, Signing, State, StoreError, Stored};
use crate::ca::fingerprint::sha256;
use crate::ca::material::Material;
use crate::ca::root::{self, RootError};

const STATE_FILE: &str = "root-rotation.json";

/// The data folder. Cloning is cheap.
#[derive(Debug, Clone)]
pub struct FolderStore(PathBuf);

impl FolderStore {
    /// The folder at `path`, which is made when it is first read.
    pub fn new(path: PathBuf) -> Self {
        Self(path)
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn load(&self, trust_domain: &str, now: OffsetDateTime) -> Result<Stored, StoreError> {
        let path = self.0.join(STATE_FILE);
        let text = root::read_secret(&path)?;
        let state = match text.as_deref() {
            Some(text) => State::from_json(text).map_err(|reason| RootError::Invalid { path: path.clone(), reason })?,
            None => None,
        };
        let next = root::plugged_in(&self.0.join(CACERTS_NEXT), now)?;
        let version = text.as_deref().map(|text| format!("{:02x?}", sha256(text.as_bytes())));
        let (signing, done) = match state {
            Some(State::Rotating(kept)) => (Signing::Rotating(kept), None),
            other => {
                let material = root::open(&self.0, trust_domain, now)?;
                let plugged = root::plugged_in(&self.0.join(CACERTS), now)?.is_some();
                let place = if plugged { Place::PluggedIn } else { Place::SelfSigned };
                let done = match other {
                    Some(State::Done(done)) => Some(done),
                    _ => None,
                };
                (Signing::Plain(material, place), done)
            }
        };
        Ok(Stored { signing, next, done, version })
    }

    pub(super) fn keep(&self, text: &str) -> Result<(), StoreError> {
        Ok(root::overwrite(&self.0.join(STATE_FILE), text.as_bytes(), 0o600)?)
    }

    pub(super) fn settle(&self, material: &Material, place: Place) -> Result<(), StoreError> {
        match place {
            Place::SelfSigned => root::replace(&self.0, material)?,
            Place::PluggedIn => {
                let (from, to) = (self.0.join(CACERTS_NEXT), self.0.join(CACERTS));
                let io = |action, path: &Path| {
                    let path = path.to_owned();
                    move |source| RootError::Io { action, path, source }
                };
                std::fs::create_dir_all(&to).map_err(io("creating", &to))?;
                // A reader between two writes finds a pair that does not fit, and keeps what it has.
                for (name, content) in material.entries() {
                    root::overwrite(&to.join(&name), &content, 0o600)?;
                }
                if from.exists() {
                    std::fs::remove_dir_all(&from).map_err(io("removing", &from))?;
                }
            }
        }
        Ok(())
    }
}
