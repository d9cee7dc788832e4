//! Namespaces: a node's network, a pod's network, mounts and host name.
//!
//! They are made by a short-lived thread, which a thread may do without touching the others (`unshare(2)`), and live
//! as long as their descriptors here, a process in them, or a file they are bound to.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, setns, unshare};
use nix::unistd::sethostname;

use crate::error::{During, LabError, Result};

/// What each pod has to itself, with its mode.
const PRIVATE: [(&str, &str); 3] = [("/run", "0755"), ("/var/log", "0755"), ("/tmp", "1777")];

/// Namespaces to enter; those that are `None` stay the lab's own.
#[derive(Debug, Clone, Default)]
pub(super) struct Namespaces {
    pub(super) net: Option<Arc<OwnedFd>>,
    pub(super) mnt: Option<Arc<OwnedFd>>,
    pub(super) uts: Option<Arc<OwnedFd>>,
}

impl Namespaces {
    pub(super) fn net_only(net: Arc<OwnedFd>) -> Self {
        Self { net: Some(net), mnt: None, uts: None }
    }
}

/// Something of the machine or the lab that a pod sees at a path of its own.
#[derive(Debug, Clone)]
pub(super) struct Mount {
    pub(super) source: PathBuf,
    pub(super) target: PathBuf,
}

/// What a pod's sandbox is to be.
#[derive(Debug, Clone, Default)]
pub(super) struct SandboxPlan {
    pub(super) hostname: String,
    /// `None` makes a new network namespace.
    pub(super) net: Option<Arc<OwnedFd>>,
    /// Folders where network namespaces are bound: let go in the pod, or it would keep those of other pods alive.
    pub(super) netns_folders: Vec<PathBuf>,
    pub(super) mounts: Vec<Mount>,
    pub(super) sysctls: Vec<(&'static str, &'static str)>,
}

/// A new network namespace.
pub(super) fn new_netns(sysctls: &[(&'static str, &'static str)]) -> Result<Arc<OwnedFd>> {
    let sysctls = sysctls.to_vec();
    on_own_thread(move || {
        unshare(CloneFlags::CLONE_NEWNET).during(|| "making a network namespace".into())?;
        set_sysctls(&sysctls)?;
        open_namespace("net")
    })
}

/// A pod's namespaces, with its mounts in place.
pub(super) fn new_sandbox(plan: SandboxPlan) -> Result<Namespaces> {
    on_own_thread(move || {
        let mut flags = CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWUTS;
        if plan.net.is_none() {
            flags |= CloneFlags::CLONE_NEWNET;
        }
        unshare(flags).during(|| "making a pod's namespaces".into())?;
        sethostname(&plan.hostname).during(|| "setting a pod's host name".into())?;
        set_mounts(&plan)?;
        let net = match plan.net {
            Some(net) => net,
            None => {
                set_sysctls(&plan.sysctls)?;
                open_namespace("net")?
            }
        };
        Ok(Namespaces { net: Some(net), mnt: Some(open_namespace("mnt")?), uts: Some(open_namespace("uts")?) })
    })
}

/// Runs work inside a network namespace, on a thread of its own.
pub(super) fn in_netns<T: Send + 'static>(
    net: Option<Arc<OwnedFd>>,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    on_own_thread(move || {
        if let Some(net) = net {
            setns(&*net, CloneFlags::CLONE_NEWNET).during(|| "entering a network namespace".into())?;
        }
        work()
    })
}

/// Names a network namespace by a file, for finders that know folders only.
pub(super) fn bind_netns(net: &OwnedFd, file: &Path) -> Result<()> {
    File::create(file).during(|| format!("making {}", file.display()))?;
    let source = format!("/proc/self/fd/{}", net.as_raw_fd());
    let none: Option<&str> = None;
    mount(Some(source.as_str()), file, none, MsFlags::MS_BIND, none).during(|| format!("binding {}", file.display()))
}

/// Takes that name away.
pub(super) fn unbind_netns(file: &Path) {
    let _ = umount2(file, MntFlags::MNT_DETACH);
    let _ = fs::remove_file(file);
}

