//! A fresh key and the request to certify it.

use crate::provider;
use aquifer_core::identity::Identity;
use rcgen::string::Ia5String;
use rcgen::{CertificateParams, DistinguishedName, SanType};
use rustls::pki_types::PrivateKeyDer;

/// A key and its certificate signing request. No `Debug`: it holds the key.
pub struct Csr {
    /// The request.
    pub pem: String,
    /// The key, PKCS#8.
    pub key: PrivateKeyDer<'static>,
}

/// The request could not be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a certificate request: {0}")]
pub struct CsrError(#[from] rcgen::Error);

/// ECDSA P-256, an empty subject, the identity as the one URI SAN. Every certificate gets a key of its own.
pub fn generate(identity: &Identity) -> Result<Csr, CsrError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = vec![SanType::URI(Ia5String::try_from(identity.to_string())?)];
    let (key, pem) = provider::certificate_request(&params)?;
    Ok(Csr { pem, key })
}

#[cfg(test)]
mod tests {
    use super::*;
    use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509CertificationRequest};

    #[test]
    fn one_uri_and_an_empty_subject() {
        let id = Identity::new("cluster.local", "amb", "server");
        let (a, b) = (generate(&id).unwrap(), generate(&id).unwrap());
        assert_ne!(a.key, b.key);
        assert!(matches!(a.key, PrivateKeyDer::Pkcs8(_)));
        let (_, pem) = x509_parser::pem::parse_x509_pem(a.pem.as_bytes()).unwrap();
        let (_, csr) = X509CertificationRequest::from_der(&pem.contents).unwrap();
        let info = &csr.certification_request_info;
        assert_eq!(info.subject.iter().count(), 0);
        assert_eq!(info.subject_pki.algorithm.algorithm.to_id_string(), "1.2.840.10045.2.1");
        assert_eq!(csr.signature_algorithm.algorithm.to_id_string(), "1.2.840.10045.4.3.2");
        let sans: Vec<_> = csr
            .requested_extensions()
            .unwrap()
            .filter_map(|e| match e {
                ParsedExtension::SubjectAlternativeName(s) => Some(s.general_names.clone()),
                _ => None,
            })
            .flatten()
            .collect();
        assert_eq!(sans, [GeneralName::URI("spiffe://cluster.local/ns/amb/sa/server")]);
    }
}
