//! Where the network namespaces of pods that already run are.

use std::path::PathBuf;

/// Finds a pod's network namespace.
pub trait Finder: Send + Sync + 'static {
    /// A path that names the namespace, if the pod has one by now.
    fn find(&self, uid: &str) -> Option<PathBuf>;
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
}
