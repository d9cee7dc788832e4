//! Where signers and the state of a rotation are kept: a folder, or Secrets of the root namespace.
//!
//! | what | folder | Secret |
//! |---|---|---|
//! | plugged-in signer | `cacerts/` | `cacerts` |
//! | self-signed root | `root-key.pem`, `root-cert.pem` | `istio-ca-secret` |
//! | signer to change over to | `cacerts-next/` | `cacerts-next` |
//! | rotation | `root-rotation.json` | `aquifer-root-rotation` |
//!
//! A plugged-in signer comes before a self-signed root, as in Istio; both are adopted as they are.

mod folder;
mod secrets;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use zeroize::Zeroizing;

pub use self::folder::FolderStore;
pub use self::secrets::SecretStore;
use super::fingerprint::Fingerprint;
use super::material::Material;
use super::root::RootError;
use super::rotation::Rotation;

/// The plugged-in signer's name.
pub const CACERTS: &str = "cacerts";
/// The name of the signer to change over to.
pub const CACERTS_NEXT: &str = "cacerts-next";
/// The self-signed root's name.
pub const SELF_SIGNED: &str = "istio-ca-secret";
/// The rotation's name.
pub const ROTATION: &str = "aquifer-root-rotation";

/// A store of signers.
#[derive(Debug, Clone)]
pub enum Store {
    /// In a folder.
    Folder(FolderStore),
    /// In Secrets.
    Secrets(Box<SecretStore>),
}

/// What is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    /// Who signs.
    pub signing: Signing,
    /// A signer that the operator has laid ready.
    pub next: Option<Material>,
    /// How the last request for a rotation ended.
    pub done: Option<Done>,
    /// Which version of the rotation's state this is; `None` if there is none yet.
    pub version: Option<String>,
}

/// Who signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Signing {
    /// One signer.
    Plain(Material, Place),
    /// What a rotation says.
    Rotating(Kept),
}

/// Where a signer lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Place {
    /// The operator put it there.
    PluggedIn,
    /// We made it.
    SelfSigned,
}

/// A rotation and its signers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// How far it is.
    pub rotation: Rotation,
    /// Both signers.
    pub signers: BTreeMap<Fingerprint, Material>,
    /// The one that the rotation was begun for.
    pub newcomer: Fingerprint,
    /// Where that one will lie.
    pub place: Place,
}

/// The end of a rotation, or of the wish for one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// [`Rotation::id`]: the request that it answers.
    pub id: String,
    /// When, in Unix seconds.
    pub at: i64,
    /// Why it was not begun.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// It ended where it had begun.
    #[serde(default)]
    pub aborted: bool,
}

/// Why the store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Somebody else has written since we read: read again.
    #[error("{0} was changed by another replica meanwhile")]
    Conflict(&'static str),
    /// The API server is away, or refuses us.
    #[error("{0}")]
    Unavailable(String),
    /// A Secret does not hold what it should.
    #[error("Secret {namespace}/{name}: {reason}")]
    Secret {
        /// Its namespace.
        namespace: String,
        /// Its name.
        name: &'static str,
        /// What is wrong.
        reason: String,
    },
    /// A file does not hold what it should.
    #[error(transparent)]
    Root(#[from] RootError),
}

impl Store {
    /// Reads everything; makes a root of `trust_domain` if there is no signer at all.
    pub async fn load(&self, trust_domain: &str, now: OffsetDateTime) -> Result<Stored, StoreError> {
        match self {
            Self::Folder(folder) => folder.load(trust_domain, now),
            Self::Secrets(secrets) => secrets.load(trust_domain, now).await,
        }
    }

    /// Keeps another state of the rotation. `expected` is the version that was read.
    pub async fn keep(&self, state: &State, expected: Option<&str>) -> Result<(), StoreError> {
        let text = state.to_json();
        match self {
            Self::Folder(folder) => folder.keep(&text),
            Self::Secrets(secrets) => secrets.keep(&text, expected).await,
        }
    }

    /// Makes `material` what signs from now on, without a rotation.
    pub async fn settle(&self, material: &Material, place: Place) -> Result<(), StoreError> {
        match self {
            Self::Folder(folder) => folder.settle(material, place),
            Self::Secrets(secrets) => secrets.settle(material, place).await,
        }
    }

    /// Gives `bundle` to those who read a file of ours. (In a cluster the ConfigMap of each namespace does that.)
    pub fn publish(&self, bundle: &str) -> Result<(), StoreError> {
        match self {
            Self::Folder(folder) => Ok(super::root::publish(folder.path(), bundle)?),
            Self::Secrets(_) => Ok(()),
        }
    }
}

/// What is kept of a rotation, beside the signers in their places.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// One is under way.
    Rotating(Kept),
    /// None is.
    Done(Done),
}

/// The form of a [`State`] in its Secret or file. Not public: it can be printed.
#[derive(Serialize, Deserialize)]
struct Text {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rotation: Option<Rotation>,
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    signers: BTreeMap<Fingerprint, SignerText>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    newcomer: Option<(Fingerprint, Place)>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    done: Option<Done>,
}

#[derive(Serialize, Deserialize)]
struct SignerText {
    key: Zeroizing<String>,
    cert: String,
    chain: String,
    roots: String,
}

impl State {
    fn to_json(&self) -> Zeroizing<String> {
        let text = match self {
            Self::Rotating(Kept { rotation, signers, newcomer, place }) => Text {
                rotation: Some(rotation.clone()),
                signers: signers.iter().map(|(id, material)| (id.clone(), SignerText::of(material))).collect(),
                newcomer: Some((newcomer.clone(), *place)),
                done: None,
            },
            Self::Done(done) => {
                Text { rotation: None, signers: BTreeMap::new(), newcomer: None, done: Some(done.clone()) }
            }
        };
        // Keys are strings and values plain: this cannot fail.
        Zeroizing::new(serde_json::to_string(&text).unwrap_or_default())
    }

    fn from_json(text: &str) -> Result<Option<Self>, String> {
        let text: Text = serde_json::from_str(text).map_err(|e| format!("not the state of a rotation: {e}"))?;
        Ok(match (text.rotation, text.newcomer, text.done) {
            (Some(rotation), Some((newcomer, place)), _) => {
                let signers = text.signers.into_iter().map(|(id, signer)| (id, signer.material())).collect();
                Some(Self::Rotating(Kept { rotation, signers, newcomer, place }))
            }
            (_, _, done) => done.map(Self::Done),
        })
    }
}

impl SignerText {
    fn of(material: &Material) -> Self {
        let Material { key, cert, chain, roots } = material.clone();
        Self { key, cert, chain, roots }
    }

    fn material(self) -> Material {
        let Self { key, cert, chain, roots } = self;
        Material { key, cert, chain, roots }
    }
}

#[cfg(test)]
mod tests;
