//! The part of netlink this agent speaks, and no more.
//!
//! ```text
//!   message    header, attributes, nesting: bytes out, bytes in
//!   socket     send, collect acks, dump, follow events; errors as one sentence
//!   nft        nf_tables: batches, tables, chains, rules, sets
//!   expr       the expressions our rules are made of
//!   route      policy rules and table routes (rtnetlink)
//! ```
//!
//! Nothing here knows what a pod or a mesh is. A netlink socket stays in the network namespace in which it
//! was opened, whatever thread uses it later; opening it there is the caller's business.

pub mod expr;
pub mod message;
pub mod nft;
pub mod route;
pub mod socket;
