//! What the agent must still know after a restart: one small file for each pod that it touched.

use crate::netns::{NetNs, NetNsId};
use serde::{Deserialize, Serialize};
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

/// A pod that rules were laid for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// The pod's uid.
    pub uid: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its addresses, as the probe set holds them.
    pub ips: Vec<IpAddr>,
    /// The network namespace that the rest speaks of.
    pub netns: NetNsId,
    /// Where that network namespace was found.
    pub netns_path: PathBuf,
    /// The pod's own `tcp_migrate_req`, to be restored.
    pub tcp_migrate_req: Option<String>,
}

impl Record {
    /// The namespace that this speaks of, if the path leads there: one by a process may lead elsewhere by now.
    pub fn at(&self, path: &Path) -> Option<NetNs> {
        NetNs::open(path).ok().filter(|netns| netns.id() == self.netns)
    }
}

/// The folder of records.
#[derive(Debug, Clone)]
pub struct StateDir {
    folder: PathBuf,
}

impl StateDir {
    /// Uses (and creates) this folder.
    pub fn open(folder: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(folder)?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// Every record. One that cannot be read is logged and left out.
    pub fn load(&self) -> io::Result<Vec<Record>> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_none_or(|extension| extension != "json") {
                continue;
            }
            match std::fs::read(&path).map(|bytes| serde_json::from_slice::<Record>(&bytes)) {
                Ok(Ok(record)) => records.push(record),
                Ok(Err(error)) => tracing::warn!(path = %path.display(), %error, "state file is unreadable"),
                Err(error) => tracing::warn!(path = %path.display(), %error, "state file is unreadable"),
            }
        }
        Ok(records)
    }

    /// The pod's record, if rules were laid for it.
    pub fn get(&self, uid: &str) -> Option<Record> {
        let bytes = std::fs::read(self.path(uid)).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Writes the record; a reader sees the old one or the new one.
    pub fn save(&self, record: &Record) -> io::Result<()> {
        let path = self.path(&record.uid);
        let draft = path.with_extension("new");
        std::fs::write(&draft, serde_json::to_vec(record)?)?;
        std::fs::rename(draft, path)
    }

    /// Forgets the pod.
    pub fn forget(&self, uid: &str) -> io::Result<()> {
        match std::fs::remove_file(self.path(uid)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    fn path(&self, uid: &str) -> PathBuf {
        // A uid is the API server's; a hand-written one must not lead out of the folder.
        let name: String = uid.chars().map(|c| if c.is_ascii_alphanumeric() || c == '-' { c } else { '_' }).collect();
        self.folder.join(format!("{name}.json"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_survive_and_are_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let state = StateDir::open(folder.path()).unwrap();
        let record = Record {
            uid: "u/1".into(),
            namespace: "shop".into(),
            name: "web".into(),
            ips: vec!["198.18.16.2".parse().unwrap()],
            netns: NetNsId { device: 4, inode: 7 },
            netns_path: "/run/x".into(),
            tcp_migrate_req: Some("0".into()),
        };
        state.save(&record).unwrap();
        std::fs::write(folder.path().join("broken.json"), "{").unwrap();
        let again = StateDir::open(folder.path()).unwrap();
        assert_eq!(again.load().unwrap(), vec![record.clone()]);
        assert_eq!(again.get("u/1"), Some(record));
        again.forget("u/1").unwrap();
        again.forget("u/1").unwrap();
        assert_eq!(again.get("u/1"), None);
    }
}
