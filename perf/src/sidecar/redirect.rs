//! Which connections of a pod go to its Envoy, as nftables text. Pure.
//!
//! The decisions are those of istio-iptables in its default mode, in its order. IPv4 alone is carried, as in Istio on
//! a cluster that isn't dual-stack; TCP over IPv6 is refused, so that nothing goes around the sidecar unseen.

use std::net::Ipv4Addr;

use super::{INBOUND, OUTBOUND, UID};

/// The table in the pod's network namespace.
pub(super) const TABLE: &str = "sidecar";

/// The source of Envoy's connections to the application: how they are told from a call of the pod to itself.
pub(super) const TO_APP: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// The table, replacing one that is there. What comes from the nodes themselves reaches the application directly:
/// those are kubelet's probes, which Istio sends around Envoy by rewriting them.
pub(super) fn rules(nodes: &[Ipv4Addr]) -> String {
    let probes = if nodes.is_empty() {
        String::new()
    } else {
        let nodes: Vec<String> = nodes.iter().map(ToString::to_string).collect();
        format!("    ip saddr {{ {} }} return\n", nodes.join(", "))
    };
    format!(
        "table inet {TABLE}
delete table inet {TABLE}
table inet {TABLE} {{
  chain prerouting {{
    type nat hook prerouting priority -100; policy accept;
    meta nfproto != ipv4 return
{probes}    meta l4proto tcp redirect to :{INBOUND}
  }}
  chain output {{
    type nat hook output priority -100; policy accept;
    meta nfproto != ipv4 return
    meta l4proto != tcp return
    oifname \"lo\" ip saddr {TO_APP} return
    oifname \"lo\" ip daddr != 127.0.0.1 meta skuid {UID} meta l4proto tcp redirect to :{INBOUND}
    oifname \"lo\" meta skuid != {UID} return
    meta skuid {UID} return
    ip daddr 127.0.0.1 return
    meta l4proto tcp redirect to :{OUTBOUND}
  }}
  chain refuse-in {{
    type filter hook input priority filter; policy accept;
    iifname != \"lo\" meta nfproto ipv6 meta l4proto tcp reject with tcp reset
  }}
  chain refuse-out {{
    type filter hook output priority filter; policy accept;
    oifname != \"lo\" meta nfproto ipv6 meta l4proto tcp reject with tcp reset
  }}
}}
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sidecars_own_connections_are_told_apart_before_the_redirection() {
        let text = rules(&[Ipv4Addr::new(198, 18, 0, 1), Ipv4Addr::new(198, 18, 0, 2)]);
        let at = |part: &str| text.find(part).unwrap_or_else(|| panic!("{part:?} is not in\n{text}"));
        assert!(at("ip saddr { 198.18.0.1, 198.18.0.2 } return") < at("redirect to :15006"));
        assert!(at("ip saddr 127.0.0.6 return") < at("skuid 1337 meta l4proto tcp redirect to :15006"));
        assert!(at("skuid 1337 meta l4proto tcp redirect to :15006") < at("    meta skuid 1337 return"));
        assert!(at("    meta skuid 1337 return") < at("redirect to :15001"));
        assert!(at("ip daddr 127.0.0.1 return") < at("redirect to :15001"));
        assert_eq!(text.matches('{').count(), text.matches('}').count());
    }

    #[test]
    fn an_empty_set_is_not_written() {
        assert!(!rules(&[]).contains("saddr {"));
    }
}
