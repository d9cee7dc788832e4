//! Where the network namespaces of pods that already run are.
//!
//! A pod that starts is announced by the CNI plugin with its namespace. One that was there before the agent is found
//! by its uid: in a folder, where a runtime or a person has bound namespaces by that name, else by its processes.

mod processes;

pub use processes::Processes;

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::netns::NetNs;
use crate::state::Record;

/// Finds a pod's network namespace.
pub trait Finder: Send + Sync + 'static {
    /// A path that names the namespace, if the pod has one by now.
    fn find(&self, uid: &str) -> Option<PathBuf>;

    /// The namespace that a record speaks of, by either path to it; `None` if it is gone, or the pod has another one.
    fn recorded(&self, record: &Record) -> Option<NetNs> {
        let found = self.find(&record.uid).and_then(|path| record.at(&path));
        found.or_else(|| record.at(&record.netns_path))
    }
}

/// Every way there is on a node.
#[derive(Debug)]
pub struct OnNode {
    directory: Directory,
    processes: Processes,
}

impl OnNode {
    /// As the settings say.
    pub fn new(config: &Config) -> Self {
        // An agent in a pod mounts the node's.
        let mounted = Path::new("/host/proc");
        let own = || if mounted.is_dir() { mounted } else { Path::new("/proc") };
        let processes = Processes::new(config.proc_folder.as_deref().unwrap_or_else(own));
        Self { directory: Directory::new(&config.netns_folder), processes }
    }

    /// Paths of all namespaces that may be a pod's; some may be named twice.
    pub fn all(&self) -> Vec<PathBuf> {
        let bound = std::fs::read_dir(&self.directory.folder).into_iter().flatten().flatten();
        bound.map(|entry| entry.path()).chain(self.processes.all()).collect()
    }
}

impl Finder for OnNode {
    fn find(&self, uid: &str) -> Option<PathBuf> {
        self.directory.find(uid).or_else(|| self.processes.find(uid))
    }
}

/// A folder that holds `<pod uid>` for each pod of the node, bound to its network namespace.
#[derive(Debug, Clone)]
pub struct Directory {
    folder: PathBuf,
}

impl Directory {
    /// That folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into() }
    }
}

impl Finder for Directory {
    fn find(&self, uid: &str) -> Option<PathBuf> {
        if uid.is_empty() || uid.contains(['/', '\0']) || uid.starts_with('.') {
            return None;
        }
        let path = self.folder.join(uid);
        path.exists().then_some(path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netns::NetNsId;

    #[test]
    fn only_names_inside_the_folder() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("uid-1"), "").unwrap();
        let finder = Directory::new(folder.path());
        assert_eq!(finder.find("uid-1"), Some(folder.path().join("uid-1")));
        for absent in ["uid-2", "", ".", "..", "../etc", "a/b"] {
            assert_eq!(finder.find(absent), None, "{absent}");
        }
    }

    #[test]
    fn a_recorded_namespace_is_found_by_either_path_and_never_taken_for_another() {
        let folder = tempfile::tempdir().unwrap();
        let finder = Directory::new(folder.path());
        let (own, elsewhere) = (Path::new("/proc/self/ns/net"), folder.path().join("elsewhere"));
        let id = NetNs::open(own).unwrap().id();
        let recorded = |uid: &str, netns_path: &Path, netns| {
            let (uid, netns_path) = (uid.to_owned(), netns_path.to_owned());
            let (namespace, name) = (String::new(), String::new());
            let record = Record { uid, namespace, name, ips: vec![], netns, netns_path, tcp_migrate_req: None };
            finder.recorded(&record).map(|netns| netns.id())
        };
        std::os::unix::fs::symlink(own, folder.path().join("uid-1")).unwrap();
        std::fs::write(&elsewhere, "").unwrap();
        // What is found under its uid is no namespace, as while a runtime sets it up.
        std::os::unix::fs::symlink(&elsewhere, folder.path().join("uid-2")).unwrap();

        assert_eq!(recorded("uid-1", &elsewhere, id), Some(id));
        assert_eq!(recorded("uid-2", own, id), Some(id));
        assert_eq!(recorded("uid-3", own, id), Some(id));
        assert_eq!(recorded("uid-3", &elsewhere, id), None);
        let other = NetNsId { inode: id.inode + 1, ..id };
        assert_eq!(recorded("uid-1", own, other), None);
    }
}
