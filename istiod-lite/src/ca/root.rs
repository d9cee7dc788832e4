//! The root key pair on disk: made once, adopted ever after.
//!
//! Two files in the data folder: `root-key.pem` (0600, in a folder made with 0700) and
//! `root-cert.pem`, which is also what clients are given to trust. An operator may put a pair of
//! their own there; the certificate file may then hold further roots after the signer's own, and
//! all of them are published.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, KeyPair, KeyUsagePurpose, PublicKeyData as _,
};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::{Duration, OffsetDateTime};

/// File name of the private key.
pub const KEY_FILE: &str = "root-key.pem";
/// File name of the certificate bundle that clients trust.
pub const CERT_FILE: &str = "root-cert.pem";

/// How long a root that we make is valid.
const LIFETIME: Duration = Duration::days(3650);
/// Clocks of nodes differ a little; so every certificate starts in the past.
pub(super) const BACKDATE: Duration = Duration::minutes(2);

/// Why the root could not be made or adopted. Each message names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum RootError {
    /// The data folder or a file in it could not be read or written.
    #[error("{action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// Others on this machine may read or change the key.
    #[error("{} has mode {mode:04o}: the root key must not be accessible to others; run `chmod {advice} {}`", path.display(), path.display())]
    Permissions {
        /// The file or folder.
        path: PathBuf,
        /// Its mode bits.
        mode: u32,
        /// The mode to give it.
        advice: &'static str,
    },
    /// A certificate without its key: making a new key would leave clients trusting a dead root.
    #[error("{} is there but {} is missing: restore the key, or remove the certificate to start with a new root", cert.display(), key.display())]
    KeyMissing {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
    },
    /// The file does not hold what it should.
    #[error("{}: {reason}", path.display())]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Key and certificate do not belong together.
    #[error("{} does not belong to {}: the public keys differ", cert.display(), key.display())]
    Mismatch {
        /// The certificate file.
        cert: PathBuf,
        /// The key file.
        key: PathBuf,
    },
}

/// The signing key, its certificate, and all roots that clients shall trust.
pub struct Root {
    /// The private key.
    pub(super) key: KeyPair,
    /// The signer's certificate.
    pub(super) cert: CertificateDer<'static>,
    /// PEM of every trusted root, the signer's first.
    pub(super) bundle: String,
    /// End of the signer's validity; no leaf outlives it.
    pub(super) not_after: OffsetDateTime,
}

impl Root {
    /// Adopts the pair in `dir`, or makes one there.
    pub fn open(dir: &Path, trust_domain: &str, now: OffsetDateTime) -> Result<Self, RootError> {
        ensure_folder(dir)?;
        let key_path = dir.join(KEY_FILE);
        let cert_path = dir.join(CERT_FILE);
        let cert_pem = read_if_present(&cert_path)?;
        let key_pem = match read_key(&key_path)? {
            Some(pem) => pem,
            None if cert_pem.is_some() => {
                return Err(RootError::KeyMissing { cert: cert_path, key: key_path });
            }
            None => make_key(&key_path)?,
        };
        let key = KeyPair::from_pem(&key_pem)
            .map_err(|e| RootError::Invalid { path: key_path.clone(), reason: format!("not a private key: {e}") })?;
        // A key alone is what a crash between the two writes leaves: the certificate is made again.
        let bundle = match cert_pem {
            Some(pem) => pem,
            None => make_certificate(&cert_path, &key, trust_domain, now)?,
        };
        adopt(key, bundle, key_path, cert_path, now)
    }
}

