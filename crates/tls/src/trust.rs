//! Whom the control plane says to trust, beside what comes with each certificate.

use crate::bundle::{BundleError, CertInfo, certificates};
use rustls::RootCertStore;
use std::sync::Arc;

/// The mesh's roots of the moment. They come over discovery, at once, where certificates come once in half a day.
#[derive(Clone)]
pub struct TrustBundle {
    pub(crate) roots: Arc<RootCertStore>,
    pub(crate) info: Vec<CertInfo>,
    /// The occasion to renew, if there is one.
    pub(crate) renewal: Option<String>,
}

impl TrustBundle {
    /// Reads the PEM of all roots; at least one. `renewal` names an occasion to renew, or is empty.
    pub fn new(roots: &str, renewal: &str) -> Result<Self, BundleError> {
        let mut store = RootCertStore::empty();
        let mut info = Vec::new();
        for (cert, described) in certificates(0, roots)? {
            store.add(cert).map_err(|_| BundleError::Malformed(0))?;
            info.push(described);
        }
        if store.is_empty() {
            return Err(BundleError::Layout { index: 0, found: 0 });
        }
        Ok(Self { roots: Arc::new(store), info, renewal: (!renewal.is_empty()).then(|| renewal.to_owned()) })
    }

    /// The roots, for people to look at.
    pub fn roots(&self) -> &[CertInfo] {
        &self.info
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::TestCa;

    #[test]
    fn roots_are_read_and_none_is_an_error() {
        let (a, b) = (TestCa::named("a").pem(), TestCa::named("b").pem());
        let bundle = TrustBundle::new(&format!("{a}{b}"), "").unwrap();
        assert_eq!((bundle.roots().len(), bundle.roots.len(), bundle.renewal), (2, 2, None));
        assert_eq!(TrustBundle::new(&a, "r/1").unwrap().renewal.as_deref(), Some("r/1"));
        assert!(TrustBundle::new("", "").is_err());
        assert!(TrustBundle::new("nonsense", "").is_err());
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(TrustBundle::new(&format!("{a}{broken}"), "").is_err());
    }
}
