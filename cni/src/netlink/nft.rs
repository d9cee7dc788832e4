//! nf_tables over NETLINK_NETFILTER: one batch is one transaction, all of it or nothing.
//!
//! A table is replaced by creating it (a no-op if it is there), deleting it and building it again, within one
//! batch: at no time does a packet see it missing. Kernels before 6.3 have no "delete if it exists".

use super::expr::{self, Expr};
use super::message::{self, Message};
use super::socket::{ACK, APPEND, CREATE, DUMP, Family, Frame, NetlinkError, REQUEST, Request, Socket};
use std::net::IpAddr;

const SUBSYSTEM: u16 = (libc::NFNL_SUBSYS_NFTABLES as u16) << 8;
const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
/// `NFPROTO_INET`: IPv4 and IPv6 in one table.
const INET: u8 = 1;
/// `NFNLGRP_NFTABLES`.
pub const EVENTS: u32 = 7;

const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_RULE_EXPRESSIONS: u16 = 4;
const NFTA_RULE_USERDATA: u16 = 7;

/// What hangs a chain into the packet's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// The chain's type: what its rules may do.
    pub kind: HookKind,
    /// `NF_INET_*`.
    pub point: HookPoint,
    /// Order among the chains of one hook.
    pub priority: i32,
}

/// A base chain's type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// Ordinary rules.
    Filter,
    /// Address translation: the first packet of a connection only.
    Nat,
    /// Like filter, at output: a changed mark routes the packet anew.
    Route,
}

/// Where in the packet's path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum HookPoint {
    /// Before routing.
    Prerouting = 0,
    /// From a local process.
    Output = 3,
    /// Before leaving.
    Postrouting = 4,
}

/// Key type of a set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetKey {
    /// IPv4 addresses.
    Ipv4,
    /// IPv6 addresses.
    Ipv6,
}

impl SetKey {
    /// nft's number for the type (it shows it to people by that) and the key's length.
    fn type_and_length(self) -> (u32, u32) {
        match self {
            Self::Ipv4 => (7, 4),
            Self::Ipv6 => (8, 16),
        }
    }
}

/// A transaction under construction.
#[derive(Debug, Default)]
pub struct Batch {
    requests: Vec<Request>,
    next_set: u32,
}

impl Batch {
    /// An empty transaction.
    pub fn new() -> Self {
        Self::default()
    }

    /// Makes sure that the table does not exist.
    pub fn delete_table(&mut self, table: &str) -> &mut Self {
        self.add_table(table);
        let mut message = new_message(libc::NFT_MSG_DELTABLE, ACK);
        message.text(1, table);
        self.push(message, format!("delete table inet {table}"))
    }

    /// Creates the table, if it is not there yet.
    pub fn add_table(&mut self, table: &str) -> &mut Self {
        let mut message = new_message(libc::NFT_MSG_NEWTABLE, ACK | CREATE);
        message.text(1, table);
        self.push(message, format!("add table inet {table}"))
    }

    /// Creates a chain; with a hook it becomes a base chain with policy accept.
    pub fn add_chain(&mut self, table: &str, chain: &str, hook: Option<Hook>) -> &mut Self {
        let mut message = new_message(libc::NFT_MSG_NEWCHAIN, ACK | CREATE);
        // NFTA_CHAIN_TABLE 1, _NAME 3, _HOOK 4 (HOOKNUM 1, PRIORITY 2), _POLICY 5, _TYPE 7.
        message.text(1, table).text(3, chain);
        if let Some(hook) = hook {
            message.nest(4, |nest| {
                nest.be32(1, hook.point as u32).attr(2, &hook.priority.to_be_bytes());
            });
            message.be32(5, libc::NF_ACCEPT as u32).text(
                7,
                match hook.kind {
                    HookKind::Filter => "filter",
                    HookKind::Nat => "nat",
                    HookKind::Route => "route",
                },
            );
        }
        self.push(message, format!("add chain inet {table} {chain}"))
    }

    /// Appends a rule. The comment is what `nft list` shows, and how [`rules`] recognises it.
    pub fn add_rule(&mut self, table: &str, chain: &str, exprs: &[Expr], comment: &str) -> &mut Self {
        let mut message = new_message(libc::NFT_MSG_NEWRULE, ACK | CREATE | APPEND);
        message.text(NFTA_RULE_TABLE, table).text(NFTA_RULE_CHAIN, chain);
        message.nest(NFTA_RULE_EXPRESSIONS, |list| expr::encode(exprs, list));
        message.attr(NFTA_RULE_USERDATA, &comment_userdata(comment));
        self.push(message, format!("add rule \"{comment}\" to inet {table} {chain}"))
    }

    /// Creates an empty set.
    pub fn add_set(&mut self, table: &str, set: &str, key: SetKey) -> &mut Self {
        self.next_set += 1;
        let (kind, length) = key.type_and_length();
        let mut message = new_message(libc::NFT_MSG_NEWSET, ACK | CREATE);
        // NFTA_SET_TABLE 1, _NAME 2, _FLAGS 3, _KEY_TYPE 4, _KEY_LEN 5, _ID 10.
        message.text(1, table).text(2, set).be32(3, 0).be32(4, kind).be32(5, length).be32(10, self.next_set);
        self.push(message, format!("add set inet {table} {set}"))
    }

