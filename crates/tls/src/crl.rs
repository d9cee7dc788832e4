//! Revocation lists: whom not to trust in spite of a good chain.
//!
//! [`Revocations`] is looked into by every handshake and holds the lists of this moment; open connections are asked
//! about again whenever it changes. [`CrlFiles`] fills it from CRL_PATH.
//!
//! A list speaks for the authority that signed it, and for no other of the same name: while roots are rotated there
//! are two. A certificate that no list speaks of is not revoked, and a list past its `nextUpdate` still counts: a
//! list that nobody renews must not lift what it says, nor take the mesh down.

mod files;

pub use files::{CrlFiles, parse};

use crate::peer::{CertificateId, PeerCertificate, Role};
use crate::provider::{TlsPolicy, provider};
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::{CertificateError, Error, RootCertStore};
use std::fmt;
use std::sync::Arc;
use tokio::sync::watch;
use webpki::{CertRevocationList, EndEntityCert, RevocationCheckDepth, RevocationOptionsBuilder, UnknownStatusPolicy};

#[cfg(test)]
mod tests;

/// A revocation list that was read.
pub type List = CertRevocationList<'static>;

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
        role: Role,
        now: UnixTime,
    ) -> Result<(), Error> {
        if self.is_empty() {
            return Ok(());
        }
        let chain = std::iter::once(end_entity).chain(intermediates).map(|c| c.clone().into_owned()).collect();
        if self.is_revoked(&PeerCertificate::new(chain, roots.clone(), role, now)) {
            return Err(Error::InvalidCertificate(CertificateError::Revoked));
        }
        Ok(())
    }
}

impl Lists {
    fn name(&self, peer: &PeerCertificate) -> bool {
        self.lists.iter().filter(|list| peer.ids.iter().any(|id| lists(list, id))).any(|list| confirm(list, peer))
    }
}

fn lists(list: &CertRevocationList<'_>, id: &CertificateId) -> bool {
    list.issuer() == id.issuer && list.find_serial(&id.serial).is_ok_and(|found| found.is_some())
}

/// Builds the peer's chain once more with this list: by issuer and serial alone anybody's list would count. Only
/// those that a list seems to name get here.
fn confirm(list: &List, peer: &PeerCertificate) -> bool {
    let [leaf, intermediates @ ..] = &*peer.chain else { return false };
    let only = [list];
    let (Ok(leaf), Ok(options)) = (EndEntityCert::try_from(leaf), RevocationOptionsBuilder::new(&only)) else {
        return false;
    };
    let options =
        options.with_depth(RevocationCheckDepth::Chain).with_status_policy(UnknownStatusPolicy::Allow).build();
    // What can be verified doesn't depend on the policy.
    let algorithms = provider(TlsPolicy::default()).signature_verification_algorithms.all;
    let (roots, usage) = (&peer.roots.roots, peer.role.usage());
    let verified =
        leaf.verify_for_usage(algorithms, roots, intermediates, peer.verified_at, usage, Some(options), None);
    match verified {
        Err(webpki::Error::CertRevoked) => true,
        Ok(_) => false,
        Err(error) => {
            tracing::warn!(%error, "a revocation list names a peer's certificate but was not signed by its authority");
            false
        }
    }
}
