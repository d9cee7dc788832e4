//! Pods by their processes: the kubelet names a pod's cgroup after its uid.
//!
//! ```text
//!   /proc/4711/cgroup   0::/kubepods.slice/kubepods-pod5f0e…_….slice/cri-containerd-….scope     (systemd's names)
//!                       0::/kubepods/burstable/pod5f0e…-…/…                                      (the kubelet's own)
//!   /proc/4711/ns/net   its network namespace; the node's own means host network, or no pod
//! ```
//!
//! An agent in a container with a cgroup namespace of its own sees the paths from there: `/../../pod5f0e…-…/…`.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Finder;

/// How long a look at all processes counts at least: many pods are asked for at once when the agent starts.
const FRESH: Duration = Duration::from_millis(500);
/// And how many times as long as it took: a pod that has no process for hours is asked for several times a second.
const REST: u32 = 20;

/// The processes of a node.
#[derive(Debug)]
pub struct Processes {
    folder: PathBuf,
    seen: Mutex<Option<Seen>>,
    told: AtomicBool,
}

#[derive(Debug)]
struct Seen {
    until: Instant,
    /// Of each pod the process that began first: the sandbox's own, which lives as long as the pod.
    pods: HashMap<String, Process>,
}

#[derive(Debug)]
struct Process {
    folder: PathBuf,
    /// In clock ticks after the machine's start.
    began: u64,
}

impl Processes {
    /// Those of this `proc` file system, which must be the node's: an agent in a pod mounts it.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self { folder: folder.into(), seen: Mutex::new(None), told: AtomicBool::new(false) }
    }

    /// The network namespaces of all pods that are not on the node's own network.
    pub fn all(&self) -> Vec<PathBuf> {
        self.look().into_values().map(|process| namespace(&process.folder)).collect()
    }

    fn look(&self) -> HashMap<String, Process> {
        // Without it the node's own could pass for a pod's.
        match fs::read_link(namespace(&self.folder.join("1"))) {
            Ok(nodes_own) => look(&self.folder, &nodes_own),
            Err(error) => {
                if !self.told.swap(true, Ordering::Relaxed) {
                    tracing::warn!(
                        folder = %self.folder.display(), %error,
                        "the node's processes cannot be read: pods that run before the agent are not found. Mount the \
                         node's /proc there, and give the agent CAP_SYS_PTRACE and no AppArmor or SELinux profile"
                    );
                }
                HashMap::new()
            }
        }
    }
}

impl Finder for Processes {
    fn find(&self, uid: &str) -> Option<PathBuf> {
        let mut seen = self.seen.lock();
        let begin = Instant::now();
        if seen.as_ref().is_none_or(|seen| begin >= seen.until) {
            let pods = self.look();
            *seen = Some(Seen { pods, until: Instant::now() + FRESH.max(begin.elapsed() * REST) });
        }
        let process = seen.as_ref()?.pods.get(uid)?;
        // It may have ended since, and its number may be another's by now.
        let still = pod_of(&process.folder).as_deref() == Some(uid) && began(&process.folder) == Some(process.began);
        still.then(|| namespace(&process.folder))
    }
}

fn namespace(process: &Path) -> PathBuf {
    process.join("ns/net")
}

/// All pods with a network namespace of their own. What ends meanwhile, or is not ours to look at, is left out.
fn look(folder: &Path, nodes_own: &Path) -> HashMap<String, Process> {
    let mut pods: HashMap<String, Process> = HashMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let folder = entry.path();
        let Some(uid) = pod_of(&folder) else { continue };
        let (Ok(own), Some(began)) = (fs::read_link(namespace(&folder)), began(&folder)) else { continue };
        if own == nodes_own || pods.get(&uid).is_some_and(|first| first.began <= began) {
            continue;
        }
        pods.insert(uid, Process { folder, began });
    }
    pods
}

/// The uid of the pod that a process belongs to.
fn pod_of(process: &Path) -> Option<String> {
    let groups = fs::read_to_string(process.join("cgroup")).ok()?;
    // `hierarchy:controllers:path`
    groups.lines().filter_map(|line| line.splitn(3, ':').nth(2)).find_map(uid_in)
}

/// The uid in a cgroup's path. systemd's names have `_` where the uid has `-`.
fn uid_in(path: &str) -> Option<String> {
    let named = |part: &str| match part.strip_suffix(".slice") {
        Some(slice) => slice.contains("kubepods").then(|| slice.rsplit_once("-pod"))?.map(|(_, uid)| uid.to_owned()),
        None => part.strip_prefix("pod").map(str::to_owned),
    };
    let inside = path.split('/').skip_while(|part| !part.contains("kubepods"));
    let elsewhere = path.split('/').filter(|_| path.starts_with("/.."));
    let uid = inside.filter_map(named).find(|uid| !uid.is_empty());
    uid.or_else(|| elsewhere.filter_map(named).find(|uid| is_uid(uid))).map(|uid| uid.replace('_', "-"))
}

/// A UUID, or the hash of a pod that is made from a file.
fn is_uid(text: &str) -> bool {
    let digits = text.bytes().filter(u8::is_ascii_hexdigit).count();
    let dashes = text.bytes().filter(|byte| *byte == b'-').count();
    digits == 32 && (dashes == 0 || dashes == 4) && text.len() == digits + dashes
}

