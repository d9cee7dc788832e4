//! CRL_PATH: a file, or a folder of files, of PEM or DER.
//!
//! Looked at once a second: a mounted ConfigMap changes by a swapped symbolic link, which few watchers see rightly.
//! What cannot be read or understood is reported once, and the last good lists of that file stay.

use super::{List, Revocations};
use aquifer_runtime::Cancel;
use rustls::pki_types::{CertificateRevocationListDer, pem::PemObject};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;
use time::OffsetDateTime;

const INTERVAL: Duration = Duration::from_secs(1);

/// Keeps [`Revocations`] equal to what CRL_PATH holds.
pub struct CrlFiles {
    path: PathBuf,
    revocations: Revocations,
    files: BTreeMap<PathBuf, File>,
    /// The last error of the path itself, which is reported once.
    unreadable: Option<String>,
}

#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    good: Vec<List>,
}

/// Changes whenever the file's contents do.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

/// Why a file is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CrlError {
    /// It cannot be read.
    #[error("cannot be read: {0}")]
    Read(#[from] io::Error),
    /// It holds none. A file that is just being written looks so.
    #[error("holds no revocation list (a PEM block \"X509 CRL\", or DER)")]
    Empty,
    /// One of its blocks is not PEM.
    #[error("is not PEM: {0}")]
    Pem(String),
    /// One of its lists is malformed, or of a kind that we don't take: delta lists, lists for other authorities.
    #[error("list {number}: {error}")]
    List {
        /// Which, from 1.
        number: usize,
        /// Why.
        error: webpki::Error,
    },
}

impl CrlFiles {
    /// Nothing is read before the first [`poll`](Self::poll).
    pub fn new(path: impl Into<PathBuf>, revocations: Revocations) -> Self {
        Self { path: path.into(), revocations, files: BTreeMap::new(), unreadable: None }
    }

    /// Looks for changes, until `cancel`'s drain.
    pub async fn run(mut self, cancel: Cancel) {
        loop {
            tokio::select! {
                biased;
                () = cancel.drained() => return,
                () = tokio::time::sleep(INTERVAL) => {}
            }
            self.poll();
        }
    }

    /// Looks once, and publishes the lists if they have changed. Call it once before the first handshake.
    pub fn poll(&mut self) -> bool {
        let names = match names(&self.path) {
            Ok(names) => {
                self.unreadable = None;
                names
            }
            Err(error) => {
                let error = error.to_string();
                if self.unreadable.as_ref() != Some(&error) {
                    tracing::error!(path = %self.path.display(), error, kept = self.count(), "cannot read CRL_PATH");
                    self.unreadable = Some(error);
                }
                return false;
            }
        };
        let before = self.files.len();
        self.files.retain(|name, _| names.contains(name));
        let mut changed = self.files.len() != before;
        for name in names {
            changed |= self.files.entry(name.clone()).or_default().refresh(&name);
        }
        if changed {
            let lists: Vec<_> = self.files.values().flat_map(|f| &f.good).cloned().collect();
            tracing::info!(path = %self.path.display(), lists = lists.len(), "revocation lists loaded");
            self.revocations.publish(lists);
        }
        changed
    }

    fn count(&self) -> usize {
        self.files.values().map(|f| f.good.len()).sum()
    }
}

impl File {
    fn refresh(&mut self, name: &Path) -> bool {
        let stamp = std::fs::metadata(name).ok().map(|meta| Stamp::of(&meta));
        if stamp.is_some() && stamp == self.stamp {
            return false;
        }
        self.stamp = stamp;
        let parsed = std::fs::read(name).map_err(CrlError::from).and_then(|bytes| parse(&bytes));
        match parsed {
            Ok(lists) => {
                self.good = lists.into_iter().map(|(list, next_update)| {
                    if let Some(due) = next_update.filter(|due| *due < OffsetDateTime::now_utc()) {
                        tracing::warn!(file = %name.display(), %due, "this revocation list should have been renewed; it still counts");
                    }
                    list
                }).collect();
                true
            }
            Err(error) => {
                let kept = self.good.len();
                tracing::error!(file = %name.display(), %error, kept, "bad CRL file; its last good lists stay in force");
                false
            }
        }
    }
}

impl Stamp {
    fn of(meta: &std::fs::Metadata) -> Self {
        Self {
            inode: (meta.dev(), meta.ino()),
            size: meta.size(),
            modified: (meta.mtime(), meta.mtime_nsec()),
            changed: (meta.ctime(), meta.ctime_nsec()),
        }
    }
}

/// The file itself, or the files of the folder; names with a dot are the kubelet's own.
fn names(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !std::fs::metadata(path)?.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
        if !hidden && std::fs::metadata(entry.path()).is_ok_and(|meta| meta.is_file()) {
            names.push(entry.path());
        }
    }
    names.sort();
    Ok(names)
}

/// All lists of a file, each with its `nextUpdate`.
pub fn parse(bytes: &[u8]) -> Result<Vec<(List, Option<OffsetDateTime>)>, CrlError> {
    let pem = bytes.windows(11).any(|w| w == b"-----BEGIN ");
    let ders: Vec<CertificateRevocationListDer<'_>> = if pem {
        let blocks = CertificateRevocationListDer::pem_slice_iter(bytes).collect::<Result<_, _>>();
        blocks.map_err(|e| CrlError::Pem(e.to_string()))?
    } else if bytes.iter().all(u8::is_ascii_whitespace) {
        Vec::new()
    } else {
        vec![bytes.into()]
    };
    if ders.is_empty() {
        return Err(CrlError::Empty);
    }
    let list = |(i, der): (usize, &CertificateRevocationListDer<'_>)| {
        let list = List::read(der).map_err(|error| CrlError::List { number: i + 1, error })?;
        let parsed = x509_parser::parse_x509_crl(der).ok();
        let due = parsed.and_then(|(_, crl)| crl.next_update().map(|due| due.to_datetime()));
        Ok((list, due))
    };
    ders.iter().enumerate().map(list).collect()
}
