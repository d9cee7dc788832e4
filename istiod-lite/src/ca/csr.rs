//! What we take from a certificate signing request: its public key, and the proof that the sender
//! holds the private one. Names and extensions that it asks for are ignored.

use rcgen::{PublicKeyData as _, SubjectPublicKeyInfo};
use rustls_pki_types::CertificateSigningRequestDer;
use rustls_pki_types::pem::PemObject as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;

/// RSA keys below this are no longer considered safe (NIST SP 800-57).
const MIN_RSA_BITS: usize = 2048;
/// Checking the signature of a longer one costs more than it proves.
const MAX_RSA_BITS: usize = 8192;
/// A request with an RSA key of that length takes less than 4 KiB.
pub const MAX_PEM: usize = 16 * 1024;

/// Why a request cannot be signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Longer than any honest request.
    #[error("certificate signing request is longer than {MAX_PEM} bytes")]
    Size,
    /// Not PEM, or not a PKCS#10 request inside.
    #[error("certificate signing request is not properly encoded")]
    Encoding,
    /// The signature does not match the public key: the sender may not hold the private key.
    #[error("certificate signing request's signature is not valid")]
    Signature,
    /// A kind or size of key that peers would not accept.
    #[error("certificate signing request's key is of an unsupported type or length")]
    Key,
}

/// The public key of a request whose signature was checked.
pub fn verified_key(pem: &str) -> Result<SubjectPublicKeyInfo, CsrError> {
    if pem.len() > MAX_PEM {
        return Err(CsrError::Size);
    }
    let der = CertificateSigningRequestDer::from_pem_slice(pem.as_bytes()).map_err(|_| CsrError::Encoding)?;
    let (rest, request) = X509CertificationRequest::from_der(&der).map_err(|_| CsrError::Encoding)?;
    if !rest.is_empty() {
        return Err(CsrError::Encoding);
    }
    let spki = &request.certification_request_info.subject_pki;
    if let Ok(PublicKey::RSA(rsa)) = spki.parsed()
        && !(MIN_RSA_BITS..=MAX_RSA_BITS).contains(&rsa.key_size())
    {
        return Err(CsrError::Key);
    }
    let key = SubjectPublicKeyInfo::from_der(spki.raw).map_err(|_| CsrError::Key)?;
    request.verify_signature().map_err(|_| CsrError::Signature)?;
    debug_assert_eq!(key.subject_public_key_info(), spki.raw);
    Ok(key)
}
