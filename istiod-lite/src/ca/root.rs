//! The root key pair on disk: made once, adopted ever after.
//!
//! Two files in the data folder: `root-key.pem` (0600, in a folder made with 0700) and
//! `root-cert.pem`, which is also what clients are given to trust. An operator may put a pair of
//! their own there; the certificate file may then hold further roots beside the signer's own, and
//! all of them are published. A folder `cacerts` in it, with Istio's file names, comes before the pair.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use std::collections::BTreeMap;

use rcgen::{KeyPair, PublicKeyData as _};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject as _;
use time::{Duration, OffsetDateTime};
use zeroize::Zeroizing;

use super::fingerprint::pem_of;
use super::material::{CA_CERT, CA_KEY, CERT_CHAIN, Material, MaterialError, ROOT_CERT};

/// File name of the private key.
pub const KEY_FILE: &str = "root-key.pem";
/// File name of the certificate bundle that clients trust.
pub const CERT_FILE: &str = "root-cert.pem";

/// Folder of a signer that the operator plugs in, in the data folder.
pub const CACERTS: &str = "cacerts";

/// How long a root that we make is valid.
pub const LIFETIME: Duration = Duration::days(3650);
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

/// The signer of the data folder: plugged in, adopted, or made there.
pub fn open(dir: &Path, trust_domain: &str, now: OffsetDateTime) -> Result<Material, RootError> {
    ensure_folder(dir)?;
    if let Some(plugged) = plugged_in(&dir.join(CACERTS), now)? {
        return Ok(plugged);
    }
    let key_path = dir.join(KEY_FILE);
    let cert_path = dir.join(CERT_FILE);
    let cert_pem = read_if_present(&cert_path)?;
    let key = match read_key(&key_path)? {
        Some(pem) => pem,
        None if cert_pem.is_some() => {
            return Err(RootError::KeyMissing { cert: cert_path, key: key_path });
        }
        None => make_key(&key_path)?,
    };
    // A key alone is what a crash between the two writes leaves: the certificate is made again.
    let roots = match cert_pem {
        Some(pem) => pem,
        None => make_certificate(&cert_path, &key, trust_domain, now)?,
    };
    let cert = own_certificate(&key, &roots, &key_path, &cert_path)?;
    let material = Material { key, cert, chain: String::new(), roots };
    material.signer(now).map_err(|error| match error {
        MaterialError::Mismatch => RootError::Mismatch { cert: cert_path.clone(), key: key_path.clone() },
        MaterialError::Invalid { part, reason } if part == CA_KEY => {
            RootError::Invalid { path: key_path.clone(), reason }
        }
        other => RootError::Invalid { path: cert_path.clone(), reason: reason(other) },
    })?;
    Ok(material)
}

/// The signer that the operator has put into `dir`, if there is one: Istio's four files, or cert-manager's three.
pub fn plugged_in(dir: &Path, now: OffsetDateTime) -> Result<Option<Material>, RootError> {
    let mut entries = BTreeMap::new();
    for (name, secret) in [
        (CA_CERT, false),
        (CA_KEY, true),
        (ROOT_CERT, false),
        (CERT_CHAIN, false),
        ("tls.crt", false),
        ("tls.key", true),
        ("ca.crt", false),
    ] {
        let path = dir.join(name);
        let text = if secret { read_key(&path)?.map(|t| t.to_string()) } else { read_if_present(&path)? };
        entries.extend(text.map(|text| (name.to_owned(), text.into_bytes())));
    }
    if entries.is_empty() {
        return Ok(None);
    }
    let checked = Material::from_entries(&entries).and_then(|material| material.signer(now).map(|_| material));
    checked.map(Some).map_err(|error| RootError::Invalid { path: dir.into(), reason: error.to_string() })
}

/// Puts another signer in the pair's place, so that at each moment the key is there with a certificate of its own.
pub fn replace(dir: &Path, material: &Material) -> Result<(), RootError> {
    let (key, cert) = (dir.join(KEY_FILE), dir.join(CERT_FILE));
    let present = read_if_present(&cert)?.unwrap_or_default();
    if !present.contains(material.cert.trim()) {
        publish(dir, &format!("{present}{}", material.cert))?;
    }
    overwrite(&key, material.key.as_bytes(), 0o600)?;
    let roots = if material.roots.is_empty() { &material.cert } else { &material.roots };
    publish(dir, roots)
}

