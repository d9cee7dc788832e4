//! Revocation lists: whom not to trust in spite of a good chain.
//!
//! [`Revocations`] is looked into by every handshake and holds the lists of this moment; open connections are asked
//! about again whenever it changes. [`CrlFiles`] fills it from CRL_PATH.
//!
//! A list speaks for the authority that signed it, and for no other of the same name: while roots are rotated there
//! are two. That is decided by the key: the one that signed the certificate signed the list. Whether the authority's
//! certificate allows lists (cRLSign) plays no part, nor does a chain that leads elsewhere: a peer chooses what it
//! presents, and none of it may lift what the list says. A certificate that no list speaks of is not revoked, and a
//! list past its `nextUpdate` still counts: a list that nobody renews must not lift what it says, nor take the mesh
//! down.

mod files;
mod signed;

pub use files::{CrlFiles, parse};

use crate::peer::{CertificateId, PeerCertificate};
use rustls::pki_types::CertificateDer;
use rustls::{CertificateError, Error, RootCertStore};
use signed::{Key, Signed, Verdict};
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;
use webpki::{CertRevocationList, OwnedCertRevocationList};

#[cfg(test)]
mod tests;

/// A revocation list that was read.
#[derive(Clone, Debug)]
pub struct List {
    content: Arc<CertRevocationList<'static>>,
    der: Arc<[u8]>,
}

/// Counts the changes of the lists; 0 before the first.
pub type RevocationGeneration = u64;

/// The lists of this moment. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Revocations {
    current: watch::Sender<Arc<Lists>>,
}

/// The lists of one generation.
#[derive(Default)]
pub struct Lists {
    generation: RevocationGeneration,
    lists: Vec<List>,
}

impl Lists {
    /// Which ones these are.
    pub fn generation(&self) -> RevocationGeneration {
        self.generation
    }
}

impl fmt::Debug for Lists {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lists").field("generation", &self.generation).field("lists", &self.lists.len()).finish()
    }
}

impl Revocations {
    /// None: nobody is revoked until [`publish`](Self::publish).
    pub fn new() -> Self {
        Self::default()
    }

    /// Replaces all lists. Handshakes see it at once.
    pub fn publish(&self, lists: Vec<List>) {
        self.current.send_modify(|current| {
            *current = Arc::new(Lists { generation: current.generation + 1, lists });
        });
    }

    /// Wakes at each change; ask [`is_revoked`](Self::is_revoked) about open connections then.
    pub fn subscribe(&self) -> watch::Receiver<Arc<Lists>> {
        self.current.subscribe()
    }

    /// Whether there are any lists at all.
    pub fn is_empty(&self) -> bool {
        self.current.borrow().lists.is_empty()
    }

    /// Whether a list names the peer, or an authority that it presented.
    pub fn is_revoked(&self, peer: &PeerCertificate) -> bool {
        let current = self.current.borrow().clone();
        if current.lists.is_empty() || peer.is_cleared_by(current.generation) {
            return false;
        }
        let revoked = current.name(peer);
        if !revoked {
            peer.clear(current.generation);
        }
        revoked
    }

    /// Within a handshake, after the chain was verified.
    pub(crate) fn check(
        &self,
        (end_entity, intermediates): (&CertificateDer<'_>, &[CertificateDer<'_>]),
        roots: &Arc<RootCertStore>,
    ) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let chain = std::iter::once(end_entity).chain(intermediates).map(|c| c.clone().into_owned()).collect();
        if self.is_revoked(&PeerCertificate::new(chain, roots.clone())) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(())
    }
}

impl Lists {
    fn name(&self, peer: &PeerCertificate) -> bool {
        self.lists.iter().any(|list| {
            let named = |(_, id): &(_, &CertificateId)| list.lists(id);
            peer.chain.iter().zip(&peer.ids).filter(named).any(|(cert, id)| list.speaks_for(cert, id, peer))
        })
    }
}

impl List {
    fn read(der: &[u8]) -> Result<Self, webpki::Error> {
        let content = OwnedCertRevocationList::from_der(der)?;
        Ok(Self { content: Arc::new(content.into()), der: der.into() })
    }

    fn lists(&self, id: &CertificateId) -> bool {
        // A serial that cannot be looked up is as good as found.
        self.content.issuer() == id.issuer && !matches!(self.content.find_serial(&id.serial), Ok(None))
    }

    /// Whether the authority that issued `cert` signed this list too. By name alone anybody's list would count.
    fn speaks_for(&self, cert: &CertificateDer<'_>, id: &CertificateId, peer: &PeerCertificate) -> bool {
        let (Some(cert), Some(list)) = (Signed::read(cert), Signed::read(&self.der)) else { return true };
        let mut foreign = false;
        for key in Key::of_issuer(&id.issuer, peer) {
            if cert.verify(&key) != Verdict::Good {
                continue;
            }
            match list.verify(&key) {
                Verdict::Bad => foreign = true,
                Verdict::Good => return true,
                Verdict::Unsupported => {
                    tracing::warn!(
                        "a revocation list that names a peer's certificate is signed by an algorithm that is not \
                         supported here; it counts"
                    );
                    return true;
                }
            }
        }
        if foreign {
            tracing::warn!("a revocation list names a peer's certificate but was not signed by its authority");
        }
        false
    }
}
