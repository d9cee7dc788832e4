//! The starter's side: checks the machine, makes the lab's folder, starts pid 1 and waits until it is ready.

use std::fs::{self, File};
use std::io::{BufRead, BufReader};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use aquifer_runtime::env::{Env, ProcessEnv};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use serde::{Deserialize, Serialize};

use crate::addresses::MAX_NODES;
use crate::api_server::Programs;
use crate::error::{During, LabError, Result};
use crate::lab::try_lock;
use crate::options::LabOptions;
use crate::paths::{LABS, Paths};

/// Where the lock's descriptor is in the new process.
pub(crate) const LOCK_FD: i32 = 3;

/// Logs and state of a demo fit well into this.
const NEEDED_MIB: u64 = 64;
/// etcd sets aside so much for its log before it writes a word.
const ETCD_MIB: u64 = 256;

/// What the folder of a lab that is being removed begins with.
const GONE: &str = ".gone-";
/// How long that may take.
const REMOVAL: Duration = Duration::from_secs(2);

/// Programs of the machine that a lab cannot do without, and their Debian packages.
const PROGRAMS: [(&str, &str); 2] = [("ip", "iproute2"), ("nft", "nftables")];

/// What pid 1 says on its standard output when it is up, or why it isn't.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Report {
    Ready,
    Failed(String),
}

pub(crate) struct Started {
    pub(crate) name: String,
    pub(crate) paths: Paths,
    pub(crate) life: Option<std::io::PipeWriter>,
}

pub(crate) fn start(options: LabOptions) -> Result<Started> {
    check(&options)?;
    let aquifer = match &options.bin {
        Some(folder) => sibling(&folder.join("aquifer"), "aquifer")?,
        None => binary("aquifer")?,
    };
    if options.mesh {
        for name in ["istiod-lite", "ztunnel", "istio-cni-node"] {
            sibling(&aquifer, name)?;
        }
    }
    let name =
        options.name.clone().unwrap_or_else(|| format!("lab-{}-{:04x}", std::process::id(), rand::random::<u16>()));
    let paths = Paths::of(&name);
    let lock = claim(&name, &paths)?;
    let result = launch(&aquifer, &paths, &options, lock);
    if result.is_err() {
        // The folder is ours alone: nobody else has its lock.
        remove_folder(paths.root());
    }
    result.map(|life| Started { name, paths, life })
}

/// Whether somebody alive holds the lab's lock.
pub(crate) fn alive(paths: &Paths) -> bool {
    File::open(paths.lock()).is_ok_and(|file| !try_lock(&file))
}

/// A lab that is about to end: made before it is told so, since its folder goes with it.
#[derive(Debug)]
pub(crate) struct Leaving {
    paths: Paths,
    pid: Option<u32>,
}

impl Leaving {
    pub(crate) fn of(paths: &Paths) -> Self {
        let pid = fs::read_to_string(paths.pid()).ok().and_then(|text| text.trim().parse().ok());
        Self { paths: paths.clone(), pid: pid.filter(|_| alive(paths)) }
    }

