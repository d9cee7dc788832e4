//! Service-account tokens, as a Kubernetes API server projects them into pods (RS256, RFC 7519).
//!
//! One key a lab. Its public part lies in a JWKS file (RFC 7517); the private part never leaves pid 1.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair, KeySize};
use aws_lc_rs::signature::{KeyPair as _, RSA_PKCS1_SHA256};
use serde_json::{Value, json};

use crate::error::{During, LabError, Result};

pub(super) const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";
pub(super) const AUDIENCE: &str = "istio-ca";
const KEY_ID: &str = "lab";

/// The lab's signing key.
#[derive(Debug)]
pub(super) struct Tokens {
    key: KeyPair,
}

/// Whom a token is for.
#[derive(Debug, Clone)]
pub(super) struct Subject<'a> {
    pub(super) namespace: &'a str,
    pub(super) service_account: (&'a str, &'a str),
    pub(super) pod: (&'a str, &'a str),
    pub(super) node: (&'a str, &'a str),
}

impl Tokens {
    /// Makes a key and writes its public part. Blocks for some tenths of a second.
    pub(super) fn new(jwks: &Path) -> Result<Self> {
        let key = KeyPair::generate(KeySize::Rsa2048)
            .map_err(|_| LabError::Refused("making the lab's token key failed".into()))?;
        let tokens = Self { key };
        if let Some(folder) = jwks.parent() {
            fs::create_dir_all(folder).during(|| format!("making {}", folder.display()))?;
        }
        fs::write(jwks, tokens.jwks()?.to_string()).during(|| format!("writing {}", jwks.display()))?;
        Ok(tokens)
    }

    /// A token that is valid from now for `ttl`.
    pub(super) fn issue(&self, subject: &Subject<'_>, ttl: Duration) -> Result<String> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        let header = json!({"alg": "RS256", "kid": KEY_ID, "typ": "JWT"});
        let claims = claims(subject, now, ttl);
        let signed =
            format!("{}.{}", base64url(header.to_string().as_bytes()), base64url(claims.to_string().as_bytes()));
        let mut signature = vec![0; self.key.public_modulus_len()];
        self.key
            .sign(&RSA_PKCS1_SHA256, &SystemRandom::new(), signed.as_bytes(), &mut signature)
            .map_err(|_| LabError::Refused("signing a token failed".into()))?;
        Ok(format!("{signed}.{}", base64url(&signature)))
    }

    fn jwks(&self) -> Result<Value> {
        let odd = || LabError::Refused("the lab's token key has no readable public part".into());
        let (modulus, exponent) = public_numbers(self.key.public_key().as_ref()).ok_or_else(odd)?;
        Ok(json!({"keys": [{
            "kty": "RSA", "use": "sig", "alg": "RS256", "kid": KEY_ID, "n": base64url(modulus), "e": base64url(exponent),
        }]}))
    }
}

fn claims(subject: &Subject<'_>, now: u64, ttl: Duration) -> Value {
    let reference = |(name, uid): (&str, &str)| json!({"name": name, "uid": uid});
    json!({
        "iss": ISSUER,
        "aud": [AUDIENCE],
        "sub": format!("system:serviceaccount:{}:{}", subject.namespace, subject.service_account.0),
        "iat": now,
        "nbf": now,
        "exp": now + ttl.as_secs(),
        "kubernetes.io": {
            "namespace": subject.namespace,
            "serviceaccount": reference(subject.service_account),
            "pod": reference(subject.pod),
            "node": reference(subject.node),
        },
    })
}

/// Modulus and exponent of an RSAPublicKey (RFC 8017, A.1.1): a SEQUENCE of two INTEGERs.
fn public_numbers(der: &[u8]) -> Option<(&[u8], &[u8])> {
    let (sequence, _) = der_value(der, 0x30)?;
    let (modulus, rest) = der_value(sequence, 0x02)?;
    let (exponent, _) = der_value(rest, 0x02)?;
    // A leading zero only says that the number is positive.
    let number = |bytes: &'_ [u8]| bytes.iter().take_while(|byte| **byte == 0).count();
    Some((&modulus[number(modulus)..], &exponent[number(exponent)..]))
}

fn der_value(der: &[u8], tag: u8) -> Option<(&[u8], &[u8])> {
    let (&[found, first], rest) = der.split_first_chunk::<2>()?;
    (found == tag).then_some(())?;
    let (length, rest) = match first {
        0..0x80 => (usize::from(first), rest),
        _ => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().try_fold(0usize, |length, byte| Some(length.checked_mul(256)? + usize::from(*byte)))?, rest)
        }
    };
    rest.split_at_checked(length)
}

/// RFC 4648, section 5, without padding.
fn base64url(bytes: &[u8]) -> String {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let word = chunk.iter().fold(0u32, |word, byte| word << 8 | u32::from(*byte)) << (8 * (3 - chunk.len()));
        for index in 0..=chunk.len() {
            text.push(char::from(LETTERS[(word >> (18 - 6 * index) & 63) as usize]));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use jsonwebtoken::{DecodingKey, Validation, decode, jwk::JwkSet};

    use super::*;

    #[test]
    fn others_can_verify_what_we_issue() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tokens/jwks.json");
        let tokens = Tokens::new(&file).unwrap();
        let subject = Subject {
            namespace: "istio-system",
            service_account: ("ztunnel", "s1"),
            pod: ("ztunnel-abcde", "p1"),
            node: ("node1", "n1"),
        };
        let token = tokens.issue(&subject, Duration::from_secs(60)).unwrap();
        let keys: JwkSet = serde_json::from_slice(&fs::read(&file).unwrap()).unwrap();
        let key = DecodingKey::from_jwk(keys.find("lab").unwrap()).unwrap();
        let mut validation = Validation::new(jsonwebtoken::Algorithm::RS256);
        validation.set_audience(&["istio-ca"]);
        validation.set_issuer(&[ISSUER]);
        let claims = decode::<Value>(&token, &key, &validation).unwrap().claims;
        assert_eq!(claims["sub"], "system:serviceaccount:istio-system:ztunnel");
        assert_eq!(claims["kubernetes.io"]["pod"], json!({"name": "ztunnel-abcde", "uid": "p1"}));
        assert_eq!(claims["exp"].as_u64().unwrap() - claims["iat"].as_u64().unwrap(), 60);
        let mut forged = token.into_bytes();
        let last = forged.len() - 5;
        forged[last] ^= 1;
        assert!(decode::<Value>(String::from_utf8(forged).unwrap(), &key, &validation).is_err());
    }

    #[test]
    fn base64url_as_in_the_rfc() {
        let cases: [(&[u8], &str); 5] =
            [(b"", ""), (b"f", "Zg"), (b"fo", "Zm8"), (b"foo", "Zm9v"), (&[0xfb, 0xff], "-_8")];
        for (bytes, text) in cases {
            assert_eq!(base64url(bytes), text);
        }
    }
}
