//! BoringSSL.

use boring::ec::{EcGroup, EcKey, PointConversionForm};
use boring::error::ErrorStack;
use boring::hash::MessageDigest;
use boring::nid::Nid;
use boring::pkey::{Id, PKey, Private};
use boring::sign::Signer;
use rcgen::{CertificateParams, PKCS_ECDSA_P256_SHA256};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer, SubjectPublicKeyInfoDer};
use rustls::sign::SigningKey;
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use std::fmt;
use std::sync::Arc;

/// What this build calls it, in Istio's words.
pub const NAME: &str = "tls-boring";

pub(super) fn everything() -> CryptoProvider {
    boring_rustls_provider::provider()
}

/// A key to sign handshakes with. It is copied, `key` is not kept.
///
/// P-256 alone, as we ask for no other. Our own signer and not the provider's, whose keys cannot say which public key
/// they belong to: a certificate for another key would be noticed in the first handshake only.
pub(crate) fn signing_key(key: &PrivateKeyDer<'_>) -> Result<Arc<dyn SigningKey>, Error> {
    let loaded = match key {
        PrivateKeyDer::Pkcs8(key) => PKey::private_key_from_pkcs8(key.secret_pkcs8_der()),
        PrivateKeyDer::Sec1(key) => PKey::private_key_from_der(key.secret_sec1_der()),
        _ => return Err(Error::General("the private key is neither PKCS#8 nor SEC1".to_owned())),
    };
    let key = loaded.map_err(|e| general(&e))?;
    let p256 =
        key.id() == Id::EC && key.ec_key().is_ok_and(|key| key.group().curve_name() == Some(Nid::X9_62_PRIME256V1));
    if !p256 {
        return Err(Error::General("the private key is not of P-256".to_owned()));
    }
    let public = key.public_key_to_der().map_err(|e| general(&e))?;
    Ok(Arc::new(P256Key { key: Arc::new(key), public: public.into() }))
}

/// A new ECDSA P-256 key, PKCS#8, and the request for it in PEM.
pub(crate) fn certificate_request(
    params: &CertificateParams,
) -> Result<(PrivateKeyDer<'static>, String), rcgen::Error> {
    let pair = RequestKey::generate().map_err(|e| rcgen_error(&e))?;
    let request = params.serialize_request(&pair)?.pem()?;
    let der = pair.key.private_key_to_der_pkcs8().map_err(|e| rcgen_error(&e))?;
    Ok((PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der)), request))
}

fn general(e: &ErrorStack) -> Error {
    Error::General(e.to_string())
}

fn rcgen_error(_: &ErrorStack) -> rcgen::Error {
    rcgen::Error::RemoteKeyError
}

fn sign(key: &PKey<Private>, message: &[u8]) -> Result<Vec<u8>, ErrorStack> {
    Signer::new(MessageDigest::sha256(), key)?.sign_oneshot_to_vec(message)
}

struct P256Key {
    key: Arc<PKey<Private>>,
    public: SubjectPublicKeyInfoDer<'static>,
}

impl fmt::Debug for P256Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("P256Key").finish_non_exhaustive()
    }
}

impl SigningKey for P256Key {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn rustls::sign::Signer>> {
        let known = offered.contains(&SignatureScheme::ECDSA_NISTP256_SHA256);
        known.then(|| Box::new(P256Signer(self.key.clone())) as _)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(self.public.clone())
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

struct P256Signer(Arc<PKey<Private>>);

impl fmt::Debug for P256Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("P256Signer").finish_non_exhaustive()
    }
}

impl rustls::sign::Signer for P256Signer {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        sign(&self.0, message).map_err(|e| general(&e))
    }

    fn scheme(&self) -> SignatureScheme {
        SignatureScheme::ECDSA_NISTP256_SHA256
    }
}

/// A key in the form that certificate requests are made from.
struct RequestKey {
    key: PKey<Private>,
    /// The point, uncompressed (RFC 5480, 2.2).
    point: Vec<u8>,
}

impl RequestKey {
    fn generate() -> Result<Self, ErrorStack> {
        let group = EcGroup::from_curve_name(Nid::X9_62_PRIME256V1)?;
        let pair = EcKey::generate(&group)?;
        let mut context = boring::bn::BigNumContext::new()?;
        let point = pair.public_key().to_bytes(&group, PointConversionForm::UNCOMPRESSED, &mut context)?;
        Ok(Self { key: PKey::from_ec_key(pair)?, point })
    }
}

impl rcgen::PublicKeyData for RequestKey {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl rcgen::SigningKey for RequestKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        sign(&self.key, message).map_err(|e| rcgen_error(&e))
    }
}
