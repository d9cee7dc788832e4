//! Rules as data → nf_tables expressions → one transaction.

use super::{Action, Mark, Match, Protocol, Rule, Table};
use crate::netlink::expr::{Compare, Conntrack, Expr, Header, Meta, NFPROTO_IPV4, NFPROTO_IPV6, Verdict};
use crate::netlink::nft::{Batch, SetKey, octets};
use std::net::IpAddr;

/// Where TCP's header has its flags (RFC 9293, 3.1), and the one that begins a connection.
const TCP_FLAGS: u32 = 13;
const SYN: u8 = 0x02;
/// A packet that goes as the connection's first did (`IP_CT_DIR_ORIGINAL`).
const ORIGINAL: u8 = 0;

/// A transaction that puts these tables in place of whatever stands under their names, and makes sure that the
/// `absent` ones are not there.
pub fn replace(tables: &[Table], absent: &[&str]) -> Batch {
    let mut batch = Batch::new();
    for name in absent {
        batch.delete_table(name);
    }
    for table in tables {
        batch.delete_table(table.name).add_table(table.name);
        for set in &table.sets {
            batch.add_set(table.name, set.name, set.key).add_elements(table.name, set.name, &set.elements);
        }
        for chain in &table.chains {
            batch.add_chain(table.name, chain.name, chain.hook);
        }
        for chain in &table.chains {
            for rule in &chain.rules {
                batch.add_rule(table.name, chain.name, &expressions(rule), rule.comment);
            }
        }
    }
    batch
}

/// A rule's expressions.
pub fn expressions(rule: &Rule) -> Vec<Expr> {
    let mut exprs = Vec::new();
    for condition in &rule.matches {
        encode_match(condition, &mut exprs);
    }
    encode_action(&rule.action, &mut exprs);
    exprs
}

fn encode_match(condition: &Match, exprs: &mut Vec<Expr>) {
    use Compare::{Different, Equal};
    match condition {
        Match::Protocol(protocol) => {
            let number = match protocol {
                Protocol::Tcp => libc::IPPROTO_TCP,
                Protocol::Udp => libc::IPPROTO_UDP,
            };
            exprs.extend([Expr::LoadMeta(Meta::Protocol), Expr::Cmp(Equal, vec![number as u8])]);
        }
        Match::InputInterface(name) => {
            exprs.extend([Expr::LoadMeta(Meta::InputInterface), Expr::Cmp(Equal, interface(name))]);
        }
        Match::OutputInterface(name) => {
            exprs.extend([Expr::LoadMeta(Meta::OutputInterface), Expr::Cmp(Equal, interface(name))]);
        }
        Match::OutputInterfaceNot(name) => {
            exprs.extend([Expr::LoadMeta(Meta::OutputInterface), Expr::Cmp(Different, interface(name))]);
        }
        Match::Source(ip) => address(*ip, End::Source, Equal, exprs),
        Match::Destination(ip) => address(*ip, End::Destination, Equal, exprs),
        Match::DestinationNot(ip) => address(*ip, End::Destination, Different, exprs),
        Match::DestinationIn(set, key) => {
            load_address(*key == SetKey::Ipv4, End::Destination, exprs);
            exprs.push(Expr::Lookup((*set).to_owned()));
        }
        Match::Port(port) => self::port(*port, End::Destination, Equal, exprs),
        Match::PortNot(port) => self::port(*port, End::Destination, Different, exprs),
        Match::SourcePort(port) => self::port(*port, End::Source, Equal, exprs),
        Match::NoSyn => exprs.extend([
            Expr::Load { header: Header::Transport, offset: TCP_FLAGS, length: 1 },
            Expr::Bitwise { mask: vec![SYN], xor: vec![0] },
            Expr::Cmp(Equal, vec![0]),
        ]),
        Match::Mark(mark) => marked(Expr::LoadMeta(Meta::Mark), *mark, Equal, exprs),
        Match::MarkNot(mark) => marked(Expr::LoadMeta(Meta::Mark), *mark, Different, exprs),
        Match::ConnectionMark(mark) => marked(Expr::LoadConntrack(Conntrack::Mark), *mark, Equal, exprs),
        Match::Original => exprs.extend([Expr::LoadConntrack(Conntrack::Direction), Expr::Cmp(Equal, vec![ORIGINAL])]),
        Match::SocketUid(uid) => {
            exprs.extend([Expr::LoadMeta(Meta::SocketUid), Expr::Cmp(Equal, uid.to_ne_bytes().to_vec())]);
        }
    }
}