    /// Waits until pid 1 is gone, all its processes before it, and the folder too.
    pub(crate) fn wait(&self, within: Duration) -> Result<()> {
        let begin = Instant::now();
        // The lock goes a moment before the process does.
        while alive(&self.paths) || self.pid.is_some_and(runs) {
            if begin.elapsed() > within {
                return Err(LabError::Timeout { what: "the lab's end".into(), after: within });
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        // Without the labs' lock, a lab of the same name that just begins would look dead.
        let _all = lock_labs()?;
        remove_if_dead(&self.paths);
        Ok(())
    }
}

/// Whether the process is there and no zombie. Its first thread may be one while the last still ends the others'
/// processes, so threads count.
fn runs(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit_once(')').and_then(|(_, rest)| rest.trim_start().chars().next());
    let threads = fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    state.is_some_and(|state| !matches!(state, 'Z' | 'X') || threads > 1)
}

/// The path of one of our binaries beside `aquifer`.
pub(crate) fn sibling(aquifer: &Path, name: &str) -> Result<PathBuf> {
    let path = aquifer.with_file_name(name);
    if path.is_file() { Ok(path) } else { Err(LabError::Binary(name.to_owned())) }
}

/// Where a program of the machine lies.
pub(crate) fn find_program(name: &str) -> Option<PathBuf> {
    let folders = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"];
    folders.iter().map(|folder| Path::new(folder).join(name)).find(|path| path.is_file())
}

/// Fails with the package to install if a program of the machine is missing.
pub(crate) fn need_program(name: &str, package: &str) -> Result<PathBuf> {
    find_program(name).ok_or_else(|| LabError::Missing { program: name.to_owned(), package: package.to_owned() })
}

fn check(options: &LabOptions) -> Result<()> {
    if !cfg!(target_os = "linux") {
        return Err(LabError::NotLinux);
    }
    if !nix::unistd::geteuid().is_root() {
        return Err(LabError::NotRoot);
    }
    for (program, package) in PROGRAMS {
        need_program(program, package)?;
    }
    if options.nodes == 0 || options.nodes > MAX_NODES {
        return Err(LabError::Start(format!("{} nodes asked for: 1 to {MAX_NODES} are possible", options.nodes)));
    }
    if options.ipv6 && !Path::new("/proc/sys/net/ipv6").exists() {
        return Err(LabError::Start("this kernel has no IPv6: start the lab without it (--no-ipv6)".into()));
    }
    if let Some(name) = &options.name {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if name.is_empty() || name.len() > 32 || !name.chars().all(plain) {
            return Err(LabError::Start(format!(
                "`{name}` is no name for a lab: up to 32 letters, digits, `-` and `_`"
            )));
        }
    }
    fs::create_dir_all(LABS).during(|| format!("making {LABS}"))?;
    if options.api_server {
        Programs::find()?;
    }
    let needed_mib = if options.api_server { NEEDED_MIB + ETCD_MIB } else { NEEDED_MIB };
    let stat = nix::sys::statvfs::statvfs(LABS).during(|| format!("asking for the free space of {LABS}"))?;
    let free_mib = (stat.blocks_available() as u64 * stat.fragment_size() as u64) >> 20;
    if free_mib < needed_mib {
        return Err(LabError::NoSpace { path: LABS.into(), free_mib, needed_mib });
    }
    Ok(())
}

/// The `aquifer` binary: AQUIFER_BIN, or beside the running one (a test lies in `deps` below it).
fn binary(name: &str) -> Result<PathBuf> {
    if let Some(path) = ProcessEnv.var("AQUIFER_BIN") {
        let path = PathBuf::from(path);
        return if path.is_file() { Ok(path) } else { Err(LabError::Binary(path.display().to_string())) };
    }
    let own = std::env::current_exe().during(|| "finding the running binary".into())?;
    let mut candidates = own.ancestors().skip(1).take(2).map(|folder| folder.join(name));
    candidates.find(|path| path.is_file()).ok_or_else(|| LabError::Binary(name.to_owned()))
}

/// Makes the lab's folder and locks it. What dead labs left goes on the way.
fn claim(name: &str, paths: &Paths) -> Result<File> {
    let _all = lock_labs()?;
    for entry in fs::read_dir(LABS).during(|| format!("reading {LABS}"))?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_if_dead(&Paths::at(entry.path()));
        }
    }
    if paths.root().exists() {
        return Err(LabError::Exists(name.to_owned()));
    }
    // The mesh's keys and tokens lie in there.
    fs::DirBuilder::new().mode(0o700).create(paths.root()).during(|| format!("making {}", paths.root().display()))?;
    for folder in [paths.manifests(), paths.logs()] {
        fs::create_dir_all(&folder).during(|| format!("making {}", folder.display()))?;
    }
    let lock = File::create(paths.lock()).during(|| "making the lab's lock".into())?;
    lock.lock().during(|| "locking the lab's folder".into())?;
    Ok(lock)
}

