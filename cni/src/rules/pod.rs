//! An enrolled pod's rules: what is captured, what is not, and how replies find home.
//!
//! ```text
//!   app ──► output ──redirect──► :15001 (proxy) ──mark 0x539──► out, not captured again
//!   in  ──► prerouting ─redirect► :15006 (proxy; plaintext)      :15008 (proxy; HBONE) is a plain listener
//!
//!   proxy, with the client's address as source ──mark 0x539──► app:   the connection gets connmark 0x111
//!   app's reply ──connmark 0x111 → mark 0x111──► route table 100 ──► lo ──► proxy
//! ```
//!
//! The effect is that of Istio's in-pod rules, in nftables with the names of its nftables variant.

use super::{Action, Chain, Mark, Match, Protocol, Rule, Table};
use crate::netlink::nft::{Hook, HookKind, HookPoint};
use crate::netlink::route::PolicyRule;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// The table with the redirects.
pub const NAT: &str = "istio-ambient-nat";
/// The table with the marks.
pub const MANGLE: &str = "istio-ambient-mangle";
/// The table that keeps the proxy's own DNS queries apart; only with DNS capture.
pub const RAW: &str = "istio-ambient-raw";
/// Every table that we may lay in a pod.
pub const TABLES: [&str; 3] = [NAT, MANGLE, RAW];

/// On every socket of the proxy.
pub const PROXY_MARK: Mark = Mark { value: 0x539, mask: 0xfff };
/// On connections whose replies must come back to the proxy.
pub const RETURN_MARK: Mark = Mark { value: 0x111, mask: 0xfff };
/// Where packets with the return mark are routed: all to lo.
pub const RETURN_TABLE: u8 = 100;
/// The policy rule for them.
pub const RETURN_RULE: PolicyRule =
    PolicyRule { mark: RETURN_MARK.value, mask: RETURN_MARK.mask, priority: 32764, table: RETURN_TABLE };

const OUTBOUND_PORT: u16 = 15001;
const INBOUND_PORT: u16 = 15006;
const HBONE_PORT: u16 = 15008;
const DNS_PROXY_PORT: u16 = 15053;
const DNS_PORT: u16 = 53;
/// The conntrack zone of the proxy's own DNS queries.
const DNS_ZONE: u16 = 1;

const LOOPBACK: &str = "lo";
const LOOPBACK_V4: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);
const LOOPBACK_V6: IpAddr = IpAddr::V6(Ipv6Addr::LOCALHOST);

const TCP: Match = Match::Protocol(Protocol::Tcp);
const UDP: Match = Match::Protocol(Protocol::Udp);

const PRIORITY_RAW: i32 = -300;
const PRIORITY_MANGLE: i32 = -150;
const PRIORITY_DSTNAT: i32 = -100;

/// What decides a pod's rules.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PodRules {
    /// Source addresses of the kubelet's probes, as the host rules rewrite them.
    pub probe_addresses: ProbeAddresses,
    /// Send the pod's DNS queries to the proxy.
    pub capture_dns: bool,
    /// Leave inbound traffic alone (the pod is an ingress: `ambient.istio.io/bypass-inbound-capture`).
    pub ingress: bool,
    /// Interfaces whose incoming traffic is someone's outbound (virtual machines:
    /// `istio.io/reroute-virtual-interfaces`).
    pub virtual_interfaces: Vec<String>,
}

/// The address that stands for "the node itself", in each family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProbeAddresses {
    /// HOST_PROBE_SNAT_IP.
    pub v4: Ipv4Addr,
    /// HOST_PROBE_SNAT_IPV6.
    pub v6: Ipv6Addr,
}

impl Default for ProbeAddresses {
    fn default() -> Self {
        Self {
            v4: Ipv4Addr::new(169, 254, 7, 127),
            v6: Ipv6Addr::new(0xfd16, 0x9254, 0x7127, 0x1337, 0xffff, 0xffff, 0xffff, 0xffff),
        }
    }
}

impl PodRules {
    /// The pod's tables.
    pub fn tables(&self) -> Vec<Table> {
        let mut tables = vec![
            Table {
                name: NAT,
                sets: Vec::new(),
                chains: hooked(HookKind::Nat, HookKind::Nat, PRIORITY_DSTNAT, self.prerouting(), self.output()),
            },
            Table {
                name: MANGLE,
                sets: Vec::new(),
                chains: hooked(
                    HookKind::Filter,
                    HookKind::Route,
                    PRIORITY_MANGLE,
                    vec![Rule::new(
                        "proxy to app: replies come back",
                        // The proxy's answers to what was redirected pass lo, too, and need no mark to find home.
                        [Match::Mark(PROXY_MARK), Match::Original],
                        Action::SetConnectionMark(RETURN_MARK),
                    )],
                    vec![Rule::new(
                        "replies of the app go to the proxy",
                        [Match::ConnectionMark(RETURN_MARK)],
                        Action::MarkFromConnection,
                    )],
                ),
            },
        ];
        if self.capture_dns {
            tables.push(Table { name: RAW, sets: Vec::new(), chains: dns_zone() });
        }
        tables
    }

