//! What a node does with Service addresses, as nftables text. Pure.
//!
//! New connections to a Service's port go to one of its backends at random; connection tracking keeps those that are
//! established where they are, also over a change. A port without backends is refused, as kube-proxy does.

use std::fmt::Write;
use std::net::{IpAddr, SocketAddr};

/// One port of a Service at one of its addresses.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ServicePort {
    pub(super) address: IpAddr,
    pub(super) port: u16,
    pub(super) udp: bool,
    /// In the order of their addresses.
    pub(super) backends: Vec<SocketAddr>,
}

const TABLE: &str = "inet aquifer-lab";

/// The whole table, replacing what was there in one transaction.
pub(super) fn render(ports: &[ServicePort], pods: &[IpAddr]) -> String {
    let mut text = format!("table {TABLE}\ndelete table {TABLE}\ntable {TABLE} {{\n");
    let mut line =
        |text_line: std::fmt::Arguments<'_>| writeln!(text, "{text_line}").expect("a String takes everything");
    for v6 in [false, true] {
        let (family, kind) = if v6 { ("6", "ipv6_addr") } else { ("4", "ipv4_addr") };
        let of_family = || ports.iter().enumerate().filter(move |(_, port)| port.address.is_ipv6() == v6);
        let served: Vec<String> = of_family()
            .filter(|(_, port)| !port.backends.is_empty())
            .map(|(index, port)| format!("{} : goto port-{index}", port.element()))
            .collect();
        let refused: Vec<String> =
            of_family().filter(|(_, port)| port.backends.is_empty()).map(|(_, port)| port.element()).collect();
        let own: Vec<String> = pods.iter().filter(|ip| ip.is_ipv6() == v6).map(|ip| format!("{ip} . {ip}")).collect();
        for (index, port) in of_family().filter(|(_, port)| !port.backends.is_empty()) {
            line(format_args!("  chain port-{index} {{ {}; }}", port.dnat()));
        }
        line(format_args!(
            "  map served{family} {{ type {kind} . inet_proto . inet_service : verdict;{} }}",
            elements(&served)
        ));
        line(format_args!(
            "  set refused{family} {{ type {kind} . inet_proto . inet_service;{} }}",
            elements(&refused)
        ));
        line(format_args!("  set own{family} {{ type {kind} . {kind};{} }}", elements(&own)));
    }
    let served = "ip daddr . meta l4proto . th dport vmap @served4; ip6 daddr . meta l4proto . th dport vmap @served6;";
    let refused =
        "ip daddr . meta l4proto . th dport @refused4 reject; ip6 daddr . meta l4proto . th dport @refused6 reject;";
    line(format_args!("  chain from-pods {{ type nat hook prerouting priority -100; {served} }}"));
    line(format_args!("  chain from-node {{ type nat hook output priority -100; {served} }}"));
    // A pod that a Service sends back to itself must answer to somebody else, or it drops its own address.
    line(format_args!(
        "  chain hairpin {{ type nat hook postrouting priority 100; ct status dnat ip saddr . ip daddr @own4 masquerade; \
         ct status dnat ip6 saddr . ip6 daddr @own6 masquerade; }}"
    ));
    line(format_args!("  chain refuse-forward {{ type filter hook forward priority 0; {refused} }}"));
    line(format_args!("  chain refuse-output {{ type filter hook output priority 0; {refused} }}"));
    text.push_str("}\n");
    text
}

impl ServicePort {
    fn protocol(&self) -> &'static str {
        if self.udp { "udp" } else { "tcp" }
    }

    fn element(&self) -> String {
        format!("{} . {} . {}", self.address, self.protocol(), self.port)
    }

    fn dnat(&self) -> String {
        let family = if self.address.is_ipv6() { "ip6" } else { "ip" };
        let protocol = self.protocol();
        if let [only] = self.backends.as_slice() {
            return format!("meta l4proto {protocol} dnat {family} to {only}");
        }
        let choices: Vec<String> = self
            .backends
            .iter()
            .enumerate()
            .map(|(index, backend)| format!("{index} : {} . {}", backend.ip(), backend.port()))
            .collect();
        let count = choices.len();
        format!("meta l4proto {protocol} dnat {family} to numgen random mod {count} map {{ {} }}", choices.join(", "))
    }
}

fn elements(list: &[String]) -> String {
    if list.is_empty() { String::new() } else { format!(" elements = {{ {} }};", list.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_backend_many_and_none() {
        let port = |address: &str, port, backends: &[&str]| ServicePort {
            address: address.parse().unwrap(),
            port,
            udp: false,
            backends: backends.iter().map(|backend| backend.parse().unwrap()).collect(),
        };
        let ports = [
            port("198.19.0.16", 80, &["198.18.17.2:8080", "198.18.18.2:8080"]),
            port("198.19.0.17", 6379, &["198.18.17.3:6379"]),
            port("198.19.0.18", 80, &[]),
            port("fd00:19::10", 80, &["[fd00:18:0:1::2]:8080"]),
        ];
        let text = render(&ports, &["198.18.17.2".parse().unwrap()]);
        let expected = [
            "chain port-0 { meta l4proto tcp dnat ip to numgen random mod 2 map { 0 : 198.18.17.2 . 8080, 1 : 198.18.18.2 . 8080 }; }",
            "chain port-1 { meta l4proto tcp dnat ip to 198.18.17.3:6379; }",
            "chain port-3 { meta l4proto tcp dnat ip6 to [fd00:18:0:1::2]:8080; }",
            "elements = { 198.19.0.16 . tcp . 80 : goto port-0, 198.19.0.17 . tcp . 6379 : goto port-1 };",
            "set refused4 { type ipv4_addr . inet_proto . inet_service; elements = { 198.19.0.18 . tcp . 80 }; }",
            "set refused6 { type ipv6_addr . inet_proto . inet_service; }",
            "set own4 { type ipv4_addr . ipv4_addr; elements = { 198.18.17.2 . 198.18.17.2 }; }",
        ];
        for part in expected {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(!text.contains("port-2"));
    }

    #[test]
    fn an_empty_cluster_is_a_valid_table() {
        let text = render(&[], &[]);
        assert!(text.starts_with("table inet aquifer-lab\ndelete table inet aquifer-lab\n"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }
}