/// Held while labs are made and what dead ones left is removed.
fn lock_labs() -> Result<File> {
    let all = File::create(Path::new(LABS).join(".lock")).during(|| "opening the labs' lock".into())?;
    all.lock().during(|| "locking the labs' folder".into())?;
    Ok(all)
}

fn remove_if_dead(paths: &Paths) {
    if paths.root().exists() && !alive(paths) {
        // Its namespaces died with its pid 1, so nothing is mounted in here any more.
        remove_folder(paths.root());
    }
}

/// Removes a lab's folder, which is out of everybody's sight at once. Its last processes may still write.
pub(crate) fn remove_folder(root: &Path) {
    let name = root.file_name().unwrap_or_default().to_string_lossy();
    let mut gone = root.to_owned();
    if !name.starts_with(GONE) {
        let aside = root.with_file_name(format!("{GONE}{name}-{:08x}", rand::random::<u32>()));
        if fs::rename(root, &aside).is_ok() {
            gone = aside;
        }
    }
    let begin = Instant::now();
    while let Err(error) = fs::remove_dir_all(&gone) {
        if error.kind() == std::io::ErrorKind::NotFound && !gone.exists() {
            return;
        }
        if begin.elapsed() > REMOVAL {
            // The next start tries again.
            tracing::warn!(folder = %gone.display(), %error, "a dead lab's folder stays");
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[allow(unsafe_code)]
fn launch(aquifer: &Path, paths: &Paths, options: &LabOptions, lock: File) -> Result<Option<std::io::PipeWriter>> {
    let text = serde_json::to_vec(options).map_err(|error| LabError::Start(error.to_string()))?;
    fs::write(paths.options(), text).during(|| "writing the lab's options".into())?;
    let log = File::create(paths.lab_log()).during(|| "making the lab's log".into())?;
    let (life_read, life) = std::io::pipe().during(|| "making a pipe".into())?;
    let (report_read, report_write) = std::io::pipe().during(|| "making a pipe".into())?;
    let stdin = if options.keep { Stdio::null() } else { Stdio::from(OwnedFd::from(life_read)) };
    let lock_fd = lock.as_raw_fd();
    let mut command = Command::new(aquifer);
    command.args(["lab", "init", "--state"]).arg(paths.root());
    command.stdin(stdin).stdout(OwnedFd::from(report_write)).stderr(log);
    // SAFETY: dup2 and fcntl are async-signal-safe and touch this child's descriptors only.
    unsafe {
        command.pre_exec(move || {
            if lock_fd == LOCK_FD {
                let fd = std::os::fd::BorrowedFd::borrow_raw(lock_fd);
                fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty()))?;
            } else if libc::dup2(lock_fd, LOCK_FD) < 0 {
                return Err(std::io::Error::last_os_error());
            }
            Ok(())
        });
    }
    let mut child = command.spawn().during(|| format!("starting {}", aquifer.display()))?;
    // Drops our ends of the pipes, so that the child's end is the end.
    drop(command);
    drop(lock);
    let mut line = String::new();
    let read = BufReader::new(report_read).read_line(&mut line);
    // What we started has forked pid 1 into its namespaces and ended.
    let _ = child.wait();
    read.during(|| "waiting for the lab".into())?;
    match serde_json::from_str::<Report>(&line) {
        Ok(Report::Ready) => Ok((!options.keep).then_some(life)),
        Ok(Report::Failed(why)) => Err(LabError::Start(why)),
        Err(_) => {
            let log = fs::read_to_string(paths.lab_log()).unwrap_or_default();
            let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing");
            Err(LabError::Start(last.to_owned()))
        }
    }
}
