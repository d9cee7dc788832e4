//! The binary on trial, in a namespace, with a folder and an environment of its own.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::sync::{OnceLock, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::task::block_in_place;

use super::DEADLINE;
use super::net::Netns;

/// The product's binary: what CONFORMANCE_ZTUNNEL names (any other implementation may be put to the same tests), or
/// ours, built once per run so that nobody tries yesterday's.
pub(crate) fn ztunnel() -> PathBuf {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    let binary = BINARY.get_or_init(|| {
        if let Some(path) = std::env::var_os("CONFORMANCE_ZTUNNEL") {
            return path.into();
        }
        build();
        target().join("ztunnel")
    });
    binary.clone()
}

/// Builds our binaries, once per run. AQUIFER_BIN, by which a lab is told of others, ends that.
pub(crate) fn build() {
    static BUILT: OnceLock<()> = OnceLock::new();
    BUILT.get_or_init(|| {
        if std::env::var_os("AQUIFER_BIN").is_some() {
            return;
        }
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let mut command = Command::new(cargo);
        command
            .args(["build", "--quiet", "--workspace", "--bins"])
            .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
        assert!(command.status().expect("cargo to run").success(), "cargo build of the binaries");
    });
}

/// The folder of binaries: two above the test's own, which lies in `deps`.
fn target() -> PathBuf {
    let own = std::env::current_exe().expect("the test's own path");
    own.ancestors().nth(2).expect("target/debug above the test").to_owned()
}

/// Gives the thread, and what it starts, the resolver's files of the folder in a mount namespace of its own.
fn mount_resolver(folder: &Path) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none)?;
    for file in ["resolv.conf", "hosts"] {
        if folder.join(file).exists() {
            mount(Some(&folder.join(file)), &Path::new("/etc").join(file), none, MsFlags::MS_BIND, none)?;
        }
    }
    Ok(())
}

/// A running process. It is killed when this is dropped, and dies with the test.
#[derive(Debug)]
pub(crate) struct Process {
    pid: Pid,
    log: PathBuf,
    ended: mpsc::Receiver<ExitStatus>,
    status: Option<ExitStatus>,
    keeper: Option<JoinHandle<()>>,
}

impl Process {
    pub(crate) fn start(
        binary: &Path,
        netns: &Netns,
        folder: &Path,
        log: &str,
        env: &[(String, String)],
    ) -> Result<Self> {
        let log = folder.join(log);
        let out = File::options().create(true).append(true).open(&log)?;
        let mut command = Command::new("setpriv");
        // The thread that starts it stays, so "parent death" is the test's own.
        command.args(["--pdeathsig", "KILL", "--"]).arg(binary).current_dir(folder).env_clear();
        command.envs(env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(out.try_clone()?).stderr(out);
        let (started, start) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let (netns, folder) = (netns.clone(), folder.to_owned());
        let keeper = std::thread::spawn(move || {
            let mut run = move || -> Result<()> {
                setns(netns.fd(), CloneFlags::CLONE_NEWNET)?;
                mount_resolver(&folder)?;
                let mut child = command.spawn().context("setpriv")?;
                let _ = started.send(child.id());
                let _ = end.send(child.wait()?);
                Ok(())
            };
            // What went wrong shows as a process that never started.
            let _ = run();
        });
        let pid = start.recv().context("the process did not start")?;
        let pid = Pid::from_raw(i32::try_from(pid)?);
        Ok(Self { pid, log, ended, status: None, keeper: Some(keeper) })
    }

    pub(crate) fn signal(&self, signal: Signal) -> Result<()> {
        Ok(kill(self.pid, signal)?)
    }

    /// The exit status, if it has ended.
    pub(crate) fn try_wait(&mut self) -> Option<ExitStatus> {
        if self.status.is_none() {
            self.status = self.ended.try_recv().ok();
        }
        self.status
    }

    /// Waits for the end.
    pub(crate) fn wait(&mut self) -> Result<ExitStatus> {
        if let Some(status) = self.try_wait() {
            return Ok(status);
        }
        let status =
            block_in_place(|| self.ended.recv_timeout(DEADLINE)).map_err(|_| anyhow!("the process goes on"))?;
        self.status = Some(status);
        Ok(status)
    }

    /// Everything it wrote.
    pub(crate) fn output(&self) -> Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(&self.log)?).into_owned())
    }

    /// Waits for lines that hold all the texts; these lines.
    pub(crate) async fn lines(&self, texts: &[&str], count: usize) -> Result<Vec<String>> {
        let begin = Instant::now();
        loop {
            let output = self.output()?;
            // The last line may be half written.
            let whole = output.rsplit_once('\n').map_or("", |(whole, _)| whole);
            let lines = whole.lines().filter(|line| texts.iter().all(|text| line.contains(text)));
            let lines: Vec<String> = lines.map(str::to_owned).collect();
            if lines.len() >= count {
                return Ok(lines);
            }
            if begin.elapsed() > DEADLINE {
                bail!("{count} lines with {texts:?} in:\n{output}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.try_wait().is_none() {
            let _ = kill(self.pid, Signal::SIGKILL);
        }
        if let Some(keeper) = self.keeper.take() {
            let _ = keeper.join();
        }
        // A test that ends in an error does not panic: CONFORMANCE_LOG=1 shows what the process wrote.
        if (std::thread::panicking() || std::env::var_os("CONFORMANCE_LOG").is_some())
            && let Ok(output) = self.output()
        {
            eprintln!("--- {}\n{output}", self.log.display());
        }
    }
}
