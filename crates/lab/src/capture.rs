//! Packet captures in the lab's network namespaces: tcpdump writes, [`crate::pcap`] reads.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::addresses::{MAX_NODES, Plan};
use crate::error::{During, LabError, Result};
use crate::options::Netns;
use crate::paths::Paths;
use crate::pcap::{Pcap, contains};
use crate::process::Process;
use crate::start::need_program;
use crate::wire::Target;

/// How long the marker that ends a capture may take to be seen. An interface that no marker passes (a pod's veth)
/// costs this much.
const MARKER_PATIENCE: Duration = Duration::from_secs(10);

/// A capture that runs. Dropping it stops it.
#[derive(Debug)]
pub struct Capture {
    tcpdump: Process,
    file: PathBuf,
    paths: Paths,
    netns: Netns,
}

impl Capture {
    pub(crate) async fn start(paths: &Paths, netns: Netns, interface: &str) -> Result<Self> {
        need_program("tcpdump", "tcpdump")?;
        let folder = paths.root().join("captures");
        fs::create_dir_all(&folder).during(|| format!("making {}", folder.display()))?;
        let file = folder.join(format!("{:016x}.pcap", rand::random::<u64>()));
        let name = file.display().to_string();
        // -U with --immediate-mode: a packet is in the file soon after it was seen. -Z root: tcpdump would drop to a
        // user who may not write here. -B 16384: 16 MiB for bursts.
        let mut args = vec!["tcpdump", "-i", interface, "-U", "--immediate-mode", "-n", "-s", "0"];
        args.extend(["-B", "16384", "-Z", "root", "-w", &name]);
        let tcpdump = Process::start(paths, Target::Netns(netns.clone()), &args)?;
        tcpdump.wait_output("listening on", Duration::from_secs(10)).await?;
        Ok(Self { tcpdump, file, paths: paths.clone(), netns })
    }

    /// What was captured so far; the last moments may be missing.
    pub fn so_far(&self) -> Result<Pcap> {
        read(&self.file)
    }

    /// Stops and returns all that was captured.
    pub async fn stop(self) -> Result<Pcap> {
        let marker = format!("end of capture {:016x}", rand::random::<u64>());
        self.drain(&marker).await?;
        self.tcpdump.signal(libc::SIGINT)?;
        let output = self.tcpdump.wait().await?;
        let pcap = read(&self.file)?;
        if output.stderr.lines().any(|line| line.contains("dropped by kernel") && !line.starts_with("0 ")) {
            tracing::warn!(stderr = output.stderr, "the capture lost packets");
        }
        let _ = fs::remove_file(&self.file);
        // The marker, and what answers it (ICMP quotes it).
        Ok(pcap.filter(|packet| !contains(&packet.payload, marker.as_bytes())))
    }

    /// The file that it is written to.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// tcpdump, when told to stop, forgets what it has not read yet. So a datagram is sent past it: when that is in
    /// the file, everything before it is too.
    async fn drain(&self, marker: &str) -> Result<()> {
        let plan = Plan::new(false);
        let nodes = (1..=MAX_NODES).flat_map(|node| plan.node(node));
        let to: Vec<String> = nodes.chain(plan.wire()).map(|ip| ip.to_string()).collect();
        // One of these passes each interface of the wire and of a node or pod towards it; the last passes `lo`.
        let script =
            format!("for ip in {} 127.0.0.1; do echo '{marker}' > /dev/udp/$ip/9; done 2> /dev/null", to.join(" "));
        let sender = Process::start(&self.paths, Target::Netns(self.netns.clone()), &["bash", "-c", &script])?;
        sender.wait().await?;
        let begin = Instant::now();
        loop {
            let bytes = fs::read(&self.file).during(|| "reading a capture".into())?;
            if contains(&bytes, marker.as_bytes()) || begin.elapsed() > MARKER_PATIENCE {
                return Ok(());
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn read(file: &Path) -> Result<Pcap> {
    let bytes = fs::read(file).during(|| "reading a capture".into())?;
    // While tcpdump writes, the last packet may be cut: the parser stops there.
    Pcap::parse(&bytes).map_err(|error| LabError::Refused(format!("reading a capture: {error}")))
}