/// Checks that the pair can sign and belongs together.
fn adopt(
    key: KeyPair,
    bundle: String,
    key_path: PathBuf,
    cert_path: PathBuf,
    now: OffsetDateTime,
) -> Result<Root, RootError> {
    let invalid = |reason: String| RootError::Invalid { path: cert_path.clone(), reason };
    let certs = CertificateDer::pem_slice_iter(bundle.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| invalid(format!("not a PEM certificate bundle: {e}")))?;
    let Some(cert) = certs.into_iter().next() else {
        return Err(invalid("holds no certificate".into()));
    };
    let (_, parsed) =
        x509_parser::parse_x509_certificate(&cert).map_err(|e| invalid(format!("not a certificate: {e}")))?;
    if parsed.public_key().raw != key.subject_public_key_info() {
        return Err(RootError::Mismatch { cert: cert_path, key: key_path });
    }
    if !parsed.is_ca() {
        return Err(invalid("is not a CA certificate (basicConstraints CA is not set)".into()));
    }
    if let Ok(Some(usage)) = parsed.key_usage()
        && !usage.value.key_cert_sign()
    {
        return Err(invalid("may not sign certificates (keyUsage lacks keyCertSign)".into()));
    }
    let not_after = parsed.validity().not_after.to_datetime();
    if not_after <= now {
        return Err(invalid(format!("expired at {not_after}: replace it and its key")));
    }
    Ok(Root { key, cert, bundle, not_after })
}

fn make_key(path: &Path) -> Result<String, RootError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|e| RootError::Invalid { path: path.into(), reason: format!("cannot make a key: {e}") })?;
    if write_new(path, key.serialize_pem().as_bytes(), 0o600)? {
        return Ok(key.serialize_pem());
    }
    // Another process was first; one root for both.
    read_key(path)?
        .ok_or_else(|| RootError::Invalid { path: path.into(), reason: "appeared and vanished while starting".into() })
}

fn make_certificate(path: &Path, key: &KeyPair, trust_domain: &str, now: OffsetDateTime) -> Result<String, RootError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::OrganizationName, trust_domain);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    // The second so that the revocation lists that it signs count everywhere (RFC 5280, 4.2.1.3).
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.not_before = now - BACKDATE;
    params.not_after = now + LIFETIME;
    params.serial_number = Some(super::issuer::random_serial());
    let cert = params
        .self_signed(key)
        .map_err(|e| RootError::Invalid { path: path.into(), reason: format!("cannot make a certificate: {e}") })?;
    if write_new(path, cert.pem().as_bytes(), 0o644)? {
        return Ok(cert.pem());
    }
    read_if_present(path)?
        .ok_or_else(|| RootError::Invalid { path: path.into(), reason: "appeared and vanished while starting".into() })
}

fn ensure_folder(dir: &Path) -> Result<(), RootError> {
    let io = |action| move |source| RootError::Io { action, path: dir.into(), source };
    DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(io("creating"))?;
    let mode = fs::metadata(dir).map_err(io("reading"))?.permissions().mode() & 0o7777;
    // Whoever may write in the folder may put a key of theirs in our key's place.
    if mode & 0o002 != 0 {
        return Err(RootError::Permissions { path: dir.into(), mode, advice: "700" });
    }
    Ok(())
}

/// The key's text; refuses a file that others may read. Group read is what Kubernetes' `fsGroup`
/// sets on mounted secrets, so that much is allowed.
fn read_key(path: &Path) -> Result<Option<String>, RootError> {
    let Some(text) = read_if_present(path)? else { return Ok(None) };
    let mode = fs::metadata(path)
        .map_err(|source| RootError::Io { action: "reading", path: path.into(), source })?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o027 != 0 {
        return Err(RootError::Permissions { path: path.into(), mode, advice: "600" });
    }
    Ok(Some(text))
}

fn read_if_present(path: &Path) -> Result<Option<String>, RootError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(RootError::Io { action: "reading", path: path.into(), source }),
    }
}

/// Writes `path` whole and durable, or leaves what is there: `false` when it existed already.
fn write_new(path: &Path, content: &[u8], mode: u32) -> Result<bool, RootError> {
    let io = |source| RootError::Io { action: "writing", path: path.into(), source };
    let temporary = path.with_extension(format!("{:016x}.new", rand::random::<u64>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).map_err(io)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    // A link, not a rename: it fails when the name is taken, so that two starters agree on one key.
    let linked = written.and_then(|()| match fs::hard_link(&temporary, path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(e),
    });
    let _ = fs::remove_file(&temporary);
    if let Some(parent) = path.parent() {
        File::open(parent).and_then(|d| d.sync_all()).map_err(io)?;
    }
    linked.map_err(io)
}

#[cfg(test)]
mod tests;
