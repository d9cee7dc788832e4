//! Packet captures in the lab's network namespaces: tcpdump writes, [`crate::pcap`] reads.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use crate::error::{During, LabError, Result};
use crate::options::Netns;
use crate::paths::Paths;
use crate::pcap::Pcap;
use crate::process::Process;
use crate::start::need_program;
use crate::wire::Target;

/// A capture that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
}

impl Capture {
    pub(crate) async fn start(paths: &Paths, netns: Netns, interface: &str) -> Result<Self> {
        need_program("tcpdump", "tcpdump")?;
        let folder = paths.root().join("captures");
        fs::create_dir_all(&folder).during(|| format!("making {}", folder.display()))?;
        let file = folder.join(format!("{:016x}.pcap", rand::random::<u64>()));
        let name = file.display().to_string();
        // -U with --immediate-mode: a packet is in the file when it was seen. -Z root: tcpdump would drop to a
        // user who may not write here. -B 16384: 16 MiB for bursts.
        let args = [
            "tcpdump",
            "-i",
            interface,
            "-U",
            "--immediate-mode",
            "-n",
            "-s",
            "0",
            "-B",
            "16384",
            "-Z",
            "root",
            "-w",
            &name,
        ];
        let tcpdump = Process::start(paths, Target::Netns(netns), &args)?;
        tcpdump.wait_output("listening on", Duration::from_secs(10)).await?;
        Ok(Self { tcpdump, file })
    }

    /// What was captured so far.
    pub fn so_far(&self) -> Result<Pcap> {
        let bytes = fs::read(&self.file).during(|| "reading a capture".into())?;
        // While tcpdump writes, the last packet may be cut: the parser stops there.
        Pcap::parse(&bytes).map_err(|error| LabError::Refused(format!("reading a capture: {error}")))
    }

    /// Stops and returns all that was captured.
    pub async fn stop(self) -> Result<Pcap> {
        self.tcpdump.signal(libc::SIGINT)?;
        let output = self.tcpdump.wait().await?;
        if output.stderr.lines().any(|line| line.contains("dropped by kernel") && !line.starts_with("0 ")) {
            tracing::warn!(stderr = output.stderr, "the capture lost packets");
        }
        let bytes = fs::read(&self.file).during(|| "reading a capture".into())?;
        let _ = fs::remove_file(&self.file);
        Pcap::parse(&bytes).map_err(|error| LabError::Refused(format!("reading a capture: {error}")))
    }

    /// The file that it is written to.
    pub fn file(&self) -> &std::path::Path {
        &self.file
    }
}
