//! AWS-LC.

use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{self, sign::any_supported_type};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::SigningKey;
use std::sync::Arc;
use zeroize::Zeroize;

/// What this build calls it, in Istio's words.
pub const NAME: &str = "tls-aws-lc";

pub(super) fn everything() -> CryptoProvider {
    aws_lc_rs::default_provider()
}

/// A key to sign handshakes with. It is copied, `key` is not kept.
pub(crate) fn signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, rustls::Error> {
    any_supported_type(key)
}

/// A new ECDSA P-256 key, PKCS#8, and the request for it in PEM.
pub(crate) fn certificate_request(
    params: &CertificateParams,
) -> Result<(PrivateKeyDer<'static>, String), rcgen::Error> {
    let mut pair = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
    let request = params.serialize_request(&pair).and_then(|request| request.pem());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(pair.serialize_der()));
    pair.zeroize();
    Ok((key, request?))
}
