//! The node's own rules: a probe of an enrolled pod leaves with an address that the pod's rules let pass.
//!
//! The kubelet's probes are plain connections from the node; captured, a STRICT pod would refuse them. So what a
//! local socket of the agent's own user (the kubelet's) sends to an enrolled pod gets a source address that
//! nobody else can have: link-local in IPv4, a unique local address in IPv6.

use super::pod::ProbeAddresses;
use super::{Action, Chain, Match, Protocol, Rule, Set, Table};
use crate::netlink::nft::{Hook, HookKind, HookPoint, SetKey};
use std::net::IpAddr;

/// The table in the node's namespace.
pub const TABLE: &str = "istio-ambient-nat";
/// IPv4 addresses of enrolled pods.
pub const PROBES_V4: &str = "istio-inpod-probes-v4";
/// IPv6 addresses of enrolled pods.
pub const PROBES_V6: &str = "istio-inpod-probes-v6";

const PRIORITY_SRCNAT: i32 = 100;

/// The table, with the addresses of the pods enrolled so far.
pub fn table(probes: ProbeAddresses, uid: u32, pods: &[IpAddr]) -> Table {
    let of = |v4: bool| pods.iter().copied().filter(|ip| ip.is_ipv4() == v4).collect();
    let rule = |comment, set, key, source| {
        Rule::new(
            comment,
            [Match::Protocol(Protocol::Tcp), Match::SocketUid(uid), Match::DestinationIn(set, key)],
            Action::Snat(source),
        )
    };
    Table {
        name: TABLE,
        sets: vec![
            Set { name: PROBES_V4, key: SetKey::Ipv4, elements: of(true) },
            Set { name: PROBES_V6, key: SetKey::Ipv6, elements: of(false) },
        ],
        chains: vec![
            Chain {
                name: "istio-postrouting",
                hook: None,
                rules: vec![
                    rule("probes of enrolled pods, IPv4", PROBES_V4, SetKey::Ipv4, probes.v4.into()),
                    rule("probes of enrolled pods, IPv6", PROBES_V6, SetKey::Ipv6, probes.v6.into()),
                ],
            },
            Chain {
                name: "postrouting",
                hook: Some(Hook { kind: HookKind::Nat, point: HookPoint::Postrouting, priority: PRIORITY_SRCNAT }),
                rules: vec![Rule::new("to our rules", [], Action::Jump("istio-postrouting"))],
            },
        ],
    }
}

/// The set for an address.
pub fn set_of(address: IpAddr) -> &'static str {
    if address.is_ipv4() { PROBES_V4 } else { PROBES_V6 }
}
