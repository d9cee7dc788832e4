//! Rules in nft's own language.

use super::{Action, Chain, Mark, Match, Protocol, Rule, Set, Table};
use crate::netlink::nft::{HookKind, HookPoint, SetKey};
use std::fmt::{self, Display, Formatter};
use std::net::IpAddr;

impl Display for Table {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "table inet {} {{", self.name)?;
        for set in &self.sets {
            write!(out, "{set}")?;
        }
        for chain in &self.chains {
            write!(out, "{chain}")?;
        }
        writeln!(out, "}}")
    }
}

impl Display for Set {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let key = match self.key {
            SetKey::Ipv4 => "ipv4_addr",
            SetKey::Ipv6 => "ipv6_addr",
        };
        writeln!(out, "\tset {} {{\n\t\ttype {key}", self.name)?;
        if !self.elements.is_empty() {
            let elements: Vec<String> = self.elements.iter().map(IpAddr::to_string).collect();
            writeln!(out, "\t\telements = {{ {} }}", elements.join(", "))?;
        }
        writeln!(out, "\t}}")
    }
}

impl Display for Chain {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        writeln!(out, "\tchain {} {{", self.name)?;
        if let Some(hook) = self.hook {
            let kind = match hook.kind {
                HookKind::Filter => "filter",
                HookKind::Nat => "nat",
                HookKind::Route => "route",
            };
            let point = match hook.point {
                HookPoint::Prerouting => "prerouting",
                HookPoint::Output => "output",
                HookPoint::Postrouting => "postrouting",
            };
            writeln!(out, "\t\ttype {kind} hook {point} priority {}; policy accept;", hook.priority)?;
        }
        for rule in &self.rules {
            writeln!(out, "\t\t{rule}")?;
        }
        writeln!(out, "\t}}")
    }
}

impl Display for Rule {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        let mut protocol = Protocol::Tcp;
        let mut matches = self.matches.iter().peekable();
        while let Some(condition) = matches.next() {
            if let Match::Protocol(found) = condition {
                protocol = *found;
                // nft folds the protocol into a following match of its header.
                if matches.peek().is_some_and(|next| next.is_of_the_header()) {
                    continue;
                }
            }
            condition.list(protocol, out)?;
            write!(out, " ")?;
        }
        write!(out, "{} comment \"{}\"", self.action, self.comment)
    }
}

impl Match {
    fn is_of_the_header(&self) -> bool {
        matches!(self, Self::Port(_) | Self::PortNot(_) | Self::SourcePort(_) | Self::NoSyn)
    }

    fn list(&self, protocol: Protocol, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Protocol(protocol) => write!(out, "meta l4proto {protocol}"),
            Self::InputInterface(name) => write!(out, "iifname \"{name}\""),
            Self::OutputInterface(name) => write!(out, "oifname \"{name}\""),
            Self::OutputInterfaceNot(name) => write!(out, "oifname != \"{name}\""),
            Self::Source(ip) => write!(out, "{} saddr {ip}", family(ip.is_ipv4())),
            Self::Destination(ip) => write!(out, "{} daddr {ip}", family(ip.is_ipv4())),
            Self::DestinationNot(ip) => write!(out, "{} daddr != {ip}", family(ip.is_ipv4())),
            Self::DestinationIn(set, key) => write!(out, "{} daddr @{set}", family(*key == SetKey::Ipv4)),
            Self::Port(port) => write!(out, "{protocol} dport {port}"),
            Self::PortNot(port) => write!(out, "{protocol} dport != {port}"),
            Self::SourcePort(port) => write!(out, "{protocol} sport {port}"),
            Self::NoSyn => write!(out, "{protocol} flags & syn == 0x0"),
            Self::Mark(Mark { value, mask }) => write!(out, "meta mark & 0x{mask:08x} == 0x{value:08x}"),
            Self::MarkNot(Mark { value, mask }) => write!(out, "meta mark & 0x{mask:08x} != 0x{value:08x}"),
            Self::ConnectionMark(Mark { value, mask }) => write!(out, "ct mark & 0x{mask:08x} == 0x{value:08x}"),
            Self::Original => write!(out, "ct direction original"),
            Self::SocketUid(uid) => write!(out, "meta skuid {uid}"),
        }
    }
}

impl Display for Action {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Accept => write!(out, "accept"),
            Self::Return => write!(out, "return"),
            Self::Jump(chain) => write!(out, "jump {chain}"),
            Self::Redirect(port) => write!(out, "redirect to :{port}"),
            Self::Snat(ip) => write!(out, "snat {} to {ip}", family(ip.is_ipv4())),
            Self::SetConnectionMark(Mark { value, mask }) => {
                write!(out, "ct mark set ct mark & 0x{:08x} | 0x{value:08x}", !mask)
            }
            Self::MarkFromConnection => write!(out, "meta mark set ct mark"),
            Self::Zone(zone) => write!(out, "ct zone set {zone}"),
        }
    }
}

impl Display for Protocol {
    fn fmt(&self, out: &mut Formatter<'_>) -> fmt::Result {
        out.write_str(match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
        })
    }
}

fn family(v4: bool) -> &'static str {
    if v4 { "ip" } else { "ip6" }
}
