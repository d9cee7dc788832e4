//! Pods by their processes: the kubelet names a pod's cgroup after its uid.
//!
//! ```text
//!   /proc/4711/cgroup   0::/kubepods.slice/kubepods-pod5f0e…_….slice/cri-containerd-….scope     (systemd's names)
//!                       0::/kubepods/burstable/pod5f0e…-…/…                                      (the kubelet's own)
//!   /proc/4711/ns/net   its network namespace; the node's own means host network, or no pod
//! ```

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::Finder;

/// How long a look at all processes counts: many pods are asked for at once when the agent starts.
const FRESH: Duration = Duration::from_millis(500);

/// The processes of a node.
#[derive(Debug)]
pub struct Processes {
    folder: PathBuf,
    seen: Mutex<Option<Seen>>,
}

#[derive(Debug)]
struct Seen {
    at: Instant,
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
        Self { folder: folder.into(), seen: Mutex::new(None) }
    }

    /// The network namespaces of all pods that are not on the node's own network.
    pub fn all(&self) -> Vec<PathBuf> {
        look(&self.folder).into_values().map(|process| namespace(&process.folder)).collect()
    }
}

impl Finder for Processes {
    fn find(&self, uid: &str) -> Option<PathBuf> {
        let mut seen = self.seen.lock();
        if seen.as_ref().is_none_or(|seen| seen.at.elapsed() >= FRESH) {
            *seen = Some(Seen { pods: look(&self.folder), at: Instant::now() });
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
fn look(folder: &Path) -> HashMap<String, Process> {
    let nodes_own = fs::read_link(namespace(&folder.join("1"))).ok();
    let mut pods: HashMap<String, Process> = HashMap::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if !entry.file_name().as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let folder = entry.path();
        let Some(uid) = pod_of(&folder) else { continue };
        let (Ok(own), Some(began)) = (fs::read_link(namespace(&folder)), began(&folder)) else { continue };
        if Some(own) == nodes_own || pods.get(&uid).is_some_and(|first| first.began <= began) {
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
    inside.filter_map(named).find(|uid| !uid.is_empty()).map(|uid| uid.replace('_', "-"))
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
        for path in
            ["/", "", "/user.slice/podman.service", "/system.slice/podinfo", "/kubepods.slice", "/kubepods/pod/x"]
        {
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
    }
}