    /// Adds addresses; those already there stay.
    pub fn add_elements(&mut self, table: &str, set: &str, addresses: &[IpAddr]) -> &mut Self {
        self.elements(libc::NFT_MSG_NEWSETELEM, ACK | CREATE, "add elements to", table, set, addresses)
    }

    /// Removes addresses; refused by the kernel when one is not there.
    pub fn delete_elements(&mut self, table: &str, set: &str, addresses: &[IpAddr]) -> &mut Self {
        self.elements(libc::NFT_MSG_DELSETELEM, ACK, "delete elements from", table, set, addresses)
    }

    fn elements(
        &mut self,
        kind: i32,
        flags: u16,
        verb: &str,
        table: &str,
        set: &str,
        addresses: &[IpAddr],
    ) -> &mut Self {
        if addresses.is_empty() {
            return self;
        }
        let mut message = new_message(kind, flags);
        // NFTA_SET_ELEM_LIST_TABLE 1, _SET 2, _ELEMENTS 3; element: NFTA_SET_ELEM_KEY 1 with NFTA_DATA_VALUE 1.
        message.text(1, table).text(2, set).nest(3, |list| {
            for address in addresses {
                list.nest(1, |element| {
                    element.nest(1, |key| {
                        key.attr(1, &octets(*address));
                    });
                });
            }
        });
        self.push(message, format!("{verb} set inet {table} {set}"))
    }

    /// Commits the whole batch through `socket`.
    pub fn commit(self, socket: Socket) -> Result<(), NetlinkError> {
        let edge = |kind| {
            let mut message = Message::new(kind, REQUEST);
            // struct nfgenmsg: family unspecified, version 0, and the subsystem in network order.
            message.raw(&[0, 0, 0, libc::NFNL_SUBSYS_NFTABLES as u8]);
            message
        };
        let frame = Frame { begin: Some(edge(NFNL_MSG_BATCH_BEGIN)), end: Some(edge(NFNL_MSG_BATCH_END)) };
        socket.transact(self.requests, frame)
    }

    /// Commits in the calling thread's network namespace.
    pub fn commit_here(self) -> Result<(), NetlinkError> {
        self.commit(Socket::open(Family::Netfilter)?)
    }

    fn push(&mut self, message: Message, what: String) -> &mut Self {
        self.requests.push(Request { message, what });
        self
    }
}

/// (chain, comment) of each rule of the table, chain by chain in order; empty when there is no such table.
pub fn rules(socket: &Socket, table: &str) -> Result<Vec<(String, String)>, NetlinkError> {
    let mut request = new_message(libc::NFT_MSG_GETRULE, DUMP);
    request.text(NFTA_RULE_TABLE, table);
    let mut found = Vec::new();
    let what = format!("list rules of inet {table}");
    absent_is_empty(socket.dump(&what, &request, |part| {
        let attributes = part.payload.get(4..).unwrap_or_default();
        let of = |kind| message::attribute(attributes, kind);
        if of(NFTA_RULE_TABLE).map(message::text).as_deref() != Some(table) {
            return;
        }
        let chain = of(NFTA_RULE_CHAIN).map(message::text).unwrap_or_default();
        let comment = of(NFTA_RULE_USERDATA).and_then(comment_of).unwrap_or_default();
        found.push((chain, comment));
    }))?;
    Ok(found)
}

/// The addresses in a set, in no particular order; empty when there is no such set.
pub fn elements(socket: &Socket, table: &str, set: &str) -> Result<Vec<IpAddr>, NetlinkError> {
    let mut request = new_message(libc::NFT_MSG_GETSETELEM, DUMP);
    request.text(1, table).text(2, set);
    let mut found = Vec::new();
    let what = format!("list set inet {table} {set}");
    absent_is_empty(socket.dump(&what, &request, |part| {
        let attributes = part.payload.get(4..).unwrap_or_default();
        let list = message::attribute(attributes, 3).unwrap_or_default();
        for (_, element) in message::attributes(list) {
            let key = message::attribute(element, 1).and_then(|key| message::attribute(key, 1));
            found.extend(key.and_then(address));
        }
    }))?;
    Ok(found)
}

fn absent_is_empty(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.errno() == nix::errno::Errno::ENOENT => Ok(()),
        other => other,
    }
}

fn new_message(kind: i32, flags: u16) -> Message {
    let mut message = Message::new(SUBSYSTEM | kind as u16, REQUEST | flags);
    message.raw(&[INET, 0, 0, 0]);
    message
}

/// libnftnl's TLV for a rule's comment: type 0, length, NUL-terminated text.
fn comment_userdata(comment: &str) -> Vec<u8> {
    let mut bytes = vec![0, u8::try_from(comment.len() + 1).expect("our comments are short")];
    bytes.extend_from_slice(comment.as_bytes());
    bytes.push(0);
    bytes
}

fn comment_of(userdata: &[u8]) -> Option<String> {
    let (kind, length) = (*userdata.first()?, usize::from(*userdata.get(1)?));
    let value = userdata.get(2..2 + length)?;
    (kind == 0).then(|| message::text(value))
}

/// An address as the packet carries it.
pub fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address(bytes: &[u8]) -> Option<IpAddr> {
    <[u8; 4]>::try_from(bytes).map(IpAddr::from).or_else(|_| <[u8; 16]>::try_from(bytes).map(IpAddr::from)).ok()
}
