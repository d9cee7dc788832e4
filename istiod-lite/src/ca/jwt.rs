//! Bearer tokens checked offline against a JWKS file: Kubernetes' projected service-account tokens
//! (RFC 7519, with the `kubernetes.io` claim), or another issuer's of the same shape.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use parking_lot::Mutex;
use serde::Deserialize;
use time::OffsetDateTime;

/// A token may come from a node whose clock is a little ahead of ours.
const NOT_BEFORE_LEEWAY_SECONDS: f64 = 10.0;

/// What a valid token says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenSubject {
    /// Namespace of the service account.
    pub namespace: String,
    /// Its name.
    pub service_account: String,
    /// The pod that the token is bound to: name and uid.
    pub pod: Option<(String, String)>,
}

/// Why a token is refused.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// Not three base64 parts with JSON in them, or an algorithm that nobody should use (`none`).
    #[error("the token is malformed: {0}")]
    Malformed(String),
    /// No key in the file can have signed it.
    #[error("no key in {} fits the token (kid {kid:?}, alg {alg})", path.display())]
    UnknownKey {
        /// The JWKS file.
        path: PathBuf,
        /// The key that the token names.
        kid: Option<String>,
        /// The algorithm that it names.
        alg: String,
    },
    /// Signed by somebody else, or changed on its way.
    #[error("the token's signature is not valid")]
    Signature,
    /// Too old.
    #[error("the token has expired")]
    Expired,
    /// Not valid yet.
    #[error("the token is not valid yet")]
    NotYetValid,
    /// From another issuer.
    #[error("the token's issuer is {0:?}")]
    Issuer(String),
    /// Meant for somebody else.
    #[error("the token's audience is {0:?}")]
    Audience(Vec<String>),
    /// Not a service account's.
    #[error("the token's subject {0:?} is not a service account")]
    Subject(String),
    /// The keys are not there.
    #[error("{0}")]
    Keys(String),
}

/// Checks tokens of one issuer.
#[derive(Debug)]
pub struct JwtAuthenticator {
    issuer: String,
    audiences: Vec<String>,
    keys: KeyFile,
}

impl JwtAuthenticator {
    /// For tokens of `issuer`, meant for one of `audiences`, signed by a key in the file `jwks`.
    pub fn new(issuer: String, audiences: Vec<String>, jwks: PathBuf) -> Self {
        Self { issuer, audiences, keys: KeyFile::new(jwks) }
    }

    /// Reads the key file once: a missing or empty one is worth a word at the start.
    pub fn check_keys(&self) -> Result<(), String> {
        self.keys.load().map(|_| ())
    }

    /// Checks signature, time, issuer, audience and subject, in this order.
    pub fn verify(&self, token: &str, now: OffsetDateTime) -> Result<TokenSubject, JwtError> {
        let claims = self.verify_signature(token)?;
        let now = now.unix_timestamp() as f64;
        if claims.exp <= now {
            return Err(JwtError::Expired);
        }
        if claims.nbf.is_some_and(|nbf| nbf > now + NOT_BEFORE_LEEWAY_SECONDS) {
            return Err(JwtError::NotYetValid);
        }
        if claims.iss != self.issuer {
            return Err(JwtError::Issuer(claims.iss));
        }
        let audiences = claims.aud.into_vec();
        if !audiences.iter().any(|a| self.audiences.contains(a)) {
            return Err(JwtError::Audience(audiences));
        }
        subject(&claims.sub, claims.kubernetes)
    }

    fn verify_signature(&self, token: &str) -> Result<Claims, JwtError> {
        // An unknown algorithm, `none` among them, fails here already.
        let header = jsonwebtoken::decode_header(token).map_err(|e| JwtError::Malformed(e.to_string()))?;
        let keys = self.keys.load().map_err(JwtError::Keys)?;
        let mut fitting = keys.iter().filter(|k| k.fits(header.kid.as_deref(), header.alg)).peekable();
        if fitting.peek().is_none() {
            return Err(JwtError::UnknownKey {
                path: self.keys.path.clone(),
                kid: header.kid.clone(),
                alg: format!("{:?}", header.alg),
            });
        }
        // Only the signature is left to the library: claims are checked above, against a clock
        // that is passed in.
        let mut signature_only = Validation::new(header.alg);
        signature_only.required_spec_claims.clear();
        signature_only.validate_exp = false;
        signature_only.validate_aud = false;
        let mut last = JwtError::Signature;
        for key in fitting {
            match jsonwebtoken::decode::<Claims>(token, &key.key, &signature_only) {
                Ok(data) => return Ok(data.claims),
                Err(e) => last = decode_error(&e),
            }
        }
        Err(last)
    }
}

fn decode_error(error: &jsonwebtoken::errors::Error) -> JwtError {
    use jsonwebtoken::errors::ErrorKind;
    match error.kind() {
        ErrorKind::InvalidSignature => JwtError::Signature,
        _ => JwtError::Malformed(error.to_string()),
    }
}

fn subject(sub: &str, kubernetes: Option<KubernetesClaims>) -> Result<TokenSubject, JwtError> {
    let foreign = || JwtError::Subject(sub.to_owned());
    let (namespace, service_account) = sub
        .strip_prefix("system:serviceaccount:")
        .and_then(|rest| rest.split_once(':'))
        .filter(|(ns, sa)| !ns.is_empty() && !sa.is_empty() && !sa.contains([':', '/']) && !ns.contains('/'))
        .ok_or_else(foreign)?;
    // The private claim says the same as the subject, or the token contradicts itself.
    if let Some(claim) = &kubernetes {
        let same_account = claim.serviceaccount.as_ref().is_none_or(|sa| sa.name == service_account);
        if claim.namespace != namespace || !same_account {
            return Err(foreign());
        }
    }
    Ok(TokenSubject {
        namespace: namespace.into(),
        service_account: service_account.into(),
        pod: kubernetes.and_then(|k| k.pod).map(|p| (p.name, p.uid)),
    })
}

