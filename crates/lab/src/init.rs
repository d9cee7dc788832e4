//! pid 1 of a lab: makes the namespaces, then plays control plane, kubelet and kube-proxy until its life ends.
//!
//! ```text
//!   manifests ─▶ cluster ─▶ pod (one task each) ─▶ sandbox, cni, container, probe
//!                  │  ▲        │
//!                  │  └────────┘ what became of it
//!                  ├─▶ deployments, endpoints, hosts, rules      pure
//!                  └─▶ net, nft                                  the kernel
//!   control socket ─▶ control ─▶ exec, signals, status
//! ```

mod accounts;
mod cluster;
mod cni;
mod components;
mod container;
mod control;
mod deployments;
mod dns;
mod ending;
mod endpoints;
mod hosts;
mod http;
mod kubelet;
mod net;
mod pod;
mod probe;
mod procfs;
mod reaper;
mod rules;
mod sandbox;
mod shared;
mod store;
mod tokens;

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, FromRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::unistd::{ForkResult, fork, sethostname, setsid};

use self::ending::end;
pub(crate) use self::store::documents;
use crate::error::{During, LabError, Result};
use crate::options::LabOptions;
use crate::paths::Paths;
use crate::start::{LOCK_FD, Report};

/// Descriptors that a thousand connections and a hundred pods need, with room.
const OPEN_FILES: u64 = 1 << 20;

/// What `aquifer lab init` does. Must be called before any thread is started; does not return.
#[allow(unsafe_code)]
pub fn main(state: &Path) -> ! {
    let paths = Paths::at(state);
    let flags = CloneFlags::CLONE_NEWPID
        | CloneFlags::CLONE_NEWNS
        | CloneFlags::CLONE_NEWNET
        | CloneFlags::CLONE_NEWIPC
        | CloneFlags::CLONE_NEWUTS;
    if let Err(error) = unshare(flags) {
        report(&Report::Failed(format!("making the lab's namespaces: {error}")));
        std::process::exit(1);
    }
    // SAFETY: no thread has been started, so the child may do anything.
    match unsafe { fork() } {
        Ok(ForkResult::Parent { child }) => {
            let written = fs::write(paths.pid(), child.to_string());
            std::process::exit(i32::from(written.is_err()));
        }
        Ok(ForkResult::Child) => {}
        Err(error) => {
            report(&Report::Failed(format!("starting the lab's pid 1: {error}")));
            std::process::exit(1);
        }
    }
    // SAFETY: the starter put the lab's lock there, and nobody else here knows of it.
    let lock = unsafe { OwnedFd::from_raw_fd(LOCK_FD) };
    if let Err(error) = run(paths.clone(), &lock) {
        tracing::error!(%error, "the lab ends");
        report(&Report::Failed(error.to_string()));
    }
    end(&paths)
}

fn run(paths: Paths, lock: &OwnedFd) -> Result<()> {
    let begin = Instant::now();
    nix::fcntl::fcntl(lock.as_fd(), nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::FD_CLOEXEC))
        .during(|| "keeping the lab's lock from its processes".into())?;
    let text = fs::read(paths.options()).during(|| "reading the lab's options".into())?;
    let options: LabOptions = serde_json::from_slice(&text).map_err(|error| LabError::Start(error.to_string()))?;
    let name = paths.root().file_name().unwrap_or_default().to_string_lossy().into_owned();
    setsid().during(|| "starting a session".into())?;
    sethostname(&name).during(|| "setting the host name".into())?;
    private_mounts()?;
    raise_open_files();
    if !options.keep {
        let paths = paths.clone();
        std::thread::spawn(move || {
            wait_for_end_of_life();
            end(&paths)
        });
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .during(|| "starting the runtime".into())?;
    let ran = runtime.block_on(async {
        let shared = shared::Shared::new(name, paths.clone(), options, begin)?;
        reaper::run(&shared)?;
        cluster::start(&shared).await?;
        control::serve(Arc::clone(&shared))?;
        shared.set_started();
        report(&Report::Ready);
        if let Err(error) = aquifer_runtime::signals::wait().await {
            tracing::warn!(%error, "no signals: only the end of the starter or SIGKILL ends this lab");
            std::future::pending::<()>().await;
        }
        Ok(())
    });
    // What still blocks is not waited for: the end kills what it waits for.
    runtime.shutdown_background();
    ran
}

/// Mounts that are made from here on stay in here, and /proc shows the lab's processes.
fn private_mounts() -> Result<()> {
    let none: Option<&str> = None;
    mount(none, "/", none, MsFlags::MS_REC | MsFlags::MS_PRIVATE, none).during(|| "making mounts private".into())?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("proc"), "/proc", Some("proc"), flags, none).during(|| "mounting /proc".into())
}

fn raise_open_files() {
    // Best effort: without the right to raise the hard limit, the machine's limit stays.
    if setrlimit(Resource::RLIMIT_NOFILE, OPEN_FILES, OPEN_FILES).is_err()
        && let Ok((_, hard)) = getrlimit(Resource::RLIMIT_NOFILE)
    {
        let _ = setrlimit(Resource::RLIMIT_NOFILE, hard, hard);
    }
}

/// Returns when the starter is gone: standard input is a pipe that it holds.
fn wait_for_end_of_life() {
    let mut buffer = [0; 16];
    loop {
        match std::io::stdin().read(&mut buffer) {
            Ok(0) => return,
            Err(error) if error.kind() != std::io::ErrorKind::Interrupted => return,
            _ => {}
        }
    }
}

/// Tells the starter, who reads one line from our standard output.
fn report(report: &Report) {
    let Ok(mut line) = serde_json::to_vec(report) else { return };
    line.push(b'\n');
    // A starter that has gone away closes the other end: nothing to tell then.
    let mut stdout = std::io::stdout();
    let _ = stdout.write_all(&line).and_then(|()| stdout.flush());
}
