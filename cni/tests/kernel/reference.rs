//! The same redirection in iptables: Istio's in-pod rules in the order in which they are evaluated, loaded by
//! iptables-restore. Tests hold our rules against them, packet by packet.

use crate::namespace::sh;
use aquifer_cni::netns::NetNs;
use aquifer_cni::rules::pod::PodRules;

/// The mark of the proxy's sockets.
const PROXY: &str = "0x539/0xfff";
/// The mark of connections whose answers return to the proxy.
const RETURN: &str = "0x111/0xfff";

/// Loads the rules of both families into a pod, and the routes that go with them.
pub(crate) fn load(pod: &NetNs, rules: &PodRules) {
    let probes = rules.probe_addresses;
    let v4 = text(rules, &format!("{}/32", probes.v4), "127.0.0.1/32");
    let v6 = text(rules, &format!("{}/128", probes.v6), "::1/128");
    sh(pod, &format!("iptables-restore <<'END'\n{v4}END"));
    sh(pod, &format!("ip6tables-restore <<'END'\n{v6}END"));
    sh(pod, "ip rule add fwmark 0x111/0xfff pref 32764 lookup 100; ip route add local 0.0.0.0/0 dev lo table 100");
    sh(
        pod,
        "ip -6 rule add fwmark 0x111/0xfff pref 32764 lookup 100
         test \"$(cat /proc/sys/net/ipv6/conf/lo/disable_ipv6)\" = 1 || ip -6 route add local ::/0 dev lo table 100",
    );
}

fn text(rules: &PodRules, probe: &str, loopback: &str) -> String {
    let mangle = table(
        "mangle",
        &[format!("-m mark --mark {PROXY} -j CONNMARK --set-xmark {RETURN}")],
        &[format!("-m connmark --mark {RETURN} -j CONNMARK --restore-mark --nfmask 0xffffffff --ctmask 0xffffffff")],
    );
    let nat = table("nat", &nat_prerouting(rules, probe, loopback), &nat_output(rules, probe, loopback));
    let raw = table(
        "raw",
        &[format!("-p udp --sport 53 -m mark ! --mark {PROXY} -j CT --zone 1")],
        &[format!("-p udp --dport 53 -m mark --mark {PROXY} -j CT --zone 1")],
    );
    if rules.capture_dns { mangle + &nat + &raw } else { mangle + &nat }
}

fn nat_prerouting(rules: &PodRules, probe: &str, loopback: &str) -> Vec<String> {
    let mut lines = Vec::new();
    for interface in &rules.virtual_interfaces {
        lines.push(format!("-i {interface} -p tcp -j REDIRECT --to-ports 15001"));
        lines.push(format!("-i {interface} -j RETURN"));
    }
    if !rules.ingress {
        lines.push(format!("-s {probe} -p tcp -j ACCEPT"));
        lines.push(format!(
            "! -d {loopback} -p tcp ! --dport 15008 -m mark ! --mark {PROXY} -j REDIRECT --to-ports 15006"
        ));
    }
    lines
}

fn nat_output(rules: &PodRules, probe: &str, loopback: &str) -> Vec<String> {
    let mut lines = vec![format!("-d {probe} -p tcp -j ACCEPT")];
    if rules.capture_dns {
        let to_dns = format!("--dport 53 -m mark ! --mark {PROXY} -j REDIRECT --to-ports 15053");
        lines.push(format!("! -o lo -p udp {to_dns}"));
        lines.push(format!("! -d {loopback} -p tcp {to_dns}"));
    }
    lines.push(format!("-p tcp -m mark --mark {RETURN} -j ACCEPT"));
    lines.push(format!("! -d {loopback} -o lo -j ACCEPT"));
    lines.push(format!("! -d {loopback} -p tcp -m mark ! --mark {PROXY} -j REDIRECT --to-ports 15001"));
    lines
}

fn table(name: &str, prerouting: &[String], output: &[String]) -> String {
    let mut text = format!("*{name}\n:ISTIO_PRERT - [0:0]\n:ISTIO_OUTPUT - [0:0]\n");
    text += "-A PREROUTING -j ISTIO_PRERT\n-A OUTPUT -j ISTIO_OUTPUT\n";
    for (chain, lines) in [("ISTIO_PRERT", prerouting), ("ISTIO_OUTPUT", output)] {
        for line in lines {
            text += &format!("-A {chain} {line}\n");
        }
    }
    text + "COMMIT\n"
}

/// Loads the node's rule: what a local socket sends to one of these pods leaves with the probe address.
pub(crate) fn load_node(node: &NetNs, pods: &[(&str, &str)]) {
    for (pod, probe) in pods {
        let program = if pod.contains(':') { "ip6tables-restore" } else { "iptables-restore" };
        let text = format!(
            "*nat\n:ISTIO_POSTRT - [0:0]\n-A POSTROUTING -j ISTIO_POSTRT\n\
             -A ISTIO_POSTRT -d {pod} -p tcp -m owner --socket-exists -j SNAT --to-source {probe}\nCOMMIT\n"
        );
        sh(node, &format!("{program} <<'END'\n{text}END"));
    }
}
