//! What /proc tells of the lab's processes.

use std::fs;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::sys::stat::fstat;
use nix::unistd::{Pid, SysconfVar, sysconf};

use crate::error::{During, LabError, Result};
use crate::status::ProcessStats;

/// Kills every process in a network namespace: also those that left their process group.
pub(super) fn kill_in_netns(net: &OwnedFd) {
    let Ok(wanted) = fstat(net) else { return };
    let Ok(entries) = fs::read_dir("/proc") else { return };
    let own = std::process::id();
    for pid in entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok()) {
        let there = fs::metadata(format!("/proc/{pid}/ns/net"));
        if pid.cast_unsigned() != own
            && there.is_ok_and(|there| (there.dev(), there.ino()) == (wanted.st_dev, wanted.st_ino))
        {
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
    }
}

/// What a process has used.
pub(super) fn stats(pid: i32) -> Result<ProcessStats> {
    let read =
        |file: &str| fs::read_to_string(format!("/proc/{pid}/{file}")).during(|| format!("reading /proc/{pid}/{file}"));
    let status = read("status")?;
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key));
        line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let ticks = sysconf(SysconfVar::CLK_TCK).ok().flatten().unwrap_or(100).cast_unsigned();
    let cpu = cpu_ticks(&read("stat")?).ok_or_else(|| LabError::Refused(format!("/proc/{pid}/stat is odd")))?;
    let fds = fs::read_dir(format!("/proc/{pid}/fd")).map_or(0, |entries| entries.count() as u64);
    Ok(ProcessStats {
        pid,
        rss_bytes: kib("VmRSS:") * 1024,
        peak_rss_bytes: kib("VmHWM:") * 1024,
        cpu: Duration::from_millis(cpu * 1000 / ticks),
        threads: kib("Threads:"),
        fds,
    })
}

/// User and system time of a stat line (proc_pid_stat(5)): fields 14 and 15; the name before them may hold blanks.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace().skip(11);
    Some(fields.next()?.parse::<u64>().ok()? + fields.next()?.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_lines_with_odd_names() {
        let line = "12 (a b) c) S 1 12 12 0 -1 4194304 100 0 0 0 31 11 0 0 20 0 3 0 5 6 7";
        assert_eq!(cpu_ticks(line), Some(42));
        assert_eq!(cpu_ticks("12 (a) S 1"), None);
    }

    #[test]
    fn reads_our_own() {
        let stats = stats(std::process::id().cast_signed()).unwrap();
        assert!(stats.rss_bytes > 0 && stats.peak_rss_bytes >= stats.rss_bytes && stats.threads > 0 && stats.fds > 2);
    }
}
