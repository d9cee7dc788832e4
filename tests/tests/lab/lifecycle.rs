//! What a lab leaves behind when it is killed: nothing.

use std::time::Duration;

use anyhow::Result;
use aquifer_lab::LabOptions;

use crate::harness::{eventually, meshed_shop};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn sigkill_of_a_meshed_lab_leaves_no_process_and_no_namespace() -> Result<()> {
    let lab = meshed_shop(LabOptions::default()).await?;
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
    assert!(!aquifer_lab::Lab::list().contains(&name));
    let machine = std::process::Command::new("ip").args(["-o", "link"]).output()?;
    let links = String::from_utf8_lossy(&machine.stdout).into_owned();
    assert!(!links.contains("node1") && !links.contains("veth"), "links on the machine: {links}");
    Ok(())
}
