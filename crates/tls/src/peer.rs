//! A peer's certificate after the handshake, for whoever asks later whether it still holds.

use rustls::pki_types::CertificateDer;
use rustls::{CommonState, RootCertStore};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

/// What a peer showed in its handshake, and against what it was verified.
pub struct PeerCertificate {
    /// Leaf first, as presented.
    pub(crate) chain: Vec<CertificateDer<'static>>,
    pub(crate) ids: Vec<CertificateId>,
    pub(crate) roots: Arc<RootCertStore>,
    /// The generation of lists that was found not to name it.
    pub(crate) cleared: AtomicU64,
}

/// What a revocation list knows a certificate by (RFC 5280, 5.3): DER contents of both.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CertificateId {
    pub(crate) issuer: Vec<u8>,
    pub(crate) serial: Vec<u8>,
}

impl PeerCertificate {
    /// That of an established connection. `None` without one.
    pub(crate) fn of(connection: &CommonState, roots: &Arc<RootCertStore>) -> Option<Arc<Self>> {
        let chain: Vec<_> = connection.peer_certificates()?.iter().map(|c| c.clone().into_owned()).collect();
        (!chain.is_empty()).then(|| Arc::new(Self::new(chain, roots.clone())))
    }

    /// One whose `chain`, leaf first, was verified against `roots`.
    pub fn new(chain: Vec<CertificateDer<'static>>, roots: Arc<RootCertStore>) -> Self {
        // What cannot be read was no part of what was verified.
        let (chain, ids) = chain.into_iter().filter_map(|cert| id(&cert).map(|id| (cert, id))).unzip();
        Self { chain, ids, roots, cleared: AtomicU64::new(0) }
    }

    pub(crate) fn is_cleared_by(&self, generation: u64) -> bool {
        self.cleared.load(Relaxed) == generation
    }

    pub(crate) fn clear(&self, generation: u64) {
        self.cleared.store(generation, Relaxed);
    }
}

pub(crate) fn id(cert: &CertificateDer<'_>) -> Option<CertificateId> {
    let cert = webpki::EndEntityCert::try_from(cert).ok()?;
    Some(CertificateId { issuer: cert.issuer().to_vec(), serial: cert.serial().to_vec() })
}

impl fmt::Debug for PeerCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerCertificate").field("ids", &self.ids).finish_non_exhaustive()
    }
}
