//! Memory: what processes hold, shared pages divided among those that share them (PSS), and what the kernel holds for
//! sockets.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

/// The processes' (their folders below /proc) PSS in bytes. One that has ended holds none.
pub(crate) fn pss(processes: &[PathBuf]) -> u64 {
    let rollups = processes.iter().filter_map(|process| fs::read_to_string(process.join("smaps_rollup")).ok());
    rollups.filter_map(|text| pss_of(&text)).sum()
}

/// The `Pss:` line of smaps_rollup, in bytes.
fn pss_of(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib << 10)
}

/// What the kernel holds for TCP sockets, of the whole machine, in bytes.
pub(crate) fn tcp_sockets() -> Result<u64> {
    let text = fs::read_to_string("/proc/net/sockstat").context("reading /proc/net/sockstat")?;
    let pages = tcp_pages(&text).context("/proc/net/sockstat has no TCP memory")?;
    Ok(pages * PAGE)
}

/// sockstat counts pages.
const PAGE: u64 = 4096;

fn tcp_pages(text: &str) -> Option<u64> {
    let mut words = text.lines().find_map(|line| line.strip_prefix("TCP:"))?.split_whitespace();
    words.find(|word| *word == "mem")?;
    words.next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_proc() {
        let rollup = "00400000-7fff rollup\nRss:    900 kB\nPss:    512 kB\nPss_Dirty: 3 kB\n";
        assert_eq!(pss_of(rollup), Some(512 << 10));
        let sockstat = "sockets: used 119\nTCP: inuse 4 orphan 0 tw 0 alloc 6 mem 17\nUDP: inuse 0 mem 0\n";
        assert_eq!(tcp_pages(sockstat), Some(17));
    }

    #[test]
    fn our_own_is_read() {
        assert!(pss(&["/proc/self".into()]) > 0);
        assert_eq!(pss(&["/proc/gone".into()]), 0);
        tcp_sockets().unwrap();
    }
}
