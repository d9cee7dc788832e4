//! The name servers of resolv.conf(5), and hosts(5). Pure.

use std::net::{IpAddr, SocketAddr};

/// Where name servers listen.
const PORT: u16 = 53;

/// What the C library uses at most.
const MOST: usize = 3;

/// The name servers, in order. The search list and options are for programs that ask by short names: not for us.
#[must_use]
pub fn name_servers(text: &str) -> Vec<SocketAddr> {
    let addresses = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and_then(|_| words.next())?;
        // A zone names an interface of our own namespace, which says nothing in a pod's.
        address.split('%').next()?.parse::<IpAddr>().ok()
    });
    addresses.map(|ip| SocketAddr::new(ip, PORT)).take(MOST).collect()
}

/// The addresses that hosts(5) gives a name.
#[must_use]
pub fn host(text: &str, name: &str) -> Vec<IpAddr> {
    let lines = text.lines().filter_map(|line| {
        let mut words = line.split('#').next()?.split_whitespace();
        let address = words.next()?.parse().ok()?;
        words.any(|word| word.eq_ignore_ascii_case(name)).then_some(address)
    });
    lines.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_found_by_any_of_their_names() {
        let text = "127.0.0.1 localhost\n# 10.0.0.1 db\n10.0.0.2\tdb.example DB  # mine\nfd00::2 db\nx db\n10.0.0.3\n";
        for (name, expected) in
            [("db", &["10.0.0.2", "fd00::2"][..]), ("db.example", &["10.0.0.2"]), ("mine", &[]), ("10.0.0.2", &[])]
        {
            let found: Vec<String> = host(text, name).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{name}");
        }
    }

    #[test]
    fn name_servers_and_nothing_else() {
        let check = |text: &str, expected: &[&str]| {
            let found: Vec<String> = name_servers(text).iter().map(ToString::to_string).collect();
            assert_eq!(found, expected, "{text}");
        };
        check("nameserver 198.19.0.10\nsearch a b\noptions ndots:5\n", &["198.19.0.10:53"]);
        check("  nameserver\t198.19.0.10  # the cluster's\n", &["198.19.0.10:53"]);
        check("# nameserver 1.1.1.1\n;nameserver 1.1.1.1\nnameserver\nnameserver x\n", &[]);
        check("nameserver fd00::10\nnameserver fe80::1%eth0\n", &["[fd00::10]:53", "[fe80::1]:53"]);
        check(
            "nameserver 1.0.0.1\nnameserver 1.0.0.2\nnameserver 1.0.0.3\nnameserver 1.0.0.4",
            &["1.0.0.1:53", "1.0.0.2:53", "1.0.0.3:53"],
        );
        check("", &[]);
    }
}
