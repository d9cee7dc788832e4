//! What signs now, and whom all shall trust: swapped as a whole, so that nobody sees half of a change.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;
use tokio::sync::watch;

use super::fingerprint::pem_of;
use super::issuer::{IssueError, Issuer, Lifetimes};
use super::material::{Material, MaterialError, Signer};
use super::rotation::{Rotation, Step};
use super::store::Kept;

/// One state of the authority.
#[derive(Debug)]
pub struct Active {
    /// Signs workload certificates, and names the bundle that comes with them.
    pub issuer: Issuer,
    /// Signs our own listener's certificate.
    pub serving: Issuer,
    /// Every root that is trusted.
    pub roots: Vec<CertificateDer<'static>>,
    /// The rotation's step that this state is of.
    pub step: Option<Step>,
}

/// Why there is no such state.
#[derive(Debug, thiserror::Error)]
pub enum ActiveError {
    /// A signer is not good.
    #[error(transparent)]
    Material(#[from] MaterialError),
    /// A signer cannot sign.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The rotation names a signer that is not kept with it.
    #[error("the rotation's state names the root {0}, which is not kept with it")]
    NotKept(String),
}

impl Active {
    /// The state without a rotation.
    pub fn plain(material: &Material, lifetimes: Lifetimes, now: OffsetDateTime) -> Result<Self, ActiveError> {
        let signer = material.signer(now)?;
        let roots = signer.roots.clone();
        let issuer = Issuer::new(signer, lifetimes)?;
        Ok(Self { serving: issuer.clone(), issuer, roots, step: None })
    }

    /// The state of a rotation's step.
    pub fn rotating(kept: &Kept, lifetimes: Lifetimes, now: OffsetDateTime) -> Result<Self, ActiveError> {
        let Kept { rotation, .. } = kept;
        let mut roots: Vec<CertificateDer<'static>> = Vec::new();
        for id in rotation.trusted() {
            let fresh: Vec<_> = signer_of(kept, id, now)?.roots.into_iter().filter(|r| !roots.contains(r)).collect();
            roots.extend(fresh);
        }
        let bundle: String = roots.iter().map(|root| pem_of(root)).collect();
        let issuer = |id| -> Result<Issuer, ActiveError> {
            Ok(Issuer::with_bundle(signer_of(kept, id, now)?, bundle.clone(), lifetimes)?)
        };
        Ok(Self {
            issuer: issuer(rotation.signs())?,
            serving: issuer(rotation.serves())?,
            step: Some(Rotation::step(rotation)),
            roots,
        })
    }
}

fn signer_of(kept: &Kept, id: &super::fingerprint::Fingerprint, now: OffsetDateTime) -> Result<Signer, ActiveError> {
    let material = kept.signers.get(id).ok_or_else(|| ActiveError::NotKept(id.short().to_owned()))?;
    Ok(material.signer(now)?)
}

/// The present state. Clones share it.
#[derive(Debug, Clone)]
pub struct Authority {
    active: Arc<ArcSwap<Active>>,
    changed: Arc<watch::Sender<u64>>,
}

impl Authority {
    /// Begins with `active`.
    pub fn new(active: Active) -> Self {
        Self { active: Arc::new(ArcSwap::from_pointee(active)), changed: Arc::new(watch::Sender::new(0)) }
    }

    /// The present state.
    pub fn load(&self) -> Arc<Active> {
        self.active.load_full()
    }

    /// Another state, for all who ask from now on.
    pub fn swap(&self, active: Active) {
        self.active.store(Arc::new(active));
        self.changed.send_modify(|n| *n += 1);
    }

    /// Ticks with each [`swap`](Self::swap).
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }
}