fn encode_action(action: &Action, exprs: &mut Vec<Expr>) {
    match action {
        Action::Accept => exprs.push(Expr::Verdict(Verdict::Accept)),
        Action::Return => exprs.push(Expr::Verdict(Verdict::Return)),
        Action::Jump(chain) => exprs.push(Expr::Verdict(Verdict::Jump((*chain).to_owned()))),
        Action::Redirect(port) => exprs.extend([Expr::Value(port.to_be_bytes().to_vec()), Expr::Redirect]),
        Action::Snat(ip) => {
            let family = if ip.is_ipv4() { NFPROTO_IPV4 } else { NFPROTO_IPV6 };
            exprs.extend([Expr::Value(octets(*ip)), Expr::Snat { family }]);
        }
        Action::SetConnectionMark(Mark { value, mask }) => exprs.extend([
            Expr::LoadConntrack(Conntrack::Mark),
            Expr::Bitwise { mask: (!mask).to_ne_bytes().to_vec(), xor: value.to_ne_bytes().to_vec() },
            Expr::SetConntrack(Conntrack::Mark),
        ]),
        Action::MarkFromConnection => {
            exprs.extend([Expr::LoadConntrack(Conntrack::Mark), Expr::SetMeta(Meta::Mark)]);
        }
        Action::Zone(zone) => {
            exprs.extend([Expr::Value(zone.to_ne_bytes().to_vec()), Expr::SetConntrack(Conntrack::Zone)]);
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum End {
    Source,
    Destination,
}

fn address(ip: IpAddr, end: End, how: Compare, exprs: &mut Vec<Expr>) {
    load_address(ip.is_ipv4(), end, exprs);
    exprs.push(Expr::Cmp(how, octets(ip)));
}

/// In an inet table the family must be asked for before a header of it is read.
fn load_address(v4: bool, end: End, exprs: &mut Vec<Expr>) {
    let (family, offset, length) = match (v4, end) {
        (true, End::Source) => (NFPROTO_IPV4, 12, 4),
        (true, End::Destination) => (NFPROTO_IPV4, 16, 4),
        (false, End::Source) => (NFPROTO_IPV6, 8, 16),
        (false, End::Destination) => (NFPROTO_IPV6, 24, 16),
    };
    exprs.extend([
        Expr::LoadMeta(Meta::Family),
        Expr::Cmp(Compare::Equal, vec![family as u8]),
        Expr::Load { header: Header::Network, offset, length },
    ]);
}

fn port(port: u16, end: End, how: Compare, exprs: &mut Vec<Expr>) {
    let offset = if end == End::Source { 0 } else { 2 };
    exprs.extend([
        Expr::Load { header: Header::Transport, offset, length: 2 },
        Expr::Cmp(how, port.to_be_bytes().to_vec()),
    ]);
}

fn marked(load: Expr, mark: Mark, how: Compare, exprs: &mut Vec<Expr>) {
    exprs.extend([
        load,
        Expr::Bitwise { mask: mark.mask.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expr::Cmp(how, mark.value.to_ne_bytes().to_vec()),
    ]);
}

/// An interface name as the kernel compares it: padded with zeroes to IFNAMSIZ.
fn interface(name: &str) -> Vec<u8> {
    let mut bytes = name.as_bytes().to_vec();
    bytes.resize(libc::IFNAMSIZ, 0);
    bytes
}
