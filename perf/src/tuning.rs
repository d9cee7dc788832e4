//! The same kernel settings in every network namespace of every mode.

use anyhow::{Context, Result, ensure};
use aquifer_lab::{Lab, Netns};

/// What is set where the kernel has it. Ports of the mesh itself (15000 and up) lie outside the range.
const SETTINGS: [(&str, &str); 3] = [
    ("net/netfilter/nf_conntrack_tcp_timeout_time_wait", "5"),
    ("net/ipv4/ip_local_port_range", "16384 65535"),
    ("net/ipv4/tcp_tw_reuse", "1"),
];

/// What every interface must have on.
const OFFLOADS: [&str; 3] = ["tcp-segmentation-offload", "generic-segmentation-offload", "tx-checksumming"];

/// The settings, as the report names them.
pub(crate) fn described() -> Vec<String> {
    let mut lines: Vec<String> =
        SETTINGS.iter().map(|(name, value)| format!("{} = {value}", name.replace('/', "."))).collect();
    lines.push("veth, MTU 1500, offloads (TSO, GSO, transmit checksums) on".to_owned());
    lines
}

/// Sets them in one network namespace.
pub(crate) async fn apply(lab: &Lab, netns: &Netns) -> Result<()> {
    let lines = SETTINGS.iter().map(|(name, value)| {
        // conntrack's are there once a rule in the namespace uses it.
        format!("if [ -e /proc/sys/{name} ]; then echo '{value}' > /proc/sys/{name} || exit 1; fi\n")
    });
    let script: String = lines.collect();
    let output = lab.netns_exec(netns.clone(), &["sh", "-c", &script]).await?;
    ensure!(output.ok(), "setting {} in {netns:?}: {}", described().join(", "), output.stderr.trim());
    Ok(())
}

/// Fails if an offload is off or an MTU is not 1500 on the interface: figures would not compare.
pub(crate) async fn check_interface(lab: &Lab, netns: &Netns, interface: &str) -> Result<()> {
    let output = lab.netns_exec(netns.clone(), &["ethtool", "-k", interface]).await?;
    ensure!(output.ok(), "asking for the offloads of {interface} in {netns:?}: {}", output.stderr.trim());
    for offload in OFFLOADS {
        let state = output.stdout.lines().find_map(|line| line.strip_prefix(offload)?.strip_prefix(": "));
        let state = state.with_context(|| format!("ethtool does not know {offload}: {}", output.stdout))?;
        ensure!(
            state.starts_with("on"),
            "{offload} of {interface} in {netns:?} is {state}: the modes would not compare"
        );
    }
    Ok(())
}