/// Field 22 of `/proc/<pid>/stat` (proc_pid_stat(5)), counted from behind the name, which may hold anything.
fn began(process: &Path) -> Option<u64> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    stat.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    #[test]
    fn uids_as_every_kubelet_and_runtime_writes_them() {
        let uid = "5f0e8a3c-1111-4222-8333-444455556666";
        let slices =
            "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod5f0e8a3c_1111_4222_8333_444455556666.slice";
        for path in [
            &format!("/kubepods/pod{uid}/abcdef"),
            &format!("/kubepods/besteffort/pod{uid}/abcdef"),
            &format!("/docker/0123/kubelet/kubepods/burstable/pod{uid}/abcdef"),
            &format!("/{slices}/cri-containerd-abcdef.scope"),
            &format!("/{slices}/crio-abcdef.scope/container"),
            &format!("/../../{slices}/cri-containerd-abcdef.scope"),
            // From within another pod's own cgroup.
            &format!("/../../pod{uid}/abcdef"),
            &format!("/../../../besteffort/pod{uid}/abcdef"),
            "/kubepods.slice/kubepods-pod5f0e8a3c_1111_4222_8333_444455556666.slice/docker-abcdef.scope",
            &format!(
                "/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{}.slice/cri-containerd-abcdef.scope",
                uid.replace('-', "_")
            ),
        ] {
            assert_eq!(uid_in(path).as_deref(), Some(uid), "{path}");
        }
        // A pod made from a file has a hash for a uid.
        let fixed = "/kubepods/burstable/podd41d8cd98f00b204e9800998ecf8427e/abcdef";
        assert_eq!(uid_in(fixed).as_deref(), Some("d41d8cd98f00b204e9800998ecf8427e"));
        for path in [
            "/",
            "",
            "/user.slice/podman.service",
            "/system.slice/podinfo",
            "/kubepods.slice",
            "/kubepods/pod/x",
            "/../../podman/x",
        ] {
            assert_eq!(uid_in(path), None, "{path}");
        }
    }

    struct Proc(tempfile::TempDir);

    impl Proc {
        fn new() -> Self {
            let proc = Self(tempfile::tempdir().unwrap());
            fs::create_dir(proc.0.path().join("sys")).unwrap();
            proc.with(1, "0::/init.scope", "net:[1]", 1);
            proc
        }

        fn with(&self, pid: u32, cgroup: &str, netns: &str, began: u64) {
            let folder = self.0.path().join(pid.to_string());
            let _ = fs::remove_dir_all(&folder);
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("cgroup"), format!("{cgroup}\n")).unwrap();
            let ignored = "0 ".repeat(18);
            fs::write(folder.join("stat"), format!("{pid} (a ) name) S {ignored}{began} 0 0\n")).unwrap();
            symlink(netns, folder.join("ns/net")).unwrap();
        }

        fn find(&self, uid: &str) -> Option<String> {
            let path = Processes::new(self.0.path()).find(uid)?;
            Some(path.strip_prefix(self.0.path()).unwrap().display().to_string())
        }
    }

    #[test]
    fn the_first_process_of_a_pod_outside_the_nodes_network() {
        let proc = Proc::new();
        proc.with(40, "0::/kubepods/poda-1/app", "net:[7]", 900);
        proc.with(4000, "0::/kubepods/poda-1/sandbox", "net:[7]", 800);
        proc.with(41, "12:pids:/kubepods/podb-2/app\n1:name=systemd:/kubepods/podb-2/app", "net:[8]", 950);
        proc.with(42, "0::/kubepods/podhost/app", "net:[1]", 960);
        assert_eq!(proc.find("a-1").as_deref(), Some("4000/ns/net"));
        assert_eq!(proc.find("b-2").as_deref(), Some("41/ns/net"));
        assert_eq!(proc.find("host"), None);
        assert_eq!(proc.find("c-3"), None);
        assert_eq!(Processes::new(proc.0.path()).all().len(), 2);
    }

    #[test]
    fn a_number_that_is_anothers_by_now_is_nobodys() {
        let proc = Proc::new();
        proc.with(40, "0::/kubepods/poda-1/app", "net:[7]", 900);
        let processes = Processes::new(proc.0.path());
        assert!(processes.find("a-1").is_some());
        proc.with(40, "0::/kubepods/podb-2/app", "net:[8]", 1900);
        assert_eq!(processes.find("a-1"), None);
        proc.with(40, "0::/kubepods/poda-1/app", "net:[9]", 2900);
        assert_eq!(processes.find("a-1"), None, "looked at before it began");
    }

    #[test]
    fn what_is_there_is_read_and_what_is_not_is_no_pod() {
        assert!(began(Path::new("/proc/self")).is_some_and(|ticks| ticks > 0));
        assert_eq!(Processes::new("/nowhere").find("a-1"), None);
        // Whose network the node's own is cannot be told.
        let proc = Proc::new();
        proc.with(40, "0::/kubepods/poda-1/app", "net:[7]", 900);
        fs::remove_file(proc.0.path().join("1/ns/net")).unwrap();
        assert_eq!(proc.find("a-1"), None);
    }
}
