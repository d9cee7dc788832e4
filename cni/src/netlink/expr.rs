//! nf_tables expressions: the small register machine that a rule is.
//!
//! Numbers are `linux/netfilter/nf_tables.h`. One register is enough for us: each match loads it, perhaps masks
//! it, and compares. Numbers in attributes are in network order; data in registers are as the packet or the
//! kernel's own variable holds them (ports and addresses in network order; marks, uids, zones in host order).

use super::message::Message;

const NFTA_LIST_ELEM: u16 = 1;
const NFTA_EXPR_NAME: u16 = 1;
const NFTA_EXPR_DATA: u16 = 2;

/// `NFT_REG_VERDICT`.
const VERDICT: u32 = 0;
/// `NFT_REG_1`.
const REGISTER: u32 = 1;

/// What `meta` can load or set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Meta {
    /// The packet mark.
    Mark = 3,
    /// Name of the interface the packet came in by.
    InputInterface = 6,
    /// Name of the interface the packet leaves by.
    OutputInterface = 7,
    /// Owner of the local socket; no socket, no match.
    SocketUid = 10,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
    Family = 15,
    /// `IPPROTO_*`.
    Protocol = 16,
}

/// What `ct` can load or set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Conntrack {
    /// Whether the packet goes as the connection's first did, 0, or comes back, 1; one byte (load only).
    Direction = 1,
    /// The connection mark.
    Mark = 3,
    /// The conntrack zone (set only, before conntrack sees the packet).
    Zone = 17,
}

/// Which header `payload` reads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Header {
    /// IPv4 or IPv6.
    Network = 1,
    /// TCP or UDP.
    Transport = 2,
}

/// How `cmp` compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Compare {
    /// Go on when equal.
    Equal = 0,
    /// Go on when different.
    Different = 1,
}

/// A verdict.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// `NF_ACCEPT`: leave this base chain.
    Accept,
    /// `NFT_RETURN`.
    Return,
    /// `NFT_JUMP` to a chain of the same table.
    Jump(String),
}

/// One expression.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expr {
    /// Load a packet's property.
    LoadMeta(Meta),
    /// Set the packet mark (or another settable property) from the register.
    SetMeta(Meta),
    /// Load a connection's property.
    LoadConntrack(Conntrack),
    /// Set a connection's property from the register.
    SetConntrack(Conntrack),
    /// Load header bytes.
    Load {
        /// The header.
        header: Header,
        /// Offset in it.
        offset: u32,
        /// How many bytes.
        length: u32,
    },
    /// register = (register & mask) ^ xor.
    Bitwise {
        /// Kept bits, as the register holds them.
        mask: Vec<u8>,
        /// Flipped bits.
        xor: Vec<u8>,
    },
    /// Compare the register.
    Cmp(Compare, Vec<u8>),
    /// Go on when the register is in the set.
    Lookup(String),
    /// Load a constant.
    Value(Vec<u8>),
    /// End with a verdict.
    Verdict(Verdict),
    /// Redirect to this machine, to the port in the register.
    Redirect,
    /// Rewrite the source to the address in the register.
    Snat {
        /// `NFPROTO_IPV4` or `NFPROTO_IPV6`.
        family: u32,
    },
}

/// `NFPROTO_IPV4`.
pub const NFPROTO_IPV4: u32 = 2;
/// `NFPROTO_IPV6`.
pub const NFPROTO_IPV6: u32 = 10;

/// Appends the expressions as list elements.
pub fn encode(exprs: &[Expr], list: &mut Message) {
    for expr in exprs {
        list.nest(NFTA_LIST_ELEM, |elem| {
            elem.text(NFTA_EXPR_NAME, expr.name());
            elem.nest(NFTA_EXPR_DATA, |data| expr.encode(data));
        });
    }
}

impl Expr {
    fn name(&self) -> &'static str {
        match self {
            Self::LoadMeta(_) | Self::SetMeta(_) => "meta",
            Self::LoadConntrack(_) | Self::SetConntrack(_) => "ct",
            Self::Load { .. } => "payload",
            Self::Bitwise { .. } => "bitwise",
            Self::Cmp(..) => "cmp",
            Self::Lookup(_) => "lookup",
            Self::Value(_) | Self::Verdict(_) => "immediate",
            Self::Redirect => "redir",
            Self::Snat { .. } => "nat",
        }
    }

    fn encode(&self, data: &mut Message) {
        match self {
            // NFTA_META_DREG 1, _KEY 2, _SREG 3.
            Self::LoadMeta(key) => data.be32(1, REGISTER).be32(2, *key as u32),
            Self::SetMeta(key) => data.be32(2, *key as u32).be32(3, REGISTER),
            // NFTA_CT_DREG 1, _KEY 2, _SREG 4.
            Self::LoadConntrack(key) => data.be32(1, REGISTER).be32(2, *key as u32),
            Self::SetConntrack(key) => data.be32(2, *key as u32).be32(4, REGISTER),
            // NFTA_PAYLOAD_DREG 1, _BASE 2, _OFFSET 3, _LEN 4.
            Self::Load { header, offset, length } => {
                data.be32(1, REGISTER).be32(2, *header as u32).be32(3, *offset).be32(4, *length)
            }
            // NFTA_BITWISE_SREG 1, _DREG 2, _LEN 3, _MASK 4, _XOR 5.
            Self::Bitwise { mask, xor } => {
                let length = u32::try_from(mask.len()).expect("a register is 16 bytes");
                data.be32(1, REGISTER).be32(2, REGISTER).be32(3, length);
                data.nest(4, |nest| constant(nest, mask)).nest(5, |nest| constant(nest, xor))
            }
            // NFTA_CMP_SREG 1, _OP 2, _DATA 3.
            Self::Cmp(how, value) => data.be32(1, REGISTER).be32(2, *how as u32).nest(3, |nest| constant(nest, value)),
            // NFTA_LOOKUP_SET 1, _SREG 2.
            Self::Lookup(set) => data.text(1, set).be32(2, REGISTER),
            // NFTA_IMMEDIATE_DREG 1, _DATA 2.
            Self::Value(value) => data.be32(1, REGISTER).nest(2, |nest| constant(nest, value)),
            // NFTA_DATA_VERDICT 2 with NFTA_VERDICT_CODE 1, _CHAIN 2.
            Self::Verdict(verdict) => data.be32(1, VERDICT).nest(2, |nest| {
                nest.nest(2, |code| {
                    match verdict {
                        Verdict::Accept => code.be32(1, libc::NF_ACCEPT as u32),
                        Verdict::Return => code.be32(1, libc::NFT_RETURN as u32),
                        Verdict::Jump(chain) => code.be32(1, libc::NFT_JUMP as u32).text(2, chain),
                    };
                });
            }),
            // NFTA_REDIR_REG_PROTO_MIN 1; the kernel adds NF_NAT_RANGE_PROTO_SPECIFIED itself.
            Self::Redirect => data.be32(1, REGISTER),
            // NFTA_NAT_TYPE 1, _FAMILY 2, _REG_ADDR_MIN 3.
            Self::Snat { family } => data.be32(1, libc::NFT_NAT_SNAT as u32).be32(2, *family).be32(3, REGISTER),
        };
    }
}

/// `NFTA_DATA_VALUE`.
fn constant(nest: &mut Message, value: &[u8]) {
    nest.attr(1, value);
}