    fn prerouting(&self) -> Vec<Rule> {
        let mut rules = vec![open_before()];
        for interface in &self.virtual_interfaces {
            let by_interface = Match::InputInterface(interface.clone());
            rules.push(Rule::new(
                "outbound of a virtual interface",
                [by_interface.clone(), TCP],
                Action::Redirect(OUTBOUND_PORT),
            ));
            rules.push(Rule::new("nothing else of a virtual interface", [by_interface], Action::Return));
        }
        if self.ingress {
            return rules;
        }
        rules.push(Rule::new("probes, IPv4", [TCP, Match::Source(self.probe_addresses.v4.into())], Action::Accept));
        rules.push(Rule::new("probes, IPv6", [TCP, Match::Source(self.probe_addresses.v6.into())], Action::Accept));
        for (comment, loopback) in [("inbound, IPv4", LOOPBACK_V4), ("inbound, IPv6", LOOPBACK_V6)] {
            rules.push(Rule::new(
                comment,
                [Match::DestinationNot(loopback), TCP, Match::PortNot(HBONE_PORT), Match::MarkNot(PROXY_MARK)],
                Action::Redirect(INBOUND_PORT),
            ));
        }
        rules
    }

    fn output(&self) -> Vec<Rule> {
        let probes = self.probe_addresses;
        let mut rules = vec![
            open_before(),
            Rule::new("answers to probes, IPv4", [TCP, Match::Destination(probes.v4.into())], Action::Accept),
            Rule::new("answers to probes, IPv6", [TCP, Match::Destination(probes.v6.into())], Action::Accept),
        ];
        if self.capture_dns {
            rules.push(Rule::new(
                "DNS over UDP",
                [Match::OutputInterfaceNot(LOOPBACK.into()), UDP, Match::Port(DNS_PORT), Match::MarkNot(PROXY_MARK)],
                Action::Redirect(DNS_PROXY_PORT),
            ));
            for (comment, loopback) in [("DNS over TCP, IPv4", LOOPBACK_V4), ("DNS over TCP, IPv6", LOOPBACK_V6)] {
                rules.push(Rule::new(
                    comment,
                    [Match::DestinationNot(loopback), TCP, Match::Port(DNS_PORT), Match::MarkNot(PROXY_MARK)],
                    Action::Redirect(DNS_PROXY_PORT),
                ));
            }
        }
        rules.push(Rule::new("replies on their way to the proxy", [TCP, Match::Mark(RETURN_MARK)], Action::Accept));
        for (comment, loopback) in [("pod to itself, IPv4", LOOPBACK_V4), ("pod to itself, IPv6", LOOPBACK_V6)] {
            let over_lo = Match::OutputInterface(LOOPBACK.into());
            rules.push(Rule::new(comment, [over_lo, Match::DestinationNot(loopback)], Action::Accept));
        }
        for (comment, loopback) in [("outbound, IPv4", LOOPBACK_V4), ("outbound, IPv6", LOOPBACK_V6)] {
            rules.push(Rule::new(
                comment,
                [Match::DestinationNot(loopback), TCP, Match::MarkNot(PROXY_MARK)],
                Action::Redirect(OUTBOUND_PORT),
            ));
        }
        rules
    }
}

/// Connections that were open before the rules stay as they were. Conntrack takes the first packet that it sees for the
/// first of a connection, whichever it is and whoever sent it: redirected, its answer would never reach the other end.
fn open_before() -> Rule {
    Rule::new("open before", [TCP, Match::NoSyn], Action::Accept)
}

/// The table with the redirects, with none.
pub fn without_redirects() -> Table {
    let chains = hooked(HookKind::Nat, HookKind::Nat, PRIORITY_DSTNAT, Vec::new(), Vec::new());
    Table { name: NAT, sets: Vec::new(), chains }
}

/// The proxy's own queries and a captured one may share all five of protocol, addresses and ports: a zone of
/// their own keeps conntrack from taking one for the other.
fn dns_zone() -> Vec<Chain> {
    hooked(
        HookKind::Filter,
        HookKind::Filter,
        PRIORITY_RAW,
        vec![Rule::new(
            "answers to the proxy's own DNS queries",
            [UDP, Match::SourcePort(DNS_PORT), Match::MarkNot(PROXY_MARK)],
            Action::Zone(DNS_ZONE),
        )],
        vec![Rule::new(
            "the proxy's own DNS queries",
            [UDP, Match::Port(DNS_PORT), Match::Mark(PROXY_MARK)],
            Action::Zone(DNS_ZONE),
        )],
    )
}

/// Our chains, and the base chains that jump to them.
fn hooked(
    prerouting_kind: HookKind,
    output_kind: HookKind,
    priority: i32,
    prerouting: Vec<Rule>,
    output: Vec<Rule>,
) -> Vec<Chain> {
    let base = |name, kind, point, to| Chain {
        name,
        hook: Some(Hook { kind, point, priority }),
        rules: vec![Rule::new("to our rules", [], Action::Jump(to))],
    };
    vec![
        Chain { name: "istio-prerouting", hook: None, rules: prerouting },
        Chain { name: "istio-output", hook: None, rules: output },
        base("prerouting", prerouting_kind, HookPoint::Prerouting, "istio-prerouting"),
        base("output", output_kind, HookPoint::Output, "istio-output"),
    ]
}
