//! Counters of overflows. A run in which one of them grew measured the overflow and not the mesh.

use std::collections::BTreeMap;

/// Of /proc/net/netstat's TcpExt: connections that did not fit into a listener's queue or the SYN queue.
const TCP: [&str; 4] = ["ListenOverflows", "ListenDrops", "TCPReqQFullDoCookies", "TCPReqQFullDrop"];
/// Of /proc/net/stat/nf_conntrack: packets and connections that its table had no place for.
const CONNTRACK: [&str; 3] = ["insert_failed", "drop", "early_drop"];

/// The files that hold them, as one `cat` prints them in a network namespace.
pub(crate) const FILES: [&str; 2] = ["/proc/net/netstat", "/proc/net/stat/nf_conntrack"];

/// The counters of a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    /// From the texts of [`FILES`], one after the other; conntrack's is missing where it is not loaded.
    pub(crate) fn parse(text: &str) -> Self {
        let mut found = BTreeMap::new();
        let lines: Vec<&str> = text.lines().collect();
        for pair in lines.windows(2) {
            let (Some(names), Some(values)) = (pair[0].strip_prefix("TcpExt:"), pair[1].strip_prefix("TcpExt:")) else {
                continue;
            };
            for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
                if let (Some(name), Ok(value)) = (TCP.into_iter().find(|known| *known == name), value.parse()) {
                    found.insert(name, value);
                }
            }
        }
        // A line of names, then one a CPU in hexadecimal.
        let names = lines.iter().position(|line| line.starts_with("entries") && line.contains("insert_failed"));
        if let Some(at) = names {
            let columns: Vec<&str> = lines[at].split_whitespace().collect();
            for line in &lines[at + 1..] {
                for (column, value) in columns.iter().zip(line.split_whitespace()) {
                    let known = CONNTRACK.into_iter().find(|known| known == column);
                    if let (Some(name), Ok(value)) = (known, u64::from_str_radix(value, 16)) {
                        *found.entry(name).or_insert(0) += value;
                    }
                }
            }
        }
        Self(found)
    }

    /// What grew since `before`.
    pub(crate) fn growth(&self, before: &Self) -> Vec<(&'static str, u64)> {
        let grown = |(name, now): (&&'static str, &u64)| {
            let by = now.saturating_sub(before.0.get(name).copied().unwrap_or(0));
            (by > 0).then_some((*name, by))
        };
        self.0.iter().filter_map(grown).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "\
TcpExt: SyncookiesSent ListenOverflows ListenDrops TCPReqQFullDrop
TcpExt: 0 3 4 0
IpExt: InNoRoutes InTruncatedPkts
IpExt: 9 9
entries  clashres found new invalid ignore delete delete_list insert insert_failed drop early_drop icmp_error
00000010  00000000 00000001 00000000 00000000 00000000 00000000 00000000 00000000 0000000a 00000001 00000000 00000000
00000010  00000000 00000001 00000000 00000000 00000000 00000000 00000000 00000000 00000002 00000000 00000000 00000000
";

    #[test]
    fn both_files_are_read() {
        let counters = Counters::parse(TEXT);
        let zero = Counters::default();
        assert_eq!(
            counters.growth(&zero),
            [("ListenDrops", 4), ("ListenOverflows", 3), ("drop", 1), ("insert_failed", 12)]
        );
        assert!(counters.growth(&counters).is_empty());
        assert_eq!(Counters::parse(""), zero);
    }
}