/// A private tmpfs that holds such names: one mount to let go of in each pod.
pub(super) fn mount_netns_folder(folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).during(|| format!("making {}", folder.display()))?;
    tmpfs(folder, "0755")
}

fn on_own_thread<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let thread =
        std::thread::Builder::new().name("namespaces".into()).spawn(work).during(|| "starting a thread".into())?;
    thread.join().map_err(|_| LabError::Refused("a thread that works on namespaces panicked".into()))?
}

fn open_namespace(kind: &str) -> Result<Arc<OwnedFd>> {
    let path = format!("/proc/thread-self/ns/{kind}");
    let file = File::open(&path).during(|| format!("opening {path}"))?;
    Ok(Arc::new(file.into()))
}

pub(super) fn set_sysctls(sysctls: &[(&'static str, &'static str)]) -> Result<()> {
    for (name, value) in sysctls {
        let path = Path::new("/proc/sys").join(name.replace('.', "/"));
        match fs::write(&path, value) {
            // A kernel without IPv6, or without the setting, needs it not.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            other => other.during(|| format!("setting {name}={value}"))?,
        }
    }
    Ok(())
}

/// Private /run, /tmp and /var/log, then the pod's own mounts.
fn set_mounts(plan: &SandboxPlan) -> Result<()> {
    for folder in &plan.netns_folders {
        let _ = umount2(folder, MntFlags::MNT_DETACH);
    }
    // Opened before /run is covered: most sources lie under it.
    let mut sources = Vec::new();
    for wanted in &plan.mounts {
        let what = || format!("opening {}", wanted.source.display());
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_PATH).open(&wanted.source).during(what)?;
        sources.push((file, wanted));
    }
    for (folder, mode) in PRIVATE {
        let folders = folders_of(Path::new(folder));
        tmpfs(Path::new(folder), mode)?;
        // Programs expect folders that their packages made (/run/mysqld, /var/log/nginx).
        if folder != "/tmp" {
            for (path, mode, user, group) in folders {
                let _ = fs::DirBuilder::new().mode(mode).create(&path);
                let _ = chown(&path, Some(user), Some(group));
            }
        }
    }
    for (file, wanted) in sources {
        let source = format!("/proc/thread-self/fd/{}", file.as_raw_fd());
        bind(&source, &wanted.target, file.metadata().is_ok_and(|meta| meta.is_dir()))?;
    }
    Ok(())
}

fn folders_of(folder: &Path) -> Vec<(PathBuf, u32, u32, u32)> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()) && entry.file_name() != "aquifer")
        .filter_map(|entry| {
            let meta = entry.metadata().ok()?;
            Some((entry.path(), meta.mode() & 0o7777, meta.uid(), meta.gid()))
        })
        .collect()
}

fn tmpfs(target: &Path, mode: &str) -> Result<()> {
    let data = format!("mode={mode}");
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(data.as_str()))
        .during(|| format!("mounting {}", target.display()))
}

fn bind(source: &str, target: &Path, is_dir: bool) -> Result<()> {
    let none: Option<&str> = None;
    let try_bind = |target: &Path| mount(Some(source), target, none, MsFlags::MS_BIND, none);
    match try_bind(target) {
        Err(Errno::ENOENT) => {}
        other => return other.during(|| format!("binding {}", target.display())),
    }
    // Not there: either below our own tmpfs, or a link (/etc/resolv.conf) into it.
    let real =
        fs::read_link(target).map_or_else(|_| target.to_owned(), |link| target.parent().unwrap_or(target).join(link));
    if !PRIVATE.iter().any(|(folder, _)| real.starts_with(folder)) && !real.starts_with("/var/run") {
        // A file that the machine lacks is not made: the machine stays as it is.
        tracing::debug!(target = %target.display(), "nothing to bind to");
        return Ok(());
    }
    let parent = if is_dir { Some(real.as_path()) } else { real.parent() };
    if let Some(parent) = parent {
        fs::create_dir_all(parent).during(|| format!("making {}", parent.display()))?;
    }
    if !is_dir {
        File::create(&real).during(|| format!("making {}", real.display()))?;
    }
    try_bind(&real).during(|| format!("binding {}", real.display()))
}
