//! What is laid where, as plain data: nothing here touches a kernel.
//!
//! ```text
//!   pod      the tables of an enrolled pod's network namespace
//!   host     the table that lets the kubelet's probes through, in the node's own namespace
//!   encode   data → nf_tables expressions → one transaction
//!   listing  data → the text `nft list ruleset` shows (an independent second reading, for tests and people)
//! ```

pub mod encode;
pub mod host;
pub mod listing;
pub mod pod;

use crate::netlink::nft::{Hook, SetKey};
use std::net::IpAddr;

/// A table of family inet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Table {
    /// Its name.
    pub name: &'static str,
    /// Its sets.
    pub sets: Vec<Set>,
    /// Its chains; a chain stands before the one that jumps to it.
    pub chains: Vec<Chain>,
}

/// A set of addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    /// Its name.
    pub name: &'static str,
    /// Which addresses it holds.
    pub key: SetKey,
    /// What it holds.
    pub elements: Vec<IpAddr>,
}

/// A chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chain {
    /// Its name.
    pub name: &'static str,
    /// Where it hangs; None: it is only jumped to.
    pub hook: Option<Hook>,
    /// Its rules in order.
    pub rules: Vec<Rule>,
}

/// A rule: if all of these match, do that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    /// All must match.
    pub matches: Vec<Match>,
    /// What is done.
    pub action: Action,
    /// Why it is there, for whoever lists the rules; unique within the chain.
    pub comment: &'static str,
}

/// A condition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Match {
    /// The transport protocol.
    Protocol(Protocol),
    /// Came in by this interface.
    InputInterface(String),
    /// Leaves by this interface.
    OutputInterface(String),
    /// Leaves by another interface.
    OutputInterfaceNot(String),
    /// From this address (which also says: of this family).
    Source(IpAddr),
    /// To this address.
    Destination(IpAddr),
    /// To another address of this family.
    DestinationNot(IpAddr),
    /// To an address in a set.
    DestinationIn(&'static str, SetKey),
    /// To this port. Stands after [`Match::Protocol`].
    Port(u16),
    /// To another port. Stands after [`Match::Protocol`].
    PortNot(u16),
    /// From this port. Stands after [`Match::Protocol`].
    SourcePort(u16),
    /// Begins no connection: without SYN. Stands after [`Match::Protocol`], which is TCP.
    NoSyn,
    /// The packet mark is this.
    Mark(Mark),
    /// The packet mark is not this.
    MarkNot(Mark),
    /// The connection mark is this.
    ConnectionMark(Mark),
    /// Goes as the first packet of its connection did.
    Original,
    /// Sent by a local socket of this user.
    SocketUid(u32),
}

/// A mark and the bits of it that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    /// The value.
    pub value: u32,
    /// The bits that count.
    pub mask: u32,
}

/// A transport protocol.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
}

/// What a rule does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Leave the packet alone.
    Accept,
    /// Back to the chain that jumped here.
    Return,
    /// On to another chain.
    Jump(&'static str),
    /// To this machine's own port.
    Redirect(u16),
    /// From this address instead.
    Snat(IpAddr),
    /// Mark the connection.
    SetConnectionMark(Mark),
    /// Mark the packet as its connection is marked.
    MarkFromConnection,
    /// Keep the connection in a conntrack zone of its own.
    Zone(u16),
}

impl Rule {
    fn new(comment: &'static str, matches: impl Into<Vec<Match>>, action: Action) -> Self {
        Self { matches: matches.into(), action, comment }
    }
}

/// What verification looks for: (chain, comment) of every rule of a table, chain by chain.
pub fn fingerprint(table: &Table) -> Vec<(String, String)> {
    let rules = table
        .chains
        .iter()
        .flat_map(|chain| chain.rules.iter().map(|rule| (chain.name.to_owned(), rule.comment.to_owned())));
    rules.collect()
}