/// Makes `bundle` what clients are given to trust.
pub fn publish(dir: &Path, bundle: &str) -> Result<(), RootError> {
    let path = dir.join(CERT_FILE);
    if read_if_present(&path)?.as_deref() == Some(bundle) {
        return Ok(());
    }
    overwrite(&path, bundle.as_bytes(), 0o644)
}

/// Reads a file that must not be readable by others; `None` if it is not there.
pub fn read_secret(path: &Path) -> Result<Option<Zeroizing<String>>, RootError> {
    read_key(path)
}

/// Writes `path` whole and durable, in place of what was there.
pub fn overwrite(path: &Path, content: &[u8], mode: u32) -> Result<(), RootError> {
    let io = |source| RootError::Io { action: "writing", path: path.into(), source };
    let temporary = path.with_extension(format!("{:016x}.new", rand::random::<u64>()));
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&temporary).map_err(io)?;
    let written = file.write_all(content).and_then(|()| file.sync_all());
    let renamed = written.and_then(|()| fs::rename(&temporary, path));
    if renamed.is_err() {
        let _ = fs::remove_file(&temporary);
    }
    renamed.and_then(|()| sync_folder(path)).map_err(io)
}

/// A [`MaterialError`] whose part is told by the path already.
fn reason(error: MaterialError) -> String {
    match error {
        MaterialError::Invalid { reason, .. } => reason,
        other => other.to_string(),
    }
}

/// The certificate among `roots` that is the key's.
fn own_certificate(key: &str, roots: &str, key_path: &Path, cert_path: &Path) -> Result<String, RootError> {
    let invalid = |reason: String| RootError::Invalid { path: cert_path.into(), reason };
    let pair = KeyPair::from_pem(key)
        .map_err(|e| RootError::Invalid { path: key_path.into(), reason: format!("not a private key: {e}") })?;
    let public = pair.subject_public_key_info();
    drop(Zeroizing::new(pair));
    let certs = CertificateDer::pem_slice_iter(roots.as_bytes())
        .collect::<Result<Vec<_>, _>>()
        .map_err(|e| invalid(format!("not a PEM certificate bundle: {e}")))?;
    if certs.is_empty() {
        return Err(invalid("holds no certificate".into()));
    }
    for cert in &certs {
        let (_, parsed) =
            x509_parser::parse_x509_certificate(cert).map_err(|e| invalid(format!("not a certificate: {e}")))?;
        if parsed.public_key().raw == public {
            return Ok(pem_of(cert));
        }
    }
    Err(RootError::Mismatch { cert: cert_path.into(), key: key_path.into() })
}

fn make_key(path: &Path) -> Result<Zeroizing<String>, RootError> {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256)
        .map_err(|e| RootError::Invalid { path: path.into(), reason: format!("cannot make a key: {e}") })?;
    let key = Zeroizing::new(key);
    let pem = Zeroizing::new(key.serialize_pem());
    if write_new(path, pem.as_bytes(), 0o600)? {
        return Ok(pem);
    }
    // Another process was first; one root for both.
    read_key(path)?
        .ok_or_else(|| RootError::Invalid { path: path.into(), reason: "appeared and vanished while starting".into() })
}

fn make_certificate(path: &Path, key: &str, trust_domain: &str, now: OffsetDateTime) -> Result<String, RootError> {
    let made = Material::self_signed_with(key, trust_domain, LIFETIME, now)
        .map_err(|e| RootError::Invalid { path: path.into(), reason: format!("cannot make a certificate: {e}") })?;
    if write_new(path, made.cert.as_bytes(), 0o644)? {
        return Ok(made.cert);
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
fn read_key(path: &Path) -> Result<Option<Zeroizing<String>>, RootError> {
    let Some(text) = read_if_present(path)?.map(Zeroizing::new) else { return Ok(None) };
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
    sync_folder(path).map_err(io)?;
    linked.map_err(io)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    path.parent().map_or(Ok(()), |parent| File::open(parent).and_then(|folder| folder.sync_all()))
}

#[cfg(test)]
mod tests;
