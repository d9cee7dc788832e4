//! What the CA gave: a key with its chain, and whom to trust.

use crate::provider;
use crate::trust::TrustBundle;
use aquifer_core::identity::Identity;
use rustls::RootCertStore;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use rustls::sign::CertifiedKey;
use std::sync::Arc;
use time::OffsetDateTime;
use zeroize::Zeroizing;

#[cfg(test)]
mod tests;

/// A certificate for people to look at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertInfo {
    /// Decimal, as Istio prints it.
    pub serial: String,
    /// From when it is valid.
    pub not_before: OffsetDateTime,
    /// Until when.
    pub not_after: OffsetDateTime,
    /// The certificate itself.
    pub pem: String,
}

/// The CA's answer, checked. No `Debug`: it holds the key.
#[derive(Clone)]
pub struct CertBundle {
    pub(crate) key: Arc<CertifiedKey>,
    /// Whom to trust.
    pub(crate) roots: Arc<RootCertStore>,
    /// Leaf first.
    pub(crate) chain_info: Vec<CertInfo>,
    pub(crate) root_info: Vec<CertInfo>,
    /// Whom the answer itself said to trust.
    answered: (Arc<RootCertStore>, Vec<CertInfo>),
}

/// Why an answer of the CA is of no use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum BundleError {
    /// Fewer than a leaf and the roots.
    #[error("certificate chain of {0} elements, at least 2 are needed: the leaf and the roots")]
    TooShort(usize),
    /// The element is not what its place asks for: one certificate first, and at least one in each of the others.
    #[error("element {index} of the certificate chain holds {found} certificates")]
    Layout {
        /// Which element, from 0.
        index: usize,
        /// How many it holds.
        found: usize,
    },
    /// Not PEM, or not a certificate.
    #[error("element {0} of the certificate chain cannot be read")]
    Malformed(usize),
    /// The leaf is for somebody else.
    #[error("the certificate is for {found:?}, asked for was {asked}")]
    WrongIdentity {
        /// Who was asked for.
        asked: Identity,
        /// Its URI SANs.
        found: Vec<String>,
    },
    /// The leaf is for another key.
    #[error("the certificate is for another key")]
    WrongKey,
    /// The leaf has expired already.
    #[error("the certificate has expired at {0}")]
    Expired(OffsetDateTime),
}

impl CertBundle {
    /// Reads `cert_chain` of a CreateCertificate answer: the leaf alone, the intermediates, and last all roots in one
    /// element.
    pub fn from_chain(
        identity: &Identity,
        key: PrivateKeyDer<'static>,
        elements: &[String],
        now: OffsetDateTime,
    ) -> Result<Self, BundleError> {
        // rustls keeps the key in a form of its own; this one is wiped, whatever comes of the chain.
        let key = Zeroizing::new(key);
        let Some((last, singles)) = elements.split_last().filter(|(_, s)| !s.is_empty()) else {
            return Err(BundleError::TooShort(elements.len()));
        };
        let (mut chain, mut chain_info) = (Vec::new(), Vec::new());
        for (index, element) in singles.iter().enumerate() {
            let certs = certificates(index, element)?;
            // Some authorities put all intermediates into one element.
            if certs.is_empty() || (index == 0 && certs.len() > 1) {
                return Err(BundleError::Layout { index, found: certs.len() });
            }
            for (cert, info) in certs {
                chain.push(cert);
                chain_info.push(info);
            }
        }
        check_leaf(identity, &chain[0])?;
        if chain_info[0].not_after <= now {
            return Err(BundleError::Expired(chain_info[0].not_after));
        }
        let index = singles.len();
        let (mut roots, mut root_info) = (RootCertStore::empty(), Vec::new());
        for (cert, info) in certificates(index, last)? {
            roots.add(cert).map_err(|_| BundleError::Malformed(index))?;
            root_info.push(info);
        }
        if roots.is_empty() {
            return Err(BundleError::Layout { index, found: 0 });
        }
        let signing = provider::signing_key(&key).map_err(|_| BundleError::WrongKey)?;
        let key = CertifiedKey::new(chain, signing);
        key.keys_match().map_err(|_| BundleError::WrongKey)?;
        let roots = Arc::new(roots);
        let answered = (roots.clone(), root_info.clone());
        Ok(Self { key: Arc::new(key), roots, chain_info, root_info, answered })
    }

    /// The same answer, to trust those whom a bundle names that came after it.
    pub(crate) fn trusting(&self, bundle: &TrustBundle) -> Self {
        Self { roots: bundle.roots.clone(), root_info: bundle.info.clone(), ..self.clone() }
    }

    /// The same answer, to trust also those whom a bundle names that came before it. Neither is known to be the newer
    /// word: they took different ways.
    pub(crate) fn trusting_also(&self, bundle: &TrustBundle) -> Self {
        let (answered, info) = &self.answered;
        let mut roots = (**answered).clone();
        let mut root_info = info.clone();
        for (root, described) in bundle.roots.roots.iter().zip(&bundle.info) {
            if !answered.roots.contains(root) {
                roots.roots.push(root.clone());
                root_info.push(described.clone());
            }
        }
        Self { roots: Arc::new(roots), root_info, ..self.clone() }
    }

    /// The same answer, to trust whom it says.
    pub(crate) fn trusting_itself(&self) -> Self {
        let (roots, root_info) = self.answered.clone();
        Self { roots, root_info, ..self.clone() }
    }

    /// Until when the leaf is valid.
    pub fn not_after(&self) -> OffsetDateTime {
        self.chain_info[0].not_after
    }
}

/// The certificates of an element, each with its own PEM text.
pub(crate) fn certificates(
    index: usize,
    element: &str,
) -> Result<Vec<(CertificateDer<'static>, CertInfo)>, BundleError> {
    element
        .split_inclusive("-----END CERTIFICATE-----")
        .filter_map(|block| block.find("-----BEGIN CERTIFICATE-----").map(|start| &block[start..]))
        .map(|pem| {
            let malformed = BundleError::Malformed(index);
            let cert = CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|_| malformed)?;
            let info = describe(index, &cert, pem)?;
            Ok((cert, info))
        })
        .collect()
}

fn check_leaf(identity: &Identity, leaf: &CertificateDer<'_>) -> Result<(), BundleError> {
    let cert = webpki::EndEntityCert::try_from(leaf).map_err(|_| BundleError::Malformed(0))?;
    let found: Vec<String> = cert.valid_uri_names().map(str::to_owned).collect();
    if found.len() == 1 && found[0].parse().as_ref() == Ok(identity) {
        return Ok(());
    }
    let asked = identity.clone();
    Err(BundleError::WrongIdentity { asked, found })
}

fn describe(index: usize, cert: &CertificateDer<'_>, pem: &str) -> Result<CertInfo, BundleError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(cert).map_err(|_| BundleError::Malformed(index))?;
    Ok(CertInfo {
        serial: parsed.tbs_certificate.serial.to_string(),
        not_before: parsed.validity().not_before.to_datetime(),
        not_after: parsed.validity().not_after.to_datetime(),
        pem: format!(
            "{pem}
"
        ),
    })
}