#[derive(Debug, Deserialize)]
struct Claims {
    iss: String,
    sub: String,
    aud: OneOrMany,
    exp: f64,
    nbf: Option<f64>,
    #[serde(rename = "kubernetes.io")]
    kubernetes: Option<KubernetesClaims>,
}

#[derive(Debug, Deserialize)]
struct KubernetesClaims {
    namespace: String,
    serviceaccount: Option<ObjectRef>,
    pod: Option<ObjectRef>,
}

#[derive(Debug, Deserialize)]
struct ObjectRef {
    name: String,
    #[serde(default)]
    uid: String,
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(one) => vec![one],
            Self::Many(many) => many,
        }
    }
}

#[derive(Debug)]
struct Key {
    kid: Option<String>,
    algorithms: Vec<Algorithm>,
    key: DecodingKey,
}

impl Key {
    fn fits(&self, kid: Option<&str>, alg: Algorithm) -> bool {
        self.algorithms.contains(&alg) && kid.is_none_or(|kid| self.kid.as_deref() == Some(kid))
    }

    /// `None` for keys that cannot verify signatures of others: symmetric, encryption, unknown.
    fn of(jwk: &Jwk) -> Option<Self> {
        if jwk.common.public_key_use.as_ref().is_some_and(|u| *u != PublicKeyUse::Signature) {
            return None;
        }
        // The key decides which algorithms it may serve, not the token (RFC 8725 section 3.1).
        let mut algorithms = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => vec![
                Algorithm::RS256,
                Algorithm::RS384,
                Algorithm::RS512,
                Algorithm::PS256,
                Algorithm::PS384,
                Algorithm::PS512,
            ],
            AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P256 => vec![Algorithm::ES256],
            AlgorithmParameters::EllipticCurve(p) if p.curve == EllipticCurve::P384 => vec![Algorithm::ES384],
            AlgorithmParameters::OctetKeyPair(p) if p.curve == EllipticCurve::Ed25519 => vec![Algorithm::EdDSA],
            _ => return None,
        };
        if let Some(stated) = jwk.common.key_algorithm {
            algorithms.retain(|a| KeyAlgorithm::from(*a) == stated);
        }
        let key = DecodingKey::from_jwk(jwk).ok()?;
        (!algorithms.is_empty()).then(|| Self { kid: jwk.common.key_id.clone(), algorithms, key })
    }
}

/// The JWKS file: read again whenever it was replaced; the last good keys serve while it is broken.
#[derive(Debug)]
struct KeyFile {
    path: PathBuf,
    cached: Mutex<Option<Cached>>,
    /// The fault last told of: each is told once.
    told: Mutex<String>,
}

#[derive(Debug)]
struct Cached {
    stamp: Stamp,
    keys: Arc<Vec<Key>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    length: u64,
    modified: (i64, i64),
}

impl KeyFile {
    fn new(path: PathBuf) -> Self {
        Self { path, cached: Mutex::new(None), told: Mutex::default() }
    }

    fn tell(&self, error: String) {
        let mut told = self.told.lock();
        if *told != error {
            tracing::warn!(%error, "token keys: the last good ones stay in force");
            *told = error;
        }
    }

    fn load(&self) -> Result<Arc<Vec<Key>>, String> {
        let mut cached = self.cached.lock();
        let result = stamp(&self.path).and_then(|stamp| match &*cached {
            Some(c) if c.stamp == stamp => Ok(None),
            _ => read_keys(&self.path).map(|keys| Some(Cached { stamp, keys: Arc::new(keys) })),
        });
        match (result, &mut *cached) {
            (Ok(None), Some(c)) => Ok(Arc::clone(&c.keys)),
            (Ok(Some(fresh)), slot) => Ok(Arc::clone(&slot.insert(fresh).keys)),
            (Err(error), Some(c)) => {
                self.tell(error);
                Ok(Arc::clone(&c.keys))
            }
            (Err(error), None) => Err(error),
            (Ok(None), None) => Err(format!("{}: no keys", self.path.display())),
        }
    }
}

fn stamp(path: &Path) -> Result<Stamp, String> {
    let meta = fs::metadata(path).map_err(|e| format!("{}: {e}", path.display()))?;
    Ok(Stamp { inode: meta.ino(), length: meta.len(), modified: (meta.mtime(), meta.mtime_nsec()) })
}

fn read_keys(path: &Path) -> Result<Vec<Key>, String> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<serde_json::Value>,
    }
    let bytes = fs::read(path).map_err(|e| format!("{}: {e}", path.display()))?;
    let set: Set =
        serde_json::from_slice(&bytes).map_err(|e| format!("{}: not a JSON Web Key Set: {e}", path.display()))?;
    // Unknown kinds of keys in a set are skipped, not an error (RFC 7517 section 5).
    let keys: Vec<Key> = set
        .keys
        .into_iter()
        .filter_map(|value| serde_json::from_value::<Jwk>(value).ok())
        .filter_map(|jwk| Key::of(&jwk))
        .collect();
    if keys.is_empty() {
        return Err(format!("{}: holds no usable signature key", path.display()));
    }
    Ok(keys)
}
