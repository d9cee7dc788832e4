//! What a lab leaves behind when it is killed: nothing.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aquifer_lab::{Lab, LabOptions};

use crate::harness::{build_binaries, eventually, meshed_shop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigkill_of_a_meshed_lab_leaves_no_process_and_no_namespace() -> Result<()> {
    let before = links()?;
    let lab = meshed_shop(LabOptions::default()).await?;
    assert_eq!(links()?, before, "links on the machine while the lab is up");
    let pid = lab.pid()?;
    let name = lab.name().to_owned();
    let network = std::fs::read_link(format!("/proc/{pid}/ns/net"))?;
    let pids = std::fs::read_link(format!("/proc/{pid}/ns/pid"))?;
    let members = || -> Result<usize> {
        let mut count = 0;
        for entry in std::fs::read_dir("/proc")?.flatten() {
            let of = |kind: &str| std::fs::read_link(entry.path().join("ns").join(kind)).ok();
            count += usize::from(of("pid").as_ref() == Some(&pids) || of("net").as_ref() == Some(&network));
        }
        Ok(count)
    };
    assert!(members()? > 10, "the lab's processes were not found");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)?;
    eventually("no process of the lab is left", Duration::from_secs(2), async || Ok(members()? == 0)).await?;
    // pid 1's first thread may be gone while its last one still holds the lock.
    let listed = async || Ok(!Lab::list().contains(&name));
    eventually("it counts as ended", Duration::from_secs(2), listed).await?;
    assert_eq!(links()?, before, "links on the machine");
    Ok(())
}

/// The network interfaces of the machine's own namespace.
fn links() -> Result<Vec<String>> {
    let names = std::fs::read_dir("/sys/class/net")?.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
    let mut names = names.collect::<Result<Vec<_>>>()?;
    names.sort();
    Ok(names)
}

/// When the starter is killed.
#[derive(Debug, Clone, Copy)]
enum Moment {
    /// pid 1 is there, and nothing else may be.
    Born,
    /// The lab said that it is up.
    Up,
    /// The first manifest was applied: pods are about to start.
    Applied,
    /// So many pods of the shop have a process.
    Running(usize),
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigkill_of_the_starter_leaves_no_process_and_no_folder() -> Result<()> {
    tokio::task::spawn_blocking(build_binaries).await?;
    let moments = [
        Moment::Born,
        Moment::Up,
        Moment::Applied,
        Moment::Running(1),
        Moment::Running(3),
        Moment::Applied,
        Moment::Running(2),
    ];
    for (round, moment) in moments.into_iter().enumerate() {
        let name = format!("starter-{}-{round}", std::process::id());
        killed_at(&name, moment).await.with_context(|| format!("{moment:?}"))?;
    }
    Ok(())
}

async fn killed_at(name: &str, moment: Moment) -> Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let aquifer = std::env::current_exe()?.ancestors().nth(2).context("the folder of the binaries")?.join("aquifer");
    let mut starter = Command::new(aquifer)
        .args(["lab", "--name", name, "up", "--foreground", "-f", "examples/shop"])
        .current_dir(root)
        .stdout(Stdio::piped())
        .spawn()?;
    let mut lines = BufReader::new(starter.stdout.take().context("its output")?).lines();
    let labs = PathBuf::from("/run/aquifer/labs");
    let mut namespace = None;
    eventually("pid 1 is there", Duration::from_secs(10), async || {
        let pid = std::fs::read_to_string(labs.join(name).join("pid")).unwrap_or_default();
        namespace = std::fs::metadata(format!("/proc/{}/ns/pid", pid.trim())).ok().map(|file| file.ino());
        Ok(namespace.is_some())
    })
    .await?;
    let namespace = namespace.context("the lab's PID namespace")?;
    let mut read_until = |text: &str| -> Result<()> {
        while !lines.next().context("its output ended")??.contains(text) {}
        Ok(())
    };
    match moment {
        Moment::Born => {}
        Moment::Up => read_until("is up")?,
        Moment::Applied => read_until("applied")?,
        Moment::Running(pods) => {
            read_until("applied")?;
            let lab = Lab::attach(name)?;
            let running = |status: &aquifer_lab::Status| {
                let of_shop = status.pods.iter().filter(|pod| pod.namespace == "shop" && pod.phase == "Running");
                (of_shop.count() >= pods).then_some(())
            };
            lab.wait_status("pods that run", Duration::from_secs(30), running).await?;
        }
    }
    starter.kill()?;
    starter.wait()?;
    eventually("no process of the lab is left", Duration::from_secs(4), async || Ok(members(namespace)? == 0)).await?;
    eventually("no folder of the lab is left", Duration::from_secs(1), async || Ok(folders(&labs, name)?.is_empty()))
        .await?;
    // What was removed is not made anew.
    ensure!(members(namespace)? == 0 && folders(&labs, name)?.is_empty(), "it came back");
    Ok(())
}

/// Processes that are in a PID namespace and no zombies.
fn members(namespace: u64) -> Result<usize> {
    let mut count = 0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let there = std::fs::metadata(entry.path().join("ns/pid")).is_ok_and(|file| file.ino() == namespace);
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let ended = stat.rsplit_once(") ").is_none_or(|(_, rest)| rest.starts_with(['Z', 'X']));
        count += usize::from(there && !ended);
    }
    Ok(count)
}

/// The lab's folder, under its own name or as what is being removed.
fn folders(labs: &Path, name: &str) -> Result<Vec<PathBuf>> {
    let named = |path: &PathBuf| path.file_name().is_some_and(|file| file.to_string_lossy().contains(name));
    Ok(std::fs::read_dir(labs)?.flatten().map(|entry| entry.path()).filter(named).collect())
}
