//! Network namespaces: a handle to one, and work done inside it.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;

use nix::sched::{CloneFlags, setns};

/// An open network namespace. It lives as long as a handle to it does.
#[derive(Debug, Clone)]
pub struct NetNs {
    file: Arc<File>,
    id: NetNsId,
}

/// What tells namespaces apart while they live.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
pub struct NetNsId {
    /// Device of the namespace file.
    pub device: u64,
    /// Its inode.
    pub inode: u64,
}

impl NetNs {
    /// The namespace that a path names, such as `/proc/<pid>/ns/net` or a bind mount of it.
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        if !is_namespace(&file)? {
            // A runtime creates an empty file first and then binds the namespace to it.
            return Err(io::Error::other(format!("{} is no network namespace", path.display())));
        }
        let metadata = file.metadata()?;
        Ok(Self { file: Arc::new(file), id: NetNsId { device: metadata.dev(), inode: metadata.ino() } })
    }

    /// The calling thread's namespace.
    pub fn current() -> io::Result<Self> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// What tells it apart from others.
    pub fn id(&self) -> NetNsId {
        self.id
    }

    /// Does `work` inside the namespace, on a thread of its own that ends afterwards, so that no other thread
    /// ever is in the wrong namespace.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let inside = std::thread::Builder::new().name("in-netns".into()).spawn_scoped(scope, || {
                setns(&*self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            })?;
            match inside.join() {
                Ok(result) => result,
                Err(_) => Err(io::Error::other("work inside the network namespace panicked")),
            }
        })
    }

    /// [`Self::run`] without blocking the caller's runtime.
    pub async fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
        let namespace = self.clone();
        tokio::task::spawn_blocking(move || namespace.run(work))
            .await
            .unwrap_or_else(|_| Err(io::Error::other("work inside the network namespace was cancelled")))
    }
}

impl AsFd for NetNs {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn is_namespace(file: &File) -> io::Result<bool> {
    let stat = nix::sys::statfs::fstatfs(file)?;
    Ok(stat.filesystem_type().0 == libc::NSFS_MAGIC as libc::c_long)
}

/// The capabilities that the agent needs and lacks, by name.
pub fn missing_capabilities(proc_status: &str) -> Vec<&'static str> {
    const NEEDED: [(u64, &str); 2] = [(12, "CAP_NET_ADMIN"), (21, "CAP_SYS_ADMIN")];
    let effective = proc_status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok())
        .unwrap_or(0);
    NEEDED.iter().filter(|(bit, _)| effective & (1 << bit) == 0).map(|(_, name)| *name).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ordinary_file_is_no_namespace() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let error = NetNs::open(file.path()).unwrap_err();
        assert!(error.to_string().ends_with("is no network namespace"), "{error}");
    }

    #[test]
    fn lacking_capabilities_are_named() {
        let check = |bits: &str, expected: &[&str]| {
            assert_eq!(missing_capabilities(&format!("Name:\tx\nCapEff:\t{bits}\n")), expected);
        };
        check("000001ffffffffff", &[]);
        check("0000000000001000", &["CAP_SYS_ADMIN"]);
        check("0000000000200000", &["CAP_NET_ADMIN"]);
        check("0000000000000000", &["CAP_NET_ADMIN", "CAP_SYS_ADMIN"]);
    }
}
