//! What names a certificate.

use std::fmt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use rustls::crypto::aws_lc_rs;
use rustls_pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

/// SHA-256 of a certificate's DER, in lower-case hex.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Fingerprint(pub String);

impl Fingerprint {
    /// Of a certificate.
    pub fn of(cert: &CertificateDer<'_>) -> Self {
        Self(sha256_hex(cert))
    }

    /// Its first eight bytes: enough for people to tell roots apart.
    pub fn short(&self) -> &str {
        self.0.get(..16).unwrap_or(&self.0)
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// SHA-256 as rustls' provider has it, so that no other library is needed for it.
pub fn sha256(data: &[u8]) -> Vec<u8> {
    let suite = aws_lc_rs::cipher_suite::TLS13_AES_128_GCM_SHA256.tls13();
    let hash = suite.map(|s| s.common.hash_provider.hash(data));
    hash.map(|h| h.as_ref().to_vec()).unwrap_or_default()
}

fn sha256_hex(data: &[u8]) -> String {
    sha256(data).iter().map(|b| format!("{b:02x}")).collect()
}

/// A certificate as PEM (RFC 7468: 64 characters a line).
pub fn pem_of(cert: &CertificateDer<'_>) -> String {
    let text = BASE64_STANDARD.encode(cert);
    let mut pem = String::from("-----BEGIN CERTIFICATE-----\n");
    for line in text.as_bytes().chunks(64) {
        pem.push_str(&String::from_utf8_lossy(line));
        pem.push('\n');
    }
    pem + "-----END CERTIFICATE-----\n"
}
